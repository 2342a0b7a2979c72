//! Who may call what.

use std::sync::Arc;

use eastway_model::access::{Rule, Verdict, authorize};
use eastway_model::rules::{AccessMode, AccessPolicy, AccessRule, Match, Rules};
use eastway_model::{SourceIdentity, WorkloadIdentity};

use super::support::*;

fn exact(text: &str) -> Match {
    if text == "*" { Match::Any } else { Match::Exact(label(text)) }
}

fn policy(name: &str, services: &[&str], allow: &[(&str, &str, &[&str])]) -> AccessPolicy {
    let rule = |(cluster, namespace, accounts): &(&str, &str, &[&str])| AccessRule {
        cluster: exact(cluster),
        namespace: exact(namespace),
        service_accounts: accounts.iter().map(|account| exact(account)).collect(),
    };
    AccessPolicy {
        name: Arc::from(name),
        namespace: label("bookinfo"),
        namespaces: Vec::new(),
        services: services.iter().map(|service| exact(service)).collect(),
        dry_run: false,
        allow: allow.iter().map(rule).collect(),
    }
}

fn source(cluster: &str, namespace: &str, account: &str) -> SourceIdentity {
    SourceIdentity {
        cluster: label(cluster),
        namespace: Some(label(namespace)),
        service_account: Some(label(account)),
        identity: None,
    }
}

fn judge_in(mode: AccessMode, policies: &[AccessPolicy], source: &SourceIdentity, service: &str) -> Verdict {
    let (mut writer, reader) = store();
    let access = policies.iter().cloned().map(Arc::new).collect();
    writer.set_rules(Arc::new(Rules { access, access_mode: mode, ..rules(&["edge", "gke"]) }));
    authorize(&reader.load(), source, &key(service))
}

fn judge(policies: &[AccessPolicy], source: &SourceIdentity, service: &str) -> Verdict {
    judge_in(AccessMode::Enforce, policies, source, service)
}

#[test]
fn across_clusters_the_default_is_to_deny_and_inside_it_is_not_our_business() {
    let verdict = judge(&[], &source("gke", "bookinfo", "reviews"), "bookinfo/ratings");
    assert_eq!((verdict.allowed, verdict.rule, verdict.dry_run), (false, Rule::NoPolicy, false));
    let verdict = judge(&[], &source("onprem", "bookinfo", "reviews"), "bookinfo/ratings");
    assert_eq!((verdict.allowed, verdict.rule), (true, Rule::Local));
    let verdict = judge(&[policy("all", &["*"], &[("*", "*", &["*"])])], &source("evil", "a", "b"), "bookinfo/ratings");
    assert_eq!((verdict.allowed, verdict.rule), (false, Rule::UnknownPeer));
}

#[test]
fn p14_comparison_is_exact_in_every_part() {
    let policies = [policy("ratings", &["ratings"], &[("gke", "bookinfo", &["reviews", "admin"])])];
    let allowed =
        |cluster, namespace, account, service| judge(&policies, &source(cluster, namespace, account), service).allowed;
    assert!(allowed("gke", "bookinfo", "reviews", "bookinfo/ratings"));
    assert!(allowed("gke", "bookinfo", "admin", "bookinfo/ratings"));
    assert!(!allowed("edge", "bookinfo", "reviews", "bookinfo/ratings"));
    assert!(!allowed("gke", "bookinfo2", "reviews", "bookinfo/ratings"));
    assert!(!allowed("gke", "bookinf", "reviews", "bookinfo/ratings"));
    assert!(!allowed("gke", "bookinfo", "review", "bookinfo/ratings"));
    assert!(!allowed("gke", "bookinfo", "reviewsx", "bookinfo/ratings"));
    assert!(!allowed("gke", "bookinfo", "reviews", "bookinfo/ratings-v2"));
    assert!(!allowed("gke", "bookinfo", "reviews", "shop/ratings"), "a policy is about its own namespace");
}

#[test]
fn p14_what_is_unknown_is_matched_by_any_and_nothing_else() {
    let unknown = SourceIdentity::unknown(label("gke"));
    let any = [policy("any", &["*"], &[("gke", "*", &["*"])])];
    assert!(judge(&any, &unknown, "bookinfo/ratings").allowed);
    for rule in [("gke", "bookinfo", &["*"][..]), ("gke", "*", &["reviews"][..])] {
        assert!(!judge(&[policy("some", &["*"], &[rule])], &unknown, "bookinfo/ratings").allowed);
    }
}

#[test]
fn a_policy_for_other_namespaces_is_about_these_and_no_longer_its_own() {
    let with = |namespaces: &[&str]| AccessPolicy {
        namespaces: namespaces.iter().map(|namespace| exact(namespace)).collect(),
        ..policy("all", &["*"], &[("gke", "*", &["*"])])
    };
    let allowed = |namespaces: &[&str], service| judge(&[with(namespaces)], &source("gke", "a", "b"), service).allowed;
    assert!(allowed(&["*"], "bookinfo/ratings") && allowed(&["*"], "shop/cart"));
    assert!(allowed(&["shop"], "shop/cart"));
    assert!(!allowed(&["shop"], "shops/cart") && !allowed(&["shop"], "bookinfo/ratings"));
}

#[test]
fn any_of_several_policies_may_allow() {
    let policies = [
        policy("first", &["ratings"], &[("edge", "*", &["*"])]),
        policy("second", &["*"], &[("edge", "*", &["*"]), ("gke", "bookinfo", &["reviews"])]),
    ];
    let verdict = judge(&policies, &source("gke", "bookinfo", "reviews"), "bookinfo/ratings");
    assert_eq!(verdict.rule, Rule::Allowed { policy: "bookinfo/second".into(), index: 1 });
    let verdict = judge(&policies, &source("gke", "bookinfo", "other"), "bookinfo/ratings");
    assert_eq!(verdict.rule, Rule::NotAllowed { policy: "bookinfo/first".into() });
    assert!(!verdict.allowed);
}

#[test]
fn dry_run_lets_through_what_it_would_deny_and_says_so() {
    let dry = AccessPolicy { dry_run: true, ..policy("dry", &["*"], &[("gke", "bookinfo", &["reviews"])]) };
    let good = judge(std::slice::from_ref(&dry), &source("gke", "bookinfo", "reviews"), "bookinfo/ratings");
    assert_eq!((good.allowed, good.dry_run), (true, false));
    let bad = judge(std::slice::from_ref(&dry), &source("gke", "bookinfo", "other"), "bookinfo/ratings");
    assert_eq!((bad.allowed, bad.dry_run), (true, true));
    assert_eq!(bad.rule, Rule::NotAllowed { policy: "bookinfo/dry".into() });
    // A policy in force is not weakened by one that is only tried out.
    let policies = [dry, policy("wet", &["ratings"], &[("edge", "*", &["*"])])];
    assert!(!judge(&policies, &source("gke", "bookinfo", "reviews"), "bookinfo/ratings").allowed);
}

#[test]
fn a_gateway_in_dry_run_mode_carries_out_no_denial_of_a_peer() {
    let verdict = judge_in(AccessMode::DryRun, &[], &source("gke", "bookinfo", "reviews"), "bookinfo/ratings");
    assert_eq!((verdict.allowed, verdict.rule, verdict.dry_run), (true, Rule::NoPolicy, true));
    assert!(!judge_in(AccessMode::DryRun, &[], &source("evil", "bookinfo", "reviews"), "bookinfo/ratings").allowed);
}

#[test]
fn p3_an_identity_must_fit_the_peer_and_what_is_said_about_it() {
    let policies = [policy("any", &["*"], &[("*", "*", &["*"])])];
    let with = |identity: &str, namespace: &str| {
        let identity = WorkloadIdentity::parse(identity);
        assert!(identity.is_some());
        let source = SourceIdentity { identity, ..source("gke", namespace, "reviews") };
        judge(&policies, &source, "bookinfo/ratings")
    };
    assert!(with("spiffe://gke.example/ns/bookinfo/sa/reviews", "bookinfo").allowed);
    for (identity, namespace) in [
        ("spiffe://edge.example/ns/bookinfo/sa/reviews", "bookinfo"),
        ("spiffe://gke.example.evil/ns/bookinfo/sa/reviews", "bookinfo"),
        ("spiffe://gke.example/ns/bookinfo/sa/reviews", "shop"),
        ("spiffe://gke.example/ns/bookinfo/sa/other", "bookinfo"),
    ] {
        let verdict = with(identity, namespace);
        assert_eq!((verdict.allowed, verdict.rule), (false, Rule::IdentityMismatch), "{identity}");
    }
}

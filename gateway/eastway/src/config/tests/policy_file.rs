//! Policies with mistakes.

use super::{Folder, MINIMAL, PEER, POLICIES};

fn folder(policies: &str) -> Folder {
    Folder::new(&[("gateway.yaml", MINIMAL), ("peers/gke.yaml", PEER), ("policies/a.yaml", policies)])
}

fn errors(policies: &str) -> String {
    folder(policies).errors()
}

fn with(from: &str, to: &str) -> String {
    assert!(POLICIES.contains(from), "{from}");
    POLICIES.replace(from, to)
}

macro_rules! refused {
    ($($name:ident: $errors:expr;)*) => {$(
        #[test]
        fn $name() {
            insta::assert_snapshot!($errors);
        }
    )*};
}

const VISIBILITY: &str = "apiVersion: eastway.dev/v1alpha1
kind: Visibility
metadata: {name: web, namespace: shop}
spec:
  services: ['bookinfo/*', payments/api]
";

fn told(services: &str) -> String {
    errors(&VISIBILITY.replace("['bookinfo/*', payments/api]", services))
}

refused! {
    a_pattern_without_a_namespace: told("[reviews, 'bookinfo/re views', '**']");
    nothing_is_said_of_services: errors(&VISIBILITY.replace("  services: ['bookinfo/*', payments/api]", "  {}"));
    a_visibility_twice: errors(&format!("{VISIBILITY}---\n{VISIBILITY}"));
    another_kind: errors(&with("kind: TrafficPolicy", "kind: UDPRoute"));
    no_kind: errors("spec: {}\n");
    service_missing: errors(&with("  service: reviews\n", ""));
    namespace_missing: errors(&with("{name: reviews, namespace: bookinfo}", "{name: reviews}"));
    weights_all_0: errors(&with("weight: 50", "weight: 0").replace("weight: 30", "weight: 0").replace("weight: 20", "weight: 0"));
    weight_too_large: errors(&with("weight: 50", "weight: 1000001").replace("weight: 30", "weight: -1").replace("weight: 20, ", ""));
    a_share_twice: errors(&with("version: v2", "version: v1"));
    a_label_that_is_a_number: errors(&with("version: v2", "version: 2"));
    a_label_with_blanks: errors(&with("version: v2", "version: v 2"));
    a_subset_that_no_header_has_room_for: errors(&with("version: v2", &format!("{0}.{0}.{0}/{0}: {0}", "d".repeat(60))));
    a_service_that_reads_as_an_address: errors(&with("  service: reviews\n", "  service: '0x7f'\n"));
    failover_twice: errors(&with("[local, gke]", "[gke, gke]"));
    unknown_locality: errors(&with("  failover:", "  locality: preferLocal\n  failover:"));
    a_service_twice: errors(&format!("{POLICIES}---\n{}", POLICIES.replace("{name: reviews, n", "{name: again, n").replace("{name: ratings, n", "{name: again, n")));
    a_policy_twice: errors(&format!("{POLICIES}---\n{POLICIES}"));
    p14_patterns_in_access_rules: errors(&with("cluster: gke, namespace: bookinfo", "cluster: g*, namespace: book*"));
    access_without_a_cluster: errors(&with("cluster: gke, ", ""));
    access_to_nothing: errors(&with("services: [ratings]", "services: []"));
    no_service_accounts: errors(&with("serviceAccounts: ['*']", "serviceAccounts: []"));
    allow_missing: errors(&with("  allow: [{cluster: gke, namespace: bookinfo, serviceAccounts: ['*']}]\n", ""));
}

#[test]
fn what_workloads_are_told_of_adds_up() {
    let more =
        VISIBILITY.replace("name: web", "name: more").replace("['bookinfo/*', payments/api]", "['x/*', payments/api]");
    let none = VISIBILITY.replace("namespace: shop", "namespace: bank").replace("['bookinfo/*', payments/api]", "[]");
    let folder = folder(&format!("{VISIBILITY}---\n{more}---\n{none}"));
    let loaded = crate::config::load(&folder.path("gateway.yaml")).unwrap();
    let said: Vec<String> = loaded
        .policies
        .visibility
        .iter()
        .map(|(namespace, visible)| format!("{namespace}: {}", serde_json::to_string(&visible.services).unwrap()))
        .collect();
    assert_eq!(said, ["bank: []", r#"shop: ["bookinfo/*","payments/api","x/*"]"#]);
}

#[test]
fn clusters_that_no_peer_is_named_after_are_a_warning() {
    insta::assert_snapshot!(folder(&with("cluster: gke", "cluster: gek")).warnings());
}

#[test]
fn a_policy_that_allows_nobody_is_a_warning() {
    let none = with("  allow: [{cluster: gke, namespace: bookinfo, serviceAccounts: ['*']}]\n", "  allow: []\n");
    insta::assert_snapshot!(folder(&none).warnings());
}

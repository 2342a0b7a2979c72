//! Clients that follow the protocol, and one that does not.

mod histories;

use std::collections::BTreeMap;

use eastway_proto::xds::discovery as wire;
use prost::Message;

use super::delta::MAX_RESPONSE;
use super::*;
use crate::resource::Resource;
use crate::view::Edit;

const C: Kind = Kind::Cluster;
const E: Kind = Kind::Endpoints;
const L: Kind = Kind::Listener;
const R: Kind = Kind::Route;
const S: Kind = Kind::Secret;

fn put(kind: Kind, name: &str, content: &str) -> Edit {
    Edit::Put(kind, Resource::new(kind, name, &wire::Hint { string_value: Some(content.to_owned()) }))
}

fn gone(kind: Kind, name: &str) -> Edit {
    Edit::Remove(kind, name.into())
}

fn view(edits: Vec<Edit>) -> Arc<View> {
    Arc::new(View::default().edited(edits).unwrap())
}

fn delta(subscribe: &[&str]) -> wire::DeltaDiscoveryRequest {
    let resource_names_subscribe = subscribe.iter().map(ToString::to_string).collect();
    wire::DeltaDiscoveryRequest { resource_names_subscribe, ..wire::DeltaDiscoveryRequest::default() }
}

/// Sends a delta request; what comes back in short.
fn ask(session: &mut DeltaSession, kind: Kind, request: wire::DeltaDiscoveryRequest) -> Vec<String> {
    let request = wire::DeltaDiscoveryRequest { type_url: kind.url().into(), ..request };
    session.handle(request).unwrap().responses.iter().map(short).collect()
}

fn push(session: &mut DeltaSession, view: &Arc<View>) -> Vec<String> {
    session.update(Arc::clone(view)).iter().map(short).collect()
}

/// E.g. `cds a=1 b=2 -c`.
fn short(response: &wire::DeltaDiscoveryResponse) -> String {
    let mut text = Kind::parse(&response.type_url).unwrap().to_string();
    for resource in &response.resources {
        let resource = wire::Resource::decode(resource.clone()).unwrap();
        let content = wire::Hint::decode(resource.resource.unwrap().value).unwrap();
        text.push_str(&format!(" {}={}", resource.name, content.string_value.unwrap()));
    }
    for name in &response.removed_resources {
        text.push_str(&format!(" -{name}"));
    }
    text
}

fn new() -> DeltaSession {
    DeltaSession::new("s".to_owned())
}

#[test]
fn what_is_new_comes_in_the_order_of_reference_and_what_goes_in_the_other() {
    let mut session = new();
    let mut view = view(vec![put(C, "a", "1"), put(E, "a", "1"), put(L, "l", "1"), put(R, "r", "1")]);
    assert!(push(&mut session, &view).is_empty(), "nobody asked");
    assert_eq!(ask(&mut session, C, delta(&[])), ["cds a=1"]);
    assert_eq!(
        ask(&mut session, E, delta(&["a", "b"])),
        ["eds a=1", "eds -b"],
        "what is not there is said to be absent"
    );
    assert_eq!(ask(&mut session, L, delta(&["*"])), ["lds l=1"]);
    assert_eq!(ask(&mut session, R, delta(&["r", "s"])), ["rds r=1", "rds -s"]);
    view = Arc::new(
        view.edited([
            put(L, "m", "1"),
            put(R, "s", "1"),
            put(E, "b", "1"),
            put(C, "b", "1"),
            gone(C, "a"),
            gone(E, "a"),
            gone(L, "l"),
            gone(R, "r"),
        ])
        .unwrap(),
    );
    let pushed = session.update(Arc::clone(&view));
    assert_eq!(pushed.iter().map(short).collect::<Vec<_>>(), ["cds b=1", "eds b=1"]);
    assert!(push(&mut session, &view).is_empty(), "nothing twice");
    // Envoy would use the route before the cluster is warm, which is what it acknowledges.
    assert!(session.is_holding());
    let acknowledged = ask(&mut session, C, answer(&pushed[0].nonce, None));
    assert_eq!(acknowledged, ["lds m=1", "rds s=1", "lds -l", "rds -r", "cds -a", "eds -a"]);
    assert!(!session.is_holding() && push(&mut session, &view).is_empty(), "nothing twice");
}

/// A listener that ends all connections because somebody is revoked takes them again at once.
#[test]
fn who_is_revoked_is_known_before_listeners_end_what_they_have() {
    let first = view(vec![put(L, "inbound", "1"), put(S, "anchors", "1")]);
    let second = Arc::new(first.edited([put(L, "inbound", "2"), put(S, "anchors", "2")]).unwrap());
    let mut session = new();
    push(&mut session, &first);
    assert_eq!(ask(&mut session, L, delta(&["*"])), ["lds inbound=1"]);
    assert_eq!(ask(&mut session, S, delta(&["anchors"])), ["sds anchors=1"]);
    assert_eq!(push(&mut session, &second), ["sds anchors=2", "lds inbound=2"]);
    let mut session = WorldSession::new("s".to_owned());
    session.update(first);
    world(&mut session, L, "", &[]);
    world(&mut session, S, "", &["anchors"]);
    let pushed: Vec<_> = session.update(second).iter().map(|response| response.type_url.clone()).collect();
    assert_eq!(pushed, [S.url(), L.url()]);
}

#[test]
fn routes_wait_for_new_clusters_and_not_forever() {
    let mut session = new();
    let first = view(vec![put(C, "a", "1"), put(E, "a", "1"), put(R, "r", "a")]);
    push(&mut session, &first);
    ask(&mut session, C, delta(&[]));
    ask(&mut session, E, delta(&["a"]));
    ask(&mut session, R, delta(&["r"]));
    let second = Arc::new(first.edited([put(C, "b", "1"), put(E, "b", "1"), put(R, "r", "b"), gone(C, "a")]).unwrap());
    assert_eq!(push(&mut session, &second), ["cds b=1"]);
    assert_eq!(ask(&mut session, E, delta(&["b", "z"])), ["eds b=1", "eds -z"], "what it needs to be warm");
    // Another new cluster: its route waits for that too.
    let third = Arc::new(second.edited([put(C, "c", "1"), put(E, "c", "1"), put(R, "r", "c"), gone(C, "b")]).unwrap());
    let pushed = session.update(Arc::clone(&third));
    assert_eq!(pushed.iter().map(short).collect::<Vec<_>>(), ["cds c=1"]);
    assert!(ask(&mut session, R, delta(&["s"])).is_empty(), "a new listener's route too");
    let after = ask(&mut session, C, answer(&pushed[0].nonce, Some("no")));
    assert_eq!(after, ["rds r=c", "rds -s", "cds -a -b"], "who refuses it is not waited for either");
    // Changed clusters serve on while they warm.
    let fourth = Arc::new(third.edited([put(C, "c", "2"), put(R, "r", "d")]).unwrap());
    assert_eq!(push(&mut session, &fourth), ["cds c=2", "rds r=d"]);
    // Somebody who never acknowledges anything.
    let fifth = Arc::new(fourth.edited([put(C, "e", "1"), put(R, "r", "e")]).unwrap());
    assert_eq!(push(&mut session, &fifth), ["cds e=1"]);
    assert_eq!(session.release().iter().map(short).collect::<Vec<_>>(), ["rds r=e"]);
    assert!(session.release().is_empty());
}

#[test]
fn new_clusters_in_several_parts_are_all_waited_for() {
    let mut session = new();
    let first = view(vec![put(C, "a", "1"), put(R, "r", "a")]);
    push(&mut session, &first);
    ask(&mut session, C, delta(&[]));
    ask(&mut session, R, delta(&["r"]));
    let large = "x".repeat(MAX_RESPONSE);
    let second = Arc::new(first.edited([put(C, "b", &large), put(C, "c", &large), put(R, "r", "c")]).unwrap());
    let pushed = session.update(second);
    assert_eq!(pushed.len(), 2);
    assert!(ask(&mut session, C, answer(&pushed[0].nonce, None)).is_empty());
    assert_eq!(ask(&mut session, C, answer(&pushed[1].nonce, None)), ["rds r=c"]);
}

#[test]
fn who_comes_back_waits_for_new_clusters_too() {
    let mut session = new();
    let old = view(vec![put(C, "a", "1"), put(E, "a", "1"), put(R, "r", "a")]);
    let now = Arc::new(old.edited([put(C, "b", "1"), put(E, "b", "1"), put(R, "r", "b")]).unwrap());
    push(&mut session, &now);
    let mut sent = wire::DeltaDiscoveryRequest { type_url: C.url().into(), ..claims(&[(C, "a")], &now, &[]) };
    let answered = session.handle(sent).unwrap().responses;
    assert_eq!(answered.iter().map(short).collect::<Vec<_>>(), ["cds b=1"]);
    sent = merge(delta(&["r"]), claims(&[(R, "r")], &old, &[]));
    assert!(ask(&mut session, R, sent).is_empty());
    assert_eq!(ask(&mut session, C, answer(&answered[0].nonce, None)), ["rds r=b"]);
}

#[test]
fn a_changed_cluster_is_followed_by_its_endpoints_even_if_they_are_the_same() {
    let mut session = new();
    let first = view(vec![put(C, "a", "1"), put(E, "a", "1"), put(C, "b", "1"), put(E, "b", "1")]);
    push(&mut session, &first);
    ask(&mut session, C, delta(&[]));
    ask(&mut session, E, delta(&["a", "b"]));
    let second = Arc::new(first.edited([put(C, "a", "2")]).unwrap());
    assert_eq!(push(&mut session, &second), ["cds a=2", "eds a=1"]);
    let third = Arc::new(second.edited([put(C, "a", "3"), put(E, "a", "3"), put(E, "b", "3")]).unwrap());
    assert_eq!(push(&mut session, &third), ["cds a=3", "eds a=3 b=3"], "and once");
}

#[test]
fn what_is_large_comes_in_parts_of_a_bounded_size_that_are_refused_one_by_one() {
    let mut session = new();
    let large = "x".repeat(MAX_RESPONSE * 2 / 5);
    let mut edits: Vec<_> = (0..5).map(|number| put(C, &format!("c{number}"), &large)).collect();
    edits.push(put(C, "c5", &"y".repeat(MAX_RESPONSE * 2)));
    let first = view(edits);
    push(&mut session, &first);
    let ask = |request| wire::DeltaDiscoveryRequest { type_url: C.url().into(), ..request };
    let responses = session.handle(ask(delta(&[]))).unwrap().responses;
    let counts: Vec<_> = responses.iter().map(|response| response.resources.len()).collect();
    assert_eq!(counts, [2, 2, 1, 1]);
    let refuse = |response: &wire::DeltaDiscoveryResponse, error| {
        ask(wire::DeltaDiscoveryRequest {
            response_nonce: response.nonce.clone(),
            error_detail: error,
            ..wire::DeltaDiscoveryRequest::default()
        })
    };
    let bad = wire::ErrorDetail { message: "no".to_owned(), ..wire::ErrorDetail::default() };
    for (number, response) in responses.iter().enumerate() {
        let error = (number == 1).then(|| bad.clone());
        let refused = error.is_some();
        let answer = session.handle(refuse(response, error)).unwrap();
        assert!(answer.responses.is_empty());
        assert_eq!(matches!(answer.verdict, Verdict::Refused(..)), refused, "{number}: {:?}", answer.verdict);
    }
    // Names that go are bounded as well.
    let names: Vec<_> = (0..2_000).map(|number| format!("{number:0>64}")).collect();
    let many = Arc::new(first.edited(names.iter().map(|name| put(C, name, "1"))).unwrap());
    for response in session.update(Arc::clone(&many)) {
        session.handle(refuse(&response, None)).unwrap();
    }
    let none = Arc::new(many.edited(names.iter().map(|name| gone(C, name))).unwrap());
    let told: Vec<_> = session.update(none).iter().map(|response| response.removed_resources.len()).collect();
    assert_eq!(told, [512, 512, 512, 464]);
}

fn claims(versions: &[(Kind, &str)], view: &View, others: &[(&str, &str)]) -> wire::DeltaDiscoveryRequest {
    let held = versions.iter().map(|(kind, name)| {
        ((*name).to_owned(), view.get(*kind, name).map_or_else(String::new, |held| held.version().to_string()))
    });
    let others = others.iter().map(|(name, version)| ((*name).to_owned(), (*version).to_owned()));
    let initial_resource_versions = held.chain(others).collect();
    wire::DeltaDiscoveryRequest { initial_resource_versions, ..wire::DeltaDiscoveryRequest::default() }
}

#[test]
fn a_client_that_comes_back_is_told_only_what_changed_meanwhile() {
    let now = view(vec![put(C, "a", "2"), put(C, "b", "1"), put(E, "a", "1"), put(E, "b", "1")]);
    let mut session = new();
    push(&mut session, &now);
    let clusters = claims(&[(C, "b")], &now, &[("a", "old"), ("z", "old")]);
    assert_eq!(ask(&mut session, C, clusters), ["cds a=2", "cds -z"]);
    // The cluster was sent anew on this stream, so its endpoints have to follow although the client has them.
    let endpoints = claims(&[(E, "a"), (E, "b")], &now, &[]);
    assert_eq!(
        ask(&mut session, E, wire::DeltaDiscoveryRequest { ..merge(delta(&["a", "b"]), endpoints) }),
        ["eds a=1"]
    );
    // The other way round: endpoints first.
    let mut session = new();
    push(&mut session, &now);
    let endpoints = claims(&[(E, "a"), (E, "b")], &now, &[]);
    assert_eq!(ask(&mut session, E, merge(delta(&["a", "b"]), endpoints)), ["eds"], "an empty answer: all is known");
    let clusters = claims(&[(C, "b")], &now, &[("a", "old")]);
    assert_eq!(ask(&mut session, C, clusters), ["cds a=2", "eds a=1"]);
    // Nothing changed at all.
    let mut session = new();
    push(&mut session, &now);
    assert_eq!(ask(&mut session, C, claims(&[(C, "a"), (C, "b")], &now, &[])), ["cds"]);
    assert_eq!(ask(&mut session, E, merge(delta(&["a"]), claims(&[(E, "a")], &now, &[("q", "1")]))), ["eds"]);
}

fn merge(subscribe: wire::DeltaDiscoveryRequest, claims: wire::DeltaDiscoveryRequest) -> wire::DeltaDiscoveryRequest {
    wire::DeltaDiscoveryRequest { initial_resource_versions: claims.initial_resource_versions, ..subscribe }
}

#[test]
fn wildcard_names_and_unsubscribing_in_all_combinations() {
    let now = view(vec![put(C, "a", "1"), put(C, "b", "1"), put(E, "a", "1")]);
    let unsubscribe = |names: &[&str]| wire::DeltaDiscoveryRequest {
        resource_names_unsubscribe: names.iter().map(ToString::to_string).collect(),
        ..wire::DeltaDiscoveryRequest::default()
    };
    let mut session = new();
    push(&mut session, &now);
    assert_eq!(ask(&mut session, C, delta(&["a", "q"])), ["cds a=1", "cds -q"], "names alone are no wildcard");
    assert_eq!(ask(&mut session, C, delta(&["*"])), ["cds b=1"]);
    assert_eq!(ask(&mut session, C, delta(&["a"])), ["cds a=1"], "asked for once more");
    assert_eq!(ask(&mut session, C, unsubscribe(&["a", "never"])), ["cds a=1"], "it stays as one of all");
    assert_eq!(ask(&mut session, C, unsubscribe(&["*", "q"])), [""; 0]);
    let changed = Arc::new(now.edited([put(C, "b", "2"), gone(C, "a")]).unwrap());
    assert!(push(&mut session, &changed).is_empty(), "nothing is subscribed to");
    let both = wire::DeltaDiscoveryRequest { resource_names_unsubscribe: vec!["b".into()], ..delta(&["b"]) };
    assert_eq!(ask(&mut session, C, both), ["cds b=2"]);
    // Endpoints have no wildcard: nothing is asked for, and nothing answered.
    assert_eq!(ask(&mut session, E, delta(&[])), [""; 0]);
    assert_eq!(ask(&mut session, E, delta(&["*"])), ["eds -*"]);
    assert_eq!(ask(&mut session, Kind::Runtime, delta(&["layer"])), ["rtds -layer"]);
}

#[test]
fn i5_nothing_is_answered_before_there_is_a_view() {
    let mut session = new();
    assert!(ask(&mut session, C, delta(&[])).is_empty());
    assert!(ask(&mut session, E, delta(&["a"])).is_empty());
    assert!(ask(&mut session, L, delta(&[])).is_empty());
    let now = view(vec![put(C, "a", "1"), put(E, "a", "1")]);
    assert_eq!(push(&mut session, &now), ["cds a=1", "eds a=1", "lds"], "there is no listener, and that is an answer");
}

fn answer(nonce: &str, error: Option<&str>) -> wire::DeltaDiscoveryRequest {
    let error = error.map(|message| wire::ErrorDetail { code: 13, message: message.to_owned() });
    wire::DeltaDiscoveryRequest { response_nonce: nonce.into(), error_detail: error, ..delta(&[]) }
}

#[test]
fn f35_what_is_refused_is_remembered_and_not_sent_again_until_it_changes() {
    let mut session = new();
    let first = view(vec![put(C, "a", "1"), put(C, "b", "1")]);
    push(&mut session, &first);
    let request = wire::DeltaDiscoveryRequest { type_url: C.url().into(), ..delta(&[]) };
    let nonce = session.handle(request).unwrap().responses[0].nonce.clone();
    let request = wire::DeltaDiscoveryRequest { type_url: C.url().into(), ..answer(&nonce, Some("bad\ncluster")) };
    let answered = session.handle(request).unwrap();
    assert_eq!(answered.verdict, Verdict::Refused(C, "bad cluster".into()));
    assert!(answered.responses.is_empty());
    let second = Arc::new(first.edited([put(C, "c", "1")]).unwrap());
    let pushed = session.update(Arc::clone(&second));
    assert_eq!(pushed.iter().map(short).collect::<Vec<_>>(), ["cds c=1"], "not what was refused");
    let request = wire::DeltaDiscoveryRequest { type_url: C.url().into(), ..answer(&pushed[0].nonce, None) };
    assert_eq!(session.handle(request).unwrap().verdict, Verdict::Accepted(C));
    let status = &session.status()[&C];
    let refused = status.refused.clone().unwrap();
    assert_eq!((&*refused.reason, refused.generation), ("bad cluster", first.generation()));
    assert_eq!((status.refusals, status.accepted, status.outstanding), (1, Some(second.generation()), 0));
    // Replaced by something that is taken, it is forgotten.
    let third = Arc::new(second.edited([put(C, "a", "2")]).unwrap());
    let pushed = session.update(third);
    let request = wire::DeltaDiscoveryRequest { type_url: C.url().into(), ..answer(&pushed[0].nonce, None) };
    session.handle(request).unwrap();
    assert_eq!((session.status()[&C].refused.clone(), session.status()[&C].refusals), (None, 1));
}

#[test]
fn nonces_of_other_streams_and_old_ones_mean_nothing() {
    let mut session = new();
    push(&mut session, &view(vec![put(C, "a", "1")]));
    ask(&mut session, C, delta(&[]));
    for nonce in ["", "other.1", "s.", "s.0", "s.2", "s.x", "1", "s.1.1"] {
        let request = wire::DeltaDiscoveryRequest { type_url: C.url().into(), ..answer(nonce, Some("no")) };
        assert_eq!(session.handle(request).unwrap().verdict, Verdict::None, "{nonce:?}");
    }
    let request = wire::DeltaDiscoveryRequest { type_url: C.url().into(), ..answer("s.1", None) };
    assert_eq!(session.handle(request.clone()).unwrap().verdict, Verdict::Accepted(C));
    assert_eq!(session.handle(request).unwrap().verdict, Verdict::None, "once");
    // State of the world: a stale nonce makes the whole request void, its names too.
    let mut session = WorldSession::new("s".to_owned());
    session.update(view(vec![put(E, "a", "a=1"), put(E, "b", "b=1")]));
    assert_eq!(world(&mut session, E, "", &["a"]), ["eds a=1"]);
    assert_eq!(world(&mut session, E, "s.9", &["a", "b"]), [""; 0]);
    assert_eq!(world(&mut session, E, "", &["a", "b"]), [""; 0]);
    assert_eq!(world(&mut session, E, "s.1", &["a", "b"]), ["eds b=1"]);
}

fn world(session: &mut WorldSession, kind: Kind, nonce: &str, names: &[&str]) -> Vec<String> {
    let request = wire::DiscoveryRequest {
        type_url: kind.url().into(),
        response_nonce: nonce.into(),
        resource_names: names.iter().map(ToString::to_string).collect(),
        ..wire::DiscoveryRequest::default()
    };
    session.handle(request).unwrap().responses.iter().map(short_world).collect()
}

/// The names of resources are not told; those of tests begin their content.
fn short_world(response: &wire::DiscoveryResponse) -> String {
    let mut text = Kind::parse(&response.type_url).unwrap().to_string();
    for resource in &response.resources {
        let any = wire::Any::decode(resource.clone()).unwrap();
        text.push_str(&format!(" {}", wire::Hint::decode(any.value).unwrap().string_value.unwrap()));
    }
    text
}

#[test]
fn state_of_the_world_keeps_what_goes_until_what_is_new_is_there() {
    let mut session = WorldSession::new("s".to_owned());
    let put = |kind, name: &str, version: &str| put(kind, name, &format!("{name}={version}"));
    let first = view(vec![put(C, "a", "1"), put(E, "a", "1"), put(L, "l", "1")]);
    session.update(Arc::clone(&first));
    assert_eq!(world(&mut session, C, "", &[]), ["cds a=1"]);
    assert_eq!(world(&mut session, E, "", &["a"]), ["eds a=1"]);
    assert_eq!(world(&mut session, L, "", &[]), ["lds l=1"]);
    let second = first.edited([put(C, "b", "1"), gone(C, "a"), put(L, "m", "1"), gone(L, "l"), gone(E, "a")]).unwrap();
    let pushed = session.update(Arc::new(second));
    let pushed: Vec<_> = pushed.iter().map(short_world).collect();
    assert_eq!(pushed, ["cds a=1 b=1", "lds l=1 m=1", "lds m=1", "cds b=1"]);
    // Names after a wildcard end it, and none after names is nothing.
    assert_eq!(world(&mut session, L, "s.6", &["m"]), ["lds m=1"], "asked for by name, it is answered");
    assert_eq!(world(&mut session, L, "s.8", &[]), [""; 0]);
    assert!(!session.status()[&L].wildcard);
}

#[test]
fn subscriptions_are_bounded_and_types_are_known() {
    let mut session = new();
    let names: Vec<String> = (0..=MAX_NAMES).map(|number| number.to_string()).collect();
    let request = wire::DeltaDiscoveryRequest {
        type_url: E.url().into(),
        resource_names_subscribe: names.clone(),
        ..wire::DeltaDiscoveryRequest::default()
    };
    assert_eq!(session.handle(request).unwrap_err(), SessionError::TooManyNames(E));
    let mut session = WorldSession::new("s".to_owned());
    let request = wire::DiscoveryRequest { type_url: E.url().into(), resource_names: names, ..Default::default() };
    assert_eq!(session.handle(request).unwrap_err(), SessionError::TooManyNames(E));
    for (url, name) in [("type.googleapis.com/x.Y", "a"), (E.url(), ""), (E.url(), "x".repeat(2_000).as_str())] {
        let request = wire::DeltaDiscoveryRequest { type_url: url.into(), ..delta(&[name]) };
        assert!(new().handle(request).is_err(), "{url} {name}");
    }
}

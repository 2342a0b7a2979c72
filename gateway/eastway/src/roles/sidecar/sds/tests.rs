//! What streams of secrets answer.

use std::collections::HashMap;
use std::sync::Arc;

use eastway_proto::envoy::google::protobuf::Any;

use super::*;
use crate::roles::sidecar::secrets::Secret;

fn secrets(versions: &[(&str, &str)]) -> Snapshot {
    let secret = |(name, version): &(&str, &str)| {
        let resource = Any { type_url: SecretMessage::type_url(), value: version.as_bytes().to_vec() };
        ((*name).to_owned(), Secret { version: (*version).to_owned(), resource })
    };
    Arc::new(versions.iter().map(secret).collect())
}

fn names(list: &[&str]) -> Vec<String> {
    list.iter().map(|name| (*name).to_owned()).collect()
}

fn subscribe(list: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest { resource_names_subscribe: names(list), ..DeltaDiscoveryRequest::default() }
}

/// Names with versions, and removed names.
fn content(answer: Option<DeltaDiscoveryResponse>) -> Option<(Vec<String>, Vec<String>)> {
    let answer = answer?;
    let resources = answer.resources.iter().map(|each| format!("{}@{}", each.name, each.version)).collect();
    Some((resources, answer.removed_resources))
}

#[test]
fn what_is_asked_for_is_sent_once_and_again_when_it_changes() {
    let mut session = Delta::default();
    let first = secrets(&[("workload", "1"), ("bundle:a", "1")]);
    let answer = content(session.request(subscribe(&["workload"]), &first).unwrap());
    assert_eq!(answer, Some((names(&["workload@1"]), Vec::new())));
    let ack = DeltaDiscoveryRequest { response_nonce: "1".to_owned(), ..DeltaDiscoveryRequest::default() };
    assert_eq!(session.request(ack, &first).unwrap(), None);
    assert_eq!(session.changed(&secrets(&[("workload", "1"), ("bundle:a", "2")])), None, "not asked for");
    let rotated = secrets(&[("workload", "2"), ("bundle:a", "2")]);
    assert_eq!(content(session.changed(&rotated)), Some((names(&["workload@2"]), Vec::new())));
    let again = content(session.request(subscribe(&["workload"]), &rotated).unwrap());
    assert_eq!(again, Some((names(&["workload@2"]), Vec::new())), "asked again, it is sent again");
    let gone = DeltaDiscoveryRequest { resource_names_unsubscribe: names(&["workload"]), ..subscribe(&[]) };
    assert_eq!(session.request(gone, &rotated).unwrap(), None);
    assert_eq!(session.changed(&first), None);
}

#[test]
fn a_secret_that_is_not_there_is_said_to_be_removed_and_sent_when_it_comes() {
    let mut session = Delta::default();
    let answer =
        content(session.request(subscribe(&["bundle:b", "workload"]), &secrets(&[("workload", "1")])).unwrap());
    assert_eq!(answer, Some((names(&["workload@1"]), names(&["bundle:b"]))));
    assert_eq!(session.changed(&secrets(&[("workload", "1")])), None);
    let both = secrets(&[("workload", "1"), ("bundle:b", "7")]);
    assert_eq!(content(session.changed(&both)), Some((names(&["bundle:b@7"]), Vec::new())));
}

#[test]
fn a_reconnected_stream_gets_what_changed() {
    let now = secrets(&[("workload", "2"), ("bundle:a", "1")]);
    let versions = HashMap::from([("workload", "1"), ("bundle:a", "1"), ("bundle:gone", "1")]);
    let request = DeltaDiscoveryRequest {
        initial_resource_versions: versions.into_iter().map(|(name, version)| (name.into(), version.into())).collect(),
        ..subscribe(&["workload", "bundle:a", "bundle:gone"])
    };
    let answer = content(Delta::default().request(request, &now).unwrap());
    assert_eq!(answer, Some((names(&["workload@2"]), names(&["bundle:gone"]))));
}

#[test]
fn i8_names_are_bounded_and_other_types_are_refused() {
    let none = secrets(&[]);
    let many: Vec<String> = (0..=MAX_NAMES).map(|number| number.to_string()).collect();
    let request = DeltaDiscoveryRequest { resource_names_subscribe: many.clone(), ..subscribe(&[]) };
    let refused = Delta::default().request(request, &none).unwrap_err();
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
    let whole = DiscoveryRequest { resource_names: many, ..DiscoveryRequest::default() };
    assert_eq!(Whole::default().request(whole, &none).unwrap_err().code(), tonic::Code::ResourceExhausted);
    assert!(Delta::default().request(subscribe(&[&"x".repeat(MAX_NAME + 1)]), &none).is_err());
    let type_url = "type.googleapis.com/envoy.config.cluster.v3.Cluster".to_owned();
    assert!(Delta::default().request(DeltaDiscoveryRequest { type_url, ..subscribe(&["a"]) }, &none).is_err());
}

#[test]
fn whole_states_are_sent_when_they_change_and_stale_answers_are_passed_over() {
    let mut session = Whole::default();
    let ask = |list: &[&str], nonce: &str| DiscoveryRequest {
        resource_names: names(list),
        response_nonce: nonce.to_owned(),
        ..DiscoveryRequest::default()
    };
    let first = secrets(&[("workload", "1"), ("bundle:a", "1")]);
    let answer = session.request(ask(&["workload"], ""), &first).unwrap().unwrap();
    assert_eq!((answer.resources.len(), answer.nonce.as_str()), (1, "1"));
    assert_eq!(session.request(ask(&["workload"], "1"), &first).unwrap(), None, "an ACK");
    let rotated = secrets(&[("workload", "2"), ("bundle:a", "1")]);
    let pushed = session.changed(&rotated).unwrap();
    assert_ne!(pushed.version_info, answer.version_info);
    assert_eq!(session.request(ask(&["bundle:a"], "1"), &rotated).unwrap(), None, "before it saw the second");
    let both = session.request(ask(&["workload", "bundle:a"], "2"), &rotated).unwrap().unwrap();
    assert_eq!(both.resources.len(), 2);
}

//! What on-prem's policies folder says of reviews.

use std::time::Duration;

use serde_json::{Value, json};

use super::{GKE, NAMESPACE, Service, WEIGHTS};
use crate::demo::lab::files::{self, API_VERSION};

/// The share that is all of gke's pods.
const ALL_OF_GKE: &str = "reviews-gke";

/// The TrafficPolicy: the weights for clients without a sidecar and those without a rule, and `more`.
pub(in super::super) fn policy(more: &Value) -> Value {
    let split = WEIGHTS.map(|(version, weight)| json!({"weight": weight, "subset": {"version": version}}));
    let mut spec = json!({"split": split, "failover": ["local"]});
    files::merge(&mut spec, more);
    files::traffic_policy(NAMESPACE, Service::Reviews.name(), &spec)
}

/// Each version, and all of gke's pods, as something that rules can lead to.
pub(super) fn shares() -> Vec<(String, Value)> {
    let versions = WEIGHTS.map(|(version, _)| (share_of(version.0), json!({"subset": {"version": version}})));
    let gke = (ALL_OF_GKE.to_owned(), json!({"cluster": GKE}));
    let file = |(name, part): (String, Value)| {
        let mut spec = json!({"service": Service::Reviews.name()});
        files::merge(&mut spec, &part);
        let value = json!({
            "apiVersion": API_VERSION,
            "kind": "ServiceShare",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": spec,
        });
        (format!("share-{name}"), value)
    };
    versions.into_iter().chain([gke]).map(file).collect()
}

/// Name of a version's share.
fn share_of(version: u8) -> String {
    format!("reviews-v{version}")
}

/// What a rule names a share by.
fn target(share: &str) -> Value {
    json!({"group": "eastway.dev", "kind": "ServiceShare", "name": share})
}

/// A backend: a share with its weight.
fn backend(share: &str, weight: u32) -> Value {
    with(target(share), &json!({ "weight": weight }))
}

/// A rule: everything to a version.
pub(in super::super) fn to_version(version: u8) -> Value {
    json!({"backendRefs": [backend(&share_of(version), 1)]})
}

/// A rule: the requests that somebody makes go to a version.
pub(in super::super) fn of_user(user: &str, version: u8) -> Value {
    let header = json!({"name": crate::demo::bookinfo::END_USER, "value": user});
    with(to_version(version), &json!({"matches": [{"headers": [header]}]}))
}

/// A rule: to v1 and v3 by these weights.
pub(in super::super) fn split(first: u32, third: u32) -> Value {
    json!({"backendRefs": [backend(&share_of(1), first), backend(&share_of(3), third)]})
}

/// A rule: everything to v1, and a copy of it to another version.
pub(in super::super) fn copied(version: u8) -> Value {
    let copies = json!({"type": "RequestMirror", "requestMirror": {"backendRef": target(&share_of(version))}});
    with(to_version(1), &json!({"filters": [copies]}))
}

/// A rule: everything to v1, which may take so long; nothing is tried again.
pub(in super::super) fn limited(limit: Duration) -> Value {
    with(tried_once(1), &json!({"timeouts": {"request": milliseconds(limit)}}))
}

/// A rule: everything to a version; nothing is tried again.
pub(in super::super) fn tried_once(version: u8) -> Value {
    with(to_version(version), &json!({"retry": {"attempts": 0}}))
}

/// A rule: everything to v1, tried again so often if it is answered with 503.
pub(in super::super) fn tried_again(times: u32) -> Value {
    with(to_version(1), &json!({"retry": {"codes": [503], "attempts": times, "backoff": "1ms"}}))
}

/// A rule: everything to gke.
pub(in super::super) fn to_gke() -> Value {
    json!({"backendRefs": [backend(ALL_OF_GKE, 1)]})
}

fn with(mut rule: Value, more: &Value) -> Value {
    files::merge(&mut rule, more);
    rule
}

/// As files spell it.
pub(in super::super) fn milliseconds(duration: Duration) -> String {
    format!("{}ms", duration.as_millis())
}

/// The HTTPRoute of reviews.
pub(in super::super) fn http_route(rules: &[Value]) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": Service::Reviews.name(), "namespace": NAMESPACE},
        "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": Service::Reviews.name()}], "rules": rules},
    })
}

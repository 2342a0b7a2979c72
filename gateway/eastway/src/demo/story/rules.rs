//! What on-prem's policies folder says of reviews.

use serde_json::{Value, json};

use super::{GKE, NAMESPACE, Service, WEIGHTS};
use crate::demo::lab::files::{self, API_VERSION};

/// The share that is all of gke's pods.
pub(in super::super) const ALL_OF_GKE: &str = "reviews-gke";

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
pub(in super::super) fn share_of(version: u8) -> String {
    format!("reviews-v{version}")
}

/// What a rule names a share by.
pub(in super::super) fn target(share: &str) -> Value {
    json!({"group": "eastway.dev", "kind": "ServiceShare", "name": share})
}

/// A backend: a share with its weight.
pub(in super::super) fn backend(share: &str, weight: u32) -> Value {
    let mut backend = target(share);
    files::merge(&mut backend, &json!({ "weight": weight }));
    backend
}

/// A rule: everything to a version.
pub(in super::super) fn to_version(version: u8) -> Value {
    json!({"backendRefs": [backend(&share_of(version), 1)]})
}

/// A rule: the requests that somebody makes go to a version.
pub(in super::super) fn of_user(user: &str, version: u8) -> Value {
    let header = json!({"name": crate::demo::bookinfo::END_USER, "value": user});
    let mut rule = to_version(version);
    files::merge(&mut rule, &json!({"matches": [{"headers": [header]}]}));
    rule
}

/// A rule: to v1 and v3 by these weights.
pub(in super::super) fn split(first: u32, third: u32) -> Value {
    json!({"backendRefs": [backend(&share_of(1), first), backend(&share_of(3), third)]})
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

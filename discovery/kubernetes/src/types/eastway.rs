//! Our own resources, group `eastway.dev`: the files of a gateway as objects.
//!
//! A `spec` stays what it is, JSON: the strict reader that knows the files checks it too, so that a
//! mistake gets the same message in both.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::object;

/// The group of our resources.
pub const GROUP: &str = "eastway.dev";

object! {
    /// Another cluster's gateway; the object's name is the cluster's.
    Peer("eastway.dev", "v1alpha1", "peers", kube::core::ClusterResourceScope) { spec: Value, status: Status }
}

object! {
    /// Who may connect to services of this cluster.
    AccessPolicy("eastway.dev", "v1alpha1", "accesspolicies", kube::core::NamespaceResourceScope) {
        spec: Value, status: Status
    }
}

object! {
    /// How connections to a service are shared out.
    TrafficPolicy("eastway.dev", "v1alpha1", "trafficpolicies", kube::core::NamespaceResourceScope) {
        spec: Value, status: Status
    }
}

/// What became of an object of ours.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    /// `metadata.generation` of the object that this is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Each type once.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

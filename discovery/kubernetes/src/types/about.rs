//! The About API (KEP-2149), group `about.k8s.io`: what a cluster says about itself.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::object;

/// The group of its resources.
pub const GROUP: &str = "about.k8s.io";

/// Versions that servers may have, the one to prefer first.
pub const VERSIONS: [&str; 3] = ["v1", "v1beta1", "v1alpha1"];

/// Name of the property that is the cluster's name in its clusterset.
pub const CLUSTER_ID: &str = "cluster.clusterset.k8s.io";

/// Name of the property that is the clusterset's name.
pub const CLUSTERSET: &str = "clusterset.k8s.io";

object! {
    /// One property of this cluster; the object's name is the property's.
    ClusterProperty("about.k8s.io", "v1", "clusterproperties", kube::core::ClusterResourceScope) {
        spec: ClusterPropertySpec, status: ClusterPropertyStatus
    }
}

/// A property.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterPropertySpec {
    /// Its value; at most 128,000 bytes, for [`CLUSTER_ID`] one or two DNS labels of less than 128.
    pub value: String,
}

/// Says nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ClusterPropertyStatus {}

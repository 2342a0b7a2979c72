//! The Multi-Cluster Services API (KEP-1645), group `multicluster.x-k8s.io`.
//!
//! `v1beta1` is the stored version and the one to use; [`v1alpha1`] has the same contents and is for
//! API servers whose definitions are older.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::SessionAffinityConfig;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::object;

/// The group of all its resources.
pub const GROUP: &str = "multicluster.x-k8s.io";

/// Label of an EndpointSlice made for an import: the service's name.
pub const SERVICE_NAME: &str = "multicluster.kubernetes.io/service-name";

/// Label of an EndpointSlice made for an import: the cluster that its endpoints stand for.
pub const SOURCE_CLUSTER: &str = "multicluster.kubernetes.io/source-cluster";

/// Annotation of a ServiceImport: the Service in its namespace that carries its addresses.
pub const DERIVED_SERVICE: &str = "multicluster.kubernetes.io/derived-service";

object! {
    /// Declares that the Service of the same namespace and name is offered to other clusters.
    ServiceExport("multicluster.x-k8s.io", "v1beta1", "serviceexports", kube::core::NamespaceResourceScope) {
        spec: ServiceExportSpec, status: ServiceExportStatus
    }
}

object! {
    /// A service of the clusterset as this cluster sees it. Only the controller writes it.
    ServiceImport("multicluster.x-k8s.io", "v1beta1", "serviceimports", kube::core::NamespaceResourceScope) {
        spec: ServiceImportSpec, status: ServiceImportStatus
    }
}

/// The same resources under the version before, for API servers that serve no other.
pub mod v1alpha1 {
    use super::{ServiceExportSpec, ServiceExportStatus, ServiceImportSpec, ServiceImportStatus, object};

    object! {
        /// See [`super::ServiceExport`].
        ServiceExport("multicluster.x-k8s.io", "v1alpha1", "serviceexports", kube::core::NamespaceResourceScope) {
            spec: ServiceExportSpec, status: ServiceExportStatus
        }
    }

    object! {
        /// See [`super::ServiceImport`].
        ServiceImport("multicluster.x-k8s.io", "v1alpha1", "serviceimports", kube::core::NamespaceResourceScope) {
            spec: ServiceImportSpec, status: ServiceImportStatus
        }
    }

    impl From<ServiceExport> for super::ServiceExport {
        fn from(ServiceExport { metadata, spec, status }: ServiceExport) -> Self {
            Self { metadata, spec, status }
        }
    }

    impl From<super::ServiceExport> for ServiceExport {
        fn from(super::ServiceExport { metadata, spec, status }: super::ServiceExport) -> Self {
            Self { metadata, spec, status }
        }
    }

    impl From<ServiceImport> for super::ServiceImport {
        fn from(ServiceImport { metadata, spec, status }: ServiceImport) -> Self {
            Self { metadata, spec, status }
        }
    }

    impl From<super::ServiceImport> for ServiceImport {
        fn from(super::ServiceImport { metadata, spec, status }: super::ServiceImport) -> Self {
            Self { metadata, spec, status }
        }
    }
}

/// What goes along with an export.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceExportSpec {
    /// Labels that other clusters see; those of the Service itself they do not.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub exported_labels: BTreeMap<String, String>,
    /// Annotations that other clusters see.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub exported_annotations: BTreeMap<String, String>,
}

/// How an export is doing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceExportStatus {
    /// `Valid`, `Ready` and `Conflict`, each once.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// Whether an import has addresses of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ServiceImportType {
    /// It has: `spec.ips`.
    #[default]
    #[serde(rename = "ClusterSetIP")]
    ClusterSetIp,
    /// It has none; its EndpointSlices carry addresses.
    Headless,
}

/// What the service is, merged over all clusters that export it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceImportSpec {
    /// All ports of all exports; names distinct.
    pub ports: Vec<ServiceImportPort>,
    /// Addresses, at most one per family, in the order of `ip_families`; none for `Headless`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<String>,
    /// With addresses or without.
    #[serde(rename = "type")]
    pub kind: ServiceImportType,
    /// `None` or `ClientIP`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_affinity: Option<String>,
    /// How long it lasts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_affinity_config: Option<SessionAffinityConfig>,
    /// `IPv4`, `IPv6`; each at most once.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ip_families: Vec<String>,
    /// `Cluster` or `Local`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub internal_traffic_policy: Option<String>,
    /// For example `PreferClose`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traffic_distribution: Option<String>,
}

/// A port of an import.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceImportPort {
    /// Its name; one port alone needs none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `TCP` unless said otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// What is spoken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app_protocol: Option<String>,
    /// Its number, 1 to 65535.
    pub port: i32,
}

/// Where an import comes from, and how it is doing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceImportStatus {
    /// The clusters that export it, each once.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub clusters: Vec<SourceCluster>,
    /// `Ready`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// A cluster that exports a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct SourceCluster {
    /// Its name.
    pub cluster: String,
}

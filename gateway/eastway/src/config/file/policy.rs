//! `kind: TrafficPolicy`, `kind: AccessPolicy` and `kind: Visibility`: how connections are shared out, who may connect,
//! and who is told of what.

use std::collections::BTreeMap;

use eastway_registry::yaml::{Field, List, Text};
use schemars::JsonSchema;
use serde::Deserialize;

/// How this cluster's connections to one service are shared out between clusters and versions.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficPolicy {
    /// Always `eastway.dev/v1alpha1`.
    #[schemars(extend("const" = "eastway.dev/v1alpha1"))]
    pub api_version: Field<String>,
    /// Always `TrafficPolicy`.
    #[schemars(extend("const" = "TrafficPolicy"))]
    pub kind: Field<String>,
    /// Its name, and the namespace of the service.
    pub metadata: Field<PolicyMetadata>,
    /// The policy.
    pub spec: Field<TrafficPolicySpec>,
}

/// Name and namespace of a policy.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PolicyMetadata {
    /// Its name, unique in its namespace and kind.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: Field<String>,
    /// The namespace of the services it is about.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub namespace: Field<String>,
    /// Not used; for tools of your own.
    #[serde(default)]
    pub labels: Field<BTreeMap<String, Field<String>>>,
    /// Not used; for tools of your own.
    #[serde(default)]
    pub annotations: Field<BTreeMap<String, Field<String>>>,
}

/// How connections are shared out.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficPolicySpec {
    /// The service's name.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub service: Field<String>,
    /// Shares by weight. Default: none, `locality` decides.
    #[serde(default)]
    pub split: List<SplitSection>,
    /// Clusters, in this order, for connections whose share has no endpoint left; `local` is this
    /// cluster. Default: any cluster that has one.
    #[serde(default)]
    pub failover: List<String>,
    /// `PreferLocal`: this cluster's endpoints while there are any; `Any`: all alike. Default:
    /// `PreferLocal`, but `Any` where there is a split.
    #[serde(default)]
    pub locality: Field<LocalityWord>,
    /// When a sidecar leaves a single endpoint alone for a while. Only sidecars do it.
    #[serde(default)]
    pub outlier_detection: Field<OutlierSection>,
    /// How much one sidecar may have under way to each cluster or version. Only sidecars do it. Default: 10000 of each.
    #[serde(default)]
    pub limits: Field<ConnectionLimitsSection>,
    /// Failures that sidecars make on purpose, for HTTP alone: after a rule's retries and timeouts, so that those see them
    /// as if the endpoint had failed.
    #[serde(default)]
    pub fault: Field<FaultSection>,
}

/// When an endpoint is ejected.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OutlierSection {
    /// Answers of 5xx and requests without an answer in a row, up to 1000; 0: they do not count.
    /// Default: 5.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1000))]
    pub consecutive_errors: Field<i64>,
    /// Connections that failed in a row, at ports of bytes, and at others if errors do not count; up to 1000; 0: they do not
    /// count. Default: 3.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1000))]
    pub consecutive_failures: Field<i64>,
    /// How often it is looked who may come back, 100ms to 1h. Default: 10s.
    #[serde(default)]
    pub interval: Field<Text>,
    /// The first ejection, 100ms to 1h; each further one is longer by as much. Default: 30s.
    #[serde(default)]
    pub ejection_time: Field<Text>,
    /// Most endpoints of a cluster or version that are ejected at once. Default: 100.
    #[serde(default)]
    #[schemars(range(min = 0, max = 100))]
    pub max_ejected_percent: Field<i64>,
}

/// Limits of one sidecar.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConnectionLimitsSection {
    /// Connections, 1 to 1000000.
    #[serde(default)]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub connections: Field<i64>,
    /// Requests that wait for a connection, 1 to 1000000; others are answered with 503.
    #[serde(default)]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub pending_requests: Field<i64>,
    /// Requests under way, 1 to 1000000; others are answered with 503.
    #[serde(default)]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub requests: Field<i64>,
}

/// Failures on purpose; at least one.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FaultSection {
    /// Some requests wait.
    #[serde(default)]
    pub delay: Field<DelaySection>,
    /// Some requests are answered in place of the endpoint.
    #[serde(default)]
    pub abort: Field<AbortSection>,
}

/// Some requests wait.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DelaySection {
    /// For so long, 1ms to 1h.
    pub duration: Field<Text>,
    /// Of 100 requests so many. Default: 100.
    #[serde(default)]
    #[schemars(range(min = 0, max = 100))]
    pub percent: Field<i64>,
}

/// Some requests are answered in place of the endpoint.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AbortSection {
    /// The status of the answer, 200 to 599.
    #[schemars(range(min = 200, max = 599))]
    pub status: Field<i64>,
    /// Of 100 requests so many. Default: 100.
    #[serde(default)]
    #[schemars(range(min = 0, max = 100))]
    pub percent: Field<i64>,
}

/// A share of the connections.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SplitSection {
    /// Its weight among all shares, 0 to 1000000.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub weight: Field<u64>,
    /// Only endpoints with all these labels, e.g. `{version: v2}`. Default: all.
    #[serde(default)]
    pub subset: Field<BTreeMap<String, Field<String>>>,
    /// Only endpoints of this cluster; `local` is this one. Default: any.
    #[serde(default)]
    pub cluster: Field<String>,
}

/// Which clusters are preferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum LocalityWord {
    /// This cluster first.
    PreferLocal,
    /// All alike.
    Any,
}

/// Who may connect to services of this cluster from other clusters. Nobody may who is not allowed by
/// one of these.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AccessPolicy {
    /// Always `eastway.dev/v1alpha1`.
    #[schemars(extend("const" = "eastway.dev/v1alpha1"))]
    pub api_version: Field<String>,
    /// Always `AccessPolicy`.
    #[schemars(extend("const" = "AccessPolicy"))]
    pub kind: Field<String>,
    /// Its name, and the namespace of the services.
    pub metadata: Field<PolicyMetadata>,
    /// The policy.
    pub spec: Field<AccessPolicySpec>,
}

/// Who may connect.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AccessPolicySpec {
    /// Namespaces of the services; `["*"]` for all of them. Default: the policy's own. Only in files, and in objects of
    /// Eastway's own namespace.
    #[serde(default)]
    pub namespaces: List<String>,
    /// Names of services in the namespace; `["*"]` for all of them.
    #[schemars(length(min = 1))]
    pub services: List<String>,
    /// Refusals are only logged and counted. Default: false.
    #[serde(default)]
    pub dry_run: Field<bool>,
    /// Sources that may connect.
    pub allow: List<AccessAllow>,
}

/// What sidecars and gRPC clients of one namespace are told of, beside the services of the namespace itself. Several of
/// one namespace add up; who has none is told of everything that this cluster exports or imports. It keeps what a
/// sidecar holds small; who may connect is what AccessPolicies say.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Visibility {
    /// Always `eastway.dev/v1alpha1`.
    #[schemars(extend("const" = "eastway.dev/v1alpha1"))]
    pub api_version: Field<String>,
    /// Always `Visibility`.
    #[schemars(extend("const" = "Visibility"))]
    pub kind: Field<String>,
    /// Its name, and the namespace of the workloads.
    pub metadata: Field<PolicyMetadata>,
    /// What they are told of.
    pub spec: Field<VisibilitySpec>,
}

/// What workloads are told of.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VisibilitySpec {
    /// Services, `namespace/name` each, where `*` stands for any characters, or `*` for all; at most 1000. `[]`: none but
    /// their own namespace's.
    #[schemars(length(max = 1000))]
    pub services: List<String>,
}

/// Sources that may connect.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AccessAllow {
    /// The source's cluster, or `*` for every peer.
    pub cluster: Field<String>,
    /// The source's namespace, or `*` for all. Default: `*`.
    #[serde(default)]
    pub namespace: Field<String>,
    /// The source's service accounts; `["*"]` for all, unknown ones included. Default: `["*"]`.
    #[serde(default)]
    pub service_accounts: List<String>,
}

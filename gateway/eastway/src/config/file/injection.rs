//! `sidecars.injection`: what is put into pods.

use eastway_registry::yaml::{Field, List, Text};
use schemars::JsonSchema;
use serde::Deserialize;

/// Sidecars that the injector puts into pods of namespaces with the label `eastway.dev/injection: enabled`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InjectionSection {
    /// Image of sidecars: with `eastway`, Envoy and `nft`.
    #[schemars(length(min = 1))]
    pub image: Field<String>,
    /// When it is pulled: `Always`, `IfNotPresent` or `Never`. Default: `IfNotPresent`.
    #[serde(default)]
    pub pull_policy: Field<PullPolicyWord>,
    /// Addresses that pods' connections are led to their sidecar for, e.g. the cluster's service range. What goes to no
    /// import goes on from there as it would have gone. Default: all.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub ranges: List<String>,
    /// What a sidecar asks for. Default: nothing.
    #[serde(default)]
    pub requests: Field<QuantitiesSection>,
    /// What a sidecar may use. Default: as much as there is.
    #[serde(default)]
    pub limits: Field<QuantitiesSection>,
}

/// When an image is pulled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, serde::Serialize, JsonSchema)]
#[schemars(inline)]
pub enum PullPolicyWord {
    /// Always.
    Always,
    /// Unless the node has it.
    #[default]
    IfNotPresent,
    /// Never.
    Never,
}

/// CPU and memory, as Kubernetes writes them.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct QuantitiesSection {
    /// CPU, e.g. `50m`.
    #[serde(default)]
    pub cpu: Field<Text>,
    /// Memory, e.g. `64Mi`.
    #[serde(default)]
    pub memory: Field<Text>,
}

//! `registries` of a gateway's file: where local truth comes from.

use eastway_registry::yaml::{Field, List};
use schemars::JsonSchema;
use serde::Deserialize;

/// A source of this cluster's own services.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RegistrySection {
    /// Its name, unique in this file.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: Field<String>,
    /// A `kind: ServiceList` file; either this or one of the others.
    #[serde(default)]
    pub file: Field<String>,
    /// A Kubernetes API server. `{}` in a pod.
    #[serde(default)]
    pub kubernetes: Field<ApiServerSection>,
    /// Further Kubernetes API servers of this cluster, which come and go while the gateway runs.
    #[serde(default)]
    pub cluster_registry: Field<ClusterRegistrySection>,
}

/// Further API servers of this cluster, each read as `kubernetes` is: their services are this cluster's own, and their
/// pods must be reachable from the gateway as they are. A server called `eu` is the registry `NAME-eu`, NAME being the
/// name of this one. Only the API server that the gateway runs on is ever written to.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterRegistrySection {
    /// A folder of `kind: Cluster` files (`clusterregistry.k8s.io/v1alpha1`), each with the path of a kubeconfig in
    /// `spec.authInfo.controller: {kind: Kubeconfig, name: PATH}`; either this or `namespace`. Programs of its `exec`
    /// section are started only if the file has the annotation `eastway.dev/allow-exec: "true"`; the annotation
    /// `eastway.dev/context` names a context of it.
    #[serde(default)]
    pub folder: Field<String>,
    /// A namespace with `Cluster` objects of the same kind and `ClusterProfile` objects
    /// (`multicluster.x-k8s.io/v1alpha1`), read from the API server that the gateway runs on, and with Secrets that hold
    /// their credentials: a key `kubeconfig`, or a key `token` for the server that the object names. A Cluster names its
    /// Secret in `spec.authInfo.controller: {kind: Secret, name: NAME}`; that of a ClusterProfile has its name. No
    /// program is ever started for them.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    #[serde(default)]
    pub namespace: Field<String>,
    /// As in `kubernetes`.
    #[serde(default)]
    pub export_marks: List<ExportMarkWord>,
    /// As in `kubernetes`.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub subset_labels: List<String>,
}

/// A Kubernetes API server, of which Services, EndpointSlices, ServiceExports and Pods are read.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ApiServerSection {
    /// A kubeconfig file. Default: the service account of the pod that the gateway runs in.
    #[serde(default)]
    pub kubeconfig: Field<String>,
    /// The context of the kubeconfig. Default: its current one.
    #[serde(default)]
    pub context: Field<String>,
    /// Marks of other meshes that count as an export beside a ServiceExport. `istio`: the label
    /// `istio.io/global: "true"`; `linkerd`: the label `mirror.linkerd.io/exported: "true"`; `cilium`:
    /// the annotation `service.cilium.io/global: "true"`. Default: none.
    #[serde(default)]
    pub export_marks: List<ExportMarkWord>,
    /// Labels of pods that tell versions of a service apart, for traffic policies here and at peers; at
    /// most 16. Default: `version` and `app.kubernetes.io/version`.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub subset_labels: List<String>,
}

/// A mark of another mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub enum ExportMarkWord {
    /// Of Istio.
    Istio,
    /// Of Linkerd.
    Linkerd,
    /// Of Cilium.
    Cilium,
}

//! Values of the chart. Comments become descriptions in its schema and its README; defaults are in `values.yaml`.

pub mod roles;

use std::collections::{BTreeMap, BTreeSet};

use eastway::config::file::{AuthorizationWord, LimitsSection, LogSection, NameSection, RelayPairSection};
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::Deserialize;
use serde_json::{Value, json};

use roles::{Ca, Gateway, Injector, Role};

/// Something that Kubernetes itself has a schema for.
type Object = BTreeMap<String, Value>;

/// Values of the Eastway chart. Only `cluster` and `trustDomain` have no default.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Values {
    /// Name of this cluster, unique in the clusterset. Peers call it by this name.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub cluster: String,
    /// Trust domain of this cluster's identities, e.g. `onprem.example`; another one than that of peers.
    #[schemars(length(min = 1, max = 255), regex(pattern = r"^[a-z0-9._-]+$"))]
    pub trust_domain: String,
    /// Where the image comes from.
    pub image: Image,
    /// Secrets with credentials for the image's registry.
    pub image_pull_secrets: Vec<NamedObject>,
    /// Logs, of all roles.
    pub log: LogSection,
    /// Whether connections that no AccessPolicy allows are refused (`enforce`) or only counted and logged (`dryRun`).
    pub authorization: AuthorizationWord,
    /// Listen on IPv6, too; pods need an IPv6 stack.
    pub ipv6: bool,
    /// Links to peers.
    pub link: Link,
    /// Pairs of peers that cannot reach each other and whose links are carried here.
    pub relay: Relay,
    /// Bounds on what peers and clients can use up, as `limits` of a GatewayConfig.
    pub limits: LimitsSection,
    /// Peers as files: name (`gke.yaml`) to text, as `eastway peer export` prints it. `Peer` objects work beside them.
    pub peers: BTreeMap<String, String>,
    /// Peers as files in objects that exist.
    pub existing_peers: ExistingPeers,
    /// TrafficPolicy and AccessPolicy files: name to text. Objects of these kinds work beside them.
    pub policies: BTreeMap<String, String>,
    /// Whose routes are read from the API, beside policies.
    pub routes: Routes,
    /// What marks a Service as exported beside a ServiceExport.
    pub export_marks: ExportMarks,
    /// Labels of pods that tell versions of a service apart, at most 16. Empty: `version`, `app.kubernetes.io/version`.
    #[schemars(length(max = 16))]
    pub subset_labels: Vec<String>,
    /// Further API servers whose services are this cluster's own.
    pub cluster_registry: ClusterRegistry,
    /// Names for pods.
    pub dns: Dns,
    /// The gateway role: links, federation, DNS, connections.
    pub gateway: Gateway,
    /// The controller role: the only one that writes to the Kubernetes API.
    pub controller: Role,
    /// Envoys beside workloads.
    pub sidecars: Sidecars,
    /// The injector role, if there is injection: the webhook that puts sidecars into pods.
    pub injector: Injector,
    /// The ca role: the only one that holds the CA key.
    pub ca: Ca,
    /// Istio in this cluster, unmodified, beside Eastway.
    pub istio: Istio,
    /// Annotations of all service accounts.
    pub service_account_annotations: BTreeMap<String, String>,
    /// Custom resource definitions. They stay when the chart is uninstalled.
    pub crds: Crds,
    /// Remove what the controller made when the chart is uninstalled: ServiceImports, with their Services and
    /// EndpointSlices, and Leases. If they stay, a new installation takes them over with their addresses.
    pub cleanup: bool,
    /// Who may reach what.
    pub network_policy: NetworkPolicy,
    /// Metrics, alerts and a dashboard.
    pub monitoring: Monitoring,
    /// Helm adds it where the chart is part of another one.
    #[serde(default)]
    pub global: Object,
}

/// Where the image comes from.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Image {
    /// Its name, with the registry.
    pub repository: String,
    /// Its tag. Empty: the chart's `appVersion`.
    pub tag: String,
    /// Its digest, `sha256:…`, instead of a tag.
    #[schemars(regex(pattern = "^(sha256:[0-9a-f]{64})?$"))]
    pub digest: String,
    /// When it is pulled.
    pub pull_policy: PullPolicy,
}

/// When an image is pulled.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum PullPolicy {
    /// Always.
    Always,
    /// Unless the node has it.
    IfNotPresent,
    /// Never.
    Never,
}

/// An object by its name.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NamedObject {
    /// Its name.
    pub name: String,
}

/// Relaying for others.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Relay {
    /// For whom, as `relay.allow` of a GatewayConfig. Both Peers there have to say `via: <this cluster>`.
    pub allow: Vec<RelayPairSection>,
}

/// Links to peers.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Link {
    /// How often a silent link proves that it lives, 100ms to 30s. Default: `1s`.
    #[serde(default)]
    pub keep_alive: String,
    /// A link that acknowledged nothing for so long is down, 2s to 5s. Default: `4s`.
    #[serde(default)]
    pub idle_timeout: String,
}

/// Peers as files in objects that exist.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExistingPeers {
    /// A ConfigMap in the namespace, each key a file.
    pub config_map: String,
    /// A Secret in the namespace, each key a file.
    pub secret: String,
}

/// Whose routes are read from the API.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Routes {
    /// HTTPRoutes, GRPCRoutes, TCPRoutes and TLSRoutes of the Gateway API whose parent is a service.
    pub gateway_api: bool,
    /// VirtualServices and DestinationRules of Istio.
    pub istio: bool,
}

/// What marks a Service as exported beside a ServiceExport.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExportMarks {
    /// The label `istio.io/global: "true"`.
    pub istio: bool,
    /// The label `mirror.linkerd.io/exported: "true"`.
    pub linkerd: bool,
    /// The annotation `service.cilium.io/global: "true"`.
    pub cilium: bool,
}

/// Further API servers whose services are this cluster's own. Their pods must be reachable from the gateways.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterRegistry {
    /// A Secret in the namespace of the release: `kind: Cluster` files (`eu.yaml`) and the kubeconfigs that they name. It
    /// may be made later. Empty: none.
    pub secret: String,
    /// A namespace, not that of the release, with Cluster and ClusterProfile objects and the Secrets of their
    /// credentials; it must be there. Empty: none is read.
    #[schemars(length(max = 63), regex(pattern = r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?)?$"))]
    pub namespace: String,
}

/// Istio in this cluster, unmodified, beside Eastway.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Istio {
    /// It is there, with its sidecars and the trust domain `trustDomain`: services of the peers below are told to istiod, and
    /// pods with its sidecar count as such. Its kinds and those of the Gateway API have to be installed.
    pub enabled: bool,
    /// Peers that run Istio too, each a network of its own.
    #[schemars(length(max = 64))]
    pub networks: Vec<IstioNetwork>,
    /// Revisions of istiod here: `eastway check` may read their mesh configurations, the ConfigMaps `istio-REVISION`.
    #[schemars(
        length(max = 16),
        inner(length(min = 1, max = 56), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))
    )]
    pub revisions: Vec<String>,
}

/// A peer as a network of Istio.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IstioNetwork {
    /// The peer.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub peer: String,
    /// A port of the gateways for it, from 15444 on; another one for each peer.
    #[schemars(range(min = 15444, max = 15507))]
    pub port: u16,
    /// What Istio here is to call that network, `topology.istio.io/network`. Default: as the peer.
    #[schemars(length(max = 63), regex(pattern = r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?)?$"))]
    #[serde(default)]
    pub network: String,
}

/// Names for pods.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Dns {
    /// Address of the DNS Service, from the cluster's service range. Resolvers forward to it: fix it, and it survives
    /// even an uninstall. Empty: any, kept over upgrades.
    #[serde(rename = "clusterIP")]
    pub cluster_ip: String,
    /// Zones of your own, e.g. `shop.example`.
    pub zones: Vec<String>,
    /// Names in them, and the services they lead to, as `dns.names` of a GatewayConfig.
    pub names: Vec<NameSection>,
}

/// Envoys beside workloads.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Sidecars {
    /// Sidecars that are put into pods.
    pub injection: Injection,
    /// Their image: with Envoy, `nft` and `eastway`.
    pub image: Image,
    /// CPU and memory of each; `cpu` and `memory` under `requests` and `limits`.
    pub resources: Object,
}

/// Sidecars that are put into pods.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Injection {
    /// Put them into pods that are made in namespaces with the label `eastway.dev/injection: enabled`. Wants Kubernetes
    /// 1.29.
    pub enabled: bool,
    /// What happens to such a pod while no injector answers: it is made without a sidecar (`Ignore`), or not at all (`Fail`).
    pub failure_policy: FailureWord,
    /// How long an API server waits for an answer, seconds.
    #[schemars(range(min = 1, max = 30))]
    pub timeout_seconds: u32,
    /// Addresses whose connections are led through sidecars, e.g. the cluster's service range. Empty: all.
    #[schemars(length(max = 16))]
    pub ranges: Vec<String>,
}

/// What happens without an answer.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum FailureWord {
    /// Nothing.
    Ignore,
    /// It is refused.
    Fail,
}

/// Custom resource definitions.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Crds {
    /// Install any.
    pub install: bool,
    /// ServiceExport and ServiceImport; false where something else brings them.
    pub multicluster_services: bool,
    /// ClusterProperty; false where something else brings it.
    pub cluster_property: bool,
    /// Cluster of the cluster registry. ClusterProfile is brought by whoever writes such objects.
    pub cluster_registry: bool,
}

/// Who may reach what.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NetworkPolicy {
    /// Whether there are policies.
    pub enabled: bool,
    /// Sources of links, as `from` of a NetworkPolicy. Empty: all.
    pub link_from: Vec<Object>,
    /// Clients of imports. Pods in the network of their node match no selector.
    pub clients_from: Vec<Object>,
    /// Who reads metrics.
    pub metrics_from: Vec<Object>,
}

/// Metrics, alerts and a dashboard.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Monitoring {
    /// A PodMonitor: `auto` if the cluster has that kind, `always` or `never`.
    pub pod_monitor: WhenWord,
    /// A PrometheusRule with alerts: as `podMonitor`.
    pub prometheus_rule: WhenWord,
    /// A ConfigMap with a Grafana dashboard, labelled `grafana_dashboard: "1"`.
    pub dashboards: bool,
    /// How often metrics are read.
    pub interval: String,
    /// Labels by which Prometheus finds both.
    pub labels: BTreeMap<String, String>,
    /// The page that alerts lead to.
    pub runbooks: String,
}

/// When an object is installed.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub enum WhenWord {
    /// If the cluster has its kind.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Shapes whose required fields are required here, too; values have defaults for all others.
const STRICT: [&str; 3] = ["NameSection", "NamedObject", "RelayPairSection"];

/// `values.schema.json`: draft 7, which every Helm 3 reads.
#[must_use]
pub fn schema() -> Value {
    let schema = SchemaSettings::draft07().into_generator().into_root_schema_for::<Values>();
    let mut schema = schema.to_value();
    for (name, definition) in schema["definitions"].as_object_mut().into_iter().flatten() {
        if !STRICT.contains(&name.as_str())
            && let Some(object) = definition.as_object_mut()
        {
            object.remove("required");
        }
    }
    schema["required"] = json!(["cluster", "trustDomain"]);
    schema
}

/// The table of the chart's README: every key, its default, and what it is.
#[must_use]
pub fn table(defaults: &Value) -> String {
    let mut text = String::from("\n| value | default | |\n|---|---|---|\n");
    let schema = schema();
    rows(&schema, &schema, defaults, "", &mut BTreeSet::new(), &mut text);
    text
}

fn rows(root: &Value, object: &Value, defaults: &Value, above: &str, seen: &mut BTreeSet<String>, text: &mut String) {
    for (key, property) in object["properties"].as_object().into_iter().flatten() {
        if above.is_empty() && key == "global" {
            continue;
        }
        let path = format!("{above}{key}");
        let inner = resolve(root, property);
        let about = property["description"].as_str().or(inner["description"].as_str()).unwrap_or_default();
        let about = about.replace('\n', " ").replace('|', "\\|");
        let default = &defaults[key];
        let is_section = inner["properties"].is_object() && default.as_object().is_some_and(|map| !map.is_empty());
        let shown = if is_section { String::new() } else { format!("`{default}`") };
        if seen.insert(path.clone()) {
            text.push_str(&format!("| `{path}` | {shown} | {about} |\n"));
        }
        if is_section {
            rows(root, inner, default, &format!("{path}."), seen, text);
        }
    }
}

fn resolve<'a>(root: &'a Value, value: &'a Value) -> &'a Value {
    let reference = value["$ref"].as_str().or_else(|| value["allOf"][0]["$ref"].as_str());
    match reference.and_then(|reference| reference.strip_prefix('#')) {
        Some(pointer) => root.pointer(pointer).expect("a schema refers to its own parts"),
        None => value,
    }
}

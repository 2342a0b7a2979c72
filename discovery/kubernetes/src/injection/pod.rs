//! What is read of a pod: all that a decision depends on, and no more.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

/// Annotation of pods that the kubelet has from a file and shows to the API server.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// Account of a pod that names none.
const DEFAULT_ACCOUNT: &str = "default";

/// A core/v1 Pod.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Pod {
    metadata: Meta,
    pub(super) spec: Spec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Meta {
    name: Option<String>,
    generate_name: Option<String>,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Spec {
    pub(super) containers: Option<Vec<Container>>,
    pub(super) init_containers: Option<Vec<Container>>,
    pub(super) volumes: Option<Vec<Named>>,
    service_account_name: Option<String>,
    host_network: Option<bool>,
    os: Option<Named>,
    dns_policy: Option<String>,
    pub(super) dns_config: Option<DnsConfig>,
    security_context: Option<SecurityContext>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Container {
    pub(super) name: String,
    ports: Option<Vec<Port>>,
    liveness_probe: Option<Probe>,
    readiness_probe: Option<Probe>,
    startup_probe: Option<Probe>,
    security_context: Option<SecurityContext>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Port {
    name: String,
    container_port: i64,
}

/// A question of the kubelet, as far as it speaks to the workload. One that only connects finds the sidecar.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Probe {
    http_get: Option<Asked>,
    grpc: Option<Asked>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Asked {
    port: NumberOrName,
}

/// A number, or the name of one of the container's ports.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum NumberOrName {
    Number(i64),
    Name(String),
}

impl Default for NumberOrName {
    fn default() -> Self {
        Self::Number(0)
    }
}

impl Container {
    /// A port of these at which the kubelet asks in plain text how the workload is.
    pub(super) fn asked_at(&self, ports: &[u16]) -> Option<u16> {
        let probes = [&self.liveness_probe, &self.readiness_probe, &self.startup_probe].into_iter().flatten();
        let asked = probes.flat_map(|probe| [&probe.http_get, &probe.grpc]).flatten();
        let mut numbers = asked.filter_map(|asked| match &asked.port {
            NumberOrName::Number(number) => Some(*number),
            NumberOrName::Name(name) => {
                let named = self.ports.iter().flatten().find(|port| port.name == *name);
                named.map(|port| port.container_port).or_else(|| name.parse().ok())
            }
        });
        numbers.find_map(|number| ports.iter().copied().find(|port| i64::from(*port) == number))
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Named {
    pub(super) name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct DnsConfig {
    pub(super) searches: Option<Vec<String>>,
    #[serde(rename = "nameservers")]
    _nameservers: Option<IgnoredAny>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SecurityContext {
    run_as_user: Option<i64>,
}

impl Pod {
    /// Its name, or the beginning of it: the API server adds the rest later.
    pub(super) fn name(&self) -> &str {
        self.metadata.name.as_deref().or(self.metadata.generate_name.as_deref()).unwrap_or_default()
    }

    pub(super) fn has_annotations(&self) -> bool {
        self.metadata.annotations.is_some()
    }

    pub(super) fn annotation(&self, key: &str) -> Option<&str> {
        self.metadata.annotations.as_ref()?.get(key).map(String::as_str)
    }

    pub(super) fn is_static(&self) -> bool {
        self.annotation(MIRROR).is_some()
    }

    pub(super) fn is_on_host_network(&self) -> bool {
        self.spec.host_network == Some(true)
    }

    pub(super) fn is_for_linux(&self) -> bool {
        self.spec.os.as_ref().is_none_or(|os| os.name == "linux")
    }

    /// Without `dnsPolicy` it does.
    pub(super) fn uses_cluster_resolver(&self) -> bool {
        matches!(self.spec.dns_policy.as_deref(), None | Some("ClusterFirst" | "ClusterFirstWithHostNet"))
    }

    pub(super) fn account(&self) -> &str {
        self.spec.service_account_name.as_deref().filter(|name| !name.is_empty()).unwrap_or(DEFAULT_ACCOUNT)
    }

    /// All containers, those of the start included.
    pub(super) fn containers(&self) -> impl Iterator<Item = &Container> {
        [&self.spec.containers, &self.spec.init_containers].into_iter().flatten().flatten()
    }

    /// The container that runs as this user, or the pod as a whole if all of it does.
    pub(super) fn runs_as(&self, user: u32) -> Option<String> {
        let is = |context: &Option<SecurityContext>| {
            context.as_ref().and_then(|context| context.run_as_user) == Some(i64::from(user))
        };
        if is(&self.spec.security_context) {
            return Some("the pod".to_owned());
        }
        let found = self.containers().find(|container| is(&container.security_context));
        found.map(|container| format!("container {}", container.name))
    }
}

//! Configuration files of a lab, as a user would write them.
//!
//! Files are built as [`Value`]s, so that a test can change any key with [`merge`] before they are
//! written as YAML.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// Version of every file kind.
pub const API_VERSION: &str = "eastway.dev/v1alpha1";

/// A service of a cloud.
#[derive(Clone, Debug)]
pub struct ServiceSpec {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Its one port, called `http`.
    pub port: u16,
    /// Whether peers may see it.
    pub export: bool,
    /// Its endpoints.
    pub endpoints: Vec<EndpointSpec>,
    /// Path that answers 200 when an endpoint is ready; `None`: always ready.
    pub health: Option<String>,
    /// More keys of the service, e.g. `type: Headless`.
    pub more: Value,
}

/// An endpoint of a [`ServiceSpec`].
#[derive(Clone, Debug)]
pub struct EndpointSpec {
    /// Its address.
    pub address: IpAddr,
    /// Labels that rules select by.
    pub labels: BTreeMap<String, String>,
    /// More keys of the endpoint, e.g. `draining: true`.
    pub more: Value,
}

impl ServiceSpec {
    /// An exported service without endpoints and without health checks.
    #[must_use]
    pub fn new(namespace: &str, name: &str, port: u16) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            port,
            export: true,
            endpoints: Vec::new(),
            health: None,
            more: Value::Null,
        }
    }

    /// Adds an endpoint with the label `version`.
    #[must_use]
    pub fn endpoint(mut self, address: IpAddr, version: &str) -> Self {
        let labels = BTreeMap::from([("version".to_owned(), version.to_owned())]);
        self.endpoints.push(EndpointSpec { address, labels, more: Value::Null });
        self
    }

    fn value(&self) -> Value {
        let endpoints = self.endpoints.iter().map(|endpoint| {
            let mut value = json!({
                "address": endpoint.address,
                "labels": endpoint.labels,
                "serviceAccount": format!("{}-{}", self.namespace, self.name),
            });
            merge(&mut value, &endpoint.more);
            value
        });
        let mut value = json!({
            "namespace": self.namespace,
            "name": self.name,
            "export": self.export,
            "ports": [{"name": "http", "port": self.port, "appProtocol": "http"}],
            "endpoints": endpoints.collect::<Vec<_>>(),
        });
        if let Some(path) = &self.health {
            let check =
                json!({"http": {"path": path, "port": "http"}, "interval": "1s", "timeout": "1s", "unhealthyAfter": 2});
            set(&mut value, "health", check);
        }
        merge(&mut value, &self.more);
        value
    }
}

/// `services.yaml` of the file registry. `workloads` are addresses that only connect out, with their
/// namespace and service account.
#[must_use]
pub fn service_list(services: &[ServiceSpec], workloads: &[(IpAddr, &str, &str)]) -> Value {
    let services: Vec<Value> = services.iter().map(ServiceSpec::value).collect();
    let workloads: Vec<Value> = workloads
        .iter()
        .map(|(address, namespace, account)| json!({"address": address, "namespace": namespace, "serviceAccount": account}))
        .collect();
    json!({"apiVersion": API_VERSION, "kind": "ServiceList", "services": services, "workloads": workloads})
}

/// What a gateway's main file is made from.
#[derive(Clone, Debug)]
pub struct GatewaySpec {
    /// Name of the cluster.
    pub cluster: String,
    /// Number of the replica: its state is kept apart.
    pub replica: usize,
    /// Address of the link's socket.
    pub link: IpAddr,
    /// What peers are told to dial, `host:port`.
    pub advertise: Vec<String>,
    /// Address of DNS, towards the pods.
    pub inside: IpAddr,
    /// Address of the admin, metrics and health ports.
    pub operator: IpAddr,
    /// Ranges of virtual addresses.
    pub vip_ranges: Vec<String>,
    /// Whether endpoints are on loopback addresses.
    pub loopback: bool,
}

/// Port of the link.
pub const LINK_PORT: u16 = 15443;
/// Port of DNS.
pub const DNS_PORT: u16 = 15053;
/// Port of the read-only admin interface.
pub const ADMIN_PORT: u16 = 15000;
/// Port of the health checks.
pub const HEALTH_PORT: u16 = 15021;
/// Port of the metrics.
pub const METRICS_PORT: u16 = 15020;

/// Trust domain of a cluster in a lab.
#[must_use]
pub fn trust_domain(cluster: &str) -> String {
    format!("{cluster}.example")
}

impl GatewaySpec {
    /// The `kind: GatewayConfig` file.
    #[must_use]
    pub fn value(&self) -> Value {
        let at = |address: IpAddr, port: u16| std::net::SocketAddr::new(address, port).to_string();
        let mut value = json!({
            "apiVersion": API_VERSION,
            "kind": "GatewayConfig",
            "cluster": self.cluster,
            "trust": {
                "domain": trust_domain(&self.cluster),
                "cacerts": "./cacerts",
                "ca": "unix:./run/ca.sock",
            },
            "listen": {
                "link": at(self.link, LINK_PORT),
                "advertise": self.advertise,
                "dns": [at(self.inside, DNS_PORT)],
                "admin": at(self.operator, ADMIN_PORT),
                "metrics": at(self.operator, METRICS_PORT),
                "health": at(self.operator, HEALTH_PORT),
            },
            "registries": [{"name": "hosts", "file": "./services.yaml"}],
            "peers": "./peers",
            "policies": "./policies",
            "vip": {"ranges": self.vip_ranges, "owner": self.replica == 0},
            "state": format!("./state-{}", self.replica),
        });
        if self.loopback {
            set(&mut value, "allowLoopback", json!(true));
        }
        value
    }
}

/// A `kind: Peer` file that offers and takes everything in `namespaces`.
#[must_use]
pub fn peer(name: &str, addresses: &[String], pin: &str, namespaces: &[&str]) -> Value {
    let export: Vec<Value> = namespaces.iter().map(|name| json!({"namespace": name, "services": ["*"]})).collect();
    let import: Vec<Value> = namespaces.iter().map(|name| json!({"namespace": name})).collect();
    json!({
        "apiVersion": API_VERSION,
        "kind": "Peer",
        "metadata": {"name": name},
        "spec": {
            "addresses": addresses,
            "trustDomain": trust_domain(name),
            "pins": [pin],
            "export": export,
            "import": import,
        },
    })
}

/// A `kind: TrafficPolicy` file.
#[must_use]
pub fn traffic_policy(namespace: &str, service: &str, spec: &Value) -> Value {
    let mut value = json!({
        "apiVersion": API_VERSION,
        "kind": "TrafficPolicy",
        "metadata": {"name": service, "namespace": namespace},
        "spec": {"service": service},
    });
    merge(&mut value, &json!({ "spec": spec }));
    value
}

/// A `kind: AccessPolicy` file that lets the given service accounts (cluster, account) of `namespace`
/// reach the services `services` of that namespace.
#[must_use]
pub fn access_policy(namespace: &str, name: &str, services: &[&str], allow: &[(&str, &str)]) -> Value {
    let allow: Vec<Value> = allow
        .iter()
        .map(|(cluster, account)| json!({"cluster": cluster, "namespace": namespace, "serviceAccounts": [account]}))
        .collect();
    json!({
        "apiVersion": API_VERSION,
        "kind": "AccessPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"services": services, "allow": allow},
    })
}

/// Puts the keys of `changes` into `value`, at any depth; `null` removes a key.
pub fn merge(value: &mut Value, changes: &Value) {
    let Value::Object(changes) = changes else { return };
    if !value.is_object() {
        *value = json!({});
    }
    let Value::Object(target) = value else { return };
    for (key, change) in changes {
        if change.is_null() {
            target.remove(key);
        } else if change.is_object() {
            merge(target.entry(key).or_insert_with(|| json!({})), change);
        } else {
            target.insert(key.clone(), change.clone());
        }
    }
}

fn set(value: &mut Value, key: &str, to: Value) {
    if let Value::Object(map) = value {
        map.insert(key.to_owned(), to);
    }
}

/// Writes a file in one step, as careful users and `ConfigMaps` do: readers see the old or the new one.
///
/// # Errors
/// The folder cannot be written.
pub fn write(path: &Path, value: &Value) -> Result<()> {
    let text = serde_saphyr::to_string(value).with_context(|| format!("write {} as YAML", path.display()))?;
    replace(path, text.as_bytes())
}

/// [`write()`] for any text.
///
/// # Errors
/// The folder cannot be written.
pub fn replace(path: &Path, contents: &[u8]) -> Result<()> {
    let name = path.file_name().context("no file name")?.to_string_lossy().into_owned();
    let draft = path.with_file_name(format!(".{name}.draft"));
    std::fs::write(&draft, contents).with_context(|| format!("write {}", draft.display()))?;
    std::fs::rename(&draft, path).with_context(|| format!("rename to {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gateway(loopback: bool) -> Value {
        let address = if loopback { [127, 1, 2, 1] } else { [198, 51, 100, 11] };
        GatewaySpec {
            cluster: "onprem".to_owned(),
            replica: 0,
            link: address.into(),
            advertise: vec!["198.51.100.11:15443".to_owned()],
            inside: if loopback { [127, 1, 0, 1].into() } else { [10, 244, 0, 1].into() },
            operator: [127, 0, 0, 1].into(),
            vip_ranges: vec![if loopback { "127.65.0.0/16" } else { "242.0.0.0/16" }.to_owned()],
            loopback,
        }
        .value()
    }

    /// What a lab writes is what users may write: no more leniency than the parser's.
    #[test]
    fn main_files_are_accepted() {
        for loopback in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("gateway.yaml");
            for inner in ["peers", "policies"] {
                std::fs::create_dir(folder.path().join(inner)).unwrap();
            }
            write(&folder.path().join("services.yaml"), &service_list(&[], &[])).unwrap();
            write(&path, &gateway(loopback)).unwrap();
            let loaded = crate::config::load(&path).unwrap_or_else(|errors| panic!("{errors}"));
            assert_eq!(loaded.settings.cluster.as_str(), "onprem");
        }
    }

    #[test]
    fn merge_changes_adds_and_removes_at_any_depth() {
        let mut value = json!({"a": {"b": 1, "c": 2}, "d": [1]});
        merge(&mut value, &json!({"a": {"b": null, "e": {"f": 3}}, "d": [2]}));
        assert_eq!(value, json!({"a": {"c": 2, "e": {"f": 3}}, "d": [2]}));
        merge(&mut value, &Value::Null);
        assert_eq!(value["d"], json!([2]));
    }

    #[test]
    fn replaced_files_are_never_half_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file.yaml");
        replace(&path, b"one").unwrap();
        replace(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}

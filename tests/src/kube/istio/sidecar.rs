//! Pods with a sidecar of Istio, as its injection makes them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{ISTIOD, SYSTEM, TRUST_DOMAIN, XDS, proxy};
use crate::kube::image::Image;
use crate::kube::pods::Pod;
use crate::kube::process::output;
use crate::kube::{Cluster, tools};
use crate::load;

/// What sidecars run.
const IMAGE: &str = "eastway.test/istio:1";
/// Programs of it: `/usr` is the machine's, whose libraries and iptables they need.
const AGENT: &str = "/opt/istio/pilot-agent";
const ENVOY: &str = "/opt/istio/envoy";
/// Who the sidecar is; what it sends is not led to it.
const USER: u32 = 1337;
/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Writes the image of sidecars.
///
/// # Errors
/// A program is missing.
pub(super) async fn image(tar: &Path) -> Result<()> {
    let bootstrap = tools::built("istio-bootstrap.json")?;
    let image = Image::with_shell(IMAGE, &[AGENT])?
        .copy(AGENT.trim_start_matches('/'), &tools::built("pilot-agent")?)?
        .copy(ENVOY.trim_start_matches('/'), &proxy()?)?
        .text("var/lib/istio/envoy/envoy_bootstrap_tmpl.json", &std::fs::read_to_string(bootstrap)?);
    image.write(tar).await
}

/// A workload with a sidecar.
#[derive(Clone, Debug)]
pub struct Workload<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// Name of its pod.
    pub name: &'a str,
    /// Its service account.
    pub account: &'a str,
    /// Labels beside those of the injection.
    pub labels: Value,
    /// What it runs beside the sidecar.
    pub container: Value,
}

impl Workload<'_> {
    /// The pod, in this cluster.
    #[must_use]
    pub fn pod(&self, cluster: &Cluster) -> Value {
        self.pod_of(cluster, TRUST_DOMAIN, false)
    }

    /// As [`Self::pod`], with this trust domain; `roots`: it takes roots from istiod, as a mesh configuration with
    /// `PROXY_CONFIG_XDS_AGENT` has injection say.
    #[must_use]
    pub fn pod_of(&self, cluster: &Cluster, domain: &str, roots: bool) -> Value {
        let mut labels = self.labels.clone();
        labels["security.istio.io/tlsMode"] = json!("istio");
        let agent = Agent {
            role: "sidecar",
            namespace: self.namespace,
            workload: self.name,
            cluster: cluster.name(),
            domain,
            roots,
        };
        let agent = agent.container(&[variable("ISTIO_META_INTERCEPTION_MODE", "REDIRECT")]);
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": self.name, "namespace": self.namespace, "labels": labels},
            "spec": {
                "serviceAccountName": self.account,
                "terminationGracePeriodSeconds": 1,
                "initContainers": [redirection()],
                "containers": [self.container, agent],
                "volumes": volumes(),
            },
        })
    }
}

/// A proxy with its agent, as a container.
struct Agent<'a> {
    /// `sidecar` or `router`.
    role: &'a str,
    namespace: &'a str,
    workload: &'a str,
    cluster: &'a str,
    domain: &'a str,
    /// It takes roots from istiod.
    roots: bool,
}

impl Agent<'_> {
    /// `more`: variables of its own.
    fn container(&self, more: &[Value]) -> Value {
        let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
        let address = format!("{ISTIOD}:{XDS}");
        let config = json!({"discoveryAddress": address, "binaryPath": ENVOY, "concurrency": 1}).to_string();
        let mount = |name: &str, path: &str| json!({"name": name, "mountPath": path});
        let mut variables = vec![
            field("POD_NAME", "metadata.name"),
            field("POD_NAMESPACE", "metadata.namespace"),
            field("INSTANCE_IP", "status.podIP"),
            field("HOST_IP", "status.hostIP"),
            field("SERVICE_ACCOUNT", "spec.serviceAccountName"),
            variable("PILOT_CERT_PROVIDER", "istiod"),
            variable("CA_ADDR", &address),
            variable("PROXY_CONFIG", &config),
            variable("JWT_POLICY", "third-party-jwt"),
            variable("TRUST_DOMAIN", self.domain),
            variable("PROXY_CONFIG_XDS_AGENT", &self.roots.to_string()),
            variable("ISTIO_META_CLUSTER_ID", self.cluster),
            variable("ISTIO_META_NETWORK", self.cluster),
            variable("ISTIO_META_MESH_ID", self.domain),
            variable("ISTIO_META_WORKLOAD_NAME", self.workload),
        ];
        variables.extend_from_slice(more);
        json!({
            "name": "istio-proxy", "image": IMAGE, "imagePullPolicy": "IfNotPresent",
            "args": [
                "proxy", self.role, "--domain", format!("{}.svc.cluster.local", self.namespace),
                "--proxyLogLevel=warning", "--log_output_level=default:info",
            ],
            "env": variables,
            // As Istio's injection has it; without a request it would be the last to get time on a busy machine.
            "resources": {"requests": {"cpu": "100m"}},
            "readinessProbe": {
                "httpGet": {"path": "/healthz/ready", "port": 15021}, "periodSeconds": 1, "failureThreshold": 60,
            },
            "securityContext": {"runAsUser": USER, "runAsGroup": USER, "runAsNonRoot": true},
            "volumeMounts": [
                {"name": "usr", "mountPath": "/usr", "readOnly": true},
                mount("istiod-ca-cert", "/var/run/secrets/istio"), mount("istio-token", "/var/run/secrets/tokens"),
                mount("workload-socket", "/var/run/secrets/workload-spiffe-uds"),
                mount("credential-socket", "/var/run/secrets/credential-uds"),
                mount("istio-envoy", "/etc/istio/proxy"), mount("istio-data", "/var/lib/istio/data"),
                mount("istio-podinfo", "/etc/istio/pod"),
            ],
        })
    }
}

fn variable(name: &str, value: &str) -> Value {
    json!({"name": name, "value": value})
}

/// A gateway that sees its own network alone: a pod called like its account, in [`SYSTEM`].
pub(super) fn router(cluster: &Cluster, name: &str, labels: &Value) -> Value {
    let agent = Agent {
        role: "router",
        namespace: SYSTEM,
        workload: name,
        cluster: cluster.name(),
        domain: TRUST_DOMAIN,
        roots: false,
    };
    let network = variable("ISTIO_META_REQUESTED_NETWORK_VIEW", cluster.name());
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": SYSTEM, "labels": labels},
        "spec": {
            "serviceAccountName": name, "terminationGracePeriodSeconds": 1,
            "containers": [agent.container(&[network])], "volumes": volumes(),
        },
    })
}

/// The init container that leads the pod's connections to the sidecar.
fn redirection() -> Value {
    json!({
        "name": "istio-init", "image": IMAGE, "imagePullPolicy": "IfNotPresent",
        "args": [
            "istio-iptables", "-p", "15001", "-z", "15006", "-u", USER.to_string(), "-m", "REDIRECT", "-i", "*", "-x", "",
            "-b", "*", "-d", "15090,15021,15020",
        ],
        "env": [{"name": "PATH", "value": "/usr/sbin:/usr/bin:/bin"}],
        "securityContext": {"privileged": true, "runAsUser": 0},
        "volumeMounts": [{"name": "usr", "mountPath": "/usr", "readOnly": true}],
    })
}

fn volumes() -> Value {
    let empty = |name: &str| json!({"name": name, "emptyDir": {}});
    let field = |path: &str| json!({"path": path, "fieldRef": {"fieldPath": format!("metadata.{path}")}});
    let token = json!({"path": "istio-token", "expirationSeconds": 43_200, "audience": "istio-ca"});
    json!([
        {"name": "usr", "hostPath": {"path": "/usr"}},
        {"name": "istiod-ca-cert", "configMap": {"name": "istio-ca-root-cert"}},
        {"name": "istio-token", "projected": {"sources": [{"serviceAccountToken": token}]}},
        {"name": "istio-podinfo", "downwardAPI": {"items": [field("labels"), field("annotations")]}},
        empty("workload-socket"), empty("credential-socket"), empty("istio-envoy"), empty("istio-data"),
    ])
}

/// An endpoint as Envoy's page of clusters has it.
fn endpoint(status: &Value) -> (String, Endpoint) {
    let address = &status["address"]["socket_address"];
    let name = format!("{}:{}", address["address"].as_str().unwrap_or_default(), address["port_value"]);
    let stats = status["stats"].as_array().map(Vec::as_slice).unwrap_or_default();
    // Large numbers are text.
    let number = |name: &str| {
        let value = stats.iter().find(|stat| stat["name"] == name).map(|stat| &stat["value"]);
        value.and_then(Value::as_str).and_then(|text| text.parse().ok()).unwrap_or_default()
    };
    let endpoint = Endpoint {
        weight: status["weight"].as_u64().unwrap_or_default(),
        requests: number("rq_total"),
        asked: number("rq_active"),
        connections: number("cx_active"),
    };
    (name, endpoint)
}

/// What a server said.
#[derive(Clone, Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Its headers, as they came.
    pub head: String,
    /// The rest.
    pub body: String,
}

/// An endpoint of a host, as a sidecar has used it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// Its share among the endpoints.
    pub weight: u64,
    /// Requests so far.
    pub requests: u64,
    /// Requests that wait for an answer.
    pub asked: u64,
    /// Connections that are open.
    pub connections: u64,
}

impl Pod {
    /// The endpoints that the sidecar of this pod has for a host and its port, by their addresses: pods of its network, and
    /// gateways of others.
    ///
    /// # Errors
    /// The sidecar does not say, or knows no such host.
    pub async fn endpoints(&self, host: &str, port: u16) -> Result<BTreeMap<String, Endpoint>> {
        let asked = self.place.run(async {
            let mut curl = tokio::process::Command::new("curl");
            curl.args(["--silent", "--fail", "--max-time", "10", "http://127.0.0.1:15000/clusters?format=json"]);
            output(&mut curl).await
        });
        let said: Value = serde_json::from_str(&asked.await?)?;
        let name = format!("outbound|{port}||{host}");
        let clusters = said["cluster_statuses"].as_array().into_iter().flatten();
        let found = clusters.into_iter().find(|cluster| cluster["name"] == name);
        let hosts = &found.with_context(|| format!("the sidecar knows no {name}"))?["host_statuses"];
        Ok(hosts.as_array().into_iter().flatten().map(endpoint).collect())
    }

    /// One HTTP request of this pod, which its sidecar sees; nothing is tried twice here. `headers` are whole lines.
    ///
    /// # Errors
    /// There is no answer of HTTP in time.
    pub async fn get(&self, target: SocketAddr, host: &str, path: &str, headers: &[&str]) -> Result<Answer> {
        let lines: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
        let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{lines}\r\n");
        let source = self.address;
        let exchange = async move {
            let mut stream = load::connect(source, target).await?;
            stream.write_all(request.as_bytes()).await?;
            let mut said = Vec::new();
            stream.read_to_end(&mut said).await?;
            anyhow::Ok(said)
        };
        let asked = self.place.run(async move { tokio::time::timeout(PATIENCE, exchange).await.context("no answer")? });
        let said = String::from_utf8_lossy(&asked.await?).into_owned();
        let (head, body) = said.split_once("\r\n\r\n").with_context(|| format!("no HTTP: {said:?}"))?;
        let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).and_then(|code| code.parse().ok());
        ensure!(status.is_some(), "no status: {head:?}");
        Ok(Answer { status: status.unwrap_or_default(), head: head.to_owned(), body: body.to_owned() })
    }
}

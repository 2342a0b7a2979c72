//! Pods with a sidecar of Istio, as its injection makes them.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{ISTIOD, TRUST_DOMAIN, XDS, proxy};
use crate::kube::image::Image;
use crate::kube::pods::Pod;
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
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": self.name, "namespace": self.namespace, "labels": labels},
            "spec": {
                "serviceAccountName": self.account,
                "terminationGracePeriodSeconds": 1,
                "initContainers": [redirection()],
                "containers": [self.container, self.agent(cluster.name(), domain, roots)],
                "volumes": volumes(),
            },
        })
    }

    fn agent(&self, cluster: &str, domain: &str, roots: bool) -> Value {
        let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
        let value = |name: &str, value: &str| json!({"name": name, "value": value});
        let address = format!("{ISTIOD}:{XDS}");
        let config = json!({"discoveryAddress": address, "binaryPath": ENVOY, "concurrency": 1}).to_string();
        let mount = |name: &str, path: &str| json!({"name": name, "mountPath": path});
        json!({
            "name": "istio-proxy", "image": IMAGE, "imagePullPolicy": "IfNotPresent",
            "args": [
                "proxy", "sidecar", "--domain", format!("{}.svc.cluster.local", self.namespace),
                "--proxyLogLevel=warning", "--log_output_level=default:info",
            ],
            "env": [
                field("POD_NAME", "metadata.name"), field("POD_NAMESPACE", "metadata.namespace"),
                field("INSTANCE_IP", "status.podIP"), field("HOST_IP", "status.hostIP"),
                field("SERVICE_ACCOUNT", "spec.serviceAccountName"),
                value("PILOT_CERT_PROVIDER", "istiod"), value("CA_ADDR", &address), value("PROXY_CONFIG", &config),
                value("JWT_POLICY", "third-party-jwt"), value("TRUST_DOMAIN", domain),
                value("PROXY_CONFIG_XDS_AGENT", &roots.to_string()),
                value("ISTIO_META_CLUSTER_ID", cluster), value("ISTIO_META_NETWORK", cluster),
                value("ISTIO_META_MESH_ID", domain), value("ISTIO_META_INTERCEPTION_MODE", "REDIRECT"),
                value("ISTIO_META_WORKLOAD_NAME", self.name),
            ],
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

impl Pod {
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

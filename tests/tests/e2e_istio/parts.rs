//! What these tests run: servers that say their name and who their client is, in versions, and clients, all with a sidecar.

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use eastway_tests::kube::istio::Trust;
use eastway_tests::kube::istio::sidecar::Workload;
use eastway_tests::kube::pods::Pod;
use eastway_tests::kube::{Bed, Cluster, eastway as installed, image, pods, traffic};
use eastway_tests::within;
use serde_json::{Value, json};

/// The port of every service.
pub(crate) const PORT: u16 = 9080;
/// What the server of a request says of its client.
pub(crate) const WHO: &str = "/header?key=X-Forwarded-Client-Cert";
/// Longest wait for pods.
const PATIENCE: Duration = Duration::from_secs(90);

/// An object with a spec.
pub(crate) fn object(namespace: &str, api: &str, kind: &str, name: &str, spec: &Value) -> Value {
    let metadata = json!({"name": name, "namespace": namespace});
    json!({"apiVersion": api, "kind": kind, "metadata": metadata, "spec": spec})
}

/// A namespace with these accounts, in which Istio takes nothing but mutual TLS, and whose services all clusters may use.
pub(crate) fn space(bed: &Bed, namespace: &str, accounts: &[&str]) -> Vec<Value> {
    let account = |name: &&str| {
        let metadata = json!({"name": name, "namespace": namespace});
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})
    };
    let mut items = vec![json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})];
    items.extend(accounts.iter().map(account));
    let strict = json!({"mtls": {"mode": "STRICT"}});
    items.push(object(namespace, "security.istio.io/v1", "PeerAuthentication", "default", &strict));
    let clusters: Vec<Value> = bed.clusters().iter().map(|cluster| json!({"cluster": cluster.name()})).collect();
    let all = json!({"services": ["*"], "allow": clusters});
    items.push(object(namespace, "eastway.dev/v1alpha1", "AccessPolicy", "all", &all));
    items
}

/// A service, exported, whose port leads to one that pods know by a name.
pub(crate) fn service(namespace: &str, name: &str) -> Vec<Value> {
    let port = json!({"name": "http", "port": PORT, "targetPort": "web", "appProtocol": "http"});
    let spec = json!({"selector": {"app": name}, "ports": [port]});
    let export = json!({
        "apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceExport",
        "metadata": {"name": name, "namespace": namespace},
    });
    vec![object(namespace, "v1", "Service", name, &spec), export]
}

/// A version of a service, which runs as an account of its name.
pub(crate) fn server(cluster: &Cluster, namespace: &str, service: &str, version: &str) -> Value {
    workload_of_server(namespace, service, version, |workload| workload.pod(cluster))
}

/// Likewise, of a cluster with a trust domain of its own; `roots`: it takes roots of others from istiod.
pub(crate) fn server_of(cluster: &Cluster, namespace: &str, service: &str, version: &str, roots: bool) -> Value {
    let domain = Trust::Apart.domain(cluster.name());
    workload_of_server(namespace, service, version, |workload| workload.pod_of(cluster, &domain, roots))
}

fn workload_of_server(namespace: &str, service: &str, version: &str, pod: impl Fn(Workload<'_>) -> Value) -> Value {
    let container = json!({
        "name": "web", "image": image::AGNHOST, "imagePullPolicy": "IfNotPresent",
        "args": ["netexec", "--http-port=8080"], "ports": [{"name": "web", "containerPort": 8080}],
    });
    let labels = json!({"app": service, "version": version});
    let name = format!("{service}-{version}");
    pod(Workload { namespace, name: &name, account: service, labels, container })
}

/// A server of [`traffic::ECHO`] as a version of the service `echo`: it answers what a load asks, at once.
pub(crate) fn echo(cluster: &Cluster, namespace: &str, version: &str) -> Value {
    slow_echo(cluster, namespace, "echo", version, Duration::ZERO)
}

/// Likewise of another service, after a while.
pub(crate) fn slow_echo(cluster: &Cluster, namespace: &str, service: &str, version: &str, after: Duration) -> Value {
    let container = json!({
        "name": "web", "image": traffic::ECHO, "imagePullPolicy": "IfNotPresent",
        "args": [after.as_millis().to_string()],
        "ports": [{"name": "web", "containerPort": traffic::TARGET}],
        "resources": {"requests": {"cpu": "50m"}},
    });
    let labels = json!({"app": service, "version": version});
    Workload { namespace, name: &format!("{service}-{version}"), account: service, labels, container }.pod(cluster)
}

/// A pod to ask from, which runs as an account of its name.
pub(crate) fn client(cluster: &Cluster, namespace: &str, name: &str) -> Value {
    workload_of_client(namespace, name).pod(cluster)
}

/// Likewise, of a cluster with a trust domain of its own; `roots`: it takes roots of others from istiod.
pub(crate) fn client_of(cluster: &Cluster, namespace: &str, name: &str, roots: bool) -> Value {
    workload_of_client(namespace, name).pod_of(cluster, &Trust::Apart.domain(cluster.name()), roots)
}

fn workload_of_client<'a>(namespace: &'a str, name: &'a str) -> Workload<'a> {
    let container = json!({
        "name": "sleeper", "image": image::BUSYBOX, "imagePullPolicy": "IfNotPresent", "command": ["sleep", "infinity"],
    });
    let labels = json!({"app": name});
    Workload { namespace, name, account: name, labels, container }
}

/// How many objects of ours of this kind there are.
pub(crate) async fn told(cluster: &Cluster, namespace: &str, kind: &str) -> Result<usize> {
    let list = cluster.get(&[kind, "-n", namespace, "-l", "app.kubernetes.io/managed-by=eastway"]).await?;
    Ok(list["items"].as_array().map_or(0, Vec::len))
}

/// A DestinationRule that gives versions of a host their names.
pub(crate) fn versions(namespace: &str, host: &str, versions: &[&str]) -> Value {
    let subset = |version: &&str| json!({"name": version, "labels": {"version": version}});
    let subsets: Vec<Value> = versions.iter().map(subset).collect();
    let spec = json!({"host": host, "subsets": subsets});
    object(namespace, "networking.istio.io/v1", "DestinationRule", "versions", &spec)
}

/// A version of a host in a VirtualService, and its share.
pub(crate) fn to(host: &str, version: &str, weight: u32) -> Value {
    json!({"destination": {"host": host, "subset": version}, "weight": weight})
}

/// A client in the cloud a, which has no service of this kind, and two clouds that have a version of it each.
#[derive(Debug)]
pub(crate) struct Elsewhere {
    client: Pod,
    target: SocketAddr,
    host: &'static str,
}

impl Elsewhere {
    /// Starts `echo` as v1 in b and as v2 in c, under `host`; `rules` are for sidecars of a.
    ///
    /// # Errors
    /// Something of it is not ready in time.
    pub(crate) async fn set(bed: &Bed, namespace: &str, host: &'static str, rules: Vec<Value>) -> Result<Self> {
        for cluster in bed.clusters() {
            cluster.apply(&pods::list(&space(bed, namespace, &["client", "echo"]))).await?;
        }
        let a = bed.cluster("a");
        a.apply(&pods::list(&[rules, vec![client(a, namespace, "client")]].concat())).await?;
        for (name, version) in [("b", "v1"), ("c", "v2")] {
            let cluster = bed.cluster(name);
            let there = [service(namespace, "echo"), vec![server(cluster, namespace, "echo", version)]];
            cluster.apply(&pods::list(&there.concat())).await?;
        }
        for cluster in bed.clusters() {
            cluster.wait("condition=Ready", &["pod", "-n", namespace, "--all"], PATIENCE).await?;
        }
        let address: IpAddr = installed::imported(a, namespace, "echo").await?.parse()?;
        Ok(Self { client: a.pod(namespace, "client").await?, target: SocketAddr::new(address, PORT), host })
    }

    /// Who answers one request.
    ///
    /// # Errors
    /// Nobody does.
    pub(crate) async fn ask(&self) -> Result<String> {
        let answer = self.client.get(self.target, self.host, "/hostname", &[]).await?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(answer.body.trim().to_owned())
    }
}

/// Takes a namespace away, and with it all that a test had there.
pub(crate) async fn remove(bed: &Bed, namespace: &str) -> Result<()> {
    for cluster in bed.clusters() {
        cluster.kubectl(&["delete", "namespace", namespace, "--ignore-not-found", "--wait=false"]).await?;
    }
    Ok(())
}

/// A server refuses who may not ask it, in the first answer that is one: until then its sidecar finds no server.
pub(crate) async fn refuses(stranger: &Pod, target: SocketAddr, host: &str) -> Result<()> {
    let first = RefCell::new(None);
    within(PATIENCE, format!("{host} answers a stranger"), async || {
        let said = stranger.get(target, host, WHO, &[]).await?;
        let reached = said.status != 503;
        first.replace(reached.then_some(said));
        Ok(reached)
    })
    .await?;
    let answer = first.into_inner().context("an answer")?;
    ensure!(answer.status == 403, "a stranger is served: {answer:?}");
    Ok(())
}

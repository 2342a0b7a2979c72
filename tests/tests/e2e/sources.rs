//! Several API servers behind one gateway: a's own, one more by an object and one more by a file or a ClusterProfile.
//! Their services are one service of a, which b uses by name.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use eastway_tests::kube::cluster::Program;
use eastway_tests::kube::eastway::{REGISTRY, SYSTEM};
use eastway_tests::kube::{Bed, Cluster, eastway as installed, process, seconds, tools};
use eastway_tests::{bed_tests, within};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

const PATIENCE: Duration = Duration::from_secs(60);
const NAMESPACE: &str = "e2e-sources";
const MCS: &str = include_str!("../../../helm/eastway/files/crds/multicluster.x-k8s.io_serviceexports.yaml");
/// Connections after which each of three endpoints was met, but for one time in 6,000.
const CONNECTIONS: usize = 24;

/// A further API server, and what it calls a pod: a listener of this test, which says the cluster's name.
struct Source {
    cluster: Cluster,
    address: Ipv4Addr,
    listener: tokio::task::JoinHandle<()>,
}

impl Source {
    async fn start(bed: &Bed, name: &'static str, number: u8) -> Result<Self> {
        let cluster = bed.api_server(name, number).await?;
        let address = Ipv4Addr::new(198, 51, 100, 20 + number);
        let interface = format!("{address}/32");
        process::output(Command::new("ip").args(["addr", "replace", &interface, "dev", "wan"])).await?;
        let listener = TcpListener::bind(SocketAddr::from((address, 8080))).await?;
        let listener = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, name));
            }
        });
        let source = Self { cluster, address, listener };
        source.fill().await?;
        Ok(source)
    }

    /// A service with one pod, exported; nobody but this test writes here.
    async fn fill(&self) -> Result<()> {
        let cluster = &self.cluster;
        cluster.apply(MCS).await?;
        cluster.wait("condition=Established", &["crd/serviceexports.multicluster.x-k8s.io"], PATIENCE).await?;
        let meta = json!({"name": "echo", "namespace": NAMESPACE});
        let items = json!([
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": NAMESPACE}},
            {"apiVersion": "v1", "kind": "Pod", "metadata": meta,
             "spec": {"nodeName": "elsewhere", "automountServiceAccountToken": false,
                      "containers": [{"name": "echo", "image": "echo:1"}]}},
            {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {"ports": [{"name": "http", "port": 80}]}},
            {"apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceExport", "metadata": meta},
        ]);
        for item in items.as_array().into_iter().flatten() {
            cluster.apply(&item.to_string()).await?;
        }
        let status = json!({"status": {
            "phase": "Running", "podIP": self.address, "podIPs": [{"ip": self.address}],
            "conditions": [{"type": "Ready", "status": "True"}],
        }});
        let patch = ["patch", "pod", "echo", "-n", NAMESPACE, "--subresource=status", "--type=merge", "-p"];
        cluster.kubectl(&[&patch[..], &[&status.to_string()]].concat()).await?;
        self.set_ready(true).await?;
        // What a gateway needs elsewhere, and no more.
        let read = json!([
            {"apiGroups": [""], "resources": ["services", "pods"], "verbs": ["get", "list", "watch"]},
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["get", "list", "watch"]},
            {"apiGroups": ["multicluster.x-k8s.io"], "resources": ["serviceexports"], "verbs": ["get", "list", "watch"]},
        ]);
        let (api, name) = ("rbac.authorization.k8s.io", "eastway-reader");
        for item in [
            json!({"apiVersion": format!("{api}/v1"), "kind": "ClusterRole", "metadata": {"name": name}, "rules": read}),
            json!({"apiVersion": format!("{api}/v1"), "kind": "ClusterRoleBinding", "metadata": {"name": name},
                   "roleRef": {"apiGroup": api, "kind": "ClusterRole", "name": name},
                   "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": NAMESPACE}]}),
        ] {
            cluster.apply(&item.to_string()).await?;
        }
        Ok(())
    }

    async fn set_ready(&self, ready: bool) -> Result<()> {
        let pod: Value = self.cluster.get(&["pod", "echo", "-n", NAMESPACE]).await?;
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": "echo-1", "namespace": NAMESPACE, "labels": {"kubernetes.io/service-name": "echo"}},
            "addressType": "IPv4", "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            "endpoints": [{
                "addresses": [self.address], "conditions": {"ready": ready},
                "targetRef": {"kind": "Pod", "name": "echo", "namespace": NAMESPACE, "uid": pod["metadata"]["uid"]},
            }],
        });
        self.cluster.apply(&slice.to_string()).await.map(drop)
    }

    /// A kubeconfig with a token of the service account that may read.
    async fn kubeconfig(&self) -> Result<String> {
        let name = self.cluster.name();
        let token = self.cluster.kubectl(&["create", "token", "default", "-n", NAMESPACE, "--duration=1h"]).await?;
        let file = self.cluster.pki().admin_at(name, &format!("https://{}:6443", self.cluster.address()));
        let mut file: Value = serde_json::from_str(&file)?;
        file["users"][0]["user"] = json!({"token": token.trim()});
        Ok(file.to_string())
    }

    async fn end(self, bed: &Bed) -> Result<()> {
        self.listener.abort();
        let interface = format!("{}/32", self.address);
        process::output(Command::new("ip").args(["addr", "del", &interface, "dev", "wan"])).await?;
        bed.end(self.cluster).await
    }
}

/// Says the name, after the request: a connection that is closed with something unread is reset.
async fn answer(mut stream: TcpStream, name: &str) {
    let mut request = [0; 1024];
    if stream.read(&mut request).await.is_ok_and(|size| size > 0) {
        let answer = format!("HTTP/1.0 200 OK\r\n\r\n{name}");
        // The asker may be gone.
        let _gone = stream.write_all(answer.as_bytes()).await;
    }
}

/// The object that registers an API server, and its Secret.
async fn objects(source: &Source) -> Result<String> {
    let meta = json!({"name": source.cluster.name(), "namespace": REGISTRY});
    let list = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Secret", "metadata": meta,
         "stringData": {"kubeconfig": source.kubeconfig().await?}},
        {"apiVersion": "clusterregistry.k8s.io/v1alpha1", "kind": "Cluster", "metadata": meta,
         "spec": {"authInfo": {"controller": {"kind": "Secret", "name": source.cluster.name()}}}},
    ]});
    Ok(list.to_string())
}

/// The cluster inventory's object (KEP-4322) and the Secret of its name; its status is what an inventory's controller
/// writes, so it comes in a second step.
async fn profile(a: &Cluster, source: &Source) -> Result<String> {
    let name = source.cluster.name();
    let meta = json!({"name": name, "namespace": REGISTRY});
    let file: Value = serde_json::from_str(&source.kubeconfig().await?)?;
    let (server, token) = (&file["clusters"][0]["cluster"], &file["users"][0]["user"]["token"]);
    let status = json!({"status": {"accessProviders": [{"name": "secretreader", "cluster": server}]}});
    let list = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": {"token": token}},
        {"apiVersion": "multicluster.x-k8s.io/v1alpha1", "kind": "ClusterProfile", "metadata": meta,
         "spec": {"displayName": name, "clusterManager": {"name": "e2e"}}},
    ]})
    .to_string();
    a.apply(&list).await?;
    let patch = ["patch", "clusterprofile", name, "-n", REGISTRY, "--subresource=status", "--type=merge", "-p"];
    a.kubectl(&[&patch[..], &[&status.to_string()]].concat()).await?;
    Ok(list)
}

/// The files that do, as a Secret that is mounted.
async fn files(source: &Source) -> Result<String> {
    let name = source.cluster.name();
    let file = json!({
        "apiVersion": "clusterregistry.k8s.io/v1alpha1", "kind": "Cluster", "metadata": {"name": name},
        "spec": {"authInfo": {"controller": {"kind": "Kubeconfig", "name": "credentials"}}},
    });
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": REGISTRY, "namespace": SYSTEM},
        "stringData": {format!("{name}.yaml"): file.to_string(), "credentials": source.kubeconfig().await?},
    });
    Ok(secret.to_string())
}

/// The service's part in a cluster of the bed: a server of a, and in b a shell.
fn manifests(cluster: &str) -> Vec<Value> {
    let meta = |name: &str| json!({"name": name, "namespace": NAMESPACE});
    let mut all = vec![json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})];
    let pod = |name: &str, container: Value| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"app": name}},
               "spec": {"terminationGracePeriodSeconds": 0, "containers": [container]}})
    };
    if cluster == "b" {
        let shell = json!({"name": "shell", "image": "eastway.test/agnhost:1", "command": ["sleep", "infinity"]});
        all.push(pod("shell", shell));
        return all;
    }
    let server = json!({"name": "echo", "image": "eastway.test/agnhost:1", "args": ["netexec", "--http-port=8080"]});
    all.push(pod("echo", server));
    all.push(json!({"apiVersion": "v1", "kind": "Service", "metadata": meta("echo"),
                    "spec": {"selector": {"app": "echo"}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}}));
    all.push(json!({"apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceExport", "metadata": meta("echo")}));
    all.push(json!({
        "apiVersion": "eastway.dev/v1alpha1", "kind": "AccessPolicy", "metadata": meta("echo"),
        "spec": {"services": ["echo"], "allow": [{"cluster": "b", "namespace": NAMESPACE, "serviceAccounts": ["*"]}]},
    }));
    all
}

/// Who answers b's connections to the service by name. A connection that fails is an error.
async fn answers(b: &Cluster) -> Result<BTreeSet<String>> {
    let host = format!("echo.{NAMESPACE}.svc.clusterset.local");
    // The input stays open: an end of the request before the answer is another matter.
    let ask = format!("(printf 'GET /hostname HTTP/1.0\\r\\n\\r\\n'; sleep 1) | nc -w 3 {host} 80 | tail -n 1");
    let script = format!("for i in $(seq {CONNECTIONS}); do (echo \"$( {ask})\") & done; wait");
    let said = b.exec(NAMESPACE, "pod/shell", &["sh", "-c", &script]).await?;
    let words: Vec<String> = said.split_ascii_whitespace().map(str::to_owned).collect();
    ensure!(words.len() == CONNECTIONS, "{} of {CONNECTIONS} connections were answered: {words:?}", words.len());
    Ok(words.into_iter().collect())
}

/// Waits until exactly these answer; returns what it took.
async fn until_answered(b: &Cluster, expected: &[&str]) -> Result<f64> {
    let expected: BTreeSet<String> = expected.iter().map(|&name| name.to_owned()).collect();
    let started = Instant::now();
    let same = async || Ok(answers(b).await.is_ok_and(|answers| answers == expected));
    within(PATIENCE, format!("{expected:?} answer"), same).await?;
    Ok(seconds(started.elapsed()))
}

/// Whether every gateway has both further registries, and c's endpoint.
async fn all_registered(cluster: &Cluster) -> Result<bool> {
    let complete = |said: &String| {
        let kept = said.lines().any(|line| line.contains(" objects-c: ") && line.contains(" 1 endpoints"));
        kept && said.contains("objects: 1 API servers") && said.contains("files: 1 API servers")
    };
    Ok(statuses(cluster).await?.iter().all(complete))
}

/// What each gateway of a cluster says of itself.
async fn statuses(cluster: &Cluster) -> Result<Vec<String>> {
    let label = "app.kubernetes.io/component=gateway";
    let pods = cluster.kubectl(&["get", "pods", "-n", SYSTEM, "-l", label, "-o", "name"]).await?;
    let mut all = Vec::new();
    for pod in pods.split_ascii_whitespace() {
        all.push(cluster.exec(SYSTEM, pod, &["/usr/bin/eastway", "status"]).await?);
    }
    ensure!(!all.is_empty(), "no gateway runs");
    Ok(all)
}

async fn run(bed: &Bed, c: &Source, d: &Source) -> Result<()> {
    let (a, b) = (bed.cluster("a"), bed.cluster("b"));
    until_answered(b, &["echo"]).await?;
    let registered = objects(c).await?;
    a.apply(&registered).await?;
    bed.record("sources.by_object_s", until_answered(b, &["c", "echo"]).await?);
    let secret = files(d).await?;
    a.apply(&secret).await?;
    bed.record("sources.by_file_s", until_answered(b, &["c", "d", "echo"]).await?);

    // One API server away: nothing of it is withdrawn, and the others are followed (invariant I4).
    c.cluster.kill_program(Program::ApiServer).await?;
    d.set_ready(false).await?;
    bed.record("sources.change_with_one_away_s", until_answered(b, &["c", "echo"]).await?);
    d.set_ready(true).await?;
    until_answered(b, &["c", "d", "echo"]).await?;
    // The answers prove it of the replica that was asked; the kubelet brings each the files in its own time.
    within(PATIENCE, "every gateway of a has all three registries", async || all_registered(a).await).await?;

    // Its registration gone: exactly its share goes, though it cannot be asked.
    a.delete(&registered).await?;
    bed.record("sources.removed_by_object_s", until_answered(b, &["d", "echo"]).await?);
    a.delete(&secret).await?;
    bed.record("sources.removed_by_file_s", until_answered(b, &["echo"]).await?);

    let registered = profile(a, d).await?;
    bed.record("sources.by_profile_s", until_answered(b, &["d", "echo"]).await?);
    a.delete(&registered).await?;
    bed.record("sources.removed_by_profile_s", until_answered(b, &["echo"]).await?);
    Ok(())
}

bed_tests! {
    /// Three API servers are one mesh member: registered live by an object, a file and a ClusterProfile, one of them
    /// killed, all taken off again, while b uses the one service by name.
    async fn three_api_servers_behind_one_gateway(bed) limit 420 {
        installed::ready(bed).await?;
        let inventory = tools::text("clusterprofiles.yaml")?;
        bed.cluster("a").apply(&inventory).await?;
        let started = Instant::now();
        let (c, d) = tokio::try_join!(Source::start(bed, "c", 3), Source::start(bed, "d", 4))?;
        bed.record("sources.api_servers_s", seconds(started.elapsed()));
        for cluster in bed.clusters() {
            for manifest in manifests(cluster.name()) {
                cluster.apply(&manifest.to_string()).await?;
            }
        }
        for cluster in bed.clusters() {
            cluster.wait("condition=Ready", &["pod", "--all", "-n", NAMESPACE], PATIENCE).await?;
        }
        installed::imported(bed.cluster("b"), NAMESPACE, "echo").await?;
        let mut outcome = run(bed, &c, &d).await;
        if outcome.is_err() {
            let status = statuses(bed.cluster("a")).await;
            let last = answers(bed.cluster("b")).await;
            outcome = outcome.with_context(|| format!("answers: {last:?}\nstatus: {}", status.unwrap_or_default().join("\n")));
        }
        for source in [c, d] {
            source.end(bed).await?;
        }
        for cluster in bed.clusters() {
            cluster.kubectl(&["delete", "namespace", NAMESPACE, "--wait=false"]).await.context("tidy up")?;
        }
        outcome
    }
}

//! What remote endpoints cost a real istiod: an entry for each of them, beside one for all of a version, which it takes for as
//! many by its weight.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use eastway_tests::kube::{Bed, Cluster, istio, pods, process};
use eastway_tests::{bed_tests, within};
use serde_json::{Value, json};

use crate::parts::client;

const NAMESPACE: &str = "e2e-size";
const PATIENCE: Duration = Duration::from_secs(120);
/// Endpoints in the other network.
const ENDPOINTS: usize = 5_000;
/// They are of so many versions.
const VERSIONS: usize = 3;
/// Changes of which the cost of one is the mean.
const CHANGES: usize = 20;
/// Objects of one request.
const BATCH: usize = 500;

fn entry(name: &str, place: usize, weight: usize) -> Value {
    let version = place % VERSIONS;
    let labels = json!({"app": "web", "version": format!("v{version}"), "security.istio.io/tlsMode": "istio"});
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "WorkloadEntry",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"e2e": "size"}},
        "spec": {
            "network": "far", "labels": labels, "serviceAccount": "web", "locality": "far", "weight": weight,
        },
    })
}

/// A service that is here too, the gateway of the other network, and a sidecar that is told of both.
fn base(cluster: &Cluster) -> Vec<Value> {
    let account = json!({
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "client", "namespace": NAMESPACE},
    });
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": NAMESPACE},
        "spec": {"selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
    });
    let listener = json!({
        "name": "cross-network", "port": 15444, "protocol": "TLS",
        "tls": {"mode": "Passthrough", "options": {"gateway.istio.io/listener-protocol": "auto-passthrough"}},
    });
    let gateway = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": {"name": "far", "namespace": NAMESPACE, "labels": {"topology.istio.io/network": "far"}},
        "spec": {
            "gatewayClassName": "istio-remote", "addresses": [{"type": "IPAddress", "value": "10.96.77.77"}],
            "listeners": [listener],
        },
    });
    let space = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
    vec![space, account, service, gateway, client(cluster, NAMESPACE, "client")]
}

/// What istiod says of itself: sums over all series of a name.
async fn metrics(cluster: &Cluster) -> Result<BTreeMap<String, f64>> {
    let asked = ["--silent", "--fail", "http://127.0.0.1:15014/metrics"];
    let page = process::output(&mut cluster.on_node("curl", &asked)?).await?;
    let mut sums = BTreeMap::new();
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap_or_default();
        let value: f64 = line.rsplit(' ').next().and_then(|value| value.parse().ok()).unwrap_or_default();
        *sums.entry(name.to_owned()).or_default() += value;
    }
    Ok(sums)
}

/// Endpoints of the service as a sidecar counts them: the weights of all that lead to the other network.
async fn weight_told(cluster: &Cluster) -> Result<u64> {
    let client = cluster.pod(NAMESPACE, "client").await?;
    let endpoints = client.endpoints(&format!("web.{NAMESPACE}.svc.cluster.local"), 80).await?;
    Ok(endpoints.values().map(|endpoint| endpoint.weight).sum())
}

async fn until_told(cluster: &Cluster, endpoints: usize) -> Result<()> {
    within(PATIENCE, format!("the sidecar knows {endpoints} endpoints"), async || {
        let told = weight_told(cluster).await?;
        ensure!(usize::try_from(told)? == endpoints, "it knows {told}");
        Ok(true)
    })
    .await
    .map(drop)
}

/// Writes `entries`, and measures what they cost istiod, and what it costs it that one of them changes.
async fn measure(bed: &Bed, name: &str, entries: &[Value]) -> Result<()> {
    let cluster = bed.cluster("a");
    istio::ready(bed).await?.restart(cluster).await?;
    until_told(cluster, 0).await?;
    let (before, began) = (metrics(cluster).await?, Instant::now());
    for batch in entries.chunks(BATCH) {
        cluster.apply(&pods::list(batch)).await?;
    }
    until_told(cluster, ENDPOINTS).await?;
    let (written, after) = (began.elapsed(), metrics(cluster).await?);
    let grown = |now: &BTreeMap<String, f64>, then: &BTreeMap<String, f64>, name: &str| {
        now.get(name).copied().unwrap_or_default() - then.get(name).copied().unwrap_or_default()
    };
    bed.record(&format!("size.{name}.objects"), entries.len());
    bed.record(&format!("size.{name}.written_s"), written.as_secs_f64());
    bed.record(&format!("size.{name}.cpu_s"), grown(&after, &before, "process_cpu_seconds_total"));
    let memory = grown(&after, &before, "process_resident_memory_bytes") / 1e6;
    bed.record(&format!("size.{name}.memory_mb"), memory);
    let began = Instant::now();
    for change in 1..=CHANGES {
        let mut entry = entries[0].clone();
        let weight = entry["spec"]["weight"].as_u64().context("a weight")? + u64::try_from(change)?;
        entry["spec"]["weight"] = json!(weight);
        cluster.apply(&entry.to_string()).await?;
        until_told(cluster, ENDPOINTS + change).await?;
    }
    let (took, changed) = (began.elapsed(), metrics(cluster).await?);
    let each = |name: &str| grown(&changed, &after, name) * 1e3 / CHANGES as f64;
    bed.record(&format!("size.{name}.change_cpu_ms"), each("process_cpu_seconds_total"));
    let pushes = grown(&changed, &after, "pilot_proxy_convergence_time_count");
    ensure!(pushes > 0.0, "nothing was pushed");
    let converged = grown(&changed, &after, "pilot_proxy_convergence_time_sum") * 1e3 / pushes;
    bed.record(&format!("size.{name}.convergence_ms"), converged);
    println!(
        "  {name}: {} objects, {memory:.0} MB, a change {:.1} ms of CPU, told within {converged:.1} ms of it, {took:.1?} in all",
        entries.len(),
        each("process_cpu_seconds_total"),
    );
    cluster.kubectl(&["delete", "workloadentries", "-n", NAMESPACE, "--all", "--wait=false"]).await?;
    until_told(cluster, 0).await
}

bed_tests! {
    /// 5,000 endpoints elsewhere, told one by one and in sum.
    async fn what_five_thousand_remote_endpoints_cost_istiod(bed) limit 900 ignored "a measurement" {
        istio::ready(bed).await?;
        let a = bed.cluster("a");
        a.apply(&pods::list(&base(a))).await?;
        a.wait("condition=Ready", &["pod", "-n", NAMESPACE, "--all"], PATIENCE).await?;
        let share = |place: usize| ENDPOINTS / VERSIONS + usize::from(place < ENDPOINTS % VERSIONS);
        let summary: Vec<Value> = (0..VERSIONS).map(|place| entry(&format!("sum-{place}"), place, share(place))).collect();
        measure(bed, "summary", &summary).await?;
        let single: Vec<Value> = (0..ENDPOINTS).map(|place| entry(&format!("one-{place}"), place, 1)).collect();
        measure(bed, "single", &single).await?;
        a.kubectl(&["delete", "namespace", NAMESPACE, "--wait=false"]).await.map(drop)
    }
}

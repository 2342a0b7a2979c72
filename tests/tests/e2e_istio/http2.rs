//! Gateways are replaced while sidecars have connections of HTTP/2 through them that are never idle: there is no moment in
//! which such a connection could end and cost nothing, and what docs/istio.md has for that.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use eastway_tests::kube::istio::joined;
use eastway_tests::kube::pods::Pod;
use eastway_tests::kube::{Bed, eastway as installed, pods, traffic};
use eastway_tests::load::{Load, Plan, Record};
use eastway_tests::{bed_tests, within};
use serde_json::{Value, json};

use crate::parts::{PORT, client, object, remove, service, slow_echo, space};
use crate::rolling::replace;

const NAMESPACE: &str = "e2e-http2";
const PATIENCE: Duration = Duration::from_secs(90);
/// Requests per second of each service, and how long an answer takes: ten are always under way.
const RATE: u32 = 100;
const AFTER: Duration = Duration::from_millis(100);
/// Services by what is done for them: nothing, connections end by themselves, requests are tried again.
const SERVICES: [(&str, &str); 3] = [
    ("plain", "plain.e2e-http2.svc.clusterset.local"),
    ("aged", "aged.e2e-http2.svc.clusterset.local"),
    ("tried", "tried.e2e-http2.svc.clusterset.local"),
];

/// As docs/istio.md has them. Sidecars speak HTTP/2 to each other, whatever their workloads do.
fn rules() -> Vec<Value> {
    const API: &str = "networking.istio.io/v1";
    let rule = |name: &str, host: &str| {
        let mut pool = json!({"http": {"h2UpgradePolicy": "UPGRADE"}});
        if name == "aged" {
            pool["tcp"] = json!({"maxConnectionDuration": "10s"});
        }
        let spec = json!({"host": host, "trafficPolicy": {"connectionPool": pool}});
        object(NAMESPACE, API, "DestinationRule", name, &spec)
    };
    let mut rules: Vec<Value> = SERVICES.iter().map(|(name, host)| rule(name, host)).collect();
    let (name, host) = SERVICES[2];
    let retries = json!({"attempts": 2, "retryOn": "reset,connect-failure,refused-stream"});
    let routes = json!([{"route": [{"destination": {"host": host}}], "retries": retries}]);
    rules.push(object(NAMESPACE, API, "VirtualService", name, &json!({"hosts": [host], "http": routes})));
    rules
}

async fn set(bed: &Bed) -> Result<Pod> {
    let (a, b) = (bed.cluster("a"), bed.cluster("b"));
    traffic::load_echo(b).await?;
    for cluster in [a, b] {
        let accounts = [&["client"], &SERVICES.map(|(name, _)| name)[..]].concat();
        cluster.apply(&pods::list(&space(bed, NAMESPACE, &accounts))).await?;
    }
    for (name, _) in SERVICES {
        let server = vec![slow_echo(b, NAMESPACE, name, "v1", AFTER)];
        b.apply(&pods::list(&[service(NAMESPACE, name), server].concat())).await?;
    }
    a.apply(&pods::list(&[rules(), vec![client(a, NAMESPACE, "client")]].concat())).await?;
    for cluster in [a, b] {
        cluster.wait("condition=Ready", &["pod", "-n", NAMESPACE, "--all"], PATIENCE).await?;
    }
    a.pod(NAMESPACE, "client").await
}

/// Starts asking a service, as soon as it answers.
async fn start(bed: &Bed, client: &Pod, name: &str, host: &'static str) -> Result<Load> {
    let address: IpAddr = installed::imported(bed.cluster("a"), NAMESPACE, name).await?.parse()?;
    let target = SocketAddr::new(address, PORT);
    within(PATIENCE, format!("an answer of {name}"), async || {
        let answer = client.get(target, host, "/1/100", &[]).await?;
        ensure!(answer.status == 200 && answer.head.contains("x-envoy-upstream-service-time"), "{answer:?}");
        Ok(true)
    })
    .await?;
    let plan = Plan { source: client.address, target, rate: RATE, size: 1_000 };
    Ok(Load::start(&client.place, plan.named(host)))
}

/// Many requests are under way on one connection.
async fn shared(client: &Pod, host: &str) -> Result<()> {
    within(PATIENCE, format!("requests to {host} share a connection"), async || {
        let endpoints = client.endpoints(host, PORT).await?;
        ensure!(endpoints.values().any(|one| one.connections == 1 && one.asked >= 5), "{endpoints:?}");
        Ok(true)
    })
    .await
    .map(drop)
}

bed_tests! {
    /// The gateways of the client's cloud, then those of the server's. Without a setting what is asked on a connection that is
    /// cut fails; with either setting of the document nothing does.
    async fn never_idle_connections_cost_nothing_with_the_settings_for_them(bed) limit 600 {
        joined::ready(bed).await?;
        let client = set(bed).await?;
        let mut loads = Vec::new();
        for (name, host) in SERVICES {
            loads.push((name, start(bed, &client, name, host).await?));
        }
        for (_, host) in SERVICES {
            shared(&client, host).await?;
        }
        let begun = Instant::now();
        for cluster in ["a", "b"].map(|name| bed.cluster(name)) {
            let took = replace(cluster).await?;
            bed.record(&format!("http2.{}.took_s", cluster.name()), took.as_secs_f64());
        }
        let mut results: Vec<Record> = Vec::new();
        for (name, load) in loads {
            let result = load.stop().await?;
            println!("  {name}: {} of {} requests failed", result.failures.len(), result.sent);
            traffic::record(bed, &format!("http2.{name}"), &result, begun.elapsed());
            results.push(result);
        }
        remove(bed, NAMESPACE).await?;
        let [plain, aged, tried] = &results[..] else { unreachable!("one for each service") };
        ensure!(!plain.failures.is_empty(), "without a setting nothing fails either: this shows nothing");
        aged.none_failed().context("maxConnectionDuration")?;
        tried.none_failed().context("retries")
    }
}

//! What objects say about themselves: a person with kubectl sees what was taken, what is wrong, and what it does not do.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use eastway_tests::kube::{Cluster, eastway as installed};
use eastway_tests::{bed_tests, within};
use serde_json::{Value, json};

const NAMESPACE: &str = "e2e-status";
const PATIENCE: Duration = Duration::from_secs(30);
/// How long it is watched that hardly anything is written.
const QUIET: Duration = Duration::from_secs(8);

/// Type to status, reason and message of every condition of an object, all of its present generation.
async fn conditions(cluster: &Cluster, what: &[&str]) -> Result<BTreeMap<String, (String, String, String)>> {
    let object = cluster.get(what).await?;
    let generation = &object["metadata"]["generation"];
    ensure!(object["status"]["observedGeneration"] == *generation, "the status is of another generation: {object:#}");
    let text = |it: &Value, key: &str| it[key].as_str().unwrap_or_default().to_owned();
    let all = object["status"]["conditions"].as_array().context("no conditions")?;
    ensure!(all.iter().all(|it| it["observedGeneration"] == *generation), "{all:?}");
    Ok(all.iter().map(|it| (text(it, "type"), (text(it, "status"), text(it, "reason"), text(it, "message")))).collect())
}

/// Waits until a condition has this status and reason, and returns its message.
async fn expect(cluster: &Cluster, what: &[&str], kind: &str, status: &str, reason: &str) -> Result<String> {
    let is = async || {
        let all = conditions(cluster, what).await;
        Ok(all.is_ok_and(|all| all.get(kind).is_some_and(|(it, why, _)| it == status && why == reason)))
    };
    let waited = within(PATIENCE, format!("{what:?}: {kind}={status}/{reason}"), is).await;
    let all = conditions(cluster, what).await?;
    waited.with_context(|| format!("{all:?}"))?;
    Ok(all[kind].2.clone())
}

fn policy(kind: &str, name: &str, spec: &Value) -> String {
    let metadata = json!({"name": name, "namespace": NAMESPACE});
    json!({"apiVersion": "eastway.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec}).to_string()
}

fn service(app_protocol: &str) -> String {
    let port = json!({"name": "main", "port": 80, "appProtocol": app_protocol});
    json!({
        "apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
            {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "cart", "namespace": NAMESPACE},
             "spec": {"selector": {"app": "cart"}, "ports": [port]}},
        ],
    })
    .to_string()
}

/// What a status was written with, by kubectl's word for its version.
async fn versions(cluster: &Cluster) -> Result<String> {
    let what = "peers.eastway.dev,trafficpolicies.eastway.dev,accesspolicies.eastway.dev";
    let path = "jsonpath={range .items[*]}{.kind}/{.metadata.name}@{.metadata.resourceVersion} {end}";
    cluster.kubectl(&["get", what, "-A", "-o", path]).await
}

bed_tests! {
    /// Traffic and access policies: accepted, refused with the reason, compared with what is there, and what needs L7.
    async fn policies_say_what_became_of_them(bed) {
        installed::ready(bed).await?;
        let a = bed.cluster("a");
        a.apply(&service("kubernetes.io/h2c")).await?;
        let half = |cluster: &str| json!({"cluster": cluster, "weight": 50});
        let split = json!({"service": "cart", "split": [half("local"), half("b")]});
        let cart = ["trafficpolicy", "cart", "-n", NAMESPACE];
        a.apply(&policy("TrafficPolicy", "cart", &split)).await?;
        expect(a, &cart, "Accepted", "True", "Accepted").await?;
        expect(a, &cart, "ResolvedRefs", "True", "Resolved").await?;
        let message = expect(a, &cart, "PerRequest", "False", "NeedsL7").await?;
        ensure!(message.contains("port 80") && message.contains("sidecar"), "{message}");

        // Two for one service: the second is refused, and says by which.
        a.apply(&policy("TrafficPolicy", "other", &json!({"service": "cart"}))).await?;
        let other = ["trafficpolicy", "other", "-n", NAMESPACE];
        let message = expect(a, &other, "Accepted", "False", "Invalid").await?;
        ensure!(message.contains("TrafficPolicy/e2e-status/cart"), "{message}");
        // The first one goes: the second is taken.
        a.kubectl(&["delete", "trafficpolicy", "cart", "-n", NAMESPACE]).await?;
        expect(a, &other, "Accepted", "True", "Accepted").await?;

        let spec = |cluster: &str, dry_run: bool| json!({"services": ["cart"], "dryRun": dry_run, "allow": [{"cluster": cluster}]});
        let access = ["accesspolicy", "cart", "-n", NAMESPACE];
        a.apply(&policy("AccessPolicy", "cart", &spec("mars", true))).await?;
        let message = expect(a, &access, "ResolvedRefs", "False", "NoSuchCluster").await?;
        ensure!(message.contains("mars"), "{message}");
        expect(a, &access, "Enforced", "False", "DryRun").await?;
        a.apply(&policy("AccessPolicy", "cart", &spec("b", false))).await?;
        expect(a, &access, "ResolvedRefs", "True", "Resolved").await?;
        expect(a, &access, "Enforced", "True", "Enforced").await?;
        a.kubectl(&["delete", "service", "cart", "-n", NAMESPACE]).await?;
        expect(a, &access, "ResolvedRefs", "False", "NoSuchService").await?;
        let table = a.kubectl(&["get", "accesspolicies", "-n", NAMESPACE]).await?;
        ensure!(table.contains("ACCEPTED") && table.contains("RESOLVED") && table.contains("ENFORCED"), "{table}");
        a.kubectl(&["delete", "namespace", NAMESPACE]).await.map(drop)
    }

    /// A Peer tells how its link is; and while nothing happens, nothing is written.
    async fn a_peer_says_how_its_link_is_and_is_written_seldom(bed) {
        installed::ready(bed).await?;
        for (cluster, peer) in [(bed.cluster("a"), "b"), (bed.cluster("b"), "a")] {
            let what = ["peer", peer];
            expect(cluster, &what, "Ready", "True", "Ready").await?;
            let told = async || {
                let link = &cluster.get(&what).await?["status"]["link"];
                let round_trip = link["roundTrip"].as_str().and_then(|text| text.strip_suffix("ms")?.parse::<f64>().ok());
                Ok(link["path"] == "udp" && link["since"].is_string() && round_trip.is_some_and(|ms| ms > 0.0))
            };
            within(PATIENCE, "path and round trip time of the link", told).await?;
            let table = cluster.kubectl(&["get", "peers", "-o", "wide"]).await?;
            ensure!(table.contains("RTT") && table.contains("PATH"), "{table}");
        }
        let a = bed.cluster("a");
        // Heartbeats come each second; a round trip time is worth one write a minute, if any.
        let (quiet, mut seen) = (Instant::now(), BTreeSet::new());
        while quiet.elapsed() < QUIET {
            seen.insert(versions(a).await?);
        }
        bed.record("status.writes_while_quiet", seen.len() - 1);
        ensure!(seen.len() <= 2, "written {} times within {QUIET:?}: {seen:?}", seen.len() - 1);

        // The cable of b: within seconds a says that b is down, and since when; and up again.
        bed.wan().set_cable("b", false).await?;
        let down = expect(a, &["peer", "b"], "Ready", "False", "Down").await;
        let since = a.get(&["peer", "b"]).await?["status"]["link"].clone();
        // Times are told in whole seconds, and links are up again within one.
        tokio::time::sleep(Duration::from_millis(1_100)).await;
        bed.wan().set_cable("b", true).await?;
        down?;
        expect(a, &["peer", "b"], "Ready", "True", "Ready").await?;
        expect(bed.cluster("b"), &["peer", "a"], "Ready", "True", "Ready").await?;
        let again = async || {
            let link = a.get(&["peer", "b"]).await?["status"]["link"].clone();
            Ok(link["path"] == "udp" && link["since"] != since["since"])
        };
        within(PATIENCE, "the link of today, not that of yesterday", again).await.map(drop)
    }
}

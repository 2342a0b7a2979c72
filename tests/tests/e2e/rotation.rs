//! The CA of a cluster gets a new key while links stand: in the Secret, in three steps, without a restart.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use eastway_tests::kube::eastway::{SYSTEM, eastway, exchanged};
use eastway_tests::kube::{Bed, Cluster, eastway as installed};
use eastway_tests::{bed_tests, within};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);
const CA: &str = "app.kubernetes.io/component=ca";

/// Names, restarts and start of pods: whether they are the same ones as before.
async fn pods(cluster: &Cluster, labels: &str) -> Result<Vec<(String, u64)>> {
    let list = cluster.get(&["pods", "-n", SYSTEM, "-l", labels]).await?;
    let pods = list["items"].as_array().context("a list")?.iter();
    let restarts = |pod: &Value| pod["status"]["containerStatuses"][0]["restartCount"].as_u64().unwrap_or_default();
    Ok(pods.map(|pod| (pod["metadata"]["name"].as_str().unwrap_or_default().to_owned(), restarts(pod))).collect())
}

/// Since when each link to a peer stands, as the gateways of a cluster see it.
async fn links(cluster: &Cluster, peer: &str) -> Result<Vec<(String, u64)>> {
    let mut links = Vec::new();
    for (pod, _) in pods(cluster, "app.kubernetes.io/component=gateway").await? {
        let said = cluster.exec(SYSTEM, &pod, &["eastway", "peers", peer, "-o", "json"]).await?;
        let said: Value = serde_json::from_str(&said).context("JSON")?;
        let all = said.pointer("/items/0/links").or_else(|| said.pointer("/links")).and_then(Value::as_array);
        for link in all.with_context(|| format!("no links in {said:#}"))? {
            let replica = link["replica"].as_str().unwrap_or_default();
            links.push((format!("{pod} {replica}"), link["since"].as_u64().context("a time")?));
        }
    }
    links.sort();
    Ok(links)
}

/// Gives `a` anew to `b`: the pins that it has now.
async fn reintroduce(bed: &Bed, pins: usize) -> Result<()> {
    let printed = eastway(bed.cluster("a"), &["peer", "export"]).await?;
    ensure!(printed.matches("sha256:").count() == pins, "{pins} pins in\n{printed}");
    bed.cluster("b").apply(&exchanged(&printed)?).await.map(drop)
}

/// Steps of a rotation, by a person with the rights to the Secret.
async fn rotate(cluster: &Cluster, step: &[&str]) -> Result<String> {
    let kubeconfig = cluster.pki().admin();
    let of_cluster = ["ca", "rotate", "--kubernetes", "--kubeconfig", kubeconfig.to_str().context("a path in UTF-8")?];
    eastway(cluster, &[&of_cluster, step].concat()).await
}

/// What the ca role says that it issues with, now and then.
async fn issues_with(cluster: &Cluster, pin: &str) -> Result<()> {
    // The kubelet looks at Secrets once a minute, and whenever a pod changes.
    cluster
        .kubectl(&["annotate", "pods", "-n", SYSTEM, "-l", CA, "--overwrite", &format!("e2e/pin={}", &pin[7..15])])
        .await?;
    let reloaded = async || Ok(cluster.kubectl(&["logs", "-n", SYSTEM, "-l", CA, "--tail=200"]).await?.contains(pin));
    within(PATIENCE, format!("the ca role issues with {pin}"), reloaded).await.map(drop)
}

fn pin_after<'a>(text: &'a str, what: &str) -> Result<&'a str> {
    let line = text.lines().find_map(|line| line.strip_prefix(what)).with_context(|| format!("{what} in {text}"))?;
    line.split_ascii_whitespace().next().context("a pin")
}

bed_tests! {
    /// Begin, activate, finish: the ca pod is the same one, links stand all the while, and a gateway that comes later is
    /// certified by the new key and linked. The controller takes gateways of the new key.
    async fn a_ca_gets_a_new_key_and_links_stand(bed) limit 240 {
        installed::ready(bed).await?;
        let (a, b) = (bed.cluster("a"), bed.cluster("b"));
        // Where both sides dial, links that are too many go after a while.
        within(PATIENCE, "one link between any two gateways", async || {
            let links = links(a, "b").await?;
            let mut ends: Vec<_> = links.iter().map(|(ends, _)| ends).collect();
            ends.dedup();
            Ok(ends.len() == 4 && links.len() == 4)
        })
        .await?;
        let (authority, before) = (pods(a, CA).await?, links(a, "b").await?);

        let said = rotate(a, &["begin"]).await?;
        let new = pin_after(&said, "next CA    ")?.to_owned();
        let again = rotate(a, &["begin"]).await.expect_err("begun twice").to_string();
        ensure!(again.contains("Secret eastway-system/cacerts"), "{again}");
        reintroduce(bed, 2).await?;
        b.wait("condition=Ready", &["peers.eastway.dev", "--all"], PATIENCE).await?;

        let said = rotate(a, &["activate"]).await?;
        ensure!(pin_after(&said, "issuing CA ")? == new, "{said}");
        issues_with(a, &new).await?;
        ensure!(pods(a, CA).await? == authority, "the ca role was started anew");
        ensure!(links(a, "b").await? == before, "links did not stand: {before:?} became {:?}", links(a, "b").await?);

        // Gateways that come now are certified by the new key, and b takes them.
        a.kubectl(&["rollout", "restart", "deploy/eastway-gateway", "-n", SYSTEM]).await?;
        a.rollout("deploy/eastway-gateway", SYSTEM, Duration::from_secs(150)).await?;
        for cluster in bed.clusters() {
            cluster.wait("condition=Ready", &["peers.eastway.dev", "--all"], PATIENCE).await?;
        }
        rotate(a, &["finish", "--force"]).await?;
        reintroduce(bed, 1).await?;
        let linked = async || Ok(!links(a, "b").await?.is_empty());
        within(PATIENCE, "links by the new key alone", linked).await?;
        b.wait("condition=Ready", &["peers.eastway.dev", "--all"], PATIENCE).await?;

        // The controller may have slept through all of it; it takes gateways that come now in any case.
        let connected = async || {
            let said = a.kubectl(&["logs", "-n", SYSTEM, "deploy/eastway-controller"]).await?;
            Ok::<_, anyhow::Error>(said.matches("feed: connected").count())
        };
        let before = connected().await?;
        a.kubectl(&["rollout", "restart", "deploy/eastway-gateway", "-n", SYSTEM]).await?;
        a.rollout("deploy/eastway-gateway", SYSTEM, Duration::from_secs(150)).await?;
        let again = async || Ok(connected().await? > before);
        within(PATIENCE, "the controller takes the gateways of the new key", again).await?;
        let linked = async || Ok(!links(a, "b").await?.is_empty());
        within(PATIENCE, "links again", linked).await.map(drop)
    }
}

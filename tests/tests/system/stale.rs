//! What is held of a peer is never said to be newer than it is: F17, F25, I8.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use eastway_tests::mesh::{Mesh, MeshBuilder, NAMESPACE};
use eastway_tests::servers::Habit;
use eastway_tests::{lab_test, within};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(5);

/// One peer as `eastway peers -o json` of cluster `a` shows it.
async fn peer(mesh: &Mesh, name: &str) -> Result<Value> {
    let (exit, output) = mesh.cloud("a").command(0, &["peers", "-o", "json"]).await?;
    ensure!(exit == Some(0), "eastway peers: {exit:?}: {output}");
    let answer: Value = serde_json::from_str(&output).with_context(|| output.clone())?;
    let mut peers = answer["items"].as_array().into_iter().flatten();
    Ok(peers.find(|peer| peer["name"] == name).with_context(|| format!("no peer {name}: {output}"))?.clone())
}

/// `eastway_federation_lag_seconds` of peer `b` at `a`; none if there is no such series.
async fn lag(mesh: &Mesh) -> Result<Option<f64>> {
    let metrics = mesh.cloud("a").metrics(0).await?;
    let mut lines = metrics.lines().filter(|line| line.starts_with("eastway_federation_lag_seconds{peer=\"b\"}"));
    Ok(lines.next().and_then(|line| line.split_whitespace().nth(1)?.parse().ok()))
}

lab_test! {
    /// F17: services that come from the disk are called as old as they are until the peer confirms them.
    async fn f17_services_from_disk_are_said_to_be_old_until_the_peer_is_heard() {
        let mut mesh = MeshBuilder::of(&["a", "b"]).start().await?;
        mesh.serve("b", "web", 11, Habit::Http).await?;
        let target = mesh.target("a", "web").await?;
        mesh.wait_answer("a", target, "b-11", PATIENCE).await?;
        within(PATIENCE, "b is current", async || Ok(lag(&mesh).await?.is_some_and(|lag| lag < 5.0))).await?;
        let current = peer(&mesh, "b").await?;
        ensure!(current["staleMs"].is_null() && current["state"] == "up", "{current}");
        ensure!(mesh.cloud("a").status(0).await?.snapshot.restored_age_ms.is_none());

        let heard = Instant::now();
        mesh.cloud_mut("b").kill_gateway(0).await?;
        mesh.cloud_mut("a").take_gateway(0)?.terminate(Duration::from_secs(10)).await?;
        mesh.cloud_mut("a").start_gateway(0).await?;
        mesh.cloud_mut("a").wait_ready(0).await?;
        within(PATIENCE, "a serves from disk", async || Ok(mesh.imports("a", "b").await? == ["web"])).await?;
        let most = |millis: f64| millis <= heard.elapsed().as_secs_f64() * 1e3 + 2e3;
        within(PATIENCE, "2 s later", async || Ok(heard.elapsed() > Duration::from_secs(2))).await?;
        let restored = mesh.cloud("a").status(0).await?.snapshot.restored_age_ms.context("not said to be from disk")?;
        ensure!(restored >= 1_500 && most(restored as f64), "{restored} ms");
        let seen = lag(&mesh).await?.context("no lag")?;
        ensure!(seen >= 1.5 && most(seen * 1e3), "{seen} s");
        let away = peer(&mesh, "b").await?;
        ensure!(away["state"] == "down" && away["staleMs"].as_f64().is_some_and(|stale| stale >= 1_500.0 && most(stale)), "{away}");
        let (_, table) = mesh.cloud("a").command(0, &["peers"]).await?;
        ensure!(table.contains("services as of "), "{table}");
        let (_, status) = mesh.cloud("a").command(0, &["status"]).await?;
        ensure!(status.contains("imports from disk, "), "{status}");

        mesh.cloud_mut("b").start_gateway(0).await?;
        mesh.wait_answer("a", target, "b-11", Duration::from_secs(10)).await?;
        within(PATIENCE, "confirmed", async || {
            let status = mesh.cloud("a").status(0).await?;
            Ok(status.snapshot.restored_age_ms.is_none() && lag(&mesh).await?.is_some_and(|lag| lag < 5.0))
        }).await?;
        ensure!(peer(&mesh, "b").await?["staleMs"].is_null());
        mesh.stop().await
    }

    /// I8: records that are refused are counted and shown, and what is good comes in beside them.
    async fn i8_refused_records_are_shown_beside_the_good_ones() {
        let only_web = json!({"spec": {"import": [{"namespace": NAMESPACE, "services": ["web"]}]}});
        let mut mesh = MeshBuilder::of(&["a", "b"]).peer("a", "b", &only_web).start().await?;
        for (service, pod) in [("one", 11), ("two", 12), ("web", 13)] {
            mesh.serve("b", service, pod, Habit::Http).await?;
        }
        within(PATIENCE, "web is imported", async || Ok(mesh.imports("a", "b").await? == ["web"])).await?;
        within(PATIENCE, "two records were refused", async || {
            Ok(peer(&mesh, "b").await?["rejectedRecords"].as_u64().is_some_and(|count| count >= 2))
        }).await?;
        let metrics = mesh.cloud("a").metrics(0).await?;
        let counted = metrics.lines().any(|line| line.starts_with("eastway_imports_rejected_total{") && line.contains("not_allowed"));
        ensure!(counted, "{metrics}");
        let (_, table) = mesh.cloud("a").command(0, &["peers"]).await?;
        ensure!(table.contains("records refused"), "{table}");
        mesh.stop().await
    }
}

//! Files that change under a running gateway: F31, F32, F36.

use std::time::{Duration, Instant};

use anyhow::ensure;
use eastway_tests::lab::files;
use eastway_tests::mesh::{Mesh, MeshBuilder, NAMESPACE};
use eastway_tests::servers::Habit;
use eastway_tests::{lab_test, within};
use serde_json::json;

/// Sends everything to one version of `web`.
fn only(version: &str) -> serde_json::Value {
    files::traffic_policy(NAMESPACE, "web", &json!({"split": [{"weight": 1, "subset": {"version": version}}]}))
}

/// The value of a gauge without labels.
async fn gauge(mesh: &Mesh, cloud: &str, name: &str) -> anyhow::Result<f64> {
    let metrics = mesh.cloud(cloud).metrics(0).await?;
    let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
    value.ok_or_else(|| anyhow::anyhow!("no {name} in the metrics"))
}

lab_test! {
    /// F31: files rewritten 17 times a second break no stream, and the last version holds within 1 s.
    async fn f31_reload_storm_drops_nothing_and_ends_right() {
        let mut mesh = MeshBuilder::of(&["a", "b"]).start().await?;
        mesh.serve("b", "web", 11, Habit::Http).await?;
        mesh.serve("b", "web", 12, Habit::Http).await?;
        mesh.change_services("b", |services| {
            services[0].endpoints[1].labels.insert("version".to_owned(), "v2".to_owned());
        })?;
        let target = mesh.target("a", "web").await?;
        mesh.wait_answer("a", target, "b-11", Duration::from_secs(5)).await?;
        let load = mesh.load("a", target, 200);
        let peer = std::fs::read(mesh.cloud("a").peer_file("b"))?;
        let mut clock = tokio::time::interval(Duration::from_secs(60) / 1000);
        let begun = Instant::now();
        let mut writes = 0;
        while begun.elapsed() < Duration::from_secs(8) {
            clock.tick().await;
            // Every kind of file that is watched, with and without a change of contents.
            mesh.cloud("a").write_policy("web", &only(if writes % 2 == 0 { "v1" } else { "v2" }))?;
            files::replace(&mesh.cloud("a").peer_file("b"), &peer)?;
            files::write(&mesh.cloud("b").main_file(0), &mesh.cloud("b").main_value(0)?)?;
            mesh.change_services("b", |_| {})?;
            writes += 1;
        }
        mesh.cloud("a").write_policy("web", &only("v2"))?;
        let settled = within(Duration::from_secs(1), "the last policy holds", async || {
            for _ in 0..10 {
                if mesh.ask("a", target).await? != "b-12" {
                    return Ok(false);
                }
            }
            Ok(true)
        }).await?;
        println!("{writes} rounds of writes, the last one held after {settled:?}");
        load.stop().await?.none_failed()?;
        mesh.stop().await
    }

    /// F32: a broken file changes nothing but a metric and a log line, and mending it ends that.
    async fn f32_bad_reload_keeps_the_last_good_files() {
        let mut mesh = MeshBuilder::of(&["a", "b"]).start().await?;
        mesh.serve("b", "web", 11, Habit::Http).await?;
        let target = mesh.target("a", "web").await?;
        mesh.wait_answer("a", target, "b-11", Duration::from_secs(5)).await?;
        within(Duration::from_secs(5), "the first load counts as good", async || {
            Ok(gauge(&mesh, "a", "eastway_config_last_reload_success").await? == 1.0)
        }).await?;
        let load = mesh.load("a", target, 200);
        let path = mesh.cloud("a").peer_file("b");
        let good = std::fs::read(&path)?;
        for bad in ["kind: Peer\n  metadata: [", "apiVersion: eastway.dev/v1alpha1\nkind: Peer\nmetadata: {name: b}\nspec: {adresses: []}\n"] {
            files::replace(&path, bad.as_bytes())?;
            within(Duration::from_secs(5), "the refusal is counted", async || {
                Ok(gauge(&mesh, "a", "eastway_config_last_reload_success").await? == 0.0)
            }).await?;
            ensure!(mesh.cloud("a").is_up(0, "b").await?, "the peer is gone");
            ensure!(!mesh.cloud("a").status(0).await?.config.errors.is_empty(), "status says nothing");
            files::replace(&path, &good)?;
            within(Duration::from_secs(5), "the good file counts", async || {
                Ok(gauge(&mesh, "a", "eastway_config_last_reload_success").await? == 1.0)
            }).await?;
        }
        load.stop().await?.none_failed()?;
        mesh.stop().await
    }

    /// F36: a second cluster that goes by the name of the first is refused; the first does not notice.
    async fn f36_second_cluster_of_one_name_is_refused() {
        let twin = json!({"cluster": "b", "trust": {"domain": files::trust_domain("b")}});
        let mut mesh = MeshBuilder::of(&["a", "b", "twin"])
            .settings("twin", &twin)
            .strangers("b", "twin")
            .strangers("a", "twin")
            .prepare()
            .await?;
        mesh.serve("b", "web", 11, Habit::Http).await?;
        let (a, twin) = (mesh.cloud("a"), mesh.cloud("twin"));
        twin.write_peer("a", &files::peer("a", &a.advertised(), a.pin(), &[NAMESPACE]))?;
        mesh.serve("twin", "web", 12, Habit::Http).await?;
        for cloud in ["a", "b"] {
            mesh.cloud_mut(cloud).start_gateway(0).await?;
            mesh.cloud_mut(cloud).wait_ready(0).await?;
        }
        let target = mesh.target("a", "web").await?;
        mesh.wait_answer("a", target, "b-11", Duration::from_secs(5)).await?;
        // Both have dialled; one of the two links is given up. At first there may be b's alone.
        within(Duration::from_secs(20), "the link that a dialled is left", async || {
            let links = mesh.peer("a", "b").await?.links;
            Ok(links.len() == 1 && links.iter().all(|link| link.dialled && link.transport == "quic"))
        }).await?;
        let before = mesh.peer("a", "b").await?;
        let load = mesh.load("a", target, 200);
        mesh.start_gateways().await?;
        within(Duration::from_secs(10), "the refusal is logged", async || {
            Ok(mesh.cloud("a").gateway(0)?.log_tail(1 << 20).contains("PEER_IDENTITY_CONFLICT"))
        }).await?;
        ensure!(!mesh.cloud("twin").is_up(0, "a").await?, "the second one got in");
        let after = mesh.peer("a", "b").await?;
        ensure!(after.links.len() == 1 && after.links[0].since == before.links[0].since, "the first one's link changed");
        let record = load.stop().await?;
        record.none_failed()?;
        ensure!(record.by_server.keys().all(|server| server == "b-11"), "{:?}", record.by_server);
        mesh.stop().await
    }
}

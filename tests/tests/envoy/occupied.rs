//! A sidecar whose place is somebody else's: it says so, is not ready, and takes the place once that is free.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use eastway_tests::lab::http;
use eastway_tests::mesh::MeshBuilder;
use eastway_tests::servers::{Habit, Server};
use eastway_tests::{lab_test, load, within};
use serde_json::json;
use tokio::net::TcpListener;

use crate::mutual::{INBOUND, PATIENCE, POD, settings, start_sidecar};

/// How soon a place that became free is taken.
const SOON: Duration = Duration::from_secs(5);
const HEALTH: u16 = 15021;

fn said(log: &Path, words: &str) -> Result<bool> {
    Ok(fs::read_to_string(log)?.contains(words))
}

lab_test! {
    async fn it_is_not_ready_before_its_place_is_free_and_takes_it_then() {
        let inside = "10.244.0.1".parse()?;
        let mut mesh = MeshBuilder::of(&["a"]).settings("a", &settings(inside, &["servers".to_owned()])).prepare().await?;
        mesh.start_gateways().await?;
        let (pods, pod) = (mesh.cloud("a").net().pods().clone(), mesh.cloud("a").net().pod(POD));
        let (app, free, taken) = (SocketAddr::new(pod, 8080), SocketAddr::new(pod, INBOUND), SocketAddr::new(pod, INBOUND + 1));
        let _server = Server::start(&pods, app, "web", Habit::Mirror).await?;
        let other = pods.run(async move { Ok(TcpListener::bind(taken).await?) }).await?;
        let place = |listen: SocketAddr| json!({"listen": listen, "app": app, "protocol": "http", "mode": "permissive"});
        let health = SocketAddr::new(pod, HEALTH);
        let more = json!({"inbound": [place(free), place(taken)], "outbound": false, "health": health});
        start_sidecar(&mut mesh, "1.36.2", "a", "servers", &more).await?;
        let log = mesh.cloud("a").folder().join("servers.log");
        let wanted = format!("Envoy cannot listen at {taken} (inbound[1].listen): Address already in use");
        within(PATIENCE, "it says what is wrong", async || said(&log, &wanted)).await?;
        ensure!(http::status(&pods, health, "/readyz").await? == 503, "it is ready");
        ensure!(!said(&log, "Envoy is ready")?);
        // What can be served is.
        ensure!(http::status(&pods, free, "/").await? == 200);
        // A client that stays does so: Envoy is not started anew.
        let kept = pods.run(async move { Ok(load::connect(pod, free).await?) }).await?;
        drop(other);
        let freed = std::time::Instant::now();
        within(PATIENCE, "it serves there too", async || Ok(http::status(&pods, taken, "/").await? == 200)).await?;
        ensure!(freed.elapsed() < SOON, "after {:?}", freed.elapsed());
        within(PATIENCE, "it is ready", async || Ok(http::status(&pods, health, "/readyz").await? == 200)).await?;
        within(PATIENCE, "the log says so", async || said(&log, "Envoy is ready")).await?;
        ensure!(fs::read_to_string(&log)?.matches("Envoy started").count() == 1);
        let rest = kept.try_read(&mut [0]);
        ensure!(rest.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock), "{rest:?}");
        mesh.stop().await
    }
}

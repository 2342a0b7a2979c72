//! What is done with each Envoy.

use std::cell::Cell;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use eastway_tests::within;
use nix::sys::signal::{Signal, kill};
use serde_json::json;

use crate::gateway::IMPORT;
use crate::host::{Conversation, Host, PATIENCE, envoys, mode};

const WEB: &str = "spiffe://onprem.example/ns/shop/sa/web";

pub(crate) async fn x1_it_comes_up_with_what_the_gateway_says_and_the_workloads_certificate(
    version: &'static str,
) -> Result<()> {
    let host = Host::start(version).await?;
    let begun = Instant::now();
    let sidecar = host.sidecar(&json!({}))?;
    ensure!(sidecar.caller().await? == WEB, "{}", sidecar.log());
    println!("Envoy {version}: first connection {:?} after the start", begun.elapsed());
    let (caller, node) = host.gateway.seen(|seen| seen.streams.first().cloned()).context("no stream")?;
    ensure!(caller == WEB, "{caller}");
    ensure!((node.id.as_str(), node.cluster.as_str()) == ("sidecar~web-1.shop", "web.shop"), "{node:?}");
    let fields = node.metadata.context("no metadata")?.fields;
    ensure!(["NAMESPACE", "SERVICE_ACCOUNT", "LISTEN"].iter().all(|key| fields.contains_key(*key)), "{fields:?}");
    ensure!(host.gateway.seen(|seen| seen.refused.is_empty()));
    for (file, wanted) in
        [("state", 0o700), ("state/agent.sock", 0o600), ("state/envoy.json", 0o600), ("state/envoy-admin.sock", 0o600)]
    {
        ensure!(mode(&host.path(file))? == wanted, "{file}");
    }
    within(PATIENCE, "the log says so", async || Ok(sidecar.log().contains("Envoy is ready"))).await?;
    sidecar.stop().await?;
    ensure!(std::fs::read_dir(host.path("state"))?.count() == 0, "nothing is left behind");
    Ok(())
}

pub(crate) async fn f27_a_rotated_ca_costs_no_connection(version: &'static str) -> Result<()> {
    let host = Host::start(version).await?;
    let sidecar = host.sidecar(&json!({}))?;
    sidecar.caller().await?;
    let mut old = Conversation::start().await?;
    host.rotate("begin").await?;
    // All of it within a conversation: new connections go on while everybody renews in his own time.
    let renewals = |log: &str| log.matches("certificate renewed").count();
    let before = renewals(&sidecar.log());
    host.rotate("activate").await?;
    let connections = Cell::new(0);
    within(PATIENCE, "the sidecar has a certificate of the new CA", async || {
        ensure!(Conversation::start().await.is_ok_and(|it| it.caller == WEB), "refused:\n{}", sidecar.log());
        connections.set(connections.get() + 1);
        Ok(renewals(&sidecar.log()) > before)
    })
    .await?;
    Conversation::start().await?.echo("with the new one").await?;
    old.echo("still here").await?;
    println!("Envoy {version}: {} connections while the CA was rotated", connections.get());
    sidecar.stop().await
}

pub(crate) async fn a_killed_envoy_is_started_again(version: &'static str) -> Result<()> {
    let host = Host::start(version).await?;
    let sidecar = host.sidecar(&json!({}))?;
    sidecar.caller().await?;
    let [first] = envoys()[..] else { anyhow::bail!("{:?}", envoys()) };
    kill(first, Signal::SIGKILL)?;
    within(PATIENCE, "another Envoy", async || Ok(envoys().iter().any(|pid| *pid != first))).await?;
    ensure!(sidecar.caller().await? == WEB);
    ensure!(sidecar.log().contains("Envoy ended by itself"), "{}", sidecar.log());
    sidecar.stop().await
}

pub(crate) async fn sigterm_lets_connections_finish_and_cuts_the_rest(version: &'static str) -> Result<()> {
    let host = Host::start(version).await?;
    let mut sidecar = host.sidecar(&json!({"drain": "60s"}))?;
    sidecar.caller().await?;
    let mut open = Conversation::start().await?;
    sidecar.signal(Signal::SIGTERM)?;
    within(PATIENCE, "no new connections", async || Ok(tokio::net::TcpStream::connect(IMPORT).await.is_err())).await?;
    open.echo("still here").await?;
    drop(open);
    let status = sidecar.ended().await?;
    ensure!(status.success() && envoys().is_empty(), "{status}:\n{}", sidecar.log());

    let sidecar = host.sidecar(&json!({"drain": "1s"}))?;
    sidecar.caller().await?;
    let mut open = Conversation::start().await?;
    sidecar.stop().await?;
    open.closed().await
}

pub(crate) async fn a_killed_sidecar_takes_envoy_along_and_the_next_one_goes_on(version: &'static str) -> Result<()> {
    let host = Host::start(version).await?;
    let mut sidecar = host.sidecar(&json!({}))?;
    sidecar.caller().await?;
    sidecar.signal(Signal::SIGKILL)?;
    sidecar.ended().await?;
    within(Duration::from_secs(2), "Envoy is gone too", async || Ok(envoys().is_empty())).await?;
    ensure!(host.path("state/agent.sock").exists(), "as after a crash");
    let next = host.sidecar(&json!({}))?;
    ensure!(next.caller().await? == WEB, "{}", next.log());
    next.stop().await
}

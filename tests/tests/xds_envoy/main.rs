//! Real Envoys that take their whole configuration from our server, and refuse nothing of it.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a panic is a verdict"
)]

mod patterns;
mod proxy;
mod soak;
mod world;

use std::time::Duration;

use anyhow::{Result, ensure};
use eastway_model::PeerChange;
use eastway_tests::within;
use proxy::{Envoy, names};
use world::{World, named_port};

/// Ready, and each change applied: many times what it takes.
const PATIENCE: Duration = Duration::from_secs(20);
/// Less than a new cluster waits for endpoints that do not come, which is 15 s.
const WARMING: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn envoy_1_40_takes_everything() -> Result<()> {
    takes_everything("envoy-1.40.0", 18_040).await
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_1_36_takes_everything() -> Result<()> {
    takes_everything("envoy-1.36.2", 18_036).await
}

async fn takes_everything(program: &str, port: u16) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut world = World::start(folder.path())?;
    world.export("shop/web", &[named_port(port, Some("http")), named_port(port + 100, Some("grpc"))]);
    world.export("shop/db", &[named_port(port + 200, None)]);
    world.address("shop/web", "127.64.0.1");
    world.address("shop/db", "127.64.0.2");
    world.publish();
    let envoy = Envoy::start(program, folder.path())?;
    world.until_accepted(&envoy, "at the start").await?;
    let clusters = names(&envoy.dump().await?, "dynamic_active_clusters", |one| &one["cluster"]["name"]);
    let web = format!("outbound|{port}||web.shop.svc.clusterset.local");
    let db = format!("outbound|{}||db.shop.svc.clusterset.local", port + 200);
    let grpc = format!("outbound|{}||web.shop.svc.clusterset.local", port + 100);
    assert_eq!(clusters, ["eastway-gateway", web.as_str(), grpc.as_str(), db.as_str()]);
    let wanted = [
        format!("127.64.0.1:{port}"),
        format!("127.64.0.1:{}", port + 100),
        format!("127.64.0.2:{}", port + 200),
        "hbone".to_owned(),
    ];
    // A listener of requests is taken before it has its routes.
    within(PATIENCE, "all listen", async || Ok(envoy.listening().await? == wanted)).await?;
    let routes = names(&envoy.dump().await?, "dynamic_route_configs", |one| &one["route_config"]["name"]);
    assert_eq!(routes, [web.as_str(), grpc.as_str()]);
    assert_eq!(envoy.hosts(&web).await?, 1, "the service as a whole");

    // One host per remote endpoint, and each change of them.
    world.endpoints("shop/web", &["web-1", "web-2", "web-3"]);
    world.publish();
    within(PATIENCE, "one host per endpoint", async || Ok(envoy.hosts(&web).await? == 3)).await?;
    world.remove_endpoint("shop/web", "web-2");
    world.publish();
    within(PATIENCE, "the endpoint is gone", async || Ok(envoy.hosts(&web).await? == 2)).await?;

    // A changed cluster (its port speaks another protocol now) is live with its endpoints at once.
    world.export("shop/web", &[named_port(port, Some("http2")), named_port(port + 100, Some("grpc"))]);
    world.publish();
    let took = world.until_accepted(&envoy, "with a changed cluster").await?;
    ensure!(took < WARMING, "it waited for endpoints that did not follow: {took:?}");
    assert_eq!(envoy.hosts(&web).await?, 2);

    // What is gone goes, and the connection to us may break meanwhile.
    world.peer(PeerChange::Remove("shop/db".parse()?));
    world.publish();
    within(PATIENCE, "the cluster is gone", async || Ok(!envoy.has_cluster(&db).await?)).await?;
    world.until_accepted(&envoy, "after a removal").await?;
    let listening = envoy.listening().await?;
    assert!(!listening.iter().any(|name| name.starts_with("127.64.0.2")), "{listening:?}");

    world.reconnect(folder.path())?;
    world.endpoints("shop/web", &["web-4"]);
    world.publish();
    within(PATIENCE, "it goes on after a reconnect", async || Ok(envoy.hosts(&web).await? == 3)).await?;
    world.until_accepted(&envoy, "after a reconnect").await?;
    envoy.assert_nothing_rejected().await?;
    ensure!(world.problems.lock().unwrap().is_empty(), "{:?}", world.problems.lock().unwrap());
    Ok(())
}

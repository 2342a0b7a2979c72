//! Thousands of changes while requests go through: none is refused, and no request fails.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Result, ensure};
use eastway_model::PeerChange;
use eastway_tests::lab::place::Place;
use eastway_tests::load::{Load, Plan};
use eastway_tests::servers::{Habit, Server};

use crate::proxy::Envoy;
use crate::world::{World, named_port};

/// Responses that the proxy is sent.
const PUSHES: u64 = 10_000;
/// Requests per second meanwhile.
const RATE: u32 = 500;
/// The service that is asked, and its address here.
const ASKED: (&str, &str) = ("shop/asked", "127.64.0.9");
const PORT: u16 = 18_240;

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_pushes_cost_no_request() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let place = Place::host("soak").await?;
    let mut pods = Vec::new();
    for (number, name) in ["pod-1", "pod-2", "pod-3"].into_iter().enumerate() {
        let address = SocketAddr::new("127.0.0.1".parse()?, PORT + 1 + u16::try_from(number)?);
        pods.push(Server::start(&place, address, name, Habit::Http).await?);
    }
    let mut world = World::start(folder.path())?;
    world.address(ASKED.0, ASKED.1);
    world.address("shop/web", "127.64.0.10");
    world.address("shop/comes-and-goes", "127.64.0.11");
    world.export("shop/web", &[named_port(PORT, Some("http"))]);
    change(&mut world, &pods, 0)?;
    world.publish();
    let envoy = Envoy::start("envoy-1.40.0", folder.path())?;
    world.until_accepted(&envoy, "at the start").await?;

    let target = SocketAddr::new(ASKED.1.parse()?, PORT);
    let load = Load::start(&place, Plan { source: "127.0.0.1".parse()?, target, rate: RATE, size: 1_000 });
    let (began, before) = (Instant::now(), world.pushed.load(Ordering::Relaxed));
    let mut turn = 0;
    while world.pushed.load(Ordering::Relaxed) < before + PUSHES {
        turn += 1;
        change(&mut world, &pods, turn)?;
        world.publish();
        world.until_answered().await?;
    }
    let record = load.stop().await?;
    println!(
        "{turn} changes, {PUSHES} pushes in {:?}, {} requests, p99 {:?}",
        began.elapsed(),
        record.sent,
        record.p99()
    );
    ensure!(world.problems.lock().unwrap().is_empty(), "{:?}", world.problems.lock().unwrap());
    envoy.assert_nothing_rejected().await?;
    ensure!(record.by_server.len() == pods.len(), "not all pods were asked: {:?}", record.by_server);
    record.none_failed()
}

/// What changes in a mesh that is alive: endpoints most of all, now and then a service.
fn change(world: &mut World, pods: &[Server], turn: usize) -> Result<()> {
    match turn % 5 {
        // One of the pods that are asked takes more or less, and another goes or comes.
        0 => {
            let here =
                pods.iter().enumerate().filter(|(number, _)| turn == 0 || *number != turn / 5 % (pods.len() + 1));
            let weight = 100 + u32::try_from(turn / 5 % 7)?;
            let endpoints: Vec<_> = here.map(|(_, pod)| (pod.address, weight)).collect();
            world.local(ASKED.0, &named_port(PORT, Some("http")), &endpoints);
        }
        // A pod of the other cluster comes, and goes.
        1 => world.endpoints("shop/web", &["web-1", &format!("web-{}", turn % 9 + 2)]),
        2 => world.remove_endpoint("shop/web", &format!("web-{}", (turn - 1) % 9 + 2)),
        // A service that nobody asks comes, with a listener, a route and a cluster, and goes.
        3 => world.export("shop/comes-and-goes", &[named_port(PORT, Some(["http", "grpc"][turn / 5 % 2]))]),
        _ => world.peer(PeerChange::Remove("shop/comes-and-goes".parse()?)),
    }
    Ok(())
}

//! A peer behind two providers: two addresses on two networks, one of each family, that lead to one gateway.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use eastway_tests::lab::files;
use eastway_tests::mesh::{Mesh, MeshBuilder, NAMESPACE};
use eastway_tests::relay::{Conditions, Relay};
use eastway_tests::servers::Habit;
use eastway_tests::{lab_test, load, within};
use serde_json::json;

use crate::restart::Conversation;

const SOON: Duration = Duration::from_secs(20);

/// b behind two providers, and a, which dials it: by the first's IPv4 in 40 ms there and back, by the second's IPv6 in 10 ms.
struct Uplinks {
    mesh: Mesh,
    first: Relay,
    second: Relay,
}

fn delayed(millis: u64) -> Conditions {
    Conditions { delay: Duration::from_millis(millis), ..Conditions::default() }
}

async fn two_providers(second_works: bool) -> Result<Uplinks> {
    let clouds = MeshBuilder::of(&["a", "b"]).private("a").settings("b", &json!({"listen": {"link": "[::]:15443"}}));
    let mut mesh = clouds.prepare().await?;
    // The second provider's network is another one, which ends at its router.
    let wan = mesh.lab().wan().clone();
    let outside = ["link add wan2 type bridge", "addr add 2001:db8:2::1/64 dev wan2 nodad", "link set wan2 up"];
    wan.ip_batch(&outside.map(str::to_owned)).await?;
    for (cloud, host) in [("a", 11), ("b", 21)] {
        let (port, gateway) = (format!("wan2-{cloud}"), mesh.cloud(cloud).net().gateways()[0].place.clone());
        wan.veth(&port, &gateway, "eth2").await?;
        wan.ip_batch(&[format!("link set {port} master wan2"), format!("link set {port} up")]).await?;
        gateway
            .ip_batch(&[format!("addr add 2001:db8:2::{host}/64 dev eth2 nodad"), "link set eth2 up".to_owned()])
            .await?;
    }
    let b = SocketAddr::new(mesh.cloud("b").net().gateways()[0].wan, 15_443);
    let first = Relay::start(&wan, "198.51.100.1:20000".parse()?, b, 31).await?;
    let second = Relay::start(&wan, "[2001:db8:2::1]:20000".parse()?, "[2001:db8:2::21]:15443".parse()?, 32).await?;
    first.set_both(&delayed(20));
    second.set_both(&Conditions { cut: !second_works, ..delayed(5) });
    let addresses = [&first, &second].map(|relay| relay.address().to_string());
    mesh.cloud("a").write_peer("b", &files::peer("b", &addresses, mesh.cloud("b").pin(), &[NAMESPACE]))?;
    mesh.start_gateways().await?;
    mesh.serve("b", "web", 11, Habit::Http).await?;
    mesh.serve("b", "echo", 12, Habit::Echo).await?;
    Ok(Uplinks { mesh, first, second })
}

impl Uplinks {
    /// Waits until this provider is the way for all that is new.
    async fn goes_by(&self, provider: &Relay) -> Result<Duration> {
        let address = provider.address().to_string();
        within(Duration::from_secs(40), format!("the link goes by way of {address}"), async || {
            let links = self.mesh.peer("a", "b").await?.links;
            let mut used = links.iter().filter(|link| !link.draining).peekable();
            ensure!(used.peek().is_some() && used.all(|link| link.remote == address), "{links:?}");
            Ok(true)
        })
        .await
    }
}

lab_test! {
    /// The shorter way is taken; when it is cut new connections are on the other one in seconds, and when it is back they return
    /// without one that breaks. What was on the cut way breaks: a connection of QUIC or TCP belongs to one address.
    async fn of_two_providers_the_better_is_used_and_the_other_stands_by() {
        let uplinks = two_providers(false).await?;
        let Uplinks { mesh, first, second } = &uplinks;
        let target = mesh.target("a", "web").await?;
        mesh.wait_answer("a", target, "b-11", SOON).await?;
        uplinks.goes_by(first).await?;
        second.set_both(&delayed(5));
        println!("the better way is the only one {:?} after it was there", uplinks.goes_by(second).await?);

        let (held, load) = (Conversation::start(mesh, "a", "echo").await?, mesh.load("a", target, 50));
        within(SOON, "some load", async || Ok(load.so_far().ok > 50)).await?;
        let (cut, at) = (load.elapsed(), Instant::now());
        second.set_both(&Conditions { cut: true, ..Conditions::default() });
        uplinks.goes_by(first).await?;
        let noticed = load.elapsed();
        println!("by the other way {:?} after the cut", at.elapsed());
        ensure!(noticed - cut < Duration::from_secs(6), "it took {:?}", noticed - cut);
        within(SOON, "what was on the cut way has ended", async || Ok(held.has_ended())).await?;
        let ok = load.so_far().ok;
        within(SOON, "answers", async || Ok(load.so_far().ok > ok + 50)).await?;
        load.stop().await?.failed_only(|failure| {
            failure.sent + load::PATIENCE >= cut && failure.sent <= noticed + Duration::from_millis(500)
        })?;

        let (held, load) = (Conversation::start(mesh, "a", "echo").await?, mesh.load("a", target, 50));
        second.set_both(&delayed(5));
        let at = Instant::now();
        uplinks.goes_by(second).await.context("it returns")?;
        println!("by the better way again {:?} after it was back", at.elapsed());
        let ok = load.so_far().ok;
        within(SOON, "answers", async || Ok(load.so_far().ok > ok + 50)).await?;
        load.stop().await?.none_failed()?;
        ensure!(held.stop().await? > 20);
        uplinks.mesh.stop().await
    }

    /// A way that begins to lose packets is left for the longer one that loses none, and nothing breaks.
    async fn a_way_that_loses_packets_is_left_without_a_broken_connection() {
        let uplinks = two_providers(true).await?;
        let Uplinks { mesh, first, second } = &uplinks;
        first.set_both(&delayed(9));
        let target = mesh.target("a", "web").await?;
        mesh.wait_answer("a", target, "b-11", SOON).await?;
        uplinks.goes_by(second).await?;
        let held = Conversation::start(mesh, "a", "echo").await?;
        let load = mesh.load("a", target, 50);
        second.set_both(&Conditions { loss: 0.15, ..delayed(5) });
        let at = Instant::now();
        uplinks.goes_by(first).await?;
        println!("the lossy way was left after {:?}", at.elapsed());
        second.set_both(&delayed(5));
        load.stop().await?.none_failed()?;
        ensure!(held.stop().await? > 20);
        uplinks.mesh.stop().await
    }
}

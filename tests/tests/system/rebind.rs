//! Paths that change under a link: F10, F11, F12.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::ensure;
use eastway::admin::views::PeerView;
use eastway_tests::mesh::MeshBuilder;
use eastway_tests::servers::Habit;
use eastway_tests::{lab_test, within};

lab_test! {
    /// F10: a NAT that forgets its mapping every 5 s is not noticed: no failed request, the same link.
    async fn f10_nat_rebinds_break_nothing() {
        let mut mesh = MeshBuilder::of(&["a", "b"]).relay("a", "b", 10).start().await?;
        mesh.serve("b", "web", 11, Habit::Http).await?;
        let target = mesh.target("a", "web").await?;
        mesh.wait_answer("a", target, "b-11", Duration::from_secs(5)).await?;
        let link = mesh.settled("a", "b").await?;
        let load = mesh.load("a", target, 100);
        let wan = mesh.lab().wan().clone();
        for round in 1..=3 {
            let until = Duration::from_secs(5 * round);
            within(Duration::from_secs(10), "5 s of load", async || Ok(load.elapsed() > until)).await?;
            ensure!(mesh.relay("a", "b").rebind(&wan).await? >= 1);
        }
        within(Duration::from_secs(10), "2 s after the last", async || Ok(load.elapsed() > Duration::from_secs(17))).await?;
        load.stop().await?.none_failed()?;
        mesh.same_link("a", "b", &link).await?;
        mesh.stop().await
    }

    /// F10 before a load balancer: each time the NAT forgets, the flow comes to the other replica, which hands its packets
    /// over: no failed request, the same links.
    async fn f10_nat_rebinds_to_another_replica_break_nothing() {
        let siblings = serde_json::json!({"replicas": {"siblings": ["10.244.0.1:15442", "10.244.0.2:15442"]}});
        let mesh = MeshBuilder::of(&["a", "b"]).replicas("b", 2).settings("b", &siblings).relay("a", "b", 12);
        let mut mesh = mesh.prepare().await?;
        mesh.start_gateways().await?;
        let links: Vec<SocketAddr> =
            mesh.cloud("b").net().gateways().iter().map(|gateway| (gateway.wan, 15443).into()).collect();
        within(Duration::from_secs(5), "the replicas know each other", async || {
            Ok(mesh.cloud("b").status(0).await?.replicas.len() == 1 && mesh.cloud("b").status(1).await?.replicas.len() == 1)
        }).await?;
        within(Duration::from_secs(5), "a link to the first", async || Ok(!mesh.peer("a", "b").await?.links.is_empty())).await?;
        // The dialler looks for every replica that the first one tells of.
        mesh.relay("a", "b").set_target(links[1]);
        within(Duration::from_secs(10), "a link to each", async || {
            let links = mesh.peer("a", "b").await?.links;
            Ok(links.len() == 2 && links[0].replica != links[1].replica && links.iter().all(|link| link.transport == "quic"))
        }).await?;
        mesh.serve("b", "web", 11, Habit::Http).await?;
        let target = mesh.target("a", "web").await?;
        mesh.wait_answer("a", target, "b-11", Duration::from_secs(5)).await?;
        let before = mesh.peer("a", "b").await?;
        let load = mesh.load("a", target, 100);
        let wan = mesh.lab().wan().clone();
        for round in 1..=4_u32 {
            let until = Duration::from_secs(3) * round;
            within(Duration::from_secs(10), "3 s of load", async || Ok(load.elapsed() > until)).await?;
            mesh.relay("a", "b").set_target(links[round as usize % 2]);
            ensure!(mesh.relay("a", "b").rebind(&wan).await? >= 2);
        }
        within(Duration::from_secs(10), "2 s after the last", async || Ok(load.elapsed() > Duration::from_secs(14))).await?;
        load.stop().await?.none_failed()?;
        let after = mesh.peer("a", "b").await?;
        let since = |peer: &PeerView| peer.links.iter().map(|link| (link.replica.clone(), link.since)).collect::<Vec<_>>();
        ensure!(since(&after) == since(&before), "a link was replaced: {before:#?} {after:#?}");
        mesh.stop().await
    }

    /// F11: when one pair of addresses is swallowed for ever (a stale conntrack entry), the same link goes on from another
    /// port.
    async fn f11_a_link_leaves_a_blackholed_address_pair() {
        let mut mesh = MeshBuilder::of(&["a", "b"]).relay("a", "b", 11).start().await?;
        mesh.serve("b", "web", 11, Habit::Http).await?;
        let target = mesh.target("a", "web").await?;
        mesh.wait_answer("a", target, "b-11", Duration::from_secs(5)).await?;
        let link = mesh.settled("a", "b").await?;
        let before = mesh.relay("a", "b").clients();
        ensure!(mesh.relay("a", "b").blackhole_current_flows() >= 1);
        let recovered = mesh.wait_answer("a", target, "b-11", Duration::from_secs(3)).await?;
        println!("answered {recovered:?} later");
        let after = mesh.relay("a", "b").clients();
        ensure!(after.difference(&before).count() >= 1, "no new port was used");
        mesh.same_link("a", "b", &link).await?;
        mesh.stop().await
    }

    /// F12: an address that changes in DNS is found by the next dial, and the old one is left alone.
    async fn f12_dns_is_asked_again_before_each_dial() {
        let mut mesh = MeshBuilder::of(&["a", "b"]).replicas("b", 2).named("a", "b").prepare().await?;
        mesh.serve("b", "web", 11, Habit::Http).await?;
        let (old, new) = (mesh.cloud("b").net().gateways()[0].wan, mesh.cloud("b").net().gateways()[1].wan);
        mesh.cloud_mut("b").start_gateway(0).await?;
        mesh.cloud_mut("a").start_gateway(0).await?;
        let target = mesh.target("a", "web").await?;
        mesh.wait_answer("a", target, "b-11", Duration::from_secs(5)).await?;
        // The load balancer is replaced: another gateway at another address, the name moves.
        mesh.cloud_mut("b").kill_gateway(0).await?;
        mesh.cloud_mut("b").start_gateway(1).await?;
        mesh.cloud_mut("b").wait_ready(1).await?;
        mesh.wait_down("a", "b", Duration::from_secs(5)).await?;
        mesh.move_name("b", new)?;
        let moved = Instant::now();
        mesh.wait_answer("a", target, "b-11", Duration::from_secs(5)).await?;
        println!("answered {:?} after the name had moved", moved.elapsed());
        let links = mesh.peer("a", "b").await?.links;
        ensure!(links.iter().all(|link| link.remote.starts_with(&new.to_string())), "{links:?}");
        ensure!(links.iter().all(|link| !link.remote.starts_with(&format!("{old}:"))), "{links:?}");
        mesh.stop().await
    }
}

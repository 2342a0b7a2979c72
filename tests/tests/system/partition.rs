//! Links that are cut: F4, F5, F6, F15.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use eastway_tests::lab::files::ServiceSpec;
use eastway_tests::mesh::{Mesh, MeshBuilder, NAMESPACE, PORT};
use eastway_tests::relay::{Conditions, Direction};
use eastway_tests::servers::Habit;
use eastway_tests::{lab_test, within};
use serde_json::json;

/// A cut link must be known within this time (design §10).
const DETECTED: Duration = Duration::from_secs(5);
/// A healed link must serve again within this time.
const RECOVERED: Duration = Duration::from_secs(3);

/// Drops what `to` gets from `from`.
async fn cut(mesh: &Mesh, from: &str, to: &str) -> Result<()> {
    mesh.cloud(to).net().block_from(mesh.cloud(from).net()).await
}

async fn heal(mesh: &Mesh, from: &str, to: &str) -> Result<()> {
    mesh.cloud(to).net().unblock_from(mesh.cloud(from).net()).await
}

lab_test! {
    /// F4: during 10 s without a link names still resolve, dials fail fast, what is stale is said to be,
    /// redials are few, and after the heal everything is back within 3 s.
    async fn f4_symmetric_partition_is_seen_survived_and_healed() {
        let mut mesh = MeshBuilder::of(&["a", "b"]).start().await?;
        mesh.serve("b", "web", 11, Habit::Http).await?;
        mesh.serve("a", "both", 11, Habit::Http).await?;
        mesh.serve("b", "both", 12, Habit::Http).await?;
        let target = mesh.target("a", "web").await?;
        mesh.wait_answer("a", target, "b-11", Duration::from_secs(5)).await?;
        let both = mesh.target("a", "both").await?;
        mesh.wait_answer("a", both, "a-11", Duration::from_secs(5)).await?;
        let local = mesh.load("a", both, 100);

        cut(&mesh, "a", "b").await?;
        cut(&mesh, "b", "a").await?;
        let begun = Instant::now();
        let detected = mesh.wait_down("a", "b", DETECTED).await?;
        mesh.wait_down("b", "a", DETECTED.saturating_sub(begun.elapsed()) + Duration::from_millis(500)).await?;
        let dials = mesh.peer("a", "b").await?.dials;
        let counted = Instant::now();
        while begun.elapsed() < Duration::from_secs(10) {
            let asked = Instant::now();
            ensure!(mesh.ask("a", target).await.is_err(), "answered through a cut link");
            let took = asked.elapsed();
            ensure!(took < Duration::from_secs(1), "a dial failed only after {took:?}");
            ensure!(mesh.resolve("a", "web").await? == target.ip(), "the address changed");
            ensure!(mesh.imports("a", "b").await? == ["both", "web"]);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let peer = mesh.peer("a", "b").await?;
        let rate = f64::from(u32::try_from(peer.dials - dials)?) / counted.elapsed().as_secs_f64();
        ensure!(rate <= 2.0, "{rate} dials per second");
        ensure!(peer.stale_ms.is_some_and(|stale| stale > 3000), "not said to be stale: {:?}", peer.stale_ms);

        heal(&mesh, "a", "b").await?;
        heal(&mesh, "b", "a").await?;
        let recovered = mesh.wait_answer("a", target, "b-11", RECOVERED).await?;
        println!("detected after {detected:?}, recovered after {recovered:?}");
        within(Duration::from_secs(5), "nothing is stale", async || Ok(mesh.peer("a", "b").await?.stale_ms.is_none())).await?;
        local.stop().await?.none_failed()?;
        mesh.stop().await
    }

    /// F5: when only one direction is cut, both sides agree that the link is down, and stay of one mind.
    async fn f5_one_way_partition_is_seen_by_both_and_does_not_flap() {
        let mesh = MeshBuilder::of(&["a", "b"]).start().await?;
        cut(&mesh, "a", "b").await?;
        let begun = Instant::now();
        let (at_a, at_b) = tokio::join!(mesh.wait_down("a", "b", DETECTED), mesh.wait_down("b", "a", DETECTED));
        println!("detected after {:?} at a, {:?} at b", at_a?, at_b?);
        while begun.elapsed() < Duration::from_secs(12) {
            for (cloud, peer) in [("a", "b"), ("b", "a")] {
                ensure!(!mesh.cloud(cloud).is_up(0, peer).await?, "{cloud} calls {peer} up after {:?}", begun.elapsed());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        heal(&mesh, "a", "b").await?;
        mesh.wait_up("a", "b", RECOVERED).await?;
        mesh.wait_up("b", "a", RECOVERED).await?;
        mesh.stop().await
    }

    /// F6: a cut between two clusters is theirs alone; a third neither suffers nor carries their traffic.
    async fn f6_third_cluster_neither_suffers_nor_carries() {
        let mut mesh = MeshBuilder::of(&["a", "b", "c"]).start().await?;
        mesh.serve("b", "in-b", 11, Habit::Http).await?;
        mesh.serve("c", "in-c", 11, Habit::Http).await?;
        let (to_b, to_c) = (mesh.target("a", "in-b").await?, mesh.target("a", "in-c").await?);
        let b_to_c = mesh.target("b", "in-c").await?;
        mesh.wait_answer("a", to_b, "b-11", Duration::from_secs(5)).await?;
        mesh.wait_answer("a", to_c, "c-11", Duration::from_secs(5)).await?;
        mesh.wait_answer("b", b_to_c, "c-11", Duration::from_secs(5)).await?;
        let loads = [mesh.load("a", to_c, 100), mesh.load("b", b_to_c, 100)];
        cut(&mesh, "a", "b").await?;
        cut(&mesh, "b", "a").await?;
        mesh.wait_down("a", "b", DETECTED).await?;
        mesh.wait_down("b", "a", DETECTED).await?;
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(2) {
            ensure!(mesh.ask("a", to_b).await.is_err(), "somebody carries between a and b");
            for peer in ["a", "b"] {
                ensure!(mesh.cloud("c").is_up(0, peer).await?, "c calls {peer} down");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        for load in loads {
            load.stop().await?.none_failed()?;
        }
        // P13: c never learnt in-b from a, nor a in-b from c.
        ensure!(mesh.imports("a", "c").await? == ["in-c"]);
        mesh.stop().await
    }

    /// F15: a snapshot that breaks off anywhere changes nothing: the imports are the old set or the new one.
    async fn f15_half_a_snapshot_is_no_snapshot() {
        let quick = json!({"link": {"keepAlive": "500ms", "idleTimeout": "2s"}});
        let mut mesh = MeshBuilder::of(&["a", "b"]).relay("a", "b", 15).settings("a", &quick).settings("b", &quick).start().await?;
        let set = |first: usize, count: usize| (first..first + count).map(|n| format!("service-{n:04}")).collect::<BTreeSet<_>>();
        let publish = |mesh: &mut Mesh, names: &BTreeSet<String>| {
            let names = names.clone();
            mesh.change_services("b", move |services| {
                services.clear();
                services.extend(names.iter().map(|name| {
                    ServiceSpec::new(NAMESPACE, name, PORT).endpoint([10, 244, 1, 11].into(), "v1")
                }));
            })
        };
        let imports = async |mesh: &Mesh| anyhow::Ok(mesh.imports("a", "b").await?.into_iter().collect::<BTreeSet<_>>());
        let mut old = set(0, 300);
        publish(&mut mesh, &old)?;
        within(Duration::from_secs(10), "a imports 300 services", async || Ok(imports(&mesh).await? == old)).await?;
        let mut broken = 0;
        for (round, bytes) in [1_500, 4_000, 8_000, 16_000, 24_000, 32_000].into_iter().enumerate() {
            mesh.relay("a", "b").set_both(&Conditions { cut: true, ..Default::default() });
            mesh.wait_down("a", "b", DETECTED).await?;
            let new = set(1000 * (round + 1), 300);
            publish(&mut mesh, &new)?;
            let b_has_it = async || {
                let answer: serde_json::Value = mesh.cloud("b").admin(0, "/services").await?;
                Ok(answer.to_string().contains(new.last().expect("300 names")))
            };
            within(Duration::from_secs(5), "b has read its list", b_has_it).await?;
            let relay = mesh.relay("a", "b");
            relay.set(Direction::Forth, Conditions::default());
            relay.set(Direction::Back, Conditions { cut_after: Some(bytes), ..Default::default() });
            let lost = relay.traffic(Direction::Back).lost;
            // Until the cut has bitten and been noticed, or everything fitted before it.
            within(Duration::from_secs(10), "the snapshot breaks off", async || {
                let now = imports(&mesh).await?;
                ensure!(now == old || now == new, "a has {} services that are neither the old nor the new", now.len());
                let bitten = mesh.relay("a", "b").traffic(Direction::Back).lost > lost;
                Ok(now == new || (bitten && !mesh.cloud("a").is_up(0, "b").await?))
            }).await?;
            broken += usize::from(imports(&mesh).await? == old);
            mesh.relay("a", "b").set_both(&Conditions::default());
            within(Duration::from_secs(10), "a imports the new services", async || {
                let now = imports(&mesh).await?;
                ensure!(now == old || now == new, "a has {} services that are neither the old nor the new", now.len());
                Ok(now == new)
            }).await?;
            old = new;
        }
        println!("{broken} of 6 snapshots were broken off");
        ensure!(broken >= 3, "the cuts came too late to break anything");
        mesh.stop().await
    }
}

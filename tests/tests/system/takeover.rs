//! Replicas that end or stand still while another is there: F2, F24.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use eastway_tests::mesh::{Mesh, MeshBuilder};
use eastway_tests::servers::Habit;
use eastway_tests::{lab_test, within};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::restart::Conversation;

/// A replica that says nothing must be known for it within this time (design §10).
const DETECTED: Duration = Duration::from_secs(5);
/// If set: for so many seconds a gateway stands still, instead of [`SHORT`].
const SECONDS: &str = "EASTWAY_TEST_STILL_SECONDS";
const SHORT: u64 = 5;

/// Replicas of `b` that `a` has links to.
async fn linked(mesh: &Mesh) -> Result<usize> {
    let links = mesh.peer("a", "b").await?.links;
    let replicas: std::collections::BTreeSet<_> = links.iter().map(|link| &link.replica).collect();
    Ok(replicas.len())
}

/// Two replicas of `b` that know each other.
fn replicas() -> MeshBuilder {
    let siblings = json!({"replicas": {"siblings": ["10.244.0.1:15442", "10.244.0.2:15442"]}});
    MeshBuilder::of(&["a", "b"]).replicas("b", 2).settings("b", &siblings)
}

lab_test! {
    /// F2: the replica behind a balancer's flow is killed and the flow comes to the other one: connections through the other
    /// one go on and get their own bytes only, and new ones succeed within 2 s of the moment when silence was noticed.
    async fn f2_a_killed_replicas_flows_come_to_another() {
        let mut mesh = replicas().relay("a", "b", 2).prepare().await?;
        mesh.start_gateways().await?;
        let links: Vec<SocketAddr> = mesh.cloud("b").net().gateways().iter().map(|gateway| (gateway.wan, 15443).into()).collect();
        within(Duration::from_secs(5), "a link to the first", async || Ok(linked(&mesh).await? == 1)).await?;
        mesh.relay("a", "b").set_target(links[1]);
        within(Duration::from_secs(10), "a link to each", async || Ok(linked(&mesh).await? == 2)).await?;
        mesh.serve("b", "web", 11, Habit::Http).await?;
        mesh.serve("b", "echo", 12, Habit::Echo).await?;
        let target = mesh.target("a", "web").await?;
        mesh.wait_answer("a", target, "b-11", Duration::from_secs(5)).await?;
        let mut conversations = Vec::new();
        for _ in 0..10 {
            conversations.push(Conversation::start(&mesh, "a", "echo").await?);
        }
        let load = mesh.load("a", target, 100);
        within(Duration::from_secs(5), "load", async || Ok(load.so_far().ok > 50)).await?;
        mesh.cloud_mut("b").kill_gateway(0).await?;
        let killed = load.elapsed();
        // As a balancer that saw its target gone: every flow goes to the other, at once.
        let wan = mesh.lab().wan().clone();
        ensure!(mesh.relay("a", "b").rebind(&wan).await? >= 2);
        let gone = within(DETECTED, "the dead replica's link is gone", async || Ok(linked(&mesh).await? == 1)).await?;
        let noticed = load.elapsed();
        within(Duration::from_secs(10), "3 s of load after it", async || Ok(load.elapsed() > noticed + Duration::from_secs(3))).await?;
        let record = load.stop().await?;
        let rounds: Vec<Result<u32>> = futures_util::future::join_all(conversations.into_iter().map(Conversation::stop)).await;
        let living = rounds.iter().filter(|rounds| rounds.as_ref().is_ok_and(|rounds| *rounds > 60)).count();
        let last = record.failures.iter().map(|failure| failure.sent.saturating_sub(killed)).max().unwrap_or_default();
        println!(
            "link gone after {gone:?}; of {} requests {} failed, the last sent {last:?} after the kill; {living} of 10 conversations go on",
            record.sent, record.failures.len(),
        );
        for rounds in &rounds {
            ensure!(!format!("{rounds:?}").contains("bytes of another stream"), "{rounds:?}");
        }
        record.failed_only(|failure| {
            failure.sent + eastway_tests::load::PATIENCE >= killed && failure.sent <= noticed + Duration::from_secs(2)
        })?;
        mesh.stop().await
    }

    /// F24: a replica that stands still and then goes on: its links are left within 5 s, requests go through the other, and what
    /// it still believes when it goes on changes nothing at its peers.
    async fn f24_a_replica_that_stood_still_brings_nothing_old_back() {
        let seconds = std::env::var(SECONDS).map_or(Ok(SHORT), |text| text.parse())?;
        let mut mesh = replicas().prepare().await?;
        mesh.start_gateways().await?;
        mesh.serve("b", "web", 11, Habit::Http).await?;
        mesh.serve("b", "old", 12, Habit::Http).await?;
        let target = mesh.target("a", "web").await?;
        mesh.wait_answer("a", target, "b-11", Duration::from_secs(5)).await?;
        within(Duration::from_secs(10), "a link to each", async || Ok(linked(&mesh).await? == 2)).await?;
        for replica in [0, 1] {
            let load = mesh.load("a", target, 100);
            within(Duration::from_secs(5), "load", async || Ok(load.so_far().ok > 50)).await?;
            let (stopped, begun) = (load.elapsed(), Instant::now());
            mesh.cloud("b").gateway(replica)?.signal(Signal::SIGSTOP)?;
            let gone = within(DETECTED, "its link is left", async || Ok(linked(&mesh).await? == 1)).await?;
            let noticed = load.elapsed();
            // What it does not learn of while it stands still.
            mesh.change_services("b", |services| services.retain(|service| service.name != "old"))?;
            let new = format!("new-{replica}");
            mesh.serve("b", &new, 13 + u8::try_from(replica)?, Habit::Http).await?;
            let told = within(Duration::from_secs(8), "the other replica tells what is new", async || {
                let imports = mesh.imports("a", "b").await?;
                Ok(imports.contains(&new) && !imports.contains(&"old".to_owned()))
            }).await?;
            let up = Duration::from_secs(seconds);
            within(up + DETECTED, "it stood still for long enough", async || Ok(begun.elapsed() > up)).await?;
            mesh.cloud("b").gateway(replica)?.signal(Signal::SIGCONT)?;
            let went_on = Instant::now();
            let mut back = None;
            while went_on.elapsed() < Duration::from_secs(2) || back.is_none() {
                let imports = mesh.imports("a", "b").await?;
                ensure!(imports.contains(&new) && !imports.contains(&"old".to_owned()), "{:?} later: {imports:?}", went_on.elapsed());
                if back.is_none() && linked(&mesh).await? == 2 {
                    back = Some(went_on.elapsed());
                }
                ensure!(went_on.elapsed() < Duration::from_secs(10), "it is not linked again");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            let record = load.stop().await?;
            let last = record.failures.iter().map(|failure| failure.sent.saturating_sub(stopped)).max().unwrap_or_default();
            println!(
                "replica {replica}: left after {gone:?}, the other told what is new after {told:?}, linked again {back:?} after it went on; \
                 of {} requests {} failed, the last sent {last:?} after the stop",
                record.sent, record.failures.len(),
            );
            record.failed_only(|failure| {
                failure.sent + eastway_tests::load::PATIENCE >= stopped && failure.sent <= noticed + Duration::from_millis(200)
            })?;
            mesh.serve("b", "old", 15 + u8::try_from(replica)?, Habit::Http).await?;
            within(Duration::from_secs(5), "both say the same again", async || Ok(mesh.imports("a", "b").await?.contains(&"old".to_owned()))).await?;
        }
        mesh.stop().await
    }
}

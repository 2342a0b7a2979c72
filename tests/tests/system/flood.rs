//! What strangers at the port of links, and one peer that misbehaves, cost everybody else (U1, P8).

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use eastway_tests::flood::{Flood, Junk};
use eastway_tests::lab::files;
use eastway_tests::mesh::{Mesh, MeshBuilder, NAMESPACE, PORT};
use eastway_tests::rogue::{Churn, Rogue};
use eastway_tests::servers::Habit;
use eastway_tests::{lab_test, within};

use crate::restart::Conversation;

/// Packets per second that the threat model asks for.
const RATE: u64 = 200_000;
/// As many have to be sent for it to be a flood, on a machine that does all the rest beside.
const LEAST_RATE: u64 = 10_000;
/// If set: for so many seconds the flood runs, instead of [`SHORT`].
const SECONDS: &str = "EASTWAY_TEST_FLOOD_SECONDS";
const SHORT: u64 = 4;
/// Beyond twice the time of 99 of 100 answers without a flood: strangers and all they hit share two cores.
const SLACK: Duration = Duration::from_millis(50);

/// What a peer that misbehaves offers, changed records per second.
const CHURN: u64 = 50_000;
/// As many have to be taken or held up for it to be one, on a machine that does all the rest beside.
const LEAST_CHURN: f64 = 10_000.0;
const GRAIN: Duration = Duration::from_millis(10);
/// Changes of the well-behaved peer that are followed, in each of the rounds with and without the other's churn.
const CHANGES: u32 = 6;
const ROUNDS: u32 = 5;

/// How long it takes until `cloud` can resolve a service that its peer `at` has just begun to export.
async fn propagation(mesh: &mut Mesh, at: &str, cloud: &str, number: u32) -> Result<Duration> {
    let name = format!("new-{number}");
    let begun = Instant::now();
    let address = mesh.cloud(at).net().pod(11);
    mesh.change_services(at, |services| {
        services.push(files::ServiceSpec::new(NAMESPACE, &name, PORT).endpoint(address, "v1"));
    })?;
    within(Duration::from_secs(10), "the new name", async || Ok(mesh.resolve(cloud, &name).await.is_ok())).await?;
    Ok(begun.elapsed())
}

/// The median, and the time within which 99 of 100 were.
fn quantiles(times: &mut [Duration]) -> (Duration, Duration) {
    times.sort_unstable();
    let of_100 = |part| times.get(times.len().saturating_sub(1) * part / 100).copied().unwrap_or_default();
    (of_100(50), of_100(99))
}

lab_test! {
    /// U1: 200,000 junk packets per second from made-up sources at the link port, as many as the machine can send: no
    /// request fails, on new connections or old, the links stay the same, little memory is used and nothing logged.
    async fn u1_a_flood_of_strangers_harms_no_connection() {
        let seconds = std::env::var(SECONDS).map_or(Ok(SHORT), |text| text.parse()).context(SECONDS)?;
        let mut mesh = MeshBuilder::of(&["a", "b"]).private("a").start().await?;
        mesh.serve("b", "web", 11, Habit::Http).await?;
        mesh.serve("b", "echo", 12, Habit::Echo).await?;
        let target = mesh.target("a", "web").await?;
        mesh.target("a", "echo").await?;
        mesh.wait_answer("a", target, "b-11", Duration::from_secs(5)).await?;
        let link = mesh.settled("a", "b").await?;
        let conversation = Conversation::start(&mesh, "a", "echo").await?;
        for junk in [Junk::Initials, Junk::Short] {
            let gateway = mesh.cloud("b").gateway(0)?;
            let (rss, logged) = (gateway.rss()?, std::fs::metadata(gateway.log())?.len());
            let calm = mesh.load("a", target, 200);
            within(Duration::from_secs(20), "a calm while", async || Ok(calm.so_far().ok > 200)).await?;
            let calm = calm.stop().await?;
            let flood = Flood::start(mesh.lab(), mesh.cloud("b"), junk, RATE).await?;
            let load = mesh.load("a", target, 200);
            let until = Duration::from_secs(seconds);
            within(until * 2, "the flood", async || Ok(load.elapsed() > until)).await?;
            let sent = flood.stop()?;
            let record = load.stop().await?;
            let gateway = mesh.cloud("b").gateway(0)?;
            let grown = gateway.rss()?.saturating_sub(rss);
            let logged = std::fs::metadata(gateway.log())?.len() - logged;
            println!(
                "{junk:?}: {} packets/s for {:?}; of {} requests {} failed, p99 {:?} (calm {:?}); {} KiB more memory, {logged} bytes logged",
                sent.rate(), sent.took, record.sent, record.failures.len(), record.p99(), calm.p99(), grown >> 10,
            );
            ensure!(sent.rate() > LEAST_RATE, "{} packets/s are no flood", sent.rate());
            record.none_failed()?;
            ensure!(record.p99() <= calm.p99() * 2 + SLACK, "p99 {:?}, calm {:?}", record.p99(), calm.p99());
            ensure!(grown <= 32 << 20, "{} KiB more memory", grown >> 10);
            ensure!(logged <= 16 << 10, "{logged} bytes logged");
        }
        mesh.same_link("a", "b", &link).await?;
        ensure!(conversation.stop().await? > 10, "a connection from before the flood");
        mesh.stop().await
    }

    /// P8: what one peer changes all the time delays what another changes by less than a fifth.
    async fn p8_a_peer_that_churns_delays_no_other() {
        let mut mesh = MeshBuilder::of(&["a", "b", "c"]).prepare().await?;
        for cloud in ["a", "b"] {
            mesh.cloud_mut(cloud).start_gateway(0).await?;
        }
        mesh.wait_up("a", "b", Duration::from_secs(10)).await?;
        let churn = Churn::new("c", NAMESPACE, CHURN);
        let _peer = Rogue::join_with(mesh.cloud("c"), mesh.cloud("a"), Arc::new(churn.clone())).await?;
        mesh.serve("b", "web", 11, Habit::Http).await?;
        let target = mesh.target("a", "web").await?;
        mesh.wait_answer("a", target, "b-11", Duration::from_secs(5)).await?;
        // Their virtual addresses are made once.
        churn.set(true);
        within(Duration::from_secs(10), "churn", async || Ok(churn.sent() > 10_000)).await?;
        let rss = mesh.cloud("a").gateway(0)?.rss()?;
        let (mut calm, mut busy, mut offered) = (Vec::new(), Vec::new(), Duration::ZERO);
        let mut number = 0;
        let load = mesh.load("a", target, 100);
        let sent = churn.sent();
        for _ in 0..ROUNDS {
            for on in [false, true] {
                churn.set(on);
                let begun = Instant::now();
                for _ in 0..CHANGES {
                    number += 1;
                    let times = if on { &mut busy } else { &mut calm };
                    times.push(propagation(&mut mesh, "b", "a", number).await?);
                }
                offered += if on { begun.elapsed() } else { Duration::ZERO };
            }
        }
        churn.set(false);
        let sent = churn.sent() - sent;
        load.stop().await?.none_failed()?;
        let grown = mesh.cloud("a").gateway(0)?.rss()?.saturating_sub(rss);
        let ((calm_p50, calm), (busy_p50, busy)) = (quantiles(&mut calm), quantiles(&mut busy));
        let rate = sent as f64 / offered.as_secs_f64();
        println!(
            "{rate:.0} changed records/s for {offered:?}, held up {} times: p50 {calm_p50:?} without, {busy_p50:?} with them, \
             p99 {calm:?} and {busy:?}; {} KiB more memory",
            churn.held_up(), grown >> 10,
        );
        ensure!(rate > LEAST_CHURN, "{rate:.0} records/s are no churn");
        // What is measured has the grain of a look every 10 ms; the slowest of 30 also that of a busy machine.
        ensure!(busy_p50 <= calm_p50 * 6 / 5 + GRAIN, "p50 {calm_p50:?} without, {busy_p50:?} with the churn");
        ensure!(busy <= calm * 6 / 5 + 5 * GRAIN, "p99 {calm:?} without, {busy:?} with the churn");
        ensure!(grown <= 32 << 20, "{} KiB more memory", grown >> 10);
        mesh.stop().await
    }
}

//! Gateways that end and come back: F1, F3, F13, F14, F17.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use eastway_tests::mesh::{Mesh, MeshBuilder};
use eastway_tests::servers::Habit;
use eastway_tests::{lab_test, load, within};
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Heartbeats go out every second, and a link is lost 4 s after the last that was acknowledged: until then nobody can know
/// of a peer that said nothing.
const UNNOTICED: Duration = Duration::from_millis(2_500);

/// An echo conversation that goes on until it is told to stop: a byte sequence every 50 ms.
pub(super) struct Conversation {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<u32>>,
}

impl Conversation {
    pub(super) async fn start(mesh: &Mesh, from: &str, service: &str) -> Result<Self> {
        let target = mesh.target(from, service).await?;
        let (place, source) = mesh.client(from);
        let (stop, mut stopped) = oneshot::channel();
        let (begun, beginning) = oneshot::channel();
        let task = place.spawn(async move {
            let mut stream = load::connect(source, target).await?;
            let mut begun = Some(begun);
            let mut clock = tokio::time::interval(Duration::from_millis(50));
            for number in 0_u32.. {
                tokio::select! {
                    _ = clock.tick() => {}
                    _ = &mut stopped => return Ok(number),
                }
                stream.write_all(&number.to_be_bytes()).await?;
                let mut echo = [0; 4];
                tokio::time::timeout(load::PATIENCE, stream.read_exact(&mut echo)).await.context("silence")??;
                ensure!(u32::from_be_bytes(echo) == number, "bytes of another stream");
                if let Some(begun) = begun.take() {
                    let _gone = begun.send(());
                }
            }
            Ok(0)
        });
        if beginning.await.is_err() {
            let ended = task.await?;
            anyhow::bail!("a conversation did not begin: {ended:?}");
        }
        Ok(Self { stop, task })
    }

    /// Whether a fault has ended it.
    pub(super) fn has_ended(&self) -> bool {
        self.task.is_finished()
    }

    /// Rounds without a fault.
    pub(super) async fn stop(self) -> Result<u32> {
        let _ended = self.stop.send(());
        self.task.await?
    }
}

lab_test! {
    /// F1: a gateway that was killed and comes back is noticed by a stateless reset, long before silence
    /// would be (4 s), although it has no address to dial us at.
    async fn f1_killed_gateway_is_back_before_silence_is_noticed() {
        let mut mesh = MeshBuilder::of(&["a", "b"]).private("a").start().await?;
        mesh.serve("b", "web", 11, Habit::Http).await?;
        let target = mesh.target("a", "web").await?;
        mesh.wait_answer("a", target, "b-11", Duration::from_secs(5)).await?;
        let before = mesh.peer("a", "b").await?.links[0].replica.clone();
        let load = mesh.load("a", target, 50);
        mesh.cloud_mut("b").kill_gateway(0).await?;
        let killed = load.elapsed();
        mesh.cloud_mut("b").start_gateway(0).await?;
        mesh.cloud_mut("b").wait_ready(0).await?;
        let back = Instant::now();
        let ready = load.elapsed();
        mesh.wait_answer("a", target, "b-11", Duration::from_secs(2)).await?;
        let recovered = back.elapsed();
        ensure!(recovered < Duration::from_secs(2), "answered {recovered:?} after the restart");
        let after = mesh.peer("a", "b").await?;
        ensure!(after.links.iter().all(|link| link.replica != before), "the dead replica still has a link: {:?}", after.links);
        let record = load.stop().await?;
        // Down time itself is excused; what was sent 2 s after the new process was ready is not.
        record.failed_only(|failure| failure.sent > killed.saturating_sub(load::PATIENCE) && failure.sent < ready + Duration::from_secs(2))?;
        mesh.stop().await
    }

    /// F3: two replicas are drained one after the other under load: no request fails, open streams go on,
    /// and each process ends by itself with 0.
    async fn f3_draining_one_replica_after_the_other_loses_nothing() {
        let mut mesh = MeshBuilder::of(&["a", "b"]).replicas("b", 2).start().await?;
        mesh.serve("b", "web", 11, Habit::Http).await?;
        mesh.serve("b", "echo", 12, Habit::Echo).await?;
        let target = mesh.target("a", "web").await?;
        mesh.wait_answer("a", target, "b-11", Duration::from_secs(5)).await?;
        within(Duration::from_secs(10), "a has one link to each replica of b", async || {
            let links = mesh.peer("a", "b").await?.links;
            ensure!(links.len() == 2, "{links:#?}");
            Ok(usable_replicas(&mesh).await? == 2)
        }).await?;
        let load = mesh.load("a", target, 500);
        for replica in [0, 1] {
            let echo = Conversation::start(&mesh, "a", "echo").await?;
            let mut gateway = mesh.cloud_mut("b").take_gateway(replica)?;
            gateway.signal(Signal::SIGTERM)?;
            within(Duration::from_secs(5), "a prefers the other replica", async || Ok(usable_replicas(&mesh).await? == 1)).await?;
            // An open stream goes on for as long as it has work, wherever it is.
            let begun = Instant::now();
            within(Duration::from_secs(5), "2 s of drain", async || Ok(begun.elapsed() > Duration::from_secs(2))).await?;
            ensure!(echo.stop().await? > 10);
            let status = tokio::time::timeout(Duration::from_secs(35), gateway.wait()).await.context("does not end")??;
            ensure!(status.code() == Some(0), "{status}: {}", gateway.log_tail(2000));
            mesh.start_gateways().await?;
            within(Duration::from_secs(10), "both replicas are linked again", async || Ok(usable_replicas(&mesh).await? == 2)).await?;
        }
        let record = load.stop().await?;
        record.none_failed()?;
        println!("{} requests, none failed, slowest {:?}", record.sent, record.slowest);
        mesh.stop().await
    }

    /// A drain does not wait for a peer that is gone: it is over before that is noticed.
    async fn a_drain_waits_for_nobody_who_is_gone() {
        let mut mesh = MeshBuilder::of(&["a", "b"]).start().await?;
        mesh.serve("a", "web", 11, Habit::Http).await?;
        // What b has of it came by a session that lasts; and the kernel tells of the end of a link of TCP.
        mesh.target("b", "web").await?;
        mesh.settled("a", "b").await?;
        mesh.cloud_mut("b").kill_gateway(0).await?;
        let mut gateway = mesh.cloud_mut("a").take_gateway(0)?;
        let begun = Instant::now();
        let status = gateway.terminate(Duration::from_secs(20)).await?;
        let took = begun.elapsed();
        println!("ended {took:?} after the signal");
        ensure!(status.code() == Some(0), "{status}: {}", gateway.log_tail(2000));
        ensure!(took < UNNOTICED, "{took:?}: it waited until the link was lost: {}", gateway.log_tail(2000));
        mesh.stop().await
    }

    /// A second signal ends a gateway at once; its peers are told, and do not have to miss it.
    async fn peers_hear_of_an_end_at_once() {
        let mut mesh = MeshBuilder::of(&["a", "b"]).start().await?;
        mesh.serve("b", "echo", 12, Habit::Echo).await?;
        mesh.target("a", "echo").await?;
        mesh.settled("a", "b").await?;
        // The drain does not end for as long as somebody talks.
        let _echo = Conversation::start(&mesh, "a", "echo").await?;
        let mut gateway = mesh.cloud_mut("a").take_gateway(0)?;
        gateway.signal(Signal::SIGTERM)?;
        let log = gateway.log().to_owned();
        within(Duration::from_secs(5), "the drain", async || Ok(std::fs::read_to_string(&log)?.contains("draining"))).await?;
        let status = gateway.terminate(Duration::from_secs(5)).await?;
        ensure!(status.code().is_some_and(|code| code != 0), "{status}: {}", gateway.log_tail(2000));
        let took = mesh.wait_down("b", "a", Duration::from_secs(10)).await?;
        ensure!(took < UNNOTICED, "b missed it {took:?} after the end");
        mesh.stop().await
    }

    /// F13: a gateway restored from an old backup neither brings deleted services back nor keeps them.
    async fn f13_restored_backup_resurrects_nothing() {
        let mut mesh = MeshBuilder::of(&["a", "b"]).start().await?;
        for (cloud, service, pod) in [("a", "a-one", 11), ("a", "a-two", 12), ("b", "b-one", 11), ("b", "b-two", 12)] {
            mesh.serve(cloud, service, pod, Habit::Http).await?;
        }
        let imports = async |mesh: &Mesh, cloud: &str, peer: &str, expected: &[&str]| {
            within(Duration::from_secs(5), format!("{cloud} imports {expected:?}"), async || {
                Ok(mesh.imports(cloud, peer).await? == expected)
            }).await
        };
        imports(&mesh, "b", "a", &["a-one", "a-two"]).await?;
        imports(&mesh, "a", "b", &["b-one", "b-two"]).await?;
        // A backup of an orderly stop, then both sides delete something.
        mesh.cloud_mut("b").take_gateway(0)?.terminate(Duration::from_secs(10)).await?;
        let (state, backup) = (mesh.cloud("b").state(0), mesh.cloud("b").folder().join("backup"));
        copy_folder(&state, &backup)?;
        mesh.start_gateways().await?;
        mesh.wait_up("a", "b", Duration::from_secs(10)).await?;
        for cloud in ["a", "b"] {
            mesh.change_services(cloud, |services| services.retain(|spec| spec.name.ends_with("one")))?;
        }
        imports(&mesh, "b", "a", &["a-one"]).await?;
        imports(&mesh, "a", "b", &["b-one"]).await?;

        mesh.cloud_mut("b").kill_gateway(0).await?;
        std::fs::remove_dir_all(&state)?;
        copy_folder(&backup, &state)?;
        mesh.start_gateways().await?;
        let came_back = tokio::time::timeout(Duration::from_secs(5), async {
            // Sampled until the new process is heard of: b-two must never be seen again.
            while !mesh.cloud("a").is_up(0, "b").await? || mesh.imports("b", "a").await? != ["a-one"] {
                ensure!(mesh.imports("a", "b").await? == ["b-one"], "a resurrected a service of b");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Ok(())
        });
        came_back.await.context("b still has what a deleted, 5 s after its restart")??;
        imports(&mesh, "a", "b", &["b-one"]).await?;
        mesh.stop().await
    }

    /// F14: a gateway that does not know its own services yet sends nothing, rather than nothing at all.
    async fn f14_unsynced_peer_empties_nothing() {
        let mut mesh = MeshBuilder::of(&["a", "b"]).start().await?;
        mesh.serve("b", "web", 11, Habit::Http).await?;
        let target = mesh.target("a", "web").await?;
        mesh.wait_answer("a", target, "b-11", Duration::from_secs(5)).await?;
        mesh.cloud_mut("b").kill_gateway(0).await?;
        let list = mesh.cloud("b").folder().join("services.yaml");
        let aside = mesh.cloud("b").folder().join("services.aside");
        std::fs::rename(&list, &aside)?;
        mesh.cloud_mut("b").start_gateway(0).await?;
        // Long enough for a link and a session: 3 s, sampled at 100 Hz.
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(3) {
            ensure!(mesh.imports("a", "b").await? == ["web"], "a lost its import after {:?}", begun.elapsed());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        ensure!(!mesh.cloud("b").is_ready(0).await, "b is ready without its registry");
        std::fs::rename(&aside, &list)?;
        mesh.cloud_mut("b").wait_ready(0).await?;
        mesh.wait_answer("a", target, "b-11", Duration::from_secs(5)).await?;
        mesh.stop().await
    }

    /// F17: a gateway whose peers are all away is ready for what it has.
    async fn f17_ready_without_any_peer() {
        let mut mesh = MeshBuilder::of(&["a", "b"]).prepare().await?;
        mesh.serve("a", "web", 11, Habit::Http).await?;
        mesh.cloud_mut("a").start_gateway(0).await?;
        let ready = mesh.cloud_mut("a").wait_ready(0).await?;
        ensure!(ready < Duration::from_secs(4), "ready after {ready:?}");
        let target = mesh.target("a", "web").await?;
        ensure!(mesh.ask("a", target).await? == "a-11");
        // And the peer is found when it comes.
        mesh.serve("b", "other", 11, Habit::Http).await?;
        mesh.start_gateways().await?;
        let target = mesh.target("a", "other").await?;
        mesh.wait_answer("a", target, "b-11", Duration::from_secs(5)).await?;
        mesh.stop().await
    }
}

/// Replicas of b that a would open streams to.
async fn usable_replicas(mesh: &Mesh) -> Result<usize> {
    let links = mesh.peer("a", "b").await?.links;
    let usable: std::collections::BTreeSet<&String> =
        links.iter().filter(|link| !link.draining).map(|link| &link.replica).collect();
    Ok(usable.len())
}

fn copy_folder(from: &std::path::Path, to: &std::path::Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &to.join(entry.file_name()))?;
        } else {
            std::fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

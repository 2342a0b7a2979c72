//! Paths that lose, reorder, repeat and alter packets, such that carry no large ones any more (F7, F8, F9), and such that carry
//! very large ones.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use eastway_tests::mesh::{Mesh, MeshBuilder};
use eastway_tests::relay::{Conditions, Direction};
use eastway_tests::servers::Habit;
use eastway_tests::transfer::{Progress, Transfer, download, there_and_back};
use eastway_tests::{lab_test, within};
use tokio::task::JoinHandle;

/// Longest time in which no byte may move after a path has shrunk.
const STALL: Duration = Duration::from_secs(5);
/// UDP payload of an IPv4 packet of 1,280 bytes.
const SMALL: usize = 1_252;
/// UDP payload that only frames of 9,000 bytes hold.
const LARGE: u16 = 8_000;
/// A link of 100 Mbit/s with a round trip of 50 ms.
const RATE: u64 = 12_500_000;
const DELAY: Duration = Duration::from_millis(25);
const QUEUE: Option<Duration> = Some(Duration::from_millis(50));
const SIZE: usize = 16 << 20;
/// More than that link carries while it is measured.
const MORE: usize = 80 << 20;
/// What passes until a rate is taken, and for how long it is.
const SETTLED: Duration = Duration::from_secs(2);
const MEASURED: Duration = Duration::from_secs(2);

/// `a` with services of `b` behind a relay, that is so from the beginning.
async fn mesh(seed: u64, conditions: &Conditions) -> Result<Mesh> {
    let mut mesh = MeshBuilder::of(&["a", "b"]).relay("a", "b", seed).prepare().await?;
    mesh.relay("a", "b").set_both(conditions);
    mesh.start_gateways().await?;
    mesh.serve("b", "web", 11, Habit::Http).await?;
    mesh.serve("b", "half", 12, Habit::HalfClose).await?;
    let target = mesh.target("a", "web").await?;
    mesh.wait_answer("a", target, "b-11", Duration::from_secs(10)).await?;
    Ok(mesh)
}

async fn start_download(mesh: &Mesh, size: usize, progress: &Progress) -> Result<JoinHandle<Result<Transfer>>> {
    let target = mesh.target("a", "web").await?;
    let (place, source) = mesh.client("a");
    Ok(place.spawn(download(source, target, size, progress.clone())))
}

async fn start_there_and_back(mesh: &Mesh, size: usize) -> Result<JoinHandle<Result<Transfer>>> {
    let target = mesh.target("a", "half").await?;
    let (place, source) = mesh.client("a");
    Ok(place.spawn(there_and_back(source, target, size)))
}

/// Bytes per second of a download under `conditions`, once it has had time to find out what the path carries.
async fn rate(mesh: &Mesh, conditions: &Conditions) -> Result<f64> {
    mesh.relay("a", "b").set_both(conditions);
    let (progress, begun) = (Progress::default(), Instant::now());
    let download = start_download(mesh, MORE, &progress).await?;
    let passed = async |so_long| within(2 * so_long, "some time", async || Ok(begun.elapsed() > so_long)).await;
    passed(SETTLED).await?;
    let (at, from) = (Instant::now(), progress.bytes());
    passed(SETTLED + MEASURED).await?;
    let rate = (progress.bytes() - from) as f64 / at.elapsed().as_secs_f64();
    ensure!(!download.is_finished(), "it ended: {:?}", download.await);
    download.abort();
    Ok(rate)
}

/// No gateway has had an accident.
fn no_panics(mesh: &mut Mesh) -> Result<()> {
    for name in ["a", "b"] {
        let gateway = mesh.cloud(name).gateway(0)?;
        ensure!(!gateway.has_ended()?, "{name} has ended");
        let log = gateway.log_tail(1 << 20);
        ensure!(!log.contains("panicked"), "{name} panicked: {log}");
    }
    Ok(())
}

lab_test! {
    /// F7: with 2 of 100 packets lost a long way carries at least 60 % of what it does with none lost.
    async fn f7_two_of_a_hundred_packets_lost_leave_three_fifths_of_the_goodput() {
        let clean = Conditions { delay: DELAY, rate: Some(RATE), queue: QUEUE, ..Conditions::default() };
        let lossy = Conditions { loss: 0.02, ..clean.clone() };
        let mesh = mesh(7, &clean).await?;
        mesh.settled("a", "b").await?;
        let mut rates = Vec::new();
        // What a busy machine takes away, it takes away now and then.
        for _ in 0..3 {
            let both = [rate(&mesh, &clean).await?, rate(&mesh, &lossy).await?];
            rates.push(both);
            if both[1] >= 0.6 * both[0] {
                break;
            }
        }
        println!("bytes per second without and with loss: {rates:.0?}");
        ensure!(rates.last().is_some_and(|[clean, lossy]| *lossy >= 0.6 * clean), "{rates:.0?}");
        mesh.stop().await
    }

    /// F8: packets that come late, twice or with a bit altered alter no byte of any stream, and link up anew as well.
    async fn f8_reordered_repeated_and_altered_packets_alter_no_byte() {
        let mut mesh = mesh(8, &Conditions::default()).await?;
        let delay = Duration::from_millis(5);
        let (hold, rate) = (Duration::from_millis(10), Some(RATE));
        let conditions = Conditions { delay, hold, rate, reorder: 0.1, duplicate: 0.05, corrupt: 0.02, ..Conditions::default() };
        mesh.relay("a", "b").set_both(&conditions);
        for round in 0..2 {
            let mut transfers = Vec::new();
            for _ in 0..4 {
                transfers.push(start_download(&mesh, 384 << 10, &Progress::default()).await?);
                transfers.push(start_there_and_back(&mesh, 192 << 10).await?);
            }
            let mut slowest = Duration::ZERO;
            for transfer in transfers {
                slowest = slowest.max(transfer.await??.took);
            }
            println!("the slowest of 8 transfers took {slowest:?}");
            if round == 0 {
                // Handshakes are altered, too.
                mesh.cloud_mut("a").kill_gateway(0).await?;
                mesh.start_gateways().await?;
                mesh.wait_up("a", "b", Duration::from_secs(10)).await?;
            }
        }
        for direction in [Direction::Forth, Direction::Back] {
            let traffic = mesh.relay("a", "b").traffic(direction);
            println!("{direction:?}: {traffic:?}");
            ensure!(traffic.altered > 20, "{direction:?}: only {} packets were altered", traffic.altered);
        }
        no_panics(&mut mesh)?;
        mesh.stop().await
    }

    /// F9: a path that from one moment on carries no packet above 1,280 bytes, and does not say so, holds transfers in both
    /// directions up for no more than 5 s, and breaks none.
    async fn f9_a_path_that_shrinks_without_a_word_stalls_nobody_for_long() {
        let wide = Conditions { delay: Duration::from_millis(10), rate: Some(8_000_000), queue: QUEUE, ..Conditions::default() };
        let mut mesh = mesh(9, &wide).await?;
        within(Duration::from_secs(10), "the link uses larger packets", async || {
            Ok(mesh.peer("a", "b").await?.links.iter().all(|link| link.mtu.is_some_and(|mtu| usize::from(mtu) > SMALL)))
        }).await?;
        let link = mesh.settled("a", "b").await?;
        let progress = Progress::default();
        let down = start_download(&mesh, SIZE, &progress).await?;
        let up = start_there_and_back(&mesh, SIZE / 2).await?;
        within(Duration::from_secs(20), "a part has come", async || Ok(progress.bytes() > 2 << 20)).await?;
        mesh.relay("a", "b").set_both(&Conditions { largest: Some(SMALL), ..wide });
        let at = progress.bytes();
        ensure!(at < SIZE as u64 / 2, "the path shrank too late: {at} bytes");
        let (down, up) = (down.await??, up.await??);
        mesh.same_link("a", "b", &link).await?;
        let sizes = (mesh.peer("a", "b").await?.links[0].mtu, mesh.peer("b", "a").await?.links[0].mtu);
        let lost = [Direction::Forth, Direction::Back].map(|direction| mesh.relay("a", "b").traffic(direction).lost);
        println!("longest pauses {:?} down, {:?} up; {:?}, {:?} in all; packets of a and b {sizes:?}, too large {lost:?}", down.longest_pause, up.longest_pause, down.took, up.took);
        ensure!(down.longest_pause <= STALL && up.longest_pause <= STALL, "{down:?} {up:?}");
        ensure!(lost.into_iter().all(|lost| lost > 0), "nothing was too large: {lost:?}");
        no_panics(&mut mesh)?;
        mesh.stop().await
    }

    /// Where the network carries frames of 9,000 bytes, links find out and use them both ways, and all arrives as it was sent.
    async fn frames_of_9000_bytes_are_used_where_the_network_carries_them() {
        let mut mesh = MeshBuilder::of(&["a", "b"]).private("a").prepare().await?;
        for cloud in ["a", "b"] {
            let net = mesh.cloud(cloud).net();
            // Both ends of its cable.
            net.gateways()[0].place.ip("link set eth0 mtu 9000").await?;
            mesh.lab().wan().ip(&format!("link set w-{}-0 mtu 9000", net.number())).await?;
        }
        mesh.start_gateways().await?;
        mesh.serve("b", "web", 11, Habit::Http).await?;
        mesh.serve("b", "half", 12, Habit::HalfClose).await?;
        let target = mesh.target("a", "web").await?;
        mesh.wait_answer("a", target, "b-11", Duration::from_secs(10)).await?;
        for (from, to) in [("a", "b"), ("b", "a")] {
            within(Duration::from_secs(15), format!("{from} sends large packets to {to}"), async || {
                let links = mesh.peer(from, to).await?.links;
                ensure!(links.iter().any(|link| link.transport == "quic" && link.mtu > Some(LARGE)), "{links:?}");
                Ok(true)
            })
            .await?;
        }
        let down = start_download(&mesh, SIZE, &Progress::default()).await?;
        let up = start_there_and_back(&mesh, SIZE / 2).await?;
        let (down, up) = (down.await??, up.await??);
        println!("{:?} down, {:?} there and back", down.took, up.took);
        no_panics(&mut mesh)?;
        mesh.stop().await
    }
}

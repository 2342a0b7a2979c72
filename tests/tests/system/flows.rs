//! Flows of UDP beside streams, and when their link goes: bulk keeps its part, and a conversation goes on over another link.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use eastway_tests::lab::place::Place;
use eastway_tests::mesh::{Mesh, MeshBuilder};
use eastway_tests::relay::Conditions;
use eastway_tests::servers::Habit;
use eastway_tests::talk::{self, Talk, Talked};
use eastway_tests::transfer::{Progress, download};
use eastway_tests::{lab_test, within};
use nix::sys::signal::Signal;
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

use crate::udp::service;

const SOON: Duration = Duration::from_secs(10);
/// Port of the UDP services here.
const ECHO: u16 = 7_007;
/// A path of 40 Mbit/s with a round trip of 20 ms.
const RATE: u64 = 5_000_000;
const DELAY: Duration = Duration::from_millis(10);
const QUEUE: Option<Duration> = Some(Duration::from_millis(50));
/// Bytes per second of a flood: three times what the path carries.
const FLOOD: usize = 15_000_000;
/// What a download is measured for, after as long in which it finds its rate.
const MEASURED: Duration = Duration::from_secs(3);

/// Serves an echo by UDP in `cloud`, exported as `echo`.
async fn serve_echo(mesh: &mut Mesh, cloud: &str) -> Result<JoinHandle<()>> {
    let net = mesh.cloud(cloud).net();
    let address = net.pod(14);
    let echo = talk::echo(net.pods(), SocketAddr::new(address, ECHO)).await?;
    mesh.change_services(cloud, |services| services.push(service("echo", &[("echo", ECHO, "UDP")], &[address])))?;
    Ok(echo)
}

/// Begins a conversation of a client in a with the echo of b; it is under way when this returns.
async fn talk(mesh: &Mesh) -> Result<Talk> {
    let (place, source) = mesh.client("a");
    let target = SocketAddr::new(mesh.target("a", "echo").await?.ip(), ECHO);
    let talk = Talk::start(&place, source, target);
    within(SOON, "a conversation", async || Ok(talk.so_far().answered > 20)).await?;
    Ok(talk)
}

/// What a conversation may lose when its link goes in order: what was under way in that moment.
fn undisturbed(what: &str, talked: Talked) -> Result<()> {
    let lost = talked.asked - talked.answered;
    println!("{what}: {lost} of {} lost, the longest silence {:?}", talked.asked, talked.longest_silence);
    ensure!(talked.longest_silence < Duration::from_secs(1) && lost <= 5 + talked.asked / 100, "{what}: {talked:?}");
    Ok(())
}

/// Sends packets of 1,200 bytes at [`FLOOD`] bytes per second, until it is aborted.
async fn flood(place: &Place, source: IpAddr, target: SocketAddr) -> Result<JoinHandle<()>> {
    let socket = place
        .run(async move {
            let socket = UdpSocket::bind((source, 0)).await?;
            socket.connect(target).await?;
            Ok(socket)
        })
        .await?;
    Ok(place.spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_millis(2));
        loop {
            ticks.tick().await;
            for _ in 0..FLOOD / 1_200 / 500 {
                socket.send(&[7; 1_200]).await.ok();
            }
        }
    }))
}

/// Bytes per second that a client in b downloads from a.
async fn rate(mesh: &Mesh, target: SocketAddr) -> Result<f64> {
    let (place, source) = mesh.client("b");
    let (progress, begun) = (Progress::default(), Instant::now());
    let running = place.spawn(download(source, target, 48 << 20, progress.clone()));
    let passed = async |so_long| within(2 * so_long, "some time", async || Ok(begun.elapsed() > so_long)).await;
    passed(MEASURED).await?;
    let (at, from) = (Instant::now(), progress.bytes());
    passed(2 * MEASURED).await?;
    let rate = (progress.bytes() - from) as f64 / at.elapsed().as_secs_f64();
    ensure!(!running.is_finished(), "the download has ended: {:?}", running.await);
    running.abort();
    Ok(rate)
}

lab_test! {
    /// Three times as many packets as the path carries leave a download beside them its part, and small requests their answers.
    async fn a_flood_of_packets_leaves_bulk_its_part() {
        let mut mesh = MeshBuilder::of(&["a", "b"]).relay("a", "b", 21).start().await?;
        let path = Conditions { delay: DELAY, rate: Some(RATE), queue: QUEUE, ..Conditions::default() };
        mesh.relay("a", "b").set_both(&path);
        // The flood and what is downloaded both go from a to b.
        mesh.serve("a", "web", 11, Habit::Http).await?;
        let sink = mesh.cloud("b").net().pod(15);
        let _sink = mesh.cloud("b").net().pods().run(async move { Ok(UdpSocket::bind((sink, ECHO)).await?) }).await?;
        mesh.change_services("b", |services| services.push(service("sink", &[("sink", ECHO, "UDP")], &[sink])))?;
        let web = mesh.target("b", "web").await?;
        mesh.wait_answer("b", web, "a-11", SOON).await?;
        let sink = SocketAddr::new(mesh.target("a", "sink").await?.ip(), ECHO);

        let alone = rate(&mesh, web).await?;
        let (place, source) = mesh.client("a");
        let flood = flood(&place, source, sink).await?;
        within(SOON, "the flood is more than the path takes", async || {
            let metrics = mesh.cloud("a").metrics(0).await?;
            Ok(metrics.lines().any(|line| line.starts_with("eastway_udp_dropped_packets_total{") && !line.ends_with(" 0")))
        })
        .await?;
        let load = mesh.load("b", web, 20);
        let beside = rate(&mesh, web).await?;
        let record = load.stop().await?;
        flood.abort();
        println!(
            "{:.1} MB/s alone, {:.1} MB/s beside the flood; requests beside both: p99 {:?}",
            alone / 1e6, beside / 1e6, record.p99()
        );
        record.none_failed()?;
        ensure!(beside > alone / 10.0, "{beside} of {alone} bytes per second");
        mesh.stop().await
    }

    /// Whichever gateway of b drains, a client that keeps its port is answered all the time.
    async fn a_flow_goes_on_while_gateways_drain_in_turn() {
        let mut mesh = MeshBuilder::of(&["a", "b"]).replicas("b", 2).start().await?;
        let _echo = serve_echo(&mut mesh, "b").await?;
        let usable = async |mesh: &Mesh| {
            let links = mesh.peer("a", "b").await?.links;
            let replicas: std::collections::BTreeSet<_> =
                links.iter().filter(|link| !link.draining).map(|link| link.replica.clone()).collect();
            anyhow::Ok(replicas.len())
        };
        within(SOON, "a link to each", async || Ok(usable(&mesh).await? == 2)).await?;
        let talk = talk(&mesh).await?;
        for replica in [0, 1] {
            let mut gateway = mesh.cloud_mut("b").take_gateway(replica)?;
            gateway.signal(Signal::SIGTERM)?;
            // Nothing is left for it to wait for, once the flow has moved.
            let begun = Instant::now();
            let status = tokio::time::timeout(Duration::from_secs(20), gateway.wait()).await.context("does not end")??;
            println!("replica {replica} ended after {:?}", begun.elapsed());
            ensure!(status.code() == Some(0), "{status}: {}", gateway.log_tail(2000));
            mesh.start_gateways().await?;
            within(SOON, "a link to each again", async || Ok(usable(&mesh).await? == 2)).await?;
        }
        undisturbed("drained in turn", talk.stop().await?)?;
        mesh.stop().await
    }

    /// A link by TCP is replaced by one over QUIC under a conversation, which moves to it and loses next to nothing.
    async fn a_flow_moves_to_the_better_link() {
        let mut mesh = MeshBuilder::of(&["a", "b"]).private("a").prepare().await?;
        mesh.cloud("b").net().set_udp(false).await?;
        mesh.start_gateways().await?;
        mesh.wait_up("a", "b", SOON).await?;
        let _echo = serve_echo(&mut mesh, "b").await?;
        let talk = talk(&mesh).await?;
        ensure!(mesh.peer("a", "b").await?.links.iter().all(|link| link.transport == "tcp"));
        mesh.cloud("b").net().set_udp(true).await?;
        within(Duration::from_secs(40), "the flow is carried by QUIC and nothing by TCP", async || {
            let links = mesh.peer("a", "b").await?.links;
            Ok(links.len() == 1 && links.iter().all(|link| link.transport == "quic" && link.flows == 1))
        })
        .await?;
        let answered = talk.so_far().answered;
        within(SOON, "it goes on", async || Ok(talk.so_far().answered > answered + 100)).await?;
        undisturbed("from TCP to QUIC", talk.stop().await?)?;
        mesh.stop().await
    }
}

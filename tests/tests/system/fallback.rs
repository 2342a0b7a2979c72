//! Links where UDP does not pass: over TLS on TCP, and back (F38).

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use eastway_tests::mesh::{Mesh, MeshBuilder};
use eastway_tests::proxy::Proxy;
use eastway_tests::servers::{Habit, body};
use eastway_tests::{lab_test, load, within};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

use crate::check;

/// A link by TCP is there soon after the first try by UDP.
const FALLBACK: Duration = Duration::from_secs(3);

/// Waits until the link of `from` to `to` is carried by `transport` alone.
async fn carried_by(mesh: &Mesh, from: &str, to: &str, transport: &str, patience: Duration) -> Result<Duration> {
    within(patience, format!("{from} reaches {to} by {transport} alone"), async || {
        let links = mesh.peer(from, to).await?.links;
        Ok(!links.is_empty() && links.iter().all(|link| link.transport == transport))
    })
    .await
}

/// Why a link is not by QUIC, where this side tried that.
const BLOCKED: &str = "is UDP port 15443 blocked?";

/// Waits until all that the operator of `cloud` can ask says that its links to `peer` go by what is second best, and by
/// `eastway check` with this reason; or, without one, that they do not.
async fn says_degraded(mesh: &Mesh, cloud: &str, peer: &str, why: Option<&str>) -> Result<()> {
    within(Duration::from_secs(30), format!("{cloud} says that {peer} is degraded: {why:?}"), async || {
        let links = mesh.peer(cloud, peer).await?.links;
        ensure!(!links.is_empty() && links.iter().all(|link| link.degraded == why.is_some()), "{links:?}");
        let (_, table) = mesh.cloud(cloud).command(0, &["peers"]).await?;
        ensure!(table.contains("degraded: tcp") == why.is_some(), "{table}");
        let metrics = mesh.cloud(cloud).metrics(0).await?;
        let line = format!("eastway_peer_degraded{{peer=\"{peer}\"}} {}", u8::from(why.is_some()));
        ensure!(metrics.lines().any(|known| known == line), "no {line}");
        let finding = check::finding(mesh, cloud, "EW307").await?.map(|finding| finding.to_string());
        Ok(match (finding, why) {
            (Some(said), Some(why)) => said.contains("linked over tcp") && said.contains(why),
            (finding, why) => finding.is_none() && why.is_none(),
        })
    })
    .await?;
    Ok(())
}

/// Lets UDP pass between `a` and `b`, or not.
async fn set_udp(mesh: &Mesh, passes: bool) -> Result<()> {
    mesh.cloud("a").net().set_udp(passes).await?;
    mesh.cloud("b").net().set_udp(passes).await
}

/// Asks for a large body and takes it slowly, for at least `lasting`; fails if a byte of it is missing or altered.
fn slow_download(mesh: &Mesh, cloud: &str, target: SocketAddr, lasting: Duration) -> JoinHandle<Result<()>> {
    const SIZE: usize = 64 << 20;
    const CHUNK: usize = 64 << 10;
    let (place, source) = mesh.client(cloud);
    let pause = lasting / u32::try_from(SIZE / CHUNK).expect("a number of chunks");
    place.spawn(async move {
        let mut stream = load::connect(source, target).await?;
        stream.write_all(format!("GET /7/{SIZE} HTTP/1.1\r\n\r\n").as_bytes()).await?;
        let expected = body(7, SIZE);
        let (mut got, mut chunk) = (Vec::new(), vec![0; CHUNK]);
        loop {
            let head = got.windows(4).take(1_024).position(|bytes| bytes == b"\r\n\r\n");
            if head.is_some_and(|head| got.len() - head - 4 >= SIZE) {
                let body = &got[head.unwrap_or_default() + 4..];
                ensure!(body == expected, "an altered body");
                return Ok(());
            }
            let read = stream.read(&mut chunk).await.with_context(|| format!("after {} bytes", got.len()))?;
            ensure!(read > 0, "the end after {} bytes", got.len());
            got.extend_from_slice(&chunk[..read]);
            // As a client takes it that has more to do: slower than the network is.
            tokio::time::sleep(pause).await;
        }
    })
}

lab_test! {
    /// UDP is dropped from the start: the link comes up by TCP soon, requests cross both ways, and status says so.
    async fn f38_where_udp_never_passes_links_are_by_tcp() {
        let lines = json!({"log": {"access": "all"}});
        let mut mesh = MeshBuilder::of(&["a", "b"]).settings("a", &lines).settings("b", &lines).prepare().await?;
        set_udp(&mesh, false).await?;
        mesh.serve("b", "web", 11, Habit::Http).await?;
        mesh.serve("a", "shop", 12, Habit::Http).await?;
        mesh.start_gateways().await?;
        let begun = Instant::now();
        mesh.wait_up("a", "b", FALLBACK).await?;
        println!("up after {:?}", begun.elapsed());
        carried_by(&mesh, "a", "b", "tcp", FALLBACK).await?;
        carried_by(&mesh, "b", "a", "tcp", FALLBACK).await?;
        says_degraded(&mesh, "a", "b", Some(BLOCKED)).await?;
        // Where a was quicker, b has not tried itself.
        says_degraded(&mesh, "b", "a", Some("")).await?;
        let (there, back) = (mesh.target("a", "web").await?, mesh.target("b", "shop").await?);
        mesh.wait_answer("a", there, "b-11", Duration::from_secs(5)).await?;
        mesh.wait_answer("b", back, "a-12", Duration::from_secs(5)).await?;
        let loads = [mesh.load("a", there, 100), mesh.load("b", back, 100)];
        within(Duration::from_secs(10), "3 s of load", async || Ok(loads[0].elapsed() > Duration::from_secs(3))).await?;
        for load in loads {
            let record = load.stop().await?;
            println!("p99 {:?}", record.p99());
            record.none_failed()?;
        }
        for cloud in ["a", "b"] {
            let log = mesh.cloud(cloud).gateway(0)?.log_tail(1 << 20);
            for direction in ["outbound", "inbound"] {
                let mut lines = log.lines().filter(|line| line.contains(&format!("direction=\"{direction}\""))).peekable();
                ensure!(lines.peek().is_some() && lines.all(|line| line.contains("path=\"tcp\"")), "{cloud}: {log}");
            }
        }
        mesh.stop().await
    }

    /// UDP stops in mid-life: the link is replaced by one over TCP. UDP comes back: the link is by QUIC again, no request
    /// fails, and a download that began over TCP ends whole.
    async fn f38_udp_that_goes_and_comes_back() {
        let mut mesh = MeshBuilder::of(&["a", "b"]).private("a").start().await?;
        mesh.serve("b", "web", 11, Habit::Http).await?;
        let target = mesh.target("a", "web").await?;
        mesh.wait_answer("a", target, "b-11", Duration::from_secs(5)).await?;
        carried_by(&mesh, "a", "b", "quic", Duration::from_secs(5)).await?;

        set_udp(&mesh, false).await?;
        let begun = Instant::now();
        carried_by(&mesh, "a", "b", "tcp", Duration::from_secs(8)).await?;
        mesh.wait_answer("a", target, "b-11", FALLBACK).await?;
        println!("by TCP {:?} after UDP was gone", begun.elapsed());
        says_degraded(&mesh, "a", "b", Some(BLOCKED)).await?;

        let load = mesh.load("a", target, 100);
        let download = slow_download(&mesh, "a", target, Duration::from_secs(25));
        within(Duration::from_secs(5), "some of it", async || Ok(load.elapsed() > Duration::from_secs(2))).await?;
        set_udp(&mesh, true).await?;
        let begun = Instant::now();
        within(Duration::from_secs(30), "new streams go by QUIC", async || {
            let links = mesh.peer("a", "b").await?.links;
            Ok(links.iter().any(|link| link.transport == "quic" && !link.draining))
        })
        .await?;
        println!("by QUIC {:?} after UDP was back", begun.elapsed());
        let links = mesh.peer("a", "b").await?.links;
        ensure!(links.iter().any(|link| link.transport == "tcp"), "nothing is under way by TCP any more: {links:?}");
        download.await??;
        carried_by(&mesh, "a", "b", "quic", Duration::from_secs(10)).await?;
        says_degraded(&mesh, "a", "b", None).await?;
        load.stop().await?.none_failed()?;
        mesh.stop().await
    }

    /// A peer that is to be reached by QUIC alone is not reached without UDP, and it is said why; with UDP it is.
    async fn f38_a_link_that_must_be_quic_asks_whether_udp_is_blocked() {
        let quic = json!({"spec": {"transport": "quic"}});
        let mut mesh = MeshBuilder::of(&["a", "b"]).private("a").peer("a", "b", &quic).prepare().await?;
        set_udp(&mesh, false).await?;
        mesh.start_gateways().await?;
        within(Duration::from_secs(20), "what is wrong is said", async || {
            Ok(mesh.peer("a", "b").await?.last_error.is_some_and(|said| said.contains(BLOCKED)))
        })
        .await?;
        let (_, table) = mesh.cloud("a").command(0, &["peers"]).await?;
        ensure!(table.contains(BLOCKED), "{table}");
        let links = mesh.peer("a", "b").await?.links;
        ensure!(links.is_empty(), "{links:?}");
        set_udp(&mesh, true).await?;
        mesh.wait_up("a", "b", Duration::from_secs(20)).await?;
        carried_by(&mesh, "a", "b", "quic", Duration::ZERO).await?;
        says_degraded(&mesh, "a", "b", None).await?;
        mesh.stop().await
    }

    /// A cluster without inbound, where UDP does not pass: requests cross in both directions all the same.
    async fn f38_a_private_cluster_is_reached_by_tcp() {
        let mut mesh = MeshBuilder::of(&["a", "b"]).private("a").prepare().await?;
        set_udp(&mesh, false).await?;
        mesh.cloud("a").net().forbid_inbound().await?;
        mesh.serve("a", "inside", 12, Habit::Http).await?;
        mesh.serve("a", "greeter", 13, Habit::HalfClose).await?;
        mesh.start_gateways().await?;
        mesh.wait_up("b", "a", FALLBACK).await?;
        let target = mesh.target("b", "inside").await?;
        mesh.wait_answer("b", target, "a-12", Duration::from_secs(5)).await?;
        let load = mesh.load("b", target, 200);
        within(Duration::from_secs(10), "3 s of load", async || Ok(load.elapsed() > Duration::from_secs(3))).await?;
        let record = load.stop().await?;
        println!("p99 {:?}", record.p99());
        record.none_failed()?;
        mesh.stop().await
    }

    /// A proxy that wants credentials is the only way out: links go by way of it, and what is wrong is said.
    async fn f38_a_proxy_with_credentials_is_the_only_way_out() {
        let address = SocketAddr::from(([198, 51, 100, 1], 3128));
        let proxy = json!({"spec": {"proxy": {"url": format!("http://{address}"), "username": "alice", "passwordFile": "secret"}}});
        let mut mesh = MeshBuilder::of(&["a", "b"]).peer("a", "b", &proxy).prepare().await?;
        let served = Proxy::start(mesh.lab().wan(), address, "alice", "open sesame").await?;
        mesh.cloud("a").net().block_from(mesh.cloud("b").net()).await?;
        mesh.cloud("b").net().block_from(mesh.cloud("a").net()).await?;
        let secret = mesh.cloud("a").peer_file("b").with_file_name("secret");
        std::fs::write(&secret, "wrong")?;
        mesh.serve("b", "web", 11, Habit::Http).await?;
        mesh.serve("a", "shop", 12, Habit::Http).await?;
        mesh.start_gateways().await?;
        within(Duration::from_secs(10), "what is wrong is said", async || {
            let said = mesh.peer("a", "b").await?.last_error.unwrap_or_default();
            Ok(said.contains("407 Proxy Authentication Required") && said.contains("proxy.passwordFile"))
        })
        .await?;
        ensure!(served.connected() == 0 && served.refused() > 0);
        std::fs::write(&secret, "open sesame\n")?;
        mesh.wait_up("a", "b", Duration::from_secs(20)).await?;
        let (there, back) = (mesh.target("a", "web").await?, mesh.target("b", "shop").await?);
        mesh.wait_answer("a", there, "b-11", Duration::from_secs(5)).await?;
        mesh.wait_answer("b", back, "a-12", Duration::from_secs(5)).await?;
        carried_by(&mesh, "a", "b", "tcp", Duration::ZERO).await?;
        let links = mesh.peer("a", "b").await?.links;
        ensure!(links.iter().all(|link| link.remote == address.to_string()), "{links:?}");
        ensure!(served.connected() > 16);
        mesh.stop().await
    }

    /// A proxy that allows two connections is the only way out: with `maxConnections` that is enough for many streams, both
    /// ways, at one time and one after the other.
    async fn f38_a_proxy_that_allows_two_connections_carries_many_streams() {
        const AT_ONCE: usize = 200;
        let address = SocketAddr::from(([198, 51, 100, 1], 3128));
        // More than it allows: fewer do.
        let proxy = json!({"spec": {
            "maxConnections": 3,
            "proxy": {"url": format!("http://{address}"), "username": "alice", "passwordFile": "secret"},
        }});
        let mut mesh = MeshBuilder::of(&["a", "b"]).peer("a", "b", &proxy).prepare().await?;
        let served = Proxy::start_with(mesh.lab().wan(), address, ("alice", "open sesame"), 2).await?;
        mesh.cloud("a").net().block_from(mesh.cloud("b").net()).await?;
        mesh.cloud("b").net().block_from(mesh.cloud("a").net()).await?;
        std::fs::write(mesh.cloud("a").peer_file("b").with_file_name("secret"), "open sesame\n")?;
        mesh.serve("b", "web", 11, Habit::Http).await?;
        mesh.serve("a", "shop", 12, Habit::Http).await?;
        mesh.start_gateways().await?;
        mesh.wait_up("a", "b", Duration::from_secs(20)).await?;
        let (there, back) = (mesh.target("a", "web").await?, mesh.target("b", "shop").await?);
        mesh.wait_answer("a", there, "b-11", Duration::from_secs(5)).await?;
        mesh.wait_answer("b", back, "a-12", Duration::from_secs(5)).await?;
        // Many at a time.
        let (place, source) = mesh.client("a");
        let streams = place.run(async move {
            let mut streams = Vec::new();
            for id in 0..AT_ONCE {
                let mut stream = load::connect(source, there).await?;
                stream.write_all(format!("GET /{id}/100 HTTP/1.1\r\n\r\n").as_bytes()).await?;
                streams.push(stream);
            }
            for stream in &mut streams {
                let mut byte = [0];
                let answered = tokio::time::timeout(Duration::from_secs(20), stream.read_exact(&mut byte));
                answered.await.context("no answer in time")??;
            }
            Ok(streams)
        });
        let streams = streams.await?;
        let links = mesh.peer("a", "b").await?.links;
        ensure!(links.len() == 1 && links[0].streams >= u32::try_from(AT_ONCE)?, "{links:?}");
        ensure!(links[0].connections == Some(2), "{links:?}");
        // And one after the other, with a large one beside.
        let loads = [mesh.load("a", there, 100), mesh.load("b", back, 100)];
        let download = slow_download(&mesh, "a", there, Duration::from_secs(3));
        within(Duration::from_secs(10), "3 s of load", async || Ok(loads[0].elapsed() > Duration::from_secs(3))).await?;
        for load in loads {
            let record = load.stop().await?;
            println!("p99 {:?}", record.p99());
            record.none_failed()?;
        }
        download.await??;
        drop(streams);
        ensure!(served.connected() == 2, "{} connections", served.connected());
        println!("{} were refused", served.refused());
        mesh.stop().await
    }
}

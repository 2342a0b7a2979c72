//! What applications see of a connection that breaks: a reset, never the end of the data.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use eastway_tests::mesh::{Mesh, MeshBuilder};
use eastway_tests::servers::Habit;
use eastway_tests::{lab_test, load, within};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Longest wait for what must come at once: a busy machine needs some.
const SOON: Duration = Duration::from_secs(5);

/// A client of `cloud` that is connected to `service` and has heard its greeting.
async fn greeted(mesh: &Mesh, cloud: &str, service: &str, greeting: &str) -> Result<TcpStream> {
    let target = mesh.target(cloud, service).await?;
    let (place, source) = mesh.client(cloud);
    let expected = format!("{greeting}\n");
    let connected = async move {
        let mut stream = load::connect(source, target).await?;
        let mut heard = vec![0; expected.len()];
        tokio::time::timeout(SOON, stream.read_exact(&mut heard)).await.context("no greeting")??;
        ensure!(heard == expected.as_bytes(), "{}", String::from_utf8_lossy(&heard));
        Ok(stream.into_std()?)
    };
    Ok(TcpStream::from_std(place.run(connected).await?)?)
}

/// How a connection ends for who reads it.
async fn ending(stream: &mut TcpStream, within: Duration) -> Result<std::io::Result<usize>> {
    let mut rest = Vec::new();
    tokio::time::timeout(within, stream.read_to_end(&mut rest)).await.context("it does not end")
}

fn is_reset(ending: &std::io::Result<usize>) -> bool {
    ending.as_ref().is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
}

lab_test! {
    /// A server that resets after a part of its answer: its client must not take the part for the whole,
    /// wherever the two are.
    async fn a_reset_of_the_server_reaches_the_client() {
        let mut mesh = MeshBuilder::of(&["a", "b"]).start().await?;
        mesh.serve("b", "resets", 11, Habit::Resets).await?;
        for cloud in ["a", "b"] {
            let mut stream = greeted(&mesh, cloud, "resets", "b-11").await?;
            stream.write_all(b"?").await?;
            let ending = ending(&mut stream, SOON).await?;
            ensure!(is_reset(&ending), "client of {cloud}: {ending:?}");
        }
        // The access log says what broke, and where the client had connected to.
        let target = mesh.target("a", "resets").await?;
        within(SOON, "the line is written", async || {
            let log = mesh.cloud("a").logs();
            Ok(log.lines().any(|line| {
                line.contains(&format!("downstream_local_address={target}")) && line.contains("UPSTREAM_RESET")
            }))
        }).await?;
        mesh.stop().await
    }

    /// A client that resets: the server must not take what it got for all there is.
    async fn a_reset_of_the_client_reaches_the_server() {
        let mut mesh = MeshBuilder::of(&["a", "b"]).start().await?;
        let server = mesh.serve("b", "greeter", 11, Habit::Greeter).await?;
        for (cloud, count) in [("a", 1), ("b", 2)] {
            let stream = greeted(&mesh, cloud, "greeter", "b-11").await?;
            SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
            drop(stream);
            within(SOON, format!("the server hears of the reset of {cloud}'s client"), async || {
                Ok(server.reset() == count && server.open() == 0)
            }).await?;
        }
        mesh.stop().await
    }

    /// Gateways that are killed under a connection: both ends learn that it is not complete.
    async fn a_killed_gateway_resets_what_it_carried() {
        let mut mesh = MeshBuilder::of(&["a", "b"]).start().await?;
        let server = mesh.serve("b", "greeter", 11, Habit::Greeter).await?;
        let mut stream = greeted(&mesh, "a", "greeter", "b-11").await?;
        mesh.cloud_mut("b").kill_gateway(0).await?;
        let ending_a = ending(&mut stream, Duration::from_secs(10)).await?;
        ensure!(is_reset(&ending_a), "the owner was killed: {ending_a:?}");
        within(SOON, "the server hears of it", async || Ok(server.reset() == 1)).await?;
        mesh.start_gateways().await?;
        mesh.wait_up("a", "b", Duration::from_secs(10)).await?;
        let mut stream = greeted(&mesh, "a", "greeter", "b-11").await?;
        mesh.cloud_mut("a").kill_gateway(0).await?;
        let ending_a = ending(&mut stream, SOON).await?;
        ensure!(is_reset(&ending_a), "the client's own gateway was killed: {ending_a:?}");
        within(Duration::from_secs(10), "the server hears of it", async || Ok(server.reset() == 2)).await?;
        mesh.start_gateways().await?;
        mesh.stop().await
    }

    /// The end of the drain is an end before time, too.
    async fn connections_that_outlive_the_drain_are_reset() {
        let drain = serde_json::json!({"link": {"drain": "1s"}});
        let mut mesh = MeshBuilder::of(&["a", "b"]).settings("a", &drain).start().await?;
        let server = mesh.serve("b", "greeter", 11, Habit::Greeter).await?;
        let mut stream = greeted(&mesh, "a", "greeter", "b-11").await?;
        let stopping = mesh.cloud_mut("a").stop(Duration::from_secs(10));
        let (stopped, ending) = tokio::join!(stopping, ending(&mut stream, Duration::from_secs(15)));
        stopped?;
        let ending = ending?;
        ensure!(is_reset(&ending), "{ending:?}");
        within(SOON, "the server hears of it", async || Ok(server.reset() == 1)).await?;
        mesh.stop().await
    }

    /// A client that goes while its endpoint reads nothing: the owner lets go of the endpoint at once, not at the
    /// idle limit.
    async fn an_endpoint_that_reads_nothing_is_let_go_with_its_client() {
        let mut mesh = MeshBuilder::of(&["a", "b"]).start().await?;
        let server = mesh.serve("b", "silent", 11, Habit::Silent).await?;
        let target = mesh.target("a", "silent").await?;
        let (place, source) = mesh.client("a");
        let streams = place.run(async move {
            let mut streams = Vec::new();
            for _ in 0..10 {
                let mut stream = load::connect(source, target).await?;
                let block = vec![7; 1 << 20];
                // Until nothing on the way takes more.
                while let Ok(written) = tokio::time::timeout(Duration::from_millis(300), stream.write(&block)).await {
                    written?;
                }
                streams.push(stream);
            }
            Ok(streams)
        }).await?;
        within(SOON, "all are connected", async || Ok(server.open() == 10)).await?;
        for stream in &streams {
            SockRef::from(stream).set_linger(Some(Duration::ZERO))?;
        }
        let begun = Instant::now();
        drop(streams);
        within(SOON, "the owner lets go", async || Ok(server.open() == 0)).await?;
        println!("let go after {:?}", begun.elapsed());
        mesh.stop().await
    }
}

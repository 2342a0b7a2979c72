//! More connections than Envoy has memory for: those that it has go on, and it is there for others afterwards.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use eastway_tests::lab::place::Place;
use eastway_tests::mesh::MeshBuilder;
use eastway_tests::servers::{Habit, Server};
use eastway_tests::{envoy, lab_test, load, within};
use futures_util::future::join_all;
use nix::unistd::Pid;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::timeout;

use crate::gateway::IMPORT;
use crate::host::{Conversation, Host, envoys};
use crate::mutual::{INBOUND, PATIENCE, POD, settings, start_sidecar};

/// What Envoy may use, in the test of its heap: with nothing to do it uses a third of it.
const LITTLE: &str = "40MiB";
/// Whether it has stopped taking connections.
const STOPPED: &str = "overload.envoy.overload_actions.stop_accepting_connections.active";
/// A connection that takes nothing for so long is full.
const FULL: Duration = Duration::from_millis(300);
/// In the other test; there are so many connections for it.
const MORE: (&str, usize) = ("64MiB", 1024);
/// What is said on a connection: enough to see that it is no TLS.
const WORD: &[u8] = b"anybody?";
/// How soon a connection beyond them is ended.
const SOON: Duration = Duration::from_secs(3);

/// A number of Envoy's administration.
async fn number(socket: &Path, name: &str) -> Result<u64> {
    let output = Command::new("curl")
        .args(["--silent", "--fail", "--max-time", "5", "--unix-socket"])
        .arg(socket)
        .arg("http://envoy/stats")
        .output()
        .await?;
    let said = String::from_utf8(output.stdout)?;
    let line = said.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    Ok(line.with_context(|| format!("no {name} in {said}"))?.parse()?)
}

/// Bytes of memory that are a process's own.
fn own_memory(pid: Pid) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
}

/// A connection whose client reads nothing of what comes back: what it sends stays in Envoy.
async fn full() -> Result<TcpStream> {
    let mut stream = TcpStream::connect(IMPORT).await?;
    while timeout(FULL, stream.write_all(&[0; 64 << 10])).await.is_ok_and(|written| written.is_ok()) {}
    Ok(stream)
}

/// Its workload opens connection after connection, and what is in them has no end.
async fn heap(version: &'static str) -> Result<()> {
    let host = Host::start(version).await?;
    let path = envoy::binary(version)?;
    let sidecar = host.sidecar(&json!({"envoy": {"path": path, "concurrency": 1, "memory": LITTLE}}))?;
    sidecar.caller().await?;
    let mut kept = Conversation::start().await?;
    let [pid] = envoys()[..] else { anyhow::bail!("{:?}", envoys()) };
    let before = own_memory(pid)?;
    let socket = host.path("state/envoy-admin.sock");
    let stopped = async || number(&socket, STOPPED).await.map(|number| number == 1);
    ensure!(!stopped().await?);
    let mut open = Vec::new();
    while !stopped().await? {
        ensure!(open.len() < 64, "it takes whatever comes");
        open.push(full().await?);
    }
    kept.echo("still here").await?;
    ensure!(Conversation::start().await.is_err(), "one more is taken");
    let most = own_memory(pid)?;
    println!("Envoy {version}: {} full connections in {LITTLE}, {before} to {most} bytes", open.len());
    ensure!(most < 48 << 20, "{most} bytes");
    drop(open);
    within(PATIENCE, "it takes connections again", async || Ok(!stopped().await?)).await?;
    sidecar.caller().await?;
    kept.echo("as ever").await?;
    ensure!(envoys() == [pid], "it was started again");
    sidecar.stop().await
}

/// A connection, if the server at its other end answers.
async fn answered(place: &Place, to: SocketAddr) -> Result<Option<TcpStream>> {
    place
        .run(async move {
            let mut stream = load::connect(to.ip(), to).await?;
            // One that is too many is closed before a byte, and may be so already.
            let _closed = stream.write_all(WORD).await;
            Ok(
                match timeout(SOON, stream.read_exact(&mut [0; WORD.len()]))
                    .await
                    .context("neither taken nor closed")?
                {
                    Ok(_) => Some(stream),
                    Err(_) => None,
                },
            )
        })
        .await
}

/// Others open connection after connection to the workload, in plain text.
async fn connections(version: &'static str) -> Result<()> {
    let inside = "10.244.0.1".parse()?;
    let mut mesh = MeshBuilder::of(&["a"]).settings("a", &settings(inside, &["servers".to_owned()])).prepare().await?;
    mesh.start_gateways().await?;
    let (pods, pod) = (mesh.cloud("a").net().pods().clone(), mesh.cloud("a").net().pod(POD));
    let (app, place) = (SocketAddr::new(pod, 8080), SocketAddr::new(pod, INBOUND));
    let _server = Server::start(&pods, app, "web", Habit::Echo).await?;
    let inbound = json!({"listen": place, "app": app, "protocol": "tcp", "mode": "permissive"});
    let more = json!({"inbound": [inbound], "outbound": false, "envoy": {"memory": MORE.0}});
    start_sidecar(&mut mesh, version, "a", "servers", &more).await?;
    within(PATIENCE, "it listens", async || Ok(answered(&pods, place).await.is_ok_and(|it| it.is_some()))).await?;
    let mut open = Vec::new();
    while open.len() < MORE.1 {
        let taken = join_all((0..32).map(|_| answered(&pods, place))).await;
        let taken: Vec<_> = taken.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
        ensure!(!taken.is_empty(), "only {} are taken", open.len());
        open.extend(taken);
    }
    ensure!(open.len() == MORE.1, "{} are taken", open.len());
    ensure!(answered(&pods, place).await?.is_none(), "one more is taken");
    let mut first = open.swap_remove(0);
    first.write_all(WORD).await?;
    timeout(SOON, first.read_exact(&mut [0; WORD.len()])).await.context("the first does not go on")??;
    drop(first);
    drop(open);
    within(PATIENCE, "others are taken again", async || Ok(answered(&pods, place).await?.is_some())).await?;
    mesh.stop().await
}

lab_test! {
    async fn with_its_heap_full_it_takes_no_more_and_lives_on_envoy_1_40_0() { heap("1.40.0").await }
    async fn with_its_heap_full_it_takes_no_more_and_lives_on_envoy_1_36_2() { heap("1.36.2").await }
    async fn it_has_no_more_connections_than_memory_for_them_envoy_1_40_0() { connections("1.40.0").await }
    async fn it_has_no_more_connections_than_memory_for_them_envoy_1_36_2() { connections("1.36.2").await }
}

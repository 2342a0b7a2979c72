//! Who is trusted no more is cut; who only gets another certificate is not.

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use eastway_tests::lab::files;
use eastway_tests::load::{self, Load, Plan};
use eastway_tests::mesh::{Mesh, NAMESPACE};
use eastway_tests::{lab_test, within};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::forged::{BYTES, Forged, HTTP2, connect, forge, is_taken};
use crate::mutual::{CLIENT, HBONE, INBOUND, PATIENCE, POD, World, XDS};

/// What a cut may take.
const CUT: Duration = Duration::from_secs(5);
/// What a machine with other work may add.
const BUSY: Duration = Duration::from_secs(3);
/// Requests per second of a load.
const RATE: u32 = 200;

/// An open connection to b's service of bytes, of somebody with this certificate, past the sidecar's gateways.
async fn open(world: &World, who: &Forged) -> Result<TlsStream<TcpStream>> {
    let pod = world.mesh.cloud("b").net().pod(POD);
    let to = SocketAddr::new(pod, INBOUND + 3);
    let mut tls = connect(world.mesh.cloud("b").net().pods(), pod, to, BYTES, who).await?;
    tls.write_all(b"hello").await?;
    let mut heard = Vec::new();
    while !heard.ends_with(b"hello") {
        ensure!(tls.read_buf(&mut heard).await? > 0, "it was cut");
    }
    Ok(tls)
}

/// How long it takes from `begun` until the other side ends this connection.
async fn until_cut(mut stream: impl AsyncRead + Unpin, begun: Instant, what: &str) -> Result<Duration> {
    let read = tokio::time::timeout(CUT + CUT, stream.read(&mut [0; 64])).await;
    let took = begun.elapsed();
    ensure!(!matches!(read, Ok(Ok(1..))), "{what}: it says something");
    ensure!(read.is_ok() && took <= CUT + BUSY, "{what}: not cut within {:?}", CUT + BUSY);
    Ok(took)
}

async fn revoke(mesh: &Mesh, cloud: &str, serial: &str) -> Result<Instant> {
    let (code, said) = mesh.cloud(cloud).command(0, &["ca", "revoke", serial]).await?;
    ensure!(code == Some(0) && said.contains(serial), "{said}");
    Ok(Instant::now())
}

async fn cut(version: &'static str) -> Result<()> {
    let mut world = World::start(version).await?;
    world.client().await?;
    let (x, y) = ("spiffe://a.example/ns/shop/sa/x", "spiffe://a.example/ns/shop/sa/y");
    let (x, y) = (forge(world.mesh.cloud("a"), &[x])?, forge(world.mesh.cloud("a"), &[y])?);
    let own = forge(world.mesh.cloud("b"), &["spiffe://b.example/ns/shop/sa/z"])?;
    let (b, pods) = (world.mesh.cloud("b").net().pod(POD), world.mesh.cloud("b").net().pods().clone());
    let sidecar = SocketAddr::new(b, INBOUND + 3);

    // One certificate of a's CA.
    let open_x = open(&world, &x).await?;
    let serial = eastway_identity::crl::serial(&x.chain[0]).context("a serial number")?;
    let begun = revoke(&world.mesh, "a", &serial).await?;
    let took = until_cut(open_x, begun, "revoked").await?;
    ensure!(!is_taken(&pods, b, sidecar, BYTES, &x).await?, "it comes again");
    ensure!(is_taken(&pods, b, sidecar, BYTES, &y).await?, "another of the same CA");
    println!("{version}: a revoked certificate is cut after {took:?}");

    // That of a's sidecar, over the whole path.
    let mut through = through(&world).await?;
    let serial = serial_of(&world, "a", CLIENT)?;
    let begun = revoke(&world.mesh, "a", &serial).await?;
    let took = until_cut(&mut through, begun, "revoked, over the whole path").await?;
    println!("{version}: the sidecar's own over the whole path after {took:?}");
    within(PATIENCE, "nobody listens to it", async || Ok(world.greeting("echo").await.unwrap_or_default().is_empty()))
        .await?;

    // One of b's own, at its gateway.
    let gateway = world.mesh.cloud("b").net().gateways()[0].inside;
    let mut open_at = Vec::new();
    for port in [HBONE, XDS] {
        let mut tls = connect(&pods, b, SocketAddr::new(gateway, port), HTTP2, &own).await?;
        tls.write_all(HTTP2.says).await?;
        ensure!(tls.read(&mut [0; 1024]).await? > 0, "{port}: not taken");
        open_at.push((port, tls));
    }
    let serial = eastway_identity::crl::serial(&own.chain[0]).context("a serial number")?;
    let begun = revoke(&world.mesh, "b", &serial).await?;
    for (port, mut tls) in open_at {
        let end = async { while tls.read(&mut [0; 1024]).await.is_ok_and(|read| read > 0) {} };
        tokio::time::timeout(CUT + BUSY, end).await.with_context(|| format!("{port}: not cut"))?;
        println!("{version}: revoked, at the gateway's port {port}, after {:?}", begun.elapsed());
        let to = SocketAddr::new(gateway, port);
        ensure!(!is_taken(&pods, b, to, HTTP2, &own).await?, "{port}: it comes again");
    }
    let own = forge(world.mesh.cloud("b"), &["spiffe://b.example/ns/shop/sa/z"])?;

    // The whole of a.
    let (open_y, open_own) = (open(&world, &y).await?, open(&world, &own).await?);
    fs::remove_file(world.mesh.cloud("b").peer_file("a"))?;
    let took = until_cut(open_y, Instant::now(), "its Peer was removed").await?;
    println!("{version}: a removed Peer's are cut after {took:?}");
    drop(open_own);
    ensure!(!is_taken(&pods, b, sidecar, BYTES, &y).await?, "it comes again");
    ensure!(is_taken(&pods, b, sidecar, BYTES, &own).await?, "b's own");
    world.mesh.stop().await
}

/// A connection of a's client to b's service of bytes, over the whole path.
async fn through(world: &World) -> Result<TcpStream> {
    let (place, source) = world.mesh.client("a");
    let target = world.mesh.target("a", "echo").await?;
    place
        .run(async move {
            let mut stream = load::connect(source, target).await?;
            stream.write_all(b"hello").await?;
            let mut heard = Vec::new();
            while !heard.ends_with(b"hello") {
                ensure!(stream.read_buf(&mut heard).await? > 0, "it was cut");
            }
            Ok(stream)
        })
        .await
}

/// Of the certificate that a cloud's CA gave to an account, as its log has it.
fn serial_of(world: &World, cloud: &str, account: &str) -> Result<String> {
    let log = world.mesh.cloud(cloud).logs();
    let line = log.lines().find(|line| line.contains("certificate issued") && line.contains(&format!("/sa/{account}")));
    let serial = line.and_then(|line| line.split("serial=").nth(1)).context("the log has no serial number")?;
    Ok(serial.chars().filter(char::is_ascii_hexdigit).collect())
}

/// The process of the sidecar that was started with this file.
fn sidecar(file: &str) -> Result<Pid> {
    let pids = fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    let is_it = |pid: &i32| {
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let arguments = String::from_utf8_lossy(&arguments).into_owned();
        arguments.contains("\0sidecar\0") && arguments.contains(file)
    };
    Ok(Pid::from_raw(pids.into_iter().find(is_it).context("no such sidecar")?))
}

/// A server whose certificate is revoked loses its clients, also one that hears of nothing any more.
async fn revoked_server(version: &'static str, obeys: bool) -> Result<()> {
    let mut world = World::start(version).await?;
    world.client().await?;
    let neighbour = forge(world.mesh.cloud("b"), &["spiffe://b.example/ns/shop/sa/z"])?;
    let (far, near) = (through(&world).await?, open(&world, &neighbour).await?);
    let agent = sidecar("servers.yaml")?;
    if !obeys {
        kill(agent, Signal::SIGSTOP)?;
    }
    let serial = serial_of(&world, "b", "servers")?;
    let begun = revoke(&world.mesh, "b", &serial).await?;
    let took = until_cut(far, begun, "a client of another cloud").await?;
    println!("{version}: a revoked server (it obeys: {obeys}) loses a client of another cloud after {took:?}");
    if obeys {
        let took = until_cut(near, begun, "a client of its own cloud").await?;
        println!("{version}: and one of its own cloud after {took:?}");
    } else {
        kill(agent, Signal::SIGCONT)?;
    }
    within(PATIENCE, "no client takes it", async || Ok(world.greeting("echo").await.unwrap_or_default().is_empty()))
        .await?;
    world.mesh.stop().await
}

/// A gateway that starts again while nobody else says anything: its sidecars keep whom they know, and what they have.
async fn restarted(version: &'static str) -> Result<()> {
    let mut world = World::start(version).await?;
    let y = forge(world.mesh.cloud("a"), &["spiffe://a.example/ns/shop/sa/y"])?;
    let mut kept = open(&world, &y).await?;
    world.mesh.cloud_mut("a").take_gateway(0)?.kill().await?;
    world.mesh.cloud_mut("b").take_gateway(0)?.kill().await?;
    let configured = |world: &World| world.mesh.cloud("b").logs().matches("the gateway configures a client").count();
    let before = configured(&world);
    world.mesh.cloud_mut("b").start_gateway(0).await?;
    within(PATIENCE, "the sidecar is configured by the new gateway", async || Ok(configured(&world) > before)).await?;
    // Longer than a cut takes to show.
    let cut = tokio::time::timeout(Duration::from_secs(4), kept.read(&mut [0; 16])).await;
    ensure!(cut.is_err(), "who was connected is cut: {cut:?}");
    kept.write_all(b"still").await?;
    kept.read_exact(&mut [0; 5]).await?;
    let (pod, pods) = (world.mesh.cloud("b").net().pod(POD), world.mesh.cloud("b").net().pods());
    ensure!(is_taken(pods, pod, SocketAddr::new(pod, INBOUND + 3), BYTES, &y).await?, "a is not known any more");
    world.mesh.stop().await
}

async fn pin_both(mesh: &Mesh, at: &str, of: &str) -> Result<()> {
    let (code, said) = mesh.cloud(of).command(0, &["peer", "export"]).await?;
    ensure!(code == Some(0), "peer export: {said}");
    let pins = said.lines().filter_map(|line| line.trim().strip_prefix("- \"sha256:"));
    let pins: Vec<_> = pins.map(|rest| format!("sha256:{}", rest.trim_end_matches('"'))).collect();
    let target = mesh.cloud(of);
    let mut file = files::peer(of, &target.advertised(), target.pin(), &[NAMESPACE]);
    files::merge(&mut file, &json!({"spec": {"pins": pins}}));
    mesh.cloud(at).write_peer(of, &file)
}

/// How many keys of the other cloud's CA a cloud's sidecar knows: a's of b by what it connects out with, b's of a by what
/// it lets in with, where its own is too.
async fn known(world: &World, cloud: &str) -> Result<usize> {
    let (account, secret, own) = if cloud == "a" { (CLIENT, "bundle:b.example", 0) } else { ("servers", "anchors", 1) };
    let secret = world.secret(cloud, account, secret).await?;
    Ok(secret.matches("BEGIN CERTIFICATE").count() - own)
}

async fn rotated(version: &'static str) -> Result<()> {
    let mut world = World::start(version).await?;
    world.client().await?;
    let (place, source) = world.mesh.client("a");
    let target = world.mesh.target("a", "load").await?;
    let load = Load::start(&place, Plan { source, target, rate: RATE, size: 1_000 });
    within(PATIENCE, "the load is answered", async || Ok(load.so_far().ok > 100)).await?;
    for (own, other) in [("b", "a"), ("a", "b")] {
        let rotate = async |step: &[&str]| {
            let (code, said) = world.mesh.cloud(own).command(0, &[&["ca", "rotate"], step].concat()).await?;
            ensure!(code == Some(0), "ca rotate {step:?}: {said}");
            Ok(())
        };
        rotate(&["begin"]).await?;
        pin_both(&world.mesh, other, own).await?;
        within(PATIENCE, "the other side's sidecar knows both", async || Ok(known(&world, other).await? == 2)).await?;
        let before = load.sent();
        rotate(&["activate"]).await?;
        within(PATIENCE, "gateway and sidecar have new certificates", async || {
            Ok(world.mesh.cloud(own).logs().matches("certificate renewed").count() > 1)
        })
        .await?;
        let asked = load.sent();
        within(PATIENCE, "requests with it", async || Ok(load.sent() > asked + 200)).await?;
        println!("{version}: {own} rotated, {} requests meanwhile", load.sent() - before);
        rotate(&["finish", "--force"]).await?;
        pin_both(&world.mesh, other, own).await?;
        within(PATIENCE, "the old one is forgotten", async || Ok(known(&world, other).await? == 1)).await?;
        let asked = load.sent();
        within(PATIENCE, "requests after it", async || Ok(load.sent() > asked + 600)).await?;
    }
    let record = load.stop().await?;
    println!("{version}: {} requests over two rotations, {} failed", record.sent, record.failures.len());
    record.none_failed()?;
    world.mesh.stop().await
}

lab_test! {
    async fn i9_revocation_and_removal_cut_within_5_s_envoy_1_40_0() { cut("1.40.0").await }
    async fn i9_revocation_and_removal_cut_within_5_s_envoy_1_36_2() { cut("1.36.2").await }
    async fn i9_a_revoked_server_loses_its_clients_within_5_s_envoy_1_40_0() { revoked_server("1.40.0", true).await }
    async fn i9_a_revoked_server_loses_its_clients_within_5_s_envoy_1_36_2() { revoked_server("1.36.2", true).await }
    async fn i9_a_revoked_server_that_does_not_obey_loses_them_too() { revoked_server("1.40.0", false).await }
    async fn f16_a_restarted_gateway_takes_nobody_from_its_sidecars() { restarted("1.40.0").await }
    async fn f27_rotation_of_both_cas_fails_no_request_envoy_1_40_0() { rotated("1.40.0").await }
    async fn f27_rotation_of_both_cas_fails_no_request_envoy_1_36_2() { rotated("1.36.2").await }
}

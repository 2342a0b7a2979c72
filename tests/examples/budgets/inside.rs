//! Two linked gateways in a laboratory: memory at rest and per connection, and how fast a change arrives.

use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use eastway::proxy::vip::VipLimits;
use eastway_tests::lab::files::ServiceSpec;
use eastway_tests::load;
use eastway_tests::mesh::{Mesh, MeshBuilder, NAMESPACE, PORT};
use eastway_tests::servers::Habit;
use eastway_tests::within;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::table::{Figure, Kind};
use crate::{median_and_p99, to_f64};

/// Connections held open, if as many files may be.
const CONNECTIONS: u64 = 10_000;
/// Pods that they come from: a gateway lets one client have a quarter of what it takes.
const CLIENTS: RangeInclusive<u8> = 20..=23;
/// Opened at once.
const BATCH: u64 = 50;
/// Changes timed.
const CHANGES: usize = 100;
/// Until what a gateway did last is over, e.g. acknowledgements and freed buffers.
const REST: Duration = Duration::from_secs(3);
/// Longest wait for a change.
const PATIENCE: Duration = Duration::from_secs(10);

/// Measures all of it.
pub(crate) async fn measure() -> Result<Vec<Figure>> {
    let mut mesh = MeshBuilder::of(&["a", "b"]).start().await?;
    let server = mesh.serve("b", "echo", 11, Habit::Echo).await?;
    let target = mesh.target("a", "echo").await?;
    let clients: Vec<_> = CLIENTS.map(|pod| (mesh.cloud("a").net().pod(pod), NAMESPACE, "client")).collect();
    mesh.cloud("a").write_services(&[], &clients)?;
    tokio::time::sleep(REST).await;
    let idle = resident(&mesh)?;
    let note = "the larger of two linked gateways at rest";
    let mut figures =
        vec![Figure::new("gateway at rest: resident memory", Kind::Megabytes, idle.0.max(idle.1) / 1e6, 30.0, note)];
    figures.extend(changes(&mut mesh).await?);
    let before = resident(&mesh)?;
    let held = connections(&mesh, target).await?;
    ensure!(server.open() == to_u64(held.len()), "{} connections arrived of {}", server.open(), held.len());
    tokio::time::sleep(REST).await;
    let after = resident(&mesh)?;
    let count = to_f64(to_u64(held.len()));
    let (a, b) = ((after.0 - before.0) / count, (after.1 - before.1) / count);
    let note = format!("of {count}; {a:.0} where it comes in, {b:.0} at the owner; goal 1500");
    figures.push(Figure::new("idle connection, per gateway", Kind::Bytes, a.max(b), 4000.0, note));
    drop(held);
    mesh.stop().await?;
    Ok(figures)
}

/// Resident memory of both gateways, bytes.
fn resident(mesh: &Mesh) -> Result<(f64, f64)> {
    let of = |cloud: &str| anyhow::Ok(to_f64(mesh.cloud(cloud).gateway(0)?.rss()?));
    Ok((of("a")?, of("b")?))
}

fn to_u64(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

/// Opens idle connections from cloud `a` to `target`, each proven by a byte there and back.
async fn connections(mesh: &Mesh, target: std::net::SocketAddr) -> Result<Vec<TcpStream>> {
    // Each has two ends in this process.
    let files = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: files, maximum: files })?;
    // Some of what the gateway takes is in use still, e.g. by connections that asked for changes.
    let taken = to_u64(VipLimits::within(files.unwrap_or(u64::MAX)).connections) / 4 * 3;
    let count = files.map_or(CONNECTIONS, |files| CONNECTIONS.min(files.saturating_sub(500) / 2)).min(taken);
    let net = mesh.cloud("a").net();
    let mut sources = CLIENTS.cycle();
    let mut held = Vec::new();
    while to_u64(held.len()) < count {
        let batch: Vec<_> = (0..BATCH.min(count - to_u64(held.len())))
            .zip(&mut sources)
            .map(|(_, pod)| {
                let source = net.pod(pod);
                net.pods().spawn(async move {
                    let mut stream = load::connect(source, target).await?;
                    stream.write_all(b"x").await?;
                    stream.read_exact(&mut [0]).await?;
                    anyhow::Ok(stream)
                })
            })
            .collect();
        for task in batch {
            held.push(task.await?.with_context(|| format!("connection {}", held.len()))?);
        }
    }
    Ok(held)
}

/// A service that appears in a peer's file: until DNS here has its name, and until it answers at that address.
async fn changes(mesh: &mut Mesh) -> Result<Vec<Figure>> {
    let web = mesh.serve("b", "web", 12, Habit::Http).await?;
    let spec = ServiceSpec::new(NAMESPACE, "fresh", PORT).endpoint(web.address.ip(), "v1");
    let (mut named, mut reached) = (Vec::new(), Vec::new());
    for _ in 0..CHANGES {
        let added = spec.clone();
        mesh.change_services("b", |services| services.push(added))?;
        let started = Instant::now();
        let address = loop {
            if let Ok(address) = mesh.resolve("a", "fresh").await {
                break address;
            }
            ensure!(started.elapsed() < PATIENCE, "a new service is not named after {PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        };
        named.push(started.elapsed().as_secs_f64() * 1e3);
        let answer = mesh.ask("a", std::net::SocketAddr::new(address, PORT)).await?;
        ensure!(answer == "b-12", "answered by {answer}");
        reached.push(started.elapsed().as_secs_f64() * 1e3);
        mesh.change_services("b", |services| services.retain(|service| service.name != "fresh"))?;
        within(PATIENCE, "the service is gone again", async || Ok(mesh.resolve("a", "fresh").await.is_err())).await?;
    }
    let ((p50, p99), (answered, _)) = (median_and_p99(named), median_and_p99(reached));
    let note = format!("{CHANGES} services added to a peer's file; answered over the link after {answered:.0}");
    Ok(vec![
        Figure::new("a remote change, seen in DNS: p50", Kind::Milliseconds, p50, 50.0, note),
        Figure::new("a remote change, seen in DNS: p99", Kind::Milliseconds, p99, 250.0, ""),
    ])
}

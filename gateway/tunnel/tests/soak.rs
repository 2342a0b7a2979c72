//! A day of a link in virtual time: whatever comes and goes on it leaves nothing behind. A process of its own, for it
//! counts allocations.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it measured"
)]

#[allow(dead_code, reason = "shared with the tests of links")]
#[path = "links/support.rs"]
mod support;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use eastway_tunnel::transport::memory::MemoryNetwork;
use eastway_tunnel::{Link, ResetCode};
use support::{Cloud, Gateway, header, pair, read_all, virtual_clock};
use tokio::time::Instant;

const HOURS: usize = 24;
/// Until everything that has a bound of its own has come to it: lists of past losses, pools, the capacity of tables.
const WARM: usize = 4;
/// Rounds of an hour, each with a stream of every kind in both directions.
const ROUNDS: u32 = 60;
const ROUND: Duration = MINUTE;
const MINUTE: Duration = Duration::from_secs(60);
/// Of certificates, renewed at two thirds of it.
const LIFE: Duration = Duration::from_secs(3_600);

/// Two gateways, of which the first dials.
struct World {
    network: MemoryNetwork,
    clouds: [Cloud; 2],
    gateways: [Gateway; 2],
    renewed: Instant,
    links_lost: u32,
    renewals: u32,
}

const A: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), 15_443);
const B: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2)), 15_443);

async fn eventually(what: &str, mut look: impl FnMut() -> bool) {
    let start = Instant::now();
    while !look() {
        assert!(start.elapsed() < MINUTE, "not within a virtual minute: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

impl World {
    async fn new() -> Self {
        let network = MemoryNetwork::new(Duration::from_millis(20), Duration::from_secs(4));
        let clock = virtual_clock();
        let (mut a, mut b) = pair();
        for cloud in [&mut a, &mut b] {
            cloud.world.clock = clock.clone();
            cloud.leaf_ttl = LIFE;
        }
        let gateways = [a.gateway_in(&network, A), b.gateway_in(&network, B)];
        gateways[0].knows(&[("b", &[B])]);
        gateways[1].knows(&[("a", &[])]);
        let world = Self { network, clouds: [a, b], gateways, renewed: Instant::now(), links_lost: 0, renewals: 0 };
        world.linked().await;
        world
    }

    async fn linked(&self) {
        let [a, b] = &self.gateways;
        eventually("one link", || a.links_to("b").len() == 1 && b.links_to("a").len() == 1).await;
    }

    /// An hour of streams of every kind in both directions, four losses of the link, certificates renewed before they end.
    async fn hour(&mut self) {
        let [a, b] = &self.gateways;
        for round in 0..ROUNDS {
            let begun = Instant::now();
            streams(&a.link_to("b").await).await;
            streams(&b.link_to("a").await).await;
            if round % 15 == 7 {
                self.network.cut(A, B);
                let gone = |gateway: &Gateway| gateway.tunnel.status()[0].links.is_empty();
                eventually("the link is lost", || gone(a) && gone(b)).await;
                self.network.heal(A, B);
                self.linked().await;
                self.links_lost += 1;
            }
            if self.renewed.elapsed() > LIFE * 2 / 3 {
                for (cloud, gateway) in self.clouds.iter().zip(&self.gateways) {
                    gateway.identity.replace(cloud.identity());
                }
                (self.renewed, self.renewals) = (Instant::now(), self.renewals + 1);
            }
            tokio::time::sleep(ROUND.saturating_sub(begun.elapsed())).await;
        }
        // All that ended has been told so.
        tokio::time::sleep(MINUTE).await;
        self.linked().await;
        for gateway in &self.gateways {
            let links = &gateway.tunnel.status()[0].links;
            let streams: u32 = links.iter().map(|link| link.streams_opened + link.streams_served).sum();
            assert_eq!(streams, 0, "no stream is left");
        }
    }
}

/// One of every kind: those that end in order, those that are cut by either side, and those that are given up.
async fn streams(link: &Link) {
    for service in ["echo", "page", "count"] {
        let mut stream = link.open(&header(service)).await.unwrap();
        stream.send.write(Bytes::from_static(&[7; 8_192])).await.unwrap();
        stream.send.finish();
        assert!(!read_all(&mut stream.recv).await.unwrap().is_empty());
    }
    for service in ["refused", "dropped", "resets", "stops"] {
        let mut stream = link.open(&header(service)).await.unwrap();
        stream.send.write(Bytes::from_static(b"lost")).await.ok();
        while let Ok(Some(_)) = stream.recv.read().await {}
    }
    let mut reset = link.open(&header("never")).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    reset.send.reset(ResetCode::Cancelled);
    let mut unread = link.open(&header("floods")).await.unwrap();
    unread.recv.read().await.unwrap();
    unread.recv.stop(ResetCode::Cancelled);
    drop(link.open(&header("echo")).await.unwrap());
}

/// What there is at the end of an hour.
#[derive(Clone, Copy, Debug)]
struct Left {
    allocations: i64,
    bytes: i64,
    tasks: usize,
}

#[test]
fn a_day_of_streams_lost_links_and_renewals_leaves_nothing_behind() {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().start_paused(true).build().unwrap();
    let (mut left, mut world) = (Vec::new(), None);
    let mut now = Left { allocations: 0, bytes: 0, tasks: 0 };
    for _ in 0..HOURS {
        let counted = allocation_counter::measure(|| {
            runtime.block_on(async {
                if world.is_none() {
                    world = Some(World::new().await);
                }
                world.as_mut().unwrap().hour().await;
            });
        });
        now.allocations += counted.count_current;
        now.bytes += counted.bytes_current;
        now.tasks = runtime.metrics().num_alive_tasks();
        left.push(now);
    }
    let world = world.unwrap();
    let streams: u64 = world.gateways.iter().map(|gateway| gateway.tunnel.counters().streams_opened).sum();
    println!(
        "{streams} streams, {} links lost, {} renewals; after {WARM} hours {:?}, after {HOURS} {:?}",
        world.links_lost,
        world.renewals,
        left[WARM - 1],
        left[HOURS - 1]
    );
    assert!(streams > 25_000 && world.links_lost >= 96 && world.renewals >= 30, "too little happened");
    let (then, now) = (left[WARM - 1], left[HOURS - 1]);
    assert_eq!(now.tasks, then.tasks, "tasks: {left:?}");
    // Tables and queues keep what capacity they once needed, and that is not the same after each hour.
    assert!(now.allocations - then.allocations <= 100, "allocations: {left:?}");
    assert!(now.bytes - then.bytes <= 64 << 10, "bytes: {left:?}");
    runtime.block_on(async { drop(world) });
}

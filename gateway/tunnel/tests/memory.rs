//! What hostile traffic may cost in memory. A process of its own: what other tests hold would be counted too.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it measured"
)]

#[allow(dead_code, reason = "shared with the tests of links")]
#[path = "links/support.rs"]
mod support;

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use eastway_tunnel::Link;
use support::{Over, PATIENCE, header, pair, read_all, soon, until};
use tokio::task::JoinSet;

/// Resident memory of this process, bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// One test, so that nothing else runs beside what is measured.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_traffic_costs_a_bounded_amount_of_memory() {
    u1_u2_a_flood_of_initials().await;
    p9_streams_that_nobody_reads().await;
    p9_many_links_of_one_peer().await;
}

/// If set: for so many seconds Initials come as fast as this machine sends them. What the listening socket's queue cannot take
/// the kernel drops; links have queues of their own, and this measures whether they keep up.
const SECONDS: &str = "EASTWAY_TEST_FLOOD_SECONDS";

/// Initials with made-up sources cost no memory and no link its streams (U1). Beyond what can be looked at they are
/// dropped, and none is answered by more than a Retry (U2).
async fn u1_u2_a_flood_of_initials() {
    let seconds: Option<u64> = std::env::var(SECONDS).ok().map(|text| text.parse().unwrap());
    let (a, b) = Over::Quic.linked_pair().await;
    let mut stream = a.open("b", "greet").await;
    soon("warm", read_all(&mut stream.recv)).await.unwrap();
    let before = resident();
    let (sent, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let flood = {
        let (target, sent, stop) = (b.tunnel.local_addr(), Arc::clone(&sent), Arc::clone(&stop));
        // As much as an unoptimized build on a busy machine can look at, if not asked for more.
        let pause = seconds.map_or(Duration::from_millis(10), |_| Duration::ZERO);
        std::thread::spawn(move || flood(target, pause, &sent, &stop))
    };
    let mut times = Vec::new();
    until("enough packets", || (sent.load(Ordering::Relaxed) > 500).then_some(())).await;
    let begun = Instant::now();
    let enough = || match seconds {
        Some(seconds) => begun.elapsed() >= Duration::from_secs(seconds),
        None => sent.load(Ordering::Relaxed) >= 12_000,
    };
    while !enough() {
        let at = Instant::now();
        let mut stream = a.open("b", "greet").await;
        let answer = soon("a stream beside the flood", read_all(&mut stream.recv)).await;
        assert_eq!(answer.unwrap(), b"220 ready\r\n", "no stream is lost");
        times.push(at.elapsed());
    }
    stop.store(true, Ordering::Relaxed);
    flood.join().unwrap();
    let grown = resident().saturating_sub(before);
    times.sort_unstable();
    let (sent, took, p99) = (sent.load(Ordering::Relaxed), begun.elapsed(), times.get(times.len() * 99 / 100));
    println!(
        "{sent} Initials in {took:?}, {} streams beside them (p99 {p99:?}), {} KiB more memory",
        times.len(),
        grown >> 10
    );
    assert!(grown <= 32 << 20, "{} KiB more", grown >> 10);
    assert_eq!(a.tunnel.counters().links, 1, "the link itself was not harmed");
    assert!(b.tunnel.status().iter().all(|peer| peer.links.len() == 1), "nothing came of the flood");
    let failed = b.tunnel.counters().handshake_failures;
    assert!(failed.iter().all(|(_, count)| *count == 0), "no Initial got as far as a handshake: {failed:?}");
}

/// Initials of QUIC version 1 that are good as far as a server can see without answering.
fn flood(target: SocketAddr, pause: Duration, sent: &AtomicU64, stop: &AtomicBool) {
    let mut random = fastrand::Rng::with_seed(5);
    let sockets: Vec<_> = (0..64).map(|_| UdpSocket::bind((target.ip(), 0)).unwrap()).collect();
    let mut packet = [0; 1_200];
    while !stop.load(Ordering::Relaxed) {
        for socket in &sockets {
            random.fill(&mut packet);
            // Long header, Initial; version 1; both connection ids of 8 bytes; no token; the length of the rest.
            for (at, bytes) in [(0, &[0xc3, 0, 0, 0, 1, 8][..]), (14, &[8]), (23, &[0, 0x44, 0x96])] {
                packet.iter_mut().skip(at).zip(bytes).for_each(|(byte, value)| *byte = *value);
            }
            // A full queue at the receiver is what a flood meets.
            socket.send_to(&packet, target).ok();
            sent.fetch_add(1, Ordering::Relaxed);
        }
        std::thread::sleep(pause);
    }
}

/// A thousand streams that are never read hold what the link may hold, not what they ask for (P9).
async fn p9_streams_that_nobody_reads() {
    let (a, mut b) = pair();
    b.limits.stream_window = 64 << 10;
    b.limits.link_window = 1 << 20;
    b.limits.link_window_max = 4 << 20;
    let (a, b) = (a.gateway(), b.gateway());
    b.knows(&[("a", &[])]);
    a.knows(&[("b", &[b.tunnel.local_addr()])]);
    let link = a.link_to("b").await;
    let before = resident();
    // 64 MiB in all, if they could.
    let mut stalled = JoinSet::new();
    for _ in 0..1_000 {
        let mut stream = link.open(&header("stalls")).await.unwrap();
        stalled.spawn(async move {
            let block = Bytes::from_static(&[0; 16_384]);
            while stream.send.write(block.clone()).await.is_ok() {}
        });
    }
    let served = || b.tunnel.status().first()?.links.first().map(|link| link.streams_served);
    let mut most = 0;
    until("the excess is cut", || {
        most = most.max(resident().saturating_sub(before));
        served().filter(|served| *served <= 48)
    })
    .await;
    println!("{} KiB more memory at the most", most >> 10);
    // 4 MiB unread at one end, 4 MiB unsent at the other, both in this process; the rest is the streams themselves.
    assert!(most <= 32 << 20, "{} KiB more", most >> 10);
    stalled.abort_all();
}

/// Links of one peer hold together what all links may hold, however many they are and however often it tries again (P9).
async fn p9_many_links_of_one_peer() {
    const LINKS: u8 = 8;
    const STREAMS: usize = 100;
    const TOTAL: u64 = 8 << 20;
    const UNSENT: u32 = 1 << 20;
    let (mut a, mut b) = pair();
    b.limits.stream_window = 256 << 10;
    b.limits.link_window = 1 << 20;
    b.limits.link_window_max = 8 << 20;
    b.limits.total_window = TOTAL;
    a.limits.send_window_max = UNSENT;
    // A busy machine admits streams late.
    a.timing.open = PATIENCE;
    let b = b.gateway();
    b.knows(&[("a", &[])]);
    let replicas: Vec<_> = (0..LINKS).map(|_| a.gateway()).collect();
    let mut links = Vec::new();
    for replica in &replicas {
        replica.knows(&[("b", &[b.tunnel.local_addr()])]);
        links.push(replica.link_to("b").await);
    }
    let before = resident();
    let mut stalled = JoinSet::new();
    for link in links {
        for _ in 0..STREAMS {
            stalled.spawn(stall(link.clone()));
        }
    }
    let cut = || b.tunnel.counters().resets_sent.get("OVERLOADED").copied().unwrap_or_default();
    let mut most = 0;
    until("what is too much is cut", || {
        most = most.max(resident().saturating_sub(before));
        (cut() > 200).then_some(())
    })
    .await;
    most = most.max(resident().saturating_sub(before));
    // Unread at one end and unsent at the other, both in this process. Four times that is for the streams themselves, 800
    // at each end, and for what the allocator keeps. Without a bound on all links together each could hold as much as all may.
    let budget = TOTAL + u64::from(LINKS) * u64::from(UNSENT);
    println!("{} KiB more memory at the most, of a budget of {} KiB", most >> 10, budget >> 10);
    assert!(most <= 4 * budget, "{} KiB more", most >> 10);
    stalled.abort_all();
}

/// Opens a stream that nobody reads, again whenever it is cut, and writes all that is taken.
async fn stall(link: Link) {
    let block = Bytes::from_static(&[0; 16_384]);
    while let Ok(mut stream) = link.open(&header("stalls")).await {
        while stream.send.write(block.clone()).await.is_ok() {}
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

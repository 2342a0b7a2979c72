//! Paths that lose packets: F7, and what streams that send little say there. Over real sockets: what is lost there, QUIC has to find out. A process of its own, for what is
//! timed are hundreds of links at once.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it measured"
)]

#[allow(dead_code, reason = "shared with the tests of links")]
#[path = "links/relay.rs"]
mod relay;
#[allow(dead_code, reason = "shared with the tests of links")]
#[path = "links/support.rs"]
mod support;

use std::time::Duration;

use bytes::Bytes;
use relay::Relay;
use support::{Gateway, header, pair, until};
use tokio::time::Instant;

/// One test after the other.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Links whose time is taken together: an hour of one link is this many for [`WATCH`].
const LINKS: u16 = 180;
const WATCH: Duration = Duration::from_secs(20);
/// So many come up together.
const WAVE: usize = 30;

/// So many gateways of "a" that dial "b" through `relay`, and "b".
async fn crowd(count: u16, loss: f64) -> (Vec<Gateway>, Gateway, Relay) {
    let (a, mut b) = pair();
    b.limits.links_per_peer = count + 1;
    b.limits.handshakes = count;
    let b = b.gateway();
    b.knows(&[("a", &[])]);
    let relay = Relay::to(b.tunnel.local_addr()).await;
    relay.rules(|rules| rules.loss = loss);
    let gateways = (0..count).map(|_| a.gateway()).collect();
    (gateways, b, relay)
}

#[tokio::test]
async fn f7_with_thirty_of_a_hundred_packets_lost_links_come_up_in_ten_seconds() {
    let _alone = ALONE.lock().await;
    let (gateways, _b, relay) = crowd(100, 0.3).await;
    let begun = Instant::now();
    for gateway in &gateways {
        gateway.knows(&[("b", &[relay.address])]);
    }
    let mut up: Vec<Option<Duration>> = vec![None; gateways.len()];
    until("99 of 100 are up", || {
        for (gateway, up) in gateways.iter().zip(&mut up) {
            if up.is_none() && gateway.is_up("b") {
                *up = Some(begun.elapsed());
            }
        }
        (up.iter().flatten().count() >= 99).then_some(())
    })
    .await;
    let mut took: Vec<_> = up.into_iter().flatten().collect();
    took.sort_unstable();
    println!("half of the links are up after {:?}, 99 of 100 after {:?}", took[49], took[98]);
    assert!(took[98] <= Duration::from_secs(10), "{:?}", took[98]);
}

#[tokio::test]
async fn f7_an_hour_of_links_with_a_tenth_of_the_packets_lost_shows_none_as_down() {
    let _alone = ALONE.lock().await;
    let (gateways, b, relay) = crowd(LINKS, 0.0).await;
    for gateways in gateways.chunks(WAVE) {
        for gateway in gateways {
            gateway.knows(&[("b", &[relay.address])]);
        }
        until("all of a wave are linked", || gateways.iter().all(|gateway| gateway.is_up("b")).then_some(())).await;
    }
    until("all are linked", || (b.links_to("a").len() == gateways.len()).then_some(())).await;
    relay.rules(|rules| rules.loss = 0.1);
    let before = relay.traffic();
    let begun = Instant::now();
    while begun.elapsed() < WATCH {
        for (number, gateway) in gateways.iter().enumerate() {
            assert!(gateway.is_up("b"), "link {number} was called down after {:?}", begun.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let links: u64 = gateways.iter().map(|gateway| gateway.tunnel.counters().links).sum();
    assert_eq!((links, b.tunnel.counters().links), (u64::from(LINKS), u64::from(LINKS)), "one link each, all the time");
    let lost: u64 = gateways.iter().map(|gateway| gateway.tunnel.status()[0].packets_lost).sum();
    let bytes = relay.traffic().to_client - before.to_client;
    println!(
        "{LINKS} links for {WATCH:?}: {} KiB to their diallers, {lost} packets that they know were lost",
        bytes >> 10
    );
    assert!(lost > u64::from(LINKS), "{lost} packets lost is no loss");
}

/// Questions one after the other, and how many of them took longer than half of what it takes to find out that a packet
/// was lost: an acknowledgement may wait for 25 ms.
async fn slow_answers(a: &Gateway, count: usize) -> usize {
    let mut stream = a.link_to("b").await.open(&header("echo")).await.unwrap();
    let mut slow = 0;
    for _ in 0..count {
        let asked = Instant::now();
        stream.send.write(Bytes::from_static(&[7; 200])).await.unwrap();
        let mut got = 0;
        while got < 200 {
            got += stream.recv.read().await.unwrap().unwrap().len();
        }
        slow += usize::from(asked.elapsed() > Duration::from_millis(13));
    }
    slow
}

#[tokio::test]
async fn an_answer_does_not_wait_until_a_lost_packet_is_missed() {
    const QUESTIONS: usize = 2_000;
    let _alone = ALONE.lock().await;
    let (a, b) = pair();
    let (a, b) = (a.gateway(), b.gateway());
    let relay = Relay::to(b.tunnel.local_addr()).await;
    b.knows(&[("a", &[])]);
    a.knows(&[("b", &[relay.address])]);
    relay.rules(|rules| rules.loss = 0.05);
    // Both sides find out what kind of path it is.
    let at_first = slow_answers(&a, QUESTIONS).await;
    let by_noise = {
        relay.rules(|rules| rules.loss = 0.0);
        slow_answers(&a, QUESTIONS).await
    };
    relay.rules(|rules| rules.loss = 0.05);
    let then = slow_answers(&a, QUESTIONS).await;
    println!("of {QUESTIONS} answers {at_first} were slow at first, {then} later, {by_noise} without loss");
    // Each way loses one in 20; twice the same, one in 400.
    assert!(then <= by_noise + QUESTIONS / 25, "{then} of {QUESTIONS}, {by_noise} without loss");
}

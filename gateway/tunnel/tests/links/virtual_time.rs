//! Links in memory, in virtual time: hours pass in moments.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use eastway_tunnel::transport::memory::MemoryNetwork;
use tokio::time::Instant;

use crate::support::{Cloud, Gateway, header, pair, read_all, virtual_clock};

pub(crate) const IDLE: Duration = Duration::from_secs(4);
pub(crate) const MINUTE: Duration = Duration::from_secs(60);

pub(crate) fn network() -> MemoryNetwork {
    MemoryNetwork::new(Duration::from_millis(20), IDLE)
}

pub(crate) fn address(host: u8) -> SocketAddr {
    ([10, 0, 0, host], 15_443).into()
}

/// Waits in virtual time.
pub(crate) async fn eventually(what: &str, mut look: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !look() {
        assert!(start.elapsed() < MINUTE, "not within a virtual minute: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    start.elapsed()
}

pub(crate) async fn linked(a: &Gateway, b: &Gateway) {
    b.knows(&[(&a.cloud, &[])]);
    a.knows(&[(&b.cloud, &[b.tunnel.local_addr()])]);
    eventually("a link", || !a.links_to(&b.cloud).is_empty() && !b.links_to(&a.cloud).is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn i9_three_minute_leaves_under_one_stream_of_fifteen_minutes() {
    let (mut a, mut b) = pair();
    let clock = virtual_clock();
    for cloud in [&mut a, &mut b] {
        cloud.world.clock = clock.clone();
        cloud.leaf_ttl = 3 * MINUTE;
    }
    let network = network();
    let (left, right) = (a.gateway_in(&network, address(1)), b.gateway_in(&network, address(2)));
    linked(&left, &right).await;
    let mut stream = left.links_to("b")[0].open(&header("echo")).await.unwrap();
    let start = Instant::now();
    let mut renewed = Instant::now();
    let mut ticks = 0;
    while start.elapsed() < 15 * MINUTE {
        stream.send.write(Bytes::from_static(b"tick")).await.unwrap();
        assert_eq!(stream.recv.read().await.unwrap().as_deref(), Some(&b"tick"[..]), "after {:?}", start.elapsed());
        ticks += 1;
        // As the gateway does: at two thirds of life.
        if renewed.elapsed() >= 2 * MINUTE {
            left.identity.replace(a.identity());
            right.identity.replace(b.identity());
            renewed = Instant::now();
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(ticks > 600, "{ticks}");
    stream.send.finish();
    assert_eq!(read_all(&mut stream.recv).await.unwrap(), b"");
    assert_eq!((left.tunnel.counters().links, right.tunnel.counters().links), (1, 1), "one link all the time");
    // And when nobody renews, it ends with the certificate.
    let waited = eventually_long(|| left.links_to("b").is_empty()).await;
    assert!(waited > MINUTE / 2 && waited <= 3 * MINUTE + Duration::from_secs(1), "{waited:?}");
    let closed = left.tunnel.counters().links_closed;
    assert!(closed.contains_key("CERT_EXPIRED"), "{closed:?}");
}

async fn eventually_long(mut look: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !look() {
        assert!(start.elapsed() < 10 * MINUTE, "not within ten virtual minutes");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    start.elapsed()
}

/// Both sides dial when they meet; what an application opened on the link that is given up must not pay for it.
#[tokio::test(start_paused = true)]
async fn a_stream_outlives_the_superfluous_link_it_was_opened_on() {
    let (a, b) = pair();
    let network = network();
    let (a, b) = (a.gateway_in(&network, address(1)), b.gateway_in(&network, address(2)));
    linked(&b, &a).await;
    let old = a.links_to("b")[0].remote_addr();
    let mut stream = a.links_to("b")[0].open(&header("echo")).await.unwrap();
    // Of two links the one that a dialled stays.
    a.knows(&[("b", &[b.tunnel.local_addr()])]);
    let ours = |gateway: &Gateway| gateway.tunnel.status()[0].links.iter().filter(|link| !link.draining).count();
    eventually("the older link is given up", || {
        let links = &a.tunnel.status()[0].links;
        links.len() == 2 && ours(&a) == 1 && links.iter().any(|link| link.draining && link.remote == old)
    })
    .await;
    for _ in 0..20 {
        tokio::time::sleep(MINUTE / 2).await;
        stream.send.write(Bytes::from_static(b"tick")).await.unwrap();
        assert_eq!(stream.recv.read().await.unwrap().as_deref(), Some(&b"tick"[..]));
    }
    // With its last stream the link goes too, and nothing else.
    stream.send.finish();
    assert_eq!(read_all(&mut stream.recv).await.unwrap(), b"");
    drop(stream);
    eventually("only one is left", || a.tunnel.status()[0].links.len() == 1 && b.tunnel.status()[0].links.len() == 1)
        .await;
    assert!(a.is_up("b") && b.is_up("a"));
}

/// The last bytes are under way when the last stream ends: the link is not closed before the other side has them.
#[tokio::test(start_paused = true)]
async fn what_was_said_last_on_a_superfluous_link_arrives() {
    let (a, b) = pair();
    let network = network();
    let (a, b) = (a.gateway_in(&network, address(1)), b.gateway_in(&network, address(2)));
    linked(&b, &a).await;
    let stream = a.links_to("b")[0].open(&header("echo")).await.unwrap();
    a.knows(&[("b", &[b.tunnel.local_addr()])]);
    eventually("the older link is given up", || b.tunnel.status()[0].links.iter().any(|link| link.draining)).await;
    tokio::time::sleep(MINUTE / 2).await;
    let said = vec![7; 200_000];
    let (mut send, mut recv) = stream.split();
    // More than a link takes off its transport for a reader that does not come.
    for chunk in said.chunks(1_000) {
        send.write(Bytes::copy_from_slice(chunk)).await.unwrap();
    }
    send.finish();
    drop(send);
    // The other side has ended its half long ago when this one comes to reading it.
    tokio::time::sleep(MINUTE / 20).await;
    assert_eq!(read_all(&mut recv).await.as_deref(), Ok(&said[..]));
    drop(recv);
    eventually("only one is left", || a.tunnel.status()[0].links.len() == 1 && b.tunnel.status()[0].links.len() == 1)
        .await;
}

#[tokio::test(start_paused = true)]
async fn f4_a_partition_of_six_hours_is_noticed_in_five_seconds_and_over_in_three() {
    let (mut a, mut b) = pair();
    let clock = virtual_clock();
    for cloud in [&mut a, &mut b] {
        cloud.world.clock = clock.clone();
        cloud.leaf_ttl = Duration::from_secs(24 * 3_600);
    }
    let network = network();
    let (a, b) = (a.gateway_in(&network, address(1)), b.gateway_in(&network, address(2)));
    linked(&a, &b).await;
    for hours in [0, 6] {
        network.cut(address(1), address(2));
        let detected = eventually("both are down", || !a.is_up("b") && !b.is_up("a")).await;
        assert!(detected <= Duration::from_secs(5), "{detected:?}");
        let dials = a.tunnel.counters().dials;
        let length = Duration::from_secs(10 + hours * 3_600);
        tokio::time::sleep(length).await;
        let rate = (a.tunnel.counters().dials - dials) as f64 / length.as_secs_f64();
        assert!(rate <= 2.0, "{rate} dials a second");
        network.heal(address(1), address(2));
        let recovered = eventually("a link again", || a.is_up("b") && b.is_up("a")).await;
        assert!(recovered <= Duration::from_secs(3), "{recovered:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn f6_a_cut_between_two_clouds_leaves_the_third_alone() {
    let clouds = [Cloud::new("a"), Cloud::new("b"), Cloud::new("c")];
    for cloud in &clouds {
        let others: Vec<_> = clouds.iter().filter(|other| other.name != cloud.name).collect();
        cloud.trusts(&others);
    }
    let network = network();
    let gateways: Vec<_> =
        clouds.iter().zip(1..).map(|(cloud, host)| cloud.gateway_in(&network, address(host))).collect();
    let [a, b, c] = &gateways[..] else { unreachable!() };
    let at = |gateway: &Gateway| [gateway.tunnel.local_addr()];
    a.knows(&[("b", &at(b)), ("c", &at(c))]);
    b.knows(&[("a", &at(a)), ("c", &at(c))]);
    c.knows(&[("a", &at(a)), ("b", &at(b))]);
    let all_up = |gateways: &[&Gateway], peers: &[&str]| {
        gateways
            .iter()
            .all(|gateway| peers.iter().filter(|peer| ***peer != *gateway.cloud).all(|peer| gateway.is_up(peer)))
    };
    eventually("all are linked", || all_up(&[a, b, c], &["a", "b", "c"])).await;
    let before = c.tunnel.counters().links_closed;
    network.cut(a.tunnel.local_addr(), b.tunnel.local_addr());
    eventually("a and b are apart", || !a.is_up("b") && !b.is_up("a")).await;
    tokio::time::sleep(MINUTE).await;
    assert!(c.is_up("a") && c.is_up("b") && a.is_up("c") && b.is_up("c"));
    // Only what was superfluous from the beginning has ended at c.
    let ended =
        |counts: &std::collections::BTreeMap<&str, u64>| counts.iter().filter(|(reason, _)| **reason != "DONE").count();
    assert_eq!(ended(&c.tunnel.counters().links_closed), ended(&before));
    network.heal(a.tunnel.local_addr(), b.tunnel.local_addr());
    eventually("all are linked again", || all_up(&[a, b, c], &["a", "b", "c"])).await;
}

#[tokio::test(start_paused = true)]
async fn f25_a_wall_clock_that_jumps_cuts_by_certificates_and_nothing_else() {
    let (mut a, mut b) = pair();
    let jump = std::sync::Arc::new(std::sync::Mutex::new(Duration::ZERO));
    let (base, shared) = (virtual_clock(), jump.clone());
    a.world.clock = std::sync::Arc::new(move || base() + *shared.lock().unwrap());
    b.world.clock = virtual_clock();
    (a.leaf_ttl, b.leaf_ttl) = (60 * MINUTE, 60 * MINUTE);
    let network = network();
    let (a, b) = (a.gateway_in(&network, address(1)), b.gateway_in(&network, address(2)));
    linked(&a, &b).await;
    *jump.lock().unwrap() = 30 * MINUTE;
    tokio::time::sleep(MINUTE).await;
    assert!(a.is_up("b") && b.is_up("a"), "half an hour is within the certificate's life");
    let skew = a.tunnel.status()[0].clock_skew_ms.unwrap();
    assert!((skew + 30 * 60_000).abs() < 1_000, "{skew}");
    *jump.lock().unwrap() = 61 * MINUTE;
    eventually("it ends by a's clock", || !a.is_up("b")).await;
}

#[tokio::test(start_paused = true)]
async fn f1_a_peer_that_dies_is_redialled_until_it_is_back() {
    let (a, b) = pair();
    let network = network();
    let (a, first) = (a.gateway_in(&network, address(1)), b.gateway_in(&network, address(2)));
    linked(&a, &first).await;
    network.kill(address(2));
    eventually("it is down", || !a.is_up("b")).await;
    tokio::time::sleep(MINUTE).await;
    let second = b.gateway_in(&network, address(2));
    second.knows(&[("a", &[])]);
    let back = eventually("the new incarnation is linked", || a.is_up("b")).await;
    assert!(back <= Duration::from_secs(6), "{back:?}");
    assert_eq!(a.links_to("b")[0].replica(), second.replica);
}

/// What is counted for a peer outlives the links it was counted on.
#[tokio::test(start_paused = true)]
async fn bytes_of_a_link_that_is_gone_stay_counted() {
    let (a, b) = pair();
    let network = network();
    let (left, right) = (a.gateway_in(&network, address(1)), b.gateway_in(&network, address(2)));
    linked(&left, &right).await;
    let mut sent = Vec::new();
    for round in 0..3 {
        let mut stream = left.links_to("b")[0].open(&header("count")).await.unwrap();
        stream.send.write(Bytes::from(vec![0; 10_000])).await.unwrap();
        stream.send.finish();
        assert_eq!(read_all(&mut stream.recv).await.unwrap(), b"10000");
        let status = left.tunnel.status().remove(0);
        sent.push(status.bytes_sent);
        assert!(status.bytes_sent >= 10_000 * (round + 1), "{sent:?}");
        assert!(status.bytes_received >= 5 * (round + 1), "{status:?}");
        network.cut(address(1), address(2));
        eventually("the link is gone", || left.links_to("b").is_empty() && right.links_to("a").is_empty()).await;
        assert_eq!(left.tunnel.status()[0].bytes_sent, status.bytes_sent, "nothing is forgotten, nothing counts twice");
        network.heal(address(1), address(2));
        eventually("a new link", || !left.links_to("b").is_empty() && !right.links_to("a").is_empty()).await;
    }
}

/// I13: "up" is never said of a peer without a link, not even by a gateway on its way out.
/// What was said last on it may never be acknowledged.
#[tokio::test(start_paused = true)]
async fn f3_a_link_that_dies_while_it_drains_holds_nothing_up() {
    let (a, b) = pair();
    let network = network();
    let (left, right) = (a.gateway_in(&network, address(1)), b.gateway_in(&network, address(2)));
    linked(&left, &right).await;
    let mut stream = left.links_to("b")[0].open(&header("count")).await.unwrap();
    stream.accepted().await.unwrap();
    network.cut(address(1), address(2));
    stream.send.write(Bytes::from_static(b"the last")).await.unwrap();
    stream.send.finish();
    drop(stream);
    let start = Instant::now();
    left.tunnel.drain(Duration::from_secs(30)).await;
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn i13_a_closed_tunnel_shows_no_peer_as_up() {
    let (a, b) = pair();
    let network = network();
    let (left, right) = (a.gateway_in(&network, address(1)), b.gateway_in(&network, address(2)));
    linked(&left, &right).await;
    assert!(left.tunnel.status()[0].up);
    left.tunnel.close().await;
    let status = left.tunnel.status().remove(0);
    assert!(!status.up && status.links.is_empty(), "{status:?}");
}

/// A peer that dies has not acknowledged what was said last; who leaves does not wait for that.
#[tokio::test(start_paused = true)]
async fn f3_a_drain_does_not_wait_for_a_link_that_is_gone() {
    let (a, b) = pair();
    let network = network();
    let (left, right) = (a.gateway_in(&network, address(1)), b.gateway_in(&network, address(2)));
    linked(&left, &right).await;
    let mut stream = left.links_to("b")[0].open(&header("stalls")).await.unwrap();
    stream.accepted().await.unwrap();
    stream.send.write(Bytes::from_static(b"last words")).await.unwrap();
    stream.send.finish();
    drop(stream);
    network.kill(address(2));
    eventually("it is down", || !left.is_up("b")).await;
    let begun = Instant::now();
    assert!(left.tunnel.drain(Duration::from_secs(30)).await);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

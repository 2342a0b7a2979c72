//! Many that come at once, and streams that stand still among others that move, in virtual time: F33, F34.

use std::time::Duration;

use bytes::Bytes;
use eastway_tunnel::Link;
use eastway_tunnel::transport::memory::MemoryNetwork;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::support::{Cloud, Gateway, header, pair, read_all};
use crate::virtual_time::{IDLE, MINUTE, address, eventually, linked, network};

/// Clusters that are joined to one.
const PEERS: u8 = 50;

/// A hub that restarts has all of its peers back in ten seconds, though it was away for so long that they dial rarely, and is
/// not stormed by them while it is away.
#[tokio::test(start_paused = true)]
async fn f33_fifty_peers_are_back_in_ten_seconds_after_their_hub_was_away() {
    let (hub, network) = (Cloud::new("hub"), network());
    let clouds: Vec<_> = (0..PEERS).map(|number| Cloud::new(&format!("peer-{number}"))).collect();
    hub.trusts(&clouds.iter().collect::<Vec<_>>());
    let names: Vec<_> = clouds.iter().map(|cloud| cloud.name.to_string()).collect();
    let known: Vec<(&str, &[_])> = names.iter().map(|name| (name.as_str(), &[][..])).collect();
    let first = hub.gateway_in(&network, address(1));
    first.knows(&known);
    let mut gateways = Vec::new();
    for (cloud, host) in clouds.iter().zip(2..) {
        cloud.trusts(&[&hub]);
        let gateway = cloud.gateway_in(&network, address(host));
        gateway.knows(&[("hub", &[address(1)])]);
        gateways.push(gateway);
    }
    let all_up = |at: &Gateway| names.iter().all(|name| at.is_up(name)) && gateways.iter().all(|one| one.is_up("hub"));
    let begun = eventually("all are linked", || all_up(&first)).await;
    let failed = |gateways: &[Gateway]| gateways.iter().map(|one| one.tunnel.counters().dial_failures).sum::<u64>();
    let dials = |gateways: &[Gateway]| gateways.iter().map(|one| one.tunnel.counters().dials).sum::<u64>();
    for away in [Duration::ZERO, MINUTE, 60 * MINUTE] {
        let before = dials(&gateways);
        network.kill(address(1));
        eventually("all are down", || gateways.iter().all(|one| !one.is_up("hub"))).await;
        tokio::time::sleep(away).await;
        let rate = (dials(&gateways) - before) as f64 / (away.as_secs_f64() + 5.0) / f64::from(PEERS);
        assert!(rate <= 2.0, "{rate} dials per second and peer in {away:?}");
        let failures = failed(&gateways);
        let next = hub.gateway_in(&network, address(1));
        next.knows(&known);
        let back = eventually("all are back", || all_up(&next)).await;
        println!("all linked in {begun:?}; away for {away:?}, {rate:.2} dials/s each, all back in {back:?}");
        assert!(back <= Duration::from_secs(10), "{back:?} after {away:?}");
        // Dials that were under way when it came back are all that may fail.
        assert!(failed(&gateways) - failures <= u64::from(PEERS), "{} dials failed", failed(&gateways) - failures);
        assert!(gateways.iter().all(|one| one.links_to("hub").len() == 1), "one link each");
    }
}

const LINK_WINDOW: u32 = 1 << 20;
/// Of streams that nobody reads; each can hold a quarter of the link's window.
const STALLED: usize = 40;
/// Until somebody whose stream was cut comes back.
const REST: Duration = Duration::from_secs(30);
/// What one transfer among them carries: more than a stream's window, so that it needs several round trips.
const TRANSFER: usize = 1 << 20;

/// Two pairs alike; on the link of one of them streams that are never read have filled all that they may hold.
#[tokio::test(start_paused = true)]
async fn f34_streams_that_stand_still_leave_nine_tenths_to_others_for_ten_minutes() {
    let network = MemoryNetwork::with_window(Duration::from_millis(20), IDLE, LINK_WINDOW.into());
    let mut pairs = Vec::new();
    for hosts in [[1, 2], [3, 4]] {
        let (a, mut b) = pair();
        b.limits.stream_window = LINK_WINDOW / 4;
        b.limits.link_window = LINK_WINDOW;
        b.limits.link_window_max = 4 * LINK_WINDOW;
        let [a, b] = [a.gateway_in(&network, address(hosts[0])), b.gateway_in(&network, address(hosts[1]))];
        linked(&a, &b).await;
        let link = a.link_to("b").await;
        pairs.push((a, b, link));
    }
    let [(.., quiet), (_, beset, loaded)] = &pairs[..] else { unreachable!() };
    // One that is full, as the fault says, and as many as fill the window of the link several times.
    let mut stalled = JoinSet::new();
    for _ in 0..STALLED {
        stalled.spawn(fill(loaded.clone()));
    }
    let served = || beset.tunnel.status()[0].links[0].streams_served as usize;
    eventually("they were opened", || served() > 0).await;
    let (alone, beside) = tokio::join!(transfers(quiet, 10 * MINUTE), transfers(loaded, 10 * MINUTE));
    let window = beset.tunnel.status()[0].links[0].receive_window;
    println!(
        "{} MiB in ten minutes alone, {} beside streams that stand still, of which {} are left; window {} KiB; slowest {:?}, \
         {:?}",
        alone.0,
        beside.0,
        served(),
        window >> 10,
        alone.1,
        beside.1
    );
    assert!(beside.0 * 10 >= alone.0 * 9, "{} of {}", beside.0, alone.0);
    assert!(beside.1 <= Duration::from_secs(2), "one was held up for {:?}", beside.1);
    assert!(served() > 0, "some still stand");
    assert!(window <= u64::from(4 * LINK_WINDOW), "{window}");
    assert!(loaded.is_usable() && beset.links_to("a").len() == 1, "the link itself lives");
    stalled.abort_all();
}

/// Opens a stream that nobody reads, another a while after it is cut, and writes for ever.
async fn fill(link: Link) {
    loop {
        let Ok(mut stream) = link.open(&header("stalls")).await else { return };
        let block = Bytes::from_static(&[0; 16 << 10]);
        while stream.send.write(block.clone()).await.is_ok() {}
        tokio::time::sleep(REST).await;
    }
}

/// So many transfers, one after the other, were done in so long, and how long the slowest took.
async fn transfers(link: &Link, how_long: Duration) -> (usize, Duration) {
    let (begun, mut done, mut slowest) = (Instant::now(), 0, Duration::ZERO);
    while begun.elapsed() < how_long {
        let at = Instant::now();
        let mut stream = link.open(&header("count")).await.unwrap();
        stream.send.write(Bytes::from_static(&[1; TRANSFER])).await.unwrap();
        stream.send.finish();
        assert_eq!(read_all(&mut stream.recv).await.unwrap(), TRANSFER.to_string().as_bytes());
        (done, slowest) = (done + 1, slowest.max(at.elapsed()));
    }
    (done, slowest)
}

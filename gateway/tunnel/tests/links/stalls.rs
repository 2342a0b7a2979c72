//! Answers that stand still while the way to the other side changes (F10, F11): for how long.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use eastway_tunnel::{Link, Tunnel};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval};

use crate::balanced::{Replicas, link_to, reached};
use crate::relay::Relay;
use crate::support::{Gateway, any_port, header, pair, read_all, soon};

/// Bytes of an answer: several packets.
const PAGE: usize = 3_000;
/// What users wait for at most, where the machine has other work.
const LIMIT: Duration = Duration::from_secs(4);

/// Asks for a page. `None`: it came not, or not whole.
async fn ask(link: &Link) -> Option<()> {
    let mut stream = link.open(&header("page")).await.ok()?;
    stream.send.write(Bytes::from_static(b"GET /")).await.ok()?;
    stream.send.finish();
    let page = soon("a page", read_all(&mut stream.recv)).await.ok()?;
    (page.len() == PAGE).then_some(())
}

async fn timed(link: &Link) -> Duration {
    let start = Instant::now();
    ask(link).await.expect("a page");
    start.elapsed()
}

/// Uses a link until it knows its round trip and how large its packets may be.
async fn warm(link: &Link) {
    for _ in 0..100 {
        ask(link).await.expect("a page");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn hops(tunnel: &Tunnel) -> u64 {
    tunnel.status().iter().map(|peer| peer.hops).sum()
}

/// A gateway that listens on `listen` and one that dials it through a relay.
async fn through_a_relay(listen: SocketAddr) -> (Gateway, Gateway, Relay, Link) {
    let (a, b) = pair();
    let (a, b) = (a.gateway(), b.gateway_with(b.config(listen)));
    let relay = Relay::to((Ipv4Addr::LOCALHOST, b.tunnel.local_addr().port()).into()).await;
    b.knows(&[("a", &[])]);
    a.knows(&[("b", &[relay.address])]);
    let link = a.link_to("b").await;
    b.link_to("a").await;
    warm(&link).await;
    (a, b, relay, link)
}

/// Until a new path is validated three times what came by it may be sent: one packet of an answer. When a packet that
/// validates it is lost, either way, the rest must not wait for long, on a socket for both families neither.
#[tokio::test]
async fn f10_a_rebind_that_loses_a_packet_delays_an_answer_by_less_than_a_second() {
    for listen in [any_port(), (Ipv6Addr::UNSPECIFIED, 0).into()] {
        for lose_full in [[1, 0], [0, 1]] {
            let (a, _b, relay, link) = through_a_relay(listen).await;
            relay.rebind();
            relay.rules(|rules| rules.lose_full = lose_full);
            let took = timed(&link).await;
            println!("on {listen}, losing {lose_full:?}: {took:?}");
            assert!(took < Duration::from_secs(1), "{took:?}");
            assert_eq!(a.tunnel.counters().links, 1);
        }
    }
}

#[tokio::test]
async fn f10_a_rebind_to_another_replica_that_loses_a_packet_costs_no_request() {
    let (a, b) = pair();
    let replicas = Replicas::start(&b, 2).await;
    let relay = Relay::to(replicas.balancer.address).await;
    let a = a.gateway();
    a.knows(&[("b", &[relay.address])]);
    reached(&a, replicas.gateways.iter().map(|gateway| gateway.replica)).await;
    let link = link_to(&a, replicas.gateways[0].replica);
    warm(&link).await;
    for (replica, lose_full) in [(1, [1, 0]), (0, [0, 1]), (1, [0, 1]), (0, [1, 0])] {
        replicas.balancer.rebind(replicas.link_address(replica));
        relay.rules(|rules| rules.lose_full = lose_full);
        let took = timed(&link).await;
        println!("to {replica}, losing {lose_full:?}: {took:?}");
        assert!(took < Duration::from_millis(1_200), "{took:?}");
    }
    assert!(link.is_usable());
}

/// The pair of addresses is dead for ever, in both directions, and nobody says so; other ports pass.
#[tokio::test]
async fn f11_a_link_leaves_a_port_that_answers_no_more() {
    let (a, b, relay, link) = through_a_relay(any_port()).await;
    for round in 1..=2 {
        let before = relay.clients();
        relay.rules(|rules| rules.blackholed.extend(before.iter().copied()));
        let took = timed(&link).await;
        println!("answered after {took:?}");
        assert!(took < Duration::from_millis(1_500), "{took:?}");
        assert_eq!(hops(&a.tunnel), round);
        assert_eq!(relay.clients().len(), before.len() + 1, "another port, once");
    }
    let counters = a.tunnel.counters();
    assert_eq!((counters.links, counters.links_closed.len()), (1, 0), "the link was not replaced");
    assert_eq!(hops(&b.tunnel), 0, "who was dialled stays where it is");
}

/// How long a transfer stands still when its pair of addresses dies. `step` waits as soon as nothing gets through.
async fn stands_still(a: &Gateway, relay: &Relay, mut step: impl AsyncFnMut()) -> Duration {
    for _ in 0..64 {
        step().await;
    }
    let dead = relay.clients();
    relay.rules(|rules| rules.blackholed.extend(dead));
    let start = Instant::now();
    while hops(&a.tunnel) == 0 {
        step().await;
    }
    start.elapsed()
}

/// Who only reads has nothing to say before its next heartbeat; who only writes may have filled its window.
#[tokio::test]
async fn f11_transfers_go_on_from_another_port() {
    let (a, _b, relay, link) = through_a_relay(any_port()).await;
    let mut stream = link.open(&header("floods")).await.unwrap();
    let reading = stands_still(&a, &relay, async || {
        soon("more", stream.recv.read()).await.unwrap().expect("more");
    });
    let reading = reading.await;
    let (a, _b, relay, link) = through_a_relay(any_port()).await;
    let mut stream = link.open(&header("count")).await.unwrap();
    let block = Bytes::from_static(&[7; 16_384]);
    let writing =
        stands_still(&a, &relay, async || soon("room", stream.send.write(block.clone())).await.unwrap()).await;
    println!("reading stood still for {reading:?}, writing for {writing:?}");
    assert!(reading.max(writing) < Duration::from_millis(2_500), "{reading:?} {writing:?}");
}

/// Moving is for links on which something waits for an answer, not for idle ones.
#[tokio::test]
async fn an_idle_link_stays_at_its_port() {
    let (a, _b, relay, link) = through_a_relay(any_port()).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!((hops(&a.tunnel), relay.clients().len()), (0, 1));
    assert!(link.is_fresh());
}

/// Asks as a router does: on links that were acknowledged lately, and elsewhere when a replica drains.
async fn route(links: Vec<Link>, turn: usize) -> Option<()> {
    let usable = || links.iter().filter(|link| link.is_usable());
    let fresh: Vec<_> = usable().filter(|link| link.is_fresh()).collect();
    let usable = if fresh.is_empty() { usable().collect() } else { fresh };
    for attempt in 0..3 {
        let link = usable.get((turn + attempt) % usable.len().max(1))?;
        let Ok(mut stream) = link.open(&header("page")).await else { continue };
        stream.send.write(Bytes::from_static(b"GET /")).await.ok()?;
        stream.send.finish();
        if stream.accepted().await.is_ok() {
            let page = read_all(&mut stream.recv).await.ok()?;
            return (page.len() == PAGE).then_some(());
        }
    }
    None
}

/// A NAT that forgets every second, so that every link comes to another one of three replicas each time, one of which ends
/// and swallows what still goes by way of it; and a path that loses packets.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f3_f10_rebinds_while_a_replica_ends_cost_no_request() {
    const REQUESTS: usize = 320;
    let (a, b) = pair();
    let mut replicas = Replicas::start(&b, 3).await;
    let relay = Relay::to(replicas.balancer.address).await;
    let a = Arc::new(a.gateway());
    a.knows(&[("b", &[relay.address])]);
    reached(&a, replicas.gateways.iter().map(|gateway| gateway.replica)).await;
    relay.rules(|rules| rules.loss = 0.03);
    let times = Arc::new(Mutex::new((Vec::new(), 0)));
    let load = tokio::spawn({
        let (a, times) = (Arc::clone(&a), Arc::clone(&times));
        async move {
            let (mut asking, mut ticks) = (JoinSet::new(), interval(Duration::from_millis(25)));
            for turn in 0..REQUESTS {
                ticks.tick().await;
                let (links, times) = (a.links_to("b"), Arc::clone(&times));
                asking.spawn(async move {
                    let start = Instant::now();
                    let answered = tokio::time::timeout(LIMIT, route(links, turn)).await == Ok(Some(()));
                    let mut times = times.lock().unwrap();
                    times.0.push(start.elapsed());
                    times.1 += usize::from(!answered);
                });
            }
            while asking.join_next().await.is_some() {}
        }
    });
    let mut rebinds = interval(Duration::from_secs(1));
    let mut ending = None;
    for round in 0..8 {
        rebinds.tick().await;
        replicas.balancer.forget();
        if round == 3 {
            let leaving = replicas.gateways.remove(0);
            // Kubernetes gives it no new flows from then on.
            replicas.balancer.set_backends(&[0, 1].map(|replica| replicas.link_address(replica)));
            ending = Some(tokio::spawn(async move { leaving.tunnel.drain(Duration::from_secs(20)).await }));
        }
    }
    soon("the load", load).await.unwrap();
    soon("drained", ending.unwrap()).await.unwrap();
    let (mut times, failed) = std::mem::take(&mut *times.lock().unwrap());
    times.sort_unstable();
    let longest = times.iter().rev().take(8).collect::<Vec<_>>();
    println!("{} requests, {failed} failed, longest {longest:?}, {} hops", times.len(), hops(&a.tunnel));
    assert_eq!((times.len(), failed), (REQUESTS, 0));
}

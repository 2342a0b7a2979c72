//! Several replicas behind one address, and a balancer that moves flows between them.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use eastway_tunnel::replicas::envelope::{Beat, BeatState, Direction, MAX_ENVELOPE, header};
use eastway_tunnel::{ForwardingCounters, Link, QuicLb, ReplicaId, ReplicaNetwork, TunnelConfig, TunnelStream};
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::balancer::Balancer;
use crate::faults::Mortal;
use crate::support::{Cloud, Gateway, any_port, header as stream_to, pair, read_all, soon, until};

/// How replicas find each other in a test: whoever starts adds itself.
struct PodNetwork(watch::Sender<Arc<[SocketAddr]>>);

impl PodNetwork {
    fn new() -> Self {
        Self(watch::Sender::new(Arc::from([])))
    }

    fn config(&self, cloud: &Cloud, listen: SocketAddr) -> TunnelConfig {
        let replicas = Some(ReplicaNetwork { listen: any_port(), siblings: self.0.subscribe() });
        TunnelConfig { replicas, ..cloud.config(listen) }
    }

    fn add(&self, gateway: &Gateway) {
        let address = gateway.tunnel.replicas_addr().unwrap();
        self.0.send_modify(|all| *all = all.iter().copied().chain([address]).collect());
    }
}

/// Gateways of one cluster that know each other, and the balancer before them.
pub(crate) struct Replicas {
    pub(crate) gateways: Vec<Gateway>,
    pub(crate) balancer: Balancer,
    pods: PodNetwork,
}

impl Replicas {
    pub(crate) async fn start(cloud: &Cloud, count: usize) -> Self {
        Self::start_with(cloud, &vec![None; count]).await
    }

    /// One replica for each item, with such connection ids.
    async fn start_with(cloud: &Cloud, ids: &[Option<QuicLb>]) -> Self {
        let (pods, count) = (PodNetwork::new(), ids.len());
        let mut gateways = Vec::new();
        for quic_lb in ids {
            let config = TunnelConfig { quic_lb: quic_lb.clone(), ..pods.config(cloud, any_port()) };
            let gateway = cloud.gateway_with(config);
            gateway.knows(&[("a", &[])]);
            pods.add(&gateway);
            gateways.push(gateway);
        }
        until("the replicas know each other", || {
            gateways.iter().all(|gateway| gateway.tunnel.live_replicas().len() == count).then_some(())
        })
        .await;
        let addresses: Vec<_> = gateways.iter().map(|gateway| gateway.tunnel.local_addr()).collect();
        Self { balancer: Balancer::new(&addresses).await, gateways, pods }
    }

    pub(crate) fn link_address(&self, replica: usize) -> SocketAddr {
        self.gateways[replica].tunnel.local_addr()
    }

    /// The peer as this replica sees it.
    fn seen(&self, replica: usize) -> SocketAddr {
        self.gateways[replica].tunnel.status()[0].links[0].remote
    }

    fn forwarded(&self, replica: usize) -> ForwardingCounters {
        self.gateways[replica].tunnel.counters().forwarding
    }
}

/// A gateway of cluster `a` that has a link to every replica behind the balancer.
async fn dialler(cloud: &Cloud, replicas: &Replicas) -> Gateway {
    let a = cloud.gateway();
    a.knows(&[("b", &[replicas.balancer.address])]);
    reached(&a, replicas.gateways.iter().map(|gateway| gateway.replica)).await;
    a
}

pub(crate) async fn reached(a: &Gateway, replicas: impl Iterator<Item = ReplicaId>) {
    let expected: BTreeSet<_> = replicas.collect();
    until("a link to each replica", || {
        let links: BTreeSet<_> = a.links_to("b").iter().map(Link::replica).collect();
        (links == expected).then_some(())
    })
    .await;
}

pub(crate) fn link_to(a: &Gateway, replica: ReplicaId) -> Link {
    a.links_to("b").into_iter().find(|link| link.replica() == replica).unwrap()
}

async fn echo(stream: &mut TunnelStream, text: &'static str) {
    stream.send.write(Bytes::from_static(text.as_bytes())).await.unwrap();
    let mut got = Vec::new();
    while got.len() < text.len() {
        got.extend_from_slice(&soon(text, stream.recv.read()).await.unwrap().expect("more"));
    }
    assert_eq!(got, text.as_bytes());
}

#[tokio::test]
async fn a_link_survives_when_a_balancer_moves_it_between_replicas() {
    let (a, b) = pair();
    let replicas = Replicas::start(&b, 3).await;
    let a = dialler(&a, &replicas).await;
    let links = a.tunnel.counters().links;
    let link = link_to(&a, replicas.gateways[0].replica);
    let mut stream = link.open(&stream_to("echo")).await.unwrap();
    soon("accepted", stream.accepted()).await.unwrap();
    let seen = replicas.seen(0);
    echo(&mut stream, "at home").await;
    assert_eq!(replicas.forwarded(0), ForwardingCounters::default());

    for (replica, text) in [(1, "at the second"), (2, "at the third"), (0, "at home again"), (2, "at the third again")]
    {
        replicas.balancer.give(seen, replicas.link_address(replica));
        echo(&mut stream, text).await;
        assert_eq!(replicas.seen(0), seen, "what a person sees is the peer, not a path");
    }
    for other in [1, 2] {
        let forwarded = replicas.forwarded(other).packets;
        assert!(forwarded["to_owner"] > 0 && forwarded["reply_to_peer"] > 0, "{forwarded:?}");
    }
    let home = replicas.forwarded(0);
    assert!(home.packets["from_sibling"] > 0 && home.bytes["reply_to_sibling"] > 0, "{home:?}");
    assert_eq!((a.tunnel.counters().links, a.tunnel.counters().links_closed.len()), (links, 0), "no new handshake");
    assert!(link.is_usable());
    // Each move probes the former path, which leads nowhere any more.
    assert!(replicas.balancer.strays() <= 3 * 4, "{} answers by the wrong way", replicas.balancer.strays());
    stream.send.finish();
    assert_eq!(soon("the end", read_all(&mut stream.recv)).await.unwrap(), b"");
}

/// With connection ids that the balancer reads (QUIC-LB) nothing goes astray, wherever the client is; and one that cannot
/// read them any more is helped by the replicas as ever.
#[tokio::test]
async fn a_balancer_that_reads_server_ids_leaves_nothing_to_hand_over() {
    let (a, b) = pair();
    let ids = [*b"server-1", *b"server-2"];
    let replicas = Replicas::start_with(&b, &ids.map(|id| Some(QuicLb::new(0, &id, 4, None).unwrap()))).await;
    replicas.balancer.reads((0..2).map(|number| (ids[number], replicas.link_address(number))));
    let a = dialler(&a, &replicas).await;
    let mut streams = Vec::new();
    for replica in 0..2 {
        let link = link_to(&a, replicas.gateways[replica].replica);
        let mut stream = link.open(&stream_to("echo")).await.unwrap();
        soon("accepted", stream.accepted()).await.unwrap();
        streams.push(stream);
    }
    for text in ["from another address", "and another", "and one more"] {
        replicas.balancer.forget();
        for stream in &mut streams {
            echo(stream, text).await;
        }
    }
    let none = ForwardingCounters::default();
    assert_eq!([replicas.forwarded(0), replicas.forwarded(1)], [none.clone(), none]);
    assert!(a.tunnel.counters().links_closed.is_empty());

    replicas.balancer.reads([]);
    replicas.balancer.rebind(replicas.link_address(1));
    for stream in &mut streams {
        echo(stream, "handed over").await;
    }
    assert!(replicas.forwarded(1).packets["to_owner"] > 0, "{:?}", replicas.forwarded(1));
}

#[tokio::test]
async fn a_long_transfer_goes_on_while_its_flow_moves() {
    const CHUNK: usize = 64 << 10;
    const CHUNKS: usize = 256;
    let (a, b) = pair();
    let replicas = Replicas::start(&b, 3).await;
    let a = dialler(&a, &replicas).await;
    let link = link_to(&a, replicas.gateways[0].replica);
    let TunnelStream { mut send, mut recv } = link.open(&stream_to("echo")).await.unwrap();
    let seen = replicas.seen(0);
    let sender = tokio::spawn(async move {
        for number in 0..CHUNKS {
            send.write(Bytes::from(vec![u8::try_from(number % 251).unwrap(); CHUNK])).await.unwrap();
        }
        send.finish();
    });
    let (mut got, mut moves) = (0, 0);
    while let Some(chunk) = soon("more", recv.read()).await.unwrap() {
        for byte in &chunk {
            assert_eq!(usize::from(*byte), got / CHUNK % 251, "at {got}");
            got += 1;
        }
        if got / (CHUNK * CHUNKS / 16) > moves {
            moves += 1;
            replicas.balancer.give(seen, replicas.link_address(moves % 3));
        }
    }
    sender.await.unwrap();
    assert_eq!((got, moves >= 15), (CHUNK * CHUNKS, true));
    println!("{moves} moves; handed over: {:?}", replicas.forwarded(0));
}

#[tokio::test]
async fn f3_a_replica_that_drains_still_gets_its_packets() {
    let (a, b) = pair();
    let mut replicas = Replicas::start(&b, 2).await;
    let a = dialler(&a, &replicas).await;
    let leaving = replicas.gateways[0].replica;
    let mut stream = link_to(&a, leaving).open(&stream_to("echo")).await.unwrap();
    soon("accepted", stream.accepted()).await.unwrap();
    let (seen, staying) = (replicas.seen(0), replicas.link_address(1));
    let drain = tokio::spawn(async move {
        let leaving = replicas.gateways.remove(0);
        // Kubernetes takes a pod out of the balancing as soon as it terminates.
        replicas.balancer.set_backends(&[staying]);
        replicas.balancer.give(seen, staying);
        let clean = leaving.tunnel.drain(Duration::from_secs(20)).await;
        (clean, replicas)
    });
    until("peers are told", || (a.links_to("b").len() == 1).then_some(())).await;
    for text in ["one", "two", "three"] {
        echo(&mut stream, text).await;
    }
    stream.send.finish();
    assert_eq!(soon("the end", read_all(&mut stream.recv)).await.unwrap(), b"");
    drop(stream);
    let (clean, replicas) = soon("drained", drain).await.unwrap();
    assert!(clean, "every stream ended by itself");
    assert!(replicas.forwarded(0).packets["to_owner"] > 0);
    let survivor = &replicas.gateways[0];
    until("it is gone", || survivor.tunnel.siblings().is_empty().then_some(())).await;
    assert_eq!(*survivor.tunnel.live_replicas(), [survivor.replica]);
    until("no peer looks for it", || a.tunnel.status()[0].missing_replicas.is_empty().then_some(())).await;
    let _pods = replicas.pods;
}

#[tokio::test]
async fn f1_the_links_of_a_killed_replica_are_reset_by_another() {
    let (mut a, mut b) = pair();
    // By their own clocks both sides would take much longer: the shorter idle timeout of both counts.
    for cloud in [&mut a, &mut b] {
        cloud.timing.idle = Duration::from_secs(60);
        cloud.timing.acknowledge = Duration::from_secs(60);
    }
    let pods = PodNetwork::new();
    let victim = Mortal::start(&b, pods.config(&b, any_port()), &[("a", &[])]);
    let survivor = b.gateway_with(pods.config(&b, any_port()));
    survivor.knows(&[("a", &[])]);
    [&victim.gateway, &survivor].into_iter().for_each(|gateway| pods.add(gateway));
    until("they know each other", || (survivor.tunnel.siblings().len() == 1).then_some(())).await;
    let balancer = Balancer::new(&[victim.gateway.tunnel.local_addr()]).await;
    let dead = victim.gateway.replica;
    let a = a.gateway();
    a.knows(&[("b", &[balancer.address])]);
    until("a link to the first", || a.links_to("b").iter().any(|link| link.replica() == dead).then_some(())).await;
    let seen = victim.gateway.tunnel.status()[0].links[0].remote;
    victim.kill();
    let start = Instant::now();
    balancer.set_backends(&[survivor.tunnel.local_addr()]);
    balancer.give(seen, survivor.tunnel.local_addr());
    reached(&a, std::iter::once(survivor.replica)).await;
    let took = start.elapsed();
    println!("redialled after {took:?}");
    assert!(a.tunnel.counters().links_closed.contains_key("STATELESS_RESET"), "{:?}", a.tunnel.counters());
    assert!(survivor.tunnel.siblings().is_empty());
}

#[tokio::test]
async fn f1_with_its_own_clocks_a_peer_is_back_within_five_seconds() {
    let (a, b) = pair();
    let pods = PodNetwork::new();
    let victim = Mortal::start(&b, pods.config(&b, any_port()), &[("a", &[])]);
    let survivor = b.gateway_with(pods.config(&b, any_port()));
    survivor.knows(&[("a", &[])]);
    [&victim.gateway, &survivor].into_iter().for_each(|gateway| pods.add(gateway));
    until("they know each other", || (survivor.tunnel.siblings().len() == 1).then_some(())).await;
    let balancer = Balancer::new(&[victim.gateway.tunnel.local_addr()]).await;
    let dead = victim.gateway.replica;
    let a = a.gateway();
    a.knows(&[("b", &[balancer.address])]);
    until("a link to the first", || a.links_to("b").iter().any(|link| link.replica() == dead).then_some(())).await;
    let mut stream = link_to(&a, dead).open(&stream_to("echo")).await.unwrap();
    soon("accepted", stream.accepted()).await.unwrap();
    let pod = victim.gateway.tunnel.replicas_addr().unwrap();
    let seen = victim.gateway.tunnel.status()[0].links[0].remote;
    victim.kill();
    // Its container is started again at once, and keeps the address on the pod network.
    let mut config = pods.config(&b, any_port());
    config.replicas.as_mut().unwrap().listen = pod;
    let config = until("the port is free", || std::net::UdpSocket::bind(pod).ok().map(|_| config.clone())).await;
    let start = Instant::now();
    balancer.set_backends(&[survivor.tunnel.local_addr()]);
    balancer.give(seen, survivor.tunnel.local_addr());
    let successor = Mortal::start(&b, config, &[("a", &[])]);
    soon("the stream ends", stream.recv.read()).await.unwrap_err();
    until("a link to the other", || a.links_to("b").iter().any(|l| l.replica() == survivor.replica).then_some(()))
        .await;
    let took = start.elapsed();
    println!("redialled after {took:?}: {:?}", a.tunnel.counters().links_closed);
    assert!(took < Duration::from_secs(5), "{took:?}");
    successor.kill();
}

#[tokio::test]
async fn f10_a_nat_that_rebinds_to_another_replica_costs_no_stream() {
    let (a, b) = pair();
    let replicas = Replicas::start(&b, 2).await;
    let a = dialler(&a, &replicas).await;
    let mut streams = Vec::new();
    for gateway in &replicas.gateways {
        let mut stream = link_to(&a, gateway.replica).open(&stream_to("echo")).await.unwrap();
        soon("accepted", stream.accepted()).await.unwrap();
        streams.push(stream);
    }
    let seen = [replicas.seen(0), replicas.seen(1)];
    for (replica, text) in [(1, "once"), (0, "twice"), (1, "three times")] {
        replicas.balancer.rebind(replicas.link_address(replica));
        for stream in &mut streams {
            echo(stream, text).await;
        }
    }
    assert!(!seen.contains(&replicas.seen(0)), "the peer's address has changed");
    assert!(a.tunnel.counters().links_closed.is_empty(), "{:?}", a.tunnel.counters());
}

#[tokio::test]
async fn a_handshake_survives_when_its_retry_goes_to_another_replica() {
    let (a, b) = pair();
    let replicas = Replicas::start(&b, 2).await;
    replicas.balancer.be_fickle();
    let a = dialler(&a, &replicas).await;
    let counters = a.tunnel.counters();
    assert_eq!(counters.dial_failures, 0, "{counters:?}");
}

/// What stands in the counters of dropped packets.
fn dropped(gateway: &Gateway, reason: &str) -> u64 {
    gateway.tunnel.counters().forwarding.dropped.get(reason).copied().unwrap_or_default()
}

#[tokio::test]
async fn what_no_sibling_sent_is_dropped_and_counted() {
    let (a, b) = pair();
    let replicas = Replicas::start(&b, 2).await;
    let a = dialler(&a, &replicas).await;
    let target = &replicas.gateways[0];
    let pod = target.tunnel.replicas_addr().unwrap();
    let attacker = UdpSocket::bind(any_port()).await.unwrap();
    let sibling = replicas.gateways[1].replica.0;
    let short = [sibling[0], sibling[1], sibling[2], sibling[3]];
    let sealed = |sender, direction| [header(direction, sender, 7).as_slice(), &[0x55; 200]].concat();
    let beat = |replica| {
        let beat = Beat { state: BeatState::Gone, sender: ReplicaId(replica), stamp: u64::MAX, echo: None };
        [beat.encode(), vec![0; 32]].concat()
    };
    let mut version = sealed(short, Direction::ToOwner);
    version[0] = 2;
    let cases = [
        ("forged", sealed(short, Direction::ToOwner)),
        ("forged", sealed(short, Direction::ToClient)),
        ("forged", beat(sibling)),
        ("unknown_sender", sealed([9; 4], Direction::ToOwner)),
        ("version", version),
        ("oversized", vec![1; MAX_ENVELOPE + 1]),
        ("malformed", vec![1, 9, 0, 0]),
        ("malformed", Vec::new()),
    ];
    for (reason, bytes) in cases {
        let before = dropped(target, reason);
        attacker.send_to(&bytes, pod).await.unwrap();
        until(reason, || (dropped(target, reason) == before + 1).then_some(())).await;
    }
    assert_eq!(target.tunnel.siblings().len(), 1, "nobody was made to look gone");
    assert_eq!(target.tunnel.counters().forwarding.packets.get("from_sibling"), None);
    let mut stream = link_to(&a, target.replica).open(&stream_to("greet")).await.unwrap();
    assert_eq!(soon("greeting", read_all(&mut stream.recv)).await.unwrap(), b"220 ready\r\n");
}

/// Somebody between two replicas records what they send and sends it again.
#[tokio::test]
async fn packets_that_are_sent_again_are_dropped_and_counted() {
    let (a, b) = pair();
    let (one, two) = (PodNetwork::new(), PodNetwork::new());
    let gateways = [b.gateway_with(one.config(&b, any_port())), b.gateway_with(two.config(&b, any_port()))];
    // Each knows the other by an address of the one in the middle.
    let middle = [UdpSocket::bind(any_port()).await.unwrap(), UdpSocket::bind(any_port()).await.unwrap()].map(Arc::new);
    let pods = [0, 1].map(|number: usize| gateways[number].tunnel.replicas_addr().unwrap());
    for (from, to) in [(0, 1), (1, 0)] {
        let (inside, outside): (Arc<UdpSocket>, _) = (Arc::clone(&middle[from]), Arc::clone(&middle[to]));
        let target = pods[to];
        tokio::spawn(async move {
            let mut buffer = vec![0; 65_536];
            loop {
                let Ok((length, _)) = inside.recv_from(&mut buffer).await else { continue };
                for _ in 0..2 {
                    outside.send_to(&buffer[..length], target).await.ok();
                }
            }
        });
    }
    one.0.send_replace(Arc::from([middle[0].local_addr().unwrap()]));
    two.0.send_replace(Arc::from([middle[1].local_addr().unwrap()]));
    until("they know each other", || gateways.iter().all(|g| g.tunnel.siblings().len() == 1).then_some(())).await;
    let beats = dropped(&gateways[0], "replayed");
    assert!(beats > 0, "beats were sent twice");
    let balancer = Balancer::new(&[gateways[0].tunnel.local_addr()]).await;
    gateways.iter().for_each(|gateway| gateway.knows(&[("a", &[])]));
    let a = a.gateway();
    a.knows(&[("b", &[balancer.address])]);
    let mut stream = a.open("b", "echo").await;
    soon("accepted", stream.accepted()).await.unwrap();
    let seen = gateways[0].tunnel.status()[0].links[0].remote;
    balancer.give(seen, gateways[1].tunnel.local_addr());
    for text in ["one", "two", "three", "four"] {
        echo(&mut stream, text).await;
    }
    let counters = [0, 1].map(|number: usize| gateways[number].tunnel.counters().forwarding);
    assert!(counters[0].packets["from_sibling"] <= counters[1].packets["to_owner"], "each once: {counters:?}");
    assert!(counters[0].dropped["replayed"] >= beats + counters[0].packets["from_sibling"] / 2, "{counters:?}");
}

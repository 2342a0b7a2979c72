//! The fault matrix, as far as it concerns links (F1, F3, F5, F10, F11, F12, F36).

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use eastway_tunnel::{LinkKeys, PeerTarget, ResetCode, StreamError, TunnelConfig};
use tokio::time::Instant;

use crate::raw::RawPeer;
use crate::relay::Relay;
use crate::support::{Cloud, Gateway, header, own_keys, pair, read_all, soon, until};

/// A gateway in a runtime of its own that can die without a word.
pub(crate) struct Mortal {
    pub(crate) gateway: Gateway,
    runtime: tokio::runtime::Runtime,
}

impl Mortal {
    pub(crate) fn start(cloud: &Cloud, mut config: TunnelConfig, peers: &[(&str, &[SocketAddr])]) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        // All that could still send a packet is in it.
        config.limits.workers = Some(0);
        let guard = runtime.enter();
        let gateway = cloud.gateway_with(config);
        drop(guard);
        gateway.knows(peers);
        Self { gateway, runtime }
    }

    /// As by SIGKILL: not a packet more.
    pub(crate) fn kill(self) -> SocketAddr {
        let address = self.gateway.tunnel.local_addr();
        self.runtime.shutdown_background();
        address
    }
}

/// How long it takes a peer to notice that this gateway was killed and started again, from its first
/// packet on.
async fn restart(keys: Option<LinkKeys>) -> Duration {
    let (a, b) = pair();
    let first = Mortal::start(&b, b.config(crate::support::any_port()), &[("a", &[])]);
    let address = first.gateway.tunnel.local_addr();
    let a = a.gateway();
    a.knows(&[("b", &[address])]);
    let link = a.link_to("b").await;
    let mut stream = link.open(&header("echo")).await.unwrap();
    soon("accepted", stream.accepted()).await.unwrap();
    let predecessor = first.gateway.replica;
    first.kill();
    let mut config = b.config(address);
    config.predecessors = Arc::new([predecessor]);
    if let Some(keys) = keys {
        config.keys = keys;
    }
    // The dead one's socket closes with its runtime, a moment later.
    let config = until("the port is free", || std::net::UdpSocket::bind(address).ok().map(|_| config.clone()));
    let second = Mortal::start(&b, config.await, &[("a", &[])]);
    let start = Instant::now();
    stream.send.write(Bytes::from_static(b"are you there?")).await.unwrap();
    assert_eq!(soon("the stream ends", stream.recv.read()).await, Err(StreamError::LinkLost));
    let noticed = start.elapsed();
    // Back within two seconds after that, to the new incarnation.
    let replica = second.gateway.replica;
    let renewed =
        until("a link to the new incarnation", || a.links_to("b").into_iter().find(|link| link.replica() == replica));
    soon("greeting", async { read_all(&mut renewed.await.open(&header("greet")).await.unwrap().recv).await })
        .await
        .unwrap();
    second.kill();
    noticed
}

#[tokio::test]
async fn f1_a_restart_with_the_same_keys_is_noticed_within_a_round_trip() {
    let noticed = restart(None).await;
    println!("restart noticed after {noticed:?}");
    // 100 ms after a round trip of microseconds; the rest is for a machine that has other work.
    assert!(noticed < Duration::from_secs(1), "{noticed:?}");
}

#[tokio::test]
async fn f1_control_with_other_keys_it_takes_the_idle_timeout() {
    let noticed = restart(Some(own_keys())).await;
    assert!(noticed > Duration::from_secs(2), "{noticed:?}: the test above shows nothing");
}

#[tokio::test]
async fn f3_a_drain_fails_no_stream_and_moves_new_ones_to_the_other_replica() {
    let (a, b) = pair();
    let (one, two) = (b.gateway(), b.gateway());
    for gateway in [&one, &two] {
        gateway.tunnel.set_live_replicas(&[one.replica, two.replica]);
        gateway.knows(&[("a", &[])]);
    }
    let a = a.gateway();
    a.knows(&[("b", &[one.tunnel.local_addr(), two.tunnel.local_addr()])]);
    until("links to both", || (a.links_to("b").len() == 2).then_some(())).await;
    let leaving = a.links_to("b")[0].replica();
    let (leaving, staying) = if leaving == one.replica { (one, two) } else { (two, one) };

    let mut long = a.open("b", "echo").await;
    soon("accepted", long.accepted()).await.unwrap();
    let a = Arc::new(a);
    let failures = Arc::new(Mutex::new(Vec::new()));
    let load = tokio::spawn({
        let (a, failures) = (Arc::clone(&a), Arc::clone(&failures));
        async move {
            let mut requests = tokio::task::JoinSet::new();
            let mut interval = tokio::time::interval(Duration::from_millis(4));
            for _ in 0..500 {
                interval.tick().await;
                let (a, failures) = (Arc::clone(&a), Arc::clone(&failures));
                requests.spawn(async move {
                    let request = async {
                        loop {
                            let link = a.links_to("b").first().cloned().ok_or("no link")?;
                            let mut stream = link.open(&header("greet")).await.map_err(|_| "open")?;
                            match read_all(&mut stream.recv).await {
                                // A machine with other work hears late of the drain: routers ask again, too.
                                Err(StreamError::Reset(ResetCode::Draining)) => {}
                                result => return result.map_err(|_| "stream"),
                            }
                        }
                    };
                    if let Err(error) = request.await {
                        failures.lock().unwrap().push(error);
                    }
                });
            }
            requests.join_all().await.len()
        }
    });
    tokio::time::sleep(Duration::from_millis(400)).await;
    let drained = tokio::spawn(async move { leaving.tunnel.drain(Duration::from_secs(10)).await });
    until("new streams go to the other replica", || {
        let links = a.links_to("b");
        (links.len() == 1 && links[0].replica() == staying.replica).then_some(())
    })
    .await;
    // A stream that was open when the drain began works until its own end.
    tokio::time::sleep(Duration::from_millis(300)).await;
    long.send.write(Bytes::from_static(b"still here")).await.unwrap();
    long.send.finish();
    assert_eq!(soon("echo", read_all(&mut long.recv)).await.unwrap(), b"still here");
    drop(long);
    assert!(soon("drain", drained).await.unwrap(), "every stream ended in time");
    assert_eq!(soon("load", load).await.unwrap(), 500);
    assert_eq!(*failures.lock().unwrap(), Vec::<&str>::new(), "0 failed");
}

#[tokio::test]
async fn f3_late_streams_are_told_draining_and_the_end_is_bounded() {
    let (a, b) = pair();
    let (a, b) = (a.gateway(), b.gateway());
    b.knows(&[("a", &[])]);
    a.knows(&[("b", &[b.tunnel.local_addr()])]);
    let link = a.link_to("b").await;
    b.link_to("a").await;
    let _held = link.open(&header("never")).await.unwrap();
    let start = Instant::now();
    let drained = tokio::spawn(async move { b.tunnel.drain(Duration::from_secs(2)).await });
    a.no_link_to("b").await;
    assert!(link.is_leaving() && a.tunnel.links().leaving_to("b").len() == 1, "for who has no other");
    loop {
        let mut stream = link.open(&header("echo")).await.unwrap();
        match stream.accepted().await {
            Ok(()) => stream.send.finish(),
            Err(error) => break assert_eq!(error, StreamError::Reset(ResetCode::Draining)),
        }
    }
    assert!(!soon("drain", drained).await.unwrap(), "one stream never ended");
    assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
}

#[tokio::test]
async fn f3_a_peer_that_ignores_the_drain_gets_draining_for_its_streams() {
    let (a, b) = pair();
    let gateway = b.gateway();
    gateway.knows(&[("a", &[])]);
    let raw = RawPeer::polite(&a, "b", gateway.tunnel.local_addr()).await;
    gateway.link_to("a").await;
    let (mut held, mut answer) = raw.connection.open_bi().await.unwrap();
    held.write_chunk(header("echo").encode().unwrap()).await.unwrap();
    soon("a stream that keeps the link", answer.read_chunk(1, true)).await.unwrap();
    let drain = gateway.tunnel.drain(Duration::from_secs(10));
    let late = async {
        let header = header("greet").encode().unwrap();
        loop {
            let (mut send, mut recv) = raw.connection.open_bi().await.unwrap();
            send.write_chunk(header.clone()).await.unwrap();
            match recv.read_to_end(100).await {
                // Still within the grace.
                Ok(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(quinn::ReadToEndError::Read(quinn::ReadError::Reset(code))) => {
                    held.finish().unwrap();
                    return ResetCode::from_wire(code.into_inner());
                }
                Err(error) => panic!("{error}"),
            }
        }
    };
    let (clean, code) = soon("both", async { tokio::join!(drain, late) }).await;
    assert_eq!(code, ResetCode::Draining);
    assert!(clean, "a refused stream is no open one");
}

#[tokio::test]
async fn f5_a_one_way_partition_takes_the_link_down_on_both_sides_and_it_comes_back() {
    tokio::join!(one_way_partition(true), one_way_partition(false));
}

async fn one_way_partition(to_server: bool) {
    let (a, b) = pair();
    let (a, b) = (a.gateway(), b.gateway());
    let relay = Relay::to(b.tunnel.local_addr()).await;
    b.knows(&[("a", &[])]);
    a.knows(&[("b", &[relay.address])]);
    a.link_to("b").await;
    b.link_to("a").await;
    relay.rules(|rules| if to_server { rules.drop_to_server = true } else { rules.drop_to_client = true });
    let start = Instant::now();
    until("both are down", || (!a.is_up("b") && !b.is_up("a")).then_some(())).await;
    let detected = start.elapsed();
    // Five seconds by the promise, the rest for a machine that has other work.
    assert!(detected < Duration::from_secs(7), "{detected:?}");
    // It stays down: nothing half-open comes up.
    let mut transitions = [a.tunnel.events(), b.tunnel.events()];
    let [left, right] = &mut transitions;
    let change = async {
        tokio::select! { _ = left.changed() => {}, _ = right.changed() => {} }
    };
    assert!(tokio::time::timeout(Duration::from_millis(1_500), change).await.is_err(), "it flaps");
    relay.rules(|rules| (rules.drop_to_server, rules.drop_to_client) = (false, false));
    let healed = Instant::now();
    a.link_to("b").await;
    b.link_to("a").await;
    println!("down after {detected:?}, back after {:?}", healed.elapsed());
    assert!(healed.elapsed() < Duration::from_secs(8), "{:?}", healed.elapsed());
}

#[tokio::test]
async fn f10_a_nat_that_rebinds_costs_no_stream() {
    let (a, b) = pair();
    let (a, b) = (a.gateway(), b.gateway());
    let relay = Relay::to(b.tunnel.local_addr()).await;
    b.knows(&[("a", &[])]);
    a.knows(&[("b", &[relay.address])]);
    let link = a.link_to("b").await;
    let mut seen = HashSet::new();
    let mut stream = link.open(&header("echo")).await.unwrap();
    for round in 0..5_u8 {
        relay.rebind();
        let sent = Bytes::from(vec![round; 20_000]);
        stream.send.write(sent.clone()).await.unwrap();
        let mut got = Vec::new();
        while got.len() < sent.len() {
            got.extend_from_slice(&soon("echo", stream.recv.read()).await.unwrap().unwrap());
        }
        assert_eq!(got, sent);
        seen.insert(b.link_to("a").await.remote_addr());
    }
    assert!(seen.len() >= 4, "the server saw the ports change: {seen:?}");
    assert_eq!(a.tunnel.counters().links, 1, "no link was made anew");
    assert!(link.is_usable());
}

#[tokio::test]
async fn f11_a_flow_that_is_blackholed_for_ever_is_redialled_from_another_port() {
    let (a, b) = pair();
    let (a, b) = (a.gateway(), b.gateway());
    let relay = Relay::to(b.tunnel.local_addr()).await;
    b.knows(&[("a", &[])]);
    a.knows(&[("b", &[relay.address])]);
    a.link_to("b").await;
    assert_eq!(relay.clients().len(), 1);
    // Nor does another port help the link itself.
    relay.rules(|rules| (rules.drop_to_server, rules.drop_to_client) = (true, true));
    until("it is down", || (!a.is_up("b")).then_some(())).await;
    let dead = relay.clients();
    relay.rules(|rules| {
        rules.blackholed.extend(dead.iter().copied());
        (rules.drop_to_server, rules.drop_to_client) = (false, false);
    });
    let down = Instant::now();
    a.link_to("b").await;
    println!("back {:?} after it was noticed", down.elapsed());
    assert!(down.elapsed() < Duration::from_secs(4), "{:?}", down.elapsed());
    assert!(relay.clients().len() > dead.len(), "another port");
}

#[tokio::test]
async fn f12_names_are_looked_up_again_for_each_dial() {
    let (mut a, b) = pair();
    let (old, new) = (b.gateway(), b.gateway());
    for gateway in [&old, &new] {
        gateway.knows(&[("a", &[])]);
    }
    let record = Arc::new(Mutex::new(old.tunnel.local_addr()));
    let answer = Arc::clone(&record);
    a.world.resolver = Arc::new(move |asked| {
        assert_eq!(asked.to_string(), "gw.b.example:15443");
        let found = vec![*answer.lock().unwrap()];
        Box::pin(async move { Ok(found) })
    });
    let a = a.gateway();
    let addresses = vec!["gw.b.example:15443".parse().unwrap()];
    a.tunnel.set_peers(vec![PeerTarget { name: "b".into(), addresses, ..PeerTarget::default() }]);
    assert_eq!(a.link_to("b").await.replica(), old.replica);
    *record.lock().unwrap() = new.tunnel.local_addr();
    old.tunnel.close().await;
    until("a link to the new address", || a.links_to("b").into_iter().find(|link| link.replica() == new.replica)).await;
}

#[tokio::test]
async fn f36_a_second_cluster_of_the_same_name_is_refused_and_the_first_is_not_harmed() {
    let (a, b) = pair();
    let clone = Cloud::new("b");
    clone.trusts(&[&a]);
    let (a, b, clone) = (a.gateway(), b.gateway(), clone.gateway());
    b.knows(&[("a", &[a.tunnel.local_addr()])]);
    a.knows(&[("b", &[])]);
    let link = a.link_to("b").await;
    clone.knows(&[("a", &[a.tunnel.local_addr()])]);
    until("it is refused and counted", || {
        a.tunnel.counters().handshake_failures.contains_key("PEER_IDENTITY_CONFLICT").then_some(())
    })
    .await;
    assert!(!clone.is_up("a"));
    assert_eq!(a.links_to("b").len(), 1);
    let mut stream = link.open(&header("greet")).await.unwrap();
    assert_eq!(soon("greeting", read_all(&mut stream.recv)).await.unwrap(), b"220 ready\r\n");
}

/// What the system grants is told, not what was asked for: bursts are lost for want of it, and nobody sees why.
#[tokio::test]
async fn the_receive_buffer_is_what_the_system_granted() {
    let mut cloud = Cloud::new("a");
    cloud.limits.socket_buffer = 128 << 10;
    let small = cloud.gateway().tunnel.receive_buffer();
    assert_eq!(small, Some(128 << 10), "below every limit, so as asked for");
    cloud.limits.socket_buffer = 1 << 30;
    let largest = cloud.gateway().tunnel.receive_buffer().unwrap();
    assert!(largest > 128 << 10 && largest <= 1 << 30, "{largest}");
}

//! Links of several connections.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use eastway_tunnel::Link;
use quinn::VarInt;

use crate::hostile::target;
use crate::raw::{RawPeer, connect, polite, tls_of};
use crate::relay::Relay;
use crate::support::{Cloud, Gateway, header, pair, soon, until};

/// Lanes of the only link, as this side sees it.
fn lanes(gateway: &Gateway) -> usize {
    gateway.tunnel.status()[0].links.iter().map(|link| usize::from(link.lanes)).sum()
}

/// A link from a to b by way of a relay, when it has all of its lanes. `threads`: of a, and of b.
async fn link_with_lanes(threads: [u16; 2]) -> (Gateway, Gateway, Relay, Link) {
    let (mut a, mut b) = pair();
    (a.limits.workers, b.limits.workers) = (Some(threads[0]), Some(threads[1]));
    let (a, b) = (a.gateway(), b.gateway());
    let relay = Relay::to(b.tunnel.local_addr()).await;
    b.knows(&[("a", &[])]);
    a.knows(&[("b", &[relay.address])]);
    let link = a.link_to("b").await;
    let wanted = usize::from(threads[0]) - 1;
    until("lanes", || (lanes(&a) == wanted && lanes(&b) == wanted).then_some(())).await;
    (a, b, relay, link)
}

/// Opens a stream that answers, sends on it and waits for the answer.
async fn echo(link: &Link) -> eastway_tunnel::TunnelStream {
    let mut stream = link.open(&header("echo")).await.unwrap();
    stream.send.write(Bytes::from_static(b"ping")).await.unwrap();
    assert_eq!(soon("echo", stream.recv.read()).await.unwrap().unwrap(), "ping");
    stream
}

#[tokio::test]
async fn streams_are_dealt_to_lanes_from_either_side() {
    for threads in [[3, 1], [2, 2]] {
        let (a, b, relay, link) = link_with_lanes(threads).await;
        let back = b.link_to("a").await;
        let mut open = Vec::new();
        for _ in 0..12 {
            open.push(echo(&link).await);
            open.push(echo(&back).await);
        }
        let clients: HashSet<SocketAddr> = relay.clients().into_iter().collect();
        assert_eq!(clients.len(), usize::from(threads[0]), "each lane has a port of its own");
        // Whoever loses one lane loses its streams and no others.
        let lost = relay.clients().pop();
        relay.rules(|rules| rules.only = Some(clients.into_iter().filter(|client| Some(*client) != lost).collect()));
        let mut left = 0;
        for stream in &mut open {
            stream.send.write(Bytes::from_static(b"pong")).await.ok();
            left += usize::from(soon("an end", stream.recv.read()).await.is_ok());
        }
        assert!((1..open.len()).contains(&left), "{left} of {}", open.len());
        let counters = a.tunnel.counters();
        assert_eq!((counters.links, counters.links_closed.len()), (1, 0), "{counters:?}");
    }
}

#[tokio::test]
async fn the_end_of_a_link_is_the_end_of_its_lanes() {
    let (a, b, _relay, link) = link_with_lanes([3, 2]).await;
    let mut open = Vec::new();
    for _ in 0..6 {
        open.push(echo(&link).await);
    }
    b.tunnel.close().await;
    for stream in &mut open {
        soon("an end", stream.recv.read()).await.unwrap_err();
    }
    until("nothing is left", || a.links_to("b").is_empty().then_some(())).await;
}

fn speaking(cloud: &Cloud, protocol: &[u8]) -> rustls::ClientConfig {
    let mut tls = tls_of(cloud, "b");
    tls.alpn_protocols = vec![protocol.to_vec(), eastway_identity::tls::ALPN.to_vec()];
    tls
}

/// One that admits not even the byte that answers it.
#[tokio::test]
async fn p9_a_lane_that_takes_no_answer_holds_neither_a_place_nor_a_handshake() {
    let (a, mut b) = pair();
    b.limits.handshakes = 1;
    b.timing.handshake = Duration::from_secs(2);
    let gateway = target(&a, &b);
    let to = gateway.tunnel.local_addr();
    let raw = RawPeer::polite_by(&a, speaking(&a, b"eastway/1+lanes"), to).await;
    until("the link is up", || (!gateway.links_to("a").is_empty()).then_some(())).await;
    let mut mean = polite();
    mean.receive_window(VarInt::from_u32(0));
    let (_endpoint, lane) = connect(to, speaking(&a, b"eastway/1+lane"), mean).await.unwrap();
    let mut key = [0; 32];
    raw.connection.export_keying_material(&mut key, b"EXPORTER-eastway-lane", b"").unwrap();
    let (mut send, _recv) = lane.open_bi().await.unwrap();
    send.write_all(&key).await.unwrap();
    until("it has a place", || (lanes(&gateway) == 1).then_some(())).await;
    soon("it is given up", lane.closed()).await;
    until("it has none", || (lanes(&gateway) == 0).then_some(())).await;
    let another = RawPeer::silent(&a, "b", to).await;
    assert!(another.connection.close_reason().is_none() && raw.connection.close_reason().is_none());
}

//! Links by way of a third cluster.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use eastway_tunnel::header::{Label, RelayHeader, StreamHeader};
use eastway_tunnel::{
    HostPort, PeerTarget, RelayLimits, RelayRule, RelayStatus, ResetCode, StreamError, TransportKind, TunnelStream,
};

use crate::balancer::Balancer;
use crate::support::{Cloud, Gateway, header, read_all, soon, until};

/// Two clouds that nobody can dial, and one that they dial.
struct Three {
    a: Gateway,
    b: Gateway,
    c: Gateway,
}

fn peer(name: &str, addresses: &[SocketAddr], via: Option<&str>) -> PeerTarget {
    PeerTarget {
        name: Arc::from(name),
        addresses: addresses.iter().map(|address| HostPort::from(*address)).collect(),
        via: via.map(Arc::from),
        ..PeerTarget::default()
    }
}

fn rule(one: &str, other: &str, limits: RelayLimits) -> RelayRule {
    RelayRule { between: [Arc::from(one), Arc::from(other)], limits }
}

const PLENTY: RelayLimits = RelayLimits { streams: 256, bytes_per_second: None, bytes_per_day: None };

impl Three {
    fn start() -> Self {
        let [a, b, c] = ["a", "b", "c"].map(Cloud::new);
        a.trusts(&[&b, &c]);
        b.trusts(&[&a, &c]);
        c.trusts(&[&a, &b]);
        let three = Self { a: a.gateway(), b: b.gateway(), c: c.gateway() };
        three.c.knows(&[("a", &[]), ("b", &[])]);
        three
    }

    fn c_address(&self) -> SocketAddr {
        self.c.tunnel.local_addr()
    }

    fn a_knows(&self, addresses: &[SocketAddr], via: Option<&str>) {
        self.a.tunnel.set_peers(vec![peer("c", &[self.c_address()], None), peer("b", addresses, via)]);
    }

    fn b_knows(&self, via: Option<&str>) {
        self.b.tunnel.set_peers(vec![peer("c", &[self.c_address()], None), peer("a", &[], via)]);
    }

    async fn linked() -> Self {
        let three = Self::start();
        three.c.tunnel.set_relay(vec![rule("a", "b", PLENTY)]);
        // Who dials by way of c before both are linked with it is refused, and that is counted.
        three.a_knows(&[], None);
        three.b_knows(None);
        for (one, other) in [(&three.a, "c"), (&three.b, "c"), (&three.c, "a"), (&three.c, "b")] {
            one.link_to(other).await;
        }
        three.b_knows(Some("c"));
        three.a_knows(&[], Some("c"));
        three.a.link_to("b").await;
        three.b.link_to("a").await;
        three
    }

    fn relayed(&self) -> RelayStatus {
        self.c.tunnel.relayed().swap_remove(0)
    }
}

fn kinds(gateway: &Gateway, peer: &str) -> Vec<TransportKind> {
    let peers = gateway.tunnel.status();
    let links = peers.iter().filter(|status| &*status.name == peer).flat_map(|status| &status.links);
    links.filter(|link| !link.draining).map(|link| link.transport).collect()
}

fn last_error(gateway: &Gateway, peer: &str) -> String {
    let peers = gateway.tunnel.status();
    let error = peers.iter().find(|status| &*status.name == peer).and_then(|status| status.last_error.clone());
    error.unwrap_or_default()
}

async fn echo(stream: &mut TunnelStream, text: &str) {
    stream.send.write(Bytes::copy_from_slice(text.as_bytes())).await.unwrap();
    let mut got = Vec::new();
    while got.len() < text.len() {
        got.extend_from_slice(&soon(text, stream.recv.read()).await.unwrap().expect("more"));
    }
    assert_eq!(got, text.as_bytes());
}

#[tokio::test]
async fn two_that_nobody_can_dial_reach_each_other_by_a_third() {
    let three = Three::linked().await;
    for (from, to) in [(&three.a, "b"), (&three.b, "a")] {
        let mut stream = from.open(to, "echo").await;
        soon("accepted", stream.accepted()).await.unwrap();
        echo(&mut stream, "by way of c").await;
        stream.send.finish();
        assert_eq!(soon("the end", read_all(&mut stream.recv)).await.unwrap(), b"");
        let mut greet = from.open(to, "greet").await;
        assert_eq!(soon("speaks first", read_all(&mut greet.recv)).await.unwrap(), b"220 ready\r\n");
        let mut refused = from.open(to, "refused").await;
        let error = soon("refused", refused.accepted()).await.unwrap_err();
        assert_eq!(error, StreamError::Reset(ResetCode::UpstreamRefused));
        let mut counted = from.open(to, "count").await;
        let chunk = Bytes::from(vec![7; 1 << 16]);
        for _ in 0..64 {
            counted.send.write(chunk.clone()).await.unwrap();
        }
        counted.send.finish();
        assert_eq!(soon("counted", read_all(&mut counted.recv)).await.unwrap(), (4 << 20).to_string().as_bytes());
    }
    for (gateway, other) in [(&three.a, "b"), (&three.b, "a")] {
        let links = gateway.tunnel.status().into_iter().filter(|peer| &*peer.name == other).flat_map(|peer| peer.links);
        assert!(links.into_iter().all(|link| link.via.as_deref() == Some("c")));
        assert!(kinds(gateway, other).iter().all(|kind| *kind == TransportKind::Relay));
    }
    let status = three.relayed();
    assert!(status.streams > 0 && status.bytes.iter().all(|bytes| *bytes > 4 << 20), "{status:?}");
    assert_eq!(status.refused, 0);
    // Who may be relayed for no more is cut.
    three.c.tunnel.set_relay(Vec::new());
    three.a.no_link_to("b").await;
    let text =
        until("the reason", || Some(last_error(&three.a, "b")).filter(|text| text.contains("relay.allow"))).await;
    assert!(text.contains("c does not relay to b"), "{text}");
    three.c.tunnel.set_relay(vec![rule("b", "a", PLENTY)]);
    three.a.link_to("b").await;
}

#[tokio::test]
async fn all_three_have_to_agree() {
    let three = Three::start();
    three.a_knows(&[], Some("c"));
    three.b_knows(None);
    let error = async |gateway: &Gateway, peer: &str, expected: &str| {
        let what = format!("{} says {expected:?}", gateway.cloud);
        until(&what, || last_error(gateway, peer).contains(expected).then_some(())).await;
    };
    error(&three.a, "b", "relay.allow does not name this pair").await;
    three.c.tunnel.set_relay(vec![rule("a", "b", PLENTY)]);
    error(&three.a, "b", "b takes no links by way of c").await;
    error(&three.b, "a", "does not say `via: c`").await;
    assert!(three.relayed().refused > 0);
    assert!(three.a.links_to("b").is_empty() && three.b.links_to("a").is_empty());
    three.b_knows(Some("c"));
    three.a.link_to("b").await;
    // Taken back at one end.
    three.b_knows(None);
    three.b.no_link_to("a").await;
    three.a.no_link_to("b").await;
    // And while links are on their way: a peer is dialled no more than twice a second.
    for pause in 1..9 {
        three.b_knows(Some("c"));
        tokio::time::sleep(Duration::from_millis(3 * pause)).await;
        three.b_knows(None);
        tokio::time::sleep(Duration::from_millis(520)).await;
        three.b.no_link_to("a").await;
        three.a.no_link_to("b").await;
    }
}

#[tokio::test]
async fn what_came_by_a_relay_goes_no_further_and_nobody_else_gets_in() {
    let three = Three::linked().await;
    let label = |name| Label::parse(name).unwrap();
    let answer = async |from: &Gateway, peer: &str, header: RelayHeader| {
        let mut stream = from.link_to(peer).await.open(&StreamHeader::Relay(header)).await.unwrap();
        soon("an answer", stream.accepted()).await.err().map(StreamError::code)
    };
    let to = |name| RelayHeader::To { cluster: label(name), path: 1 };
    let from = |name| RelayHeader::From { cluster: label(name) };
    let denied = Some(ResetCode::PermissionDenied);
    // On the relayed link: b is asked to relay, and to take a pipe.
    assert_eq!(answer(&three.a, "b", to("c")).await, denied);
    assert_eq!(answer(&three.a, "b", from("c")).await, denied);
    // Those that are not named look like those that do not exist.
    for name in ["c", "a", "nobody"] {
        assert_eq!(answer(&three.a, "c", to(name)).await, denied, "{name}");
    }
    // A relay brings somebody that b does not expect by it; or whom it expects, and somebody else speaks.
    assert_eq!(answer(&three.c, "b", from("nobody")).await, denied);
    let mut pipe = three.c.link_to("b").await.open(&StreamHeader::Relay(from("a"))).await.unwrap();
    soon("taken", pipe.accepted()).await.unwrap();
    pipe.send.write(Bytes::from_static(b"GET / HTTP/1.1\r\n\r\n")).await.unwrap();
    soon("thrown out", read_all(&mut pipe.recv)).await.ok();
    let before = kinds(&three.b, "a").len();
    assert!(before >= 1, "and the link is as it was");
}

#[tokio::test]
async fn a_pair_has_so_many_pipes_and_bytes() {
    let three = Three::linked().await;
    let open = three.relayed().streams;
    three.c.tunnel.set_relay(vec![rule("a", "b", RelayLimits { streams: open + 2, ..PLENTY })]);
    let to = StreamHeader::Relay(RelayHeader::To { cluster: Label::parse("b").unwrap(), path: 1 });
    let link = three.a.link_to("c").await;
    let mut held = Vec::new();
    let refused = loop {
        let mut stream = link.open(&to).await.unwrap();
        match soon("an answer", stream.accepted()).await {
            Ok(()) => held.push(stream),
            Err(error) => break error.code(),
        }
        assert!(held.len() < 300);
    };
    assert_eq!(refused, ResetCode::Overloaded);
    drop(held);
    // Bytes: what is over the limit waits, and nothing is lost.
    let rate = RelayLimits { bytes_per_second: Some(2 << 20), ..PLENTY };
    three.c.tunnel.set_relay(vec![rule("a", "b", rate)]);
    let mut counted = three.a.open("b", "count").await;
    let begun = std::time::Instant::now();
    for _ in 0..48 {
        counted.send.write(Bytes::from(vec![7; 1 << 16])).await.unwrap();
    }
    counted.send.finish();
    assert_eq!(soon("counted", read_all(&mut counted.recv)).await.unwrap(), (3 << 20).to_string().as_bytes());
    assert!(begun.elapsed() > Duration::from_millis(1_000), "{:?}", begun.elapsed());
    // The bytes of a day: the link ends, and does not come back.
    let spent = three.relayed().today;
    let day = RelayLimits { bytes_per_day: Some(spent + 100_000), ..PLENTY };
    three.c.tunnel.set_relay(vec![rule("a", "b", day)]);
    let mut cut = three.a.open("b", "count").await;
    let ended = async {
        loop {
            if cut.send.write(Bytes::from(vec![7; 1 << 16])).await.is_err() {
                return;
            }
        }
    };
    soon("cut", ended).await;
    three.a.no_link_to("b").await;
    until("the reason", || last_error(&three.a, "b").contains("a limit of its relay.allow").then_some(())).await;
}

/// Direct links take over without a broken stream, and a relayed one comes back when they die.
#[tokio::test]
async fn direct_links_replace_relayed_ones_and_are_replaced_by_them() {
    let three = Three::linked().await;
    let mut stream = three.a.open("b", "echo").await;
    soon("accepted", stream.accepted()).await.unwrap();
    echo(&mut stream, "relayed").await;
    let way = Balancer::new(&[three.b.tunnel.local_addr()]).await;
    three.a_knows(&[way.address], Some("c"));
    until("a direct link", || kinds(&three.a, "b").contains(&TransportKind::Quic).then_some(())).await;
    until("and no other for new streams", || (kinds(&three.a, "b") == [TransportKind::Quic]).then_some(())).await;
    for text in ["still", "there"] {
        echo(&mut stream, text).await;
    }
    stream.send.finish();
    assert_eq!(soon("the end", read_all(&mut stream.recv)).await.unwrap(), b"");
    drop(stream);
    until("nothing is relayed any more", || (three.relayed().streams == 0).then_some(())).await;
    let mut direct = three.a.link_to("b").await.open(&header("echo")).await.unwrap();
    echo(&mut direct, "direct").await;
    assert_eq!(three.relayed().streams, 0);

    way.set_backends(&[]);
    way.forget();
    until("relayed again", || (kinds(&three.a, "b") == [TransportKind::Relay]).then_some(())).await;
    let mut again = three.a.open("b", "echo").await;
    echo(&mut again, "relayed again").await;
}

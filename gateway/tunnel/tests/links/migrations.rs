//! A peer that comes from another address with every packet (threat U7).

use std::time::Duration;

use bytes::Bytes;
use eastway_tunnel::{Link, TunnelStream};
use tokio::time::Instant;

use crate::relay::Relay;
use crate::support::{Cloud, header, soon};

/// Addresses it comes from in a second, and for how long.
const EVERY: Duration = Duration::from_millis(1);
const LENGTH: Duration = Duration::from_secs(3);
/// Longest answer of another peer meanwhile, with all of this on a busy machine.
const PROMPT: Duration = Duration::from_secs(2);

/// Asks one question on a stream that echoes.
async fn ask(stream: &mut TunnelStream) -> Duration {
    let asked = Instant::now();
    stream.send.write(Bytes::from_static(b"question")).await.unwrap();
    let mut came = 0;
    while came < b"question".len() {
        came += soon("an answer", stream.recv.read()).await.unwrap().unwrap().len();
    }
    asked.elapsed()
}

async fn echo(link: &Link) -> TunnelStream {
    let mut stream = link.open(&header("echo")).await.unwrap();
    ask(&mut stream).await;
    stream
}

#[tokio::test]
async fn u7_a_peer_with_a_thousand_addresses_a_second_harms_no_other_and_gets_no_more_than_it_sends() {
    let (hub, peer, hostile) = (Cloud::new("hub"), Cloud::new("peer"), Cloud::new("hostile"));
    hub.trusts(&[&peer, &hostile]);
    peer.trusts(&[&hub]);
    hostile.trusts(&[&hub]);
    let (hub, peer, hostile) = (hub.gateway(), peer.gateway(), hostile.gateway());
    let relay = Relay::to(hub.tunnel.local_addr()).await;
    hub.knows(&[("peer", &[]), ("hostile", &[])]);
    peer.knows(&[("hub", &[hub.tunnel.local_addr()])]);
    hostile.knows(&[("hub", &[relay.address])]);
    let (good, bad) = (peer.link_to("hub").await, hostile.link_to("hub").await);
    let (mut good_stream, mut bad_stream) = (echo(&good).await, echo(&bad).await);

    let before = relay.traffic();
    let flood = async {
        let (begin, mut ticks) = (Instant::now(), tokio::time::interval(EVERY));
        let mut addresses = 0_u32;
        while begin.elapsed() < LENGTH {
            ticks.tick().await;
            relay.rebind();
            // A packet for each address: what it comes from is seen only with one.
            bad_stream.send.write(Bytes::from_static(b"x")).await.unwrap();
            addresses += 1;
        }
        addresses
    };
    let others = async {
        let (begin, mut longest) = (Instant::now(), Duration::ZERO);
        while begin.elapsed() < LENGTH {
            longest = longest.max(ask(&mut good_stream).await);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        longest
    };
    let (addresses, longest) = tokio::join!(flood, others);
    let after = relay.traffic();
    let (sent, answered) = (after.to_server - before.to_server, after.to_client - before.to_client);
    println!("{addresses} addresses, {sent} bytes sent, {answered} answered; longest answer of another {longest:?}");
    assert!(addresses > 500, "{addresses}: the machine is too slow for this test to mean anything");
    assert!(longest < PROMPT, "{longest:?}");
    // RFC 9000, section 8.1: an address that has not proved itself gets three times what came from it.
    assert!(answered <= 3 * sent, "{answered} bytes for {sent}");

    // When it is over its link is there again, or still, and carries streams.
    let link = hostile.link_to("hub").await;
    assert!(ask(&mut echo(&link).await).await < PROMPT);
    assert!(good.is_usable());
    assert_eq!(peer.tunnel.counters().links, 1, "the other's link was never made anew");
}

//! Several gateways on a side, both sides dialling, private sides.

use crate::support::{Cloud, Gateway, header, pair, read_all, soon, until};

async fn settled(gateways: &[(&Gateway, &str, usize)]) {
    let what = format!("links settle at {:?}", gateways.iter().map(|(_, _, links)| links).collect::<Vec<_>>());
    until(&what, || {
        let right = |(gateway, peer, links): &(&Gateway, &str, usize)| {
            gateway.links_to(peer).len() == *links
                && gateway.tunnel.status().iter().all(|peer| peer.links.len() == *links)
        };
        gateways.iter().all(right).then_some(())
    })
    .await;
}

#[tokio::test]
async fn when_both_dial_one_link_stays_and_no_stream_is_lost() {
    let (a, b) = pair();
    let (a, b) = (a.gateway(), b.gateway());
    a.knows(&[("b", &[b.tunnel.local_addr()])]);
    b.knows(&[("a", &[a.tunnel.local_addr()])]);
    let mut streams = Vec::new();
    for (from, to) in [(&a, "b"), (&b, "a"), (&a, "b"), (&b, "a")] {
        streams.push(from.open(to, "echo").await);
    }
    for stream in &mut streams {
        soon("accepted", stream.accepted()).await.unwrap();
        stream.send.finish();
        assert_eq!(soon("echo", read_all(&mut stream.recv)).await.unwrap(), b"");
    }
    drop(streams);
    // At first there may be the other one alone.
    until("the one dialled by the smaller cluster stays", || {
        let (left, right) = (a.tunnel.status(), b.tunnel.status());
        let (left, right) = (&left[0].links, &right[0].links);
        (left.len() == 1 && right.len() == 1 && left[0].dialled && !right[0].dialled).then_some(())
    })
    .await;
    settled(&[(&a, "b", 1), (&b, "a", 1)]).await;
    assert_eq!(a.tunnel.status()[0].links[0].replica, b.replica);
}

#[tokio::test]
async fn a_private_cluster_is_reached_over_the_link_it_dialled() {
    let (a, b) = pair();
    let (private, public) = (a.gateway(), b.gateway());
    private.knows(&[("b", &[public.tunnel.local_addr()])]);
    public.knows(&[("a", &[])]);
    let mut stream = public.open("a", "greet").await;
    assert_eq!(soon("greeting", read_all(&mut stream.recv)).await.unwrap(), b"220 ready\r\n");
    assert!(public.tunnel.status()[0].addresses.is_empty());
}

#[tokio::test]
async fn every_replica_of_both_sides_is_linked_to_every_other() {
    let (a, b) = pair();
    let (lefts, rights) = ([a.gateway(), a.gateway()], [b.gateway(), b.gateway(), b.gateway()]);
    for gateways in [&lefts[..], &rights[..]] {
        let live: Vec<_> = gateways.iter().map(|gateway| gateway.replica).collect();
        gateways.iter().for_each(|gateway| gateway.tunnel.set_live_replicas(&live));
    }
    let addresses: Vec<_> = rights.iter().map(|gateway| gateway.tunnel.local_addr()).collect();
    rights.iter().for_each(|gateway| gateway.knows(&[("a", &[])]));
    lefts.iter().for_each(|gateway| gateway.knows(&[("b", &addresses)]));
    let expected: Vec<_> =
        lefts.iter().map(|gateway| (gateway, "b", 3)).chain(rights.iter().map(|gateway| (gateway, "a", 2))).collect();
    settled(&expected).await;
    for gateway in &lefts {
        assert!(gateway.tunnel.status()[0].missing_replicas.is_empty());
    }
}

#[tokio::test]
async fn replicas_that_cannot_be_reached_are_shown_as_missing() {
    let (a, b) = pair();
    let (a, b) = (a.gateway(), b.gateway());
    let hidden = eastway_tunnel::ReplicaId([7; 16]);
    b.tunnel.set_live_replicas(&[hidden]);
    b.knows(&[("a", &[])]);
    a.knows(&[("b", &[b.tunnel.local_addr()])]);
    a.link_to("b").await;
    assert_eq!(a.tunnel.status()[0].missing_replicas, [hidden]);
    settled(&[(&a, "b", 1), (&b, "a", 1)]).await;
}

#[tokio::test]
async fn peers_come_and_go_while_others_stay() {
    let (a, b, c) = (Cloud::new("a"), Cloud::new("b"), Cloud::new("c"));
    a.trusts(&[&b, &c]);
    b.trusts(&[&a]);
    c.trusts(&[&a]);
    let (a, b, c) = (a.gateway(), b.gateway(), c.gateway());
    b.knows(&[("a", &[])]);
    c.knows(&[("a", &[])]);
    let (to_b, to_c) = ([b.tunnel.local_addr()], [c.tunnel.local_addr()]);
    a.knows(&[("b", &to_b)]);
    let link = a.link_to("b").await;
    a.knows(&[("b", &to_b), ("c", &to_c)]);
    a.link_to("c").await;
    a.knows(&[("b", &to_b)]);
    a.no_link_to("c").await;
    assert!(link.is_usable(), "the other peer was not disturbed");
    let mut stream = link.open(&header("greet")).await.unwrap();
    assert_eq!(soon("greeting", read_all(&mut stream.recv)).await.unwrap(), b"220 ready\r\n");
    assert_eq!(a.tunnel.counters().links, 2);
}

#[tokio::test]
async fn i13_a_peer_is_up_only_while_its_links_are_acknowledged() {
    let (a, b) = pair();
    let (a, b) = (a.gateway(), b.gateway());
    b.knows(&[("a", &[])]);
    a.knows(&[("b", &[b.tunnel.local_addr()])]);
    let mut events = a.tunnel.events();
    soon("up", events.wait_for(|peers| peers.get("b").is_some_and(|peer| peer.up && peer.links == 1))).await.unwrap();
    let status = serde_json::to_value(a.tunnel.status()).unwrap();
    assert!(status[0]["links"][0]["lastAcknowledgedMs"].as_u64().is_some_and(|age| age < 5_000), "{status}");
    b.tunnel.close().await;
    soon("down", events.wait_for(|peers| peers.get("b").is_some_and(|peer| !peer.up))).await.unwrap();
}

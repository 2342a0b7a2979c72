//! What is dialled when, and which of two links stays.

mod companions;
mod paths;
mod transports;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const NOW: SystemTime = SystemTime::UNIX_EPOCH;
/// When every path has been judged.
const LATER: Duration = Duration::from_secs(1_000_000);

fn replica(id: u8) -> ReplicaId {
    ReplicaId([id; 16])
}

fn peers(cluster: &str, own: u8) -> Peers {
    Peers::new(
        cluster.into(),
        replica(own),
        Timing::default(),
        64,
        vec![TransportKind::Memory],
        fastrand::Rng::with_seed(7),
    )
}

fn target(name: &str, addresses: &[&str]) -> PeerTarget {
    PeerTarget {
        name: name.into(),
        addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
        ..PeerTarget::default()
    }
}

fn link(id: u64, to: u8, side: Side, address: Option<&str>, since: Duration) -> LinkFacts {
    let address = address.map(|text| text.parse().unwrap());
    let transport = TransportKind::Memory;
    let path = PathMeter::default();
    LinkFacts {
        id,
        replica: replica(to),
        side,
        transport,
        via: None,
        address,
        since,
        fresh: true,
        up: true,
        going_away: false,
        path,
        beside: None,
        carried: Carried::default(),
    }
}

fn failure(cause: FailureCause) -> LinkFailure {
    LinkFailure::new(cause, "as the test says")
}

fn start(peers: &mut Peers, facts: LinkFacts, live: &[u8], now: Duration) {
    let live = live.iter().copied().map(replica).collect();
    peers.link_started(&"b".into(), facts, live, now, NOW).unwrap();
}

/// Lets time pass up to `until` and answers every dial by `answer`; returns when each dial was made.
fn run(
    peers: &mut Peers,
    from: Duration,
    until: Duration,
    mut answer: impl FnMut(&mut Peers, &Dial, Duration),
) -> Vec<Duration> {
    let (mut now, mut dials) = (from, Vec::new());
    while now <= until {
        for dial in peers.due(now) {
            dials.push(now);
            answer(peers, &dial, now);
        }
        let Some(next) = peers.next_due() else { break };
        now = next.max(now + Duration::from_millis(1));
    }
    dials
}

#[test]
fn f4_a_peer_that_does_not_answer_is_dialled_steadily_but_at_most_twice_a_second() {
    let mut peers = peers("a", 1);
    peers.set_targets(vec![target("b", &["10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"])], Duration::ZERO, NOW);
    let fail = |peers: &mut Peers, dial: &Dial, now: Duration| {
        peers.dial_failed(dial, failure(FailureCause::NoReply), now);
    };
    let dials = run(&mut peers, Duration::ZERO, 60 * SECOND, fail);
    assert!(dials.len() > 100, "{} dials in a minute", dials.len());
    for window in dials.windows(3) {
        assert!(window[2] - window[0] >= SECOND, "more than two in a second: {window:?}");
    }
}

#[test]
fn one_address_is_dialled_with_growing_pauses_up_to_a_second_or_ten_when_refused() {
    for (cause, most) in [(FailureCause::NoReply, 1.25), (FailureCause::RefusedUs, 12.5)] {
        let mut peers = peers("a", 1);
        peers.set_targets(vec![target("b", &["10.0.0.1:1"])], Duration::ZERO, NOW);
        let fail = |peers: &mut Peers, dial: &Dial, now: Duration| peers.dial_failed(dial, failure(cause), now);
        let dials = run(&mut peers, Duration::ZERO, 300 * SECOND, fail);
        let pauses: Vec<_> = dials.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
        assert!(pauses[0] < 0.2, "the first redial comes soon: {pauses:?}");
        let longest = pauses.iter().copied().fold(0.0, f64::max);
        assert!(longest > most * 0.7 && longest <= most + 0.01, "{cause:?}: {longest}");
        assert!(pauses[10..].windows(2).any(|pair| pair[0] != pair[1]), "no jitter");
    }
}

#[test]
fn refused_dials_are_tried_again_at_once_when_trust_changes() {
    let mut peers = peers("a", 1);
    peers.set_targets(vec![target("b", &["10.0.0.1:1"])], Duration::ZERO, NOW);
    let fail = |peers: &mut Peers, dial: &Dial, now: Duration| {
        peers.dial_failed(dial, failure(FailureCause::Rejected), now);
    };
    run(&mut peers, Duration::ZERO, 100 * SECOND, fail);
    peers.retry(101 * SECOND);
    assert!(peers.next_due().unwrap() < 102 * SECOND);
}

#[test]
fn every_replica_behind_one_address_is_looked_for_quickly_and_then_seldom() {
    let mut peers = peers("a", 1);
    peers.set_targets(vec![target("b", &["lb.example:1"])], Duration::ZERO, NOW);
    let mut id = 0;
    // A load balancer that always gives the same one of three.
    let mut same = |peers: &mut Peers, dial: &Dial, now: Duration| {
        id += 1;
        let live = [replica(2), replica(3), replica(4)].to_vec();
        let facts = link(id, 2, Side::Dialler, Some(&dial.address.to_string()), now);
        peers.link_started(&"b".into(), facts, live, now, NOW).unwrap();
        for superfluous in peers.superfluous(LATER) {
            peers.link_ended(superfluous, failure(FailureCause::Done), now, NOW);
        }
    };
    let dials = run(&mut peers, Duration::ZERO, 10 * SECOND, &mut same);
    assert_eq!(dials.len(), 1 + 4 * 3, "one to get there and four for each of three");
    let later = run(&mut peers, 10 * SECOND, 610 * SECOND, &mut same);
    assert!((30..=54).contains(&later.len()), "{} dials in ten minutes", later.len());
    let (_, peer) = peers.iter().next().unwrap();
    assert_eq!(peer.missing(), [replica(3), replica(4)]);
    // News of its replicas starts the search anew.
    let live = Some([replica(2), replica(5)].to_vec());
    peers.link_changed(1, |_| {}, live, NOW);
    assert!(!peers.due(630 * SECOND).is_empty());
}

#[test]
fn a_replica_that_dialled_us_needs_no_dial_and_its_address_is_tried_once() {
    let mut peers = peers("a", 1);
    start(&mut peers, link(1, 2, Side::Acceptor, None, Duration::ZERO), &[2], Duration::ZERO);
    peers.set_targets(vec![target("b", &[])], Duration::ZERO, NOW);
    assert_eq!(peers.next_due(), None);
    peers.set_targets(vec![target("b", &["10.0.0.2:1"])], SECOND, NOW);
    let reach = |peers: &mut Peers, _: &Dial, now: Duration| {
        start(peers, link(2, 2, Side::Dialler, Some("10.0.0.2:1"), now), &[2], now);
    };
    assert_eq!(run(&mut peers, SECOND, 60 * SECOND, reach).len(), 1);
}

#[test]
fn a_link_that_was_on_its_way_by_a_relay_when_that_was_withdrawn_is_not_taken() {
    let mut peers = peers("a", 1);
    let by = |via: Option<&str>| vec![PeerTarget { via: via.map(Into::into), ..target("b", &[]) }];
    let mut id = 0;
    let mut taken = |peers: &mut Peers, via: &str| {
        id += 1;
        let facts = link(id, 2, Side::Acceptor, None, Duration::ZERO);
        let facts = LinkFacts { transport: TransportKind::Relay, via: Some(via.into()), ..facts };
        peers.link_started(&"b".into(), facts, vec![replica(2)], Duration::ZERO, NOW).map_err(|(code, _)| code)
    };
    assert_eq!(taken(&mut peers, "c"), Err(CloseCode::Revoked), "nobody knows this peer");
    assert_eq!(peers.iter().count(), 0);
    peers.set_targets(by(Some("c")), Duration::ZERO, NOW);
    assert_eq!(taken(&mut peers, "c"), Ok(()));
    assert_eq!(taken(&mut peers, "d"), Err(CloseCode::Revoked), "another one carries it");
    assert_eq!(peers.set_targets(by(None), Duration::ZERO, NOW), [2], "what is there is cut");
    assert_eq!(taken(&mut peers, "c"), Err(CloseCode::Revoked), "and what comes later, too");
}

#[test]
fn of_two_links_between_two_replicas_both_sides_keep_the_same_one() {
    // "a" 1 and "b" 2 dialled each other: the one dialled by ("a", 1) stays.
    let mut small = peers("a", 1);
    start(&mut small, link(1, 2, Side::Dialler, Some("10.0.0.2:1"), Duration::ZERO), &[2], Duration::ZERO);
    start(&mut small, link(2, 2, Side::Acceptor, None, Duration::ZERO), &[2], Duration::ZERO);
    assert_eq!(small.superfluous(LATER), [] as [u64; 0], "what the other side dialled, the other side retires");
    let mut large =
        Peers::new("c".into(), replica(2), Timing::default(), 64, vec![TransportKind::Memory], fastrand::Rng::new());
    start(&mut large, link(7, 1, Side::Acceptor, None, Duration::ZERO), &[1], Duration::ZERO);
    start(&mut large, link(8, 1, Side::Dialler, Some("10.0.0.1:1"), Duration::ZERO), &[1], Duration::ZERO);
    assert_eq!(large.superfluous(LATER), [8]);
    large.link_changed(7, |facts| facts.fresh = false, None, NOW);
    assert_eq!(large.superfluous(LATER), [] as [u64; 0], "a link that does not answer is no reason to give another up");
}

#[test]
fn f11_a_lost_link_is_redialled_at_once() {
    let mut peers = peers("a", 1);
    peers.set_targets(vec![target("b", &["10.0.0.2:1"])], Duration::ZERO, NOW);
    let dial = peers.due(Duration::ZERO).remove(0);
    start(&mut peers, link(1, 2, Side::Dialler, Some(&dial.address.to_string()), Duration::ZERO), &[2], Duration::ZERO);
    assert_eq!(peers.next_due(), None);
    peers.link_ended(1, failure(FailureCause::Lost), 60 * SECOND, NOW);
    assert!(peers.next_due().unwrap() < 61 * SECOND);
}

#[test]
fn peers_are_replaced_without_disturbing_those_that_stay() {
    let mut peers = peers("a", 1);
    peers.set_targets(vec![target("b", &["10.0.0.2:1"]), target("c", &[])], Duration::ZERO, NOW);
    start(&mut peers, link(1, 2, Side::Dialler, Some("10.0.0.2:1"), Duration::ZERO), &[2], Duration::ZERO);
    let more = || vec![target("b", &["10.0.0.2:1", "10.0.0.3:1"])];
    assert_eq!(peers.set_targets(more(), SECOND, NOW), [] as [u64; 0]);
    let dials = peers.due(SECOND);
    assert_eq!(dials.len(), 1, "only the new address: {dials:?}");
    assert_eq!(peers.set_targets(vec![target("c", &[])], SECOND, NOW), [1], "links of a peer that is gone");
}

#[test]
fn links_of_one_peer_are_limited() {
    let mut peers =
        Peers::new("a".into(), replica(1), Timing::default(), 2, vec![TransportKind::Memory], fastrand::Rng::new());
    for id in 0..2 {
        start(&mut peers, link(id, 2, Side::Acceptor, None, Duration::ZERO), &[2], Duration::ZERO);
    }
    let facts = link(3, 2, Side::Acceptor, None, Duration::ZERO);
    let refused = peers.link_started(&"b".into(), facts, vec![], Duration::ZERO, NOW);
    assert_eq!(refused.unwrap_err().0, CloseCode::Overloaded);
}

#[test]
fn one_outage_is_one_loss_and_losses_are_bounded() {
    let mut peers = peers("a", 1);
    peers.set_targets(vec![target("b", &[])], Duration::ZERO, NOW);
    let losses = |peers: &Peers| peers.iter().flat_map(|(_, peer)| peer.losses.iter().copied()).collect::<Vec<_>>();
    for outage in 0..40 {
        for (id, replica) in [(2 * outage, 2), (2 * outage + 1, 3)] {
            start(&mut peers, link(id, replica, Side::Acceptor, None, Duration::ZERO), &[2, 3], Duration::ZERO);
            peers.link_changed(id, |facts| facts.up = true, None, NOW);
        }
        let at = NOW + Duration::from_secs(outage);
        peers.link_ended(2 * outage, failure(FailureCause::Lost), SECOND, at);
        assert_ne!(losses(&peers).last(), Some(&at), "another link is left");
        peers.link_ended(2 * outage + 1, failure(FailureCause::Lost), SECOND, at);
        assert_eq!(losses(&peers).last(), Some(&at));
    }
    assert_eq!(losses(&peers).len(), MAX_LOSSES);
}

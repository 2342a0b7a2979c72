//! Which transport is dialled when, and which of two links stays.

use super::*;

const HOST: &str = "10.0.0.2:1";
const QUIC: TransportKind = TransportKind::Quic;
const TCP: TransportKind = TransportKind::Tcp;

fn both(policy: TransportPolicy) -> Peers {
    let random = fastrand::Rng::with_seed(7);
    let mut peers = Peers::new("a".into(), replica(1), Timing::default(), 64, vec![QUIC, TCP], random);
    peers.set_targets(vec![PeerTarget { transport: policy, ..target("b", &[HOST]) }], Duration::ZERO, NOW);
    peers
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// The transports dialled at `now`.
fn dialled(peers: &mut Peers, now: Duration) -> Vec<TransportKind> {
    peers.due(now).into_iter().map(|dial| dial.transport).collect()
}

fn dial(transport: TransportKind) -> Dial {
    Dial {
        peer: "b".into(),
        address: HOST.parse().unwrap(),
        transport,
        way: TcpWay::default(),
        attempt: 0,
        beside: None,
    }
}

fn comes_up(peers: &mut Peers, id: u64, transport: TransportKind, now: Duration) {
    let facts = LinkFacts { transport, ..link(id, 2, Side::Dialler, Some(HOST), now) };
    start(peers, facts, &[2], now);
}

fn fails(peers: &mut Peers, transport: TransportKind, now: Duration) {
    peers.dial_failed(&dial(transport), failure(FailureCause::NoReply), now);
}

#[test]
fn tcp_is_dialled_300_ms_after_quic_and_only_if_that_has_not_answered() {
    let mut peers = both(TransportPolicy::Auto);
    assert_eq!(dialled(&mut peers, Duration::ZERO), [QUIC]);
    assert_eq!(peers.next_due(), Some(millis(300)));
    assert_eq!(dialled(&mut peers, millis(299)), []);
    assert_eq!(dialled(&mut peers, millis(300)), [TCP]);
    assert_eq!(peers.next_due(), None, "both are under way");

    let mut peers = both(TransportPolicy::Auto);
    dialled(&mut peers, Duration::ZERO);
    comes_up(&mut peers, 1, QUIC, millis(200));
    assert_eq!(peers.next_due(), None);
    // When it ends, QUIC is first again.
    peers.link_ended(1, failure(FailureCause::Lost), 60 * SECOND, NOW);
    let again = peers.next_due().unwrap();
    assert_eq!(dialled(&mut peers, again), [QUIC]);
    assert_eq!(peers.next_due(), Some(again + millis(300)));
}

#[test]
fn f38_while_tcp_carries_the_link_quic_is_tried_every_ten_seconds_to_a_minute() {
    let mut peers = both(TransportPolicy::Auto);
    dialled(&mut peers, Duration::ZERO);
    dialled(&mut peers, millis(300));
    comes_up(&mut peers, 1, TCP, millis(400));
    fails(&mut peers, QUIC, 5 * SECOND);
    let fail = |peers: &mut Peers, dial: &Dial, now: Duration| {
        assert_eq!(dial.transport, QUIC);
        fails(peers, QUIC, now);
    };
    let dials = run(&mut peers, 5 * SECOND, 605 * SECOND, fail);
    let pauses: Vec<_> = dials.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
    assert!((7.5..=12.5).contains(&(dials[0] - 5 * SECOND).as_secs_f64()), "{dials:?}");
    assert!(pauses.iter().all(|pause| (7.5..=75.0).contains(pause)), "{pauses:?}");
    assert!(pauses.iter().any(|pause| *pause > 45.0), "{pauses:?}");
    assert!((8..=20).contains(&dials.len()), "{} dials in ten minutes", dials.len());
}

#[test]
fn f38_a_link_by_quic_makes_the_one_by_tcp_superfluous_whoever_is_older() {
    let mut peers = both(TransportPolicy::Auto);
    dialled(&mut peers, Duration::ZERO);
    dialled(&mut peers, millis(300));
    comes_up(&mut peers, 1, TCP, millis(400));
    comes_up(&mut peers, 2, QUIC, millis(500));
    assert_eq!(peers.superfluous(LATER), [1]);
    peers.link_changed(1, |facts| facts.going_away = true, None, NOW);
    assert_eq!(peers.superfluous(LATER), [] as [u64; 0]);
    assert_eq!(peers.next_due(), None);
    // One that does not answer is no reason to give the other up.
    let mut peers = both(TransportPolicy::Auto);
    comes_up(&mut peers, 1, TCP, millis(400));
    comes_up(&mut peers, 2, QUIC, millis(500));
    peers.link_changed(2, |facts| facts.fresh = false, None, NOW);
    assert_eq!(peers.superfluous(LATER), [] as [u64; 0]);
}

#[test]
fn f38_where_quic_did_not_pass_tcp_is_dialled_at_once_until_quic_is_back() {
    let mut peers = both(TransportPolicy::Auto);
    dialled(&mut peers, Duration::ZERO);
    dialled(&mut peers, millis(300));
    comes_up(&mut peers, 1, TCP, millis(400));
    fails(&mut peers, QUIC, 5 * SECOND);
    peers.link_ended(1, failure(FailureCause::Lost), 6 * SECOND, NOW);
    let again = peers.next_due().unwrap();
    assert!(again < 7 * SECOND, "{again:?}");
    assert_eq!(dialled(&mut peers, again), [TCP]);
    comes_up(&mut peers, 2, TCP, again);
    let next = peers.next_due().unwrap();
    assert!(next < again + 2 * SECOND, "it may be all that is left: {next:?}");
    assert_eq!(dialled(&mut peers, next), [QUIC]);
    comes_up(&mut peers, 3, QUIC, next);
    peers.link_ended(2, failure(FailureCause::Done), next, NOW);
    // From now on it is as if it had never been otherwise.
    peers.link_ended(3, failure(FailureCause::Lost), next + 60 * SECOND, NOW);
    let again = peers.next_due().unwrap();
    assert_eq!(dialled(&mut peers, again), [QUIC]);
    assert_eq!(peers.next_due(), Some(again + millis(300)));
}

#[test]
fn tcp_is_not_dialled_while_the_links_of_the_other_side_lead_to_all_there_is() {
    let mut peers = both(TransportPolicy::Auto);
    start(&mut peers, LinkFacts { transport: QUIC, ..link(1, 2, Side::Acceptor, None, SECOND) }, &[2], Duration::ZERO);
    assert_eq!(dialled(&mut peers, Duration::ZERO), [QUIC]);
    assert_eq!(peers.next_due(), None);
    fails(&mut peers, QUIC, 5 * SECOND);
    assert_eq!(dialled(&mut peers, 5 * SECOND), []);
    // One more replica, which may be behind that address.
    peers.link_changed(1, |_| {}, Some(vec![replica(2), replica(3)]), NOW);
    assert_eq!(dialled(&mut peers, 5 * SECOND), [TCP]);
}

#[test]
fn what_is_set_is_dialled_and_nothing_else() {
    for (policy, kind) in [(TransportPolicy::Quic, QUIC), (TransportPolicy::Tcp, TCP)] {
        let mut peers = both(policy);
        let fail = |peers: &mut Peers, dial: &Dial, now: Duration| {
            assert_eq!(dial.transport, kind);
            fails(peers, kind, now);
        };
        assert!(run(&mut peers, Duration::ZERO, 10 * SECOND, fail).len() > 5);
    }
    let mut peers = both(TransportPolicy::Tcp);
    comes_up(&mut peers, 1, TCP, Duration::ZERO);
    start(&mut peers, LinkFacts { transport: QUIC, ..link(2, 2, Side::Acceptor, None, SECOND) }, &[2], SECOND);
    assert_eq!(peers.superfluous(LATER), [] as [u64; 0], "the other side prefers QUIC: both stay");
}

#[test]
fn a_peer_that_is_away_is_dialled_by_each_transport_at_most_twice_a_second() {
    let mut peers = both(TransportPolicy::Auto);
    let mut by = BTreeMap::<TransportKind, Vec<Duration>>::new();
    let fail = |peers: &mut Peers, dial: &Dial, now: Duration| {
        by.entry(dial.transport).or_default().push(now);
        peers.dial_failed(dial, failure(FailureCause::NoReply), now);
    };
    run(&mut peers, Duration::ZERO, 60 * SECOND, fail);
    assert_eq!(by.len(), 2);
    for (transport, dials) in by {
        assert!(dials.len() > 40, "{transport:?}: {} dials in a minute", dials.len());
        assert!(dials.windows(3).all(|window| window[2] - window[0] >= SECOND), "{transport:?}");
    }
}

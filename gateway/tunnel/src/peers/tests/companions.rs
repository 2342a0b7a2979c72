//! Links by TCP that are kept beside those by QUIC (ADR 0025).

use super::*;
use crate::link::LinkRole;

const HOST: &str = "10.0.0.2:1";
const QUIC: TransportKind = TransportKind::Quic;
const TCP: TransportKind = TransportKind::Tcp;
const MB: u64 = 1_000_000;

/// A pair of gateways, of which this one dialled the link by QUIC, number 1.
struct Pair {
    peers: Peers,
    now: Duration,
    /// Bytes that links have carried.
    carried: BTreeMap<u64, u64>,
    lost: u64,
}

impl Pair {
    fn new(policy: TransportPolicy) -> Self {
        let random = fastrand::Rng::with_seed(7);
        let mut peers = Peers::new("a".into(), replica(1), Timing::default(), 64, vec![QUIC, TCP], random);
        peers.set_targets(vec![PeerTarget { transport: policy, ..target("b", &[HOST]) }], Duration::ZERO, NOW);
        let _begun = peers.due(Duration::ZERO);
        let quic = LinkFacts { transport: QUIC, ..link(1, 2, Side::Dialler, Some(HOST), Duration::ZERO) };
        start(&mut peers, quic, &[2], Duration::ZERO);
        let mut pair = Self { peers, now: Duration::ZERO, carried: BTreeMap::new(), lost: 0 };
        pair.second(&[]);
        pair
    }

    /// One second in which links carried so many bytes; what is dialled after it.
    fn second(&mut self, moved: &[(u64, u64)]) -> Vec<Dial> {
        self.now += SECOND;
        for (id, bytes) in moved {
            *self.carried.entry(*id).or_default() += bytes;
        }
        for id in [1, 2] {
            let bytes = self.carried.get(&id).copied().unwrap_or_default();
            let packets = (bytes / 1_000, bytes / 1_000 * self.lost / 100);
            let rtt = Duration::from_micros(300);
            let (sent_packets, lost_packets) = packets;
            self.peers.measured(id, &PathStats { rtt, sent_packets, lost_packets, ..PathStats::default() }, bytes);
        }
        self.peers.choose(self.now);
        self.peers.companions_due(self.now)
    }

    fn idle(&mut self, seconds: u32) -> Vec<Dial> {
        (0..seconds).flat_map(|_| self.second(&[])).collect()
    }

    /// What is dialled after much has moved by QUIC.
    fn bulk(&mut self) -> Vec<Dial> {
        (0..3).flat_map(|_| self.second(&[(1, 500 * MB)])).collect()
    }

    /// The companion comes up, as number 2, at this replica.
    fn companion(&mut self, to: u8, dial: &Dial) -> Result<(), (CloseCode, &'static str)> {
        let facts = link(2, to, Side::Dialler, Some(HOST), self.now);
        let facts = LinkFacts { transport: TCP, beside: dial.beside, ..facts };
        self.peers.link_started(&"b".into(), facts, vec![replica(2)], self.now, NOW)
    }

    fn role(&self, id: u64) -> LinkRole {
        self.peers.role("b", id)
    }
}

#[test]
fn where_much_moves_tcp_is_dialled_beside_quic_and_both_stay() {
    let mut pair = Pair::new(TransportPolicy::Auto);
    assert_eq!(pair.idle(100), []);
    let dials = pair.bulk();
    let [dial] = &dials[..] else { panic!("{dials:?}") };
    assert_eq!((dial.transport, dial.beside), (TCP, Some(replica(2))));
    pair.companion(2, dial).unwrap();
    assert_eq!(pair.peers.superfluous(LATER), [] as [u64; 0]);
    assert_eq!((pair.role(1), pair.role(2)), (LinkRole::Whole, LinkRole::Standby));
    // Measured when it is quiet, and then used, for it is faster.
    pair.idle(2);
    assert_eq!(pair.role(2), LinkRole::Bulk);
    (0..4).for_each(|_| drop(pair.second(&[(2, 900 * MB)])));
    assert_eq!((pair.role(1), pair.role(2)), (LinkRole::Whole, LinkRole::Bulk));
    let (_, peer) = pair.peers.iter().next().unwrap();
    let bulk = peer.bulk(&replica(2)).unwrap();
    assert_eq!((bulk.tcp, bulk.quic_rate, bulk.tcp_rate), (true, Some(500 * MB), Some(900 * MB)));
    // Packets are lost: it takes nothing more, and goes.
    pair.lost = 2;
    (0..3).for_each(|_| drop(pair.second(&[(2, 100 * MB)])));
    assert_eq!(pair.role(2), LinkRole::Standby);
    assert_eq!(pair.peers.superfluous(LATER), [2]);
}

#[test]
fn a_companion_that_is_not_reached_is_no_fault_and_tried_less_and_less() {
    let mut pair = Pair::new(TransportPolicy::Auto);
    let mut dials = pair.bulk();
    let mut at = vec![pair.now];
    while at.len() < 6 {
        pair.peers.dial_failed(&dials.remove(0), failure(FailureCause::NoReply), pair.now);
        while dials.is_empty() {
            dials = pair.second(&[(1, 500 * MB)]);
        }
        at.push(pair.now);
    }
    let pauses: Vec<_> = at.windows(2).map(|pair| (pair[1] - pair[0]).as_secs()).collect();
    assert_eq!(pauses, [10, 20, 40, 80, 160]);
    let (_, peer) = pair.peers.iter().next().unwrap();
    assert_eq!((peer.dials, &peer.last_error), (1, &None));
    assert_eq!(pair.role(1), LinkRole::Whole);
    // A balancer that leads elsewhere.
    assert_eq!(pair.companion(3, &dials[0]), Err((CloseCode::Done, "another replica was meant")));
}

#[test]
fn a_companion_is_a_link_like_any_other_when_it_is_alone() {
    let mut pair = Pair::new(TransportPolicy::Auto);
    let dials = pair.bulk();
    pair.companion(2, &dials[0]).unwrap();
    pair.peers.link_changed(1, |facts| facts.fresh = false, None, NOW);
    assert_eq!(pair.role(2), LinkRole::Whole, "nothing was heard of QUIC for a while");
    pair.peers.link_ended(1, failure(FailureCause::Lost), pair.now, NOW);
    assert_eq!(pair.role(2), LinkRole::Whole);
    let again = pair.peers.next_due().unwrap();
    assert!(pair.peers.due(again).iter().all(|dial| dial.transport == QUIC));
    pair.peers.link_ended(2, failure(FailureCause::Lost), pair.now, NOW);
    let (_, peer) = pair.peers.iter().next().unwrap();
    assert!(!peer.up && peer.last_error.is_some());
}

#[test]
fn who_does_not_want_companions_dials_and_uses_none() {
    for policy in [TransportPolicy::Fallback, TransportPolicy::Quic] {
        let mut pair = Pair::new(policy);
        assert_eq!(pair.bulk(), []);
        // The other side does.
        let facts = LinkFacts { transport: TCP, ..link(2, 2, Side::Acceptor, None, pair.now) };
        start(&mut pair.peers, facts, &[2], pair.now);
        pair.bulk();
        pair.idle(5);
        assert_eq!(pair.role(2), LinkRole::Standby);
        assert_eq!(pair.peers.superfluous(LATER), [] as [u64; 0], "it is the other side's");
    }
}

//! Several addresses that lead to the same replica.

use super::*;

const NEAR: &str = "10.0.0.2:1";
const FAR: &str = "10.0.1.2:1";

fn two() -> Peers {
    let mut peers = peers("a", 1);
    peers.set_targets(vec![target("b", &[FAR, NEAR])], Duration::ZERO, NOW);
    peers
}

fn comes_up(peers: &mut Peers, id: u64, address: &str, now: Duration) {
    start(peers, link(id, 2, Side::Dialler, Some(address), now), &[2], now);
}

/// The path of a link has this round trip time, and loses so many of 100 packets from now on.
fn measure(peers: &mut Peers, id: u64, rtt: u64, loss: u64) {
    measure_after(peers, id, rtt, loss, 0);
}

/// The same after so many rounds without a loss.
fn measure_after(peers: &mut Peers, id: u64, rtt: u64, loss: u64, rounds: u64) {
    for round in 1..=20 {
        let rtt = Duration::from_millis(rtt);
        let sent_packets = (rounds + round) * 100;
        let stats = PathStats { rtt, sent_packets, lost_packets: round * loss, ..PathStats::default() };
        peers.measured(id, &stats, 0);
    }
}

#[test]
fn the_path_with_the_shorter_round_trip_stays_once_both_are_known() {
    let mut peers = two();
    assert_eq!(peers.due(Duration::ZERO).len(), 2, "both are tried");
    comes_up(&mut peers, 1, FAR, Duration::ZERO);
    comes_up(&mut peers, 2, NEAR, Duration::ZERO);
    measure(&mut peers, 1, 80, 0);
    measure(&mut peers, 2, 20, 0);
    assert_eq!(peers.superfluous(SECOND), [] as [u64; 0], "too early to tell");
    assert_eq!(peers.superfluous(4 * SECOND), [1]);
    let shown: Vec<_> = peers.iter().flat_map(|(_, peer)| peer.addresses.iter().map(|address| address.rtt)).collect();
    assert_eq!(shown, [Some(Duration::from_millis(80)), Some(Duration::from_millis(20))]);
}

#[test]
fn paths_that_are_alike_do_not_take_turns() {
    for (old, new) in [((20, 0), (20, 0)), ((20, 0), (17, 0)), ((2, 0), (1, 0)), ((20, 0), (10, 10))] {
        let mut peers = two();
        comes_up(&mut peers, 1, FAR, Duration::ZERO);
        comes_up(&mut peers, 2, NEAR, Duration::ZERO);
        measure(&mut peers, 1, old.0, old.1);
        measure(&mut peers, 2, new.0, new.1);
        assert_eq!(peers.superfluous(4 * SECOND), [2], "{old:?} {new:?}");
    }
}

#[test]
fn a_path_that_loses_packets_is_left() {
    let mut peers = two();
    comes_up(&mut peers, 1, FAR, Duration::ZERO);
    comes_up(&mut peers, 2, NEAR, Duration::ZERO);
    measure(&mut peers, 1, 20, 5);
    measure(&mut peers, 2, 25, 0);
    assert_eq!(peers.superfluous(4 * SECOND), [1]);
}

#[test]
fn a_path_that_was_better_is_looked_at_soon() {
    let mut peers = two();
    peers.due(Duration::ZERO);
    comes_up(&mut peers, 1, FAR, Duration::ZERO);
    comes_up(&mut peers, 2, NEAR, Duration::ZERO);
    measure(&mut peers, 1, 80, 0);
    measure(&mut peers, 2, 20, 0);
    assert_eq!(peers.superfluous(4 * SECOND), [1]);
    peers.link_ended(1, failure(FailureCause::Done), 4 * SECOND, NOW);
    // It loses packets: the other one may do better now, and does.
    measure_after(&mut peers, 2, 20, 30, 20);
    let dials = peers.due(11 * SECOND);
    assert!(matches!(&dials[..], [dial] if dial.address.to_string() == FAR), "{dials:?}");
    comes_up(&mut peers, 3, FAR, 11 * SECOND);
    measure(&mut peers, 3, 80, 0);
    assert_eq!(peers.superfluous(14 * SECOND), [2]);
    peers.link_ended(2, failure(FailureCause::Done), 14 * SECOND, NOW);
    // And it did better when it was seen last, but fails now: less and less often.
    let mut at = Vec::new();
    for second in 14..200 {
        let now = second * SECOND;
        measure(&mut peers, 3, 80, 0);
        for dial in peers.due(now) {
            at.push(second);
            peers.dial_failed(&dial, failure(FailureCause::NoReply), now);
        }
    }
    assert!((4..=9).contains(&at.len()) && at[0] < 25, "{at:?}");
    assert!(at.windows(2).all(|pair| pair[1] - pair[0] >= 10), "{at:?}");
}

#[test]
fn the_other_path_is_looked_at_once_a_minute() {
    let mut peers = two();
    peers.due(Duration::ZERO);
    comes_up(&mut peers, 1, FAR, Duration::ZERO);
    comes_up(&mut peers, 2, NEAR, Duration::ZERO);
    peers.link_ended(2, failure(FailureCause::Done), 4 * SECOND, NOW);
    let mut id = 2;
    let look = |peers: &mut Peers, dial: &Dial, now: Duration| {
        assert_eq!(dial.address.to_string(), NEAR);
        id += 1;
        comes_up(peers, id, NEAR, now);
        measure(peers, 1, 20, 0);
        measure(peers, id, 20, 0);
        assert_eq!(peers.superfluous(now + 3 * SECOND), [id]);
        peers.link_ended(id, failure(FailureCause::Done), now + 3 * SECOND, NOW);
    };
    let looks = run(&mut peers, 4 * SECOND, 604 * SECOND, look);
    assert!((8..=14).contains(&looks.len()), "{} looks in ten minutes", looks.len());
    // The link is lost: whatever leads there is dialled at once.
    peers.link_ended(1, failure(FailureCause::Lost), 605 * SECOND, NOW);
    assert!(peers.next_due().unwrap() < 606 * SECOND);
}

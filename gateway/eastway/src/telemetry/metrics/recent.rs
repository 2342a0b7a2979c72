//! Counts that are forgotten: how often something happened to a peer lately.
//!
//! A counter says what was since the start; whoever mended a fault wants to see that it is over.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What counts as lately.
pub const RECENT: Duration = Duration::from_secs(600);
/// Events this close together are forgotten together; a peer holds at most `RECENT / SLOT` and one of these.
const SLOT: Duration = Duration::from_secs(15);

/// How often something happened within [`RECENT`], by peer. Peers are configured, so that they are few.
#[derive(Debug, Default)]
pub(super) struct Recent(Mutex<HashMap<Arc<str>, Slots>>);

/// When each began, and how many events it counts; the oldest first.
type Slots = VecDeque<(Instant, u64)>;

impl Recent {
    /// It happened to `peer` at `now`.
    pub(super) fn count(&self, peer: &Arc<str>, now: Instant) {
        let mut peers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let slots = peers.entry(Arc::clone(peer)).or_default();
        forget(slots, now);
        match slots.back_mut() {
            Some((begin, count)) if now.saturating_duration_since(*begin) < SLOT => *count = count.saturating_add(1),
            Some(_) | None => slots.push_back((now, 1)),
        }
    }

    /// How often it happened to `peer` lately.
    pub(super) fn of(&self, peer: &str, now: Instant) -> u64 {
        let mut peers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(slots) = peers.get_mut(peer) else { return 0 };
        forget(slots, now);
        slots.iter().map(|(_, count)| *count).sum()
    }

    pub(super) fn forget_peer(&self, peer: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(peer);
    }
}

fn forget(slots: &mut Slots, now: Instant) {
    while slots.front().is_some_and(|(begin, _)| now.saturating_duration_since(*begin) >= RECENT) {
        slots.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_ten_minutes_ago_is_forgotten() {
        let (recent, start) = (Recent::default(), Instant::now());
        let (a, b): (Arc<str>, Arc<str>) = (Arc::from("a"), Arc::from("b"));
        recent.count(&a, start);
        recent.count(&a, start + SLOT / 2);
        recent.count(&a, start + RECENT / 2);
        recent.count(&b, start);
        assert_eq!((recent.of("a", start + RECENT / 2), recent.of("b", start), recent.of("c", start)), (3, 1, 0));
        assert_eq!((recent.of("a", start + RECENT), recent.of("b", start + RECENT)), (1, 0));
        assert_eq!(recent.of("a", start + RECENT * 2), 0);
        recent.count(&a, start + RECENT * 2);
        recent.forget_peer("a");
        assert_eq!(recent.of("a", start + RECENT * 2), 0);
    }

    #[test]
    fn i8_a_flood_holds_no_more_than_its_slots() {
        let (recent, start, peer) = (Recent::default(), Instant::now(), Arc::from("a"));
        for second in 0..3_600 {
            recent.count(&peer, start + Duration::from_secs(second));
        }
        assert_eq!(recent.of("a", start + Duration::from_secs(3_599)), 600);
        assert!(recent.0.lock().unwrap()["a"].len() <= 41);
    }
}

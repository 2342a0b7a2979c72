//! Counts that are forgotten: how often something happened to a peer lately.
//!
//! A counter says what was since the start; whoever mended a fault wants to see that it is over.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What counts as lately.
pub const RECENT: Duration = Duration::from_secs(600);
/// Events this close together are forgotten together; a peer holds at most `RECENT / SLOT` and one of these.
const SLOT: Duration = Duration::from_secs(15);

/// How often something happened within [`RECENT`], by peer and reason. Peers are configured and reasons are words of
/// ours, so that both are few.
#[derive(Debug, Default)]
pub(super) struct Recent(Mutex<HashMap<Arc<str>, BTreeMap<&'static str, Slots>>>);

/// When each began, and how many events it counts; the oldest first.
type Slots = VecDeque<(Instant, u64)>;

impl Recent {
    /// It happened to `peer` at `now`, so many `times`.
    pub(super) fn count(&self, peer: &Arc<str>, reason: &'static str, times: u64, now: Instant) {
        let mut peers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let slots = peers.entry(Arc::clone(peer)).or_default().entry(reason).or_default();
        forget(slots, now);
        match slots.back_mut() {
            Some((begin, count)) if now.saturating_duration_since(*begin) < SLOT => {
                *count = count.saturating_add(times);
            }
            Some(_) | None => slots.push_back((now, times)),
        }
    }

    /// How often it happened to `peer` lately, for whatever reason.
    pub(super) fn of(&self, peer: &str, now: Instant) -> u64 {
        self.by_reason(peer, now).into_iter().map(|(_, count)| count).sum()
    }

    /// How often it happened to `peer` lately, by reason, the most frequent first.
    pub(super) fn by_reason(&self, peer: &str, now: Instant) -> Vec<(&'static str, u64)> {
        let mut peers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(reasons) = peers.get_mut(peer) else { return Vec::new() };
        reasons.values_mut().for_each(|slots| forget(slots, now));
        reasons.retain(|_, slots| !slots.is_empty());
        let sum = |slots: &Slots| slots.iter().map(|(_, count)| *count).sum();
        let mut counts: Vec<_> = reasons.iter().map(|(reason, slots)| (*reason, sum(slots))).collect();
        counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        counts
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
        recent.count(&a, "x", 1, start);
        recent.count(&a, "x", 1, start + SLOT / 2);
        recent.count(&a, "x", 1, start + RECENT / 2);
        recent.count(&b, "x", 1, start);
        assert_eq!((recent.of("a", start + RECENT / 2), recent.of("b", start), recent.of("c", start)), (3, 1, 0));
        assert_eq!((recent.of("a", start + RECENT), recent.of("b", start + RECENT)), (1, 0));
        assert_eq!(recent.of("a", start + RECENT * 2), 0);
        recent.count(&a, "x", 1, start + RECENT * 2);
        recent.forget_peer("a");
        assert_eq!(recent.of("a", start + RECENT * 2), 0);
    }

    #[test]
    fn reasons_are_forgotten_one_by_one() {
        let (recent, start, peer) = (Recent::default(), Instant::now(), Arc::from("a"));
        recent.count(&peer, "bad_name", 7, start);
        recent.count(&peer, "not_allowed", 2, start);
        recent.count(&peer, "not_allowed", 3, start + RECENT / 2);
        assert_eq!(recent.by_reason("a", start + RECENT / 2), [("bad_name", 7), ("not_allowed", 5)]);
        assert_eq!(recent.by_reason("a", start + RECENT), [("not_allowed", 3)]);
        assert_eq!(recent.by_reason("a", start + RECENT * 2), []);
    }

    #[test]
    fn i8_a_flood_holds_no_more_than_its_slots() {
        let (recent, start, peer) = (Recent::default(), Instant::now(), Arc::from("a"));
        for second in 0..3_600 {
            recent.count(&peer, "x", 1, start + Duration::from_secs(second));
        }
        assert_eq!(recent.of("a", start + Duration::from_secs(3_599)), 600);
        assert!(recent.0.lock().unwrap()["a"]["x"].len() <= 41);
    }
}

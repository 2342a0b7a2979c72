//! The shortest round trip of late.

use std::time::{Duration, Instant};

/// So long, and up to twice as long, it is remembered: a path that became longer has no queue for it.
const MEMORY: Duration = Duration::from_secs(60);

/// In two spans, of which the older goes as a whole.
#[derive(Clone, Copy, Default)]
pub(super) struct Shortest {
    since: Option<Instant>,
    older: Option<Duration>,
    newer: Option<Duration>,
}

impl Shortest {
    pub(super) fn note(&mut self, now: Instant, rtt: Duration) {
        if now.duration_since(*self.since.get_or_insert(now)) > MEMORY {
            *self = Self { since: Some(now), older: self.newer, newer: None };
        }
        self.newer = Some(self.newer.map_or(rtt, |shortest| shortest.min(rtt)));
    }

    pub(super) fn get(&self) -> Duration {
        self.older.into_iter().chain(self.newer).min().unwrap_or_default()
    }
}

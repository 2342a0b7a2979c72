//! The shortest round trip of late.

use std::time::{Duration, Instant};

/// So long, and up to twice as long, it is remembered: a path that became longer has no queue for it.
const MEMORY: Duration = Duration::from_secs(60);

/// In two spans, of which the older goes as a whole.
#[derive(Clone, Copy, Default)]
pub(super) struct Shortest {
    /// What was told first: quinn-proto tells of packets that were acknowledged before it takes the first sample, and with
    /// them what was supposed of the path.
    supposed: Option<Duration>,
    since: Option<Instant>,
    older: Option<Duration>,
    newer: Option<Duration>,
}

impl Shortest {
    pub(super) fn note(&mut self, now: Instant, rtt: Duration) {
        if *self.supposed.get_or_insert(rtt) == rtt {
            return;
        }
        if now.duration_since(*self.since.get_or_insert(now)) > MEMORY {
            *self = Self { since: Some(now), older: self.newer, newer: None, ..*self };
        }
        self.newer = Some(self.newer.map_or(rtt, |shortest| shortest.min(rtt)));
    }

    /// `None`: there was no sample yet.
    pub(super) fn get(&self) -> Option<Duration> {
        self.older.into_iter().chain(self.newer).min()
    }
}

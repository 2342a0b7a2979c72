//! One log line per key and interval, whatever happens how often.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Remembers when a line of each key was written last. The keys are the caller's to bound.
#[derive(Debug)]
pub struct LogLimit<K> {
    interval: Duration,
    lines: Mutex<HashMap<K, Line>>,
}

#[derive(Debug)]
struct Line {
    written: Instant,
    suppressed: u64,
}

impl<K: Eq + Hash> LogLimit<K> {
    /// At most one line per key in each `interval`.
    #[must_use]
    pub fn new(interval: Duration) -> Self {
        Self { interval, lines: Mutex::default() }
    }

    /// Whether a line of `key` may be written at `now`, and how many were not since the last one.
    pub fn admit(&self, key: K, now: Instant) -> Option<u64> {
        self.admit_bounded(key, usize::MAX, |key| key, now)
    }

    /// As [`Self::admit`]; a new key beyond `most` counts as `other(key)`.
    pub fn admit_bounded(&self, key: K, most: usize, other: impl FnOnce(K) -> K, now: Instant) -> Option<u64> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let key = if lines.len() >= most && !lines.contains_key(&key) { other(key) } else { key };
        let Some(line) = lines.get_mut(&key) else {
            lines.insert(key, Line { written: now, suppressed: 0 });
            return Some(0);
        };
        if now.saturating_duration_since(line.written) < self.interval {
            line.suppressed += 1;
            return None;
        }
        line.written = now;
        Some(std::mem::take(&mut line.suppressed))
    }

    /// Drops the keys that `keep` does not.
    pub fn retain(&self, keep: impl Fn(&K) -> bool) {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).retain(|key, _| keep(key));
    }

    /// Number of keys.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

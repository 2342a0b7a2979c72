//! How often somebody may ask: a token bucket for each, and a bounded number of them.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Token buckets by key. Of more keys than `most` the ones above share one bucket.
#[derive(Debug)]
pub(super) struct Rate<K> {
    per_second: f64,
    burst: f64,
    most: usize,
    state: Mutex<State<K>>,
}

#[derive(Debug)]
struct State<K> {
    buckets: HashMap<K, Bucket>,
    others: Bucket,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl<K: Eq + Hash> Rate<K> {
    pub(super) fn new(per_second: f64, burst: f64, most: usize, now: Instant) -> Self {
        let state = State { buckets: HashMap::new(), others: Bucket { tokens: burst, at: now } };
        Self { per_second, burst, most, state: Mutex::new(state) }
    }

    /// Whether `key` may ask now.
    pub(super) fn admit(&self, key: K, now: Instant) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |bucket: &Bucket| self.filled(bucket, now) >= self.burst;
        if state.buckets.len() >= self.most && !state.buckets.contains_key(&key) {
            // Full ones are as good as new.
            state.buckets.retain(|_, bucket| !full(bucket));
        }
        let room = state.buckets.len() < self.most || state.buckets.contains_key(&key);
        let bucket = if room {
            state.buckets.entry(key).or_insert(Bucket { tokens: self.burst, at: now })
        } else {
            &mut state.others
        };
        bucket.tokens = self.filled(bucket, now);
        bucket.at = now;
        let admitted = bucket.tokens >= 1.0;
        if admitted {
            bucket.tokens -= 1.0;
        }
        admitted
    }

    fn filled(&self, bucket: &Bucket, now: Instant) -> f64 {
        let passed = now.saturating_duration_since(bucket.at).as_secs_f64();
        (bucket.tokens + passed * self.per_second).min(self.burst)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn i8_a_burst_then_the_rate_and_no_more_keys_than_allowed() {
        let start = Instant::now();
        let rate = Rate::new(2.0, 3.0, 2, start);
        let admitted = |key, at| (0..10).filter(|_| rate.admit(key, at)).count();
        assert_eq!(admitted("a", start), 3);
        assert_eq!(admitted("b", start), 3, "one does not pay for another");
        assert_eq!(admitted("c", start) + admitted("d", start), 3, "the rest shares");
        assert_eq!(admitted("a", start + Duration::from_secs(1)), 2);
        assert_eq!(admitted("e", start + Duration::from_secs(60)), 3, "b was full again and made room");
        assert_eq!(rate.state.lock().unwrap().buckets.len(), 1);
    }
}

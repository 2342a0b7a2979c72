//! Numbers that a session obeys, and the time as it sees it.

use std::time::Duration;

use eastway_model::UnixMillis;

/// The time, from both clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Since any fixed moment of this process; never goes back. All timers use it.
    pub mono: Duration,
    /// For claims about when something was exported; may jump.
    pub wall: UnixMillis,
}

/// Quotas of one peer and deadlines of a session (invariant I8).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Services held of the peer; refused ones are tracked up to the same number.
    pub services: usize,
    /// Endpoint records held of the peer, over all subscribed services.
    pub endpoints: usize,
    /// Services that an importer may subscribe to.
    pub subscriptions: usize,
    /// Changed records that an importer takes per second in the long run. Above it the importer
    /// acknowledges later, so that the exporter coalesces.
    pub records_per_second: u32,
    /// Changed records that it takes at once before the rate counts: room for a whole snapshot.
    pub record_burst: u32,
    /// Shortest time between two changes handed to the store: a change after a calm goes at once,
    /// under churn changes of one interval become one.
    pub apply_interval: Duration,
    /// Shortest time between two resyncs, asked or obeyed.
    pub resync_interval: Duration,
    /// How long an exporter waits for an acknowledgement.
    pub ack_timeout: Duration,
    /// How long an importer waits for a snapshot to go on.
    pub stall_timeout: Duration,
    /// Bytes of unacknowledged messages after which the exporter waits.
    pub unacknowledged_bytes: usize,
    /// Size that messages with many records aim at, in bytes; far below the largest message.
    pub chunk_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            services: 10_000,
            endpoints: 100_000,
            subscriptions: 10_000,
            records_per_second: 10_000,
            record_burst: 110_000,
            apply_interval: Duration::from_millis(25),
            resync_interval: Duration::from_secs(5),
            ack_timeout: Duration::from_secs(30),
            stall_timeout: Duration::from_secs(30),
            unacknowledged_bytes: 2 << 20,
            chunk_bytes: 128 << 10,
        }
    }
}

/// Messages that an exporter may leave unacknowledged; part of the protocol.
pub const MAX_UNACKNOWLEDGED: usize = 32;

/// Counts down how many records may still be taken; may go into debt by one message.
#[derive(Debug)]
pub(crate) struct TokenBucket {
    tokens: f64,
    rate: f64,
    burst: f64,
    filled_at: Duration,
}

impl TokenBucket {
    pub(crate) fn new(rate: u32, burst: u32, now: Now) -> Self {
        Self { tokens: f64::from(burst), rate: f64::from(rate.max(1)), burst: f64::from(burst), filled_at: now.mono }
    }

    pub(crate) fn take(&mut self, records: usize, now: Now) {
        self.fill(now);
        self.tokens -= f64::from(u32::try_from(records).unwrap_or(u32::MAX));
    }

    /// When the debt is paid; in the past if there is none.
    pub(crate) fn clear_at(&mut self, now: Now) -> Duration {
        self.fill(now);
        if self.tokens >= 0.0 {
            return now.mono;
        }
        // Rounded up: at that moment the debt is certainly paid.
        now.mono + Duration::from_secs_f64(-self.tokens / self.rate) + Duration::from_millis(1)
    }

    fn fill(&mut self, now: Now) {
        let passed = now.mono.saturating_sub(self.filled_at);
        self.filled_at = self.filled_at.max(now.mono);
        self.tokens = (self.tokens + passed.as_secs_f64() * self.rate).min(self.burst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Now {
        Now { mono: Duration::from_millis(millis), wall: UnixMillis(0) }
    }

    #[test]
    fn p8_debt_is_paid_at_the_rate() {
        let mut bucket = TokenBucket::new(100, 10, at(0));
        bucket.take(10, at(0));
        assert_eq!(bucket.clear_at(at(0)), Duration::ZERO);
        bucket.take(50, at(0));
        let clear = bucket.clear_at(at(0));
        assert!(clear >= Duration::from_millis(500) && clear < Duration::from_millis(510), "{clear:?}");
        assert_eq!(bucket.clear_at(at(600)), Duration::from_millis(600));
    }

    #[test]
    fn time_that_stands_still_or_goes_back_gives_nothing() {
        let mut bucket = TokenBucket::new(100, 1, at(1000));
        bucket.take(101, at(1000));
        assert!(bucket.clear_at(at(500)) > Duration::from_millis(1400));
    }
}

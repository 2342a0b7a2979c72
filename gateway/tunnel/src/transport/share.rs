//! How much of a path datagrams may take.
//!
//! QUIC has no say in what goes first, and quinn-proto puts all datagrams that wait into packets before any byte of a
//! stream. A flood of them would leave streams nothing, heartbeats included, and the link would end. So while datagrams
//! wait, which is while they come faster than the path takes them, they are let in a little slower than it does: the queue
//! runs empty again and again, and then streams have their turn. Where nothing else wants to go, what was refused a moment
//! before is let in as soon as the queue is empty, so that the path stays full.

use std::time::{Duration, Instant};

/// Bytes that may come at once however slow the path is, and however fast.
const BURST: std::ops::RangeInclusive<u64> = 16 << 10..=256 << 10;
/// How long a measurement of the path counts.
const FRESH: Duration = Duration::from_millis(20);

/// A bucket that fills with seven eighths of what the path carries.
#[derive(Debug)]
pub(super) struct Share {
    left: u64,
    filled: Instant,
    /// Bytes per second.
    rate: u64,
    measured: Option<Instant>,
}

impl Share {
    pub(super) fn new(now: Instant) -> Self {
        Self { left: *BURST.end(), filled: now, rate: 0, measured: None }
    }

    /// Whether `bytes` more may go. `waiting`: others wait already. `path` gives the congestion window in bytes and the
    /// round trip time.
    pub(super) fn admits(
        &mut self,
        bytes: usize,
        waiting: bool,
        now: Instant,
        path: impl FnOnce() -> (u64, Duration),
    ) -> bool {
        if !waiting {
            return true;
        }
        if self.measured.is_none_or(|measured| now.saturating_duration_since(measured) >= FRESH) {
            let (window, rtt) = path();
            let micros = u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX).max(1);
            self.rate = window.saturating_mul(1_000_000) / micros / 8 * 7;
            self.measured = Some(now);
        }
        let micros = u64::try_from(now.saturating_duration_since(self.filled).as_micros()).unwrap_or(u64::MAX);
        let more = self.rate.saturating_mul(micros) / 1_000_000;
        if more > 0 {
            self.left = self.left.saturating_add(more).min(self.rate.clamp(*BURST.start(), *BURST.end()));
            self.filled = now;
        }
        let left = self.left.checked_sub(bytes as u64);
        self.left = left.unwrap_or(self.left);
        left.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of 1,200-byte datagrams that get in within a second of a flood, on a path of 1 MB/s.
    fn flood(share: &mut Share, start: Instant) -> u64 {
        let path = || (50_000, Duration::from_millis(50));
        let admitted = (0..10_000).filter(|number| {
            let now = start + Duration::from_micros(100 * number);
            share.admits(1_200, true, now, path)
        });
        admitted.count() as u64 * 1_200
    }

    #[test]
    fn a_flood_leaves_an_eighth_to_streams() {
        let start = Instant::now();
        let mut share = Share::new(start);
        let first = flood(&mut share, start);
        assert!((875_000..875_000 + (256 << 10)).contains(&first), "a burst and the share: {first}");
        let second = flood(&mut share, start + Duration::from_secs(1));
        assert!((870_000..880_000).contains(&second), "{second}");
    }

    #[test]
    fn what_the_path_takes_is_never_refused() {
        let start = Instant::now();
        let mut share = Share::new(start);
        flood(&mut share, start);
        assert!(share.admits(1_200, false, start + Duration::from_secs(1), || panic!("nobody has to measure")));
    }

    #[test]
    fn a_slow_path_is_not_buried_under_a_burst() {
        let start = Instant::now();
        let mut share = Share::new(start);
        let path = || (2_400, Duration::from_secs(1));
        assert!(share.admits(1_200, true, start + Duration::from_secs(1), path));
        let mut burst = 0;
        while share.admits(1_200, true, start + Duration::from_secs(60), path) {
            burst += 1_200;
        }
        assert!((15_000..=16 << 10).contains(&burst), "{burst}");
    }
}

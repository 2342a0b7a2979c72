//! Response-rate limit per client network (threat D3): a spoofed source must not turn the server
//! into an amplifier, and one client must not take all of it.

use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use hashbrown::DefaultHashBuilder;

/// Buckets. A fixed table costs 128 KiB however many sources are spoofed; networks that share a
/// bucket share its rate, and which do cannot be told from outside (the hash is keyed).
const BUCKETS: usize = 16 * 1024;

/// What to do with a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Within the rate.
    Send,
    /// Over it: send an empty reply with TC set, no larger than the query. A real client asks
    /// again over TCP, where the source is proven.
    Slip,
    /// Over it: send nothing.
    Drop,
}

/// A rate per /24 (IPv4) and /56 (IPv6), by the generic cell rate algorithm: one number per bucket,
/// the time at which it would be empty.
#[derive(Debug)]
pub struct RateLimiter {
    start: Instant,
    hasher: DefaultHashBuilder,
    buckets: Box<[AtomicU64]>,
    /// Nanoseconds one response takes; 0 is no limit.
    interval: u64,
    /// Nanoseconds by which a bucket may run ahead.
    burst: u64,
    slips: AtomicU32,
}

impl RateLimiter {
    /// A limiter that lets `per_second` responses through per network, and twice as many at once.
    /// 0 is no limit.
    #[must_use]
    pub fn new(per_second: u32, start: Instant) -> Self {
        let interval = 1_000_000_000_u64.checked_div(u64::from(per_second)).unwrap_or(0);
        Self {
            start,
            hasher: DefaultHashBuilder::default(),
            buckets: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect(),
            interval,
            burst: interval.saturating_mul(u64::from(per_second)).saturating_mul(2),
            slips: AtomicU32::new(0),
        }
    }

    /// Charges one response to the network of `source`. Loopback is free: nobody outside can
    /// spoof it.
    pub(crate) fn charge(&self, source: IpAddr, now: Instant) -> Verdict {
        if self.interval == 0 || source.is_loopback() {
            return Verdict::Send;
        }
        let now = u64::try_from(now.saturating_duration_since(self.start).as_nanos()).unwrap_or(u64::MAX);
        let Some(bucket) = self.bucket(source) else { return Verdict::Send };
        let full = now.saturating_add(self.burst);
        let charged = bucket.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |empty_at| {
            let next = empty_at.max(now).saturating_add(self.interval);
            (next <= full).then_some(next)
        });
        match charged {
            Ok(_) => Verdict::Send,
            Err(_) if self.slips.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) => Verdict::Slip,
            Err(_) => Verdict::Drop,
        }
    }

    fn bucket(&self, source: IpAddr) -> Option<&AtomicU64> {
        let hash = self.hasher.hash_one(network(source));
        self.buckets.get(usize::try_from(hash % BUCKETS as u64).unwrap_or(0))
    }
}

/// The /24 or /56 of an address; an IPv4 address inside an IPv6 one counts as IPv4.
fn network(source: IpAddr) -> u64 {
    match source.to_canonical() {
        IpAddr::V4(v4) => u64::from(v4.to_bits() >> 8),
        IpAddr::V6(v6) => u64::try_from(v6.to_bits() >> 72).unwrap_or(0) | 1 << 63,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn spend(limiter: &RateLimiter, source: &str, now: Instant, count: usize) -> (usize, usize, usize) {
        let mut seen = (0, 0, 0);
        for _ in 0..count {
            match limiter.charge(source.parse().unwrap(), now) {
                Verdict::Send => seen.0 += 1,
                Verdict::Slip => seen.1 += 1,
                Verdict::Drop => seen.2 += 1,
            }
        }
        seen
    }

    #[test]
    fn d3_a_network_gets_its_burst_then_its_rate_and_others_are_untouched() {
        let start = Instant::now();
        let limiter = RateLimiter::new(100, start);
        assert_eq!(spend(&limiter, "198.51.100.1", start, 300), (200, 50, 50));
        assert_eq!(spend(&limiter, "198.51.100.200", start, 2), (0, 1, 1), "the same /24");
        assert_eq!(spend(&limiter, "203.0.113.1", start, 100).0, 100, "another /24");
        let later = start + Duration::from_secs(1);
        assert_eq!(spend(&limiter, "198.51.100.1", later, 300).0, 100);
        let idle = start + Duration::from_secs(60);
        assert_eq!(spend(&limiter, "198.51.100.1", idle, 300).0, 200, "an idle network has its burst again");
    }

    #[test]
    fn d3_ipv6_is_limited_by_slash_56_and_loopback_is_free() {
        let start = Instant::now();
        let limiter = RateLimiter::new(10, start);
        assert_eq!(spend(&limiter, "2001:db8:0:1::1", start, 20).0, 20);
        assert_eq!(spend(&limiter, "2001:db8:0:2::1", start, 20).0, 0, "the same /56");
        assert_eq!(spend(&limiter, "2001:db8:0:100::1", start, 20).0, 20);
        assert_eq!(spend(&limiter, "127.0.0.1", start, 1000).0, 1000);
        assert_eq!(spend(&RateLimiter::new(0, start), "198.51.100.1", start, 1000).0, 1000);
    }
}

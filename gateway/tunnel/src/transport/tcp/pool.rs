//! How many connections of a link wait to become streams.
//!
//! Pure: what happens is told, what to do is asked. A pool that was found empty doubles; one that was never close to
//! empty for a while shrinks.

use std::time::Duration;

/// Connections that wait at least, for the streams of either side: a browser or a copier opens some at a time.
const LEAST: usize = 16;
/// And never more than so many: each costs both sides a socket and some ten kilobytes.
const MOST: usize = 256;
/// Between two looks at whether there are too many.
const SHRINK: Duration = Duration::from_secs(10);

/// How many should wait, by how many are used.
#[derive(Debug)]
pub(super) struct Wish {
    size: usize,
    /// The least that waited since the last look.
    low: usize,
    looked: Duration,
}

impl Wish {
    pub(super) fn new() -> Self {
        Self { size: LEAST, low: LEAST, looked: Duration::ZERO }
    }

    /// How many should wait.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// One was taken, and `left` wait.
    pub(super) fn taken(&mut self, left: usize) {
        self.low = self.low.min(left);
    }

    /// One was wanted, and none waited.
    pub(super) fn missed(&mut self) {
        self.low = 0;
        self.size = (self.size * 2).min(MOST);
    }

    /// The other side wishes so many.
    pub(super) fn asked(&mut self, count: usize) {
        if count > self.size {
            self.low = 0;
            self.size = count.min(MOST);
        }
    }

    /// Time passes; returns whether fewer are wished now.
    pub(super) fn tick(&mut self, now: Duration) -> bool {
        if now.saturating_sub(self.looked) < SHRINK {
            return false;
        }
        self.looked = now;
        let before = self.size;
        // Half of what was never needed.
        self.size = (self.size - self.low / 2).max(LEAST);
        self.low = self.size;
        self.size < before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_grows_with_what_is_missed_and_shrinks_when_nothing_is() {
        let mut wish = Wish::new();
        assert_eq!(wish.size(), 16);
        for _ in 0..10 {
            wish.missed();
        }
        assert_eq!(wish.size(), 256, "never more");
        let mut now = Duration::ZERO;
        let mut sizes = Vec::new();
        for _ in 0..12 {
            now += SHRINK;
            wish.tick(now);
            sizes.push(wish.size());
        }
        assert_eq!(sizes[0], 256, "it was empty just now");
        assert_eq!(sizes[1], 128, "half of it was never needed");
        assert_eq!(sizes.last(), Some(&16));
    }

    #[test]
    fn what_is_used_stays() {
        let mut wish = Wish::new();
        wish.asked(64);
        wish.tick(SHRINK);
        for second in 1..600 {
            // Bursts of forty.
            wish.taken(wish.size().saturating_sub(40));
            wish.tick(SHRINK + Duration::from_secs(second));
        }
        assert!((40..=42).contains(&wish.size()), "{}", wish.size());
    }
}

//! The clocks of the process: what is timed, and what is dated.
//!
//! Whatever has to happen after a while hangs on the monotonic clock: somebody who sets the wall
//! clock neither ends nor prolongs anything (fault F25). The wall clock dates what is written down
//! or said to others.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use eastway_federation::Now;
use eastway_model::UnixMillis;
use tokio::time::Instant;

/// A fixed moment that monotonic time is counted from.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
    started_at: UnixMillis,
    wall: fn() -> UnixMillis,
}

impl Clock {
    /// Counts from now.
    #[must_use]
    pub fn start() -> Self {
        Self::with_wall(wall)
    }

    /// With another wall clock: tests set it.
    #[must_use]
    pub(crate) fn with_wall(wall: fn() -> UnixMillis) -> Self {
        Self { start: Instant::now(), started_at: wall(), wall }
    }

    /// The time from both clocks.
    #[must_use]
    pub fn now(&self) -> Now {
        Now { mono: self.start.elapsed(), wall: (self.wall)() }
    }

    /// The time that the store is given: the wall clock's as of the start, and what passed since. It
    /// never jumps.
    #[must_use]
    pub fn steady(&self) -> UnixMillis {
        self.started_at.plus(self.start.elapsed())
    }

    /// When the process started, by the wall clock.
    #[must_use]
    pub fn started_at(&self) -> UnixMillis {
        self.started_at
    }

    /// The moment that is `mono` after the start.
    #[must_use]
    pub fn instant(&self, mono: Duration) -> Instant {
        self.start + mono
    }

    /// The moment that [`Clock::steady`] calls `at`; the start, if that was before it.
    #[must_use]
    pub fn steady_instant(&self, at: UnixMillis) -> Instant {
        self.start + at.since(self.started_at)
    }
}

/// The wall clock.
#[must_use]
pub fn wall() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

//! Both clocks, as the pure parts want them.

use std::time::Duration;

use eastway_federation::Now;
use tokio::time::Instant;

use crate::app::store;

/// A fixed moment that monotonic time is counted from.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// Counts from now.
    #[must_use]
    pub fn start() -> Self {
        Self { start: Instant::now() }
    }

    /// The time from both clocks.
    #[must_use]
    pub fn now(&self) -> Now {
        Now { mono: self.start.elapsed(), wall: store::now() }
    }

    /// The moment that is `mono` after the start.
    #[must_use]
    pub fn instant(&self, mono: Duration) -> Instant {
        self.start + mono
    }
}

//! Wall clock as a value, so that tests can move it.

use std::sync::Arc;
use std::time::SystemTime;

/// Tells the wall-clock time. Certificates are judged by nothing else; timers use monotonic time elsewhere.
pub type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// The clock of the operating system.
#[must_use]
pub fn system_clock() -> Clock {
    Arc::new(SystemTime::now)
}

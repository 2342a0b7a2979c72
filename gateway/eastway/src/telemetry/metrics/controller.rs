//! What the `controller` role shows.

use super::{Metrics, count_of, raise};

/// State of the controller; see [`Metrics::set_controller`].
#[derive(Clone, Copy, Debug, Default)]
pub struct ControllerSample {
    /// This replica writes.
    pub leading: bool,
    /// Services that wait or are worked on.
    pub pending: usize,
    /// Services whose last try failed.
    pub failing: usize,
    /// Ports of the gateways in use.
    pub ports: usize,
    /// Requests that wrote something, since our start.
    pub writes: u64,
    /// Requests that failed, since our start.
    pub failures: u64,
}

impl Metrics {
    /// How the controller is doing.
    pub fn set_controller(&self, sample: &ControllerSample) {
        self.controller_leading.set(i64::from(sample.leading));
        self.controller_pending.set(count_of(sample.pending));
        self.controller_failing.set(count_of(sample.failing));
        self.controller_ports.set(count_of(sample.ports));
        raise(&self.controller_writes, sample.writes);
        raise(&self.controller_failures, sample.failures);
    }

    /// Whether a gateway tells the controller what peers export.
    pub fn set_controller_feed(&self, connected: bool) {
        self.controller_feed.set(i64::from(connected));
    }
}

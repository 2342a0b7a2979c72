//! Logs, metrics and the access log: what an operator sees of a running process.
//!
//! Everything that arrives from outside passes through here as *text of somebody else*: it is escaped
//! ([`escape`]), rate-limited ([`refusals`]) and bounded in number of series ([`metrics`]), so that a
//! hostile peer can neither forge a log line, nor fill a disk, nor blow up a Prometheus server.

pub mod access;
pub mod escape;
pub mod limit;
pub mod log;
pub mod metrics;
pub mod refusals;

use std::sync::Arc;

pub use access::{AccessLog, AccessMode, AccessRecord, Direction, Path};
pub use escape::Escaped;
pub use limit::LogLimit;
pub use log::{LogError, LogFormat, LogHandle, LogSettings};
pub use metrics::{
    Certificate, ConnectionLabels, ConnectionMetrics, ControllerSample, Destination, DialOutcome, Metrics, PeerSample,
    RECENT, Reporter, ResponseFlag, Workload,
};
pub use refusals::{Refusal, Refusals};

/// The sinks that every part of the process shares. Clones are cheap and write to the same place.
#[derive(Clone, Debug)]
pub struct Telemetry {
    /// Counters and gauges of `/metrics`.
    pub metrics: Arc<Metrics>,
    /// One line per connection.
    pub access: AccessLog,
    /// One counter and one rate-limited log line per kind of refused input.
    pub refusals: Arc<Refusals>,
}

impl Telemetry {
    /// Sinks with nothing in them; the access log begins in `access` mode.
    #[must_use]
    pub fn new(access: AccessMode) -> Self {
        let metrics = Arc::new(Metrics::new());
        let refusals = Arc::new(Refusals::new(Arc::clone(&metrics)));
        Self { metrics, access: AccessLog::new(access), refusals }
    }
}

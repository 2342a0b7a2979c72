//! One address of a peer: when it may be dialled again.

use std::time::Duration;

use crate::config::{HostPort, ReplicaId, Timing};
use crate::events::{FailureCause, LinkFailure};

/// Dials of one peer in a second.
const MAX_RATE: usize = 2;

pub(crate) struct Address {
    pub(crate) host: HostPort,
    /// The replica that the last dial reached.
    pub(crate) replica: Option<ReplicaId>,
    pub(crate) dialling: bool,
    pub(crate) not_before: Duration,
    pub(crate) failures: u32,
    attempts: u32,
    pub(crate) last_failure: Option<LinkFailure>,
}

impl FailureCause {
    /// The other side answers and does not fit: trying often does not help. Everything else is tried at a
    /// steady pace.
    const fn is_refusal(self) -> bool {
        matches!(self, Self::Rejected | Self::RefusedUs | Self::Fault)
    }
}

impl Address {
    pub(crate) fn new(host: HostPort, now: Duration) -> Self {
        Self { host, replica: None, dialling: false, not_before: now, failures: 0, attempts: 0, last_failure: None }
    }

    /// Begins a dial; returns its number.
    pub(crate) fn begin(&mut self) -> u32 {
        self.dialling = true;
        self.attempts = self.attempts.wrapping_add(1);
        self.attempts - 1
    }

    /// The dial begun last led to `replica`; if another one is wanted, it comes after `pause`.
    pub(crate) fn reached(&mut self, replica: ReplicaId, pause: Duration, at: &mut Moment<'_>) {
        self.dialling = false;
        self.replica = Some(replica);
        self.last_failure = None;
        self.not_before = at.now + at.jitter(pause);
    }

    /// The dial begun last gave no link.
    pub(crate) fn failed(&mut self, failure: LinkFailure, at: &mut Moment<'_>) {
        self.dialling = false;
        self.pause(failure, at);
    }

    pub(crate) fn retry(&mut self, at: &mut Moment<'_>) {
        self.failures = 0;
        self.not_before = self.not_before.min(at.now + at.jitter(at.timing.redial));
    }

    /// A link dialled here has ended. `lasted`: it had been good for a while.
    pub(crate) fn lost(&mut self, failure: LinkFailure, lasted: bool, at: &mut Moment<'_>) {
        let done = failure.cause == FailureCause::Done;
        if lasted || done {
            self.failures = 0;
        }
        let before = self.not_before;
        self.pause(failure, at);
        // One link too many, found in a search, is no reason to search sooner.
        if done {
            self.not_before = self.not_before.max(before);
        }
    }

    fn pause(&mut self, failure: LinkFailure, at: &mut Moment<'_>) {
        let most = if failure.cause.is_refusal() { at.timing.refused_max } else { at.timing.redial_max };
        self.last_failure = (failure.cause != FailureCause::Done).then_some(failure);
        let pause = at.timing.redial.saturating_mul(1 << self.failures.min(16)).min(most);
        self.failures = self.failures.saturating_add(1);
        self.not_before = at.now + at.jitter(pause);
    }
}

/// When something happened, and what decides over the pause after it.
pub(crate) struct Moment<'a> {
    pub(crate) now: Duration,
    pub(crate) timing: &'a Timing,
    pub(crate) random: &'a mut fastrand::Rng,
}

impl Moment<'_> {
    /// A quarter up or down, so that peers who lost each other together do not meet again together.
    fn jitter(&mut self, pause: Duration) -> Duration {
        pause.mul_f64(0.75 + self.random.f64() / 2.0)
    }
}

/// Dials of one peer, all of its addresses together: never more than [`MAX_RATE`] in any second.
#[derive(Default)]
pub(crate) struct RateLimit {
    /// The last dials, oldest first.
    last: [Option<Duration>; MAX_RATE],
}

impl RateLimit {
    /// When the next dial may begin.
    pub(crate) fn next(&self) -> Duration {
        let [oldest, _] = self.last;
        oldest.map_or(Duration::ZERO, |oldest| oldest + Duration::from_secs(1))
    }

    pub(crate) fn take(&mut self, now: Duration) {
        let [_, newest] = self.last;
        self.last = [newest, Some(now)];
    }
}

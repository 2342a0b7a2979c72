//! One way to a peer: an address by a transport, and when it may be dialled again.

use std::time::Duration;

use crate::config::{HostPort, ReplicaId, Timing};
use crate::events::{FailureCause, LinkFailure};
use crate::transport::TransportKind;

/// Dials of one peer in a second, by one transport.
const MAX_RATE: usize = 2;
/// A fallback is dialled so long after what it is the fallback of, if that has not answered yet.
const HEAD_START: Duration = Duration::from_millis(300);
/// While the fallback carries a link: pause before the better way is tried again, which doubles up to the longest.
const UPGRADE: Duration = Duration::from_secs(10);
const UPGRADE_MAX: Duration = Duration::from_secs(60);
/// Between two looks at how an address does that carries no link beside one that does.
const LOOK: Duration = Duration::from_secs(60);
/// The same for one that did better when it was seen last; doubled with each dial that fails.
const LOOK_SOON: Duration = Duration::from_secs(10);

pub(crate) struct Address {
    pub(crate) host: HostPort,
    pub(crate) transport: TransportKind,
    /// The replica that the last dial reached.
    pub(crate) replica: Option<ReplicaId>,
    pub(crate) dialling: bool,
    /// When the last dial began.
    pub(crate) began: Duration,
    pub(crate) not_before: Duration,
    pub(crate) failures: u32,
    attempts: u32,
    pub(crate) last_failure: Option<LinkFailure>,
    /// The last dial gave no link.
    pub(crate) missed: bool,
    /// This fallback has worked where the better way had not, and that was not seen to work since.
    pub(crate) remembered: bool,
    /// When to see again how it compares with another address that leads to the same replica.
    pub(crate) look_at: Duration,
    /// The round trip time that was measured there last.
    pub(crate) rtt: Option<Duration>,
}

impl FailureCause {
    /// Somebody answers and does not fit: trying often does not help. Everything else is tried at a
    /// steady pace.
    const fn is_refusal(self) -> bool {
        matches!(self, Self::Rejected | Self::RefusedUs | Self::Fault | Self::Proxy)
    }
}

impl Address {
    pub(crate) fn new(host: HostPort, transport: TransportKind, now: Duration) -> Self {
        Self {
            host,
            transport,
            replica: None,
            dialling: false,
            began: now,
            not_before: now,
            failures: 0,
            attempts: 0,
            last_failure: None,
            missed: false,
            remembered: false,
            look_at: now,
            rtt: None,
        }
    }

    /// Begins a dial; returns its number.
    pub(crate) fn begin(&mut self, now: Duration) -> u32 {
        self.dialling = true;
        self.began = now;
        self.attempts = self.attempts.wrapping_add(1);
        self.attempts - 1
    }

    /// The dial begun last led to `replica`; if another one is wanted, it comes after `pause`.
    pub(crate) fn reached(&mut self, replica: ReplicaId, pause: Duration, at: &mut Moment<'_>) {
        self.dialling = false;
        self.missed = false;
        self.replica = Some(replica);
        self.last_failure = None;
        self.not_before = at.now + at.jitter(pause);
        self.look_at = at.now + at.jitter(LOOK);
    }

    /// The dial begun last gave no link. `linked`: its fallback carries one meanwhile.
    pub(crate) fn failed(&mut self, failure: LinkFailure, linked: bool, at: &mut Moment<'_>) {
        self.dialling = false;
        self.missed = true;
        self.look_at = at.now + at.jitter(LOOK);
        let failures = self.failures;
        self.pause(failure, at);
        if linked {
            let pause = UPGRADE.saturating_mul(1 << failures.saturating_sub(1).min(8)).min(UPGRADE_MAX);
            self.not_before = at.now + at.jitter(pause);
        }
    }

    /// It was better once than the path that carries the link is now: it is looked at a little sooner.
    pub(crate) fn look_soon(&mut self) {
        let pause = LOOK_SOON.saturating_mul(1 << self.failures.saturating_sub(1).min(8));
        self.look_at = self.look_at.min(self.began + pause);
    }

    /// A failed dial is repeated after the longest of the usual pauses.
    pub(crate) fn not_so_soon(&mut self, at: &mut Moment<'_>) {
        self.not_before = self.not_before.max(at.now + at.jitter(at.timing.redial_max));
    }

    pub(crate) fn retry(&mut self, at: &mut Moment<'_>) {
        self.failures = 0;
        self.not_before = self.not_before.min(at.now + at.jitter(at.timing.redial));
    }

    /// No link is left at the address.
    pub(crate) fn hurry(&mut self, at: &mut Moment<'_>) {
        if self.missed {
            self.not_before = self.not_before.min(at.now + at.jitter(at.timing.redial_max));
        }
    }

    /// A link dialled here has ended. `lasted`: it had been good for a while.
    pub(crate) fn lost(&mut self, failure: LinkFailure, lasted: bool, at: &mut Moment<'_>) {
        let done = failure.cause == FailureCause::Done;
        if lasted || done {
            self.failures = 0;
        }
        self.missed = false;
        let before = self.not_before;
        self.pause(failure, at);
        // One link too many, found in a search, is no reason to search sooner.
        if done {
            self.not_before = self.not_before.max(before);
        }
    }

    /// From when a fallback of this is wanted; `None`: it is not.
    pub(crate) fn fallback_from(&self, remembered: bool) -> Option<Duration> {
        if self.missed {
            return Some(Duration::ZERO);
        }
        let head_start = if remembered { Duration::ZERO } else { HEAD_START };
        self.dialling.then(|| self.began + head_start)
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

/// Dials of one peer by one transport, all of its addresses together: never more than [`MAX_RATE`] in any second.
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

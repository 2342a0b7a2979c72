//! Looks at a connection now and then: counts what it carried, and ends it when it stands still.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{CopyError, Idle, Lane, Transferred};

/// How often a connection is looked at that carries bytes. Metrics lag by so much.
const BUSY: Duration = Duration::from_secs(5);
/// And one that carries none.
const QUIET: Duration = Duration::from_secs(60);

/// How long a connection may stand still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Without a byte in either direction, or with bytes that nobody takes.
    pub idle: Duration,
    /// Likewise, once one direction has ended: what is left is only waited for.
    pub half_closed: Duration,
}

/// What happens beside the copying.
pub struct Watch<'a> {
    /// How long the connection may stand still.
    pub limits: Limits,
    /// Called every few seconds while bytes move, to count them.
    pub count: &'a mut (dyn FnMut() + Send),
    /// Ends it at once.
    pub cut: Option<CancellationToken>,
}

impl Watch<'_> {
    /// Until the connection has stood still for too long, or is cut.
    pub(super) async fn run(&mut self, moved: &Transferred) -> CopyError {
        let mut pause = BUSY.min(self.limits.slowest_look());
        let mut lanes = [Seen::new(&moved.from_local), Seen::new(&moved.to_local)];
        loop {
            match self.cut.clone() {
                // On the heap: few connections have one, and all are of this size.
                Some(cut) => {
                    if Box::pin(timeout(pause, cut.cancelled_owned())).await.is_ok() {
                        return CopyError::Revoked;
                    }
                }
                None => sleep(pause).await,
            }
            let now = Instant::now();
            // Both are looked at, whatever the first says: each remembers when it moved.
            let looks = lanes.each_mut().map(|lane| lane.look(now));
            let slowest = self.limits.slowest_look();
            if looks.contains(&true) {
                (self.count)();
                pause = BUSY.min(slowest);
            } else {
                pause = (pause * 2).min(slowest);
            }
            if let Some((idle, limit)) = self.limits.judge(&lanes, now) {
                return CopyError::Idle(idle, limit);
            }
        }
    }
}

impl Limits {
    /// Often enough to keep the limits to a quarter.
    fn slowest_look(&self) -> Duration {
        (self.idle.min(self.half_closed) / 4).clamp(Duration::from_millis(1), QUIET)
    }

    fn judge(&self, lanes: &[Seen<'_>; 2], now: Instant) -> Option<(Idle, Duration)> {
        let quiet = |lane: &Seen<'_>| now.duration_since(lane.moved_at);
        let both = lanes.iter().map(quiet).min().unwrap_or_default();
        let half_closed = lanes.iter().any(|lane| lane.ended);
        match () {
            () if half_closed && both >= self.half_closed => Some((Idle::HalfClosed, self.half_closed)),
            () if both >= self.idle => Some((Idle::Quiet, self.idle)),
            () if lanes.iter().any(|lane| lane.is_blocked() && quiet(lane) >= self.idle) => {
                Some((Idle::Blocked, self.idle))
            }
            () => None,
        }
    }
}

/// One direction, as it was seen last.
struct Seen<'a> {
    lane: &'a Lane,
    given: u64,
    ended: bool,
    moved_at: Instant,
}

impl<'a> Seen<'a> {
    /// Never yet: what moved before counts as moved at the first look.
    fn new(lane: &'a Lane) -> Self {
        Self { lane, given: 0, ended: false, moved_at: Instant::now() }
    }

    /// Whether it moved since the last look, its end included.
    fn look(&mut self, now: Instant) -> bool {
        let (given, ended) = (self.lane.given(), self.lane.is_ended());
        let moved = given != self.given || ended != self.ended;
        if moved {
            (self.given, self.ended, self.moved_at) = (given, ended, now);
        }
        moved
    }

    fn is_blocked(&self) -> bool {
        self.lane.taken() != self.given
    }
}

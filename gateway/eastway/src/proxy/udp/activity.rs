//! When a flow is over.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// Packets each way up to which a flow may be questions and their answers: a stub resolver asks for A and AAAA.
const QUESTIONS: u64 = 2;
/// How long a flow lasts whose few questions all have an answer. DNS and NTP clients take another port for the next one.
const ANSWERED: Duration = Duration::from_secs(10);
/// How long a flow lasts that its client has left, or whose gateway is about to end: what is still under way arrives.
const LEFT: Duration = Duration::from_secs(2);

/// What passed on a flow.
#[derive(Debug)]
pub(super) struct Activity {
    began: Instant,
    /// Milliseconds after `began`.
    last: AtomicU64,
    asked: Lane,
    answered: Lane,
}

/// One direction.
#[derive(Debug, Default)]
pub(super) struct Lane {
    packets: AtomicU64,
    bytes: AtomicU64,
}

impl Lane {
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    fn packets(&self) -> u64 {
        self.packets.load(Ordering::Relaxed)
    }
}

impl Activity {
    pub(super) fn new(now: Instant) -> Self {
        Self { began: now, last: AtomicU64::new(0), asked: Lane::default(), answered: Lane::default() }
    }

    /// Packets went to the endpoint.
    pub(super) fn asked(&self, packets: usize, bytes: usize) {
        self.passed(&self.asked, packets, bytes);
    }

    /// Packets went to the client.
    pub(super) fn answered(&self, packets: usize, bytes: usize) {
        self.passed(&self.answered, packets, bytes);
    }

    fn passed(&self, lane: &Lane, packets: usize, bytes: usize) {
        lane.packets.fetch_add(packets as u64, Ordering::Relaxed);
        lane.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        let since = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(since, Ordering::Relaxed);
    }

    /// Bytes that went to the endpoint, and to the client.
    pub(super) fn bytes(&self) -> (u64, u64) {
        (self.asked.bytes(), self.answered.bytes())
    }

    /// When the flow is over if nothing passes until then; it may be in the past. `idle`: how long flows last in general.
    /// `left`: nothing new is to be expected.
    pub(super) fn over_at(&self, idle: Duration, left: bool) -> Instant {
        let (asked, answered) = (self.asked.packets(), self.answered.packets());
        let quiet = match () {
            () if left => idle.min(LEFT),
            () if asked <= QUESTIONS && answered >= asked && answered <= QUESTIONS => idle.min(ANSWERED),
            () => idle,
        };
        self.began + Duration::from_millis(self.last.load(Ordering::Relaxed)) + quiet
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn questions_that_are_answered_are_over_sooner_than_conversations() {
        let idle = Duration::from_secs(60);
        let start = Instant::now();
        let activity = Activity::new(start);
        let lasts = || activity.over_at(idle, false) - Instant::now();
        activity.asked(2, 80);
        assert_eq!(lasts(), idle, "an answer may take its time");
        activity.answered(1, 100);
        assert_eq!(lasts(), idle);
        tokio::time::advance(Duration::from_secs(1)).await;
        activity.answered(1, 100);
        assert_eq!(lasts(), ANSWERED);
        assert_eq!(activity.over_at(Duration::from_secs(3), false) - Instant::now(), Duration::from_secs(3));
        activity.asked(1, 80);
        assert_eq!(lasts(), idle, "there is more to it");
        assert_eq!(activity.over_at(idle, true) - Instant::now(), LEFT);
        assert_eq!(activity.bytes(), (160, 200));
    }
}

//! What the reader of a stream is doing, as far as others must know: does it wait for data, or do data wait
//! for it?
//!
//! This is apart from the stream because it serves as a waker, which a transport keeps and drops under locks
//! of its own: a waker must not own anything whose end needs those locks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Wake, Waker};

use futures_util::task::AtomicWaker;

use crate::link::Pace;

/// It waits for data: it holds nothing up.
const WAITING: u32 = u32::MAX;
/// It does not wait, but there is nothing for it either: the transport wakes the mark when there is.
const EMPTY: u32 = u32::MAX - 1;

pub(super) struct Reader {
    /// Tick of the link since when it does not come back for more, or [`WAITING`], or [`EMPTY`].
    since: AtomicU32,
    /// Who waits for the stream to be cut.
    abort: AtomicWaker,
    pace: Arc<Pace>,
}

impl Reader {
    /// Nothing is read yet, and nobody waits.
    pub(super) fn new(pace: Arc<Pace>) -> Arc<Self> {
        let reader = Self { since: AtomicU32::new(WAITING), abort: AtomicWaker::new(), pace };
        reader.takes();
        Arc::new(reader)
    }

    /// It waits for data, or wants no more.
    pub(super) fn waits(&self) {
        self.mark(WAITING);
    }

    /// It has data in hand and is expected back.
    pub(super) fn takes(&self) {
        self.mark(self.pace.tick());
    }

    /// For how many ticks, at least `least`, it has not come back.
    pub(super) fn away(&self, now: u32, least: u32) -> Option<u32> {
        let since = self.since.load(Ordering::Acquire);
        (since < EMPTY).then(|| now.wrapping_sub(since)).filter(|ticks| *ticks >= least)
    }

    /// Before a look at whether there is something for it: what comes right after finds the mark.
    pub(super) fn presume_empty(&self) {
        self.mark(EMPTY);
    }

    /// The look found something: it is away since `since` after all.
    pub(super) fn not_empty(&self, since: u32) {
        self.mark(since);
    }

    pub(super) fn register_abort(&self, waker: &Waker) {
        self.abort.register(waker);
    }

    pub(super) fn abort(&self) {
        self.abort.wake();
    }

    fn mark(&self, since: u32) {
        let before = self.since.swap(since, Ordering::AcqRel);
        if (before < EMPTY) != (since < EMPTY) {
            self.pace.hold(since < EMPTY);
        }
    }
}

/// Called when a look at the transport found nothing and now there is something. Who waits for an abort had its
/// waker replaced by that look and is woken in its place.
impl Wake for Reader {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.since.compare_exchange(EMPTY, self.pace.tick(), Ordering::AcqRel, Ordering::Acquire).is_ok() {
            self.pace.hold(true);
        }
        self.abort.wake();
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.mark(WAITING);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_readers_that_keep_data_waiting_are_held() {
        let pace = Arc::new(Pace::default());
        let reader = Reader::new(Arc::clone(&pace));
        assert!(pace.any_held(), "not read yet");
        reader.waits();
        assert!(!pace.any_held());
        reader.takes();
        let now = (0..5).fold(0, |_, _| pace.advance());
        assert_eq!((reader.away(now, 2), reader.away(now, 6)), (Some(5), None));
        reader.presume_empty();
        assert_eq!(reader.away(now, 0), None);
        assert!(!pace.any_held(), "nothing is there for it");
        let waker = Waker::from(Arc::clone(&reader));
        waker.wake_by_ref();
        assert_eq!(reader.away(now, 0), Some(0), "data came");
        reader.waits();
        waker.wake();
        assert!(!pace.any_held(), "a late wake does not count what is waited for");
        reader.takes();
        drop(reader);
        assert!(!pace.any_held());
    }
}

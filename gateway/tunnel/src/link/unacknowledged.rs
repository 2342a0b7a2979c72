//! What was said last on streams that have ended, until the other side has it: a link that is closed before takes it along.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};

use crate::transport::SendStream;

/// Halves that memory is kept for while there are none.
const SPARE: usize = 64;

/// Halves that ended here in order.
#[derive(Default)]
pub(super) struct Unacknowledged(Mutex<Vec<Box<dyn SendStream>>>);

impl Unacknowledged {
    pub(super) fn keep(&self, half: Box<dyn SendStream>) {
        self.halves().push(half);
    }

    /// Lets go of what the other side has got. Returns whether those were the last.
    pub(super) fn sweep(&self) -> bool {
        let mut halves = self.halves();
        if halves.is_empty() {
            return false;
        }
        let mut cx = Context::from_waker(Waker::noop());
        halves.retain_mut(|half| half.poll_stopped(&mut cx).is_pending());
        if halves.is_empty() {
            halves.shrink_to(SPARE);
        }
        halves.is_empty()
    }

    pub(super) fn clear(&self) {
        // Not under the lock: a half that is dropped talks to its connection.
        let halves = std::mem::take(&mut *self.halves());
        drop(halves);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.halves().is_empty()
    }

    fn halves(&self) -> MutexGuard<'_, Vec<Box<dyn SendStream>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

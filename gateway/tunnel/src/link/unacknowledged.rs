//! What was said last on streams that have ended, until the other side has it: a link that is closed before takes it along.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};

use crate::transport::SendStream;

/// Halves that memory is kept for while there are none.
const SPARE: usize = 64;

/// Who waits until the other side has got all of a half that ended in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Awaited {
    ByDrains,
    ByNobody,
}

type Half = (Box<dyn SendStream>, Awaited);

/// Halves that ended here in order.
#[derive(Default)]
pub(super) struct Unacknowledged(Mutex<Vec<Half>>);

impl Unacknowledged {
    pub(super) fn keep(&self, half: Box<dyn SendStream>, awaited: Awaited) {
        self.halves().push((half, awaited));
    }

    /// Lets go of what the other side has got. Returns whether those were the last that are waited for.
    pub(super) fn sweep(&self) -> bool {
        let mut halves = self.halves();
        if halves.is_empty() {
            return false;
        }
        let mut cx = Context::from_waker(Waker::noop());
        halves.retain_mut(|(half, _)| half.poll_stopped(&mut cx).is_pending());
        if halves.is_empty() {
            halves.shrink_to(SPARE);
        }
        !is_awaited(&halves)
    }

    pub(super) fn clear(&self) {
        // Not under the lock: a half that is dropped talks to its connection.
        let halves = std::mem::take(&mut *self.halves());
        drop(halves);
    }

    /// Whether there are some that a drain waits for.
    pub(super) fn is_awaited(&self) -> bool {
        is_awaited(&self.halves())
    }

    fn halves(&self) -> MutexGuard<'_, Vec<Half>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_awaited(halves: &[Half]) -> bool {
    halves.iter().any(|(_, awaited)| *awaited == Awaited::ByDrains)
}

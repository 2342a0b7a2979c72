//! The readers' side of the store.

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use tokio::sync::watch;

use super::snapshot::Snapshot;

/// Reads snapshots; cheap to clone, never blocks and is never blocked.
#[derive(Clone, Debug)]
pub struct Reader {
    current: Arc<ArcSwap<Snapshot>>,
    version: watch::Receiver<u64>,
}

/// The writer is gone: no snapshot will follow the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the store was closed")]
pub struct Closed;

impl Reader {
    /// The current snapshot, without touching its reference count. For short looks; a guard held
    /// for long keeps a whole snapshot alive and makes later loads dearer.
    #[must_use]
    pub fn load(&self) -> Guard<Arc<Snapshot>> {
        self.current.load()
    }

    /// The current snapshot, to keep.
    #[must_use]
    pub fn load_full(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Waits until a snapshot was published that this reader has not waited for. The latest wins:
    /// a slow reader sees fewer snapshots, never old ones.
    ///
    /// # Errors
    /// [`Closed`] when the writer is gone.
    pub async fn changed(&mut self) -> Result<(), Closed> {
        self.version.changed().await.map_err(|_| Closed)
    }
}

/// The writer's end.
#[derive(Debug)]
pub(super) struct Publisher {
    current: Arc<ArcSwap<Snapshot>>,
    version: watch::Sender<u64>,
}

pub(super) fn channel(first: Snapshot) -> (Publisher, Reader) {
    let (sender, receiver) = watch::channel(first.version());
    let current = Arc::new(ArcSwap::from_pointee(first));
    (Publisher { current: Arc::clone(&current), version: sender }, Reader { current, version: receiver })
}

impl Publisher {
    pub(super) fn publish(&self, snapshot: Arc<Snapshot>) {
        let version = snapshot.version();
        // The pointer first: who is woken must find the new snapshot.
        self.current.store(snapshot);
        self.version.send_replace(version);
    }
}

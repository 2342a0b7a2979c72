//! How old what is held of each peer is: written by the importers, read by status and metrics.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use eastway_model::{ClusterName, UnixMillis};

use crate::app::clock::Clock;

/// When each peer's state was known to be current. Clones share it.
#[derive(Clone, Debug)]
pub struct Freshness {
    clock: Clock,
    peers: Arc<Mutex<BTreeMap<ClusterName, Known>>>,
}

/// On the clock that never jumps.
#[derive(Clone, Copy, Debug)]
struct Known {
    current_at: UnixMillis,
    /// The peer said so itself since our start; otherwise it is what a copy on disk says.
    confirmed: bool,
}

impl Freshness {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self { clock, peers: Arc::default() }
    }

    /// How long ago what is held of `peer` was known to be what it exports; none if nothing is held.
    #[must_use]
    pub fn age(&self, peer: &str) -> Option<Duration> {
        let known = self.lock().get(peer).copied()?;
        Some(self.clock.steady().since(known.current_at))
    }

    /// Age of the oldest copy from disk that is served and that its peer has not confirmed since.
    #[must_use]
    pub fn restored_age(&self) -> Option<Duration> {
        let now = self.clock.steady();
        self.lock().values().filter(|known| !known.confirmed).map(|known| now.since(known.current_at)).max()
    }

    /// A copy on disk, whose peer was last heard then, is served.
    pub(super) fn restored(&self, peer: &ClusterName, heard_at: UnixMillis) {
        self.lock().insert(peer.clone(), Known { current_at: heard_at, confirmed: false });
    }

    /// The peer was in sync with us, so long ago.
    pub(super) fn confirmed(&self, peer: &ClusterName, ago: Duration) {
        let current_at = self.clock.steady().minus(ago);
        self.lock().insert(peer.clone(), Known { current_at, confirmed: true });
    }

    /// Nothing is held of the peer any more.
    pub(super) fn forget(&self, peer: &ClusterName) {
        self.lock().remove(peer);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ClusterName, Known>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

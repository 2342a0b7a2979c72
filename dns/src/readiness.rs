//! When "no such name" may be said (invariant I5).

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a peer without any state can keep the names it might own from being denied.
pub const PENDING_FOR: Duration = Duration::from_secs(30);

/// Whether a peer might own the service `(namespace, name)`.
pub type OwnsService = dyn Fn(&str, &str) -> bool + Send + Sync;

/// A peer of which nothing is known yet, neither live nor from disk.
#[derive(Clone)]
pub struct PendingPeer {
    /// The name of its cluster. Names of endpoints say whose they are, and a peer owns no other's.
    pub peer: Arc<str>,
    /// Since when it is waited for. [`PENDING_FOR`] after that it is no longer, whatever is said here.
    pub since: Instant,
    /// What its import filter lets in.
    pub owns: Arc<OwnsService>,
}

impl PendingPeer {
    fn may_own(&self, namespace: &str, name: &str, cluster: Option<&str>, now: Instant) -> bool {
        cluster.is_none_or(|cluster| cluster == &*self.peer)
            && now.saturating_duration_since(self.since) < PENDING_FOR
            && (self.owns)(namespace, name)
    }
}

impl fmt::Debug for PendingPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingPeer").field("peer", &self.peer).field("since", &self.since).finish_non_exhaustive()
    }
}

/// What is known well enough to deny names. The default knows nothing.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    /// All local registries have been read. Before it no name of a service is confirmed or denied.
    pub local_synced: bool,
    /// Peers that may own names not known yet.
    pub pending: Vec<PendingPeer>,
}

impl Readiness {
    /// Everything is known.
    #[must_use]
    pub fn complete() -> Self {
        Self { local_synced: true, pending: Vec::new() }
    }

    /// Whether a peer still waited for might own this service, or, if a cluster is named, have an endpoint of it.
    pub(crate) fn is_pending(&self, namespace: &str, name: &str, cluster: Option<&str>, now: Instant) -> bool {
        self.pending.iter().any(|peer| peer.may_own(namespace, name, cluster, now))
    }
}

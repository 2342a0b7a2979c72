//! A head start for peers before this replica is ready.
//!
//! Behind a balancer a replica that is ready is given connections at once. One that has no link yet, or has not heard yet
//! what a peer exports, fails those that the replica it replaces would have served. So peers get a moment. It is
//! bounded: a peer that does not answer keeps nobody from being ready (invariant I12, fault F17).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use eastway_model::ServiceKind;
use eastway_model::store::Snapshot;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::admin;
use crate::app::Gateway;
use crate::app::frontend::FrontendView;

/// For a link to every peer, from the moment on at which this process lacks nothing of its own (fault F17: 2 s).
const LINK: Duration = Duration::from_millis(1_500);
/// For what the peers that have a link export, and for listening on it.
const SYNC: Duration = Duration::from_secs(10);
/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// Holds `guard` until every peer is linked and heard and its services are listened for, or their time is over.
pub(super) async fn give(gateway: Arc<Gateway>, guard: admin::Guard, end: CancellationToken) {
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut began = None;
    while end.run_until_cancelled(looks.tick()).await.is_some() {
        let snapshot = gateway.reader.load_full();
        if !snapshot.is_local_synced() {
            continue;
        }
        let waited = began.get_or_insert_with(Instant::now).elapsed();
        let missing = missing(&gateway, &snapshot);
        if missing.is_none_or(|missing| waited >= missing.patience()) {
            if let Some(missing) = missing {
                info!(?missing, ?waited, "ready without every peer");
            }
            break;
        }
    }
    drop(guard);
}

/// What peers have not come to yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Missing {
    /// The Peers themselves have not been read.
    Peers,
    /// A link.
    Link,
    /// A complete snapshot of what a peer exports.
    Exports,
    /// Listeners for what was imported.
    Listeners,
}

impl Missing {
    fn patience(self) -> Duration {
        match self {
            Self::Peers | Self::Link => LINK,
            Self::Exports | Self::Listeners => SYNC,
        }
    }
}

fn missing(gateway: &Gateway, snapshot: &Snapshot) -> Option<Missing> {
    let known = gateway.known_peers.borrow().clone();
    let peers: BTreeSet<_> = match &known {
        Some(known) => BTreeSet::clone(known),
        // While the API server is silent, those of the last run (invariant I12).
        None => snapshot.peers().filter(|peer| peer.configured).map(|peer| peer.name.clone()).collect(),
    };
    if known.is_none() && peers.is_empty() {
        return Some(Missing::Peers);
    }
    let links = gateway.tunnel.get().map(|tunnel| tunnel.links());
    let (mut lacks_link, mut lacks_exports) = (false, false);
    for peer in &peers {
        if links.as_ref().is_none_or(|links| links.to(peer.as_str()).is_empty()) {
            lacks_link = true;
        } else {
            lacks_exports |= !snapshot.peers().any(|known| known.name == *peer && known.synced);
        }
    }
    // First what has more patience.
    if lacks_exports {
        Some(Missing::Exports)
    } else if !is_listening(snapshot, &gateway.frontend.borrow()) {
        Some(Missing::Listeners)
    } else {
        lacks_link.then_some(Missing::Link)
    }
}

/// Every import with an address was looked at. That none was given out yet is no matter of this process.
fn is_listening(snapshot: &Snapshot, view: &FrontendView) -> bool {
    let mut imports = snapshot.imports().filter(|import| import.kind == ServiceKind::ClusterSetIp);
    imports.all(|import| view.vips.contains_key(&import.key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i12_a_peer_that_does_not_answer_is_not_waited_for() {
        assert!(
            Missing::Link.patience() < Duration::from_secs(2) && Missing::Peers.patience() < Duration::from_secs(2)
        );
        assert!(Missing::Exports.patience() <= Duration::from_secs(10));
    }
}

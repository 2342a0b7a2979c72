//! The links that streams may be opened on, as one immutable table for the hot path.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Link, LinkRole, LinkState};

/// Links by peer. Readers take one load of it per connection and never wait.
#[derive(Debug, Default)]
pub struct LinkTable {
    peers: HashMap<Arc<str>, Vec<Link>>,
    /// Those that drain.
    leaving: HashMap<Arc<str>, Vec<Link>>,
    /// Those that take only streams that move much.
    bulk: HashMap<Arc<str>, Vec<Link>>,
}

impl LinkTable {
    /// Only links that take new streams count. Those acknowledged lately come first; then those to replicas
    /// that the peer still counts as live; then those by the better transport; then the older ones.
    pub(crate) fn new(links: impl IntoIterator<Item = Link>) -> Self {
        let mut peers: HashMap<Arc<str>, Vec<Link>> = HashMap::new();
        let mut leaving: HashMap<Arc<str>, Vec<Link>> = HashMap::new();
        let mut bulk: HashMap<Arc<str>, Vec<Link>> = HashMap::new();
        for link in links {
            let peers = match link.0.role() {
                _ if link.is_leaving() => &mut leaving,
                LinkRole::Whole => &mut peers,
                LinkRole::Bulk => &mut bulk,
                LinkRole::Standby => continue,
            };
            if link.is_usable() || link.is_leaving() {
                peers.entry(Arc::clone(link.peer())).or_default().push(link);
            }
        }
        for links in peers.values_mut() {
            links.sort_by_key(|link| {
                let link = &link.0;
                (link.state() != LinkState::Fresh, link.is_outdated(), link.rank(), link.identity.id)
            });
        }
        Self { peers, leaving, bulk }
    }

    /// Links to `peer`, those that were acknowledged lately first. Empty: the peer is down.
    #[must_use]
    pub fn to(&self, peer: &str) -> &[Link] {
        self.peers.get(peer).map_or(&[], Vec::as_slice)
    }

    /// Links to `peer` for streams that move much, and for no others: beside one of [`Self::to`] to the same replica, and
    /// measured to be faster. Empty: those of [`Self::to`] are for all streams.
    #[must_use]
    pub fn bulk_to(&self, peer: &str) -> &[Link] {
        self.bulk.get(peer).map_or(&[], Vec::as_slice)
    }

    /// Links to `peer` that drain: for who finds none in [`Self::to`].
    #[must_use]
    pub fn leaving_to(&self, peer: &str) -> &[Link] {
        self.leaving.get(peer).map_or(&[], Vec::as_slice)
    }

    /// Peers that can be reached, in no order.
    pub fn peers(&self) -> impl Iterator<Item = &Arc<str>> {
        self.peers.keys()
    }
}

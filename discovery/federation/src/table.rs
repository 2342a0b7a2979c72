//! What is held of one peer's exports. It outlives sessions, and as an image on disk restarts too.
//!
//! The table and the store hold the same: each change here is told to the store as a
//! [`PeerChange`]. Under churn that happens a little later, and the changes meanwhile are pending.

mod endpoints;
mod image;
mod rules;
mod services;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use eastway_model::endpoint::RemoteEndpoints;
use eastway_model::rules::PeerRules;
use eastway_model::{ClusterName, EndpointId, PeerChange, ServiceKey, ServiceRecord, UnixMillis};
use eastway_proto::federation::v1 as wire;

use crate::convert::Texts;
use crate::limits::Limits;
use crate::reject::RejectReason;

pub(crate) use endpoints::{Listing, Received, Subscribed};
pub use image::ImageError;
pub(crate) use services::{Reading, Services, Staging, read_service};

/// What one peer exports to us, as far as its import rules and quotas let it.
#[derive(Debug)]
pub struct ImportTable {
    cluster: ClusterName,
    peer: ClusterName,
    pub(crate) limits: Limits,
    pub(crate) services: Services,
    pub(crate) subscriptions: BTreeMap<ServiceKey, Subscribed>,
    pub(crate) pending: Pending,
    /// Where the contents come from; none before the first complete snapshot.
    pub(crate) source: Option<Source>,
    /// Number of sessions begun: the newest alone may change the table.
    pub(crate) session: u64,
    pub(crate) heard_at: UnixMillis,
    pub(crate) texts: Texts,
    revision: u64,
}

/// The last message applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// Which process of which replica sent it.
    pub epoch: u64,
    /// Its sequence number in that session.
    pub sequence: u64,
}

/// Changes that the store does not know yet: latest wins, since only names are noted.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    pub(crate) services: BTreeSet<ServiceKey>,
    pub(crate) endpoints: BTreeMap<ServiceKey, BTreeSet<EndpointId>>,
}

impl Pending {
    pub(crate) fn is_empty(&self) -> bool {
        self.services.is_empty() && self.endpoints.is_empty()
    }
}

impl ImportTable {
    /// Of a peer never heard of. `cluster` is our own name.
    #[must_use]
    pub fn new(cluster: ClusterName, peer: ClusterName, limits: Limits) -> Self {
        Self {
            cluster,
            peer,
            limits,
            services: Services::default(),
            subscriptions: BTreeMap::new(),
            pending: Pending::default(),
            source: None,
            session: 0,
            heard_at: UnixMillis(0),
            texts: Texts::default(),
            revision: 0,
        }
    }

    /// Our own cluster.
    #[must_use]
    pub fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    /// Whose exports these are.
    #[must_use]
    pub fn peer(&self) -> &ClusterName {
        &self.peer
    }

    /// Records in use, sorted by name.
    pub fn services(&self) -> impl Iterator<Item = &Arc<ServiceRecord>> {
        self.services.iter().filter_map(|(_, held)| held.record.as_ref())
    }

    /// The record in use of one service.
    #[must_use]
    pub fn service(&self, key: &ServiceKey) -> Option<&Arc<ServiceRecord>> {
        self.services.record(key)
    }

    /// Whether the store has yet to be told of changes.
    #[must_use]
    pub fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Services of which the newest version was refused, and why. An older version may be in use.
    pub fn refused(&self) -> impl Iterator<Item = (&ServiceKey, &RejectReason)> {
        self.services.iter().filter_map(|(key, held)| Some((key, held.refused.as_ref()?)))
    }

    /// Endpoint records of a subscribed service.
    #[must_use]
    pub fn endpoints(&self, key: &ServiceKey) -> Option<&RemoteEndpoints> {
        self.subscriptions.get(key).map(|subscribed| &subscribed.endpoints)
    }

    /// Number of endpoint records over all services.
    #[must_use]
    pub fn endpoint_count(&self) -> usize {
        self.subscriptions.values().map(|subscribed| subscribed.endpoints.len()).sum()
    }

    /// Services whose endpoint records are asked for.
    pub fn subscriptions(&self) -> impl Iterator<Item = &ServiceKey> {
        self.subscriptions.keys()
    }

    /// Where the contents come from; none if the peer never sent a complete snapshot.
    #[must_use]
    pub fn source(&self) -> Option<Source> {
        self.source
    }

    /// When the contents were last known to be what the peer exports, by the wall clock.
    #[must_use]
    pub fn heard_at(&self) -> UnixMillis {
        self.heard_at
    }

    /// The contents were still what the peer exports at that moment: a session whose peer has
    /// nothing to say is silent, and its link is not.
    pub fn confirm(&mut self, at: UnixMillis) {
        self.heard_at = at;
    }

    /// Grows with every change that is worth a new image on disk.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    pub(crate) fn touch(&mut self) {
        self.revision += 1;
    }

    /// What the store has to know of a table that was read from disk. `heard_at` is
    /// [`ImportTable::heard_at`] on the clock that the store is given.
    #[must_use]
    pub fn restore(&self, heard_at: UnixMillis) -> Vec<PeerChange> {
        let mut changes = vec![PeerChange::LastHeard(heard_at), self.replacement()];
        for (key, subscribed) in self.subscriptions.iter().filter(|(_, subscribed)| !subscribed.endpoints.is_empty()) {
            changes.push(PeerChange::Endpoints {
                service: key.clone(),
                upsert: subscribed.endpoints.iter().filter_map(endpoints::owned).collect(),
                remove: Vec::new(),
            });
        }
        changes
    }

    /// All records in use as one change.
    pub(crate) fn replacement(&self) -> PeerChange {
        PeerChange::Replace(self.services().map(Arc::clone).collect())
    }

    /// Forgets everything, after the store withdrew what the peer exported
    /// ([`eastway_model::store::Writer::expire`]): the next session begins with a whole snapshot.
    pub fn withdraw(&mut self) {
        self.services = Services::default();
        self.subscriptions.values_mut().for_each(Subscribed::forget);
        self.pending = Pending::default();
        self.source = None;
        self.touch();
    }

    /// The services whose endpoint records are asked for from now on; takes effect with the next
    /// session. [`crate::ImportSession::subscribe`] does this while a session runs.
    pub fn set_subscriptions(&mut self, services: impl IntoIterator<Item = ServiceKey>) -> Vec<PeerChange> {
        let wanted: BTreeSet<ServiceKey> = services.into_iter().take(self.limits.subscriptions).collect();
        let dropped: Vec<ServiceKey> =
            self.subscriptions.keys().filter(|key| !wanted.contains(*key)).cloned().collect();
        let mut changes = Vec::new();
        for key in &dropped {
            let mut remove = self.pending.endpoints.remove(key).unwrap_or_default();
            if let Some(subscribed) = self.subscriptions.remove(key) {
                remove.extend(subscribed.ids());
            }
            if !remove.is_empty() {
                let remove = remove.into_iter().collect();
                changes.push(PeerChange::Endpoints { service: key.clone(), upsert: Vec::new(), remove });
            }
        }
        let before = self.subscriptions.len();
        let mut changed = !dropped.is_empty();
        for key in wanted {
            self.subscriptions.entry(key).or_default();
        }
        changed |= self.subscriptions.len() != before;
        if changed {
            self.touch();
        }
        changes
    }

    /// Rules that changed while no session runs: what they forbid goes at once.
    /// [`crate::ImportSession::set_rules`] does this while one runs.
    pub fn set_rules(&mut self, rules: &PeerRules) -> Vec<PeerChange> {
        self.apply_rules(rules);
        self.take_pending()
    }

    /// The pending changes, for the store. Services come before their endpoints.
    pub fn take_pending(&mut self) -> Vec<PeerChange> {
        let Pending { services, endpoints } = std::mem::take(&mut self.pending);
        let mut changes = Vec::with_capacity(services.len() + endpoints.len());
        for key in services {
            changes.push(match self.services.record(&key) {
                Some(record) => PeerChange::Upsert(Arc::clone(record)),
                None => PeerChange::Remove(key),
            });
        }
        for (key, ids) in endpoints {
            let Some(subscribed) = self.subscriptions.get(&key) else { continue };
            let (mut upsert, mut remove) = (Vec::new(), Vec::new());
            for id in ids {
                match subscribed.endpoints.get(id.as_str()).and_then(endpoints::owned) {
                    Some(endpoint) => upsert.push(endpoint),
                    None => remove.push(id),
                }
            }
            changes.push(PeerChange::Endpoints { service: key, upsert, remove });
        }
        changes
    }

    /// What an importer tells the exporter that it holds; nothing if that is not certain.
    pub(crate) fn held(&self) -> Option<wire::Held> {
        let source = self.source.filter(|_| !self.services.untracked())?;
        Some(wire::Held {
            epoch: source.epoch,
            sequence: source.sequence,
            digest: self.services.digest().to_bytes().into(),
            buckets: self.services.digest().buckets_to_bytes().into(),
        })
    }

    /// A service is gone: so are its endpoint records. They stay pending by name, since the service
    /// may be back before the store hears that it was gone.
    pub(crate) fn forget_endpoints(&mut self, key: &ServiceKey) {
        let Some(subscribed) = self.subscriptions.get_mut(key) else { return };
        let ids: Vec<EndpointId> = subscribed.ids().collect();
        subscribed.forget();
        if !ids.is_empty() {
            self.pending.endpoints.entry(key.clone()).or_default().extend(ids);
        }
    }
}

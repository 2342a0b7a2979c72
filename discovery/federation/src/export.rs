//! The exporting side of one federation stream.
//!
//! A session remembers what it sent, compares the store's snapshots with it and sends the
//! difference. When the importer is slow only names wait here, never messages: what is sent then is
//! the newest state (I8). It reads local services and nothing else, so an import cannot be exported
//! again (I3), and before the registries are synced it says nothing (I5).

mod listing;
mod state;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use eastway_model::rules::Rules;
use eastway_model::store::Snapshot;
use eastway_model::{ClusterName, ServiceKey};
use eastway_proto::federation::v1 as wire;
use eastway_proto::federation::v1::exporter_message::Body as ToImporter;
use eastway_proto::federation::v1::importer_message::Body as FromImporter;
use prost::Message;

use crate::close::{CloseReason, excerpt};
use crate::convert::key_from_wire;
use crate::digest::bucket_of;
use crate::limits::{Limits, MAX_UNACKNOWLEDGED, Now};
use crate::reject::RejectReason;
use crate::{MAX_VERSION, MIN_VERSION};
use listing::Subscription;
use state::Sent;

/// What the caller has to do, in this order.
#[derive(Clone, Debug)]
pub enum ExportAction {
    /// Send a message to the importer.
    Send(wire::ExporterMessage),
    /// Log that a service of our own cannot be sent; the others are.
    Skipped {
        /// Which one.
        service: ServiceKey,
        /// Why.
        reason: RejectReason,
    },
    /// End the stream after what is to be sent is sent. The session does nothing any more.
    Close {
        /// Why.
        reason: CloseReason,
    },
}

/// The exporting side of one stream.
#[derive(Debug)]
pub struct ExportSession {
    cluster: ClusterName,
    peer: ClusterName,
    epoch: u64,
    limits: Limits,
    phase: Phase,
    /// Sequence number of the last message sent.
    sequence: u64,
    unacknowledged: VecDeque<Unacknowledged>,
    unacknowledged_bytes: usize,
    /// What the importer has, or will have once it has read everything.
    sent: Sent,
    /// Services to compare with what was sent.
    dirty: BTreeSet<ServiceKey>,
    /// The snapshot and rules that `dirty` is up to date with.
    seen: Option<(u64, Arc<Rules>)>,
    subscriptions: BTreeMap<ServiceKey, Subscription>,
    /// Subscriptions whose endpoints are to be compared with what was sent.
    dirty_endpoints: BTreeSet<ServiceKey>,
    snapshot_at: Option<Duration>,
    resync_at: Option<Duration>,
}

#[derive(Debug)]
enum Phase {
    AwaitOpen,
    /// Opened, but our own registries are not synced yet.
    AwaitSync(Option<wire::Held>),
    /// Services of a snapshot still to be sent.
    Snapshot(VecDeque<ServiceKey>),
    Live,
    Closed,
}

#[derive(Debug)]
struct Unacknowledged {
    sequence: u64,
    bytes: usize,
    sent_at: Duration,
}

impl ExportSession {
    /// Of our `cluster` to `peer`, the name its certificate was matched to. `epoch` is this
    /// process's: random, not 0.
    #[must_use]
    pub fn new(cluster: ClusterName, peer: ClusterName, epoch: u64, limits: Limits) -> Self {
        Self {
            cluster,
            peer,
            epoch,
            limits,
            phase: Phase::AwaitOpen,
            sequence: 0,
            unacknowledged: VecDeque::new(),
            unacknowledged_bytes: 0,
            sent: Sent::default(),
            dirty: BTreeSet::new(),
            seen: None,
            subscriptions: BTreeMap::new(),
            dirty_endpoints: BTreeSet::new(),
            snapshot_at: None,
            resync_at: None,
        }
    }

    /// Takes a message of the importer. `snapshot` is the store's newest.
    #[must_use]
    pub fn handle(&mut self, message: wire::ImporterMessage, snapshot: &Snapshot, now: Now) -> Vec<ExportAction> {
        let mut actions = Vec::new();
        match (message.body, &self.phase) {
            (_, Phase::Closed) => return actions,
            (Some(FromImporter::Close(close)), _) => self.close(CloseReason::from_wire(&close), &mut actions),
            (Some(FromImporter::Open(open)), Phase::AwaitOpen) => self.open(open, snapshot, now, &mut actions),
            (Some(FromImporter::Open(_)), _) => {
                self.close(CloseReason::Protocol("a second open message"), &mut actions);
            }
            (_, Phase::AwaitOpen) => {
                self.close(CloseReason::Protocol("the first message is not an open message"), &mut actions);
            }
            (Some(FromImporter::Ack(ack)), _) => self.acknowledge(ack.sequence),
            (Some(FromImporter::Subscribe(subscribe)), _) => self.subscribe(&subscribe.services, &mut actions),
            (Some(FromImporter::Unsubscribe(unsubscribe)), _) => self.unsubscribe(&unsubscribe.services),
            (Some(FromImporter::Resync(_)), _) => self.want_resync(now),
            // A kind of message that this version does not know.
            (None, _) => {}
        }
        self.proceed(snapshot, now, &mut actions);
        actions
    }

    /// Sends what changed with the store's new snapshot.
    #[must_use]
    pub fn on_snapshot(&mut self, snapshot: &Snapshot, now: Now) -> Vec<ExportAction> {
        let mut actions = Vec::new();
        self.proceed(snapshot, now, &mut actions);
        actions
    }

    /// Does what is due: a resync that had to wait, giving up on a silent importer.
    #[must_use]
    pub fn handle_timeout(&mut self, snapshot: &Snapshot, now: Now) -> Vec<ExportAction> {
        let mut actions = Vec::new();
        if let Some(sequence) = self.overdue(now) {
            self.close(CloseReason::AckTimeout { sequence }, &mut actions);
        }
        self.proceed(snapshot, now, &mut actions);
        actions
    }

    /// When [`Self::handle_timeout`] is due, as [`Now::mono`].
    #[must_use]
    pub fn next_timeout(&self) -> Option<Duration> {
        if matches!(self.phase, Phase::Closed) {
            return None;
        }
        let ack = self.unacknowledged.front().map(|oldest| oldest.sent_at + self.limits.ack_timeout);
        [ack, self.resync_at].into_iter().flatten().min()
    }

    /// Ends the session from our side.
    #[must_use]
    pub fn end(&mut self, reason: CloseReason) -> Vec<ExportAction> {
        let mut actions = Vec::new();
        if !matches!(self.phase, Phase::Closed) {
            self.close(reason, &mut actions);
        }
        actions
    }

    /// Whether the session has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Closed)
    }

    /// Whether everything is sent and acknowledged.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        matches!(self.phase, Phase::Live)
            && self.unacknowledged.is_empty()
            && self.dirty.is_empty()
            && self.dirty_endpoints.is_empty()
            && self.resync_at.is_none()
    }

    fn open(&mut self, open: wire::ImportOpen, snapshot: &Snapshot, now: Now, actions: &mut Vec<ExportAction>) {
        let wire::ImportOpen { min_version, max_version, cluster, held, subscriptions } = open;
        if cluster != self.peer.as_str() {
            let reason =
                CloseReason::ClusterMismatch { expected: self.peer.to_string(), claimed: excerpt(&cluster, 64) };
            return self.close(reason, actions);
        }
        if min_version > MAX_VERSION || max_version < MIN_VERSION || min_version > max_version {
            return self.close(CloseReason::VersionUnsupported { min: min_version, max: max_version }, actions);
        }
        self.phase = Phase::AwaitSync(held);
        self.subscribe(&subscriptions, actions);
        self.proceed(snapshot, now, actions);
    }

    /// Goes as far as snapshot, window and clock allow.
    fn proceed(&mut self, snapshot: &Snapshot, now: Now, actions: &mut Vec<ExportAction>) {
        match &mut self.phase {
            Phase::AwaitOpen | Phase::Closed => return,
            // Nothing, not even an open message: an importer must never see an empty snapshot
            // because our registries are still loading (I5).
            Phase::AwaitSync(_) if !snapshot.is_local_synced() => return,
            Phase::AwaitSync(held) => {
                let held = held.take();
                self.send(
                    ToImporter::Open(wire::ExportOpen {
                        version: MAX_VERSION,
                        epoch: self.epoch,
                        cluster: self.cluster.to_string(),
                    }),
                    actions,
                );
                self.begin(held.as_ref(), snapshot, now, actions);
            }
            Phase::Snapshot(_) | Phase::Live => {
                if self.resync_at.is_some_and(|at| at <= now.mono) {
                    self.begin(None, snapshot, now, actions);
                } else {
                    self.note_changes(snapshot);
                }
            }
        }
        while self.window_is_open() {
            let sent = match &self.phase {
                Phase::Snapshot(_) => self.send_chunk(now, actions),
                Phase::Live => self.send_update(snapshot, now, actions),
                Phase::AwaitOpen | Phase::AwaitSync(_) | Phase::Closed => false,
            };
            if !sent {
                break;
            }
        }
    }

    /// Begins a snapshot of what the importer does not hold. All endpoint listings follow it anew.
    fn begin(&mut self, held: Option<&wire::Held>, snapshot: &Snapshot, now: Now, actions: &mut Vec<ExportAction>) {
        self.resync_at = None;
        self.snapshot_at = Some(now.mono);
        self.seen = Some((snapshot.version(), Arc::clone(snapshot.rules())));
        self.dirty.clear();
        self.sent = Sent::default();
        for service in snapshot.exports_to(&self.peer) {
            if let Err(reason) = self.sent.insert(&service.record) {
                actions.push(ExportAction::Skipped { service: service.key().clone(), reason });
            }
        }
        let resumed = held.is_some();
        self.subscriptions.values_mut().for_each(|subscription| subscription.restart(resumed));
        self.dirty_endpoints = self.subscriptions.keys().cloned().collect();
        let buckets = match held {
            Some(held) if held.digest == self.sent.digest().to_bytes() => 0,
            Some(held) => match self.sent.digest().differing_buckets(&held.buckets) {
                // The short digests say that all is well: only the whole can tell what is not.
                0 => u64::MAX,
                buckets => buckets,
            },
            None => u64::MAX,
        };
        if buckets == 0 {
            self.phase = Phase::Live;
            let sequence = self.next_sequence();
            return self.send_data(ToImporter::Unchanged(wire::Unchanged { sequence }), now, actions);
        }
        let chosen = |key: &&ServiceKey| (buckets >> bucket_of(key)) & 1 == 1;
        self.phase = Phase::Snapshot(self.sent.keys().filter(chosen).cloned().collect());
        let sequence = self.next_sequence();
        self.send_data(ToImporter::Begin(wire::SnapshotBegin { sequence, buckets }), now, actions);
    }

    /// Sends one chunk, or the end of the snapshot.
    fn send_chunk(&mut self, now: Now, actions: &mut Vec<ExportAction>) -> bool {
        let Phase::Snapshot(queue) = &mut self.phase else { return false };
        let mut services = Vec::new();
        let mut bytes = 0;
        while bytes < self.limits.chunk_bytes
            && let Some(key) = queue.pop_front()
        {
            if let Some(state) = self.sent.encode(&key) {
                bytes += state.encoded_len();
                services.push(state);
            }
        }
        let sequence = self.next_sequence();
        if services.is_empty() {
            self.phase = Phase::Live;
            let digest = self.sent.digest().to_bytes().into();
            self.send_data(ToImporter::Complete(wire::Complete { sequence, digest }), now, actions);
        } else {
            self.send_data(ToImporter::Chunk(wire::SnapshotChunk { sequence, services }), now, actions);
        }
        true
    }

    /// Sends one update if anything differs from what was sent.
    fn send_update(&mut self, snapshot: &Snapshot, now: Now, actions: &mut Vec<ExportAction>) -> bool {
        let mut update = wire::Update::default();
        let mut bytes = 0;
        while bytes < self.limits.chunk_bytes
            && let Some(key) = self.dirty.pop_first()
        {
            let current = snapshot.export_to(&self.peer, &key);
            match self.sent.compare(&key, current.map(|service| &service.record), &mut update) {
                Ok(size) => bytes += size,
                Err(reason) => actions.push(ExportAction::Skipped { service: key.clone(), reason }),
            }
            if let Some(subscription) = self.subscriptions.get_mut(&key) {
                if self.sent.has(&key) {
                    self.dirty_endpoints.insert(key);
                } else {
                    // With the service its endpoints are gone at the importer.
                    subscription.restart(false);
                }
            }
        }
        // Services that change without end must not keep endpoints waiting.
        let room = self.limits.chunk_bytes.saturating_sub(bytes).max(self.limits.chunk_bytes / 4);
        bytes += self.add_endpoints(snapshot, &mut update, room);
        if bytes == 0 {
            return false;
        }
        update.sequence = self.next_sequence();
        self.send_data(ToImporter::Update(update), now, actions);
        true
    }

    /// Adds parts of listings and changed endpoints, about `room` bytes.
    fn add_endpoints(&mut self, snapshot: &Snapshot, update: &mut wire::Update, room: usize) -> usize {
        let mut bytes = 0;
        while bytes < room
            && let Some(key) = self.dirty_endpoints.pop_first()
        {
            // Endpoints of a service follow the service: it may be exported later.
            let Some(subscription) = self.subscriptions.get_mut(&key).filter(|_| self.sent.has(&key)) else { continue };
            let Some(service) = snapshot.export_to(&self.peer, &key) else { continue };
            if let Some(part) = subscription.next_part(&key, &service.endpoints, room - bytes) {
                bytes += part.encoded_len();
                update.endpoints.push(part);
            }
            if !subscription.is_sent(&service.endpoints) {
                self.dirty_endpoints.insert(key);
            }
        }
        bytes
    }

    /// Notes what a new snapshot may have changed.
    fn note_changes(&mut self, snapshot: &Snapshot) {
        let same_rules = |(_, rules): &&(u64, Arc<Rules>)| Arc::ptr_eq(rules, snapshot.rules());
        let since = self.seen.as_ref().filter(same_rules).map(|(version, _)| *version);
        if since == Some(snapshot.version()) {
            return;
        }
        match since.and_then(|version| snapshot.changes_since(version)) {
            Some(keys) => {
                let ours = |key: &ServiceKey| self.sent.has(key) || snapshot.export_to(&self.peer, key).is_some();
                let keys: Vec<ServiceKey> = keys.into_iter().filter(|key| ours(key)).collect();
                self.dirty.extend(keys);
            }
            None => {
                self.dirty.extend(self.sent.keys().cloned());
                self.dirty.extend(snapshot.exports_to(&self.peer).map(|service| service.key().clone()));
            }
        }
        self.seen = Some((snapshot.version(), Arc::clone(snapshot.rules())));
    }

    fn subscribe(&mut self, services: &[wire::Subscription], actions: &mut Vec<ExportAction>) {
        for wire::Subscription { service, digest } in services {
            // A name that cannot exist is like one that does not.
            let Ok(key) = key_from_wire(&service.clone().unwrap_or_default()) else { continue };
            if !self.subscriptions.contains_key(&key) && self.subscriptions.len() >= self.limits.subscriptions {
                return self.close(CloseReason::TooMuch("more than 10,000 subscriptions"), actions);
            }
            self.subscriptions.insert(key.clone(), Subscription::new(digest));
            self.dirty_endpoints.insert(key);
        }
    }

    fn unsubscribe(&mut self, services: &[wire::ServiceName]) {
        for key in services.iter().filter_map(|name| key_from_wire(name).ok()) {
            self.subscriptions.remove(&key);
            self.dirty_endpoints.remove(&key);
        }
    }

    fn want_resync(&mut self, now: Now) {
        if let Phase::AwaitSync(held) = &mut self.phase {
            *held = None;
            return;
        }
        let earliest = self.snapshot_at.map_or(now.mono, |at| at + self.limits.resync_interval);
        self.resync_at = Some(earliest.max(now.mono));
    }

    /// An acknowledgement for the future is ignored; the timeout will tell.
    fn acknowledge(&mut self, sequence: u64) {
        if sequence > self.sequence {
            return;
        }
        while self.unacknowledged.front().is_some_and(|oldest| oldest.sequence <= sequence) {
            let acknowledged = self.unacknowledged.pop_front();
            self.unacknowledged_bytes -= acknowledged.map_or(0, |message| message.bytes);
        }
    }

    fn overdue(&self, now: Now) -> Option<u64> {
        let oldest = self.unacknowledged.front()?;
        (oldest.sent_at + self.limits.ack_timeout <= now.mono).then_some(oldest.sequence)
    }

    fn window_is_open(&self) -> bool {
        self.unacknowledged.len() < MAX_UNACKNOWLEDGED && self.unacknowledged_bytes < self.limits.unacknowledged_bytes
    }

    fn next_sequence(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    fn send_data(&mut self, body: ToImporter, now: Now, actions: &mut Vec<ExportAction>) {
        let bytes = body.encoded_len();
        self.unacknowledged_bytes += bytes;
        self.unacknowledged.push_back(Unacknowledged { sequence: self.sequence, bytes, sent_at: now.mono });
        self.send(body, actions);
    }

    fn send(&self, body: ToImporter, actions: &mut Vec<ExportAction>) {
        actions.push(ExportAction::Send(wire::ExporterMessage { body: Some(body) }));
    }

    fn close(&mut self, reason: CloseReason, actions: &mut Vec<ExportAction>) {
        self.phase = Phase::Closed;
        if let Some(close) = reason.to_wire() {
            self.send(ToImporter::Close(close), actions);
        }
        actions.push(ExportAction::Close { reason });
    }
}

#[cfg(test)]
mod tests;

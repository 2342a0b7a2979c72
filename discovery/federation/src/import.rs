//! The importing side of one federation stream.
//!
//! A session asks one replica of a peer for its exports and keeps them in the peer's table. What
//! it must never do: delete on less than a removal or a complete snapshot (I4, F15), take a name
//! from a message body instead of the certificate (P3), take what the Peer's rules do not allow
//! (P1), or let a peer cost more than its quotas (P7, P8).

mod snapshot;
mod update;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use eastway_model::rules::PeerRules;
use eastway_model::{PeerChange, ServiceKey};
use eastway_proto::federation::v1 as wire;
use eastway_proto::federation::v1::exporter_message::Body as FromExporter;
use eastway_proto::federation::v1::importer_message::Body as ToExporter;

use crate::close::{CloseReason, excerpt};
use crate::convert::key_to_wire;
use crate::limits::{Limits, MAX_UNACKNOWLEDGED, Now, TokenBucket};
use crate::reject::RejectReason;
use crate::table::{ImportTable, Listing, Staging, Subscribed};
use crate::{MAX_VERSION, MIN_VERSION};

/// What the caller has to do, in this order.
#[derive(Clone, Debug)]
pub enum ImportAction {
    /// Send a message to the exporter.
    Send(wire::ImporterMessage),
    /// Hand a change to the store, as one of the session's peer.
    Apply(PeerChange),
    /// Count and log that records were refused; the others of their message are applied.
    Rejected {
        /// The first of them, if its name is known.
        service: Option<ServiceKey>,
        /// Why it was refused.
        reason: RejectReason,
        /// How many of this message were refused for a reason of this kind, at least 1.
        count: usize,
    },
    /// End the stream after what is to be sent is sent. The session does nothing any more.
    Close {
        /// Why.
        reason: CloseReason,
    },
}

/// The importing side of one stream.
#[derive(Debug)]
pub struct ImportSession {
    /// Which session of the table this is.
    number: u64,
    rules: Arc<PeerRules>,
    limits: Limits,
    phase: Phase,
    /// Epoch of the exporter, once it said so.
    epoch: u64,
    /// Highest sequence number seen.
    sequence: u64,
    /// Highest one acknowledged.
    acknowledged: u64,
    /// The open message said what is held: the exporter may answer with less than everything.
    asked_with_held: bool,
    listings: BTreeMap<ServiceKey, Listing>,
    records: TokenBucket,
    applied_at: Option<Duration>,
    resync_asked_at: Option<Duration>,
    /// A resync has to wait for its interval.
    resync_wanted: Option<(Duration, &'static str)>,
    heard_at: Duration,
}

#[derive(Debug)]
enum Phase {
    /// The exporter may not be synced itself; that may take any time.
    AwaitOpen,
    AwaitSnapshot,
    Snapshot(Staging),
    Live,
    /// Nothing counts until a whole snapshot begins.
    AwaitResync,
    Closed,
}

/// How often a quota that has room again may cost a whole snapshot.
const QUOTA_RETRY: Duration = Duration::from_secs(60);

impl ImportSession {
    /// Opens a stream. An older session of the table is superseded.
    #[must_use]
    pub fn start(
        table: &mut ImportTable,
        rules: &Arc<PeerRules>,
        limits: Limits,
        now: Now,
    ) -> (Self, Vec<ImportAction>) {
        table.session += 1;
        table.limits = limits.clone();
        let mut actions = Vec::new();
        let outcome = table.apply_rules(rules);
        report(outcome.refused, &mut actions);
        actions.extend(table.take_pending().into_iter().map(ImportAction::Apply));
        let held = table.held().filter(|_| !outcome.needs_snapshot);
        let session = Self {
            number: table.session,
            rules: Arc::clone(rules),
            phase: Phase::AwaitOpen,
            epoch: 0,
            sequence: 0,
            acknowledged: 0,
            asked_with_held: held.is_some(),
            listings: BTreeMap::new(),
            records: TokenBucket::new(limits.records_per_second, limits.record_burst, now),
            applied_at: None,
            resync_asked_at: None,
            resync_wanted: None,
            heard_at: now.mono,
            limits,
        };
        actions.push(send(ToExporter::Open(wire::ImportOpen {
            min_version: MIN_VERSION,
            max_version: MAX_VERSION,
            cluster: table.cluster().to_string(),
            held,
            subscriptions: subscriptions(table, table.subscriptions().cloned().collect()),
        })));
        (session, actions)
    }

    /// Takes a message of the exporter.
    #[must_use]
    pub fn handle(&mut self, table: &mut ImportTable, message: wire::ExporterMessage, now: Now) -> Vec<ImportAction> {
        let mut actions = Vec::new();
        if !self.is_current(table, &mut actions) {
            return actions;
        }
        self.heard_at = now.mono;
        table.heard_at = now.wall;
        match (message.body, &self.phase) {
            (Some(FromExporter::Close(close)), _) => self.close(CloseReason::from_wire(&close), &mut actions),
            (Some(FromExporter::Open(open)), Phase::AwaitOpen) => self.open(table, &open, &mut actions),
            (Some(FromExporter::Open(_)), _) => {
                self.close(CloseReason::Protocol("a second open message"), &mut actions);
            }
            (Some(_), Phase::AwaitOpen) => {
                self.close(CloseReason::Protocol("the first message is not an open message"), &mut actions);
            }
            (None, _) => {
                actions.push(ImportAction::Rejected { service: None, reason: RejectReason::UnknownMessage, count: 1 });
            }
            (Some(body), _) => self.data(table, body, now, &mut actions),
        }
        actions
    }

    /// Does what is due: pending changes, a resync that had to wait, giving up on a stalled snapshot.
    #[must_use]
    pub fn handle_timeout(&mut self, table: &mut ImportTable, now: Now) -> Vec<ImportAction> {
        let mut actions = Vec::new();
        if !self.is_current(table, &mut actions) {
            return actions;
        }
        if self.stalls_at().is_some_and(|at| at <= now.mono) {
            self.close(CloseReason::Stalled, &mut actions);
            return actions;
        }
        if let Some((at, reason)) = self.resync_wanted
            && at <= now.mono
        {
            self.ask_resync(reason, now, &mut actions);
        }
        self.flush(table, now, &mut actions);
        actions
    }

    /// When [`Self::handle_timeout`] is due, as [`Now::mono`].
    #[must_use]
    pub fn next_timeout(&mut self, table: &ImportTable, now: Now) -> Option<Duration> {
        if matches!(self.phase, Phase::Closed) {
            return None;
        }
        let resync = self.resync_wanted.map(|(at, _)| at);
        let flush = (self.acknowledged < self.sequence || !table.pending.is_empty()).then(|| self.flush_at(now));
        [resync, flush, self.stalls_at()].into_iter().flatten().min()
    }

    /// Rules that changed while the session runs. What they forbid goes at once; what they newly
    /// allow is asked for.
    #[must_use]
    pub fn set_rules(&mut self, table: &mut ImportTable, rules: &Arc<PeerRules>, now: Now) -> Vec<ImportAction> {
        let mut actions = Vec::new();
        if !self.is_current(table, &mut actions) {
            return actions;
        }
        self.rules = Arc::clone(rules);
        let outcome = table.apply_rules(rules);
        report(outcome.refused, &mut actions);
        actions.extend(table.take_pending().into_iter().map(ImportAction::Apply));
        // Records of a snapshot on its way in were read by the old rules.
        let in_snapshot = matches!(self.phase, Phase::Snapshot(_));
        if outcome.needs_snapshot || table.services.untracked() || in_snapshot || !self.listings.is_empty() {
            self.resync("import rules changed", now, &mut actions);
        }
        actions
    }

    /// The services whose endpoint records are wanted from now on.
    #[must_use]
    pub fn subscribe(
        &mut self,
        table: &mut ImportTable,
        services: impl IntoIterator<Item = ServiceKey>,
    ) -> Vec<ImportAction> {
        let mut actions = Vec::new();
        if !self.is_current(table, &mut actions) {
            return actions;
        }
        let before: Vec<ServiceKey> = table.subscriptions().cloned().collect();
        actions.extend(table.set_subscriptions(services).into_iter().map(ImportAction::Apply));
        let gone: Vec<_> = before.iter().filter(|key| !table.subscriptions.contains_key(*key)).collect();
        let new: Vec<_> = table.subscriptions().filter(|key| before.binary_search(key).is_err()).cloned().collect();
        for key in &gone {
            self.listings.remove(*key);
        }
        if !gone.is_empty() {
            let services = gone.into_iter().map(key_to_wire).collect();
            actions.push(send(ToExporter::Unsubscribe(wire::Unsubscribe { services })));
        }
        if !new.is_empty() {
            actions.push(send(ToExporter::Subscribe(wire::Subscribe { services: subscriptions(table, new) })));
        }
        actions
    }

    /// Ends the session from our side. Pending changes are handed over.
    #[must_use]
    pub fn end(&mut self, table: &mut ImportTable, reason: CloseReason) -> Vec<ImportAction> {
        let mut actions = Vec::new();
        if self.is_current(table, &mut actions) {
            actions.extend(table.take_pending().into_iter().map(ImportAction::Apply));
            self.close(reason, &mut actions);
        }
        actions
    }

    /// Whether the table holds all that the exporter said.
    #[must_use]
    pub fn is_live(&self) -> bool {
        matches!(self.phase, Phase::Live)
    }

    /// Whether the session has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Closed)
    }

    /// Epoch of the exporter; 0 before its open message.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    fn open(&mut self, table: &ImportTable, open: &wire::ExportOpen, actions: &mut Vec<ImportAction>) {
        let wire::ExportOpen { version, epoch, cluster } = open;
        if *cluster != table.peer().as_str() {
            let reason =
                CloseReason::ClusterMismatch { expected: table.peer().to_string(), claimed: excerpt(cluster, 64) };
            return self.close(reason, actions);
        }
        if !(MIN_VERSION..=MAX_VERSION).contains(version) {
            return self.close(CloseReason::VersionUnsupported { min: *version, max: *version }, actions);
        }
        self.epoch = *epoch;
        self.phase = Phase::AwaitSnapshot;
    }

    /// A message with a sequence number.
    fn data(&mut self, table: &mut ImportTable, body: FromExporter, now: Now, actions: &mut Vec<ImportAction>) {
        let sequence = match &body {
            FromExporter::Unchanged(message) => message.sequence,
            FromExporter::Begin(message) => message.sequence,
            FromExporter::Chunk(message) => message.sequence,
            FromExporter::Complete(message) => message.sequence,
            FromExporter::Update(message) => message.sequence,
            FromExporter::Open(_) | FromExporter::Close(_) => return,
        };
        let next = self.sequence.checked_add(1) == Some(sequence);
        let unacknowledged = usize::try_from(sequence.saturating_sub(self.acknowledged)).unwrap_or(usize::MAX);
        if next && unacknowledged > MAX_UNACKNOWLEDGED {
            return self.close(CloseReason::TooMuch("more than 32 messages unacknowledged"), actions);
        }
        let whole = matches!(&body, FromExporter::Begin(begin) if begin.buckets == u64::MAX);
        let awaited = matches!(self.phase, Phase::AwaitResync);
        if awaited && !(whole && self.resync_wanted.is_none() && sequence > self.sequence) {
            // Acknowledged, so that the exporter gets to the resync; applied it is not.
            self.sequence = self.sequence.max(sequence);
            return self.flush(table, now, actions);
        }
        self.sequence = self.sequence.max(sequence);
        if !awaited && !next {
            self.resync("OUT_OF_SEQUENCE", now, actions);
            return self.flush(table, now, actions);
        }
        match body {
            FromExporter::Unchanged(_) => self.unchanged(table, now, actions),
            FromExporter::Begin(begin) => self.begin(begin.buckets, now, actions),
            FromExporter::Chunk(chunk) => self.chunk(table, chunk, now, actions),
            FromExporter::Complete(complete) => self.complete(table, &complete.digest, now, actions),
            FromExporter::Update(update) => self.update(table, update, now, actions),
            FromExporter::Open(_) | FromExporter::Close(_) => {}
        }
        self.flush(table, now, actions);
    }

    /// Hands pending changes over and acknowledges, unless the peer has used up its rate: then its
    /// messages stay unacknowledged and it has to coalesce (P8).
    fn flush(&mut self, table: &mut ImportTable, now: Now, actions: &mut Vec<ImportAction>) {
        if matches!(self.phase, Phase::Closed) || self.flush_at(now) > now.mono {
            return;
        }
        if !table.pending.is_empty() {
            actions.extend(table.take_pending().into_iter().map(ImportAction::Apply));
            self.applied_at = Some(now.mono);
        }
        if self.acknowledged < self.sequence {
            self.acknowledged = self.sequence;
            actions.push(send(ToExporter::Ack(wire::Ack { sequence: self.sequence })));
        }
    }

    fn flush_at(&mut self, now: Now) -> Duration {
        let paid = self.records.clear_at(now);
        self.applied_at.map_or(paid, |at| paid.max(at + self.limits.apply_interval))
    }

    /// Something does not fit: keep what is held and ask for a whole snapshot.
    fn resync(&mut self, reason: &'static str, now: Now, actions: &mut Vec<ImportAction>) {
        self.listings.clear();
        if !matches!(self.phase, Phase::AwaitOpen) {
            self.phase = Phase::AwaitResync;
        }
        let earliest = self.resync_asked_at.map_or(now.mono, |at| at + self.limits.resync_interval);
        if earliest <= now.mono {
            self.ask_resync(reason, now, actions);
        } else {
            self.resync_wanted = Some((earliest, reason));
        }
    }

    fn ask_resync(&mut self, reason: &'static str, now: Now, actions: &mut Vec<ImportAction>) {
        self.resync_wanted = None;
        if matches!(self.phase, Phase::Live) {
            self.phase = Phase::AwaitResync;
            self.listings.clear();
        }
        self.resync_asked_at = Some(now.mono);
        self.heard_at = now.mono;
        let reason = format!("FAILED_PRECONDITION {reason} (resync asked)");
        actions.push(send(ToExporter::Resync(wire::Resync { reason })));
    }

    /// When a snapshot that is under way counts as stalled.
    fn stalls_at(&self) -> Option<Duration> {
        match self.phase {
            Phase::AwaitSnapshot | Phase::Snapshot(_) | Phase::AwaitResync => {
                let waiting = self.resync_wanted.map_or(self.heard_at, |(at, _)| self.heard_at.max(at));
                Some(waiting + self.limits.stall_timeout)
            }
            Phase::AwaitOpen | Phase::Live | Phase::Closed => None,
        }
    }

    fn is_current(&mut self, table: &ImportTable, actions: &mut Vec<ImportAction>) -> bool {
        if matches!(self.phase, Phase::Closed) {
            return false;
        }
        if self.number != table.session {
            self.close(CloseReason::Superseded, actions);
            return false;
        }
        true
    }

    fn close(&mut self, reason: CloseReason, actions: &mut Vec<ImportAction>) {
        self.phase = Phase::Closed;
        self.listings.clear();
        actions.extend(reason.to_wire().map(|close| send(ToExporter::Close(close))));
        actions.push(ImportAction::Close { reason });
    }
}

fn send(body: ToExporter) -> ImportAction {
    ImportAction::Send(wire::ImporterMessage { body: Some(body) })
}

fn subscriptions(table: &ImportTable, keys: Vec<ServiceKey>) -> Vec<wire::Subscription> {
    let digest = |key: &ServiceKey| table.subscriptions.get(key).and_then(Subscribed::digest_held);
    keys.into_iter()
        .map(|key| wire::Subscription {
            service: Some(key_to_wire(&key)),
            digest: digest(&key).map(|digest| digest.to_be_bytes().to_vec().into()).unwrap_or_default(),
        })
        .collect()
}

fn report(refused: Vec<(ServiceKey, RejectReason)>, actions: &mut Vec<ImportAction>) {
    let mut rejections = Rejections::default();
    for (key, reason) in refused {
        rejections.add(Some(key), reason);
    }
    rejections.report(actions);
}

/// Refused records of one message by kind: a message full of bad records costs one line per kind.
#[derive(Debug, Default)]
struct Rejections(BTreeMap<&'static str, (Option<ServiceKey>, RejectReason, usize)>);

impl Rejections {
    fn add(&mut self, service: Option<ServiceKey>, reason: RejectReason) {
        self.0.entry(reason.kind()).or_insert((service, reason, 0)).2 += 1;
    }

    fn report(self, actions: &mut Vec<ImportAction>) {
        let rejected = |(service, reason, count)| ImportAction::Rejected { service, reason, count };
        actions.extend(self.0.into_values().map(rejected));
    }
}

#[cfg(test)]
mod tests;

//! Takes in what peers export: one task per peer, one federation session at a time.
//!
//! The session is a state machine without I/O; this is its I/O. Among the links to a peer the first
//! usable one carries the session, and when it goes the next one takes over: a complete snapshot, or
//! the word that nothing changed, replaces what was held.

mod copy;
mod freshness;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use eastway_federation::codec::{Decoder, FrameError, encode};
use eastway_federation::{CloseReason, ImportAction, ImportSession, ImportTable, Limits, MAX_VERSION, MIN_VERSION};
use eastway_model::rules::PeerRules;
use eastway_model::{Change, ClusterName, PeerChange, ServiceKey};
use eastway_proto::federation::v1 as wire;
use eastway_tunnel::header::{FederationHeader, StreamHeader};
use eastway_tunnel::{Link, OpenError, RecvHalf, ResetCode, SendHalf, StreamError, Tunnel};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use self::copy::DiskCopy;
pub(crate) use self::copy::file_of as copy_of_imports;
pub use self::freshness::Freshness;

use crate::app::clock::Clock;
use crate::app::store::{StoreSender, Withdrawals};
use crate::telemetry::{Refusal, Telemetry};

/// First and longest pause between two sessions with one peer.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// A session that lived this long was a success: the next pause is the first one again.
const SETTLED: Duration = Duration::from_secs(10);
/// How often links are looked at beside being told: for a usable one, or whether a session's still is.
const LINK_POLL: Duration = Duration::from_millis(200);

/// What all importers share.
#[derive(Clone)]
pub struct Imports {
    /// This cluster.
    pub cluster: ClusterName,
    /// Quotas.
    pub limits: Limits,
    /// Where changes go.
    pub store: StoreSender,
    /// Where links are.
    pub tunnel: Arc<Tunnel>,
    /// Services whose endpoint records are wanted.
    pub subscriptions: watch::Receiver<Arc<BTreeSet<ServiceKey>>>,
    /// Folder for copies on disk.
    pub state: PathBuf,
    /// Both clocks.
    pub clock: Clock,
    /// How old what is held is.
    pub freshness: Freshness,
    /// Counters and logs.
    pub telemetry: Telemetry,
}

/// How a peer's task ends.
#[derive(Clone, Debug)]
pub struct Stop {
    /// The process ends: what is held stays on disk.
    pub process: CancellationToken,
    /// The Peer was removed: everything of it goes (invariant I4).
    pub removed: CancellationToken,
}

/// Imports from one peer until stopped.
pub async fn run(imports: Imports, rules: watch::Receiver<Arc<PeerRules>>, stop: Stop) {
    let peer = rules.borrow().name.clone();
    let name: Arc<str> = Arc::from(peer.as_str());
    let mut copy = DiskCopy::new(&imports.state, &peer);
    let table = copy.load(&imports, &rules.borrow());
    let withdrawals = imports.store.withdrawals(&peer);
    let mut importer = Importer { imports, rules, peer, name, table, withdrawals, copy };
    importer.restore().await;
    tokio::select! {
        () = importer.sessions() => {}
        () = stop.process.cancelled() => importer.copy.save(&importer.table),
        () = stop.removed.cancelled() => importer.remove().await,
    }
}

struct Importer {
    imports: Imports,
    rules: watch::Receiver<Arc<PeerRules>>,
    peer: ClusterName,
    name: Arc<str>,
    table: ImportTable,
    withdrawals: Withdrawals,
    copy: DiskCopy,
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum SessionEnd {
    #[error("cannot open a stream: {0}")]
    Open(#[from] OpenError),
    #[error("the stream ended: {0}")]
    Stream(#[from] StreamError),
    #[error("the stream ended")]
    Finished,
    #[error("bad frame: {0}")]
    Frame(#[from] FrameError),
    #[error("closed: {0}")]
    Closed(CloseReason),
    #[error("the link is given up")]
    LinkGivenUp,
    #[error("what the peer exports was withdrawn")]
    Withdrawn,
}

impl Importer {
    /// Serves from the copy on disk until the peer is heard (design: restart).
    async fn restore(&mut self) {
        if self.table.source().is_none() {
            return;
        }
        let clock = self.imports.clock;
        let away = clock.now().wall.since(self.table.heard_at());
        let heard_at = clock.steady().minus(away);
        self.imports.freshness.restored(&self.peer, heard_at);
        let changes = self.table.restore(heard_at);
        info!(peer = %self.peer, services = self.table.services().count(), "serving a peer's exports from disk, stale until it is heard");
        self.apply(changes).await;
    }

    async fn sessions(&mut self) {
        let mut pause = RETRY.0;
        loop {
            let link = tokio::select! {
                // Before a session: it would tell the store what was just withdrawn.
                biased;
                () = self.withdrawals.next() => {
                    self.withdraw();
                    continue;
                }
                link = next_link(&self.imports.tunnel, &self.name) => link,
            };
            let began = Instant::now();
            let end = self.session(&link).await;
            let changes = self.table.take_pending();
            self.apply(changes).await;
            let Err(end) = end;
            debug!(peer = %self.peer, reason = %end, "federation session ended");
            self.imports.telemetry.metrics.federation_closed(&self.name, end_name(&end));
            if let SessionEnd::Withdrawn = end {
                self.withdraw();
            } else {
                self.copy.save_changes(&self.table);
            }
            pause = if began.elapsed() > SETTLED { RETRY.0 } else { (pause * 2).min(RETRY.1) };
            sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        }
    }

    async fn session(&mut self, link: &Link) -> Result<std::convert::Infallible, SessionEnd> {
        let header = FederationHeader { min_version: MIN_VERSION, max_version: MAX_VERSION };
        let mut stream = link.open(&StreamHeader::Federation(header)).await?;
        stream.accepted().await?;
        let (mut send, mut recv) = stream.split();
        let rules = self.rules.borrow_and_update().clone();
        let wanted = self.imports.subscriptions.borrow_and_update().clone();
        let changes = self.table.set_subscriptions(wanted.iter().cloned());
        self.apply(changes).await;
        let now = self.imports.clock.now();
        let (mut session, actions) = ImportSession::start(&mut self.table, &rules, self.imports.limits.clone(), now);
        let result = match self.perform(actions, &mut send).await {
            Ok(()) => self.drive(&mut session, link, &mut send, &mut recv).await,
            Err(end) => Err(end),
        };
        if let Err(SessionEnd::Frame(error)) = &result {
            let actions = session.end(&mut self.table, error.close_reason());
            // The stream ends either way.
            let _ended = self.perform(actions, &mut send).await;
        }
        send.finish_unawaited();
        recv.stop(ResetCode::Cancelled);
        result
    }

    async fn drive(
        &mut self,
        session: &mut ImportSession,
        link: &Link,
        send: &mut SendHalf,
        recv: &mut RecvHalf,
    ) -> Result<std::convert::Infallible, SessionEnd> {
        let mut looks = interval(LINK_POLL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut decoder = Decoder::<wire::ExporterMessage>::new();
        let mut live = false;
        loop {
            let now = self.imports.clock.now();
            let due = session.next_timeout(&self.table, now).map(|at| self.imports.clock.instant(at));
            let actions = tokio::select! {
                chunk = recv.read() => {
                    decoder.push(&chunk?.ok_or(SessionEnd::Finished)?);
                    let mut actions = Vec::new();
                    let now = self.imports.clock.now();
                    while let Some(message) = decoder.next_message()? {
                        actions.extend(session.handle(&mut self.table, message, now));
                    }
                    actions
                }
                () = sleep_until(due.unwrap_or_else(far)), if due.is_some() => {
                    session.handle_timeout(&mut self.table, self.imports.clock.now())
                }
                Ok(()) = self.rules.changed() => {
                    let rules = self.rules.borrow_and_update().clone();
                    session.set_rules(&mut self.table, &rules, self.imports.clock.now())
                }
                Ok(()) = self.imports.subscriptions.changed() => {
                    let wanted = self.imports.subscriptions.borrow_and_update().clone();
                    session.subscribe(&mut self.table, wanted.iter().cloned())
                }
                () = self.withdrawals.next() => return Err(SessionEnd::Withdrawn),
                // A link that drains, or a second one to the same replica, waits for its streams to
                // end; a session never ends by itself, it moves to another link.
                _ = looks.tick() => {
                    if !link.is_usable() {
                        return Err(SessionEnd::LinkGivenUp);
                    }
                    self.look(session, link);
                    Vec::new()
                }
            };
            self.perform(actions, send).await?;
            if session.is_live() && !live {
                info!(peer = %self.peer, services = self.table.services().count(), epoch = session.epoch(), "in sync with a peer");
            }
            if session.is_live() && !live {
                self.look(session, link);
            }
            live = session.is_live();
        }
    }

    /// While the link is acknowledged, a live session that says nothing means that nothing changed.
    fn look(&mut self, session: &ImportSession, link: &Link) {
        if session.is_live() {
            // Before the first acknowledgement: the session itself has just said something.
            let silent = link.silent_for().unwrap_or_default();
            self.imports.freshness.confirmed(&self.peer, silent);
            self.table.confirm(self.imports.clock.now().wall.minus(silent));
        }
        let withdraw_after = self.rules.borrow().withdraw_after;
        if self.copy.is_due(&self.table, session.is_live(), withdraw_after) {
            self.copy.save(&self.table);
        }
    }

    async fn perform(&mut self, actions: Vec<ImportAction>, send: &mut SendHalf) -> Result<(), SessionEnd> {
        let mut changes = Vec::new();
        let mut messages = Vec::new();
        let mut closed = None;
        for action in actions {
            match action {
                ImportAction::Send(message) => messages.push(encode(&message)?),
                ImportAction::Apply(change) => changes.push(change),
                ImportAction::Rejected { service, reason, count } => {
                    let what = service.map_or_else(|| "a record".to_owned(), |key| key.to_string());
                    self.imports.telemetry.metrics.federation_rejected(&self.name, reason.kind(), count);
                    let detail = format!("{what}: {reason} ({count} in this message)");
                    self.imports.telemetry.refusals.refused(Refusal::Record, Some(&self.name), detail);
                }
                ImportAction::Close { reason } => closed = Some(reason),
            }
        }
        // The store first: an acknowledgement says that the change is in it.
        self.apply(changes).await;
        for message in messages {
            send.write(message).await?;
        }
        match closed {
            None => Ok(()),
            Some(reason) => Err(SessionEnd::Closed(reason)),
        }
    }

    async fn apply(&self, changes: Vec<PeerChange>) {
        let changes: Vec<_> = changes
            .into_iter()
            .map(|change| {
                self.imports.telemetry.metrics.federation_applied(&self.name, change_name(&change));
                Change::Peer { cluster: self.peer.clone(), change }
            })
            .collect();
        // False only while the process stops.
        let _stopping = self.imports.store.changes(changes).await;
    }

    /// After `withdrawAfter` without the peer its services are gone from the store; they go here, and
    /// no restart brings them back.
    fn withdraw(&mut self) {
        warn!(peer = %self.peer, "the peer was away for withdrawAfter: its services are withdrawn");
        self.table.withdraw();
        self.imports.freshness.forget(&self.peer);
        self.copy.save(&self.table);
        self.copy.delete();
    }

    async fn remove(&mut self) {
        self.apply(vec![PeerChange::Removed]).await;
        self.imports.freshness.forget(&self.peer);
        self.imports.telemetry.metrics.forget_peer(&self.name);
        self.imports.telemetry.refusals.forget_peer(&self.name);
        self.copy.delete();
        info!(peer = %self.peer, "peer removed");
    }
}

/// Waits for a usable link to the peer.
async fn next_link(tunnel: &Tunnel, peer: &str) -> Link {
    let mut changes = tunnel.events();
    loop {
        if let Some(link) = tunnel.links().to(peer).iter().find(|link| link.is_usable()) {
            return link.clone();
        }
        // A link can be replaced without a change of the peer's state.
        if let Ok(Err(_)) = timeout(LINK_POLL, changes.changed()).await {
            // The tunnel is gone: the process stops and this task with it.
            std::future::pending::<()>().await;
        }
    }
}

fn far() -> Instant {
    Instant::now() + Duration::from_secs(24 * 3600)
}

fn change_name(change: &PeerChange) -> &'static str {
    match change {
        PeerChange::Upsert(_) => "upsert",
        PeerChange::Remove(_) => "remove",
        PeerChange::Replace(_) => "snapshot",
        PeerChange::Endpoints { .. } => "endpoints",
        PeerChange::State(_) | PeerChange::LastHeard(_) => "state",
        PeerChange::Removed => "removed",
    }
}

fn end_name(end: &SessionEnd) -> &'static str {
    match end {
        SessionEnd::Open(_) => "open",
        SessionEnd::Stream(_) => "stream",
        SessionEnd::Finished => "finished",
        SessionEnd::Frame(_) => "frame",
        SessionEnd::Closed(reason) => reason.code().as_str_name(),
        SessionEnd::LinkGivenUp => "link given up",
        SessionEnd::Withdrawn => "withdrawn",
    }
}

#[cfg(test)]
mod tests;

//! The loop that makes the API say what is wanted.
//!
//! It follows the store and the objects, and computes a service anew when something about it changed. One service is
//! worked on at a time, several services at once. Only the leader writes; the others keep their view warm.

mod attempts;
mod inputs;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use eastway_model::{ClusterName, ServiceKey};
use k8s_openapi::jiff::Timestamp;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::api::{Failure, Outcome, Requests};
use super::cache::Cache;
use super::desired::{self, Gateways, Names, Verdict, World};
use super::difference::{Action, actions};
use super::object::{Kind, Seen};
use super::ports::{self, PortBook};
use super::queue::Queue;
use attempts::Attempts;
pub use inputs::{Change, Event, Feed, Inputs, LeftOut, Service, Status};

/// Services that are worked on at once.
const WORKERS: usize = 16;
/// Events taken in one go.
const BATCH: usize = 256;
/// Kinds that Istio reads.
const ISTIO: [Kind; 2] = [Kind::WorkloadEntry, Kind::ServiceEntry];
/// How long a name that somebody else has is believed to be theirs.
const FOREIGN: Duration = Duration::from_secs(30);

/// What became of the work on one service.
struct Report {
    key: ServiceKey,
    outcomes: Vec<(Action, Result<Outcome, Failure>)>,
}

/// The loop.
pub struct Reconciler {
    requests: Requests,
    inputs: Inputs,
    status: watch::Sender<Status>,
    cache: Cache,
    /// Kinds that were listed.
    listed: BTreeSet<Kind>,
    namespaces_listed: bool,
    /// All Services, exported or not.
    services: BTreeMap<ServiceKey, Service>,
    services_listed: bool,
    gateways: Option<Gateways>,
    /// The ports, while this replica leads.
    book: Option<PortBook>,
    queue: Queue,
    running: JoinSet<Report>,
    /// Version of the snapshot that was looked at last, and which peers were configured and synced in it.
    version: u64,
    peers: BTreeMap<ClusterName, (bool, bool)>,
    peers_known: bool,
    left_out: LeftOut,
    names: Arc<Names>,
    attempts: Attempts,
}

impl Reconciler {
    /// A loop that writes by `requests` and tells in `status` how it is doing.
    #[must_use]
    pub fn new(requests: Requests, inputs: Inputs, status: watch::Sender<Status>) -> Self {
        Self {
            requests,
            inputs,
            status,
            cache: Cache::default(),
            listed: BTreeSet::new(),
            namespaces_listed: false,
            services: BTreeMap::new(),
            services_listed: false,
            gateways: None,
            book: None,
            queue: Queue::default(),
            running: JoinSet::new(),
            version: 0,
            peers: BTreeMap::new(),
            peers_known: false,
            left_out: LeftOut::default(),
            names: Arc::default(),
            attempts: Attempts::default(),
        }
    }

    /// Works until `stop`, or until one of its inputs has ended.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut events = Vec::with_capacity(BATCH);
        self.follow_store();
        self.follow_feed();
        self.follow_names();
        loop {
            self.start_work();
            self.tell();
            let pause = self.queue.next_pause();
            tokio::select! {
                () = stop.cancelled() => return,
                count = self.inputs.events.recv_many(&mut events, BATCH) => {
                    if count == 0 { return }
                    for event in events.drain(..) {
                        self.take(event);
                    }
                }
                changed = self.inputs.reader.changed() => {
                    if changed.is_err() { return }
                    self.follow_store();
                }
                changed = self.inputs.leading.changed() => if changed.is_err() { return },
                changed = self.inputs.feed.changed() => {
                    if changed.is_err() { return }
                    self.follow_feed();
                }
                changed = self.inputs.left_out.changed() => {
                    if changed.is_err() { return }
                    self.follow_left_out();
                }
                changed = self.inputs.names.changed() => {
                    if changed.is_err() { return }
                    self.follow_names();
                }
                Some(report) = self.running.join_next(), if !self.running.is_empty() => match report {
                    Ok(report) => self.finish(report),
                    Err(error) => if error.is_panic() {
                        warn!(%error, "a task of the controller failed");
                    }
                },
                () = until(pause), if pause.is_some() => {
                    for key in self.queue.resume(Instant::now()) {
                        self.cache.forget_foreign(&key);
                    }
                }
            }
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Objects { kind, changes, listed } => {
                if listed && self.listed.insert(kind) && is_of_istio(kind) {
                    self.mark_all();
                }
                for change in changes {
                    let changed = match change {
                        Change::Set(object) => self.cache.put(kind, object),
                        Change::Gone(namespace, name) => self.cache.remove(kind, &namespace, &name),
                    };
                    if let Some(key) = changed {
                        self.queue.mark(key);
                    }
                }
            }
            Event::Services { changes, listed } => {
                self.services_listed |= listed;
                for (namespace, name, service) in changes {
                    let Ok(key) = ServiceKey::parse(&namespace, &name) else { continue };
                    let before = match service {
                        Some(service) => self.services.insert(key.clone(), service),
                        None => self.services.remove(&key),
                    };
                    let now = self.services.get(&key);
                    if before.as_ref() != now {
                        let selects = |service: Option<&Service>| service.and_then(Service::selection).cloned();
                        // Who selects what is looked at before endpoints of peers join a Service.
                        if selects(before.as_ref()) != selects(now) {
                            let beside = self.cache.keys().filter(|other| other.namespace == key.namespace);
                            beside.cloned().for_each(|other| self.queue.mark(other));
                        }
                        self.queue.mark(key);
                    }
                }
            }
            Event::Namespaces(namespaces) => {
                self.namespaces_listed = true;
                let changed: Vec<String> = namespaces.symmetric_difference(self.cache.namespaces()).cloned().collect();
                for namespace in changed {
                    self.set_namespace(&namespace, namespaces.contains(&namespace));
                }
            }
            Event::Gateways(gateways) => {
                if self.gateways.as_ref() != Some(&gateways) {
                    debug!(?gateways, "gateways changed");
                    self.gateways = Some(gateways);
                    self.mark_all();
                }
            }
        }
    }

    fn set_namespace(&mut self, namespace: &str, exists: bool) {
        let mut keys = self.cache.set_namespace(namespace, exists);
        if exists {
            let snapshot = self.inputs.reader.load();
            keys.extend(
                snapshot.imports().map(|import| &import.key).filter(|key| key.namespace.as_str() == namespace).cloned(),
            );
        }
        for key in keys {
            self.queue.mark(key);
        }
    }

    fn follow_store(&mut self) {
        let snapshot = self.inputs.reader.load_full();
        let peers: BTreeMap<ClusterName, (bool, bool)> =
            snapshot.peers().map(|peer| (peer.name.clone(), (peer.configured, peer.synced))).collect();
        let changed = snapshot.changes_since(self.version).filter(|_| peers == self.peers);
        self.version = snapshot.version();
        self.peers = peers;
        match changed {
            Some(keys) => keys.into_iter().for_each(|key| self.queue.mark(key)),
            None => self.mark_all(),
        }
    }

    fn follow_feed(&mut self) {
        let peers_known = self.inputs.feed.borrow_and_update().peers_known;
        if std::mem::replace(&mut self.peers_known, peers_known) != peers_known {
            self.mark_all();
        }
    }

    fn follow_left_out(&mut self) {
        let now = self.inputs.left_out.borrow_and_update().clone();
        let before = std::mem::replace(&mut self.left_out, Arc::clone(&now));
        self.mark_different(&before, &now);
    }

    fn follow_names(&mut self) {
        let now = self.inputs.names.borrow_and_update().clone();
        let before = std::mem::replace(&mut self.names, Arc::clone(&now));
        self.mark_different(&before, &now);
    }

    fn mark_different<T: PartialEq>(&mut self, before: &BTreeMap<ServiceKey, T>, now: &BTreeMap<ServiceKey, T>) {
        for key in before.keys().chain(now.keys()).filter(|key| before.get(*key) != now.get(*key)) {
            self.queue.mark(key.clone());
        }
    }

    fn mark_all(&mut self) {
        let snapshot = self.inputs.reader.load();
        let imports = snapshot.imports().map(|import| import.key.clone());
        let all: BTreeSet<ServiceKey> = self.cache.keys().cloned().chain(imports).collect();
        drop(snapshot);
        for key in all {
            self.queue.mark(key);
        }
    }

    /// Everything that a decision depends on is known.
    fn is_synced(&self) -> bool {
        const KINDS: [Kind; 4] = [Kind::Service, Kind::EndpointSlice, Kind::ServiceImport, Kind::ServiceExport];
        self.namespaces_listed
            && self.services_listed
            && self.gateways.is_some()
            && KINDS.iter().all(|kind| self.listed.contains(kind))
            && self.inputs.reader.load().is_local_synced()
    }

    /// Begins and ends to lead, and keeps the workers busy.
    fn start_work(&mut self) {
        let leads = *self.inputs.leading.borrow_and_update() && self.is_synced();
        match (leads, self.book.is_some()) {
            (true, false) => {
                let book = PortBook::new(ports::RANGE, self.cache.ports());
                info!(ports = book.len(), "controller: writing from now on");
                self.book = Some(book);
                self.queue.clear();
                self.mark_all();
            }
            (false, true) => {
                info!("controller: not writing any more");
                self.book = None;
                self.running.abort_all();
                self.queue.clear();
                self.attempts.clear();
            }
            _ => {}
        }
        if !leads {
            return;
        }
        while self.running.len() < WORKERS {
            let Some(key) = self.queue.next() else { return };
            let work = self.work(&key);
            if work.is_empty() {
                self.queue.done(&key, false);
                continue;
            }
            debug!(service = %key, actions = work.len(), "controller: writing");
            self.running.spawn(perform(self.requests.clone(), key, work));
        }
    }

    /// What is to be done for a service.
    fn work(&mut self, key: &ServiceKey) -> Vec<Action> {
        let (Some(book), Some(gateways)) = (self.book.as_mut(), self.gateways.as_ref()) else { return Vec::new() };
        let is_listed = ISTIO.iter().all(|kind| self.listed.contains(kind));
        let istio = self.inputs.istio.as_ref().filter(|_| is_listed);
        let mut seen = Seen { left_out: self.left_out.get(key).cloned(), ..self.cache.seen(key) };
        if istio.is_some() {
            let beside = self.services.iter().filter(|(other, _)| other.namespace == key.namespace);
            let selecting =
                beside.filter_map(|(other, service)| Some((other.name.to_string(), service.selection()?.clone())));
            seen.neighbours = selecting.collect();
            seen.selection = self.services.get(key).and_then(Service::selection).cloned();
        }
        let snapshot = self.inputs.reader.load();
        let (now, steady) = (now(), (self.inputs.clock)());
        let peers_known = self.peers_known;
        let names = &*self.names;
        let world = World { snapshot: &snapshot, peers_known, gateways, names, istio, now: &now, steady };
        let verdict = match self.services.get(key) {
            Some(Service::Real(_)) => Verdict::Valid,
            Some(Service::ExternalName) => Verdict::ExternalName,
            None => Verdict::NoService,
        };
        let wanted = desired::wanted(&world, key, &seen, verdict, book);
        let mut actions = actions(&seen, &wanted);
        actions.retain(|action| !self.attempts.is_futile(key, action, &seen));
        actions
    }

    fn finish(&mut self, report: Report) {
        let Report { key, outcomes } = report;
        let (mut failed, mut after, mut refused) = (false, None, None);
        let mut foreign = false;
        for (action, result) in outcomes {
            let (kind, name) = action.target();
            match result {
                Ok(Outcome::Written { kind, object }) => {
                    self.attempts.remember(&key, &action, &object);
                    self.cache.put(kind, object);
                    self.status.send_modify(|status| status.writes += 1);
                }
                Ok(Outcome::Deleted { kind, name }) => {
                    self.cache.remove(kind, key.namespace.as_str(), &name);
                    self.status.send_modify(|status| status.writes += 1);
                }
                Ok(Outcome::Foreign { name }) => {
                    warn!(service = %key, name, "an object of this name is not Eastway's and is left alone");
                    self.cache.set_foreign(&key, &name);
                    foreign = true;
                }
                Err(failure) => {
                    self.status.send_modify(|status| status.failures += 1);
                    debug!(service = %key, ?kind, name, %failure, "controller: a request failed");
                    failed = true;
                    match failure {
                        Failure::Conflict(_) => {}
                        Failure::Unavailable { after: wait, .. } => after = after.max(wait),
                        Failure::Refused(reason) => refused = Some(format!("{kind:?} {name}: {reason}")),
                    }
                }
            }
        }
        if self.cache.set_refused(&key, refused.clone())
            && let Some(refused) = refused
        {
            warn!(service = %key, "the API server does not take what is wanted: {refused}");
        }
        if failed {
            self.queue.failed(&key, after, Instant::now());
        } else {
            // What was written is looked at again: an address that came is the next step.
            self.queue.done(&key, true);
        }
        if foreign {
            self.queue.later(&key, Instant::now() + FOREIGN);
        }
    }

    fn tell(&self) {
        let (pending, failing) = self.queue.len();
        let (leading, synced) = (self.book.is_some(), self.is_synced());
        let ports = self.book.as_ref().map_or(0, PortBook::len);
        self.status.send_if_modified(|status| {
            let new = Status { leading, synced, pending, failing, ports, ..*status };
            std::mem::replace(status, new) != new
        });
    }
}

fn is_of_istio(kind: Kind) -> bool {
    ISTIO.contains(&kind)
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// The time for conditions: whole seconds, as the API has them.
fn now() -> String {
    Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default().to_string()
}

/// Does the work on one service, in order. What fails does not keep the rest from being done, but for the import's
/// addresses: they are told when all is there that they lead to.
async fn perform(requests: Requests, key: ServiceKey, work: Vec<Action>) -> Report {
    let mut outcomes = Vec::with_capacity(work.len());
    let mut incomplete = false;
    let mut generation = None;
    for mut action in work {
        // Otherwise the status would be written once more, for the sake of this number.
        if let (Some(generation), (Kind::ServiceImport, _)) = (generation, action.target()) {
            action.observe(generation);
        }
        if incomplete && matches!(&action, Action::Apply(object) if object.kind == Kind::ServiceImport) {
            continue;
        }
        let result = requests.perform(&key, &action).await;
        if let (Action::Apply(_), Ok(Outcome::Written { kind: Kind::ServiceImport, object })) = (&action, &result) {
            generation = object.pointer("/metadata/generation").and_then(serde_json::Value::as_i64);
        }
        incomplete |= result.is_err() && matches!(action, Action::Create(_) | Action::Apply(_));
        outcomes.push((action, result));
    }
    Report { key, outcomes }
}

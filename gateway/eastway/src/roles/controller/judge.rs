//! What policies of the API server say about themselves: whether the gateways can use them, and what they do not do.
//!
//! It is the gateways' own reader that judges here, with the same files beside the objects: what it refuses they refuse.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use eastway_kubernetes::controller::object::Condition;
use eastway_kubernetes::controller::peers::Mistakes;
use eastway_kubernetes::controller::reconcile::Feed;
use eastway_kubernetes::controller::statuses::{Statuses, Verdict, has_status};
use eastway_kubernetes::objects::{Kind, ObjectKey, Objects};
use eastway_model::rules::route::{self, ConditionKind, ObjectName, ParentStatus, Reason, Route};
use eastway_model::rules::{AccessMode, AccessPolicy, ClusterRef, Match, TrafficPolicy};
use eastway_model::store::{Reader, Snapshot};
use eastway_model::{ClusterName, Label, PortName, PortNumber, ServiceKey, ServicePort};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::config::Loaded;
use crate::config::objects::Overlay;

/// Services come and go all the time: policies are compared with them this often at most.
const PAUSE: Duration = Duration::from_secs(1);
/// Pause after something could not be written.
const RETRY: Duration = Duration::from_secs(5);
/// Most names in a message.
const NAMED: usize = 5;

/// What is followed.
pub(super) struct Inputs {
    /// The configuration of files.
    pub(super) files: watch::Receiver<Arc<Loaded>>,
    /// The store.
    pub(super) reader: Reader,
    /// How the feed is doing.
    pub(super) feed: watch::Receiver<Feed>,
    /// This replica writes.
    pub(super) leading: watch::Receiver<bool>,
}

/// Judges until `stop`: writes what is to be said of policies, and tells `mistakes` of Peers to who writes theirs.
pub(super) async fn run(
    mut statuses: Statuses,
    mut inputs: Inputs,
    mistakes: watch::Sender<Mistakes>,
    stop: CancellationToken,
) {
    let mut overlay = Overlay::default();
    let mut merged: Option<Loaded> = None;
    let (mut due, mut failing) = (Instant::now(), false);
    let mut waiting = false;
    loop {
        let stale = tokio::select! {
            () = stop.cancelled() => return,
            changed = statuses.changed() => changed,
            changed = inputs.files.changed() => if changed.is_ok() { true } else { return },
            changed = inputs.reader.changed() => if changed.is_ok() { false } else { return },
            changed = inputs.feed.changed() => if changed.is_ok() { false } else { return },
            changed = inputs.leading.changed() => if changed.is_ok() { false } else { return },
            () = sleep_until(due), if waiting => false,
        };
        if !statuses.is_settled() {
            continue;
        }
        if stale || merged.is_none() {
            let files = inputs.files.borrow_and_update().clone();
            let loaded = overlay.merge(&files, statuses.texts(), true);
            let peers = loaded.refused.iter().filter(|(key, _)| key.kind == Kind::Peer);
            let peers: BTreeMap<_, _> = peers.map(|(key, reason)| (key.name.clone(), reason.clone())).collect();
            mistakes.send_if_modified(|before| {
                let changed = **before != peers;
                if changed {
                    *before = Arc::new(peers);
                }
                changed
            });
            merged = Some(loaded);
        }
        waiting = Instant::now() < due;
        let Some(loaded) = merged.as_ref().filter(|_| !waiting && *inputs.leading.borrow()) else { continue };
        let snapshot = inputs.reader.load_full();
        if !snapshot.is_local_synced() {
            continue;
        }
        due = Instant::now() + PAUSE;
        let world = World { loaded, snapshot: &snapshot, complete: is_complete(&snapshot, *inputs.feed.borrow()) };
        match statuses.write(&world.verdicts(statuses.texts())).await {
            Ok(()) => failing = false,
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    warn!(error, "controller: the status of policies cannot be written");
                }
                (due, waiting) = (Instant::now() + RETRY, true);
            }
        }
    }
}

/// All services that there are are known: none is missed that may still come.
fn is_complete(snapshot: &Snapshot, feed: Feed) -> bool {
    feed.peers_known && snapshot.peers().all(|peer| !peer.configured || peer.synced)
}

/// What policies are judged by.
struct World<'a> {
    loaded: &'a Loaded,
    snapshot: &'a Snapshot,
    complete: bool,
}

impl World<'_> {
    fn verdicts(&self, objects: &Objects) -> BTreeMap<ObjectKey, Verdict> {
        let policies = &self.loaded.policies;
        let traffic: BTreeMap<_, _> =
            policies.traffic.values().map(|it| ((it.service.namespace.as_str(), &*it.name), it)).collect();
        let access: BTreeMap<_, _> =
            policies.access.iter().map(|it| ((it.namespace.as_str(), &*it.name), it)).collect();
        let mut verdicts = BTreeMap::new();
        for key in objects.keys().filter(|key| has_status(key.kind)) {
            let place = (key.namespace.as_str(), key.name.as_str());
            let verdict = match (self.loaded.refused.get(key), key.kind) {
                (Some(mistake), kind) if kind.is_route() => {
                    Verdict::Everywhere(vec![Condition::new("Accepted", false, "UnsupportedValue", mistake)])
                }
                (Some(mistake), kind) => Verdict::Policy(refused(kind, mistake)),
                (None, Kind::TrafficPolicy) => {
                    Verdict::Policy(traffic.get(&place).map(|it| self.traffic(it)).unwrap_or_default())
                }
                (None, kind) if kind.is_route() => self.route(key),
                (None, _) => Verdict::Policy(access.get(&place).map(|it| self.access(it)).unwrap_or_default()),
            };
            verdicts.insert(key.clone(), verdict);
        }
        verdicts
    }

    fn route(&self, key: &ObjectKey) -> Verdict {
        let book = &self.loaded.policies.routes;
        let is_it = |route: &&Arc<Route>| {
            let ObjectName { namespace, name } = &route.name;
            let place = (namespace.as_str(), &**name);
            route.object_kind() == key.kind.as_str() && place == (key.namespace.as_str(), key.name.as_str())
        };
        let Some(route) = book.routes().iter().find(is_it) else { return Verdict::Parents(Vec::new()) };
        let parents = route.status_in(book, self.snapshot).into_iter().map(|ParentStatus { parent, conditions }| {
            let is_split = self.loaded.policies.traffic.get(&parent.service).is_some_and(|it| !it.split.is_empty());
            // Whom it applies to depends on that split, which says so itself.
            let told = conditions.into_iter().filter(|one| !(is_split && one.kind == ConditionKind::AppliesTo));
            let place = (parent.service.name.to_string(), parent.port.map(PortNumber::get));
            (place, told.map(|one| self.of_route(one)).collect())
        });
        Verdict::Parents(parents.collect())
    }

    /// Of what is missing it is not known yet whether it comes.
    fn of_route(&self, said: route::Condition) -> Condition {
        let route::Condition { kind, status, reason, message } = said;
        let kind = match kind {
            ConditionKind::Accepted => "Accepted",
            ConditionKind::ResolvedRefs => "ResolvedRefs",
            ConditionKind::AppliesTo => "AppliesTo",
        };
        let waits = matches!(reason, Reason::NoMatchingParent | Reason::BackendNotFound);
        match !status && waits && !self.complete {
            true => Condition::unknown(kind, "Pending", format!("{message}; not all peers have told theirs yet")),
            false => Condition::new(kind, status, reason.to_string(), message),
        }
    }

    fn traffic(&self, policy: &TrafficPolicy) -> Vec<Condition> {
        let accepted = "the gateways of this cluster share its connections out by it";
        let clusters = policy.split.iter().filter_map(|split| split.cluster.as_ref()).chain(&policy.failover);
        let clusters = clusters.filter_map(|cluster| match cluster {
            ClusterRef::Local => None,
            ClusterRef::Named(name) => Some(name),
        });
        let unknown = if self.knows(&policy.service) { Vec::new() } else { vec![&policy.service.name] };
        vec![
            Condition::new("Accepted", true, "Accepted", accepted),
            self.resolved(&unknown, clusters),
            self.per_request(policy),
        ]
    }

    /// Shares are of connections. Where one carries many requests, shares of requests are something else.
    fn per_request(&self, policy: &TrafficPolicy) -> Condition {
        const KIND: &str = "PerRequest";
        if policy.split.iter().filter(|split| split.weight > 0).count() < 2 {
            return Condition::new(KIND, true, "NotNeeded", "no connections are shared out by weight");
        }
        let import = self.snapshot.import(&policy.service).map(|import| import.ports.as_slice());
        let local = self.snapshot.local(&policy.service).map(|local| local.record.ports.as_slice());
        let ports = import.or(local).unwrap_or_default();
        match ports.iter().find(|port| is_l7(port)) {
            None => Condition::new(KIND, true, "NotNeeded", "no port says that its connections carry requests of HTTP"),
            Some(port) => {
                let spoken =
                    port.app_protocol.as_deref().or(port.name.as_ref().map(PortName::as_str)).unwrap_or_default();
                let message = format!(
                    "weights share connections out, not requests: one connection to port {} ({spoken}) may carry many \
                     requests, which go where it went; shares of requests need L7, that is a sidecar at the client",
                    port.number
                );
                Condition::new(KIND, false, "NeedsL7", message)
            }
        }
    }

    fn access(&self, policy: &AccessPolicy) -> Vec<Condition> {
        let accepted = "the gateways of this cluster decide by it who may connect from other clusters";
        let named = policy.services.iter().filter_map(exact);
        let missing = named.filter(|name| {
            let key = ServiceKey { namespace: policy.namespace.clone(), name: Label::clone(name) };
            self.snapshot.local(&key).is_none()
        });
        let clusters = policy.allow.iter().filter_map(|rule| exact(&rule.cluster));
        let enforced = match (policy.dry_run, self.loaded.settings.authorization) {
            (true, _) => {
                Condition::new("Enforced", false, "DryRun", "dryRun: what it would refuse is logged and counted only")
            }
            (false, AccessMode::DryRun) => {
                let message = "authorization of this cluster is a dry run: nobody is refused";
                Condition::new("Enforced", false, "DryRunOfCluster", message)
            }
            (false, AccessMode::Enforce) if policy.allow.is_empty() => {
                Condition::new("Enforced", true, "AllowsNobody", "allow is empty: it allows nobody")
            }
            (false, AccessMode::Enforce) => {
                Condition::new("Enforced", true, "Enforced", "who is not allowed by a policy is refused")
            }
        };
        vec![
            Condition::new("Accepted", true, "Accepted", accepted),
            self.resolved(&missing.collect::<Vec<_>>(), clusters),
            enforced,
        ]
    }

    /// Whether what a policy names is there.
    fn resolved<'n>(&self, services: &[&Label], clusters: impl Iterator<Item = &'n ClusterName>) -> Condition {
        const KIND: &str = "ResolvedRefs";
        let own = self.snapshot.cluster();
        let unknown: BTreeSet<_> =
            clusters.filter(|name| *name != own && !self.loaded.peers.contains_key(*name)).collect();
        if !unknown.is_empty() {
            let message = format!("no Peer is called {}", list(unknown.into_iter().map(Label::as_str)));
            return Condition::new(KIND, false, "NoSuchCluster", message);
        }
        if services.is_empty() {
            return Condition::new(KIND, true, "Resolved", "all that it names is there");
        }
        let message = format!("there is no service {} in this namespace", list(services.iter().map(|it| it.as_str())));
        if self.complete {
            Condition::new(KIND, false, "NoSuchService", message)
        } else {
            Condition::unknown(KIND, "Pending", format!("{message}; not all peers have told theirs yet"))
        }
    }

    fn knows(&self, key: &ServiceKey) -> bool {
        self.snapshot.import(key).is_some() || self.snapshot.local(key).is_some()
    }
}

fn refused(kind: Kind, mistake: &str) -> Vec<Condition> {
    let other = if kind == Kind::TrafficPolicy { "PerRequest" } else { "Enforced" };
    let unknown = |kind| Condition::unknown(kind, "NotAccepted", "it is not accepted");
    vec![Condition::new("Accepted", false, "Invalid", mistake), unknown("ResolvedRefs"), unknown(other)]
}

fn exact(text: &Match) -> Option<&Label> {
    match text {
        Match::Any => None,
        Match::Exact(label) => Some(label),
    }
}

/// Whether a port says that it speaks HTTP in the clear, by its protocol (KEP-1422) or, as Istio reads it, by its name.
fn is_l7(port: &ServicePort) -> bool {
    const SPOKEN: [&str; 8] =
        ["http", "http2", "h2c", "grpc", "grpc-web", "kubernetes.io/h2c", "kubernetes.io/ws", "ws"];
    let named =
        || port.name.as_ref().map(PortName::as_str).map(|name| name.split_once('-').map_or(name, |(first, _)| first));
    port.app_protocol.as_deref().or_else(named).is_some_and(|spoken| SPOKEN.contains(&spoken))
}

fn list<'n>(names: impl ExactSizeIterator<Item = &'n str>) -> String {
    let more = names.len().saturating_sub(NAMED);
    let text = names.take(NAMED).map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
    if more == 0 { text } else { format!("{text} and {more} more") }
}

#[cfg(test)]
mod tests;

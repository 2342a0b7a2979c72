//! Follows the configured peers: whom the tunnel dials and accepts, what the store takes from them,
//! and what it is told about their links.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use eastway_model::rules::PeerRules;
use eastway_model::{Change, ClusterName, PeerChange, PeerState, UnixMillis};
use eastway_tunnel::{PeerStates, PeerTarget};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use crate::adapters;
use crate::app::Gateway;
use crate::app::clock;
use crate::app::crl::CrlFile;
use crate::app::disk::write_atomically;
use crate::app::imports::{self, Imports, Stop};
use crate::app::store::Input;
use crate::config::Loaded;
use crate::telemetry::Refusal;

/// How often the revocation file is looked at: a revoked link has to be cut within a second.
const CRL_INTERVAL: Duration = Duration::from_millis(250);
/// File that remembers since when each Peer is accepted.
const ACCEPTED: &str = "peers.json";

/// The one owner of what is derived from Peer files.
pub struct Peers {
    gateway: Arc<Gateway>,
    imports: Imports,
    tasks: TaskTracker,
    end: CancellationToken,
    accepted: Accepted,
    crl: CrlFile,
    running: BTreeMap<ClusterName, Running>,
    told: Told,
}

struct Running {
    rules: watch::Sender<Arc<PeerRules>>,
    removed: CancellationToken,
}

impl Peers {
    /// No peer yet. Import tasks go to `tasks` and end with `end`.
    #[must_use]
    pub fn new(gateway: Arc<Gateway>, imports: Imports, tasks: TaskTracker, end: CancellationToken) -> Self {
        let settings = &gateway.settings;
        let accepted = Accepted::open(&settings.state);
        let crl = CrlFile::new(settings.trust.crl.clone());
        Self { gateway, imports, tasks, end, accepted, crl, running: BTreeMap::new(), told: Told::default() }
    }

    /// Takes the configuration of the start over: rules and trust, before anything is dialled.
    pub async fn start(&mut self) {
        let loaded = self.gateway.configuration.loaded.borrow().clone();
        self.apply(&loaded).await;
    }

    /// Follows configuration, revocation file and links until the process ends.
    pub async fn run(mut self) {
        let mut configuration = self.gateway.configuration.loaded.clone();
        let Some(tunnel) = self.gateway.tunnel.get().cloned() else { return };
        let mut events = tunnel.events();
        // What happened since the peers were set is news here.
        events.mark_changed();
        let mut ticks = interval(CRL_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.end.cancelled() => return,
                changed = configuration.changed() => {
                    if changed.is_err() { return }
                    let loaded = configuration.borrow_and_update().clone();
                    self.apply(&loaded).await;
                }
                changed = events.changed() => {
                    if changed.is_err() { return }
                    let states = events.borrow_and_update().clone();
                    self.tell(&states).await;
                }
                _ = ticks.tick() => if self.crl.refresh() {
                    info!(lists = self.crl.count(), "revocation lists changed");
                    let loaded = configuration.borrow().clone();
                    self.trust(&loaded);
                }
            }
        }
    }

    async fn apply(&mut self, loaded: &Loaded) {
        // What is revoked or removed is cut first; what is new is dialled last.
        self.crl.follow(loaded.settings.trust.crl.as_deref());
        self.trust(loaded);
        let rules = Arc::new(loaded.rules(|peer| self.accepted.of(peer)));
        // Until all are known, those that are missing may only not have been read yet (invariant I4).
        if loaded.complete {
            self.accepted.keep(loaded.peers.keys());
        }
        self.imports.store.send(Input::Rules(rules.clone())).await;
        let gone: Vec<_> = self.running.keys().filter(|peer| !rules.peers.contains_key(*peer)).cloned().collect();
        for peer in gone {
            if let Some(running) = self.running.remove(&peer) {
                running.removed.cancel();
            }
            self.told.0.remove(&peer);
        }
        for (peer, rules) in &rules.peers {
            match self.running.get(peer) {
                Some(running) => {
                    running.rules.send_if_modified(|current| {
                        let changed = *current != *rules;
                        current.clone_from(rules);
                        changed
                    });
                }
                None => self.start_import(peer, rules),
            }
        }
        let known: BTreeSet<_> = rules.peers.keys().cloned().collect();
        self.gateway.known_peers.send_if_modified(|before| {
            let changed = loaded.complete && before.as_deref() != Some(&known);
            if changed {
                *before = Some(Arc::new(known));
            }
            changed
        });
        if let Some(tunnel) = self.gateway.tunnel.get() {
            tunnel.set_relay(loaded.settings.relay.clone());
            tunnel.set_peers(targets(loaded));
        }
    }

    fn start_import(&mut self, peer: &ClusterName, rules: &Arc<PeerRules>) {
        let (sender, receiver) = watch::channel(rules.clone());
        let removed = CancellationToken::new();
        let stop = Stop { process: self.end.clone(), removed: removed.clone() };
        self.tasks.spawn(imports::run(self.imports.clone(), receiver, stop));
        self.running.insert(peer.clone(), Running { rules: sender, removed });
    }

    fn trust(&self, loaded: &Loaded) {
        // Who is revoked is not known: nobody is trusted, rather than everybody.
        let trust = self.crl.lists().map_or_else(Vec::new, |lists| adapters::peer_trust(loaded, lists));
        if let Err(error) = self.gateway.trust.replace(trust) {
            error!(%error, "the peers contradict each other: whom we accepted before stays accepted");
            self.gateway.telemetry.refusals.refused(Refusal::Config, None, &error);
        }
    }

    /// Tells the store which peers can be reached.
    async fn tell(&mut self, states: &PeerStates) {
        let changes = self.told.changes(self.running.keys(), states, self.gateway.clock.steady());
        // False only while the process stops.
        let _stopping = self.imports.store.changes(changes).await;
    }
}

/// What the store was told of each peer's links.
#[derive(Debug, Default)]
pub(super) struct Told(BTreeMap<ClusterName, bool>);

impl Told {
    /// What is new for the store. `now` is of its clock: a peer that was lost counts from then.
    pub(super) fn changes<'a>(
        &mut self,
        peers: impl Iterator<Item = &'a ClusterName>,
        states: &PeerStates,
        now: UnixMillis,
    ) -> Vec<Change> {
        let mut changes = Vec::new();
        for cluster in peers {
            let up = states.get(cluster.as_str()).is_some_and(|state| state.up);
            let before = self.0.insert(cluster.clone(), up);
            if before == Some(up) || (before.is_none() && !up) {
                continue;
            }
            info!(peer = %cluster, up, "{}", if up { "peer is up" } else { "peer is down" });
            let state = if up { PeerState::Up } else { PeerState::Down { since: now } };
            changes.push(Change::Peer { cluster: cluster.clone(), change: PeerChange::State(state) });
        }
        changes
    }
}

fn targets(loaded: &Loaded) -> Vec<PeerTarget> {
    let target = |(name, peer): (&ClusterName, &Arc<crate::config::PeerSettings>)| PeerTarget {
        name: Arc::from(name.as_str()),
        addresses: peer.addresses.iter().filter_map(adapters::host_port).collect(),
        via: peer.via.as_ref().map(|via| Arc::from(via.as_str())),
        transport: peer.transport,
        tcp: peer.tcp.clone(),
    };
    loaded.peers.iter().map(target).collect()
}

/// Since when each Peer is accepted: an export cannot claim to be older (invariant I6).
struct Accepted {
    file: PathBuf,
    since: BTreeMap<String, u64>,
    dirty: bool,
}

impl Accepted {
    fn open(state: &Path) -> Self {
        let file = state.join(ACCEPTED);
        let stored = match fs::read(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
            read => read.and_then(|text| serde_json::from_slice(&text).map_err(io::Error::from)),
        };
        let since = stored.unwrap_or_else(|error| {
            warn!(%error, file = %file.display(), "since when peers are accepted cannot be read: all count as accepted now, which may change who wins conflicts");
            BTreeMap::new()
        });
        Self { file, since, dirty: false }
    }

    fn of(&mut self, peer: &ClusterName) -> UnixMillis {
        let dirty = &mut self.dirty;
        let since = self.since.entry(peer.to_string()).or_insert_with(|| {
            *dirty = true;
            clock::wall().0
        });
        UnixMillis(*since)
    }

    /// Forgets all but `peers`, and writes what changed.
    fn keep<'a>(&mut self, peers: impl Iterator<Item = &'a ClusterName>) {
        let peers: BTreeSet<_> = peers.map(ClusterName::as_str).collect();
        let before = self.since.len();
        self.since.retain(|peer, _| peers.contains(peer.as_str()));
        if !self.dirty && self.since.len() == before {
            return;
        }
        self.dirty = false;
        let written = serde_json::to_vec_pretty(&self.since).map_err(io::Error::other);
        if let Err(error) = written.and_then(|text| write_atomically(&self.file, &text)) {
            warn!(%error, file = %self.file.display(), "when peers were accepted is not kept on disk");
        }
    }
}

//! The world: clusters, streams and the order in which things happen.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;
use std::time::Duration;

use eastway_federation::Limits;
use eastway_model::rules::{PeerRules, Rules};
use eastway_model::{ClusterName, Label, UnixMillis};
use fastrand::Rng;

use super::check;
use super::conn::{Conn, Direction, ReplicaIndex};
use super::hits::Hits;
use super::replica::{Importing, Replica, WALL};
use super::truth::{Truth, random_filter, random_key};

/// Random events of a seed, at least.
pub const MIN_EVENTS: usize = 300;

/// How long a dead link goes unnoticed.
pub(super) const NOTICE: Duration = Duration::from_secs(4);

/// What went wrong, or nothing.
pub(super) type Check = Result<(), String>;

/// One cluster.
pub(super) struct Cluster {
    pub(super) name: ClusterName,
    pub(super) truth: Truth,
    pub(super) rules: Arc<Rules>,
    pub(super) replicas: Vec<Replica>,
}

/// Something that happens later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Wake {
    Deliver(u64, Direction),
    ImportTimer(u64),
    ExportTimer(u64),
    /// An importer looks for a stream to a peer.
    Dial(ReplicaIndex, usize),
    /// A registry says what is due.
    Learn(ReplicaIndex),
    /// Two clusters notice that they lost each other.
    Notice(usize, usize),
    /// A store withdraws what is too old.
    Expire(ReplicaIndex),
    /// The stream of a session that was superseded is closed.
    Drop(u64),
}

/// Everything.
pub(super) struct World {
    pub(super) trace: bool,
    pub(super) rng: Rng,
    pub(super) now: Duration,
    pub(super) event: usize,
    pub(super) hits: Hits,
    pub(super) clusters: Vec<Cluster>,
    pub(super) conns: BTreeMap<u64, Conn>,
    pub(super) next_conn: u64,
    wakes: BinaryHeap<Reverse<(Duration, u64, Wake)>>,
    wake_count: u64,
    /// Pairs of clusters without links, and since when.
    pub(super) cut: BTreeMap<(usize, usize), Duration>,
    pub(super) limits: Limits,
    /// The cluster whose gateways have been taken over.
    pub(super) hostile: Option<usize>,
    pub(super) withdraw_after: Duration,
}

impl World {
    pub(super) fn new(seed: u64, trace: bool) -> Self {
        let mut rng = Rng::with_seed(seed);
        let clusters = [3, 3, 3, 3, 3, 3, 3, 3, 4, 4, 4, 5, 5, 6, 7, 8][rng.usize(..16)];
        let mut limits = Limits { chunk_bytes: 300, ..Limits::default() };
        if rng.u8(..8) == 0 {
            limits.services = 4;
            limits.endpoints = 6;
        }
        let withdraw_after = Duration::from_secs(if rng.u8(..4) == 0 { 60 } else { 24 * 3600 });
        let mut world = Self {
            trace,
            now: Duration::ZERO,
            event: 0,
            hits: Hits::default(),
            clusters: Vec::new(),
            conns: BTreeMap::new(),
            next_conn: 0,
            wakes: BinaryHeap::new(),
            wake_count: 0,
            cut: BTreeMap::new(),
            limits,
            hostile: (rng.u8(..3) == 0).then(|| rng.usize(..clusters)),
            withdraw_after,
            rng,
        };
        for index in 0..clusters {
            world.add_cluster(index, clusters);
        }
        world.choose_lagging_replica();
        world
    }

    fn add_cluster(&mut self, index: usize, clusters: usize) {
        let name = cluster_name(index);
        let mut truth = Truth::default();
        for _ in 0..self.rng.usize(2..6) {
            let key = random_key(&mut self.rng);
            let service = truth.random_service(name.as_str(), key.clone(), &mut self.rng, WALL);
            truth.set(Duration::ZERO, key, Some(service));
        }
        let mut rules = Rules::default();
        for peer in (0..clusters).filter(|peer| *peer != index) {
            let peer_rules = self.random_peer_rules(peer, UnixMillis(WALL.0 - 1_000_000));
            rules.peers.insert(cluster_name(peer), Arc::new(peer_rules));
        }
        let rules = Arc::new(rules);
        self.clusters.push(Cluster { name, truth, rules, replicas: Vec::new() });
        for replica in 0..[1, 1, 1, 1, 1, 2, 2, 3][self.rng.usize(..8)] {
            let started = self.start_replica(index, Duration::ZERO);
            self.clusters[index].replicas.push(started);
            self.begin_imports((index, replica));
        }
    }

    fn choose_lagging_replica(&mut self) {
        if self.rng.bool() {
            let with_others: Vec<usize> =
                (0..self.clusters.len()).filter(|index| self.clusters[*index].replicas.len() > 1).collect();
            let cluster = self.rng.choice(&with_others).copied().unwrap_or(0);
            let replicas = &mut self.clusters[cluster].replicas;
            if let Some(replica) = replicas.last_mut() {
                replica.lag = Duration::from_secs(30);
            }
        }
    }

    pub(super) fn random_peer_rules(&mut self, peer: usize, accepted_at: UnixMillis) -> PeerRules {
        let name = cluster_name(peer);
        let mut rules = PeerRules::new(name.clone(), &format!("{name}.example"), accepted_at);
        rules.export = random_filter(&mut self.rng);
        rules.import = random_filter(&mut self.rng);
        rules.withdraw_after = self.withdraw_after;
        rules
    }

    /// A new process of a replica. Its registry takes a while to load.
    pub(super) fn start_replica(&mut self, cluster: usize, lag: Duration) -> Replica {
        let slow = self.rng.u8(..4) == 0;
        let loads_in = Duration::from_millis(self.rng.u64(..if slow { 20_000 } else { 500 }));
        let epoch = self.rng.u64(1..);
        let Cluster { name, rules, .. } = &self.clusters[cluster];
        Replica::new(name.clone(), epoch, rules, lag, self.now + loads_in)
    }

    /// Tables and dials for each peer of a replica that has just started.
    pub(super) fn begin_imports(&mut self, replica: ReplicaIndex) {
        let peers: Vec<usize> = self.peers_of(replica.0).collect();
        for peer in peers {
            self.add_import(replica, peer);
        }
        let at = self.replica(replica).syncs_at;
        self.wake_at(at, Wake::Learn(replica));
    }

    pub(super) fn add_import(&mut self, replica: ReplicaIndex, peer: usize) {
        let dial_at = self.now + Duration::from_millis(self.rng.u64(..1_000));
        let (own, other) = (cluster_name(replica.0), cluster_name(peer));
        let importing = Importing::new(&own, &other, &self.limits, dial_at);
        self.replica_mut(replica).imports.insert(peer, importing);
        self.wake_at(dial_at, Wake::Dial(replica, peer));
    }

    pub(super) fn peers_of(&self, cluster: usize) -> impl Iterator<Item = usize> {
        let rules = &self.clusters[cluster].rules;
        (0..self.clusters.len()).filter(|peer| rules.peers.contains_key(&cluster_name(*peer)))
    }

    pub(super) fn replica(&self, (cluster, replica): ReplicaIndex) -> &Replica {
        &self.clusters[cluster].replicas[replica]
    }

    pub(super) fn replica_mut(&mut self, (cluster, replica): ReplicaIndex) -> &mut Replica {
        &mut self.clusters[cluster].replicas[replica]
    }

    pub(super) fn all_replicas(&self) -> Vec<ReplicaIndex> {
        let of = |(index, cluster): (usize, &Cluster)| (0..cluster.replicas.len()).map(move |replica| (index, replica));
        self.clusters.iter().enumerate().flat_map(of).collect()
    }

    pub(super) fn is_cut(&self, a: usize, b: usize) -> bool {
        self.cut.contains_key(&(a.min(b), a.max(b)))
    }

    pub(super) fn wake_at(&mut self, at: Duration, wake: Wake) {
        self.wake_count += 1;
        self.wakes.push(Reverse((at.max(self.now), self.wake_count, wake)));
    }

    pub(super) fn log(&self, what: impl FnOnce() -> String) {
        if self.trace {
            println!("{:>9.3} s  event {:<4} {}", self.now.as_secs_f64(), self.event, what());
        }
    }

    /// The whole life of the seed.
    pub(super) fn run(&mut self) -> Check {
        let events = MIN_EVENTS + self.rng.usize(..20);
        while self.event < events {
            let gap = match self.rng.u8(..20) {
                0 => self.rng.u64(5_000..15_000),
                1..5 => self.rng.u64(200..2_000),
                _ => self.rng.u64(..200),
            };
            self.run_until(self.now + Duration::from_millis(gap))?;
            self.random_event()?;
            self.event += 1;
            self.hits.events += 1;
        }
        self.settle()
    }

    pub(super) fn run_until(&mut self, until: Duration) -> Check {
        let mut at_once = 0_u32;
        while let Some(Reverse((at, _, _))) = self.wakes.peek()
            && *at <= until
        {
            let Some(Reverse((at, _, wake))) = self.wakes.pop() else { break };
            at_once = if at == self.now { at_once + 1 } else { 0 };
            if at_once > 100_000 {
                return Err(format!("I8: time stands still at {wake:?}"));
            }
            self.now = at;
            self.wake(wake)?;
        }
        self.now = until;
        Ok(())
    }

    fn wake(&mut self, wake: Wake) -> Check {
        match wake {
            Wake::Deliver(id, direction) => self.deliver(id, direction),
            Wake::ImportTimer(id) => self.import_timer(id),
            Wake::ExportTimer(id) => self.export_timer(id),
            Wake::Dial(replica, peer) => self.dial(replica, peer),
            Wake::Learn(replica) => self.learn(replica),
            Wake::Notice(a, b) => self.notice(a, b),
            Wake::Expire(replica) => self.expire(replica),
            Wake::Drop(id) => {
                self.kill(id);
                Ok(())
            }
        }
    }

    // --- The end ---

    /// Everything is mended, and after a while everybody sees what there is.
    fn settle(&mut self) -> Check {
        self.log(|| "everything heals".to_owned());
        for pair in self.cut.keys().copied().collect::<Vec<_>>() {
            self.heal(pair);
        }
        for conn in self.conns.values_mut() {
            conn.slow_until = Duration::ZERO;
        }
        let hostile = self.hostile;
        for id in self.conns_where(|conn| conn.tampered || Some(conn.exporter.0) == hostile) {
            self.kill(id);
        }
        for cluster in 0..self.clusters.len() {
            self.add_missing_peers(cluster)?;
        }
        let until = self.now + Duration::from_secs(400);
        loop {
            self.run_until(self.now + Duration::from_secs(10))?;
            match self.converged() {
                Ok(()) => return Ok(()),
                Err(what) if self.now >= until => return Err(format!("convergence: {what}")),
                Err(_) => {}
            }
        }
    }

    fn converged(&self) -> Check {
        for index in self.all_replicas() {
            let replica = self.replica(index);
            let own = &self.clusters[index.0];
            if !replica.synced || replica.applied != own.truth.log.len() {
                return Err(format!("{index:?} has not learnt its own truth"));
            }
            for (peer, importing) in &replica.imports {
                let at = || format!("{index:?} of cluster {peer}");
                let live = importing.conn.and_then(|id| self.conns.get(&id)).is_some_and(Conn::is_idle);
                if !live {
                    let conn = importing.conn.and_then(|id| self.conns.get(&id));
                    return Err(format!("{}: no session that is live and idle: {conn:?}", at()));
                }
                let sessions = self.conns_where(|conn| conn.importer == index && conn.exporter.0 == *peer).len();
                if sessions != 1 {
                    return Err(format!("{}: {sessions} sessions", at()));
                }
                let given = &self.clusters[*peer].rules.peers[&own.name];
                let taken = &own.rules.peers[&cluster_name(*peer)];
                let expected = check::expected(&self.clusters[*peer].truth.services, given, taken);
                check::agrees(&importing.table, &expected, &self.limits, true)
                    .map_err(|what| format!("{}: {what}", at()))?;
                check::store_holds_table(replica, &cluster_name(*peer), &importing.table)?;
            }
        }
        Ok(())
    }
}

pub(super) fn cluster_name(index: usize) -> ClusterName {
    Label::parse(&format!("c{index}")).unwrap()
}

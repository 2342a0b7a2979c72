//! Stores and links: what replicas are told, and when clusters lose each other.

use std::time::Duration;

use eastway_model::{Change, PeerChange, PeerState};

use super::check;
use super::conn::{Direction, ReplicaIndex};
use super::hits::Kind;
use super::replica::{Replica, WALL};
use super::world::{Check, Cluster, NOTICE, Wake, World, cluster_name};

impl World {
    /// Tells a replica's store what a peer's session said.
    pub(super) fn apply(&mut self, index: ReplicaIndex, peer: usize, changes: Vec<PeerChange>) -> Check {
        if changes.is_empty() {
            return Ok(());
        }
        let cluster = cluster_name(peer);
        let now = Replica::steady(self.now);
        let replica = self.replica_mut(index);
        let changes = changes.into_iter().map(|change| Change::Peer { cluster: cluster.clone(), change });
        let published = replica.writer.apply(changes, now);
        check::locals(replica)?;
        if let Some(importing) = replica.imports.get(&peer) {
            check::store_holds_table(replica, &cluster, &importing.table)?;
        }
        if let Some(at) = replica.writer.next_expiry() {
            let at = Duration::from_millis(at.0 - WALL.0);
            self.wake_at(at, Wake::Expire(index));
        }
        if published { self.published(index) } else { Ok(()) }
    }

    pub(super) fn learn(&mut self, index: ReplicaIndex) -> Check {
        let now = self.now;
        let Cluster { truth, replicas, rules, .. } = &mut self.clusters[index.0];
        let replica = &mut replicas[index.1];
        if !replica.learn(truth, now) {
            return Ok(());
        }
        check::locals(replica)?;
        check::note_offered(replica, rules);
        if !replica.lag.is_zero() {
            self.hits.hit(Kind::LaggingReplica);
        }
        self.published(index)
    }

    /// The sessions that export from this store look at its new snapshot.
    pub(super) fn published(&mut self, index: ReplicaIndex) -> Check {
        for id in self.conns_where(|conn| conn.exporter == index) {
            let Some(conn) = self.conns.get_mut(&id) else { continue };
            let replica = &self.clusters[index.0].replicas[index.1];
            let snapshot = replica.reader.load_full();
            let actions = conn.export.on_snapshot(&snapshot, replica.now(self.now));
            self.export_actions(id, actions)?;
        }
        Ok(())
    }

    pub(super) fn expire(&mut self, index: ReplicaIndex) -> Check {
        let steady = Replica::steady(self.now);
        let withdrawn = self.replica_mut(index).writer.expire(steady);
        if withdrawn.is_empty() {
            return Ok(());
        }
        for cluster in withdrawn {
            self.hits.hit(Kind::Withdraw);
            self.log(|| format!("{index:?} withdraws imports of {cluster}"));
            let replica = self.replica_mut(index);
            let peer = replica.imports.keys().copied().find(|peer| cluster_name(*peer) == cluster);
            let Some(peer) = peer else { continue };
            replica.imports.entry(peer).and_modify(|importing| importing.table.withdraw());
            check::store_holds_table(replica, &cluster, &replica.imports[&peer].table)?;
        }
        self.published(index)
    }

    pub(super) fn notice(&mut self, a: usize, b: usize) -> Check {
        if self.cut.get(&(a, b)).is_none_or(|since| *since + NOTICE > self.now) {
            return Ok(());
        }
        for id in self.conns_where(|conn| conn.clusters() == (a, b)) {
            self.kill(id);
        }
        for (cluster, peer) in [(a, b), (b, a)] {
            for replica in 0..self.clusters[cluster].replicas.len() {
                if self.replica((cluster, replica)).imports.contains_key(&peer) {
                    let since = Replica::steady(self.now);
                    self.apply((cluster, replica), peer, vec![PeerChange::State(PeerState::Down { since })])?;
                }
            }
        }
        Ok(())
    }

    /// A cut begins.
    pub(super) fn partition(&mut self, a: usize, b: usize) {
        let pair = (a.min(b), a.max(b));
        self.cut.insert(pair, self.now);
        self.wake_at(self.now + NOTICE, Wake::Notice(pair.0, pair.1));
    }

    /// A cut ends: what was under way arrives after all, if nobody has given up yet.
    pub(super) fn heal(&mut self, pair: (usize, usize)) {
        let Some(since) = self.cut.remove(&pair) else { return };
        self.hits.hit(if since + NOTICE > self.now { Kind::HealUnnoticed } else { Kind::Heal });
        for id in self.conns_where(|conn| conn.clusters() == pair) {
            let Some(conn) = self.conns.get(&id) else { continue };
            let counts =
                [(Direction::ToImporter, conn.to_importer.len()), (Direction::ToExporter, conn.to_exporter.len())];
            for (direction, count) in counts {
                for _ in 0..count {
                    self.wake_at(self.now, Wake::Deliver(id, direction));
                }
            }
        }
    }

    /// Bounds and, where nothing is under way, agreement of the two ends.
    pub(super) fn check_conn(&self, id: u64) -> Check {
        let Some(conn) = self.conns.get(&id) else { return Ok(()) };
        check::bounds(conn, &self.limits)?;
        let importer = self.replica(conn.importer);
        let exporter = self.replica(conn.exporter);
        let Some(importing) = importer.imports.get(&conn.exporter.0) else { return Ok(()) };
        let settled = importing.conn == Some(id) && conn.is_idle() && !conn.tampered && !importing.table.has_pending();
        if !settled || !self.clusters[conn.exporter.0].rules.peers.contains_key(&cluster_name(conn.importer.0)) {
            return Ok(());
        }
        let given = &self.clusters[conn.exporter.0].rules.peers[&cluster_name(conn.importer.0)];
        let taken = &self.clusters[conn.importer.0].rules.peers[&cluster_name(conn.exporter.0)];
        let expected = check::expected(&exporter.view, given, taken);
        check::agrees(&importing.table, &expected, &self.limits, false)
            .map_err(|what| format!("conn {id}, {:?} of {:?}: {what}", conn.importer, conn.exporter))
    }
}

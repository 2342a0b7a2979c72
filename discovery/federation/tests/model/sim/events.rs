//! The random events.

use std::sync::Arc;
use std::time::Duration;

use eastway_federation::{CloseReason, ImportTable};
use eastway_model::rules::Rules;
use eastway_model::{Change, LocalService, PeerChange, ServiceKey};

use super::check;
use super::conn::ReplicaIndex;
use super::hits::Kind;
use super::replica::Replica;
use super::truth::{port, random_address, random_condition, random_filter, random_key};
use super::world::{Check, Wake, World, cluster_name};

/// What a replica finds on its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Disk {
    Newest,
    Older,
    Torn,
    Empty,
}

impl World {
    pub(super) fn random_event(&mut self) -> Check {
        if self.rng.u8(..4) == 0 {
            self.save_to_disk();
        }
        match self.rng.u8(..100) {
            0..8 => self.add_service(),
            8..12 => self.remove_service(),
            12..20 => self.change_service(),
            20..23 => self.toggle_export(),
            23..37 => self.flap_endpoint(),
            37..44 => self.change_endpoints(),
            44..50 => self.begin_partition(),
            50..58 => self.end_partition(),
            58..64 => self.restart(),
            64..70 => self.switch_session(),
            70..74 => self.change_import_rules(),
            74..77 => self.change_export_rules(),
            77 => self.remove_peer(),
            78..80 => {
                let cluster = self.random_cluster();
                self.add_missing_peers(cluster)
            }
            80..86 => self.toggle_subscription(),
            86..88 => self.jump_clock(),
            88..91 => self.slow_importer(),
            _ => self.hostile_event(),
        }
    }

    fn random_cluster(&mut self) -> usize {
        self.rng.usize(..self.clusters.len())
    }

    fn random_replica(&mut self) -> ReplicaIndex {
        let cluster = self.random_cluster();
        (cluster, self.rng.usize(..self.clusters[cluster].replicas.len()))
    }

    /// A service of a random cluster.
    fn random_service(&mut self) -> Option<(usize, ServiceKey, LocalService)> {
        let cluster = self.random_cluster();
        let services = &self.clusters[cluster].truth.services;
        let (key, service) = self.rng.choice(services)?;
        Some((cluster, key.clone(), (**service).clone()))
    }

    // --- Truth ---

    /// The API of a cluster has it; each replica learns it in its time.
    fn set_truth(&mut self, cluster: usize, key: ServiceKey, service: Option<LocalService>) -> Check {
        let now = self.now;
        self.log(|| format!("c{cluster}: {key} is {}", if service.is_some() { "set" } else { "removed" }));
        self.clusters[cluster].truth.set(now, key, service);
        for replica in 0..self.clusters[cluster].replicas.len() {
            let lag = self.replica((cluster, replica)).lag;
            self.wake_at(now + lag, Wake::Learn((cluster, replica)));
        }
        Ok(())
    }

    fn add_service(&mut self) -> Check {
        let (cluster, replica) = self.random_replica();
        let key = random_key(&mut self.rng);
        let wall = self.replica((cluster, replica)).now(self.now).wall;
        let truth = &mut self.clusters[cluster].truth;
        let service = truth.random_service(cluster_name(cluster).as_str(), key.clone(), &mut self.rng, wall);
        self.hits.hit(Kind::AddService);
        self.set_truth(cluster, key, Some(service))
    }

    fn remove_service(&mut self) -> Check {
        let Some((cluster, key, _)) = self.random_service() else { return Ok(()) };
        self.hits.hit(Kind::RemoveService);
        self.set_truth(cluster, key, None)
    }

    fn change_service(&mut self) -> Check {
        let Some((cluster, key, service)) = self.random_service() else { return Ok(()) };
        let mut record = (*service.record).clone();
        if self.rng.bool() {
            record.ports = vec![port("http", self.rng.u16(1..)), port("more", 7)];
            record.ports.truncate(self.rng.usize(..=2));
            if matches!(record.ports.as_slice(), [a, b] if a.number == b.number) {
                record.ports.clear();
            }
        } else {
            record.labels.insert("team".into(), ["a", "b", "c"][self.rng.usize(..3)].into());
        }
        let service = LocalService { record: Arc::new(record), ..service };
        self.hits.hit(Kind::ChangeService);
        self.set_truth(cluster, key, Some(service))
    }

    fn toggle_export(&mut self) -> Check {
        let Some((cluster, key, mut service)) = self.random_service() else { return Ok(()) };
        service.exported = !service.exported;
        self.hits.hit(Kind::ToggleExport);
        self.set_truth(cluster, key, Some(service))
    }

    fn flap_endpoint(&mut self) -> Check {
        let Some((cluster, key, service)) = self.random_service() else { return Ok(()) };
        let mut endpoints: Vec<_> = service.endpoints.iter().map(|endpoint| (**endpoint).clone()).collect();
        let condition = random_condition(&mut self.rng);
        let weight = self.rng.u32(1..=200);
        let Some(endpoint) = self.rng.choice(&mut endpoints) else { return Ok(()) };
        endpoint.endpoint.condition = condition;
        endpoint.endpoint.weight = weight;
        self.hits.hit(Kind::FlapEndpoint);
        let service = LocalService::new((*service.record).clone(), service.exported, endpoints);
        self.set_truth(cluster, key, Some(service))
    }

    fn change_endpoints(&mut self) -> Check {
        let Some((cluster, key, service)) = self.random_service() else { return Ok(()) };
        let mut endpoints: Vec<_> = service.endpoints.iter().map(|endpoint| (**endpoint).clone()).collect();
        match self.rng.u8(..3) {
            0 if !endpoints.is_empty() => drop(endpoints.swap_remove(self.rng.usize(..endpoints.len()))),
            1 => {
                // Its address moves, which nobody elsewhere may ever see.
                let address = random_address(&mut self.rng);
                if let Some(endpoint) = self.rng.choice(&mut endpoints) {
                    endpoint.address = address;
                }
            }
            _ => {
                let truth = &mut self.clusters[cluster].truth;
                endpoints.push(truth.random_endpoint(cluster_name(cluster).as_str(), &mut self.rng));
            }
        }
        self.hits.hit(Kind::ChangeEndpoints);
        let service = LocalService::new((*service.record).clone(), service.exported, endpoints);
        self.set_truth(cluster, key, Some(service))
    }

    // --- Links ---

    fn begin_partition(&mut self) -> Check {
        let (mut a, mut b) = (self.random_cluster(), self.random_cluster());
        let reading = self.conns_where(|conn| conn.in_snapshot && !conn.superseded);
        if let Some(conn) = self.rng.choice(reading).and_then(|id| self.conns.get(&id)) {
            (a, b) = conn.clusters();
        }
        if a == b || self.is_cut(a, b) {
            return Ok(());
        }
        let pair = (a.min(b), a.max(b));
        let mid_snapshot = !self.conns_where(|conn| conn.clusters() == pair && conn.in_snapshot).is_empty();
        self.hits.hit(if mid_snapshot { Kind::PartitionMidSnapshot } else { Kind::Partition });
        self.log(|| format!("c{a} and c{b} lose their links"));
        self.partition(a, b);
        Ok(())
    }

    fn end_partition(&mut self) -> Check {
        let pairs: Vec<_> = self.cut.keys().copied().collect();
        let Some(pair) = self.rng.choice(pairs) else { return Ok(()) };
        self.log(|| format!("c{} and c{} have links again", pair.0, pair.1));
        self.heal(pair);
        Ok(())
    }

    fn switch_session(&mut self) -> Check {
        let importer = self.random_replica();
        let peers: Vec<usize> = self.replica(importer).imports.keys().copied().collect();
        let Some(peer) = self.rng.choice(peers) else { return Ok(()) };
        let accepted = self.clusters[peer].rules.peers.contains_key(&cluster_name(importer.0));
        if self.is_cut(importer.0, peer) || !accepted || self.replica(importer).imports[&peer].conn.is_none() {
            return Ok(());
        }
        self.hits.hit(Kind::SwitchSession);
        let exporter = (peer, self.rng.usize(..self.clusters[peer].replicas.len()));
        self.connect(importer, exporter)
    }

    fn slow_importer(&mut self) -> Check {
        let ids: Vec<u64> = self.conns.keys().copied().collect();
        let until = self.now + Duration::from_secs(self.rng.u64(5..45));
        if let Some(conn) = self.rng.choice(ids).and_then(|id| self.conns.get_mut(&id)) {
            conn.slow_until = until;
            self.hits.hit(Kind::SlowImporter);
        }
        Ok(())
    }

    // --- Configuration ---

    fn set_rules(&mut self, cluster: usize, rules: Rules) -> Check {
        let rules = Arc::new(rules);
        self.clusters[cluster].rules = Arc::clone(&rules);
        for index in 0..self.clusters[cluster].replicas.len() {
            let replica = &mut self.clusters[cluster].replicas[index];
            replica.writer.set_rules(Arc::clone(&rules));
            check::note_offered(replica, &rules);
            let current: Vec<u64> =
                self.replica((cluster, index)).imports.values().filter_map(|peer| peer.conn).collect();
            for id in current {
                let Some(conn) = self.conns.get_mut(&id) else { continue };
                let replica = &mut self.clusters[cluster].replicas[index];
                let now = replica.now(self.now);
                let peer = conn.exporter.0;
                let Some(importing) = replica.imports.get_mut(&peer) else { continue };
                let Some(rules) = rules.peers.get(&cluster_name(peer)) else { continue };
                let actions = conn.import.set_rules(&mut importing.table, rules, now);
                check::table(&importing.table, rules, &self.limits, self.hostile == Some(peer))?;
                self.import_actions(id, actions)?;
            }
            self.set_rules_without_session((cluster, index), &rules)?;
            self.published((cluster, index))?;
        }
        Ok(())
    }

    fn set_rules_without_session(&mut self, index: ReplicaIndex, rules: &Rules) -> Check {
        let peers: Vec<usize> = self.replica(index).imports.keys().copied().collect();
        for peer in peers {
            let replica = &mut self.clusters[index.0].replicas[index.1];
            let Some(importing) = replica.imports.get_mut(&peer) else { continue };
            let Some(rules) = rules.peers.get(&cluster_name(peer)).filter(|_| importing.conn.is_none()) else {
                continue;
            };
            let changes = importing.table.set_rules(rules);
            check::table(&importing.table, rules, &self.limits, self.hostile == Some(peer))?;
            self.apply(index, peer, changes)?;
        }
        Ok(())
    }

    fn change_import_rules(&mut self) -> Check {
        let cluster = self.random_cluster();
        let peers: Vec<usize> = self.peers_of(cluster).collect();
        let Some(peer) = self.rng.choice(peers) else { return Ok(()) };
        let mut rules = (*self.clusters[cluster].rules).clone();
        if let Some(peer) = rules.peers.get_mut(&cluster_name(peer)) {
            Arc::make_mut(peer).import = random_filter(&mut self.rng);
        }
        self.log(|| format!("c{cluster}: other import rules for c{peer}"));
        self.hits.hit(Kind::ImportRules);
        self.set_rules(cluster, rules)
    }

    fn change_export_rules(&mut self) -> Check {
        let cluster = self.random_cluster();
        let peers: Vec<usize> = self.peers_of(cluster).collect();
        let Some(peer) = self.rng.choice(peers) else { return Ok(()) };
        let mut rules = (*self.clusters[cluster].rules).clone();
        if let Some(peer) = rules.peers.get_mut(&cluster_name(peer)) {
            Arc::make_mut(peer).export = random_filter(&mut self.rng);
        }
        self.log(|| format!("c{cluster}: other export rules for c{peer}"));
        self.hits.hit(Kind::ExportRules);
        self.set_rules(cluster, rules)
    }

    fn remove_peer(&mut self) -> Check {
        let cluster = self.random_cluster();
        let peers: Vec<usize> = self.peers_of(cluster).collect();
        let Some(peer) = self.rng.choice(peers) else { return Ok(()) };
        self.log(|| format!("c{cluster}: Peer c{peer} is removed"));
        self.hits.hit(Kind::RemovePeer);
        for id in self.conns_where(|conn| {
            (conn.importer.0, conn.exporter.0) == (cluster, peer)
                || (conn.importer.0, conn.exporter.0) == (peer, cluster)
        }) {
            let Some(conn) = self.conns.get_mut(&id) else { continue };
            if conn.exporter.0 == cluster {
                let actions = conn.export.end(CloseReason::PeerRemoved);
                self.export_actions(id, actions)?;
            }
            // Its links are closed too.
            self.kill(id);
        }
        let name = cluster_name(peer);
        let mut rules = (*self.clusters[cluster].rules).clone();
        rules.peers.remove(&name);
        let steady = Replica::steady(self.now);
        for replica in &mut self.clusters[cluster].replicas {
            replica.imports.remove(&peer);
            replica.disk.remove(&peer);
            replica.writer.apply([Change::Peer { cluster: name.clone(), change: PeerChange::Removed }], steady);
        }
        self.set_rules(cluster, rules)?;
        for replica in &self.clusters[cluster].replicas {
            let snapshot = replica.reader.load();
            let parts = |import: &Arc<eastway_model::Import>| {
                import.parts.iter().any(|part| part.cluster.as_ref() == Some(&name))
            };
            if snapshot.peer(name.as_str()).is_some() || snapshot.imports().any(parts) {
                return Err(format!("I4: removal of Peer {name} leaves something behind"));
            }
        }
        Ok(())
    }

    pub(super) fn add_missing_peers(&mut self, cluster: usize) -> Check {
        let present: Vec<usize> = self.peers_of(cluster).collect();
        let missing: Vec<usize> =
            (0..self.clusters.len()).filter(|peer| *peer != cluster && !present.contains(peer)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        self.hits.hit(Kind::AddPeer);
        let mut rules = (*self.clusters[cluster].rules).clone();
        let accepted_at = Replica::steady(self.now);
        for peer in &missing {
            let peer_rules = self.random_peer_rules(*peer, accepted_at);
            rules.peers.insert(cluster_name(*peer), Arc::new(peer_rules));
        }
        self.set_rules(cluster, rules)?;
        for replica in 0..self.clusters[cluster].replicas.len() {
            for peer in &missing {
                self.add_import((cluster, replica), *peer);
            }
        }
        Ok(())
    }

    fn toggle_subscription(&mut self) -> Check {
        let index = self.random_replica();
        let peers: Vec<usize> = self.replica(index).imports.keys().copied().collect();
        let Some(peer) = self.rng.choice(peers) else { return Ok(()) };
        let key = random_key(&mut self.rng);
        let Some(importing) = self.clusters[index.0].replicas[index.1].imports.get_mut(&peer) else { return Ok(()) };
        let added = importing.wanted.insert(key.clone());
        if !added {
            importing.wanted.remove(&key);
        }
        self.hits.hit(if added { Kind::Subscribe } else { Kind::Unsubscribe });
        let wanted = importing.wanted.clone();
        self.log(|| format!("{index:?}: wants endpoints of {key} of c{peer}: {added}"));
        let Some(importing) = self.clusters[index.0].replicas[index.1].imports.get_mut(&peer) else { return Ok(()) };
        match importing.conn.and_then(|id| Some((id, self.conns.get_mut(&id)?))) {
            Some((id, conn)) => {
                let actions = conn.import.subscribe(&mut importing.table, wanted);
                self.import_actions(id, actions)
            }
            None => {
                let changes = importing.table.set_subscriptions(wanted);
                self.apply(index, peer, changes)
            }
        }
    }

    fn jump_clock(&mut self) -> Check {
        let index = self.random_replica();
        let hour = 3_600_000;
        let jumps = [hour, -hour, 24 * 365 * 10 * hour, -24 * 365 * 10 * hour, 0];
        let jump = jumps[self.rng.usize(..jumps.len())];
        self.replica_mut(index).wall_offset = jump;
        self.log(|| format!("{index:?}: its clock is off by {jump} ms"));
        self.hits.hit(Kind::ClockJump);
        Ok(())
    }

    // --- Disks and restarts ---

    fn save_to_disk(&mut self) {
        let index = self.random_replica();
        let replica = self.replica_mut(index);
        for (peer, importing) in &replica.imports {
            let images = replica.disk.entry(*peer).or_default();
            images.push(importing.table.to_disk());
            if images.len() > 3 {
                images.remove(0);
            }
        }
    }

    fn restart(&mut self) -> Check {
        let index = self.random_replica();
        let disk = [Disk::Newest, Disk::Newest, Disk::Older, Disk::Torn, Disk::Empty][self.rng.usize(..5)];
        self.log(|| format!("{index:?} restarts, disk {disk:?}"));
        self.hits.hit(match disk {
            Disk::Newest => Kind::RestartWithDisk,
            Disk::Older => Kind::RestartFromOlderDisk,
            Disk::Torn => Kind::TornDisk,
            Disk::Empty => Kind::RestartWithoutDisk,
        });
        for id in self.conns_where(|conn| conn.importer == index || conn.exporter == index) {
            self.kill(id);
        }
        let (lag, wall_offset) = (self.replica(index).lag, self.replica(index).wall_offset);
        let mut fresh = self.start_replica(index.0, lag);
        fresh.wall_offset = wall_offset;
        let old = std::mem::replace(self.replica_mut(index), fresh);
        self.replica_mut(index).disk = old.disk;
        self.begin_imports(index);
        for (peer, importing) in old.imports {
            if let Some(new) = self.replica_mut(index).imports.get_mut(&peer) {
                new.wanted.clone_from(&importing.wanted);
            }
            self.restore(index, peer, disk)?;
        }
        Ok(())
    }

    /// A table from disk, as far as there is a good one.
    fn restore(&mut self, index: ReplicaIndex, peer: usize, disk: Disk) -> Check {
        let name = cluster_name(peer);
        let (own, rules) = (cluster_name(index.0), Arc::clone(&self.clusters[index.0].rules));
        let Some(rules) = rules.peers.get(&name).cloned() else { return Ok(()) };
        let images = self.replica(index).disk.get(&peer).cloned().unwrap_or_default();
        let image = match disk {
            Disk::Newest | Disk::Torn => images.last().cloned(),
            Disk::Older => images.first().cloned(),
            Disk::Empty => None,
        };
        let now = self.replica(index).now(self.now);
        let mut changes = Vec::new();
        if let Some(mut image) = image {
            if disk == Disk::Torn {
                let at = self.rng.usize(..image.len());
                if self.rng.bool() {
                    image.truncate(at);
                } else {
                    image[at] ^= 1 << self.rng.u8(..8);
                }
            }
            match ImportTable::from_disk(&image, own, name, &rules, self.limits.clone(), now) {
                Ok(_) if disk == Disk::Torn => return Err("F20: a torn image was read".to_owned()),
                Ok(table) => {
                    check::table(&table, &rules, &self.limits, self.hostile == Some(peer))?;
                    let away = now.wall.since(table.heard_at());
                    changes = table.restore(Replica::steady(self.now).minus(away));
                    if let Some(importing) = self.replica_mut(index).imports.get_mut(&peer) {
                        importing.table = table;
                    }
                }
                Err(error) => self.log(|| format!("{index:?}: {error}")),
            }
        }
        if let Some(importing) = self.replica_mut(index).imports.get_mut(&peer) {
            let wanted = importing.wanted.clone();
            changes.extend(importing.table.set_subscriptions(wanted));
        }
        self.apply(index, peer, changes)
    }
}

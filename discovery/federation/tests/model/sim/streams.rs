//! Streams between replicas: dialling, delivery, and what the sessions at both ends want done.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use eastway_federation::codec::{Decoder, encode};
use eastway_federation::{CloseReason, ExportAction, ExportSession, ImportAction, ImportSession};
use eastway_model::{PeerChange, PeerState};
use eastway_proto::federation::v1 as wire;
use eastway_proto::federation::v1::exporter_message::Body as FromExporter;
use eastway_proto::federation::v1::importer_message::Body as FromImporter;

use super::check;
use super::conn::{Conn, Direction, ReplicaIndex};
use super::hits::Kind;
use super::world::{Check, Cluster, Wake, World, cluster_name};

impl World {
    pub(super) fn dial(&mut self, replica: ReplicaIndex, peer: usize) -> Check {
        let now = self.now;
        let wanted = self
            .replica(replica)
            .imports
            .get(&peer)
            .is_some_and(|importing| importing.conn.is_none() && importing.dial_at <= now);
        if !wanted {
            return Ok(());
        }
        let accepted = self.clusters[peer].rules.peers.contains_key(&cluster_name(replica.0));
        if !accepted || self.is_cut(replica.0, peer) {
            self.redial(replica, peer);
            return Ok(());
        }
        let exporter = (peer, self.rng.usize(..self.clusters[peer].replicas.len()));
        self.connect(replica, exporter)
    }

    pub(super) fn redial(&mut self, replica: ReplicaIndex, peer: usize) {
        let at = self.now + Duration::from_millis(self.rng.u64(200..2_000));
        if let Some(importing) = self.replica_mut(replica).imports.get_mut(&peer) {
            importing.dial_at = at;
            self.wake_at(at, Wake::Dial(replica, peer));
        }
    }

    /// A new stream; the one before, if any, is superseded.
    pub(super) fn connect(&mut self, importer: ReplicaIndex, exporter: ReplicaIndex) -> Check {
        let id = self.next_conn;
        self.next_conn += 1;
        if !self.replica(exporter).synced {
            self.hits.hit(Kind::UnsyncedExporter);
        } else if !self.replica(exporter).lag.is_zero() {
            self.hits.hit(Kind::SnapshotFromLaggingReplica);
        }
        let limits = self.limits.clone();
        let rules = Arc::clone(&self.clusters[importer.0].rules.peers[&cluster_name(exporter.0)]);
        let now = self.replica(importer).now(self.now);
        let Some(importing) = self.clusters[importer.0].replicas[importer.1].imports.get_mut(&exporter.0) else {
            return Ok(());
        };
        let (import, actions) = ImportSession::start(&mut importing.table, &rules, limits.clone(), now);
        if let Some(old) = importing.conn.replace(id)
            && let Some(conn) = self.conns.get_mut(&old)
        {
            conn.superseded = true;
            let closes_at = self.now + Duration::from_millis(self.rng.u64(..2_000));
            self.wake_at(closes_at, Wake::Drop(old));
        }
        let epoch = self.replica(exporter).epoch;
        let export = ExportSession::new(cluster_name(exporter.0), cluster_name(importer.0), epoch, limits);
        let conn = Conn {
            importer,
            exporter,
            import,
            export,
            to_importer: VecDeque::new(),
            to_exporter: VecDeque::new(),
            at_importer: Decoder::new(),
            at_exporter: Decoder::new(),
            latency: Duration::from_micros(self.rng.u64(100..150_000)),
            slow_until: Duration::ZERO,
            import_timer: None,
            export_timer: None,
            named: BTreeSet::new(),
            sequence: 0,
            acknowledged: 0,
            recorded: Vec::new(),
            tampered: false,
            superseded: false,
            in_snapshot: false,
            opened: false,
        };
        self.conns.insert(id, conn);
        self.log(|| format!("conn {id}: {importer:?} imports from {exporter:?}"));
        self.import_actions(id, actions)?;
        self.apply(importer, exporter.0, vec![PeerChange::State(PeerState::Up)])
    }

    pub(super) fn deliver(&mut self, id: u64, direction: Direction) -> Check {
        let Some(conn) = self.conns.get_mut(&id) else { return Ok(()) };
        let (a, b) = conn.clusters();
        if self.cut.contains_key(&(a, b)) {
            // It stays in the queue and is sent again if the links come back.
            return Ok(());
        }
        if direction == Direction::ToImporter && conn.slow_until > self.now {
            let at = conn.slow_until;
            self.wake_at(at, Wake::Deliver(id, direction));
            return Ok(());
        }
        if conn.queue(direction).front().is_none_or(|(at, _)| *at > self.now) {
            return Ok(());
        }
        let Some((_, bytes)) = conn.queue(direction).pop_front() else { return Ok(()) };
        self.hits.messages += 1;
        // A stream has no message borders.
        let cut = if self.rng.u8(..8) == 0 { self.rng.usize(..=bytes.len()) } else { bytes.len() };
        self.receive(id, direction, &bytes[..cut])?;
        self.receive(id, direction, &bytes[cut..])
    }

    pub(super) fn receive(&mut self, id: u64, direction: Direction, bytes: &[u8]) -> Check {
        if let Some(conn) = self.conns.get_mut(&id) {
            match direction {
                Direction::ToImporter => conn.at_importer.push(bytes),
                Direction::ToExporter => conn.at_exporter.push(bytes),
            }
        }
        while let Some(conn) = self.conns.get_mut(&id) {
            match direction {
                Direction::ToImporter => match conn.at_importer.next_message() {
                    Ok(Some(message)) => self.import_message(id, message)?,
                    Ok(None) => break,
                    Err(error) => return self.end_import(id, error.close_reason()),
                },
                Direction::ToExporter => match conn.at_exporter.next_message() {
                    Ok(Some(message)) => self.export_message(id, message)?,
                    Ok(None) => break,
                    Err(error) => {
                        let actions = conn.export.end(error.close_reason());
                        return self.export_actions(id, actions);
                    }
                },
            }
        }
        Ok(())
    }

    pub(super) fn import_message(&mut self, id: u64, message: wire::ExporterMessage) -> Check {
        let Some(conn) = self.conns.get_mut(&id) else { return Ok(()) };
        let Conn { importer, exporter, superseded, .. } = *conn;
        let now = self.clusters[importer.0].replicas[importer.1].now(self.now);
        let Cluster { rules, replicas, .. } = &mut self.clusters[importer.0];
        let rules = &rules.peers[&cluster_name(exporter.0)];
        let Some(importing) = replicas[importer.1].imports.get_mut(&exporter.0) else { return Ok(()) };
        match &message.body {
            Some(FromExporter::Begin(begin)) => {
                conn.in_snapshot = true;
                if begin.buckets != u64::MAX {
                    self.hits.hit(Kind::PartialSnapshot);
                }
            }
            Some(FromExporter::Complete(_)) => conn.in_snapshot = false,
            Some(FromExporter::Unchanged(_)) => self.hits.hit(Kind::Unchanged),
            Some(FromExporter::Open(_) | FromExporter::Chunk(_) | FromExporter::Update(_) | FromExporter::Close(_))
            | None => {}
        }
        let before = check::Before::new(&importing.table);
        let cause = check::Cause::of(&message);
        let actions = conn.import.handle(&mut importing.table, message, now);
        if superseded {
            self.hits.hit(Kind::Reorder);
            before.is_unchanged(&importing.table)?;
        }
        before.after_message(&importing.table, &cause)?;
        let hostile = self.hostile == Some(exporter.0);
        check::table(&importing.table, rules, &self.limits, hostile)?;
        self.import_actions(id, actions)?;
        self.check_conn(id)
    }

    pub(super) fn export_message(&mut self, id: u64, message: wire::ImporterMessage) -> Check {
        let Some(conn) = self.conns.get_mut(&id) else { return Ok(()) };
        if let Some(FromImporter::Ack(ack)) = &message.body
            && ack.sequence <= conn.sequence
        {
            conn.acknowledged = conn.acknowledged.max(ack.sequence);
        }
        let replica = &self.clusters[conn.exporter.0].replicas[conn.exporter.1];
        let snapshot = replica.reader.load_full();
        let actions = conn.export.handle(message, &snapshot, replica.now(self.now));
        self.export_actions(id, actions)?;
        self.check_conn(id)
    }

    pub(super) fn import_timer(&mut self, id: u64) -> Check {
        let Some(conn) = self.conns.get_mut(&id).filter(|conn| conn.import_timer == Some(self.now)) else {
            return Ok(());
        };
        conn.import_timer = None;
        let Conn { importer, exporter, .. } = *conn;
        let replica = &mut self.clusters[importer.0].replicas[importer.1];
        let now = replica.now(self.now);
        let Some(importing) = replica.imports.get_mut(&exporter.0) else { return Ok(()) };
        let before = check::Before::new(&importing.table);
        let actions = conn.import.handle_timeout(&mut importing.table, now);
        before.after_message(&importing.table, &check::Cause::None)?;
        self.import_actions(id, actions)?;
        self.check_conn(id)
    }

    pub(super) fn export_timer(&mut self, id: u64) -> Check {
        let Some(conn) = self.conns.get_mut(&id).filter(|conn| conn.export_timer == Some(self.now)) else {
            return Ok(());
        };
        conn.export_timer = None;
        let replica = &self.clusters[conn.exporter.0].replicas[conn.exporter.1];
        let snapshot = replica.reader.load_full();
        let actions = conn.export.handle_timeout(&snapshot, replica.now(self.now));
        self.export_actions(id, actions)
    }

    pub(super) fn import_actions(&mut self, id: u64, actions: Vec<ImportAction>) -> Check {
        let Some(conn) = self.conns.get(&id) else { return Ok(()) };
        let (importer, peer) = (conn.importer, conn.exporter.0);
        let mut changes = Vec::new();
        for action in actions {
            match action {
                ImportAction::Send(message) => {
                    if matches!(message.body, Some(FromImporter::Resync(_))) {
                        self.hits.hit(Kind::Resync);
                    }
                    let bytes = encode(&message).map_err(|error| format!("importer: {error}"))?;
                    self.transmit(id, Direction::ToExporter, bytes);
                }
                ImportAction::Apply(change) => changes.push(change),
                ImportAction::Rejected { service, reason, count } => {
                    if reason.kind() == "quota" {
                        self.hits.hit(Kind::Quota);
                    }
                    self.log(|| format!("conn {id}: {count} refused: {service:?} {reason}"));
                }
                ImportAction::Close { reason } => {
                    self.log(|| format!("conn {id}: importer closes: {reason}"));
                    self.import_closed(id);
                }
            }
        }
        self.apply(importer, peer, changes)?;
        self.set_import_timer(id);
        Ok(())
    }

    pub(super) fn export_actions(&mut self, id: u64, actions: Vec<ExportAction>) -> Check {
        for action in actions {
            match action {
                ExportAction::Send(message) => {
                    let bytes = encode(&message).map_err(|error| format!("exporter: {error}"))?;
                    let Some(conn) = self.conns.get_mut(&id) else { return Ok(()) };
                    let replica = &self.clusters[conn.exporter.0].replicas[conn.exporter.1];
                    check::sent(conn, replica, &message, &bytes)?;
                    if conn.recorded.len() < 8 {
                        conn.recorded.push(bytes.clone());
                    }
                    self.transmit(id, Direction::ToImporter, bytes);
                }
                ExportAction::Skipped { service, reason } => return Err(format!("{service} skipped: {reason}")),
                ExportAction::Close { reason } => {
                    if matches!(reason, CloseReason::AckTimeout { .. }) {
                        self.hits.hit(Kind::AckTimeout);
                    }
                    self.log(|| format!("conn {id}: exporter closes: {reason}"));
                    self.drop_if_closed(id);
                }
            }
        }
        let Some(conn) = self.conns.get_mut(&id) else { return Ok(()) };
        let next = conn.export.next_timeout().map(|at| at.max(self.now));
        if next != conn.export_timer {
            conn.export_timer = next;
            if let Some(at) = next {
                self.wake_at(at, Wake::ExportTimer(id));
            }
        }
        Ok(())
    }

    pub(super) fn set_import_timer(&mut self, id: u64) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let replica = &self.clusters[conn.importer.0].replicas[conn.importer.1];
        let Some(importing) = replica.imports.get(&conn.exporter.0) else { return };
        let next = conn.import.next_timeout(&importing.table, replica.now(self.now)).map(|at| at.max(self.now));
        if next != conn.import_timer {
            conn.import_timer = next;
            if let Some(at) = next {
                self.wake_at(at, Wake::ImportTimer(id));
            }
        }
    }

    /// Bytes on their way: in order on one stream, in any order between streams.
    pub(super) fn transmit(&mut self, id: u64, direction: Direction, bytes: Bytes) {
        let jitter = Duration::from_micros(self.rng.u64(..20_000));
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let earliest = self.now + conn.latency + jitter;
        let latency = conn.queue(direction).back().map_or(earliest, |(last, _)| earliest.max(*last));
        conn.queue(direction).push_back((latency, bytes));
        self.wake_at(latency, Wake::Deliver(id, direction));
    }

    pub(super) fn end_import(&mut self, id: u64, reason: CloseReason) -> Check {
        let Some(conn) = self.conns.get_mut(&id) else { return Ok(()) };
        let replica = &mut self.clusters[conn.importer.0].replicas[conn.importer.1];
        let Some(importing) = replica.imports.get_mut(&conn.exporter.0) else { return Ok(()) };
        let actions = conn.import.end(&mut importing.table, reason);
        self.import_actions(id, actions)
    }

    pub(super) fn import_closed(&mut self, id: u64) {
        let Some(conn) = self.conns.get(&id) else { return };
        let (importer, peer) = (conn.importer, conn.exporter.0);
        let current = self.replica_mut(importer).imports.get_mut(&peer).filter(|importing| importing.conn == Some(id));
        if let Some(importing) = current {
            importing.conn = None;
            self.redial(importer, peer);
        }
        self.drop_if_closed(id);
    }

    pub(super) fn drop_if_closed(&mut self, id: u64) {
        if self.conns.get(&id).is_some_and(|conn| conn.import.is_closed() && conn.export.is_closed()) {
            self.conns.remove(&id);
        }
    }

    /// A stream ends without a word, as both sides notice.
    pub(super) fn kill(&mut self, id: u64) {
        let Some(conn) = self.conns.remove(&id) else { return };
        let Conn { importer, exporter, .. } = conn;
        let current =
            self.replica_mut(importer).imports.get_mut(&exporter.0).filter(|importing| importing.conn == Some(id));
        if let Some(importing) = current {
            importing.conn = None;
            self.redial(importer, exporter.0);
        }
    }

    pub(super) fn conns_where(&self, choose: impl Fn(&Conn) -> bool) -> Vec<u64> {
        self.conns.iter().filter(|(_, conn)| choose(conn)).map(|(id, _)| *id).collect()
    }
}

//! The invariants, as functions of what a step touched.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use eastway_federation::codec::{LENGTH_FIELD, MAX_MESSAGE};
use eastway_federation::convert::{key_from_wire, service_from_wire};
use eastway_federation::limits::MAX_UNACKNOWLEDGED;
use eastway_federation::{ImportTable, Limits};
use eastway_model::endpoint::EndpointRef;
use eastway_model::rules::{PeerRules, Rules, never_shared};
use eastway_model::{ClusterName, LocalService, ServiceKey, ServiceRecord};
use eastway_proto::federation::v1 as wire;
use eastway_proto::federation::v1::exporter_message::Body;

use super::conn::Conn;
use super::replica::Replica;
use super::truth::{ADDRESS_MARK, ORIGIN};
use super::world::Check;

/// Why services may be gone after a message (I4).
pub(super) enum Cause {
    /// Nothing may be gone.
    None,
    /// These were removed explicitly.
    Removed(BTreeSet<ServiceKey>),
    /// A snapshot was complete.
    Complete,
}

impl Cause {
    pub(super) fn of(message: &wire::ExporterMessage) -> Self {
        match &message.body {
            Some(Body::Complete(_)) => Self::Complete,
            Some(Body::Update(update)) => {
                Self::Removed(update.removed.iter().filter_map(|name| key_from_wire(name).ok()).collect())
            }
            Some(Body::Open(_) | Body::Unchanged(_) | Body::Begin(_) | Body::Chunk(_) | Body::Close(_)) | None => {
                Self::None
            }
        }
    }
}

/// A table before a message.
pub(super) struct Before {
    keys: Vec<ServiceKey>,
    revision: u64,
}

impl Before {
    pub(super) fn new(table: &ImportTable) -> Self {
        Self { keys: table.services().map(|record| record.key.clone()).collect(), revision: table.revision() }
    }

    /// I4, F15: nothing is gone but by removal or a complete snapshot.
    pub(super) fn after_message(&self, table: &ImportTable, cause: &Cause) -> Check {
        let after: BTreeSet<&ServiceKey> = table.services().map(|record| &record.key).collect();
        for gone in self.keys.iter().filter(|key| !after.contains(key)) {
            let explained = match cause {
                Cause::None => false,
                Cause::Removed(removed) => removed.contains(gone),
                Cause::Complete => true,
            };
            if !explained {
                return Err(format!("I4: {gone} of {} is gone without a cause", table.peer()));
            }
        }
        Ok(())
    }

    /// A session that was superseded has changed nothing.
    pub(super) fn is_unchanged(&self, table: &ImportTable) -> Check {
        let same = self.revision == table.revision() && self.keys.len() == table.services().count();
        if same { Ok(()) } else { Err(format!("a superseded session changed the imports of {}", table.peer())) }
    }
}

/// P1, P3, I3, I6, I8 of one table.
pub(super) fn table(table: &ImportTable, rules: &PeerRules, limits: &Limits, hostile: bool) -> Check {
    let mut count = 0;
    for record in table.services() {
        count += 1;
        let key = &record.key;
        if !rules.import.allows(key) || never_shared(key.namespace.as_str()) {
            return Err(format!("P1: {key} of {} is in use against the rules", table.peer()));
        }
        let mut identities = record.groups.iter().flat_map(|group| &group.identities);
        if let Some(foreign) = identities.find(|identity| identity.trust_domain != rules.trust_domain) {
            return Err(format!("P3: {key} of {} has the identity {foreign}", table.peer()));
        }
        let origin = record.annotations.get(ORIGIN).map(|origin| &**origin);
        if !hostile && origin != Some(table.peer().as_str()) {
            return Err(format!("I3: {key} of {} comes from {origin:?}", table.peer()));
        }
        if record.exported_at < rules.accepted_at {
            return Err(format!("I6: {key} of {} was exported before the Peer was accepted", table.peer()));
        }
    }
    if count > limits.services || table.endpoint_count() > limits.endpoints {
        return Err(format!("I8: {count} services, {} endpoints of {}", table.endpoint_count(), table.peer()));
    }
    Ok(())
}

/// I6: local truth is what the registry says, whatever peers say.
pub(super) fn locals(replica: &Replica) -> Check {
    let snapshot = replica.reader.load();
    if !replica.synced {
        return if snapshot.is_local_synced() { Err("I5: synced before the registry".to_owned()) } else { Ok(()) };
    }
    let mut held = snapshot.locals();
    for (key, service) in &replica.view {
        if !held.next().is_some_and(|held| Arc::ptr_eq(held, service) || held == service) {
            return Err(format!("I6: local {key} is not what the registry says"));
        }
    }
    match held.next() {
        Some(extra) => Err(format!("I6: local {} is unknown to the registry", extra.key())),
        None => Ok(()),
    }
}

/// The store has exactly what the table has.
pub(super) fn store_holds_table(replica: &Replica, peer: &ClusterName, table: &ImportTable) -> Check {
    if table.has_pending() {
        return Ok(());
    }
    let snapshot = replica.reader.load();
    let mut count = 0;
    for import in snapshot.imports() {
        let Some(part) = import.parts.iter().find(|part| part.cluster.as_ref() == Some(peer)) else { continue };
        count += 1;
        let record = table.service(&import.key);
        if !record.is_some_and(|record| Arc::ptr_eq(record, &part.record) || *record == part.record) {
            return Err(format!("{} of {peer} is {:?} in the store, {record:?} in the table", import.key, part.record));
        }
        let endpoints = table.endpoints(&import.key);
        if !endpoints.map_or(part.endpoints.is_empty(), |endpoints| *endpoints == part.endpoints) {
            return Err(format!("endpoints of {} of {peer} differ between store and table", import.key));
        }
    }
    if count == table.services().count() {
        return Ok(());
    }
    Err(format!("{count} services of {peer} in the store, {} in the table", table.services().count()))
}

/// Remembers what this process may ever have named to each peer.
pub(super) fn note_offered(replica: &mut Replica, rules: &Rules) {
    for (peer, rules) in &rules.peers {
        let offered = replica.offered.entry(peer.clone()).or_default();
        for (key, service) in &replica.view {
            if service.exported && rules.export.allows(key) && !offered.contains(key) {
                offered.insert(key.clone());
            }
        }
    }
}

/// I1, I3, I5, I7 of one message of an exporter.
pub(super) fn sent(conn: &mut Conn, replica: &Replica, message: &wire::ExporterMessage, bytes: &Bytes) -> Check {
    if bytes.windows(ADDRESS_MARK.len()).any(|window| window == ADDRESS_MARK) {
        return Err("I1: an address crosses".to_owned());
    }
    if !replica.synced && !matches!(message.body, Some(Body::Close(_))) {
        return Err(format!("I5: an exporter that is not synced says {message:?}"));
    }
    let (services, update) = match &message.body {
        Some(Body::Open(_)) => {
            conn.opened = true;
            return Ok(());
        }
        Some(Body::Close(_)) | None => return Ok(()),
        Some(Body::Unchanged(message)) => return in_sequence(conn, message.sequence),
        Some(Body::Begin(message)) => return in_sequence(conn, message.sequence),
        Some(Body::Complete(message)) => return in_sequence(conn, message.sequence),
        Some(Body::Chunk(chunk)) => {
            in_sequence(conn, chunk.sequence)?;
            (&chunk.services, None)
        }
        Some(Body::Update(update)) => {
            in_sequence(conn, update.sequence)?;
            (&update.services, Some(update))
        }
    };
    let nothing = BTreeSet::new();
    let offered = replica.offered.get(&super::world::cluster_name(conn.importer.0)).unwrap_or(&nothing);
    for state in services {
        let (key, _) = service_from_wire(&state.service).map_err(|error| error.to_string())?;
        if !offered.contains(&key) {
            return Err(format!("I3, I7: {key} is named to a peer that it was never offered to"));
        }
        conn.named.insert(key);
    }
    let Some(update) = update else { return Ok(()) };
    let by_name = update.removed.iter();
    let by_name = by_name.chain(update.counts.iter().filter_map(|change| change.service.as_ref()));
    for name in by_name.chain(update.endpoints.iter().filter_map(|part| part.service.as_ref())) {
        let key = key_from_wire(name).map_err(|error| error.to_string())?;
        if !offered.contains(&key) {
            return Err(format!("I7: {key} is named to a peer that it was never offered to"));
        }
    }
    Ok(())
}

fn in_sequence(conn: &mut Conn, sequence: u64) -> Check {
    if !conn.opened || sequence != conn.sequence + 1 {
        return Err(format!("sequence {sequence} after {}", conn.sequence));
    }
    conn.sequence = sequence;
    Ok(())
}

/// I8: what waits is bounded.
pub(super) fn bounds(conn: &Conn, limits: &Limits) -> Check {
    let buffered = conn.at_importer.buffered().max(conn.at_exporter.buffered());
    if buffered > MAX_MESSAGE + LENGTH_FIELD {
        return Err(format!("I8: {buffered} bytes wait for the rest of a message"));
    }
    if conn.tampered {
        return Ok(());
    }
    let unacknowledged = usize::try_from(conn.sequence - conn.acknowledged).unwrap_or(usize::MAX);
    let bytes: usize = conn.to_importer.iter().map(|(_, bytes)| bytes.len()).sum();
    if unacknowledged > MAX_UNACKNOWLEDGED || bytes > limits.unacknowledged_bytes + MAX_MESSAGE {
        return Err(format!("I8: {unacknowledged} messages, {bytes} bytes wait for a slow importer"));
    }
    Ok(())
}

/// What an importer with these rules should see of an exporter with this view and those rules.
pub(super) fn expected<'a>(
    view: &'a BTreeMap<ServiceKey, Arc<LocalService>>,
    given: &PeerRules,
    taken: &PeerRules,
) -> BTreeMap<&'a ServiceKey, &'a LocalService> {
    let crosses = |key: &ServiceKey, service: &LocalService| {
        service.exported && given.export.allows(key) && taken.import.allows(key)
    };
    view.iter().filter(|(key, service)| crosses(key, service)).map(|(key, service)| (key, &**service)).collect()
}

/// The table holds what is expected. A small quota lets it hold a part, and for a while less than it
/// could; `at_last` it does not.
pub(super) fn agrees(
    table: &ImportTable,
    expected: &BTreeMap<&ServiceKey, &LocalService>,
    limits: &Limits,
    at_last: bool,
) -> Check {
    let whole = at_last || limits.services >= 1_000;
    if whole && table.services().count() != expected.len().min(limits.services) {
        let held: Vec<_> = table.services().map(|record| record.key.to_string()).collect();
        let wanted: Vec<_> = expected.keys().map(ToString::to_string).collect();
        return Err(format!("holds {held:?} instead of {wanted:?}"));
    }
    for record in table.services() {
        let Some(service) = expected.get(&record.key) else {
            return Err(format!("{} is held and should not be", record.key));
        };
        if !same_but_time(record, &service.record) {
            return Err(format!("{} is {record:?} instead of {:?}", record.key, service.record));
        }
        let Some(held) = table.endpoints(&record.key) else { continue };
        let wanted = service.endpoints.len();
        let total_fits = limits.endpoints >= 1_000;
        if total_fits && held.len() != wanted {
            return Err(format!("{} has {} endpoints instead of {wanted}", record.key, held.len()));
        }
        for endpoint in held.iter() {
            let of = |id: &str| service.endpoints.iter().find(|local| local.endpoint.id.as_str() == id);
            if !of(endpoint.id).is_some_and(|local| same_endpoint(&endpoint, &local.endpoint)) {
                return Err(format!("{} has {endpoint:?}", record.key));
            }
        }
    }
    Ok(())
}

fn same_but_time(held: &ServiceRecord, truth: &ServiceRecord) -> bool {
    let mut held = held.clone();
    held.exported_at = truth.exported_at;
    held == *truth
}

fn same_endpoint(held: &EndpointRef<'_>, truth: &eastway_model::Endpoint) -> bool {
    let eastway_model::Endpoint { id, hostname, subset, zone, condition, weight, identity, tls } = truth;
    held.id == id.as_str()
        && held.hostname == hostname.as_ref().map(eastway_model::Label::as_str)
        && held.shape.subset == *subset
        && held.shape.zone == *zone
        && held.condition == *condition
        && held.weight == *weight
        && held.shape.identity == *identity
        && held.shape.tls == *tls
}

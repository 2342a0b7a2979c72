//! The store: shards of finished entries, and the writer's side of them.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use hashbrown::{DefaultHashBuilder, HashMap, HashTable};

use crate::entry::{NameEntry, ServiceEntry};
use crate::name::{CLUSTERSET, Fqdn, NameError, ancestors};
use crate::readiness::Readiness;
use crate::wire::{QName, rtype};
use crate::zone::build::{self, Entry};
use crate::zone::lookup::{Resolution, Shape, labels_below_entry, shape};

/// Shards. With 10,000 services one holds about 40 entries, and copying it takes about a
/// microsecond; with 100,000 it is ten times that, still far below the budget of a change.
const SHARDS: usize = 256;

type Shard = HashTable<Arc<Entry>>;

/// A zone we answer for.
#[derive(Debug)]
struct Zone {
    name: Fqdn,
    labels: usize,
    is_clusterset: bool,
}

/// What the SOA and NS records of a zone are made from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Soa<'a> {
    /// The zone's name on the wire.
    pub(crate) zone: &'a [u8],
    /// Seconds since 1970 at the last change.
    pub(crate) serial: u32,
}

/// Everything the server answers with.
#[derive(Debug)]
pub struct ZoneStore {
    shards: Box<[ArcSwap<Shard>]>,
    hasher: DefaultHashBuilder,
    /// Longest names first: the first that fits is the closest.
    zones: ArcSwap<Vec<Zone>>,
    readiness: ArcSwap<Readiness>,
    /// `readiness.local_synced`, where every query looks.
    is_synced: AtomicBool,
    serial: AtomicU32,
    writer: Mutex<Writer>,
}

/// What only the writer knows.
#[derive(Debug, Default)]
struct Writer {
    /// Names that have an entry of their own, by who asked for them.
    services: BTreeSet<Box<[u8]>>,
    names: BTreeSet<Fqdn>,
    zone_names: BTreeSet<Box<[u8]>>,
    /// How many entries lie below a name: it exists as long as there is one.
    below: HashMap<Box<[u8]>, usize>,
}

impl ZoneStore {
    /// A store for `clusterset.local` and `zones`, that is not ready ([`Self::set_readiness`]).
    ///
    /// # Errors
    /// [`NameError::Reserved`] if a zone is, contains or lies in `clusterset.local`.
    pub fn new(zones: impl IntoIterator<Item = Fqdn>) -> Result<Arc<Self>, NameError> {
        let store = Self {
            shards: (0..SHARDS).map(|_| ArcSwap::from_pointee(Shard::new())).collect(),
            hasher: DefaultHashBuilder::default(),
            zones: ArcSwap::default(),
            readiness: ArcSwap::default(),
            is_synced: AtomicBool::new(false),
            serial: AtomicU32::new(now_unix()),
            writer: Mutex::default(),
        };
        store.set_zones(zones, &[])?;
        Ok(Arc::new(store))
    }

    /// Answers for `clusterset.local` and exactly these zones from now on. Names of one's own that
    /// lie in none of them any more are gone. `servers` are the addresses of `ns.dns.<zone>`, the
    /// name server each zone names: needed only where a zone is delegated to this server.
    ///
    /// # Errors
    /// [`NameError::Reserved`] if a zone is, contains or lies in `clusterset.local`; nothing is changed.
    pub fn set_zones(&self, zones: impl IntoIterator<Item = Fqdn>, servers: &[IpAddr]) -> Result<(), NameError> {
        let clusterset = Fqdn::parse(CLUSTERSET)?;
        let mut zones: BTreeSet<Fqdn> = zones.into_iter().collect();
        if let Some(zone) = zones.iter().find(|zone| zone.is_within(&clusterset) || clusterset.is_within(zone)) {
            return Err(NameError::Reserved(zone.clone()));
        }
        zones.insert(clusterset.clone());
        let entries: Vec<_> = zones.iter().flat_map(|zone| build::zone_names(zone, servers)).collect();
        let mut table: Vec<_> = zones
            .into_iter()
            .map(|name| Zone { labels: name.labels(), is_clusterset: name == clusterset, name })
            .collect();
        table.sort_by_key(|zone| std::cmp::Reverse(zone.labels));

        let mut writer = self.lock();
        let mut batch = Batch::default();
        let gone: Vec<_> = writer.names.iter().filter(|name| zone_of(&table, name.wire()).is_none()).cloned().collect();
        for name in gone {
            writer.names.remove(&name);
            batch.remove(name.wire().into());
        }
        for name in std::mem::take(&mut writer.zone_names) {
            batch.remove(name);
        }
        for entry in entries {
            writer.zone_names.insert(entry.key());
            // A name of one's own may be the zone's own name; its entry then serves for both.
            let is_taken = writer.names.iter().any(|name| *name.wire() == *entry.name);
            if is_taken {
                batch.changes.remove(entry.name.as_slice());
            } else {
                batch.put(entry);
            }
        }
        // Zones first: a name must never be in the shards of a zone nobody answers for.
        self.zones.store(Arc::new(table));
        self.publish(&mut writer, batch);
        Ok(())
    }

    /// Says what is known well enough to be denied.
    pub fn set_readiness(&self, readiness: Readiness) {
        let is_synced = readiness.local_synced;
        self.readiness.store(Arc::new(readiness));
        self.is_synced.store(is_synced, Ordering::Release);
    }

    /// Adds a service, or replaces it. Says whether an answer changed.
    ///
    /// # Errors
    /// [`NameError`] if a part of a name is no DNS label; nothing is changed.
    pub fn upsert_service(&self, service: &ServiceEntry) -> Result<bool, NameError> {
        let entry = build::service(service)?;
        let mut writer = self.lock();
        writer.services.insert(entry.key());
        Ok(self.publish(&mut writer, Batch::of(entry)))
    }

    /// Removes a service. Says whether there was one.
    pub fn remove_service(&self, namespace: &str, name: &str) -> bool {
        let Ok(name) = build::service_name(namespace, name) else { return false };
        let mut writer = self.lock();
        writer.services.remove(&name) && self.publish(&mut writer, Batch::without(name))
    }

    /// Adds a name of one's own, or replaces it. Says whether an answer changed.
    ///
    /// # Errors
    /// [`NameError::NotInZone`] if no zone of one's own holds it, [`NameError::Reserved`] if the
    /// zone needs it for itself; nothing is changed.
    pub fn upsert_name(&self, name: &NameEntry) -> Result<bool, NameError> {
        let mut writer = self.lock();
        let entry = self.own_entry(name)?;
        writer.names.insert(name.fqdn.clone());
        Ok(self.publish(&mut writer, Batch::of(entry)))
    }

    /// Removes a name of one's own. Says whether there was one.
    pub fn remove_name(&self, name: &Fqdn) -> bool {
        let mut writer = self.lock();
        if !writer.names.remove(name) {
            return false;
        }
        let batch = self.without_name(name);
        self.publish(&mut writer, batch)
    }

    /// Makes these all services and names of one's own. Each shard is published at most once, and
    /// entries that did not change stay the same objects.
    ///
    /// # Errors
    /// [`NameError`] of the first entry that breaks a rule; nothing is changed.
    pub fn replace_all(&self, services: &[ServiceEntry], names: &[NameEntry]) -> Result<(), NameError> {
        let mut writer = self.lock();
        let services: Vec<_> = services.iter().map(build::service).collect::<Result<_, _>>()?;
        let own = names.iter().map(|name| self.own_entry(name)).collect::<Result<Vec<_>, _>>()?;
        let service_names: BTreeSet<_> = services.iter().map(Entry::key).collect();
        let own_names: BTreeSet<_> = names.iter().map(|name| name.fqdn.clone()).collect();

        let mut batch = Batch::default();
        writer.services.difference(&service_names).for_each(|name| batch.remove(name.clone()));
        for name in writer.names.difference(&own_names) {
            batch.merge(self.without_name(name));
        }
        services.into_iter().chain(own).for_each(|entry| batch.put(entry));
        writer.services = service_names;
        writer.names = own_names;
        self.publish(&mut writer, batch);
        Ok(())
    }

    /// What is to be said about `name` and `qtype`, handed to `then`. Takes no lock.
    pub(crate) fn resolve<R>(
        &self,
        name: &QName,
        qtype: u16,
        now: Instant,
        then: impl FnOnce(Resolution<'_>) -> R,
    ) -> R {
        let zones = self.zones.load();
        let Some(zone) = zones.iter().find(|zone| name.ends_with(zone.name.wire(), zone.labels)) else {
            return then(Resolution::OutOfZone);
        };
        let soa = Soa { zone: zone.name.wire(), serial: self.serial.load(Ordering::Relaxed) };
        let skip = labels_below_entry(name, zone.is_clusterset);
        let key = name.from(skip);
        let shard = self.shard(key).map(ArcSwap::load);
        let entry = shard.as_ref().and_then(|shard| shard.find(self.hash(key), |entry| *entry.name == *key));
        let is_synced = self.is_synced.load(Ordering::Acquire);

        let Some(entry) = entry.filter(|entry| is_synced || entry.always) else {
            return then(self.absent(name, zone, None, is_synced, soa, now));
        };
        if entry.is_pending && shape(name) != Shape::Malformed {
            return then(Resolution::NotReady);
        }
        let node = if skip == 0 { entry.node.as_ref() } else { entry.below.get(name.prefix(skip)) };
        let Some(node) = node else {
            return then(self.absent(name, zone, Some(entry), is_synced, soa, now));
        };
        then(match (node.get(qtype), qtype) {
            (Some(answer), _) => Resolution::Answer(answer),
            (None, rtype::ANY) => Resolution::Any,
            (None, rtype::SOA) if key.len() == soa.zone.len() && skip == 0 => Resolution::Soa(soa),
            (None, rtype::NS) if key.len() == soa.zone.len() && skip == 0 => Resolution::Ns(soa),
            (None, _) => Resolution::NoData(soa),
        })
    }

    /// What is to be said about a name that has no records and is not empty either: that it does
    /// not exist, unless that is not known yet.
    fn absent<'a>(
        &self,
        name: &QName,
        zone: &Zone,
        entry: Option<&Arc<Entry>>,
        is_synced: bool,
        soa: Soa<'a>,
        now: Instant,
    ) -> Resolution<'a> {
        let shape = if zone.is_clusterset { Some(shape(name)) } else { None };
        if shape == Some(Shape::Malformed) {
            // A name tried through a search path must not wait for anybody.
            return Resolution::NxDomain(soa);
        }
        if !is_synced {
            return Resolution::NotReady;
        }
        let text = |label| std::str::from_utf8(label).unwrap_or_default();
        let service = match (shape, entry) {
            (Some(Shape::Service { namespace, name, cluster }), None) => {
                Some((text(namespace), text(name), cluster.map(text)))
            }
            (None, Some(entry)) if entry.node.is_none() => {
                entry.service.as_ref().map(|service| (service.namespace.as_str(), service.name.as_str(), None))
            }
            _ => None,
        };
        let is_pending = service.is_some_and(|(namespace, name, cluster)| {
            let readiness = self.readiness.load();
            readiness.is_pending(namespace, name, cluster, now)
                || entry.is_some() && self.is_pending_service(namespace, name)
        });
        if is_pending { Resolution::NotReady } else { Resolution::NxDomain(soa) }
    }

    /// Whether the service that a name of one's own stands for has no addresses yet.
    fn is_pending_service(&self, namespace: &str, name: &str) -> bool {
        let Ok(key) = build::service_name(namespace, name) else { return false };
        let shard = self.shard(&key).map(ArcSwap::load);
        let entry = shard.as_ref().and_then(|shard| shard.find(self.hash(&key), |entry| *entry.name == *key));
        entry.is_some_and(|entry| entry.is_pending)
    }

    fn own_entry(&self, name: &NameEntry) -> Result<Entry, NameError> {
        let zones = self.zones.load();
        let Some(zone) = zone_of(&zones, name.fqdn.wire()) else {
            return Err(NameError::NotInZone(name.fqdn.clone()));
        };
        let is_server = name.fqdn.to_string() == format!("ns.dns.{}", zone.name);
        if zone.is_clusterset || is_server {
            return Err(NameError::Reserved(name.fqdn.clone()));
        }
        let mut entry = build::own_name(name);
        if name.fqdn == zone.name {
            // The zone's own name exists with or without addresses, and before any of them.
            entry.node = entry.node.or_else(|| Some(build::Node::default()));
        }
        Ok(entry)
    }

    /// The removal of a name of one's own: where it was the zone's own name, that one stays.
    fn without_name(&self, name: &Fqdn) -> Batch {
        let zones = self.zones.load();
        match zone_of(&zones, name.wire()) {
            Some(zone) if zone.name == *name => Batch::of(Entry { always: true, ..Entry::new(name.wire()) }),
            _ => Batch::without(name.wire().into()),
        }
    }

    /// Applies a batch: names that exist through others below them are kept up, and each shard that
    /// changes is copied once and swapped. Says whether any did.
    fn publish(&self, writer: &mut Writer, batch: Batch) -> bool {
        let mut shards: BTreeMap<usize, Shard> = BTreeMap::new();
        for (name, entry) in batch.changes {
            let existed = self.find(&shards, &name).is_some_and(|entry| !entry.is_filler);
            let exists = entry.is_some();
            let is_kept_up = writer.below.contains_key(&name);
            let entry = entry.or_else(|| is_kept_up.then(|| Entry::filler(&name)));
            self.change(&mut shards, &name, entry.map(Arc::new));
            if existed == exists {
                continue;
            }
            for above in ancestors(&name).skip(1) {
                if !writer.count_below(above, exists) {
                    continue;
                }
                match (exists, self.find(&shards, above)) {
                    (true, None) => self.change(&mut shards, above, Some(Arc::new(Entry::filler(above)))),
                    (false, Some(entry)) if entry.is_filler => self.change(&mut shards, above, None),
                    _ => {}
                }
            }
        }
        let is_changed = !shards.is_empty();
        for (index, shard) in shards {
            if let Some(slot) = self.shards.get(index) {
                slot.store(Arc::new(shard));
            }
        }
        if is_changed {
            self.serial.store(now_unix(), Ordering::Relaxed);
        }
        is_changed
    }

    /// Puts `entry` in the place of `name` in a copy of its shard, unless it is there already.
    fn change(&self, shards: &mut BTreeMap<usize, Shard>, name: &[u8], entry: Option<Arc<Entry>>) {
        if self.find(shards, name).as_deref() == entry.as_deref() {
            return;
        }
        let (index, hash) = (self.index(name), self.hash(name));
        let Some(slot) = self.shards.get(index) else { return };
        let shard = shards.entry(index).or_insert_with(|| Shard::clone(&slot.load()));
        if let Ok(found) = shard.find_entry(hash, |entry| *entry.name == *name) {
            found.remove();
        }
        if let Some(entry) = entry {
            shard.insert_unique(hash, entry, |entry| self.hash(&entry.name));
        }
    }

    /// The entry of `name`, as it is after the changes made so far.
    fn find(&self, shards: &BTreeMap<usize, Shard>, name: &[u8]) -> Option<Arc<Entry>> {
        let (index, hash) = (self.index(name), self.hash(name));
        let same = |entry: &Arc<Entry>| *entry.name == *name;
        match shards.get(&index) {
            Some(shard) => shard.find(hash, same).cloned(),
            None => self.shards.get(index)?.load().find(hash, same).cloned(),
        }
    }

    fn hash(&self, name: &[u8]) -> u64 {
        self.hasher.hash_one(name)
    }

    fn index(&self, name: &[u8]) -> usize {
        // The table uses the low bits of the hash and its top seven; these are neither.
        usize::try_from(self.hash(name) >> 40).unwrap_or(0) % SHARDS
    }

    fn shard(&self, name: &[u8]) -> Option<&ArcSwap<Shard>> {
        self.shards.get(self.index(name))
    }

    fn lock(&self) -> MutexGuard<'_, Writer> {
        // A panic while publishing leaves whole shards behind, each consistent in itself.
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Writer {
    /// Counts an entry below `name` in or out. Says whether `name` came to have one, or lost its last.
    fn count_below(&mut self, name: &[u8], is_added: bool) -> bool {
        if is_added {
            let count = self.below.entry(name.into()).or_insert(0);
            *count += 1;
            return *count == 1;
        }
        let Some(count) = self.below.get_mut(name) else { return false };
        *count = count.saturating_sub(1);
        if *count > 0 {
            return false;
        }
        self.below.remove(name);
        true
    }
}

/// Changes to be published at once, the last one of a name counting.
#[derive(Debug, Default)]
struct Batch {
    changes: BTreeMap<Box<[u8]>, Option<Entry>>,
}

impl Batch {
    fn of(entry: Entry) -> Self {
        let mut batch = Self::default();
        batch.put(entry);
        batch
    }

    fn without(name: Box<[u8]>) -> Self {
        let mut batch = Self::default();
        batch.remove(name);
        batch
    }

    fn put(&mut self, entry: Entry) {
        self.changes.insert(entry.key(), Some(entry));
    }

    fn remove(&mut self, name: Box<[u8]>) {
        self.changes.insert(name, None);
    }

    fn merge(&mut self, other: Self) {
        self.changes.extend(other.changes);
    }
}

fn zone_of<'a>(zones: &'a [Zone], name: &[u8]) -> Option<&'a Zone> {
    zones.iter().find(|zone| crate::wire::is_within(name, zone.name.wire()))
}

fn now_unix() -> u32 {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    // Serials wrap (RFC 1982); the low 32 bits are the serial.
    u32::try_from(seconds & 0xffff_ffff).unwrap_or(0)
}

#[cfg(test)]
mod tests;

//! What an importer has been sent.

use std::collections::BTreeMap;
use std::sync::Arc;

use eastway_model::{ServiceKey, ServiceRecord};
use eastway_proto::federation::v1 as wire;
use prost::Message;

use crate::convert::{EncodedService, MAX_RECORD, counts_to_wire, key_to_wire};
use crate::digest::{ServiceHash, ServicesDigest, StaticHash, static_hash};
use crate::reject::RejectReason;

/// The records sent, with their digest.
#[derive(Debug, Default)]
pub(super) struct Sent {
    services: BTreeMap<ServiceKey, SentService>,
    digest: ServicesDigest,
}

#[derive(Debug)]
struct SentService {
    record: Arc<ServiceRecord>,
    static_hash: StaticHash,
    hash: ServiceHash,
}

impl Sent {
    pub(super) fn digest(&self) -> &ServicesDigest {
        &self.digest
    }

    pub(super) fn has(&self, key: &ServiceKey) -> bool {
        self.services.contains_key(key)
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &ServiceKey> {
        self.services.keys()
    }

    /// The service as it crosses, encoded again.
    pub(super) fn encode(&self, key: &ServiceKey) -> Option<wire::ServiceState> {
        self.services.get(key).map(|sent| EncodedService::new(&sent.record).into_wire())
    }

    /// Notes a record as sent.
    pub(super) fn insert(&mut self, record: &Arc<ServiceRecord>) -> Result<(), RejectReason> {
        let encoded = EncodedService::new(record);
        self.insert_encoded(record, &encoded)
    }

    fn insert_encoded(&mut self, record: &Arc<ServiceRecord>, encoded: &EncodedService) -> Result<(), RejectReason> {
        if encoded.service.len() > MAX_RECORD {
            return Err(RejectReason::TooLarge(encoded.service.len()));
        }
        let static_hash = static_hash(&encoded.service);
        let hash = ServiceHash::new(&static_hash, &encoded.counts);
        self.remove(&record.key);
        self.digest.add(&record.key, &hash);
        self.services.insert(record.key.clone(), SentService { record: Arc::clone(record), static_hash, hash });
        Ok(())
    }

    fn remove(&mut self, key: &ServiceKey) -> bool {
        let Some(sent) = self.services.remove(key) else { return false };
        self.digest.remove(key, &sent.hash);
        true
    }

    /// Adds to `update` what turns the sent record into `current` and notes that as sent. Returns
    /// the bytes added.
    pub(super) fn compare(
        &mut self,
        key: &ServiceKey,
        current: Option<&Arc<ServiceRecord>>,
        update: &mut wire::Update,
    ) -> Result<usize, RejectReason> {
        let Some(current) = current else {
            if !self.remove(key) {
                return Ok(0);
            }
            let name = key_to_wire(key);
            let size = name.encoded_len() + FIELD;
            update.removed.push(name);
            return Ok(size);
        };
        let known = self.services.get(key);
        if known.is_some_and(|sent| Arc::ptr_eq(&sent.record, current)) {
            return Ok(0);
        }
        let encoded = EncodedService::new(current);
        if let Some(sent) = known
            && sent.static_hash == static_hash(&encoded.service)
        {
            let changed = changed_counts(&counts_to_wire(&sent.record), &encoded.counts);
            self.insert_encoded(current, &encoded)?;
            if changed.is_empty() {
                return Ok(0);
            }
            let change = wire::CountsUpdate { service: Some(key_to_wire(key)), changed };
            let size = change.encoded_len() + FIELD;
            update.counts.push(change);
            return Ok(size);
        }
        self.insert_encoded(current, &encoded)?;
        let state = encoded.into_wire();
        let size = state.encoded_len() + FIELD;
        update.services.push(state);
        Ok(size)
    }
}

/// Tag and length of a repeated message, at most.
const FIELD: usize = 4;

fn changed_counts(old: &[wire::GroupCount], new: &[wire::GroupCount]) -> Vec<wire::IndexedCount> {
    let pairs = (0_u32..).zip(old.iter().zip(new));
    pairs
        .filter(|(_, (old, new))| old != new)
        .map(|(group, (_, new))| wire::IndexedCount { group, count: Some(*new) })
        .collect()
}

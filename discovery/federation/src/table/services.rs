//! The services of a table, and the snapshot that is about to replace them.

use std::collections::BTreeMap;
use std::sync::Arc;

use eastway_model::rules::PeerRules;
use eastway_model::{ServiceKey, ServiceRecord, UnixMillis};
use eastway_proto::federation::v1 as wire;

use crate::convert::{self, Texts};
use crate::digest::{ServiceHash, ServicesDigest, StaticHash, bucket_of, static_hash};
use crate::limits::Now;
use crate::reject::RejectReason;

/// One service that the peer exports, taken or refused.
#[derive(Clone, Debug)]
pub(crate) struct HeldService {
    /// Of the record as the peer sent it.
    pub(crate) static_hash: StaticHash,
    /// Counts as the peer sent them.
    pub(crate) counts: Vec<wire::GroupCount>,
    /// Time of export as the peer claims it. The record has the clamped one, and keeps it for as
    /// long as the claim stays: a reconnect must not make a service younger.
    pub(crate) claimed_at: UnixMillis,
    /// The record in use: the newest good one.
    pub(crate) record: Option<Arc<ServiceRecord>>,
    /// Why the newest version was refused.
    pub(crate) refused: Option<RejectReason>,
}

impl HeldService {
    pub(crate) fn hash(&self) -> ServiceHash {
        ServiceHash::new(&self.static_hash, &self.counts)
    }
}

/// What reading one record depends on.
pub(crate) struct Reading<'a> {
    pub(crate) rules: &'a PeerRules,
    pub(crate) texts: &'a mut Texts,
    pub(crate) now: Now,
}

/// Reads one service as it came. `prior` is what the table holds of the same name.
///
/// The error is for records whose name is not even known. A refused record is no error: it is held
/// for its digest, beside the last good version.
pub(crate) fn read_service<'a>(
    state: wire::ServiceState,
    prior: impl FnOnce(&ServiceKey) -> Option<&'a HeldService>,
    reading: &mut Reading<'_>,
) -> Result<(ServiceKey, HeldService), RejectReason> {
    let wire::ServiceState { service, counts } = state;
    let (key, body) = convert::service_from_wire(&service)?;
    let prior = prior(&key);
    let static_hash = static_hash(&service);
    let claimed_at = UnixMillis(body.exported_at_ms);
    let refuse = |refused, record| HeldService {
        static_hash,
        counts: counts.clone(),
        claimed_at,
        record,
        refused: Some(refused),
    };
    if !reading.rules.import.allows(&key) {
        let held = refuse(RejectReason::NotAllowed, None);
        return Ok((key, held));
    }
    let last_good = prior.and_then(|prior| prior.record.as_ref());
    let same = prior.filter(|prior| prior.static_hash == static_hash && prior.refused.is_none());
    let result = match (same, last_good) {
        (Some(prior), Some(record)) if prior.counts == counts => Ok(Arc::clone(record)),
        (Some(_), Some(record)) => convert::record_with_counts(record, &counts).map(Arc::new),
        _ => {
            let kept = prior.filter(|prior| prior.claimed_at == claimed_at).and(last_good).map(|good| good.exported_at);
            let exported_at = kept.unwrap_or_else(|| clamp(claimed_at, reading.rules.accepted_at, reading.now));
            let domain = &reading.rules.trust_domain;
            convert::record_from_wire(key.clone(), body, &counts, exported_at, domain, reading.texts).map(Arc::new)
        }
    };
    let held = match result {
        Ok(record) => HeldService { static_hash, counts, claimed_at, record: Some(record), refused: None },
        Err(reason) => refuse(reason, last_good.cloned()),
    };
    Ok((key, held))
}

/// Distrust of a peer's clock (design §7): the future is now, and nothing was exported to us before
/// the Peer was accepted.
pub(crate) fn clamp(claimed: UnixMillis, accepted_at: UnixMillis, now: Now) -> UnixMillis {
    claimed.min(now.wall).max(accepted_at)
}

/// The services of a table with their digest.
#[derive(Debug, Default)]
pub(crate) struct Services {
    held: BTreeMap<ServiceKey, HeldService>,
    digest: ServicesDigest,
    in_use: usize,
    untracked: bool,
    over_quota: bool,
}

impl Services {
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&ServiceKey, &HeldService)> {
        self.held.iter()
    }

    pub(crate) fn get(&self, key: &ServiceKey) -> Option<&HeldService> {
        self.held.get(key)
    }

    pub(crate) fn record(&self, key: &ServiceKey) -> Option<&Arc<ServiceRecord>> {
        self.held.get(key)?.record.as_ref()
    }

    pub(crate) fn digest(&self) -> &ServicesDigest {
        &self.digest
    }

    /// Number of records in use.
    pub(crate) fn in_use(&self) -> usize {
        self.in_use
    }

    /// The peer sent something that is in no digest: what is held is not all it sent.
    pub(crate) fn untracked(&self) -> bool {
        self.untracked
    }

    pub(crate) fn set_untracked(&mut self) {
        self.untracked = true;
    }

    /// Services were refused because the quota was used up.
    pub(crate) fn over_quota(&self) -> bool {
        self.over_quota
    }

    /// Takes a service, unless it would be a new one beyond the quota. As many refused ones are
    /// held for their digest, and the others forgotten: they never take room from good ones.
    pub(crate) fn insert(&mut self, key: ServiceKey, held: HeldService, quota: usize) -> Result<(), RejectReason> {
        let known = self.held.get(&key);
        let was_used = known.is_some_and(|known| known.record.is_some());
        if held.record.is_some() && !was_used && self.in_use >= quota {
            self.untracked = true;
            self.over_quota = true;
            return Err(RejectReason::Quota { what: "services", max: quota });
        }
        if held.record.is_none() && known.is_none() && self.held.len() - self.in_use >= quota {
            self.untracked = true;
            return Ok(());
        }
        self.remove(&key);
        self.digest.add(&key, &held.hash());
        self.in_use += usize::from(held.record.is_some());
        self.held.insert(key, held);
        Ok(())
    }

    /// Drops a service; says whether a record was in use.
    pub(crate) fn remove(&mut self, key: &ServiceKey) -> bool {
        let Some(held) = self.held.remove(key) else { return false };
        self.digest.remove(key, &held.hash());
        self.in_use -= usize::from(held.record.is_some());
        held.record.is_some()
    }
}

/// A snapshot on its way in. Nothing of it counts before it is complete (fault F15).
#[derive(Debug)]
pub(crate) struct Staging {
    /// Which buckets it has.
    buckets: u64,
    services: BTreeMap<ServiceKey, HeldService>,
    /// New services in use, in the order they came: the last ones go if there are too many.
    newcomers: Vec<ServiceKey>,
    /// Refused ones that are held for their digest.
    refused: usize,
    untracked: bool,
    over_quota: bool,
}

/// What became of a complete snapshot.
#[derive(Debug)]
pub(crate) struct Swap {
    /// Services that were in use and are gone.
    pub(crate) gone: Vec<ServiceKey>,
    /// New services that the quota refused.
    pub(crate) refused: Vec<ServiceKey>,
}

impl Staging {
    pub(crate) fn new(buckets: u64) -> Self {
        Self {
            buckets,
            services: BTreeMap::new(),
            newcomers: Vec::new(),
            refused: 0,
            untracked: false,
            over_quota: false,
        }
    }

    /// Services that wait for the end.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.services.len()
    }

    /// Reads one record; `services` is what the table holds.
    pub(crate) fn take(
        &mut self,
        state: wire::ServiceState,
        services: &Services,
        quota: usize,
        reading: &mut Reading<'_>,
    ) -> Result<(), (Option<ServiceKey>, RejectReason)> {
        let read = read_service(state, |key| services.get(key), reading);
        let (key, held) = read.map_err(|reason| {
            self.untracked = true;
            (None, reason)
        })?;
        if self.services.contains_key(&key) || (self.buckets >> bucket_of(&key)) & 1 == 0 {
            self.untracked = true;
            return Err((Some(key), RejectReason::Duplicate));
        }
        let newcomer = held.record.is_some() && services.record(&key).is_none();
        // Which of the table's services stay is known at the end only, so a full quota of new ones
        // has to wait here.
        if newcomer && self.newcomers.len() >= quota {
            self.untracked = true;
            self.over_quota = true;
            return Err((Some(key), RejectReason::Quota { what: "services", max: quota }));
        }
        let reason = held.refused.clone();
        if newcomer {
            self.newcomers.push(key.clone());
        }
        if held.record.is_none() && self.refused >= quota {
            self.untracked = true;
        } else {
            self.refused += usize::from(held.record.is_none());
            self.services.insert(key.clone(), held);
        }
        reason.map_or(Ok(()), |reason| Err((Some(key), reason)))
    }

    /// Puts the snapshot in place of the services of its buckets, if the digest is right.
    pub(crate) fn complete(self, services: &mut Services, digest: &[u8], quota: usize) -> Result<Swap, DigestMismatch> {
        let leaves = |key: &ServiceKey| (self.buckets >> bucket_of(key)) & 1 == 1;
        let old: Vec<ServiceKey> = services.held.keys().filter(|key| leaves(key)).cloned().collect();
        let mut after = services.digest.clone();
        for (key, held) in old.iter().filter_map(|key| Some((key, services.held.get(key)?))) {
            after.remove(key, &held.hash());
        }
        for (key, held) in &self.services {
            after.add(key, &held.hash());
        }
        if !self.untracked && after.to_bytes() != digest {
            return Err(DigestMismatch);
        }
        let mut swap = Swap { gone: Vec::new(), refused: Vec::new() };
        for key in old {
            if services.remove(&key) && self.services.get(&key).is_none_or(|held| held.record.is_none()) {
                swap.gone.push(key);
            }
        }
        services.untracked = self.untracked;
        services.over_quota = self.over_quota;
        let mut staged = self.services;
        let newcomers: Vec<_> = self.newcomers.into_iter().filter_map(|key| staged.remove_entry(&key)).collect();
        // Existing ones first: they keep their place.
        for (key, held) in staged.into_iter().chain(newcomers) {
            if services.insert(key.clone(), held, quota).is_err() {
                swap.refused.push(key);
            }
        }
        Ok(swap)
    }
}

/// The digest of a complete snapshot is not that of what arrived.
#[derive(Debug)]
pub(crate) struct DigestMismatch;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i6_a_claimed_time_is_clamped() {
        let at = |wall| Now { wall: UnixMillis(wall), ..Now::default() };
        let cases = [(500, 500), (5_000, 1_000), (50, 100), (100, 100), (1_000, 1_000), (u64::MAX, 1_000), (0, 100)];
        for (claimed, expected) in cases {
            assert_eq!(clamp(UnixMillis(claimed), UnixMillis(100), at(1_000)), UnixMillis(expected), "{claimed}");
        }
        assert_eq!(clamp(UnixMillis(50), UnixMillis(100), at(10)), UnixMillis(100), "our own clock went back");
    }
}

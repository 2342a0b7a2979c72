//! Updates: changes only, applied at once to the table and soon to the store.

use bytes::Bytes;
use eastway_model::{EndpointId, ServiceKey};
use eastway_proto::federation::v1 as wire;

use super::{ImportAction, ImportSession, Phase, QUOTA_RETRY, Rejections};
use crate::convert::{key_from_wire, record_with_counts};
use crate::limits::Now;
use crate::reject::RejectReason;
use crate::table::{ImportTable, Listing, Reading, Received, Source, Subscribed, read_service};

/// A message does not fit what was said before: a whole snapshot is needed.
struct OutOfSequence;

/// Changes of one subscribed service.
struct Changes {
    upserts: Vec<Bytes>,
    removed: Vec<String>,
}

impl ImportSession {
    pub(super) fn update(
        &mut self,
        table: &mut ImportTable,
        update: wire::Update,
        now: Now,
        actions: &mut Vec<ImportAction>,
    ) {
        if !matches!(self.phase, Phase::Live) {
            return self.resync("OUT_OF_SEQUENCE", now, actions);
        }
        let wire::Update { sequence, services, removed, counts, endpoints } = update;
        let in_endpoints: usize = endpoints.iter().map(|part| part.upserts.len() + part.removed.len() + 1).sum();
        self.records.take(services.len() + removed.len() + counts.len() + in_endpoints, now);
        let mut rejections = Rejections::default();
        for state in services {
            self.upsert(table, state, now, &mut rejections);
        }
        for name in &removed {
            match key_from_wire(name) {
                Ok(key) => remove(table, &key),
                Err(reason) => rejections.add(None, reason),
            }
        }
        for change in &counts {
            if let Err((key, reason)) = apply_counts(table, change) {
                table.services.set_untracked();
                rejections.add(key, reason);
            }
        }
        let mut fits = true;
        if !endpoints.is_empty() {
            let mut total = table.endpoint_count();
            for part in endpoints {
                fits &= self.endpoints(table, part, &mut total, &mut rejections).is_ok();
            }
        }
        rejections.report(actions);
        table.source = Some(Source { epoch: self.epoch, sequence });
        table.touch();
        if fits {
            self.want_refused(table, now);
        } else {
            self.resync("OUT_OF_SEQUENCE", now, actions);
        }
    }

    /// A quota that refused services has room again: ask for everything once in a while.
    pub(super) fn want_refused(&mut self, table: &ImportTable, now: Now) {
        let room = table.services.over_quota() && table.services.in_use() < self.limits.services;
        if room && self.resync_wanted.is_none() {
            let at = self.resync_asked_at.unwrap_or_default().max(now.mono) + QUOTA_RETRY;
            self.resync_wanted = Some((at, "QUOTA has room"));
        }
    }

    fn upsert(&self, table: &mut ImportTable, state: wire::ServiceState, now: Now, rejections: &mut Rejections) {
        let mut reading = Reading { rules: &self.rules, texts: &mut table.texts, now };
        let (key, held) = match read_service(state, |key| table.services.get(key), &mut reading) {
            Ok(read) => read,
            Err(reason) => {
                table.services.set_untracked();
                return rejections.add(None, reason);
            }
        };
        if let Some(reason) = &held.refused {
            rejections.add(Some(key.clone()), reason.clone());
        }
        let before = table.services.record(&key).cloned();
        if let Err(reason) = table.services.insert(key.clone(), held, self.limits.services) {
            return rejections.add(Some(key), reason);
        }
        let after = table.services.record(&key);
        if before.as_ref() == after {
            return;
        }
        if after.is_none() {
            table.forget_endpoints(&key);
        }
        table.pending.services.insert(key);
    }

    /// One service's part of an update. `total` counts the endpoint records of the table.
    fn endpoints(
        &mut self,
        table: &mut ImportTable,
        part: wire::EndpointsUpdate,
        total: &mut usize,
        rejections: &mut Rejections,
    ) -> Result<(), OutOfSequence> {
        let wire::EndpointsUpdate { service, upserts, removed, begin, end, unchanged, digest } = part;
        let key = match key_from_wire(&service.unwrap_or_default()) {
            Ok(key) => key,
            Err(reason) => {
                rejections.add(None, reason);
                return Ok(());
            }
        };
        let in_use = table.services.record(&key).is_some();
        let Some(subscribed) = table.subscriptions.get_mut(&key) else {
            // It was sent before our unsubscription arrived.
            return Ok(());
        };
        if !in_use {
            // Refused services have no endpoints either (P1).
            rejections.add(Some(key), RejectReason::UnknownService);
            return Ok(());
        }
        if unchanged {
            // Told to the store again: it may have withdrawn them meanwhile.
            subscribed.digest_held().ok_or(OutOfSequence)?;
            table.pending.endpoints.entry(key).or_default().extend(subscribed.ids());
            return Ok(());
        }
        let others = total.saturating_sub(subscribed.endpoints.len());
        if begin {
            self.listings.insert(key.clone(), Listing::default());
        }
        let domain = &self.rules.trust_domain;
        let mut read = |encoded: &Bytes| Received::read(encoded, domain, &mut table.texts);
        let changed = if self.listings.contains_key(&key) {
            let received: Vec<_> = upserts.iter().map(&mut read).collect();
            let end = end.then_some(&digest);
            self.listing(&key, subscribed, received, end, others, rejections)?
        } else if subscribed.listed {
            let changes = Changes { upserts, removed };
            apply_changes(&key, subscribed, &changes, read, self.limits.endpoints.saturating_sub(*total), rejections)
        } else {
            return Err(OutOfSequence);
        };
        *total = others + subscribed.endpoints.len();
        if !changed.is_empty() {
            table.pending.endpoints.entry(key).or_default().extend(changed);
        }
        Ok(())
    }

    /// A part of a listing; with `end` its digest, it takes the place of what was held.
    fn listing(
        &mut self,
        key: &ServiceKey,
        subscribed: &mut Subscribed,
        received: Vec<Result<Received, RejectReason>>,
        end: Option<&Bytes>,
        others: usize,
        rejections: &mut Rejections,
    ) -> Result<Vec<EndpointId>, OutOfSequence> {
        let quota = self.limits.endpoints;
        let room = quota.saturating_sub(others);
        // Listings are outside the table: all of them together stay below twice its quota.
        let staged: usize = self.listings.values().map(Listing::len).sum();
        let mut bound = quota.saturating_mul(2).saturating_sub(staged);
        let Some(listing) = self.listings.get_mut(key) else { return Err(OutOfSequence) };
        for received in received {
            let result =
                if bound == 0 { listing.refuse(quota) } else { listing.take(received, subscribed, room, quota) };
            bound = bound.saturating_sub(1);
            if let Err(reason) = result {
                rejections.add(Some(key.clone()), reason);
            }
        }
        let Some(digest) = end else { return Ok(Vec::new()) };
        let Some(listing) = self.listings.remove(key) else { return Err(OutOfSequence) };
        let ended = listing.end(subscribed, digest, room).ok_or(OutOfSequence)?;
        for _ in 0..ended.refused {
            rejections.add(Some(key.clone()), RejectReason::Quota { what: "endpoints", max: quota });
        }
        Ok(ended.changed.into_iter().collect())
    }
}

/// Changes after a listing. `left` is how many new records the quota has room for.
fn apply_changes(
    key: &ServiceKey,
    subscribed: &mut Subscribed,
    changes: &Changes,
    read: impl FnMut(&Bytes) -> Result<Received, RejectReason>,
    mut left: usize,
    rejections: &mut Rejections,
) -> Vec<EndpointId> {
    let removed: Vec<EndpointId> = changes.removed.iter().filter_map(|id| EndpointId::parse(id)).collect();
    let mut changed = Vec::with_capacity(changes.upserts.len());
    for received in changes.upserts.iter().map(read) {
        let received = match received {
            Ok(received) if subscribed.knows(&received.id) => received,
            Ok(received) if left > 0 => {
                left -= 1;
                received
            }
            Ok(_) => {
                subscribed.untracked = true;
                rejections.add(Some(key.clone()), RejectReason::Quota { what: "endpoints", max: left });
                continue;
            }
            Err(reason) => {
                subscribed.untracked = true;
                rejections.add(Some(key.clone()), reason);
                continue;
            }
        };
        if let Err(reason) = &received.endpoint {
            rejections.add(Some(key.clone()), reason.clone());
        }
        changed.push(received);
    }
    subscribed.apply(changed, &removed).into_iter().collect()
}

/// Removal of what is not held is no error.
fn remove(table: &mut ImportTable, key: &ServiceKey) {
    if table.services.remove(key) {
        table.forget_endpoints(key);
        table.pending.services.insert(key.clone());
    }
}

fn apply_counts(
    table: &mut ImportTable,
    change: &wire::CountsUpdate,
) -> Result<(), (Option<ServiceKey>, RejectReason)> {
    let wire::CountsUpdate { service, changed } = change;
    let key = key_from_wire(&service.clone().unwrap_or_default()).map_err(|reason| (None, reason))?;
    let Some(mut held) = table.services.get(&key).cloned() else {
        return Err((Some(key), RejectReason::UnknownService));
    };
    for wire::IndexedCount { group, count } in changed {
        let slot = usize::try_from(*group).ok().and_then(|index| held.counts.get_mut(index));
        let Some(slot) = slot else {
            return Err((Some(key), RejectReason::OutOfRange { field: "group", value: u64::from(*group) }));
        };
        *slot = count.unwrap_or_default();
    }
    let mut refused = None;
    // Counts of a version that was refused belong to no record in use.
    if held.refused.is_none()
        && let Some(record) = &held.record
    {
        match record_with_counts(record, &held.counts) {
            Ok(record) => {
                held.record = Some(record.into());
                table.pending.services.insert(key.clone());
            }
            Err(reason) => {
                held.refused = Some(reason.clone());
                refused = Some(reason);
            }
        }
    }
    let quota = table.limits.services;
    table.services.insert(key.clone(), held, quota).map_err(|reason| (Some(key.clone()), reason))?;
    refused.map_or(Ok(()), |reason| Err((Some(key), reason)))
}

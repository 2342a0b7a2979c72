//! Endpoint counts of a local service, kept up to date one endpoint at a time.

use std::collections::BTreeMap;

use crate::endpoint::{LocalEndpoint, LocalEndpoints, Subset, TlsMode, WorkloadIdentity, Zone};
use crate::service::EndpointGroup;

/// The counts behind [`EndpointGroup`]s.
#[derive(Clone, Debug, Default)]
pub struct GroupIndex {
    groups: BTreeMap<GroupKey, Counts>,
}

/// Order of the published groups: (zone, subset, tls).
type GroupKey = (Option<Zone>, Subset, TlsMode);

#[derive(Clone, Debug, Default)]
struct Counts {
    endpoints: u32,
    ready: u32,
    draining: u32,
    weight: u64,
    identities: BTreeMap<WorkloadIdentity, u32>,
}

impl GroupIndex {
    /// Counts from nothing.
    #[must_use]
    pub fn of(endpoints: &LocalEndpoints) -> Self {
        let mut index = Self::default();
        endpoints.iter().for_each(|endpoint| index.add(endpoint));
        index
    }

    /// Counts one endpoint more.
    pub fn add(&mut self, endpoint: &LocalEndpoint) {
        let endpoint = &endpoint.endpoint;
        let counts = self.groups.entry((endpoint.zone.clone(), endpoint.subset.clone(), endpoint.tls)).or_default();
        counts.endpoints = counts.endpoints.saturating_add(1);
        if endpoint.condition.ready {
            counts.ready = counts.ready.saturating_add(1);
            counts.weight = counts.weight.saturating_add(u64::from(endpoint.weight));
        }
        if endpoint.condition.is_draining() {
            counts.draining = counts.draining.saturating_add(1);
        }
        if let Some(identity) = &endpoint.identity {
            *counts.identities.entry(identity.clone()).or_default() += 1;
        }
    }

    /// Takes back what [`GroupIndex::add`] counted for this endpoint.
    pub fn remove(&mut self, endpoint: &LocalEndpoint) {
        let endpoint = &endpoint.endpoint;
        let key = (endpoint.zone.clone(), endpoint.subset.clone(), endpoint.tls);
        let Some(counts) = self.groups.get_mut(&key) else { return };
        counts.endpoints = counts.endpoints.saturating_sub(1);
        if counts.endpoints == 0 {
            self.groups.remove(&key);
            return;
        }
        if endpoint.condition.ready {
            counts.ready = counts.ready.saturating_sub(1);
            counts.weight = counts.weight.saturating_sub(u64::from(endpoint.weight));
        }
        if endpoint.condition.is_draining() {
            counts.draining = counts.draining.saturating_sub(1);
        }
        if let Some(identity) = &endpoint.identity
            && let Some(count) = counts.identities.get_mut(identity)
        {
            *count -= 1;
            if *count == 0 {
                counts.identities.remove(identity);
            }
        }
    }

    /// The groups as a record carries them. A group whose endpoints neither take connections nor
    /// drain is listed with zeros: its subset exists.
    #[must_use]
    pub fn groups(&self) -> Vec<EndpointGroup> {
        self.groups
            .iter()
            .map(|((zone, subset, tls), counts)| EndpointGroup {
                zone: zone.clone(),
                subset: subset.clone(),
                ready: counts.ready,
                draining: counts.draining,
                weight: counts.weight,
                identities: counts.identities.keys().cloned().collect(),
                tls: *tls,
            })
            .collect()
    }
}

//! Endpoint counts of a local service, kept up to date one endpoint at a time.

use std::collections::BTreeMap;

use crate::endpoint::{Endpoint, LocalEndpoint, LocalEndpoints, Subset, TlsMode, WorkloadIdentity, Zone};
use crate::service::EndpointGroup;

/// The counts behind [`EndpointGroup`]s.
#[derive(Clone, Debug, Default)]
pub struct GroupIndex {
    /// Sorted as the published groups are: by (zone, subset, tls).
    groups: Vec<Counts>,
}

#[derive(Clone, Debug, Default)]
struct Counts {
    zone: Option<Zone>,
    subset: Subset,
    tls: TlsMode,
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
        let place = self.place(endpoint);
        if let Err(place) = place {
            let (zone, subset, tls) = (endpoint.zone.clone(), endpoint.subset.clone(), endpoint.tls);
            self.groups.insert(place, Counts { zone, subset, tls, ..Counts::default() });
        }
        let (Ok(place) | Err(place)) = place;
        if let Some(counts) = self.groups.get_mut(place) {
            counts.add(endpoint);
        }
    }

    /// Takes back what [`GroupIndex::add`] counted for this endpoint.
    pub fn remove(&mut self, endpoint: &LocalEndpoint) {
        let endpoint = &endpoint.endpoint;
        let Ok(place) = self.place(endpoint) else { return };
        let Some(counts) = self.groups.get_mut(place) else { return };
        counts.remove(endpoint);
        if counts.endpoints == 0 {
            self.groups.remove(place);
        }
    }

    fn place(&self, endpoint: &Endpoint) -> Result<usize, usize> {
        let key = (&endpoint.zone, &endpoint.subset, endpoint.tls);
        self.groups.binary_search_by(|counts| (&counts.zone, &counts.subset, counts.tls).cmp(&key))
    }

    /// The groups as a record carries them. A group whose endpoints neither take connections nor
    /// drain is listed with zeros: its subset exists.
    #[must_use]
    pub fn groups(&self) -> Vec<EndpointGroup> {
        let group = |counts: &Counts| EndpointGroup {
            zone: counts.zone.clone(),
            subset: counts.subset.clone(),
            ready: counts.ready,
            draining: counts.draining,
            weight: counts.weight,
            identities: counts.identities.keys().cloned().collect(),
            tls: counts.tls,
        };
        self.groups.iter().map(group).collect()
    }
}

impl Counts {
    fn add(&mut self, endpoint: &Endpoint) {
        self.endpoints = self.endpoints.saturating_add(1);
        if endpoint.condition.ready {
            self.ready = self.ready.saturating_add(1);
            self.weight = self.weight.saturating_add(u64::from(endpoint.weight));
        }
        if endpoint.condition.is_draining() {
            self.draining = self.draining.saturating_add(1);
        }
        if let Some(identity) = &endpoint.identity {
            match self.identities.get_mut(identity) {
                Some(count) => *count += 1,
                None => {
                    self.identities.insert(identity.clone(), 1);
                }
            }
        }
    }

    fn remove(&mut self, endpoint: &Endpoint) {
        self.endpoints = self.endpoints.saturating_sub(1);
        if endpoint.condition.ready {
            self.ready = self.ready.saturating_sub(1);
            self.weight = self.weight.saturating_sub(u64::from(endpoint.weight));
        }
        if endpoint.condition.is_draining() {
            self.draining = self.draining.saturating_sub(1);
        }
        if let Some(identity) = &endpoint.identity
            && let Some(count) = self.identities.get_mut(identity)
        {
            *count -= 1;
            if *count == 0 {
                self.identities.remove(identity);
            }
        }
    }
}

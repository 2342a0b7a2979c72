//! Which local address belongs to which workload: the union of what services and workload lists
//! of all registries claim.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::sharded::Keyed;
use crate::access::SourceIdentity;
use crate::change::Workload;
use crate::endpoint::{LocalEndpoint, WorkloadIdentity};
use crate::name::{ClusterName, Label};

/// One address of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Source {
    pub(super) address: IpAddr,
    pub(super) identity: Arc<SourceIdentity>,
}

impl Keyed for Source {
    type Key = IpAddr;

    fn key(&self) -> &IpAddr {
        &self.address
    }
}

/// What one endpoint or workload says about its address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Claim {
    namespace: Label,
    service_account: Option<Label>,
    identity: Option<WorkloadIdentity>,
}

impl Claim {
    pub(super) fn of_endpoint(namespace: &Label, endpoint: &LocalEndpoint) -> Self {
        let identity = endpoint.endpoint.identity.clone();
        let proven = identity.as_ref().map(|identity| identity.service_account.clone());
        Self {
            namespace: namespace.clone(),
            service_account: proven.or_else(|| endpoint.service_account.clone()),
            identity,
        }
    }

    pub(super) fn of_workload(workload: &Workload) -> Self {
        Self {
            namespace: workload.namespace.clone(),
            service_account: workload.service_account.clone(),
            identity: None,
        }
    }

    /// Whether `other` says all that this says.
    fn is_part_of(&self, other: &Self) -> bool {
        self.namespace == other.namespace
            && (self.service_account.is_none() || self.service_account == other.service_account)
            && (self.identity.is_none() || self.identity == other.identity)
    }
}

/// All claims, counted.
#[derive(Debug, Default)]
pub(super) struct Sources {
    claims: HashMap<IpAddr, BTreeMap<Claim, u32>>,
    dirty: BTreeSet<IpAddr>,
}

impl Sources {
    pub(super) fn add(&mut self, address: IpAddr, claim: Claim) {
        let address = address.to_canonical();
        *self.claims.entry(address).or_default().entry(claim).or_default() += 1;
        self.dirty.insert(address);
    }

    pub(super) fn remove(&mut self, address: IpAddr, claim: &Claim) {
        let address = address.to_canonical();
        let Some(claims) = self.claims.get_mut(&address) else { return };
        if let Some(count) = claims.get_mut(claim) {
            *count -= 1;
            if *count == 0 {
                claims.remove(claim);
            }
        }
        if claims.is_empty() {
            self.claims.remove(&address);
        }
        self.dirty.insert(address);
    }

    /// Addresses with a change of claims since the last call.
    pub(super) fn take_dirty(&mut self) -> BTreeSet<IpAddr> {
        std::mem::take(&mut self.dirty)
    }

    /// Who an address is: the one claim that says everything the others say. Claims that contradict
    /// each other prove nothing, and the address stays unknown.
    pub(super) fn resolve(&self, cluster: &ClusterName, address: IpAddr) -> Option<SourceIdentity> {
        let claims = self.claims.get(&address)?;
        let claim = claims.keys().find(|claim| claims.keys().all(|other| other.is_part_of(claim)))?;
        Some(SourceIdentity {
            cluster: cluster.clone(),
            namespace: Some(claim.namespace.clone()),
            service_account: claim.service_account.clone(),
            identity: claim.identity.clone(),
        })
    }
}

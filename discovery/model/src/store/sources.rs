//! Which local address belongs to which workload: the union of what services and workload lists
//! of all registries claim.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::sharded::Keyed;
use crate::access::SourceIdentity;
use crate::change::Workload;
use crate::endpoint::LocalEndpoint;
use crate::name::{ClusterName, Label};

/// Least number of different claims at which those that nobody makes any more are forgotten.
const FORGOTTEN_AT: usize = 1024;

/// One address of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Source {
    pub(super) address: IpAddr,
    pub(super) identity: Claim,
}

impl Keyed for Source {
    type Key = IpAddr;

    fn key(&self) -> &IpAddr {
        &self.address
    }
}

/// What one endpoint or workload says about its address. Equal ones are one allocation: a cluster has many pods and few
/// service accounts.
pub(super) type Claim = Arc<SourceIdentity>;

/// All claims, counted.
#[derive(Debug)]
pub(super) struct Sources {
    cluster: ClusterName,
    claims: HashMap<IpAddr, Claims>,
    dirty: BTreeSet<IpAddr>,
    /// Each different claim once.
    known: HashSet<Claim>,
    /// Size of `known` at which it is looked through.
    forget_at: usize,
}

/// What is said about one address, and how often. Almost always everybody says the same.
#[derive(Debug)]
enum Claims {
    One(Claim, u32),
    Several(Vec<(Claim, u32)>),
}

impl Sources {
    /// None, in the cluster of this name.
    pub(super) fn new(cluster: ClusterName) -> Self {
        Self { cluster, claims: HashMap::new(), dirty: BTreeSet::new(), known: HashSet::new(), forget_at: FORGOTTEN_AT }
    }

    /// The claim of an endpoint of a service in `namespace`.
    pub(super) fn of_endpoint(&mut self, namespace: &Label, endpoint: &LocalEndpoint) -> Claim {
        let identity = endpoint.endpoint.identity.clone();
        let proven = identity.as_ref().map(|identity| identity.service_account.clone());
        self.claim(SourceIdentity {
            cluster: self.cluster.clone(),
            namespace: Some(namespace.clone()),
            service_account: proven.or_else(|| endpoint.service_account.clone()),
            identity,
        })
    }

    /// The claim of a workload.
    pub(super) fn of_workload(&mut self, workload: &Workload) -> Claim {
        self.claim(SourceIdentity {
            cluster: self.cluster.clone(),
            namespace: Some(workload.namespace.clone()),
            service_account: workload.service_account.clone(),
            identity: None,
        })
    }

    fn claim(&mut self, claim: SourceIdentity) -> Claim {
        if let Some(known) = self.known.get(&claim) {
            return Arc::clone(known);
        }
        if self.known.len() >= self.forget_at {
            self.known.retain(|claim| Arc::strong_count(claim) > 1);
            self.forget_at = FORGOTTEN_AT.max(self.known.len() * 2);
        }
        let claim = Arc::new(claim);
        self.known.insert(Arc::clone(&claim));
        claim
    }

    pub(super) fn add(&mut self, address: IpAddr, claim: Claim) {
        let address = address.to_canonical();
        match self.claims.get_mut(&address) {
            Some(claims) => claims.add(claim),
            None => drop(self.claims.insert(address, Claims::One(claim, 1))),
        }
        self.dirty.insert(address);
    }

    pub(super) fn remove(&mut self, address: IpAddr, claim: &Claim) {
        let address = address.to_canonical();
        let Some(claims) = self.claims.get_mut(&address) else { return };
        if !claims.remove(claim) {
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
    pub(super) fn resolve(&self, address: IpAddr) -> Option<&Claim> {
        match self.claims.get(&address)? {
            Claims::One(claim, _) => Some(claim),
            Claims::Several(all) => {
                all.iter().map(|(claim, _)| claim).find(|claim| all.iter().all(|(other, _)| is_part_of(other, claim)))
            }
        }
    }
}

impl Claims {
    fn add(&mut self, claim: Claim) {
        match self {
            Self::One(known, count) if *known == claim => *count += 1,
            Self::One(known, count) => *self = Self::Several(vec![(Arc::clone(known), *count), (claim, 1)]),
            Self::Several(all) => match all.iter_mut().find(|(known, _)| *known == claim) {
                Some((_, count)) => *count += 1,
                None => all.push((claim, 1)),
            },
        }
    }

    /// Takes one back; whether any are left.
    fn remove(&mut self, claim: &Claim) -> bool {
        match self {
            Self::One(known, count) => {
                *count -= u32::from(known == claim);
                *count > 0
            }
            Self::Several(all) => {
                if let Some((_, count)) = all.iter_mut().find(|(known, _)| known == claim) {
                    *count -= 1;
                }
                all.retain(|(_, count)| *count > 0);
                if let [(claim, count)] = all.as_slice() {
                    *self = Self::One(Arc::clone(claim), *count);
                }
                true
            }
        }
    }
}

/// Whether `other` says all that `claim` says.
fn is_part_of(claim: &SourceIdentity, other: &SourceIdentity) -> bool {
    claim.namespace == other.namespace
        && (claim.service_account.is_none() || claim.service_account == other.service_account)
        && (claim.identity.is_none() || claim.identity == other.identity)
}

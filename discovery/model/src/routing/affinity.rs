//! Session affinity without memory: rendezvous hashing. The same client finds the same cluster and
//! endpoint in every replica and after every restart, and a change moves only the clients whose
//! choice it removes or who now have a better one.

use std::net::IpAddr;

use super::plan::{Plan, Share};
use crate::hash::{FNV_START, fnv, mix};
use crate::name::ServiceKey;

/// What stands for a client of a service in all choices; the same in every gateway.
#[must_use]
pub fn affinity_key(client: IpAddr, service: &ServiceKey) -> u64 {
    let hash = match client.to_canonical() {
        IpAddr::V4(address) => fnv(FNV_START, &address.octets()),
        IpAddr::V6(address) => fnv(FNV_START, &address.octets()),
    };
    let hash = fnv(hash, service.namespace.as_str().as_bytes());
    mix(fnv(fnv(hash, b"/"), service.name.as_str().as_bytes()))
}

/// The share with the highest score for this client.
pub(super) fn choose_share(client: u64, plan: &Plan<'_>) -> Option<Share> {
    let score = |share: &Share| {
        let (cluster, subset) = plan.names(*share);
        // One cluster and subset can have several shares: its own, and those of splits that failed.
        let same = plan.shares().iter().filter(|other| plan.names(**other) == (cluster, subset));
        let weight = same.map(|share| share.weight).sum();
        let hash = subset.iter().fold(fnv(FNV_START, cluster.as_str().as_bytes()), |hash, (key, value)| {
            fnv(fnv(fnv(fnv(hash, b","), key.as_bytes()), b"="), value.as_bytes())
        });
        Score::new(client, hash, weight)
    };
    let mut scored = plan.shares().iter().map(|share| (score(share), *share));
    let first = scored.next()?;
    Some(scored.fold(first, |best, next| if next.0.beats(&best.0) { next } else { best }).1)
}

/// How much a client is drawn to something: weighted rendezvous, `-weight / ln(u)` with u uniform
/// in (0, 1). The largest wins with a probability proportional to its weight.
pub(super) struct Score {
    /// u, times 2^64.
    uniform: u64,
    weight: u64,
}

impl Score {
    /// `client` and `item` are hashes of the two.
    pub(super) fn new(client: u64, item: u64, weight: u64) -> Self {
        Self { uniform: mix(client ^ item), weight }
    }

    /// Most weights are equal, and then u alone decides without a logarithm.
    pub(super) fn beats(&self, other: &Self) -> bool {
        if self.weight == other.weight { self.uniform > other.uniform } else { self.value() > other.value() }
    }

    fn value(&self) -> f64 {
        const UNIT: f64 = 1.0 / (1_u64 << 53) as f64;
        let uniform = ((self.uniform >> 11) as f64 + 0.5) * UNIT;
        -(self.weight as f64) / uniform.ln()
    }
}

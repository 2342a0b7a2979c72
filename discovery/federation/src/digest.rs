//! Digests over what an importer holds: of content only, whatever the order, and changed by one
//! record at the cost of one record.
//!
//! A digest answers "do we hold the same?" between an exporter and its own importer. It is no
//! defence against an exporter that lies about its own exports: it may do that in clear.

use eastway_model::ServiceKey;
use eastway_proto::federation::v1::GroupCount;
use sha2::{Digest as _, Sha256};

/// Number of buckets that a partial snapshot chooses from.
pub const BUCKETS: usize = 64;

/// SHA-256 of the encoded part of a service that changes seldom.
pub type StaticHash = [u8; 32];

/// Hash of one service: see `Complete.digest` in the proto file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceHash([u8; 32]);

impl ServiceHash {
    /// Of a service's encoded part and its counts.
    #[must_use]
    pub fn new(encoded: &StaticHash, counts: &[GroupCount]) -> Self {
        let mut hasher = Sha256::new_with_prefix(encoded);
        for GroupCount { ready, draining, weight } in counts {
            hasher.update(ready.to_be_bytes());
            hasher.update(draining.to_be_bytes());
            hasher.update(weight.to_be_bytes());
        }
        Self(hasher.finalize().into())
    }
}

/// SHA-256 of an encoded service.
#[must_use]
pub fn static_hash(encoded: &[u8]) -> StaticHash {
    Sha256::digest(encoded).into()
}

/// Digest of a set of services, with one short digest per bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicesDigest {
    lanes: [u64; 4],
    buckets: [u32; BUCKETS],
}

impl Default for ServicesDigest {
    fn default() -> Self {
        Self { lanes: [0; 4], buckets: [0; BUCKETS] }
    }
}

impl ServicesDigest {
    /// The set gains a service.
    pub fn add(&mut self, key: &ServiceKey, hash: &ServiceHash) {
        self.step(key, hash, u64::wrapping_add, u32::wrapping_add);
    }

    /// The set loses a service that it had.
    pub fn remove(&mut self, key: &ServiceKey, hash: &ServiceHash) {
        self.step(key, hash, u64::wrapping_sub, u32::wrapping_sub);
    }

    fn step(&mut self, key: &ServiceKey, hash: &ServiceHash, wide: fn(u64, u64) -> u64, short: fn(u32, u32) -> u32) {
        for (lane, part) in self.lanes.iter_mut().zip(hash.0.as_chunks::<8>().0) {
            *lane = wide(*lane, u64::from_be_bytes(*part));
        }
        let first = hash.0.first_chunk::<4>().copied().map(u32::from_be_bytes).unwrap_or_default();
        if let Some(bucket) = self.buckets.get_mut(bucket_of(key)) {
            *bucket = short(*bucket, first);
        }
    }

    /// As it crosses: 32 bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.lanes.iter().flat_map(|lane| lane.to_be_bytes()).collect()
    }

    /// The short digests as they cross: 4 bytes per bucket.
    #[must_use]
    pub fn buckets_to_bytes(&self) -> Vec<u8> {
        self.buckets.iter().flat_map(|bucket| bucket.to_be_bytes()).collect()
    }

    /// Bit n is set if bucket n differs from `theirs`; all bits if `theirs` is not of our form.
    #[must_use]
    pub fn differing_buckets(&self, theirs: &[u8]) -> u64 {
        let (chunks, rest) = theirs.as_chunks::<4>();
        if chunks.len() != BUCKETS || !rest.is_empty() {
            return u64::MAX;
        }
        let differs = self.buckets.iter().zip(chunks).map(|(ours, theirs)| *ours != u32::from_be_bytes(*theirs));
        differs.enumerate().fold(0, |mask, (index, differs)| if differs { mask | (1 << index) } else { mask })
    }
}

/// Which bucket a service is in: below [`BUCKETS`].
#[must_use]
pub fn bucket_of(key: &ServiceKey) -> usize {
    let mut hasher = Sha256::new_with_prefix(key.namespace.as_str());
    hasher.update(b"/");
    hasher.update(key.name.as_str());
    let hash: [u8; 32] = hasher.finalize().into();
    hash.first().map_or(0, |byte| usize::from(*byte) / (256 / BUCKETS))
}

/// Hash of one encoded endpoint record.
pub type EndpointHash = u128;

/// First 16 bytes of the SHA-256 of an encoded endpoint.
#[must_use]
pub fn endpoint_hash(encoded: &[u8]) -> EndpointHash {
    let hash: [u8; 32] = Sha256::digest(encoded).into();
    hash.first_chunk::<16>().copied().map(u128::from_be_bytes).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, ready: u64) -> (ServiceKey, ServiceHash) {
        let key = ServiceKey::parse("shop", name).unwrap();
        let hash = ServiceHash::new(&static_hash(name.as_bytes()), &[GroupCount { ready, draining: 0, weight: ready }]);
        (key, hash)
    }

    #[test]
    fn order_does_not_matter_and_removal_undoes() {
        let (a, b) = (service("a", 1), service("b", 2));
        let mut one = ServicesDigest::default();
        one.add(&a.0, &a.1);
        one.add(&b.0, &b.1);
        let mut two = ServicesDigest::default();
        two.add(&b.0, &b.1);
        two.add(&a.0, &a.1);
        assert_eq!(one, two);
        two.remove(&b.0, &b.1);
        two.remove(&a.0, &a.1);
        assert_eq!(two, ServicesDigest::default());
    }

    #[test]
    fn a_count_changes_the_digest_in_its_bucket_only() {
        let (key, old) = service("a", 1);
        let (_, new) = service("a", 2);
        let (mut one, mut two) = (ServicesDigest::default(), ServicesDigest::default());
        one.add(&key, &old);
        two.add(&key, &new);
        assert_ne!(one.to_bytes(), two.to_bytes());
        assert_eq!(one.differing_buckets(&two.buckets_to_bytes()), 1 << bucket_of(&key));
    }

    #[test]
    fn buckets_of_another_form_all_differ() {
        let digest = ServicesDigest::default();
        for theirs in [vec![], vec![0; 255], vec![0; 257], vec![0; 128]] {
            assert_eq!(digest.differing_buckets(&theirs), u64::MAX);
        }
        assert_eq!(digest.differing_buckets(&[0; 256]), 0);
    }
}

//! Connection ids that name the replica they belong to and cannot be made up.
//!
//! 12 bytes: 4 random, 4 of the replica id masked, 4 of authentication. Mask and authentication come from
//! HMAC-SHA256 under a key that all replicas share, so ids look random to everybody else (RFC 9000 §5.1)
//! and a restarted replica still knows those of its predecessors: it answers them with a stateless reset.
//! A packet for anybody else is no business of this one: a load balancer may have moved a flow whose replica
//! lives, and a reset would end a healthy link.

use std::sync::Arc;

use aws_lc_rs::hmac;
use quinn::{ConnectionId, ConnectionIdGenerator};

use crate::config::ReplicaId;

/// Length of every connection id.
const LENGTH: usize = 12;
const NONCE: usize = 4;
const REPLICA: usize = 4;

/// Makes and checks connection ids.
pub(super) struct KeyedConnectionIds {
    key: hmac::Key,
    replica: ReplicaId,
    predecessors: Arc<[ReplicaId]>,
}

impl KeyedConnectionIds {
    pub(super) fn new(key: hmac::Key, replica: ReplicaId, predecessors: Arc<[ReplicaId]>) -> Self {
        Self { key, replica, predecessors }
    }

    /// Which replica `id` was made by. `None`: by none that has the key.
    fn owner(&self, id: &[u8]) -> Option<[u8; REPLICA]> {
        let (nonce, rest) = id.split_first_chunk::<NONCE>()?;
        let (masked, tag) = rest.split_first_chunk::<REPLICA>()?;
        let owner = self.mask(*nonce, *masked);
        (self.tag(*nonce, owner) == tag).then_some(owner)
    }

    fn mask(&self, nonce: [u8; NONCE], replica: [u8; REPLICA]) -> [u8; REPLICA] {
        let digest = hmac::sign(&self.key, &[b"mask".as_slice(), &nonce].concat());
        let mut masked = replica;
        masked.iter_mut().zip(digest.as_ref()).for_each(|(byte, mask)| *byte ^= mask);
        masked
    }

    fn tag(&self, nonce: [u8; NONCE], replica: [u8; REPLICA]) -> [u8; LENGTH - NONCE - REPLICA] {
        let digest = hmac::sign(&self.key, &[b"tag ".as_slice(), &nonce, &replica].concat());
        let mut tag = [0; LENGTH - NONCE - REPLICA];
        tag.iter_mut().zip(digest.as_ref()).for_each(|(byte, digest)| *byte = *digest);
        tag
    }
}

fn short(replica: &ReplicaId) -> [u8; REPLICA] {
    let [a, b, c, d, ..] = replica.0;
    [a, b, c, d]
}

impl ConnectionIdGenerator for KeyedConnectionIds {
    fn generate_cid(&mut self) -> ConnectionId {
        // Unpredictable is not needed: mask and tag are. Collisions are drawn again by the caller.
        let nonce = fastrand::u32(..).to_be_bytes();
        let replica = short(&self.replica);
        let (masked, tag) = (self.mask(nonce, replica), self.tag(nonce, replica));
        ConnectionId::new(&[nonce.as_slice(), &masked, &tag].concat())
    }

    fn validate(&self, id: &ConnectionId) -> Result<(), quinn_proto::InvalidCid> {
        let owner = self.owner(id).ok_or(quinn_proto::InvalidCid)?;
        // Only for an incarnation that is known to be gone may a packet be answered with a stateless reset.
        let mut known = std::iter::once(&self.replica).chain(self.predecessors.iter());
        if known.any(|replica| short(replica) == owner) { Ok(()) } else { Err(quinn_proto::InvalidCid) }
    }

    fn cid_len(&self) -> usize {
        LENGTH
    }

    fn cid_lifetime(&self) -> Option<std::time::Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(key: &[u8], replica: u8, predecessors: &[u8]) -> KeyedConnectionIds {
        let predecessors = predecessors.iter().map(|id| ReplicaId([*id; 16])).collect();
        KeyedConnectionIds::new(hmac::Key::new(hmac::HMAC_SHA256, key), ReplicaId([replica; 16]), predecessors)
    }

    #[test]
    fn f1_a_successor_knows_ids_of_the_dead_but_leaves_the_living_alone() {
        let mut first = ids(b"shared", 1, &[]);
        let id = first.generate_cid();
        assert_eq!(id.len(), first.cid_len());
        assert_eq!(first.owner(&id), Some([1; 4]));
        assert!(first.validate(&id).is_ok());
        assert!(ids(b"shared", 2, &[7, 1]).validate(&id).is_ok(), "its maker is gone");
        assert!(ids(b"shared", 2, &[7]).validate(&id).is_err(), "its maker may live");
        assert!(ids(b"other", 2, &[1]).validate(&id).is_err(), "another key");
    }

    #[test]
    fn forged_ids_are_refused_and_real_ones_look_random() {
        let mut generator = ids(b"shared", 1, &[]);
        let (one, two) = (generator.generate_cid(), generator.generate_cid());
        assert_ne!(one[NONCE..], two[NONCE..]);
        for position in 0..LENGTH {
            let mut forged = one.to_vec();
            forged[position] ^= 1;
            assert!(generator.validate(&ConnectionId::new(&forged)).is_err(), "byte {position}");
        }
    }
}

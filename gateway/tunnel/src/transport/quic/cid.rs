//! Connection ids that name the replica they belong to and cannot be made up.
//!
//! 12 bytes: 4 random, 4 of the replica id masked, 4 of authentication. Mask and authentication come from
//! HMAC-SHA256 under a key that all replicas share, so ids look random to everybody else (RFC 9000 §5.1)
//! and a restarted replica still knows those of its predecessors: it answers them with a stateless reset, and
//! likewise those of siblings that it knows to be gone. A packet for one that lives is handed over (see
//! [`forward`](super::forward)); one for anybody else is dropped, because a reset might end a healthy link.

use std::sync::Arc;

use aws_lc_rs::hmac;
use quinn::{ConnectionId, ConnectionIdGenerator};

use crate::config::ReplicaId;
use crate::replicas::envelope::ShortId;
use crate::replicas::network::Network;

/// Length of every connection id.
const LENGTH: usize = 12;
const NONCE: usize = 4;
const TAG: usize = 4;
/// QUIC version 1 in a long header (RFC 9000 §17.2).
const VERSION_1: [u8; 4] = [0, 0, 0, 1];
/// First byte of a long header: its form, its fixed bit and its type.
const FORM_AND_TYPE: u8 = 0xf0;
const HANDSHAKE: u8 = 0xe0;

/// Whom the packet at the beginning of `datagram` is for, if one replica may hand it to another: packets of
/// handshakes after the first and all after that. Initial packets are for whoever gets them: all replicas can read
/// each other's Retry tokens.
pub(super) fn destination(datagram: &[u8]) -> Option<&[u8; LENGTH]> {
    let (first, rest) = datagram.split_first()?;
    if first & 0x80 == 0 {
        return rest.first_chunk();
    }
    let (version, rest) = rest.split_first_chunk()?;
    let (length, rest) = rest.split_first()?;
    let is_ours = first & FORM_AND_TYPE == HANDSHAKE && *version == VERSION_1 && usize::from(*length) == LENGTH;
    if is_ours { rest.first_chunk() } else { None }
}

/// What connection ids are made and checked with.
#[derive(Clone)]
pub(super) struct ConnectionIdKey(hmac::Key);

impl ConnectionIdKey {
    pub(super) fn new(key: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, key))
    }

    /// Which replica `id` was made by. `None`: by none that has the key.
    pub(super) fn owner(&self, id: &[u8]) -> Option<ShortId> {
        let (nonce, rest) = id.split_first_chunk::<NONCE>()?;
        let (masked, tag) = rest.split_first_chunk()?;
        let owner = self.mask(*nonce, *masked);
        (self.tag(*nonce, owner) == tag).then_some(owner)
    }

    fn make(&self, nonce: [u8; NONCE], replica: ShortId) -> ConnectionId {
        let (masked, tag) = (self.mask(nonce, replica), self.tag(nonce, replica));
        ConnectionId::new(&[nonce.as_slice(), &masked, &tag].concat())
    }

    fn mask(&self, nonce: [u8; NONCE], replica: ShortId) -> ShortId {
        let digest = hmac::sign(&self.0, &[b"mask".as_slice(), &nonce].concat());
        let mut masked = replica;
        masked.iter_mut().zip(digest.as_ref()).for_each(|(byte, mask)| *byte ^= mask);
        masked
    }

    fn tag(&self, nonce: [u8; NONCE], replica: ShortId) -> [u8; TAG] {
        let digest = hmac::sign(&self.0, &[b"tag ".as_slice(), &nonce, &replica].concat());
        let mut tag = [0; TAG];
        tag.iter_mut().zip(digest.as_ref()).for_each(|(byte, digest)| *byte = *digest);
        tag
    }
}

/// Makes and checks connection ids.
pub(super) struct KeyedConnectionIds {
    key: ConnectionIdKey,
    replica: ReplicaId,
    predecessors: Arc<[ReplicaId]>,
    /// Knows of siblings that are gone.
    network: Option<Arc<Network>>,
}

impl KeyedConnectionIds {
    pub(super) fn new(
        key: ConnectionIdKey,
        replica: ReplicaId,
        predecessors: Arc<[ReplicaId]>,
        network: Option<Arc<Network>>,
    ) -> Self {
        Self { key, replica, predecessors, network }
    }
}

impl ConnectionIdGenerator for KeyedConnectionIds {
    fn generate_cid(&mut self) -> ConnectionId {
        // Unpredictable is not needed: mask and tag are. Collisions are drawn again by the caller.
        self.key.make(fastrand::u32(..).to_be_bytes(), self.replica.short())
    }

    fn validate(&self, id: &ConnectionId) -> Result<(), quinn_proto::InvalidCid> {
        let owner = self.key.owner(id).ok_or(quinn_proto::InvalidCid)?;
        // Only for an incarnation that is known to be gone may a packet be answered with a stateless reset.
        let mut known = std::iter::once(&self.replica).chain(self.predecessors.iter());
        let is_gone = || self.network.as_ref().is_some_and(|network| network.view().is_gone(owner));
        if known.any(|replica| replica.short() == owner) || is_gone() { Ok(()) } else { Err(quinn_proto::InvalidCid) }
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
        KeyedConnectionIds::new(ConnectionIdKey::new(key), ReplicaId([replica; 16]), predecessors, None)
    }

    #[test]
    fn f1_a_successor_knows_ids_of_the_dead_but_leaves_the_living_alone() {
        let mut first = ids(b"shared", 1, &[]);
        let id = first.generate_cid();
        assert_eq!(id.len(), first.cid_len());
        assert_eq!(first.key.owner(&id), Some([1; 4]));
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

    #[test]
    fn only_what_belongs_to_a_connection_is_handed_over() {
        let id = ids(b"shared", 1, &[]).generate_cid();
        let long = |first: u8, version: u32, length: u8| {
            [&[first][..], &version.to_be_bytes(), &[length], &id, &[0; 20]].concat()
        };
        let short = [&[0x40][..], &id, &[0; 20]].concat();
        assert_eq!(destination(&short).map(<[u8; LENGTH]>::as_slice), Some(&id[..]));
        assert_eq!(destination(&long(0xe3, 1, 12)).map(<[u8; LENGTH]>::as_slice), Some(&id[..]));
        for other in [long(0xc3, 1, 12), long(0xf3, 1, 12), long(0xe3, 2, 12), long(0xe3, 1, 11), long(0xe3, 0, 12)] {
            assert_eq!(destination(&other), None, "{other:x?}");
        }
        for cut in 0..LENGTH {
            assert_eq!(destination(&short[..cut]), None);
        }
    }
}

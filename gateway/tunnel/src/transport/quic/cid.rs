//! Connection ids that name the replica they belong to and cannot be made up.
//!
//! 12 bytes: 4 random, 4 of the replica id masked, 4 of authentication. Mask and authentication come from
//! HMAC-SHA256 under a key that all replicas share, so ids look random to everybody else (RFC 9000 §5.1)
//! and a restarted replica still knows those of its predecessors: it answers them with a stateless reset, and
//! likewise those of siblings that it knows to be gone. A packet for one that lives is handed over (see
//! [`forward`](super::forward)); one for anybody else is dropped, because a reset might end a healthy link.
//!
//! Behind a load balancer that reads them ([`lb`]) what it reads takes the place of the random bytes, and the rest follows
//! as far as there is room: with 3 bytes of authentication, or not at all. Then nothing is handed over, and nobody is
//! told of a restart.

pub(super) mod lb;

use std::sync::Arc;

use aws_lc_rs::hmac;
use quinn_proto::{ConnectionId, ConnectionIdGenerator};

use self::lb::{MAX_ID, QuicLb};
use crate::config::ReplicaId;
use crate::replicas::envelope::ShortId;
use crate::replicas::network::Network;

/// Random bytes at the beginning of an id that no load balancer reads.
const NONCE: usize = 4;
/// Bytes of authentication, and how many of them are enough.
const TAG: usize = 4;
const SHORT_TAG: usize = 3;
/// Bytes of a masked replica id.
const OWNER: usize = size_of::<ShortId>();
/// QUIC version 1 in a long header (RFC 9000 §17.2).
const VERSION_1: [u8; 4] = [0, 0, 0, 1];
/// First byte of a long header: its form, its fixed bit and its type.
const FORM_AND_TYPE: u8 = 0xf0;
const HANDSHAKE: u8 = 0xe0;

/// What connection ids are made and checked with.
#[derive(Clone)]
pub(super) struct ConnectionIdKey {
    mac: hmac::Key,
    lb: Option<QuicLb>,
    /// Bytes before the replica.
    prefix: usize,
    /// Length of every id.
    length: usize,
}

/// Bytes of the replica and its authentication that fit an id behind `prefix` others.
fn tail(prefix: usize) -> usize {
    match MAX_ID.saturating_sub(prefix) {
        room if room >= OWNER + TAG => OWNER + TAG,
        room if room >= OWNER + SHORT_TAG => OWNER + SHORT_TAG,
        _ => 0,
    }
}

impl ConnectionIdKey {
    pub(super) fn new(key: &[u8], lb: Option<&QuicLb>) -> Self {
        let prefix = lb.map_or(NONCE, QuicLb::length);
        let mac = hmac::Key::new(hmac::HMAC_SHA256, key);
        Self { mac, lb: lb.cloned(), prefix, length: prefix + tail(prefix) }
    }

    /// Whom the packet at the beginning of `datagram` is for, if one replica may hand it to another: packets of
    /// handshakes after the first and all after that. Initial packets are for whoever gets them: all replicas can read
    /// each other's Retry tokens.
    pub(super) fn destination<'a>(&self, datagram: &'a [u8]) -> Option<&'a [u8]> {
        let (first, rest) = datagram.split_first()?;
        if first & 0x80 == 0 {
            return rest.get(..self.length);
        }
        let (version, rest) = rest.split_first_chunk()?;
        let (length, rest) = rest.split_first()?;
        let is_ours =
            first & FORM_AND_TYPE == HANDSHAKE && *version == VERSION_1 && usize::from(*length) == self.length;
        if is_ours { rest.get(..self.length) } else { None }
    }

    /// Which replica `id` was made by. `None`: by none that has the key, or it does not say.
    pub(super) fn owner(&self, id: &[u8]) -> Option<ShortId> {
        let (prefix, rest) = id.split_at_checked(self.prefix).filter(|_| id.len() == self.length)?;
        let (masked, tag) = rest.split_first_chunk()?;
        let owner = self.mask(prefix, *masked);
        (!tag.is_empty() && self.tag(prefix, owner).get(..tag.len()) == Some(tag)).then_some(owner)
    }

    fn make(&self, replica: ShortId) -> ConnectionId {
        let prefix = match &self.lb {
            Some(lb) => lb.begin(self.length),
            // Unpredictable is not needed: mask and tag are. Collisions are drawn again by the caller.
            None => fastrand::u32(..).to_be_bytes().to_vec(),
        };
        let whole = [prefix.as_slice(), &self.mask(&prefix, replica), &self.tag(&prefix, replica)].concat();
        ConnectionId::new(whole.get(..self.length).unwrap_or_default())
    }

    fn mask(&self, prefix: &[u8], replica: ShortId) -> ShortId {
        let digest = hmac::sign(&self.mac, &[b"mask".as_slice(), prefix].concat());
        let mut masked = replica;
        masked.iter_mut().zip(digest.as_ref()).for_each(|(byte, mask)| *byte ^= mask);
        masked
    }

    fn tag(&self, prefix: &[u8], replica: ShortId) -> [u8; TAG] {
        let digest = hmac::sign(&self.mac, &[b"tag ".as_slice(), prefix, &replica].concat());
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
        self.key.make(self.replica.short())
    }

    fn validate(&self, id: &ConnectionId) -> Result<(), quinn_proto::InvalidCid> {
        let owner = self.key.owner(id).ok_or(quinn_proto::InvalidCid)?;
        // Only for an incarnation that is known to be gone may a packet be answered with a stateless reset.
        let mut known = std::iter::once(&self.replica).chain(self.predecessors.iter());
        let is_gone = || self.network.as_ref().is_some_and(|network| network.view().is_gone(owner));
        if known.any(|replica| replica.short() == owner) || is_gone() { Ok(()) } else { Err(quinn_proto::InvalidCid) }
    }

    fn cid_len(&self) -> usize {
        self.key.length
    }

    fn cid_lifetime(&self) -> Option<std::time::Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u8; 16] = [9; 16];

    /// Without a balancer, and with some that read 8 and 3 bytes, plain and encrypted.
    fn balancers() -> [Option<QuicLb>; 4] {
        let lb = |id: &[u8], key| Some(QuicLb::new(2, id, 4, key).unwrap());
        [None, lb(b"serverid", None), lb(b"serverid", Some(&KEY)), lb(b"srv", Some(&KEY))]
    }

    fn ids(key: &[u8], lb: Option<&QuicLb>, replica: u8, predecessors: &[u8]) -> KeyedConnectionIds {
        let predecessors = predecessors.iter().map(|id| ReplicaId([*id; 16])).collect();
        KeyedConnectionIds::new(ConnectionIdKey::new(key, lb), ReplicaId([replica; 16]), predecessors, None)
    }

    #[test]
    fn f1_a_successor_knows_ids_of_the_dead_but_leaves_the_living_alone() {
        for lb in balancers() {
            let ids = |key, replica, predecessors| ids(key, lb.as_ref(), replica, predecessors);
            let mut first = ids(b"shared", 1, &[]);
            let id = first.generate_cid();
            assert_eq!(id.len(), first.cid_len());
            assert_eq!(first.key.owner(&id), Some([1; 4]));
            assert!(first.validate(&id).is_ok());
            assert!(ids(b"shared", 2, &[7, 1]).validate(&id).is_ok(), "its maker is gone");
            assert!(ids(b"shared", 2, &[7]).validate(&id).is_err(), "its maker may live");
            assert!(ids(b"other", 2, &[1]).validate(&id).is_err(), "another key");
        }
    }

    #[test]
    fn forged_ids_are_refused_and_real_ones_look_random() {
        for (lb, length) in balancers().iter().zip([12, 20, 20, 16]) {
            let mut generator = ids(b"shared", lb.as_ref(), 1, &[]);
            let (one, two) = (generator.generate_cid(), generator.generate_cid());
            assert_eq!((one.len(), two.len()), (length, length));
            assert_ne!(one[generator.key.prefix..], two[generator.key.prefix..]);
            for position in 0..length {
                let mut forged = one.to_vec();
                forged[position] ^= 1;
                assert!(generator.validate(&ConnectionId::new(&forged)).is_err(), "{lb:?}, byte {position}");
            }
        }
    }

    #[test]
    fn a_balancer_reads_its_server_id_whoever_is_named_behind_it() {
        for (replica, key) in [(1, None), (2, Some(&KEY))] {
            let lb = QuicLb::new(2, b"serverid", 4, key).unwrap();
            assert!(lb.names_replicas());
            let id = ids(b"shared", Some(&lb), replica, &[]).generate_cid();
            assert_eq!(id[0], 2 << 5 | 19);
            assert_eq!(lb::tests::server_id(&id, 8, 4, key), b"serverid");
        }
    }

    #[test]
    fn without_room_for_a_replica_nothing_is_handed_over_and_nothing_reset() {
        let lb = QuicLb::new(0, b"serverid", 8, Some(&KEY)).unwrap();
        assert!(!lb.names_replicas());
        let mut generator = ids(b"shared", Some(&lb), 1, &[1]);
        let id = generator.generate_cid();
        assert_eq!((id.len(), generator.cid_len()), (17, 17));
        assert_eq!(generator.key.owner(&id), None);
        assert!(generator.validate(&id).is_err());
        assert_eq!(lb::tests::server_id(&id, 8, 8, Some(&KEY)), b"serverid");
    }

    #[test]
    fn only_what_belongs_to_a_connection_is_handed_over() {
        for lb in balancers() {
            let mut generator = ids(b"shared", lb.as_ref(), 1, &[]);
            let (id, key) = (generator.generate_cid(), &generator.key);
            let own = u8::try_from(id.len()).unwrap();
            let long = |first: u8, version: u32, length: u8| {
                [&[first][..], &version.to_be_bytes(), &[length], &id, &[0; 20]].concat()
            };
            let short = [&[0x40][..], &id, &[0; 20]].concat();
            assert_eq!(key.destination(&short), Some(&id[..]));
            assert_eq!(key.destination(&long(0xe3, 1, own)), Some(&id[..]));
            let others = [
                long(0xc3, 1, own),
                long(0xf3, 1, own),
                long(0xe3, 2, own),
                long(0xe3, 1, own - 1),
                long(0xe3, 0, own),
            ];
            for other in others {
                assert_eq!(key.destination(&other), None, "{other:x?}");
            }
            for cut in 0..id.len() {
                assert_eq!(key.destination(&short[..cut]), None);
            }
        }
    }
}

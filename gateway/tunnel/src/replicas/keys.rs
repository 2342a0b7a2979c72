//! Keys between replicas. All of a cluster derive the same from the link keys, which only its gateways get.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::{hkdf, hmac};

use super::envelope::{BEAT, Beat, Direction, Flow, HEADER, SIGNED, TAG, header};
use crate::config::{LinkKeys, ReplicaId};

const SALT: &[u8] = b"eastway replicas v1";

/// What a replica derives from the link keys (HKDF-SHA256, RFC 5869).
pub(super) struct ReplicaKeys {
    root: hkdf::Prk,
    beat: hmac::Key,
}

impl ReplicaKeys {
    pub(super) fn derive(keys: &LinkKeys) -> Result<Self, Unspecified> {
        let root = hkdf::Salt::new(hkdf::HKDF_SHA256, SALT).extract(&keys.connection_id);
        let beat = root.expand(&[b"beat"], hmac::HMAC_SHA256)?.into();
        Ok(Self { root, beat })
    }

    /// A beat as it goes over the wire.
    pub(super) fn sign(&self, beat: &Beat) -> Vec<u8> {
        let mut bytes = beat.encode();
        let tag = hmac::sign(&self.beat, &bytes);
        bytes.extend(tag.as_ref());
        bytes
    }

    /// Whether a replica of this cluster signed the beat in `bytes`; takes the same time for every wrong one.
    pub(super) fn is_signed(&self, bytes: &[u8]) -> bool {
        let parts = bytes.split_at_checked(SIGNED).filter(|_| bytes.len() == BEAT);
        parts.is_some_and(|(signed, tag)| hmac::verify(&self.beat, signed, tag).is_ok())
    }

    /// Keys between two incarnations. Each of them is new with each start of a replica, so numbers may begin
    /// anew too, and nothing sealed for one is of use to another.
    pub(super) fn pair(&self, own: ReplicaId, other: ReplicaId) -> Result<PairKeys, Unspecified> {
        let key = |from: ReplicaId, to: ReplicaId| {
            let info = [b"packet".as_slice(), &from.0, &to.0];
            self.root.expand(&info, &AES_128_GCM).map(|okm| LessSafeKey::new(UnboundKey::from(okm)))
        };
        Ok(PairKeys { own, seal: key(own, other)?, open: key(other, own)?, seen: Mutex::default() })
    }
}

/// Numbers the packets that a process seals. One for all keys of a process: no number is used twice with a key, even
/// if a sibling is forgotten and found again.
#[derive(Default)]
pub(super) struct Numbers(AtomicU64);

/// Seals and opens packets between this replica and one other.
pub(super) struct PairKeys {
    own: ReplicaId,
    seal: LessSafeKey,
    open: LessSafeKey,
    seen: Mutex<Window>,
}

/// Why a sealed packet was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OpenError {
    Forged,
    Replayed,
    Malformed,
}

impl PairKeys {
    /// The envelope around a packet.
    pub(super) fn seal(
        &self,
        numbers: &Numbers,
        direction: Direction,
        (flow, ecn): (&Flow, u8),
        packet: &[u8],
    ) -> Result<Vec<u8>, Unspecified> {
        let number = numbers.0.fetch_add(1, Ordering::Relaxed);
        let header = header(direction, self.own.short(), number);
        let mut bytes = Vec::with_capacity(HEADER + 64 + packet.len() + TAG);
        bytes.extend(header);
        flow.encode(ecn, &mut bytes);
        bytes.extend_from_slice(packet);
        let sealed = bytes.get_mut(HEADER..).ok_or(Unspecified)?;
        let tag = self.seal.seal_in_place_separate_tag(nonce(number), Aad::from(header), sealed)?;
        bytes.extend_from_slice(tag.as_ref());
        Ok(bytes)
    }

    /// The flow, the ECN bits and the packet in an envelope of the other side, which is opened where it is.
    pub(super) fn open<'a>(&self, number: u64, envelope: &'a mut [u8]) -> Result<(Flow, u8, &'a [u8]), OpenError> {
        let (header, sealed) = envelope.split_first_chunk_mut::<HEADER>().ok_or(OpenError::Malformed)?;
        let opened = self.open.open_in_place(nonce(number), Aad::from(*header), sealed);
        let opened = opened.map_err(|_| OpenError::Forged)?;
        if !self.seen.lock().unwrap_or_else(PoisonError::into_inner).admit(number) {
            return Err(OpenError::Replayed);
        }
        Flow::decode(opened).ok_or(OpenError::Malformed)
    }
}

fn nonce(number: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce.iter_mut().skip(4).zip(number.to_be_bytes()).for_each(|(slot, byte)| *slot = byte);
    Nonce::assume_unique_for_key(nonce)
}

/// Which of the latest numbers were used (as RFC 6479).
#[derive(Default)]
struct Window {
    /// One more than the highest.
    next: u64,
    used: [u64; WORDS],
}

const WORDS: usize = 16;
/// Numbers that may overtake each other: one word is always being refilled.
const WINDOW: u64 = (WORDS as u64 - 1) * 64;

impl Window {
    fn admit(&mut self, number: u64) -> bool {
        if number >= self.next {
            let (first, last) = (self.next.div_ceil(64), number / 64);
            // Words that the highest number has not been in before are of an earlier round.
            for word in (first..=last).rev().take(WORDS) {
                if let Some(used) = self.word(word) {
                    *used = 0;
                }
            }
            self.next = number.saturating_add(1);
        } else if self.next - number > WINDOW {
            return false;
        }
        let bit = 1 << (number % 64);
        self.word(number / 64).is_some_and(|used| {
            let fresh = *used & bit == 0;
            *used |= bit;
            fresh
        })
    }

    fn word(&mut self, word: u64) -> Option<&mut u64> {
        let words = WORDS as u64;
        usize::try_from(word % words).ok().and_then(|word| self.used.get_mut(word))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::replicas::envelope::{Envelope, decode};

    fn keys(byte: u8) -> ReplicaKeys {
        let keys = LinkKeys { reset: [0; 64], connection_id: [byte; 64], token: [0; 64] };
        ReplicaKeys::derive(&keys).unwrap()
    }

    fn number(bytes: &[u8]) -> u64 {
        match decode(bytes) {
            Ok(Envelope::Sealed { number, .. }) => number,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_packet_opens_once_and_only_for_whom_it_was_sealed() {
        let (one, two, three) = (ReplicaId([1; 16]), ReplicaId([2; 16]), ReplicaId([3; 16]));
        let flow = Flow { client: "192.0.2.1:5".parse().unwrap(), local: None };
        let numbers = Numbers::default();
        let sealed = keys(1).pair(one, two).unwrap().seal(&numbers, Direction::ToOwner, (&flow, 1), b"packet").unwrap();
        let open = |keys: &PairKeys, bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            keys.open(number(&bytes), &mut bytes).map(|(flow, ecn, packet)| (flow, ecn, packet.to_vec()))
        };
        let receiver = keys(1).pair(two, one).unwrap();
        for position in 2..sealed.len() {
            let mut forged = sealed.clone();
            forged[position] ^= 1;
            assert_eq!(open(&receiver, &forged), Err(OpenError::Forged), "byte {position}");
        }
        for wrong in [keys(2).pair(two, one), keys(1).pair(three, one), keys(1).pair(one, two)] {
            assert_eq!(open(&wrong.unwrap(), &sealed), Err(OpenError::Forged));
        }
        assert_eq!(open(&receiver, &sealed), Ok((flow, 1, b"packet".to_vec())));
        assert_eq!(open(&receiver, &sealed), Err(OpenError::Replayed));
    }

    #[test]
    fn beats_are_signed_with_the_key_of_the_cluster() {
        let beat = Beat {
            state: crate::replicas::envelope::BeatState::Live,
            sender: ReplicaId([1; 16]),
            stamp: 1,
            echo: None,
        };
        let signed = keys(1).sign(&beat);
        assert!(keys(1).is_signed(&signed) && !keys(2).is_signed(&signed));
        assert!(!keys(1).is_signed(&signed[..BEAT - 1]));
    }

    #[test]
    fn a_number_is_admitted_once_however_they_come() {
        let mut random = fastrand::Rng::with_seed(1);
        let (mut window, mut used, mut highest) = (Window::default(), BTreeSet::new(), 0_u64);
        for _ in 0..20_000 {
            let number = match random.u8(0..10) {
                0 => highest + random.u64(0..3_000),
                1 => random.u64(0..=highest),
                _ => (highest + 40).saturating_sub(random.u64(0..80)),
            };
            let admitted = window.admit(number);
            assert!(!admitted || used.insert(number), "{number} twice");
            assert!(admitted || used.contains(&number) || number + WINDOW <= highest, "{number} of {highest}");
            highest = highest.max(number);
        }
        assert!(window.admit(u64::MAX - 1) && !window.admit(u64::MAX - 1));
    }
}

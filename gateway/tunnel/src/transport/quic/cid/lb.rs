//! The part of a connection id that load balancers read: QUIC-LB, draft-ietf-quic-load-balancers-21.
//!
//! Its first octet says which of the balancer's configurations made it; behind it are the server id that the balancer
//! knows this gateway by and a nonce, as they are or encrypted. What follows is the server's own (§5.4).

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aws_lc_rs::cipher::{AES_128, EncryptingKey, UnboundCipherKey};

/// Longest connection id of QUIC version 1 (RFC 9000 §17.2).
pub(super) const MAX_ID: usize = 20;
/// Server id and nonce together are at most this long (§5.3).
const MAX_BLOCK: usize = MAX_ID - 1;
/// Shortest nonce (§5.3).
const MIN_NONCE: usize = 4;
/// The configuration that says that no balancer can read the id (§3.1).
const UNROUTABLE: u8 = 7;
/// A block of AES.
const BLOCK: usize = 16;

/// How a load balancer in front of this gateway reads connection ids. All gateways behind it have the same, but for their
/// server ids.
#[derive(Clone)]
pub struct QuicLb {
    /// The configuration's number, 0 to 6.
    configuration: u8,
    server_id: Arc<[u8]>,
    nonce: usize,
    cipher: Option<Arc<EncryptingKey>>,
    /// The next nonce, where it is encrypted: none is used twice with a key.
    next: Arc<AtomicU64>,
}

/// Why a configuration is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuicLbError {
    /// Configurations are 0 to 6.
    #[error("configuration {0} is not between 0 and 6")]
    Configuration(u8),
    /// The server id is empty.
    #[error("the server id is empty")]
    NoServerId,
    /// The nonce is too short.
    #[error("a nonce of {0} bytes is too short: at least {MIN_NONCE} are needed")]
    Nonce(usize),
    /// Both together are too long.
    #[error("server id and nonce are {0} bytes together; at most {MAX_BLOCK} fit a connection id")]
    TooLong(usize),
    /// The library refuses the key.
    #[error("the key is refused")]
    Key,
}

impl QuicLb {
    /// Ids of this `configuration`, with a `nonce` of so many bytes, encrypted if there is a `key`.
    ///
    /// # Errors
    /// [`QuicLbError`]
    pub fn new(configuration: u8, server_id: &[u8], nonce: usize, key: Option<&[u8; 16]>) -> Result<Self, QuicLbError> {
        if configuration >= UNROUTABLE {
            return Err(QuicLbError::Configuration(configuration));
        }
        if server_id.is_empty() {
            return Err(QuicLbError::NoServerId);
        }
        if nonce < MIN_NONCE {
            return Err(QuicLbError::Nonce(nonce));
        }
        if server_id.len() + nonce > MAX_BLOCK {
            return Err(QuicLbError::TooLong(server_id.len() + nonce));
        }
        let cipher = |key: &[u8; 16]| UnboundCipherKey::new(&AES_128, key).and_then(EncryptingKey::ecb).map(Arc::new);
        let cipher = key.map(cipher).transpose().map_err(|_| QuicLbError::Key)?;
        let mut start = [0; 8];
        fill(&mut start);
        let next = Arc::new(AtomicU64::new(u64::from_be_bytes(start)));
        Ok(Self { configuration, server_id: Arc::from(server_id), nonce, cipher, next })
    }

    /// Whether there is room behind it for the replica that a packet is for, so that replicas can hand packets to each
    /// other and answer for each other after a restart.
    #[must_use]
    pub fn names_replicas(&self) -> bool {
        super::tail(self.length()) > 0
    }

    /// Whether observers cannot read the server id.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        self.cipher.is_some()
    }

    /// Bytes of it, the first octet included.
    pub(super) fn length(&self) -> usize {
        1 + self.server_id.len() + self.nonce
    }

    /// The beginning of a new id of `total` bytes.
    pub(super) fn begin(&self, total: usize) -> Vec<u8> {
        let mut nonce = vec![0; self.nonce];
        fill(&mut nonce);
        if self.cipher.is_some() {
            let next = self.next.fetch_add(1, Ordering::Relaxed).to_be_bytes();
            // The lowest bytes of both at the same place.
            nonce.iter_mut().rev().zip(next.iter().rev()).for_each(|(slot, byte)| *slot = *byte);
        }
        self.encode(&nonce, total).unwrap_or_else(|| self.unroutable(total))
    }

    fn encode(&self, nonce: &[u8], total: usize) -> Option<Vec<u8>> {
        let block = [&self.server_id, nonce].concat();
        let block = match &self.cipher {
            None => block,
            Some(cipher) if block.len() == BLOCK => {
                let mut block = block;
                cipher.encrypt(&mut block).ok()?;
                block
            }
            Some(cipher) => four_passes(cipher, &block)?,
        };
        Some([&[first_octet(self.configuration, total)], block.as_slice()].concat())
    }

    /// What is sent where encryption fails: a balancer then goes by addresses.
    fn unroutable(&self, total: usize) -> Vec<u8> {
        let mut id = vec![0; self.length()];
        fill(&mut id);
        if let Some(first) = id.first_mut() {
            *first = first_octet(UNROUTABLE, total);
        }
        id
    }
}

/// Keys are in no dump (invariant I10).
impl fmt::Debug for QuicLb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "configuration {}, server id 0x", self.configuration)?;
        self.server_id.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        write!(f, ", nonce of {} bytes, {}", self.nonce, if self.is_encrypted() { "encrypted" } else { "plain" })
    }
}

/// The configuration, and how many bytes follow (§3.3).
fn first_octet(configuration: u8, total: usize) -> u8 {
    let following = u8::try_from(total.saturating_sub(1)).unwrap_or_default();
    configuration << 5 | (following & 0x1f)
}

/// Bytes that nobody can relate to earlier ones.
fn fill(bytes: &mut [u8]) {
    if aws_lc_rs::rand::fill(bytes).is_err() {
        // An id has to be made; that it may be related to others is the lesser evil.
        bytes.fill_with(|| fastrand::u8(..));
    }
}

/// A Feistel network of four rounds (§5.4.2). Where the length is odd the middle byte is in both halves, four bits of it
/// in each.
fn four_passes(cipher: &EncryptingKey, plain: &[u8]) -> Option<Vec<u8>> {
    let (length, half) = (plain.len(), plain.len().div_ceil(2));
    let is_odd = length % 2 == 1;
    let mut left = plain.get(..half)?.to_vec();
    let mut right = plain.get(length - half..)?.to_vec();
    let clear = |left: &mut [u8], right: &mut [u8]| {
        if let (true, Some(last), Some(first)) = (is_odd, left.last_mut(), right.first_mut()) {
            *last &= 0xf0;
            *first &= 0x0f;
        }
    };
    clear(&mut left, &mut right);
    for pass in 1..=4 {
        let (from, to) = if pass % 2 == 1 { (&left, &mut right) } else { (&right, &mut left) };
        let mask = round(cipher, length, pass, from)?;
        to.iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
        clear(&mut left, &mut right);
    }
    if !is_odd {
        return Some([left, right].concat());
    }
    let (middle, left) = left.split_last()?;
    let (first, right) = right.split_first()?;
    Some([left, &[middle | first], right].concat())
}

/// One half, padded, with the length and the number of the pass, encrypted.
fn round(cipher: &EncryptingKey, length: usize, pass: u8, half: &[u8]) -> Option<[u8; BLOCK]> {
    let mut block = [0; BLOCK];
    block.get_mut(..half.len())?.copy_from_slice(half);
    let [.., length_at, pass_at] = &mut block;
    (*length_at, *pass_at) = (u8::try_from(length).ok()?, pass);
    cipher.encrypt(&mut block).ok()?;
    Some(block)
}

#[cfg(test)]
pub(in crate::transport::quic) mod tests {
    use aws_lc_rs::cipher::{DecryptingKey, DecryptionContext};

    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
    }

    fn key(hex: &str) -> [u8; 16] {
        bytes(hex).try_into().unwrap()
    }

    fn encoded(configuration: u8, server_id: &str, nonce: &str, key: Option<&[u8; 16]>) -> Vec<u8> {
        let (server_id, nonce) = (bytes(server_id), bytes(nonce));
        let lb = QuicLb::new(configuration, &server_id, nonce.len(), key).unwrap();
        lb.encode(&nonce, lb.length()).unwrap()
    }

    /// Appendix B of the draft. Of its two plain examples the second has half a byte in its nonce.
    #[test]
    fn ids_are_those_of_the_drafts_test_vectors() {
        assert_eq!(encoded(0, "c4605e", "4504cc4f", None), bytes("07c4605e4504cc4f"));
        let shared = key("8f95f09245765f80256934e50c66207f");
        let table = [
            (0, "ed793a", "ee080dbf", "0720b1d07b359d3c"),
            (1, "ed793a51d49b8f5fab65", "ee080dbf48", "2fcc381bc74cb4fbad2823a3d1f8fed2"),
            (2, "ed793a51d49b8f5f", "ee080dbf48c0d1e5", "504dd2d05a7b0de9b2b9907afb5ecf8cc3"),
            (3, "ed793a51d49b8f5fab", "ee080dbf48c0d1e55d", "125779c9cc86beb3a3a4a3ca96fce4bfe0cdbc"),
        ];
        for (configuration, server_id, nonce, expected) in table {
            let id = encoded(configuration, server_id, nonce, Some(&shared));
            // The draft writes the first octet of the last one as if its configuration were 0.
            let first = if configuration == 3 { 0x60 | 0x12 } else { bytes(expected)[0] };
            assert_eq!((id[0], &id[1..]), (first, &bytes(expected)[1..]), "{configuration}");
        }
        let example = key("fdf726a9893ec05c0632d3956680baf0");
        assert_eq!(encoded(0, "31441a", "9c69c275", Some(&example)), bytes("0767947d29be054a"));
    }

    /// What a balancer does (§5.5).
    pub(in crate::transport::quic) fn server_id(
        id: &[u8],
        length: usize,
        nonce: usize,
        key: Option<&[u8; 16]>,
    ) -> Vec<u8> {
        let block = &id[1..=length + nonce];
        let Some(key) = key else { return block[..length].to_vec() };
        let unbound = || UnboundCipherKey::new(&AES_128, key).unwrap();
        if block.len() == BLOCK {
            let mut block = block.to_vec();
            let cipher = DecryptingKey::ecb(unbound()).unwrap();
            return cipher.decrypt(&mut block, DecryptionContext::None).unwrap()[..length].to_vec();
        }
        let cipher = EncryptingKey::ecb(unbound()).unwrap();
        let (size, half) = (block.len(), block.len().div_ceil(2));
        let (mut left, mut right) = (block[..half].to_vec(), block[size - half..].to_vec());
        for pass in (0..=4).rev() {
            if size % 2 == 1 {
                left[half - 1] &= 0xf0;
                right[0] &= 0x0f;
            }
            if pass > 0 {
                let (from, to) = if pass % 2 == 1 { (&left, &mut right) } else { (&right, &mut left) };
                let mask = round(&cipher, size, pass, from).unwrap();
                to.iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
            }
        }
        if size % 2 == 1 {
            let first = right.remove(0);
            *left.last_mut().unwrap() |= first;
        }
        [left, right].concat()[..length].to_vec()
    }

    #[test]
    fn a_balancer_finds_the_server_of_every_length() {
        let shared = key("8f95f09245765f80256934e50c66207f");
        for key in [None, Some(&shared)] {
            for (length, nonce) in (1..=15).flat_map(|length| (4..=19 - length).map(move |nonce| (length, nonce))) {
                let own: Vec<u8> = (1..=u8::try_from(length).unwrap()).collect();
                let lb = QuicLb::new(5, &own, nonce, key).unwrap();
                let (one, two) = (lb.begin(20), lb.begin(20));
                assert_eq!(one[0], 5 << 5 | 19);
                assert_eq!(server_id(&one, length, nonce, key), own, "{length}, {nonce}");
                assert_ne!(one, two);
                // Of a short one the ciphertext is the same now and then.
                if key.is_some() && length >= 8 {
                    assert_ne!(&one[1..], [&own, &one[1 + length..]].concat(), "{length}, {nonce}: not encrypted");
                }
            }
        }
    }

    #[test]
    fn what_is_no_configuration_is_refused() {
        let refused = |configuration, server_id: &[u8], nonce| QuicLb::new(configuration, server_id, nonce, None).err();
        assert_eq!(refused(7, &[1], 4), Some(QuicLbError::Configuration(7)));
        assert_eq!(refused(0, &[], 4), Some(QuicLbError::NoServerId));
        assert_eq!(refused(0, &[1], 3), Some(QuicLbError::Nonce(3)));
        assert_eq!(refused(0, &[1; 8], 12), Some(QuicLbError::TooLong(20)));
        assert!(refused(6, &[1; 15], 4).is_none());
        let secret = QuicLb::new(1, &[0xab], 4, Some(&[7; 16])).unwrap();
        assert_eq!(format!("{secret:?}"), "configuration 1, server id 0xab, nonce of 4 bytes, encrypted");
    }
}

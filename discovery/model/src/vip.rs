//! Virtual addresses: which address of a range an import gets.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use sha2::{Digest, Sha256};

/// Most addresses of a range that are tried. Larger ranges are used as if they had this many
/// addresses from a starting point of their own, so that exhaustion is always found out.
const MAX_PROBES: u64 = 1 << 20;

/// A range of addresses, `address/prefix`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VipRange {
    network: IpAddr,
    prefix: u8,
}

/// Why a text is not a range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VipRangeError {
    /// Not `address/prefix`.
    #[error("must have the form address/prefix, e.g. 242.0.0.0/16")]
    Form,
    /// The prefix is longer than the address.
    #[error("prefix /{0} is too long: at most /{1} leaves room for addresses")]
    Prefix(u8, u8),
    /// Bits are set behind the prefix.
    #[error("is not the first address of its range; did you mean {0}?")]
    HostBits(VipRange),
    /// Unspecified, multicast or broadcast addresses cannot be dialled.
    #[error("holds addresses that nobody can connect to")]
    NotUnicast,
}

impl VipRange {
    /// Whether an address lies in the range.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.is_ipv4() == address.is_ipv4() && mask(address, self.prefix) == self.network
    }

    /// Whether the two share an address.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.network) || other.contains(self.network)
    }

    /// Whether it is a range of IPv4 addresses.
    #[must_use]
    pub fn is_ipv4(&self) -> bool {
        self.network.is_ipv4()
    }

    /// Addresses it can give out, at most `u64::MAX`: all but network and broadcast (IPv4), all but
    /// the subnet-router anycast address (IPv6, RFC 4291 §2.6.1).
    #[must_use]
    pub fn capacity(&self) -> u64 {
        let (bits, reserved) = if self.is_ipv4() { (32, 2) } else { (128, 1) };
        let all = 1_u128.checked_shl(bits - u32::from(self.prefix)).unwrap_or(u128::MAX);
        u64::try_from(all - reserved).unwrap_or(u64::MAX)
    }

    /// The address at `index`, 0 being the first that may be given out.
    fn address(&self, index: u64) -> IpAddr {
        match self.network {
            IpAddr::V4(network) => {
                let offset = u32::try_from(index + 1).unwrap_or(u32::MAX);
                IpAddr::V4(Ipv4Addr::from_bits(network.to_bits().saturating_add(offset)))
            }
            IpAddr::V6(network) => {
                IpAddr::V6(Ipv6Addr::from_bits(network.to_bits().saturating_add(u128::from(index) + 1)))
            }
        }
    }
}

fn mask(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from_bits(address.to_bits() & mask))
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix.min(128))).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & mask))
        }
    }
}

impl FromStr for VipRange {
    type Err = VipRangeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (address, prefix) = text.split_once('/').ok_or(VipRangeError::Form)?;
        let address: IpAddr = address.parse().map_err(|_| VipRangeError::Form)?;
        let digits = prefix.bytes().all(|byte| byte.is_ascii_digit()) && !(prefix.len() > 1 && prefix.starts_with('0'));
        let prefix: u8 = prefix.parse().ok().filter(|_| digits).ok_or(VipRangeError::Form)?;
        let longest = if address.is_ipv4() { 30 } else { 126 };
        if prefix > longest {
            return Err(VipRangeError::Prefix(prefix, longest));
        }
        let range = Self { network: mask(address, prefix), prefix };
        if range.network != address {
            return Err(VipRangeError::HostBits(range));
        }
        let last = range.address(range.capacity());
        let bad = |address: IpAddr| {
            address.is_unspecified() || address.is_multicast() || address == IpAddr::V4(Ipv4Addr::BROADCAST)
        };
        if bad(range.network) || bad(last) {
            return Err(VipRangeError::NotUnicast);
        }
        Ok(range)
    }
}

impl fmt::Display for VipRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

impl serde::Serialize for VipRange {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// All addresses of a range are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("all {tried} addresses of {range} that were tried are taken; add a range under vip.ranges")]
pub struct Exhausted {
    /// The range.
    pub range: VipRange,
    /// How many addresses were tried.
    pub tried: u64,
}

/// The address of `key`, which names what it is for (a service, a name, an endpoint): the one it
/// hashes to, or the next that is not taken. Depends on nothing but the arguments, so that a
/// cluster that lost its records finds most addresses again.
///
/// # Errors
/// [`Exhausted`] if every address tried is taken.
pub fn allocate(range: VipRange, key: &str, taken: impl Fn(IpAddr) -> bool) -> Result<IpAddr, Exhausted> {
    let capacity = range.capacity();
    let mut hash = Sha256::new();
    hash.update(key);
    let digest: [u8; 32] = hash.finalize().into();
    let start = digest.iter().take(8).fold(0_u64, |start, byte| start << 8 | u64::from(*byte)) % capacity;
    let tried = capacity.min(MAX_PROBES);
    let probe = |step: u64| {
        let index = (u128::from(start) + u128::from(step)) % u128::from(capacity);
        range.address(u64::try_from(index).unwrap_or(0))
    };
    (0..tried).map(probe).find(|address| !taken(*address)).ok_or(Exhausted { range, tried })
}

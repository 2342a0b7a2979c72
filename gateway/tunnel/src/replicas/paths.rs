//! Addresses that stand for "this client, by way of that replica".
//!
//! quinn sees a packet that was handed over as one from such an address: the way a packet came is part of its
//! path. So quinn's own rules decide where answers go (RFC 9000 §9): only a packet that is authentic and newer than
//! all others moves a link, the new path is validated, and a link that the balancer gives back moves back. Nobody
//! can move one by replaying a packet, and packets that come directly need no look-up at all.
//!
//! The addresses lie in 100::/64, which no packet on a network may come from (RFC 6666).

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use super::envelope::Flow;
use crate::config::ReplicaId;

/// Clients that are kept, all replicas together.
const SLOTS: usize = 4_096;
/// Places that are tried for a new one when all are taken.
const TRIES: usize = 16;
/// A path that quinn never answered belongs to no link.
const UNANSWERED: Duration = Duration::from_secs(5);
/// A link is long gone after this time without a packet.
const IDLE: Duration = Duration::from_secs(60);

/// The way to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Path {
    /// The replica that its packets arrive at.
    pub(crate) via: ReplicaId,
    /// The client, as that replica sees it.
    pub(crate) flow: Flow,
}

/// All paths.
#[derive(Default)]
pub(crate) struct Paths {
    slots: Vec<Slot>,
    index: HashMap<Path, usize>,
    /// Where the next new one is tried.
    next: usize,
}

struct Slot {
    path: Path,
    /// How often the slot was given to another path: answers to the former one must not go to this one.
    generation: u32,
    heard: Duration,
    answered: bool,
}

impl Paths {
    /// The address that stands for `path`, from which a packet came just now. `None`: there is no room.
    pub(crate) fn enter(&mut self, path: Path, now: Duration) -> Option<SocketAddr> {
        if let Some(slot) = self.index.get(&path).copied() {
            let entry = self.slots.get_mut(slot)?;
            entry.heard = now;
            return address(slot, entry.generation, path.flow.client.port());
        }
        let slot = if self.slots.len() < SLOTS {
            self.slots.push(Slot { path, generation: 0, heard: now, answered: false });
            self.slots.len() - 1
        } else {
            self.reuse(path, now)?
        };
        self.index.insert(path, slot);
        address(slot, self.slots.get(slot)?.generation, path.flow.client.port())
    }

    fn reuse(&mut self, path: Path, now: Duration) -> Option<usize> {
        for _ in 0..TRIES {
            let slot = self.next;
            self.next = (self.next + 1) % SLOTS;
            let entry = self.slots.get_mut(slot)?;
            if now.saturating_sub(entry.heard) > if entry.answered { IDLE } else { UNANSWERED } {
                let generation = entry.generation.wrapping_add(1);
                let former = std::mem::replace(entry, Slot { path, generation, heard: now, answered: false });
                self.index.remove(&former.path);
                return Some(slot);
            }
        }
        None
    }

    /// Where an answer to `address` goes.
    pub(crate) fn answer(&mut self, address: SocketAddr) -> Option<Path> {
        let entry = self.slots.get_mut(position(address)?)?;
        let known = entry.generation == generation(address)? && entry.path.flow.client.port() == address.port();
        entry.answered |= known;
        known.then_some(entry.path)
    }

    /// The client that `address` stands for.
    pub(crate) fn client(&self, address: SocketAddr) -> Option<SocketAddr> {
        let entry = self.slots.get(position(address)?)?;
        (entry.generation == generation(address)?).then_some(entry.path.flow.client)
    }
}

/// Whether `address` stands for a path. Two compares, for every packet.
pub(crate) fn is_path(address: &SocketAddr) -> bool {
    matches!(address, SocketAddr::V6(address) if address.ip().segments().starts_with(&[0x100, 0, 0, 0]))
}

fn address(slot: usize, generation: u32, port: u16) -> Option<SocketAddr> {
    let bits = 0x100_u128 << 112 | u128::from(generation) << 32 | u128::from(u32::try_from(slot).ok()?);
    Some(SocketAddrV6::new(Ipv6Addr::from(bits), port, 0, 0).into())
}

/// The lower half of an address that stands for a path.
fn lower(address: SocketAddr) -> Option<u64> {
    let IpAddr::V6(ip) = address.ip() else { return None };
    let [_, _, _, _, _, _, _, _, lower @ ..] = ip.octets();
    is_path(&address).then(|| u64::from_be_bytes(lower))
}

fn position(address: SocketAddr) -> Option<usize> {
    usize::try_from(lower(address)? & u64::from(u32::MAX)).ok()
}

fn generation(address: SocketAddr) -> Option<u32> {
    u32::try_from(lower(address)? >> 32).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(via: u8, port: u16) -> Path {
        let client = SocketAddr::from(([192, 0, 2, 1], port));
        Path { via: ReplicaId([via; 16]), flow: Flow { client, local: None } }
    }

    #[test]
    fn a_path_has_one_address_and_the_address_leads_back() {
        let (mut paths, now) = (Paths::default(), Duration::ZERO);
        let one = paths.enter(path(1, 5), now).unwrap();
        let two = paths.enter(path(2, 5), now).unwrap();
        assert!(is_path(&one) && one != two);
        assert_eq!(paths.enter(path(1, 5), now), Some(one));
        assert_eq!((paths.answer(one), paths.answer(two)), (Some(path(1, 5)), Some(path(2, 5))));
        assert_eq!(paths.client(two), Some(path(2, 5).flow.client));
        for other in ["192.0.2.1:5", "[2001:db8::1]:5", "[100:0:0:1::1]:5", "[::ffff:100.0.0.1]:5"] {
            let other = other.parse().unwrap();
            assert!(!is_path(&other) && paths.answer(other).is_none());
        }
    }

    #[test]
    fn strangers_cannot_push_out_what_is_in_use() {
        let (mut paths, mut now) = (Paths::default(), Duration::ZERO);
        let used = paths.enter(path(1, 1), now).unwrap();
        assert!(paths.answer(used).is_some());
        for port in 2..=4_096 {
            assert!(paths.enter(path(1, port), now).is_some());
        }
        assert_eq!(paths.enter(path(2, 1), now), None, "full");
        now += UNANSWERED + Duration::from_millis(1);
        for port in 1..=10_000 {
            paths.enter(path(3, port), now);
        }
        assert_eq!(paths.answer(used), Some(path(1, 1)));
        let late = paths.index.get(&path(3, 1)).copied().unwrap();
        assert_eq!(paths.answer(address(late, 0, 1).unwrap()), None, "of the former owner of the slot");
    }
}

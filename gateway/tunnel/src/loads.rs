//! Which services' connections move much: nobody says so when one begins, but those of one service are alike.
//!
//! A service is remembered in a small table by a hash that others cannot foresee. Two that share a place are taken for one,
//! which costs what a wrong guess costs: a stream goes by a transport that is a little slower for it.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU8, Ordering};

use crate::header::StreamHeader;

/// Bytes of a connection that moves much, both directions together.
pub(crate) const MUCH: u64 = 4 << 20;
/// Places of the table.
const PLACES: usize = 1_024;
/// From here on the next connection is expected to move much: two that moved little in a row undo one that did.
const EXPECTED: u8 = 40;

/// See the module's documentation.
pub(crate) struct Loads {
    hash: RandomState,
    places: [AtomicU8; PLACES],
}

/// The place of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Load(u16);

impl Default for Loads {
    fn default() -> Self {
        Self { hash: RandomState::new(), places: [const { AtomicU8::new(0) }; PLACES] }
    }
}

impl Loads {
    /// Where the connection that `header` begins counts; none if it is no connection to a service.
    pub(crate) fn of(&self, header: &StreamHeader) -> Option<Load> {
        let StreamHeader::Service(header) = header else { return None };
        if header.flow.is_some() {
            return None;
        }
        let hash = self.hash.hash_one((header.namespace.as_str(), header.service.as_str(), header.port));
        let place = usize::try_from(hash % PLACES as u64).unwrap_or_default();
        u16::try_from(place).ok().map(Load)
    }

    /// Whether much is expected of the next one.
    pub(crate) fn expects_much(&self, load: Load) -> bool {
        self.place(load).is_some_and(|place| place.load(Ordering::Relaxed) >= EXPECTED)
    }

    /// One moved much, or ended without.
    pub(crate) fn note(&self, load: Load, much: bool) {
        let Some(place) = self.place(load) else { return };
        let before = place.load(Ordering::Relaxed);
        let after = if much { before + (u8::MAX - before) / 4 } else { before - before.div_ceil(4) };
        if after != before {
            place.store(after, Ordering::Relaxed);
        }
    }

    fn place(&self, Load(place): Load) -> Option<&AtomicU8> {
        self.places.get(usize::from(place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn much_is_expected_of_who_moved_much_lately() {
        let (loads, load) = (Loads::default(), Load(7));
        assert!(!loads.expects_much(load), "nobody knows it");
        loads.note(load, true);
        assert!(loads.expects_much(load));
        // Copiers often have a connection for commands beside.
        for _ in 0..50 {
            loads.note(load, false);
            assert!(loads.expects_much(load));
            loads.note(load, true);
        }
        for _ in 0..8 {
            loads.note(load, false);
        }
        assert!(!loads.expects_much(load));
        // One large answer among many small ones.
        loads.note(load, true);
        (0..3).for_each(|_| loads.note(load, false));
        assert!(!loads.expects_much(load));
    }
}

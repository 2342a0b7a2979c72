//! Which port of the gateways stands for which port of which derived Service.
//!
//! The API is the record: the book is filled from the slices that exist when a controller takes over, and a port stays
//! what it is as long as its Service has it. A port that became free is the last to be taken again, because clients may
//! still hold connections that kube-proxy leads to it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::RangeInclusive;

use eastway_model::{PortNumber, Protocol, ServiceKey};
use serde_json::Value;

use super::object::Observed;

/// Ports of the gateways that stand for imports: below what Linux uses for outgoing connections (32768), and
/// NodePorts (30000) are on the nodes' addresses and not on the pods'.
pub const RANGE: RangeInclusive<u16> = 20_000..=31_999;

/// One port of one derived Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slot {
    /// The import it stands for.
    pub import: ServiceKey,
    /// The derived Service, in the import's namespace.
    pub service: String,
    /// Transport.
    pub protocol: Protocol,
    /// The Service's port.
    pub number: PortNumber,
}

/// All ports in use.
#[derive(Debug)]
pub struct PortBook {
    range: RangeInclusive<u16>,
    slots: BTreeMap<Slot, u16>,
    /// Ports of both transports are taken alike: what a number means does not depend on the transport.
    used: BTreeSet<u16>,
    /// Free ports, the one that was in use last at the end.
    free: VecDeque<u16>,
}

impl PortBook {
    /// A book for the gateways' ports `range` with what exists. Of two Services that claim one port the first of
    /// `existing` keeps it, which should be the older one: gateways see it so too, and whoever may write objects in one
    /// namespace must not take a port from another. What lies outside of `range` is not taken over.
    #[must_use]
    pub fn new(range: RangeInclusive<u16>, existing: impl IntoIterator<Item = (Slot, u16)>) -> Self {
        let mut book =
            Self { range: range.clone(), slots: BTreeMap::new(), used: BTreeSet::new(), free: VecDeque::new() };
        for (slot, port) in existing {
            if range.contains(&port) && !book.slots.contains_key(&slot) && book.used.insert(port) {
                book.slots.insert(slot, port);
            }
        }
        // Nobody remembers what was in use before. Above the highest port in use it was most likely nothing.
        let highest = book.used.last().copied().unwrap_or(*range.end());
        let above = range.clone().filter(|port| *port > highest);
        let below = range.filter(|port| *port < highest && !book.used.contains(port));
        book.free = above.chain(below).collect();
        if book.used.is_empty() {
            book.free = book.range.clone().collect();
        }
        book
    }

    /// The port of this slot, if it has one.
    #[must_use]
    pub fn get(&self, slot: &Slot) -> Option<u16> {
        self.slots.get(slot).copied()
    }

    /// The port of this slot, a new one if it had none. `None`: all are in use.
    pub fn take(&mut self, slot: Slot) -> Option<u16> {
        if let Some(port) = self.slots.get(&slot) {
            return Some(*port);
        }
        let port = self.free.pop_front()?;
        self.used.insert(port);
        self.slots.insert(slot, port);
        Some(port)
    }

    /// Gives up all ports of an import but those that `keep` wants.
    pub fn retain(&mut self, import: &ServiceKey, keep: impl Fn(&Slot) -> bool) {
        let first =
            Slot { import: import.clone(), service: String::new(), protocol: Protocol::Tcp, number: PortNumber::MIN };
        let own = self.slots.range(first..).map(|(slot, _)| slot).take_while(|slot| slot.import == *import);
        let gone: Vec<Slot> = own.filter(|slot| !keep(slot)).cloned().collect();
        for slot in gone {
            if let Some(port) = self.slots.remove(&slot) {
                self.used.remove(&port);
                self.free.push_back(port);
            }
        }
    }

    /// How many ports are in use.
    #[must_use]
    pub fn len(&self) -> usize {
        self.used.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.used.is_empty()
    }

    /// The ports that are given out.
    #[must_use]
    pub fn range(&self) -> &RangeInclusive<u16> {
        &self.range
    }
}

/// The ports that a slice of the derived Service `service` says are in use, for [`PortBook::new`]: ports of a Service
/// and of its slices belong together by name.
#[must_use]
pub fn of_slice(import: &ServiceKey, service: &Observed, slice: &Observed) -> Vec<(Slot, u16)> {
    let name = |port: &Value| port.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
    let pairs = slice.list("/ports").iter().filter_map(|port| {
        let number = u16::try_from(port.get("port")?.as_u64()?).ok()?;
        let of_service = service.list("/spec/ports").iter().find(|candidate| name(candidate) == name(port))?;
        Some((slot_of(import, service.text("/metadata/name"), of_service)?, number))
    });
    pairs.collect()
}

/// The slot of a port of a derived Service, as the API has it.
#[must_use]
pub fn slot_of(import: &ServiceKey, service: &str, port: &Value) -> Option<Slot> {
    let number = PortNumber::new(u16::try_from(port.get("port")?.as_u64()?).ok()?)?;
    let protocol = match port.get("protocol").and_then(Value::as_str) {
        Some("UDP") => Protocol::Udp,
        Some("SCTP") => Protocol::Sctp,
        Some("TCP") | None => Protocol::Tcp,
        Some(_) => return None,
    };
    Some(Slot { import: import.clone(), service: service.to_owned(), protocol, number })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn slot(service: &str, number: u16) -> Slot {
        Slot {
            import: ServiceKey::parse("shop", service).unwrap(),
            service: format!("derived-{service}"),
            protocol: Protocol::Tcp,
            number: PortNumber::new(number).unwrap(),
        }
    }

    fn drop_all(book: &mut PortBook, service: &str) {
        book.retain(&ServiceKey::parse("shop", service).unwrap(), |_| false);
    }

    #[test]
    fn a_slot_keeps_its_port_and_a_free_one_waits_longest() {
        let mut book = PortBook::new(20_000..=20_003, []);
        assert_eq!(book.take(slot("a", 80)), Some(20_000));
        assert_eq!(book.take(slot("b", 80)), Some(20_001));
        assert_eq!(book.take(slot("a", 80)), Some(20_000));
        drop_all(&mut book, "a");
        assert_eq!(book.take(slot("c", 80)), Some(20_002));
        assert_eq!(book.take(slot("d", 80)), Some(20_003));
        assert_eq!(book.take(slot("e", 80)), Some(20_000));
        assert_eq!(book.take(slot("f", 80)), None, "exhaustion is an answer, no crash");
        drop_all(&mut book, "b");
        assert_eq!(book.take(slot("f", 80)), Some(20_001));
    }

    #[test]
    fn a_new_leader_finds_the_same_ports() {
        let existing = [(slot("a", 80), 20_005), (slot("b", 80), 20_005), (slot("c", 80), 20_001), (slot("d", 1), 9)];
        let mut book = PortBook::new(20_000..=20_007, existing);
        assert_eq!(book.get(&slot("a", 80)), Some(20_005));
        assert_eq!(book.get(&slot("b", 80)), None, "claimed by two");
        assert_eq!(book.get(&slot("c", 80)), Some(20_001));
        assert_eq!(book.get(&slot("d", 1)), None, "not of the range");
        assert_eq!(book.take(slot("b", 80)), Some(20_006), "what was likely never used comes first");
        assert_eq!(book.len(), 3);
    }

    #[test]
    fn only_the_ports_of_one_import_are_given_up() {
        let mut book = PortBook::new(RANGE, []);
        for (service, number) in [("a", 80), ("a", 81), ("a-b", 80), ("b", 80)] {
            book.take(slot(service, number));
        }
        book.retain(&ServiceKey::parse("shop", "a").unwrap(), |slot| slot.number.get() == 81);
        assert_eq!(book.get(&slot("a", 80)), None);
        assert!(book.get(&slot("a", 81)).is_some());
        assert!(book.get(&slot("a-b", 80)).is_some() && book.get(&slot("b", 80)).is_some());
    }

    proptest! {
        #[test]
        fn no_port_has_two_slots(steps in prop::collection::vec((0_u16..12, any::<bool>()), 0..200)) {
            let mut book = PortBook::new(20_000..=20_009, []);
            for (service, take) in steps {
                let service = format!("s{service}");
                if take {
                    let full = book.len() == 10;
                    let known = book.get(&slot(&service, 80)).is_some();
                    prop_assert_eq!(book.take(slot(&service, 80)).is_none(), full && !known);
                } else {
                    drop_all(&mut book, &service);
                }
                let ports: BTreeSet<u16> = book.slots.values().copied().collect();
                prop_assert_eq!(ports.len(), book.slots.len());
                prop_assert_eq!(&ports, &book.used);
                prop_assert_eq!(book.free.len() + book.used.len(), 10);
            }
        }
    }
}

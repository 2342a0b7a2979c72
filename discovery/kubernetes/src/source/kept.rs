//! What is kept of objects, in as little memory as it takes: a cluster has ten times as many pods as services.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use eastway_model::{Label, Pairs, PortKey, Subset};

use super::mesh::Sidecar;

/// What tells objects of one name apart. Almost always a UUID, which is kept as its bytes.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Uid {
    Uuid([u8; 16]),
    Other(Arc<str>),
}

impl Uid {
    fn uuid(text: &str) -> Option<[u8; 16]> {
        const HYPHENS: [usize; 4] = [8, 13, 18, 23];
        if text.len() != 36 {
            return None;
        }
        let mut digits = [0; 32];
        let mut places = digits.iter_mut();
        for (place, byte) in text.bytes().enumerate() {
            match byte {
                b'-' if HYPHENS.contains(&place) => {}
                // Others would not be written the same again.
                b'0'..=b'9' if !HYPHENS.contains(&place) => *places.next()? = byte - b'0',
                b'a'..=b'f' if !HYPHENS.contains(&place) => *places.next()? = byte - b'a' + 10,
                _ => return None,
            }
        }
        let mut bytes = [0; 16];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            if let [high, low] = pair {
                *byte = high << 4 | low;
            }
        }
        Some(bytes)
    }
}

impl From<&str> for Uid {
    fn from(text: &str) -> Self {
        Self::uuid(text).map_or_else(|| Self::Other(text.into()), Self::Uuid)
    }
}

/// As the API server writes it.
impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uuid(bytes) => {
                for (place, byte) in bytes.iter().enumerate() {
                    let hyphen = if matches!(place, 4 | 6 | 8 | 10) { "-" } else { "" };
                    write!(f, "{hyphen}{byte:02x}")?;
                }
                Ok(())
            }
            Self::Other(text) => f.write_str(text),
        }
    }
}

impl fmt::Debug for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What is kept of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodView {
    pub(crate) uid: Uid,
    pub(crate) name: Arc<str>,
    pub(crate) namespace: Label,
    pub(crate) service_account: Option<Label>,
    pub(crate) subset: Subset,
    /// What stands beside its workload; `None`: nothing that counts.
    pub(crate) sidecar: Option<Arc<Sidecar>>,
    /// Each once.
    pub(crate) addresses: Few<IpAddr>,
}

/// A list that almost always has one item, which then needs no memory of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Few<T> {
    One(T),
    Other(Vec<T>),
}

impl<T> Few<T> {
    pub(crate) fn as_slice(&self) -> &[T] {
        match self {
            Self::One(item) => std::slice::from_ref(item),
            Self::Other(items) => items,
        }
    }

    pub(crate) fn push(&mut self, item: T) {
        *self = match std::mem::take(self) {
            Self::Other(items) if items.is_empty() => Self::One(item),
            Self::Other(mut items) => {
                items.push(item);
                Self::Other(items)
            }
            Self::One(first) => Self::Other(vec![first, item]),
        };
    }

    pub(crate) fn retain(&mut self, keep: impl FnMut(&T) -> bool) {
        let mut items = match std::mem::take(self) {
            Self::One(item) => vec![item],
            Self::Other(items) => items,
        };
        items.retain(keep);
        *self = items.into();
    }
}

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self::Other(Vec::new())
    }
}

impl<T> From<Vec<T>> for Few<T> {
    fn from(mut items: Vec<T>) -> Self {
        match items.pop() {
            Some(only) if items.is_empty() => Self::One(only),
            Some(last) => {
                items.push(last);
                Self::Other(items)
            }
            None => Self::default(),
        }
    }
}

/// Most texts that are kept once: a cluster has fewer at a time, and over the years it may have more.
const INTERNED: usize = 4096;

/// What few objects have of their own: namespaces, service accounts, zones, versions, ports. Each is kept once.
#[derive(Debug, Default)]
pub(crate) struct Interner {
    labels: HashMap<Box<str>, Label>,
    texts: HashSet<Arc<str>>,
    subsets: BTreeSet<Subset>,
    ports: BTreeSet<Pairs<PortKey, u16>>,
    sidecars: HashSet<Arc<Sidecar>>,
}

impl Interner {
    pub(crate) fn label(&mut self, text: &str) -> Option<Label> {
        if let Some(label) = self.labels.get(text) {
            return Some(label.clone());
        }
        let label = Label::parse(text).ok()?;
        if self.labels.len() >= INTERNED {
            self.labels.clear();
        }
        self.labels.insert(text.into(), label.clone());
        Some(label)
    }

    pub(crate) fn text(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.texts.get(text) {
            return Arc::clone(known);
        }
        if self.texts.len() >= INTERNED {
            self.texts.clear();
        }
        let text: Arc<str> = text.into();
        self.texts.insert(Arc::clone(&text));
        text
    }

    pub(crate) fn subset(&mut self, subset: Subset) -> Subset {
        once(&mut self.subsets, subset)
    }

    pub(crate) fn sidecar(&mut self, sidecar: Sidecar) -> Arc<Sidecar> {
        if let Some(known) = self.sidecars.get(&sidecar) {
            return Arc::clone(known);
        }
        if self.sidecars.len() >= INTERNED {
            self.sidecars.clear();
        }
        let sidecar = Arc::new(sidecar);
        self.sidecars.insert(Arc::clone(&sidecar));
        sidecar
    }

    pub(crate) fn ports(&mut self, ports: Pairs<PortKey, u16>) -> Pairs<PortKey, u16> {
        once(&mut self.ports, ports)
    }
}

fn once<K: Ord + Clone, V: Ord + Clone>(known: &mut BTreeSet<Pairs<K, V>>, pairs: Pairs<K, V>) -> Pairs<K, V> {
    if let Some(known) = known.get(&pairs) {
        return known.clone();
    }
    if known.len() >= INTERNED {
        known.clear();
    }
    known.insert(pairs.clone());
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uid_is_written_as_it_was_read() {
        let uuid = "3f2a7d06-5a1f-4a8f-9d3e-1c0b6a4f7e21";
        assert!(matches!(Uid::from(uuid), Uid::Uuid(_)));
        let others = ["3F2A7D06-5a1f-4a8f-9d3e-1c0b6a4f7e21", "3f2a7d06-5a1f-4a8f-9d3e-1c0b6a4f7e2-", "cart-0", ""];
        for other in others {
            assert!(matches!(Uid::from(other), Uid::Other(_)), "{other}");
        }
        for text in others.into_iter().chain([uuid]) {
            assert_eq!(Uid::from(text).to_string(), text);
        }
    }

    #[test]
    fn few_is_a_list() {
        let mut few = Few::default();
        few.push(1);
        assert_eq!(few, Few::One(1));
        few.push(2);
        few.push(3);
        assert_eq!(few.as_slice(), [1, 2, 3]);
        few.retain(|item| *item == 2);
        assert_eq!(few, Few::One(2));
        few.retain(|_| false);
        assert!(few.as_slice().is_empty());
    }
}

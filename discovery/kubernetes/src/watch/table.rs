//! What a watch knows, and what an event changes in it. No network, no clock.
//!
//! Only names and versions are kept: the objects themselves are their reader's. A relist is collected
//! until it is complete and then told as one difference; what stayed the same is not told.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::watcher::Event;

use super::decode::Decoded;

/// Which object of one kind: sorted by namespace, then name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    /// Its namespace; empty for what has none.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

impl ObjectName {
    /// The name of the object `name` in `namespace`.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

impl serde::Serialize for ObjectName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What became different.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference<K: ?Sized> {
    /// Added or changed; perhaps another object of the same name.
    Set(ObjectName, Arc<K>),
    /// Gone.
    Gone(ObjectName),
}

/// One version of one object, as hashes with a secret of the table: equal ones are meant to be the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Version {
    uid: u64,
    resource_version: u64,
}

/// An object that does not decode.
#[derive(Clone, Debug)]
struct Bad {
    version: Version,
    error: String,
}

impl Bad {
    /// Whether this is another mistake, or one of another object: a status that is written below it, or a field beside
    /// it, makes a new version and moves its place.
    fn is_other(&self, version: &Version, error: &str) -> bool {
        let reason = |error: &str| error.split(" at line ").next().map(ToOwned::to_owned);
        self.version.uid != version.uid || reason(&self.error) != reason(error)
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Table<K: ?Sized> {
    /// The version of each object that was told.
    known: HashMap<ObjectName, Version>,
    /// Objects whose latest version does not decode. If an earlier one of the same object did, that one
    /// stays told: a mistake in an object removes nothing.
    bad: BTreeMap<ObjectName, Bad>,
    /// A list that is being read.
    listing: Option<Listing<K>>,
    listed: bool,
    /// The objects of the first list are told as they come.
    pub(super) eager: bool,
    secret: RandomState,
    /// That of the object before: lists come sorted by it.
    namespace: Arc<str>,
}

#[derive(Debug)]
struct Listing<K: ?Sized> {
    seen: HashSet<ObjectName>,
    changed: HashMap<ObjectName, (Version, Arc<K>)>,
    bad: BTreeMap<ObjectName, Bad>,
}

/// What an event leads to.
#[derive(Debug)]
pub(super) struct Outcome<K: ?Sized> {
    pub(super) differences: Vec<Difference<K>>,
    /// Objects that do not decode for a reason that was not met before, and why.
    pub(super) quarantined: Vec<(ObjectName, String)>,
}

impl<K: ?Sized> Default for Table<K> {
    fn default() -> Self {
        Self {
            known: HashMap::new(),
            bad: BTreeMap::new(),
            listing: None,
            listed: false,
            eager: false,
            secret: RandomState::new(),
            namespace: Arc::from(""),
        }
    }
}

impl<K: ?Sized> Default for Listing<K> {
    fn default() -> Self {
        Self { seen: HashSet::new(), changed: HashMap::new(), bad: BTreeMap::new() }
    }
}

impl<K: ?Sized> Default for Outcome<K> {
    fn default() -> Self {
        Self { differences: Vec::new(), quarantined: Vec::new() }
    }
}

impl<K: ?Sized> Table<K> {
    /// Whether a list was read to its end at least once.
    pub(super) fn listed(&self) -> bool {
        self.listed
    }

    /// Objects that are known.
    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    /// Objects whose latest version does not decode, and why.
    pub(super) fn bad(&self) -> impl ExactSizeIterator<Item = (&ObjectName, &str)> {
        self.bad.iter().map(|(name, bad)| (name, bad.error.as_str()))
    }

    pub(super) fn handle(&mut self, event: Event<Decoded<K>>) -> Outcome<K> {
        match event {
            Event::Init => {
                // What a first list told before it broke off may be gone in the next one: that is compared.
                let first = self.eager && self.known.is_empty() && self.bad.is_empty();
                self.listing = (!first).then(Listing::default);
                Outcome::default()
            }
            Event::InitApply(object) => self.list(object),
            Event::InitDone => self.finish(),
            Event::Apply(object) => self.apply(object),
            Event::Delete(object) => self.delete(object),
        }
    }

    /// Which object it is, and which version of it.
    fn identify(&mut self, meta: &ObjectMeta) -> (ObjectName, Version) {
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        if *self.namespace != *namespace {
            self.namespace = namespace.into();
        }
        let name = ObjectName {
            namespace: Arc::clone(&self.namespace),
            name: meta.name.as_deref().unwrap_or_default().into(),
        };
        let version = Version {
            uid: self.secret.hash_one(meta.uid.as_deref().unwrap_or_default()),
            resource_version: self.secret.hash_one(meta.resource_version.as_deref().unwrap_or_default()),
        };
        (name, version)
    }

    fn list(&mut self, object: Decoded<K>) -> Outcome<K> {
        let mut outcome = Outcome::default();
        if self.listing.is_none() {
            return self.apply(object);
        }
        let (meta, body) = object.into_parts();
        let (name, version) = self.identify(&meta);
        let Some(listing) = &mut self.listing else { return outcome };
        if body.is_ok() || self.known.get(&name).is_some_and(|known| known.uid == version.uid) {
            listing.seen.insert(name.clone());
        } else {
            listing.seen.remove(&name);
        }
        listing.changed.remove(&name);
        listing.bad.remove(&name);
        match body {
            Ok(object) if self.known.get(&name) != Some(&version) || self.bad.contains_key(&name) => {
                listing.changed.insert(name, (version, object));
            }
            Ok(_) => {}
            Err(error) => {
                if self.bad.get(&name).is_none_or(|bad| bad.is_other(&version, &error)) {
                    outcome.quarantined.push((name.clone(), error.clone()));
                }
                listing.bad.insert(name, Bad { version, error });
            }
        }
        outcome
    }

    fn finish(&mut self) -> Outcome<K> {
        self.listed = true;
        let mut outcome = Outcome::default();
        let Some(listing) = self.listing.take() else { return outcome };
        self.bad = listing.bad;
        let gone: Vec<_> = self.known.keys().filter(|name| !listing.seen.contains(*name)).cloned().collect();
        for name in gone {
            self.known.remove(&name);
            outcome.differences.push(Difference::Gone(name));
        }
        for (name, (version, object)) in listing.changed {
            self.known.insert(name.clone(), version);
            outcome.differences.push(Difference::Set(name, object));
        }
        outcome
    }

    fn apply(&mut self, object: Decoded<K>) -> Outcome<K> {
        let mut outcome = Outcome::default();
        let (meta, body) = object.into_parts();
        let (name, version) = self.identify(&meta);
        match body {
            Ok(object) => {
                let was_bad = self.bad.remove(&name).is_some();
                if was_bad || self.known.get(&name) != Some(&version) {
                    self.known.insert(name.clone(), version);
                    outcome.differences.push(Difference::Set(name, object));
                }
            }
            Err(error) => {
                if self.bad.get(&name).is_none_or(|bad| bad.is_other(&version, &error)) {
                    outcome.quarantined.push((name.clone(), error.clone()));
                }
                if self.known.get(&name).is_some_and(|known| known.uid != version.uid) {
                    self.known.remove(&name);
                    outcome.differences.push(Difference::Gone(name.clone()));
                }
                self.bad.insert(name, Bad { version, error });
            }
        }
        outcome
    }

    fn delete(&mut self, object: Decoded<K>) -> Outcome<K> {
        let mut outcome = Outcome::default();
        let (name, _) = self.identify(&object.into_parts().0);
        self.bad.remove(&name);
        if self.known.remove(&name).is_some() {
            outcome.differences.push(Difference::Gone(name));
        }
        outcome
    }
}

#[cfg(test)]
mod tests;

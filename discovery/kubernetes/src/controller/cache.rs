//! The objects of the API that the controller looks at, by the service they belong to.
//!
//! Objects are kept as text: there are three to four per import, and a parsed one takes several times as much. They are
//! parsed when their service is looked at.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use eastway_model::ServiceKey;
use serde_json::Value;

use super::names;
use super::object::{Kind, Observed, Seen};
use super::ports::{self, Slot};

/// All objects.
#[derive(Debug, Default)]
pub struct Cache {
    services: BTreeMap<ServiceKey, Entry>,
    /// The service of objects that are not called like it.
    index: HashMap<(Kind, String, String), ServiceKey>,
    namespaces: BTreeSet<String>,
}

#[derive(Debug, Default)]
struct Entry {
    objects: BTreeMap<(Kind, String), Stored>,
    /// Names that we want and somebody else has.
    foreign: BTreeSet<String>,
    /// What the API server said when it last took something not.
    refused: Option<String>,
}

#[derive(Debug)]
struct Stored {
    version: u64,
    text: Box<str>,
}

impl Cache {
    /// Takes an object as it was read or written. An older version than the one known is ignored: a watch lags behind
    /// what was just written. Returns the service it belongs to, if that may have changed.
    pub fn put(&mut self, kind: Kind, mut object: Value) -> Option<ServiceKey> {
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("managedFields");
        }
        let observed = Observed::new(object);
        let (namespace, name) = (observed.text("/metadata/namespace"), observed.text("/metadata/name"));
        let service = match kind {
            Kind::ServiceImport | Kind::ServiceExport => name,
            Kind::Service => observed.label(names::SERVICE),
            Kind::EndpointSlice | Kind::WorkloadEntry | Kind::ServiceEntry => observed.label(names::IMPORT),
        };
        // What is not the name of a service that we can have is not ours.
        let key = ServiceKey::parse(namespace, service).ok();
        let before = self.key_of(kind, namespace, name);
        if before.is_some() && before != key {
            self.remove(kind, namespace, name);
        }
        let key = key?;
        let version = observed.text("/metadata/resourceVersion").parse().unwrap_or_default();
        let entry = self.services.entry(key.clone()).or_default();
        let place = (kind, name.to_owned());
        if entry.objects.get(&place).is_some_and(|known| known.version >= version) {
            return None;
        }
        entry.objects.insert(place, Stored { version, text: observed.body().to_string().into() });
        if !matches!(kind, Kind::ServiceImport | Kind::ServiceExport) {
            self.index.insert((kind, namespace.to_owned(), name.to_owned()), key.clone());
        }
        Some(key)
    }

    /// An object is gone. Returns the service it belonged to.
    pub fn remove(&mut self, kind: Kind, namespace: &str, name: &str) -> Option<ServiceKey> {
        let key = self.key_of(kind, namespace, name)?;
        self.index.remove(&(kind, namespace.to_owned(), name.to_owned()));
        let entry = self.services.get_mut(&key)?;
        entry.objects.remove(&(kind, name.to_owned()));
        entry.foreign.remove(name);
        self.tidy(&key);
        Some(key)
    }

    /// A namespace came or went. Returns the services in it that are known here.
    pub fn set_namespace(&mut self, namespace: &str, exists: bool) -> BTreeSet<ServiceKey> {
        let changed =
            if exists { self.namespaces.insert(namespace.to_owned()) } else { self.namespaces.remove(namespace) };
        if !changed {
            return BTreeSet::new();
        }
        self.services.keys().filter(|key| key.namespace.as_str() == namespace).cloned().collect()
    }

    /// All namespaces.
    #[must_use]
    pub fn namespaces(&self) -> &BTreeSet<String> {
        &self.namespaces
    }

    /// A name that we want belongs to somebody else.
    pub fn set_foreign(&mut self, key: &ServiceKey, name: &str) {
        self.services.entry(key.clone()).or_default().foreign.insert(name.to_owned());
    }

    /// Names that somebody else had are looked at again.
    pub fn forget_foreign(&mut self, key: &ServiceKey) {
        if let Some(entry) = self.services.get_mut(key) {
            entry.foreign.clear();
            self.tidy(key);
        }
    }

    /// What the API server does not take of what is wanted for a service. Returns whether that is news.
    pub fn set_refused(&mut self, key: &ServiceKey, refused: Option<String>) -> bool {
        match self.services.get_mut(key) {
            Some(entry) => std::mem::replace(&mut entry.refused, refused.clone()) != refused,
            None if refused.is_none() => false,
            None => {
                self.services.entry(key.clone()).or_default().refused = refused;
                true
            }
        }
    }

    /// What there is of a service.
    #[must_use]
    pub fn seen(&self, key: &ServiceKey) -> Seen {
        let mut seen = Seen { namespace: self.namespaces.contains(key.namespace.as_str()), ..Seen::default() };
        let Some(entry) = self.services.get(key) else { return seen };
        seen.foreign.clone_from(&entry.foreign);
        seen.refused.clone_from(&entry.refused);
        for ((kind, name), stored) in &entry.objects {
            let observed = stored.parse();
            match kind {
                Kind::ServiceImport => seen.import = Some(observed),
                Kind::ServiceExport => seen.export = Some(observed),
                // Without the import as its owner it was not made by a controller of ours.
                Kind::Service | Kind::EndpointSlice | Kind::WorkloadEntry | Kind::ServiceEntry
                    if !observed.is_of_import(key.name.as_str()) =>
                {
                    seen.foreign.insert(name.clone());
                }
                Kind::Service => _ = seen.services.insert(name.clone(), observed),
                Kind::EndpointSlice => _ = seen.slices.insert(name.clone(), observed),
                Kind::WorkloadEntry | Kind::ServiceEntry => {
                    seen.entries.insert((*kind, name.clone()), observed);
                }
            }
        }
        seen
    }

    /// All services that objects belong to.
    pub fn keys(&self) -> impl Iterator<Item = &ServiceKey> {
        self.services.keys()
    }

    /// The ports of the gateways that are in use by what exists, those of the oldest slices first.
    #[must_use]
    pub fn ports(&self) -> Vec<(Slot, u16)> {
        let mut ports: Vec<(String, Vec<(Slot, u16)>)> = Vec::new();
        for key in self.keys() {
            let seen = self.seen(key);
            for slice in seen.slices.values() {
                if let Some(service) = seen.services.get(slice.label(names::SLICE_SERVICE)) {
                    let made = slice.text("/metadata/creationTimestamp").to_owned();
                    ports.push((made, ports::of_slice(key, service, slice)));
                }
            }
        }
        ports.sort_by(|a, b| a.0.cmp(&b.0));
        ports.into_iter().flat_map(|(_, ports)| ports).collect()
    }

    fn key_of(&self, kind: Kind, namespace: &str, name: &str) -> Option<ServiceKey> {
        match kind {
            Kind::ServiceImport | Kind::ServiceExport => ServiceKey::parse(namespace, name).ok(),
            Kind::Service | Kind::EndpointSlice | Kind::WorkloadEntry | Kind::ServiceEntry => {
                self.index.get(&(kind, namespace.to_owned(), name.to_owned())).cloned()
            }
        }
    }

    fn tidy(&mut self, key: &ServiceKey) {
        if self
            .services
            .get(key)
            .is_some_and(|entry| entry.objects.is_empty() && entry.foreign.is_empty() && entry.refused.is_none())
        {
            self.services.remove(key);
        }
    }
}

impl Stored {
    fn parse(&self) -> Observed {
        // It was a value before it was a text.
        Observed::new(serde_json::from_str(&self.text).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn slice(name: &str, import: &str, version: u32) -> Value {
        json!({ "metadata": {
            "namespace": "shop", "name": name, "resourceVersion": version.to_string(), "managedFields": [{}],
            "labels": { names::IMPORT: import, names::MANAGED_BY: names::EASTWAY },
            "ownerReferences": [{ "kind": "ServiceImport", "name": import }],
        } })
    }

    fn key(name: &str) -> ServiceKey {
        ServiceKey::parse("shop", name).unwrap()
    }

    #[test]
    fn a_lagging_watch_does_not_undo_what_was_written() {
        let mut cache = Cache::default();
        assert_eq!(cache.put(Kind::EndpointSlice, slice("a", "cart", 7)), Some(key("cart")));
        assert_eq!(cache.put(Kind::EndpointSlice, slice("a", "cart", 6)), None);
        assert_eq!(cache.put(Kind::EndpointSlice, slice("a", "cart", 7)), None);
        assert_eq!(cache.seen(&key("cart")).slices["a"].text("/metadata/resourceVersion"), "7");
        assert!(cache.seen(&key("cart")).slices["a"].at("/metadata/managedFields").is_null());
    }

    #[test]
    fn what_is_gone_is_forgotten() {
        let mut cache = Cache::default();
        cache.put(Kind::EndpointSlice, slice("a", "cart", 1));
        cache.put(Kind::EndpointSlice, slice("b", "mail", 2));
        assert_eq!(cache.remove(Kind::EndpointSlice, "shop", "a"), Some(key("cart")));
        assert_eq!(cache.remove(Kind::EndpointSlice, "shop", "a"), None);
        assert_eq!(cache.keys().collect::<Vec<_>>(), [&key("mail")]);
    }

    #[test]
    fn what_the_import_does_not_own_is_foreign() {
        let mut cache = Cache::default();
        let mut theirs = slice("a", "cart", 1);
        theirs["metadata"]["ownerReferences"] = json!([]);
        cache.put(Kind::EndpointSlice, theirs);
        let seen = cache.seen(&key("cart"));
        assert!(seen.slices.is_empty() && seen.foreign.contains("a"));
    }

    #[test]
    fn i6_an_object_that_only_looks_like_ours_takes_no_port_of_another() {
        let mut cache = Cache::default();
        for (namespace, made) in [("attic", "2026-11-28T11:00:00Z"), ("shop", "2026-11-28T10:00:00Z")] {
            let metadata = |name: &str| {
                json!({
                    "namespace": namespace, "name": name, "resourceVersion": "1", "creationTimestamp": made,
                    "labels": {
                        names::IMPORT: "cart", names::SERVICE: "cart", names::SLICE_SERVICE: "derived-a",
                        names::MANAGED_BY: names::EASTWAY,
                    },
                    "ownerReferences": [{ "kind": "ServiceImport", "name": "cart" }],
                })
            };
            let service = json!({ "metadata": metadata("derived-a"), "spec": { "ports": [{ "port": 80 }] } });
            cache.put(Kind::Service, service);
            let slice = json!({ "metadata": metadata("derived-a.gke"), "ports": [{ "port": 20_000 }] });
            cache.put(Kind::EndpointSlice, slice);
        }
        let slots: Vec<String> = cache.ports().iter().map(|(slot, _)| slot.import.to_string()).collect();
        assert_eq!(slots, ["shop/cart", "attic/cart"]);
        let book = ports::PortBook::new(ports::RANGE, cache.ports());
        assert_eq!(book.len(), 1);
    }

    #[test]
    fn a_relabelled_object_moves_to_its_new_service() {
        let mut cache = Cache::default();
        cache.put(Kind::EndpointSlice, slice("a", "cart", 1));
        cache.put(Kind::EndpointSlice, slice("a", "mail", 2));
        assert!(cache.seen(&key("cart")).slices.is_empty());
        assert_eq!(cache.seen(&key("mail")).slices.len(), 1);
    }
}

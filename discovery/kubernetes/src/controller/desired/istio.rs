//! What istiod is told of services of peers that run Istio, where the clusters of these peers are networks of its own.
//!
//! A service that this cluster has and exports is *stretched*: WorkloadEntries have the labels that its Service selects, and so
//! its host gains endpoints in other networks. A service that only peers have is a ServiceEntry, by its clusterset name and with
//! the address of its import. Neither holds an address of a peer (invariant I1), which istiod does not need: it leads to
//! the gateway of the network, and that is ours. Of a network without a gateway it leaves such endpoints out.
//!
//! istiod makes one endpoint of all those of a network and a locality, of the sum of their weights. So there is one entry for a
//! version, zone and account, with the number of its endpoints as weight, however many these are.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use eastway_model::app_protocol::AppProtocol;
use eastway_model::{
    ClusterName, EndpointGroup, Import, ImportPart, Label, PortNumber, Protocol, ServiceKey, ServicePort, TlsMode,
};
use serde_json::{Map, Value, json};

use super::import::is_plain_label;
use super::{Draft, World};
use crate::controller::names;
use crate::controller::object::{Kind, Object, Seen};
use crate::controller::selection::Selection;

/// What is known of the Istio of this cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Istio {
    /// What it calls the networks of peers.
    pub networks: BTreeMap<ClusterName, Label>,
    /// Names of one's own that lead to a service wherever it is.
    pub names: BTreeMap<ServiceKey, BTreeSet<Arc<str>>>,
}

/// Most entries for one service.
const MAX_ENTRIES: usize = 500;
/// Largest weight of an entry. Sums of them stay far below what istiod counts with.
const MAX_WEIGHT: u64 = 100_000;
/// The weight that an endpoint has unless its owner says otherwise. In Istio that is 1.
const USUAL_WEIGHT: u64 = 100;
/// Label of endpoints that speak mutual TLS: istiod leaves out those of other networks that do not.
const TLS_MODE: (&str, &str) = ("security.istio.io/tlsMode", "istio");
/// Annotation of a derived Service, and the value that hides it from sidecars: the ServiceEntry has its address.
const EXPORT_TO: (&str, &str) = ("networking.istio.io/exportTo", "~");

/// What the condition of an import begins with that tells of it.
pub const WITHHELD: &str = "Istio's sidecars reach only its address: ";

/// What is told of an import.
#[derive(Debug)]
pub(super) enum Plan<'a> {
    /// Nothing: it goes by its address, as for those without a sidecar.
    Nothing,
    /// Nothing, and people should know why.
    Withheld(String),
    /// More endpoints for the Service of this cluster.
    Stretched {
        /// They.
        entries: Vec<Entry<'a>>,
        /// What that Service selects.
        selection: &'a Selection,
        /// All endpoints of peers are among them: its clusterset name can lead to the same.
        named: bool,
        /// So many are not told, because there are too many.
        left_out: usize,
    },
    /// A service by its clusterset name.
    Remote {
        /// Its endpoints.
        entries: Vec<Entry<'a>>,
        /// So many are not told, because there are too many.
        left_out: usize,
    },
}

/// Endpoints of a peer that are one to istiod.
#[derive(Debug)]
pub(super) struct Entry<'a> {
    cluster: &'a ClusterName,
    network: &'a Label,
    group: &'a EndpointGroup,
    account: &'a Label,
    weight: u64,
}

impl Plan<'_> {
    /// Annotations of the derived Service.
    pub(super) fn annotations(&self) -> Value {
        match self {
            Self::Remote { .. } | Self::Stretched { named: true, .. } => json!({ EXPORT_TO.0: EXPORT_TO.1 }),
            Self::Nothing | Self::Withheld(_) | Self::Stretched { .. } => json!({}),
        }
    }

    /// What people are told beside that the import works.
    pub(super) fn note(&self) -> Option<String> {
        match self {
            Self::Withheld(why) => Some(format!("{WITHHELD}{why}")),
            Self::Stretched { left_out: more @ 1.., .. } | Self::Remote { left_out: more @ 1.., .. } => Some(format!(
                "Istio's sidecars are told of {MAX_ENTRIES} kinds of its endpoints elsewhere, and not of {more} more"
            )),
            Self::Nothing | Self::Stretched { .. } | Self::Remote { .. } => None,
        }
    }
}

/// Decides what is told.
pub(super) fn plan<'a>(world: &World<'a>, key: &ServiceKey, seen: &'a Seen, import: &'a Import) -> Plan<'a> {
    let Some(Istio { networks, .. }) = world.istio else { return Plan::Nothing };
    let of = |part: &'a ImportPart| Some((part, networks.get(part.cluster.as_ref()?)?));
    let remote: Vec<(&ImportPart, &Label)> = import.parts.iter().filter_map(of).collect();
    if remote.is_empty() {
        return Plan::Nothing;
    }
    let mut entries = entries(world, key, import, &remote);
    let left_out = entries.len().saturating_sub(MAX_ENTRIES);
    entries.truncate(MAX_ENTRIES);
    if import.part(None).is_none() {
        let all = !entries.is_empty() && all_speak_istio(import, networks);
        return if all { Plan::Remote { entries, left_out } } else { Plan::Nothing };
    }
    let Some(selection) = seen.selection.as_deref() else {
        let why =
            "the Service of its name here has no selector, or no address, so that it cannot have endpoints elsewhere";
        return Plan::Withheld(why.to_owned());
    };
    for entry in &entries {
        let labels = entry.all_labels(key, selection);
        let rival = seen.neighbours.iter().find(|(name, other)| name != key.name.as_str() && other.has(&labels));
        if let Some((rival, _)) = rival {
            return Plan::Withheld(format!(
                "the Service {rival} here would get endpoints of other clusters too, by its selector"
            ));
        }
    }
    let fits = |entry: &Entry<'_>| selection.has(&entry.all_labels(key, selection));
    let named = all_speak_istio(import, networks) && entries.iter().all(fits);
    Plan::Stretched { entries: entries.into_iter().filter(fits).collect(), selection, named, left_out }
}

/// The endpoints of clusters that can be reached, or else of those that can not: there may be no others.
fn entries<'a>(
    world: &World<'a>,
    key: &ServiceKey,
    import: &Import,
    remote: &[(&'a ImportPart, &'a Label)],
) -> Vec<Entry<'a>> {
    let of = |stale: bool| -> Vec<Entry<'a>> {
        let parts = remote.iter().filter(|(part, _)| part.stale == stale);
        parts.flat_map(|(part, network)| of_part(key, part, network)).collect()
    };
    let live = of(false);
    let local = world.snapshot.local(key).filter(|_| import.part(None).is_some());
    let has_local = local.is_some_and(|local| local.endpoints.iter().any(|one| one.endpoint.condition.ready));
    if live.is_empty() && !has_local { of(true) } else { live }
}

fn of_part<'a>(key: &ServiceKey, part: &'a ImportPart, network: &'a Label) -> Vec<Entry<'a>> {
    let Some(cluster) = &part.cluster else { return Vec::new() };
    let mut entries = Vec::new();
    for group in part.record.groups.iter().filter(|group| group.ready > 0 && is_istio(group)) {
        // An entry names an account of its own namespace. Without one a client would take any server for it.
        let accounts: BTreeSet<&Label> = accounts(key, group).collect();
        let ready = u64::from(group.ready);
        // A peer's sum of weights is a claim: at least 1 for each endpoint, and no more than they can have.
        let weight = group.weight.div_ceil(USUAL_WEIGHT).clamp(1, ready.saturating_mul(MAX_WEIGHT)).min(MAX_WEIGHT);
        let shares = u64::try_from(accounts.len()).unwrap_or(u64::MAX).max(1);
        for (place, account) in (0_u64..).zip(accounts) {
            let weight = (weight / shares + u64::from(place < weight % shares)).max(1);
            entries.push(Entry { cluster, network, group, account, weight });
        }
    }
    entries
}

fn accounts<'a>(key: &ServiceKey, group: &'a EndpointGroup) -> impl Iterator<Item = &'a Label> {
    let namespace = key.namespace.clone();
    let here = group.identities.iter().filter(move |identity| identity.namespace == namespace);
    here.map(|identity| &identity.service_account)
}

fn is_istio(group: &EndpointGroup) -> bool {
    matches!(group.tls, TlsMode::Istio | TlsMode::IstioStrict)
}

/// Whether all endpoints of peers can be told of. Those of others are reached by its address alone, and all of a name go one
/// way.
fn all_speak_istio(import: &Import, networks: &BTreeMap<ClusterName, Label>) -> bool {
    let known = |part: &ImportPart| part.cluster.as_ref().is_some_and(|cluster| networks.contains_key(cluster));
    let remote = import.parts.iter().filter(|part| part.cluster.is_some());
    let groups = remote.flat_map(|part| part.record.groups.iter().map(move |group| (part, group)));
    let mut ready = groups.filter(|(_, group)| group.ready > 0);
    let proves = |group: &EndpointGroup| is_istio(group) && accounts(&import.key, group).next().is_some();
    ready.all(|(part, group)| known(part) && proves(group))
}

impl Entry<'_> {
    /// Labels by which Services and rules select it: those of its endpoints, beside those that it has to have.
    fn labels(&self, more: &BTreeMap<String, String>) -> BTreeMap<String, String> {
        let own = self.group.subset.iter().filter(|(key, _)| is_plain_label(key));
        let own = own.map(|(key, value)| (key.to_string(), value.to_string()));
        let tls = (TLS_MODE.0.to_owned(), TLS_MODE.1.to_owned());
        more.clone().into_iter().chain(own).chain([tls]).collect()
    }

    /// As istiod has them, which adds the labels of the object.
    fn all_labels(&self, key: &ServiceKey, selection: &Selection) -> BTreeMap<String, String> {
        let mut all = self.labels(&selection.labels);
        for (label, value) in object_labels(key, Some(self.cluster)) {
            all.insert(label, value.as_str().unwrap_or_default().to_owned());
        }
        all
    }

    fn spec(&self, labels: &BTreeMap<String, String>) -> Map<String, Value> {
        let spec = [
            ("network", json!(self.network)),
            ("labels", json!(labels)),
            ("serviceAccount", json!(self.account)),
            // Regions of clouds mean nothing to each other: the cluster is the region. And there are no zones in it: all of
            // them would be the address of one gateway, of which Envoy keeps the first locality and leaves out the others.
            ("locality", json!(self.cluster)),
            ("weight", json!(self.weight)),
        ];
        spec.map(|(key, value)| (key.to_owned(), value)).into_iter().collect()
    }

    fn name(&self, key: &ServiceKey) -> String {
        let labels = self.group.subset.iter().flat_map(|(key, value)| [&**key, &**value]);
        let parts = [self.group.zone.as_deref().unwrap_or_default(), self.account.as_str()];
        names::entry(&key.name, self.cluster, parts.into_iter().chain(labels))
    }
}

fn object_labels(key: &ServiceKey, cluster: Option<&ClusterName>) -> Map<String, Value> {
    let own = [(names::MANAGED_BY, names::EASTWAY), (names::IMPORT, key.name.as_str())];
    let source = cluster.map(|cluster| (names::SOURCE_CLUSTER, cluster.as_str()));
    own.into_iter().chain(source).map(|(label, value)| (label.to_owned(), json!(value))).collect()
}

/// The objects of a plan, once their owner exists.
pub(super) fn objects(draft: &mut Draft<'_>, import: &Import, plan: &Plan<'_>, addresses: &[IpAddr]) {
    let Some(owner) = draft.owner() else { return };
    match plan {
        Plan::Nothing | Plan::Withheld(_) => {}
        Plan::Stretched { entries, selection, named, .. } => {
            if *named && let Some(mut spec) = service_entry(draft, import, addresses) {
                // Pods of this cluster, and the entries below.
                spec.insert("workloadSelector".to_owned(), json!({ "labels": selection.labels }));
                put_service_entry(draft, &owner, &Value::Object(spec));
            }
            for entry in entries {
                let mut spec = entry.spec(&entry.labels(&selection.labels));
                if !selection.target_names.is_empty() {
                    // istiod leaves out an endpoint that does not know a port by its name. The number is not used.
                    spec.insert("ports".to_owned(), json!(selection.target_names));
                }
                let labels = object_labels(draft.key, Some(entry.cluster));
                let metadata = json!({ "labels": labels, "ownerReferences": owner });
                put(draft, Kind::WorkloadEntry, &entry.name(draft.key), metadata, json!({ "spec": spec }));
            }
        }
        Plan::Remote { entries, .. } => {
            let Some(mut spec) = service_entry(draft, import, addresses) else { return };
            let none = BTreeMap::new();
            let endpoints: Vec<_> = entries.iter().map(|entry| entry.spec(&entry.labels(&none))).collect();
            let identities = entries.iter().flat_map(|entry| &entry.group.identities);
            let here = identities.filter(|identity| identity.namespace == draft.key.namespace);
            let who: BTreeSet<String> = here.map(ToString::to_string).collect();
            spec.insert("endpoints".to_owned(), json!(endpoints));
            spec.insert("subjectAltNames".to_owned(), json!(who));
            put_service_entry(draft, &owner, &Value::Object(spec));
        }
    }
}

fn put_service_entry(draft: &mut Draft<'_>, owner: &Value, spec: &Value) {
    let metadata = json!({ "labels": object_labels(draft.key, None), "ownerReferences": owner });
    put(draft, Kind::ServiceEntry, &names::derived(&draft.key.name), metadata, json!({ "spec": spec }));
}

fn put(draft: &mut Draft<'_>, kind: Kind, name: &str, metadata: Value, fields: Value) {
    if !draft.seen.foreign.contains(name) {
        let object = Object::new(kind, draft.key.namespace.as_str(), name, metadata, fields);
        draft.wanted.objects.push(object);
    }
}

/// A ServiceEntry without its endpoints. `None`: it has no port that Istio carries, or no address yet; without one its ports
/// would take those of others.
fn service_entry(draft: &Draft<'_>, import: &Import, addresses: &[IpAddr]) -> Option<Map<String, Value>> {
    let local = draft.world.snapshot.local(draft.key).and_then(|local| local.endpoints.iter().next());
    let of_pods = |port: &ServicePort| local.and_then(|endpoint| endpoint.target_ports.get(&port.key())).copied();
    let carried = import.ports.iter().filter(|port| port.protocol == Protocol::Tcp);
    let ports: Vec<Value> = carried.map(|port| service_port(import, port, of_pods(port))).collect();
    if ports.is_empty() || addresses.is_empty() {
        return None;
    }
    let (name, namespace) = (&draft.key.name, &draft.key.namespace);
    let own = draft.world.istio.and_then(|istio| istio.names.get(draft.key));
    let own = own.into_iter().flatten().map(ToString::to_string);
    let hosts: Vec<String> = std::iter::once(format!("{name}.{namespace}.svc.clusterset.local")).chain(own).collect();
    let spec = [
        ("hosts", json!(hosts)),
        ("addresses", json!(addresses)),
        ("ports", json!(ports)),
        ("location", json!("MESH_INTERNAL")),
        ("resolution", json!("STATIC")),
    ];
    Some(spec.map(|(key, value)| (key.to_owned(), value)).into_iter().collect())
}

/// `target`: where pods of this cluster listen.
fn service_port(import: &Import, port: &ServicePort, target: Option<u16>) -> Value {
    let unnamed = |number: PortNumber| names::unnamed_port(Protocol::Tcp, number);
    let taken = |name: &str| import.ports.iter().any(|other| other.name.as_ref().is_some_and(|it| it.as_str() == name));
    let name = port.name.as_ref().map_or_else(
        || {
            let mut name = unnamed(port.number);
            while taken(&name) {
                name.push_str("-x");
            }
            name
        },
        |name| name.as_str().to_owned(),
    );
    let protocol = match AppProtocol::of(port) {
        AppProtocol::Http => "HTTP",
        AppProtocol::Http2 => "HTTP2",
        AppProtocol::Tcp => "TCP",
    };
    match target {
        Some(target) => json!({ "number": port.number, "name": name, "protocol": protocol, "targetPort": target }),
        None => json!({ "number": port.number, "name": name, "protocol": protocol }),
    }
}

//! A store, and an API server for one service that does as it is told.

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::sync::Arc;

use eastway_model::rules::{NameFilter, PeerRules, Rules};
use eastway_model::store::{Reader, Writer};
use eastway_model::{
    Change, Endpoint, EndpointCondition, EndpointGroup, EndpointId, Label, LocalChange, LocalService, PeerChange,
    PortName, PortNumber, Protocol, ServiceKey, ServicePort, ServiceRecord, Subset, TlsMode, UnixMillis,
};
use serde_json::{Value, json};

use crate::controller::desired::{self, Gateways, Istio, Names, Verdict, Wanted, World};
use crate::controller::difference::{Action, actions};
use crate::controller::names;
use crate::controller::object::{Kind, Object, Observed, Seen};
use crate::controller::ports::{self, PortBook};

pub(super) const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

pub(super) fn label(text: &str) -> Label {
    Label::parse(text).unwrap()
}

pub(super) fn number(number: u16) -> PortNumber {
    NonZeroU16::new(number).unwrap()
}

pub(super) fn port(name: &str, port: u16, protocol: Protocol) -> ServicePort {
    ServicePort { name: PortName::parse(name).ok(), number: number(port), protocol, app_protocol: None }
}

/// `shop/cart` with these TCP ports, `age` milliseconds old.
pub(super) fn record(age: u64, ports: &[(&str, u16)]) -> ServiceRecord {
    let ports = ports.iter().map(|(name, number)| port(name, *number, Protocol::Tcp)).collect();
    ServiceRecord { exported_at: UnixMillis(NOW.0 - age), ..ServiceRecord::new(key(), ports) }
}

pub(super) fn key() -> ServiceKey {
    "shop/cart".parse().unwrap()
}

pub(super) fn endpoint(id: &str, hostname: &str, ready: bool) -> Endpoint {
    Endpoint {
        id: EndpointId::parse(id).unwrap(),
        hostname: Label::parse(hostname).ok(),
        subset: Subset::new(),
        zone: None,
        condition: if ready { EndpointCondition::READY } else { EndpointCondition::DOWN },
        weight: 100,
        identity: None,
        tls: TlsMode::None,
    }
}

pub(super) fn group(ready: u32) -> EndpointGroup {
    EndpointGroup {
        zone: None,
        subset: Subset::new(),
        ready,
        draining: 0,
        weight: u64::from(ready) * 100,
        identities: Vec::new(),
        tls: TlsMode::None,
    }
}

pub(super) fn from_peer(cluster: &str, change: PeerChange) -> Change {
    Change::Peer { cluster: label(cluster), change }
}

/// A complete snapshot of a peer.
pub(super) fn complete(cluster: &str, records: Vec<ServiceRecord>) -> Change {
    from_peer(cluster, PeerChange::Replace(records.into_iter().map(Arc::new).collect()))
}

pub(super) fn upsert(service: LocalService) -> Change {
    Change::Local { registry: label("cluster"), change: LocalChange::Upsert(Arc::new(service)) }
}

pub(super) fn remove() -> Change {
    Change::Local { registry: label("cluster"), change: LocalChange::Remove(key()) }
}

pub(super) fn rules(peers: &[&str]) -> Rules {
    let rules = |name: &&str| {
        let rules = PeerRules::new(label(name), &format!("{name}.example"), NOW);
        let import = NameFilter::of_namespace(&label("shop")).unwrap();
        (label(name), Arc::new(PeerRules { import, ..rules }))
    };
    Rules { peers: peers.iter().map(rules).collect(), ..Rules::default() }
}

/// A controller of cluster `eks` with peers `gke` and `aks`, beside an API server.
pub(super) struct Rig {
    pub(super) writer: Writer,
    pub(super) reader: Reader,
    pub(super) book: PortBook,
    pub(super) gateways: Gateways,
    pub(super) peers_known: bool,
    pub(super) names: Names,
    pub(super) istio: Option<Istio>,
    pub(super) verdict: Verdict,
    pub(super) now: &'static str,
    pub(super) steady: UnixMillis,
    /// What the API server has.
    pub(super) seen: Seen,
    /// All that was done.
    pub(super) done: Vec<String>,
    uids: u32,
    dual_stack: bool,
}

impl Rig {
    pub(super) fn new() -> Self {
        let (mut writer, reader) = Writer::new(label("eks"));
        writer.await_registries([]);
        writer.set_rules(Arc::new(rules(&["aks", "gke"])));
        Self {
            writer,
            reader,
            book: PortBook::new(ports::RANGE, []),
            gateways: ["10.244.0.7".parse().unwrap(), "10.244.0.6".parse().unwrap()].into_iter().collect(),
            peers_known: true,
            names: Names::new(),
            istio: None,
            verdict: Verdict::Valid,
            now: "2027-01-15T08:00:00Z",
            steady: NOW,
            seen: Seen { namespace: true, ..Seen::default() },
            done: Vec::new(),
            uids: 0,
            dual_stack: false,
        }
    }

    pub(super) fn dual_stack(mut self) -> Self {
        self.dual_stack = true;
        let addresses = ["10.244.0.7", "fd00::7"].map(|address| address.parse().unwrap());
        self.gateways = addresses.into_iter().collect();
        self
    }

    /// The same API server, and a controller that has just begun.
    pub(super) fn restart(self) -> Self {
        let services = self.seen.services.iter();
        let existing = services.flat_map(|(name, service)| {
            let slices = self.seen.slices.values().filter(move |slice| slice.label(names::SLICE_SERVICE) == name);
            slices.flat_map(|slice| ports::of_slice(&key(), service, slice)).collect::<Vec<_>>()
        });
        let book = PortBook::new(ports::RANGE, existing.collect::<Vec<_>>());
        Self {
            seen: self.seen,
            book,
            peers_known: false,
            done: Vec::new(),
            uids: self.uids,
            istio: self.istio,
            ..Self::new()
        }
    }

    pub(super) fn apply(&mut self, changes: impl IntoIterator<Item = Change>) {
        self.writer.apply(changes, NOW);
    }

    pub(super) fn configure(&mut self, peers: &[&str]) {
        self.writer.set_rules(Arc::new(rules(peers)));
    }

    pub(super) fn export(&mut self) {
        let export = json!({ "metadata": { "name": "cart", "namespace": "shop", "uid": "export", "generation": 1 } });
        self.seen.export = Some(Observed::new(export));
    }

    pub(super) fn wanted(&mut self) -> Wanted {
        let snapshot = self.reader.load_full();
        let world = World {
            snapshot: &snapshot,
            peers_known: self.peers_known,
            gateways: &self.gateways,
            names: &self.names,
            istio: self.istio.as_ref(),
            now: self.now,
            steady: self.steady,
        };
        desired::wanted(&world, &key(), &self.seen, self.verdict, &mut self.book)
    }

    /// Acts until nothing is left to do.
    pub(super) fn settle(&mut self) {
        for _ in 0..10 {
            let wanted = self.wanted();
            let actions = actions(&self.seen, &wanted);
            if actions.is_empty() {
                return;
            }
            for action in actions {
                self.perform(action);
            }
        }
        panic!("still something to do: {:?}", self.done);
    }

    fn perform(&mut self, action: Action) {
        let (kind, name) = action.target();
        let (verb, name) = (format!("{action:?}"), name.to_owned());
        let verb = verb.split(['(', ' ']).next().unwrap().to_lowercase();
        self.done.push(format!("{verb} {kind:?} {name}"));
        match action {
            Action::Create(object) | Action::Apply(object) => self.write(&object),
            Action::Status(object) => {
                let slot = if kind == Kind::ServiceExport { &mut self.seen.export } else { &mut self.seen.import };
                let mut body = slot.as_ref().unwrap().body().clone();
                body["status"] = object.body["status"].clone();
                *slot = Some(Observed::new(body));
            }
            Action::Delete { kind, name, .. } => match kind {
                Kind::ServiceImport => self.seen.import = None,
                Kind::Service => drop(self.seen.services.remove(&name)),
                Kind::EndpointSlice => drop(self.seen.slices.remove(&name)),
                Kind::WorkloadEntry | Kind::ServiceEntry => drop(self.seen.entries.remove(&(kind, name))),
                Kind::ServiceExport => panic!("never deleted"),
            },
        }
    }

    fn write(&mut self, object: &Object) {
        let old = self.seen.get(object.kind, &object.name).cloned();
        let mut body = object.body.clone();
        let uid = old.as_ref().map(|old| old.uid().to_owned()).unwrap_or_else(|| {
            self.uids += 1;
            format!("uid-{}", self.uids)
        });
        body["metadata"]["uid"] = json!(uid);
        match object.kind {
            Kind::ServiceImport => {
                if let Some(old) = old {
                    body["status"] = old.at("/status").clone();
                }
                self.seen.import = Some(Observed::new(body));
            }
            Kind::Service => {
                let address = old.map_or(json!([]), |old| old.at("/spec/clusterIPs").clone());
                let number = self.uids;
                let (v4, v6) = (format!("10.96.1.{number}"), format!("fd96::{number}"));
                let given = if self.dual_stack { json!([v4, v6]) } else { json!([v4]) };
                body["spec"]["clusterIPs"] = if address == json!([]) { given } else { address };
                body["spec"]["sessionAffinity"] = json!("None");
                for port in body["spec"]["ports"].as_array_mut().unwrap() {
                    port["targetPort"] = port["port"].clone();
                }
                self.seen.services.insert(object.name.clone(), Observed::new(body));
            }
            Kind::EndpointSlice => {
                self.seen.slices.insert(object.name.clone(), Observed::new(body));
            }
            Kind::WorkloadEntry | Kind::ServiceEntry => {
                self.seen.entries.insert((object.kind, object.name.clone()), Observed::new(body));
            }
            Kind::ServiceExport => panic!("only its status is written"),
        }
    }

    /// All objects, without what the API server adds.
    pub(super) fn objects(&self) -> Value {
        let all: BTreeMap<String, &Value> = self
            .seen
            .services
            .iter()
            .chain(&self.seen.slices)
            .map(|(name, object)| (name.clone(), object.body()))
            .chain(self.seen.import.iter().map(|import| ("import".to_owned(), import.body())))
            .chain(self.seen.export.iter().map(|export| ("export".to_owned(), export.body())))
            .collect();
        json!(all)
    }

    pub(super) fn import(&self) -> &Observed {
        self.seen.import.as_ref().expect("a ServiceImport")
    }

    pub(super) fn condition(&self, of: &Observed, kind: &str) -> (String, String, String) {
        let condition = of.condition(kind).unwrap_or_else(|| panic!("no condition {kind}"));
        let text = |key: &str| condition[key].as_str().unwrap().to_owned();
        (text("status"), text("reason"), text("message"))
    }
}

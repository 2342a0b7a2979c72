//! The objects that should exist for one multi-cluster service: a pure function of what is known and of what there is.
//!
//! ```text
//!  ServiceImport <name> ──annotation──> Service derived-<hash> ── ClusterIP: the address of the import
//!        ^ owner of all others                │ no selector
//!        │                                    v
//!        └──── EndpointSlice derived-<hash>.<cluster>, one per source cluster: the gateway pods,
//!              on the port of theirs that stands for the port of this import
//! ```
//!
//! A headless service has a derived Service and slice per endpoint of another cluster, and slices that carry the
//! addresses of these Services as endpoints: see [`headless`]. A name of one's own that leads to one cluster has a derived
//! Service and slice too: see [`pinned`]. No address of a peer is in any object (invariant I1).

pub mod export;
pub mod headless;
pub mod import;
pub mod istio;
pub mod keep;
pub mod pinned;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use eastway_model::rules::never_shared;
use eastway_model::store::Snapshot;
use eastway_model::{ClusterName, PortNumber, Protocol, ServiceKey, ServiceKind, UnixMillis};
use serde_json::{Value, json};

use super::names;
use super::object::{Kind, Object, Observed, Seen};
use super::ports::{PortBook, Slot};
pub use export::Verdict;
pub use istio::{Istio, WITHHELD};
pub use pinned::Names;

/// What the objects of every service depend on.
#[derive(Clone, Copy, Debug)]
pub struct World<'a> {
    /// What all clusters export, as far as it is known here.
    pub snapshot: &'a Snapshot,
    /// A gateway said which peers there are. Before that nothing of any peer is removed.
    pub peers_known: bool,
    /// The gateways of this cluster.
    pub gateways: &'a Gateways,
    /// Names of one's own that lead to one cluster.
    pub names: &'a Names,
    /// `None`: it is not there, or not known yet.
    pub istio: Option<&'a Istio>,
    /// The time for conditions, RFC 3339.
    pub now: &'a str,
    /// The time by the clock that the store is given.
    pub steady: UnixMillis,
}

/// Addresses of the gateway pods that connections are led to: those that are ready; if there is none, those that
/// drain; if there is none either, those that run. The latter beside others would lead nobody anywhere and cost a write
/// of every slice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gateways {
    v4: BTreeSet<Ipv4Addr>,
    v6: BTreeSet<Ipv6Addr>,
    /// None is ready: these drain.
    draining: bool,
}

impl FromIterator<IpAddr> for Gateways {
    fn from_iter<I: IntoIterator<Item = IpAddr>>(addresses: I) -> Self {
        let mut gateways = Self::default();
        for address in addresses {
            match address {
                IpAddr::V4(address) => _ = gateways.v4.insert(address),
                IpAddr::V6(address) => _ = gateways.v6.insert(address),
            }
        }
        gateways
    }
}

impl Gateways {
    /// The same, as pods that drain.
    #[must_use]
    pub fn draining(self) -> Self {
        Self { draining: true, ..self }
    }

    /// The endpoints of a slice that leads to the gateways.
    fn endpoints(&self, ipv6: bool) -> Value {
        let endpoint = |address: String| {
            let conditions = json!({ "ready": !self.draining, "serving": true, "terminating": self.draining });
            json!({ "addresses": [address], "conditions": conditions })
        };
        if ipv6 {
            self.v6.iter().map(|address| endpoint(address.to_string())).collect()
        } else {
            self.v4.iter().map(|address| endpoint(address.to_string())).collect()
        }
    }
}

/// What there should be of one service.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wanted {
    /// The objects, without their status.
    pub objects: Vec<Object>,
    /// The status of objects that exist already.
    pub statuses: Vec<Object>,
    /// Services that stay as they are.
    pub kept: BTreeSet<String>,
    /// Other objects of ours for this service have to go (invariant I4: only if all is known).
    pub only: bool,
}

/// Computes what there should be of the service `key`. Ports of the gateways are taken from `book`, and given back
/// when the service does not need them any more.
#[must_use]
pub fn wanted(world: &World<'_>, key: &ServiceKey, seen: &Seen, verdict: Verdict, book: &mut PortBook) -> Wanted {
    // What is in a namespace goes with it, and nothing can be made in one that is on its way out.
    if !seen.namespace {
        return Wanted::default();
    }
    if !keep::unheard(world, seen).is_empty() {
        return keep::refreshed(world, seen);
    }
    let import = world.snapshot.import(key).filter(|_| !never_shared(key.namespace.as_str()));
    let mut wanted = if let Some(import) = import {
        let mut draft =
            Draft { world, key, seen, book, taken: BTreeSet::new(), exhausted: false, wanted: Wanted::default() };
        draft.wanted.only = true;
        match import.kind {
            ServiceKind::ClusterSetIp => import::clusterset_ip(&mut draft, import),
            ServiceKind::Headless => headless::headless(&mut draft, import),
        }
        let Draft { taken, wanted, .. } = draft;
        book.retain(key, |slot| taken.contains(slot));
        wanted
    } else {
        book.retain(key, |_| false);
        Wanted { only: true, ..Wanted::default() }
    };
    if let Some(object) = &seen.export {
        let conditions = export::conditions(import.map(AsRef::as_ref), world.snapshot.cluster(), verdict, seen);
        wanted.statuses.push(export::status(key, object, &conditions, world.now));
    }
    wanted
}

/// Wanted objects while they are put together.
struct Draft<'a> {
    world: &'a World<'a>,
    key: &'a ServiceKey,
    seen: &'a Seen,
    book: &'a mut PortBook,
    /// Ports that are needed.
    taken: BTreeSet<Slot>,
    /// A port was needed, and there was none.
    exhausted: bool,
    wanted: Wanted,
}

impl<'a> Draft<'a> {
    fn namespace(&self) -> &'a str {
        self.key.namespace.as_str()
    }

    /// The gateway port of a port of a derived Service.
    fn port(&mut self, service: &str, protocol: Protocol, number: PortNumber) -> Option<u16> {
        let slot = Slot { import: self.key.clone(), service: service.to_owned(), protocol, number };
        let port = self.book.take(slot.clone());
        self.taken.insert(slot);
        self.exhausted |= port.is_none();
        port
    }

    /// Names the ServiceImport as owner, so that Kubernetes removes what is left when it goes. `None` until it exists.
    fn owner(&self) -> Option<Value> {
        let import = self.seen.own_import()?;
        let (api_version, kind) = Kind::ServiceImport.type_meta();
        let name = self.key.name.as_str();
        Some(json!([{
            "apiVersion": api_version, "kind": kind, "name": name, "uid": import.uid(),
            "controller": false, "blockOwnerDeletion": false,
        }]))
    }

    fn own(&self) -> &'a ClusterName {
        self.world.snapshot.cluster()
    }
}

/// Whether the families of a Service have this one.
fn has_family(service: &Observed, ipv6: bool) -> bool {
    service.cluster_ips().iter().any(|address| address.is_ipv6() == ipv6)
}

/// What a slice is called for a family of addresses.
fn address_type(ipv6: bool) -> &'static str {
    if ipv6 { "IPv6" } else { "IPv4" }
}

/// Labels that all slices of ours have.
fn slice_labels(name: &str) -> Value {
    json!({
        names::MANAGED_BY: names::EASTWAY,
        names::SLICE_MANAGED_BY: names::SLICE_MANAGER,
        names::IMPORT: name,
    })
}

/// `labels` and one more.
fn with(mut labels: Value, key: &str, value: &str) -> Value {
    if let Some(labels) = labels.as_object_mut() {
        labels.insert(key.to_owned(), json!(value));
    }
    labels
}

//! Services, their endpoints, and what becomes of a connection to one.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::admin::rules::RulesView;

/// One service, local, imported or both.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceView {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// `ClusterSetIP` or `Headless`.
    pub kind: String,
    /// Names that our DNS answers for it.
    pub dns_names: Vec<String>,
    /// Virtual addresses.
    pub vips: Vec<IpAddr>,
    /// Its ports, merged over clusters.
    pub ports: Vec<PortView>,
    /// Whether this cluster offers it to peers.
    pub exported: bool,
    /// Peers it is offered to.
    pub exported_to: Vec<String>,
    /// What each cluster has of it; this cluster first.
    pub parts: Vec<PartView>,
    /// Where clusters disagree.
    pub conflicts: Vec<ConflictView>,
}

/// A port of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PortView {
    /// Name, if it has one.
    pub name: Option<String>,
    /// Number.
    pub port: u16,
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// Hint, e.g. `http`.
    pub app_protocol: Option<String>,
}

/// What one cluster has of a service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PartView {
    /// The cluster.
    pub cluster: String,
    /// Whether it is this one.
    pub local: bool,
    /// Whether the owner cannot be asked at the moment.
    pub stale: bool,
    /// Endpoints that take new connections.
    pub ready: u32,
    /// Endpoints on their way out.
    pub draining: u32,
    /// The same by label set, e.g. `version=v2`.
    pub subsets: BTreeMap<String, u32>,
}

/// A disagreement between clusters about a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConflictView {
    /// What about, e.g. `PortConflict`.
    pub reason: String,
    /// Whose value counts.
    pub winner: String,
    /// A sentence.
    pub message: String,
}

/// One endpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointView {
    /// Namespace of its service.
    pub namespace: String,
    /// Its service.
    pub service: String,
    /// Its cluster.
    pub cluster: String,
    /// Opaque id.
    pub id: String,
    /// Its address; only for our own endpoints, no peer ever tells one.
    pub address: Option<IpAddr>,
    /// Labels that rules select by.
    pub labels: BTreeMap<String, String>,
    /// Topology zone.
    pub zone: Option<String>,
    /// `ready`, `draining` or `notReady`; `failing`: ready by its registry, but it could not be dialled a moment ago.
    pub state: String,
    /// Relative share of connections.
    pub weight: u32,
    /// SPIFFE id, if it can prove one.
    pub identity: Option<String>,
    /// Connections open to it from this gateway.
    pub in_flight: u32,
}

/// What a connection would do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Description {
    /// `namespace/name`.
    pub service: String,
    /// Port that was asked for or chosen.
    pub port: u16,
    /// The client as it was assumed.
    pub source: String,
    /// Names that lead here.
    pub dns_names: Vec<String>,
    /// Virtual addresses that lead here.
    pub vips: Vec<IpAddr>,
    /// The rule that decides, e.g. `TrafficPolicy bookinfo/reviews`, or `default`.
    pub policy: String,
    /// Where connections go, with their shares; the shares add up to 100.
    pub candidates: Vec<CandidateView>,
    /// Where they do not go, and why.
    pub rejected: Vec<RejectedView>,
    /// Whether the rules of this cluster let the source in, where this cluster owns the service.
    pub access: Option<String>,
    /// Routes of the Gateway API, if there are any.
    pub rules: Option<RulesView>,
    /// What sidecars are told in place of single endpoints, if they are.
    pub sidecars: Option<String>,
    /// What istiod is told of it, if Istio is beside us: a line each.
    pub istio: Vec<String>,
    /// What is odd about it, e.g. conflicts or stale records.
    pub warnings: Vec<String>,
}

/// One place that gets connections.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CandidateView {
    /// The cluster.
    pub cluster: String,
    /// Whether it is this one.
    pub local: bool,
    /// Labels the endpoint must carry.
    pub subset: BTreeMap<String, String>,
    /// Share of new connections, percent.
    pub share: f64,
    /// Endpoints that take new connections.
    pub ready: u32,
    /// How bytes get there: `direct`, or the link's transport and round-trip time.
    pub path: String,
    /// Why it is chosen.
    pub reason: String,
    /// Single endpoints, where they are known: all of this cluster's, of a peer those whose records crossed.
    pub endpoints: Vec<EndpointChoice>,
}

/// One endpoint of a candidate, and whether it is taken.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointChoice {
    /// Opaque id.
    pub id: String,
    /// Its address; only for our own endpoints.
    pub address: Option<IpAddr>,
    /// Share of all connections to the service while it is idle, percent; `None`: none, or its owner decides.
    pub share: Option<f64>,
    /// Why it gets none.
    pub reason: Option<String>,
}

/// One place that gets none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RejectedView {
    /// The cluster.
    pub cluster: String,
    /// Labels or endpoint this is about; empty: all of that cluster.
    pub what: String,
    /// Why not.
    pub reason: String,
}

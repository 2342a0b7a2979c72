//! Explains a routing decision by the engine that makes it.

mod rules;

pub use rules::{ExplainedRule, ExplainedRules, explain_rules};

use std::fmt;

use crate::endpoint::Subset;
use crate::import::{Conflict, Import};
use crate::name::{ClusterName, ServiceKey};
use crate::routing::plan::{self, Level, Plan, Row, Standing};
use crate::routing::{self, PickReject, PickRequest, RouteError, RouteRequest};
use crate::service::SessionAffinity;
use crate::store::Snapshot;

/// Most endpoints that are listed for a candidate.
pub const MAX_ENDPOINTS_SHOWN: usize = 200;

/// Where connections to a service would go, and why nowhere else.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The service.
    pub service: ServiceKey,
    /// The port.
    pub port: u16,
    /// Version of the snapshot.
    pub version: u64,
    /// What shares connections out, e.g. `TrafficPolicy bookinfo/reviews`.
    pub policy: Option<String>,
    /// Why there is no route at all.
    pub error: Option<String>,
    /// Who gets connections, by share.
    pub candidates: Vec<ExplainedCandidate>,
    /// Who does not, and why.
    pub rejected: Vec<Rejected>,
    /// What the exporting clusters disagree about.
    pub conflicts: Vec<Conflict>,
    /// Connections of one client address stay together.
    pub sticky: bool,
}

/// A cluster and subset that gets connections.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExplainedCandidate {
    /// The cluster.
    pub cluster: ClusterName,
    /// It is this one.
    pub local: bool,
    /// Labels that its endpoints must have.
    pub subset: Subset,
    /// Of all connections, 0 to 100. Shares of all candidates add up to 100.
    pub share_percent: f64,
    /// Endpoints that are ready.
    pub ready: u64,
    /// Endpoints that drain.
    pub draining: u64,
    /// The cluster is down; nothing better is left.
    pub stale: bool,
    /// Single endpoints, at most [`MAX_ENDPOINTS_SHOWN`]: all of them in this cluster; in a peer
    /// those we subscribed to.
    pub endpoints: Vec<ExplainedEndpoint>,
}

/// An endpoint of a candidate.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExplainedEndpoint {
    /// Its id.
    pub id: String,
    /// Of all connections to the service, in an idle service. None: its owner decides.
    pub share_percent: Option<f64>,
    /// Why it gets none.
    pub reason: Option<PickReject>,
}

/// A cluster and subset that gets none.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rejected {
    /// The cluster.
    pub cluster: ClusterName,
    /// The labels asked for.
    pub subset: Subset,
    /// Why.
    pub reason: RejectReason,
}

/// Why a cluster and subset gets no connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub enum RejectReason {
    /// The split has weight 0.
    WeightZero,
    /// The split names another cluster.
    OtherCluster,
    /// The request names another cluster.
    NotRequested,
    /// The cluster does not have the port.
    PortNotOffered,
    /// It has no endpoint with the labels.
    SubsetNotFound,
    /// The link to it is down.
    PeerDown,
    /// No endpoint is ready.
    NoReadyEndpoint,
    /// Those that are ready take mutual TLS only, and the client speaks none.
    TlsRequired,
    /// The failover order does not have the cluster.
    NotInFailover,
    /// This cluster, or one nearer, is preferred.
    FartherAway,
}

impl fmt::Display for RejectReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WeightZero => "its split has weight 0",
            Self::OtherCluster => "its split names another cluster",
            Self::NotRequested => "the request names another cluster",
            Self::PortNotOffered => "the cluster does not have this port",
            Self::SubsetNotFound => "no endpoint has these labels",
            Self::PeerDown => "no link to the cluster",
            Self::NoReadyEndpoint => "no endpoint is ready",
            Self::TlsRequired => "its endpoints take mutual TLS only, which needs a sidecar at the client",
            Self::NotInFailover => "the policy's failover order leaves the cluster out",
            Self::FartherAway => "a nearer cluster has ready endpoints",
        })
    }
}

/// Explains where a connection would go. Never fails: errors are part of the explanation.
#[must_use]
pub fn explain(snapshot: &Snapshot, key: &ServiceKey, request: &RouteRequest<'_>) -> Explanation {
    let mut explanation = Explanation {
        service: key.clone(),
        port: request.port.get(),
        version: snapshot.version(),
        policy: None,
        error: None,
        candidates: Vec::new(),
        rejected: Vec::new(),
        conflicts: Vec::new(),
        sticky: false,
    };
    // An endpoint id is one of a cluster; without a name, of this one.
    let cluster = request.cluster.or(request.endpoint.map(|_| snapshot.cluster()));
    let request = &RouteRequest { cluster, ..*request };
    let Some(import) = snapshot.import(key) else {
        let unexported = snapshot.local(key).is_some();
        let hint = if unexported { ": it exists in this cluster, but is not exported" } else { "" };
        explanation.error = Some(format!("{}{hint}", RouteError::UnknownService));
        return explanation;
    };
    explanation.conflicts.clone_from(&import.conflicts);
    explanation.policy = policy(import, request);
    explanation.sticky = import.session_affinity != SessionAffinity::None;
    let mut plan = match Plan::new(snapshot.cluster(), import, request) {
        Ok(plan) => plan,
        Err(error) => {
            explanation.error = Some(error.to_string());
            return explanation;
        }
    };
    let level = plan.compute();
    if plan.shares().is_empty() {
        let error = if plan.wants_tls() { RouteError::TlsRequired } else { RouteError::NoEndpoints };
        explanation.error = Some(error.to_string());
    }
    explanation.candidates = candidates(snapshot, &plan, level);
    for candidate in &mut explanation.candidates {
        candidate.endpoints = endpoints(snapshot, key, request, candidate);
    }
    explanation.rejected = rejected(snapshot, &plan, &explanation.candidates);
    explanation
}

fn policy(import: &Import, request: &RouteRequest<'_>) -> Option<String> {
    let port = import.port(request.protocol, request.port);
    if let Some(entry) = port.and_then(|port| plan::by_rule(import, port)) {
        return Some(format!("{} {}", entry.route, entry.route.rule_name(entry.rule)));
    }
    import.policy.as_ref().map(ToString::to_string)
}

fn candidates(snapshot: &Snapshot, plan: &Plan<'_>, level: Level) -> Vec<ExplainedCandidate> {
    let total: u64 = plan.shares().iter().map(|share| share.weight).sum();
    let mut candidates: Vec<ExplainedCandidate> = Vec::new();
    for share in plan.shares() {
        let (cluster, subset, standing) = plan.detail(*share);
        let share_percent = share.weight as f64 * 100.0 / total as f64;
        match candidates.iter_mut().find(|known| known.cluster == *cluster && known.subset == *subset) {
            Some(known) => known.share_percent += share_percent,
            None => candidates.push(ExplainedCandidate {
                cluster: cluster.clone(),
                local: cluster == snapshot.cluster(),
                subset: subset.clone(),
                share_percent,
                ready: standing.ready_endpoints,
                draining: standing.draining,
                stale: level == Level::Stale,
                endpoints: Vec::new(),
            }),
        }
    }
    candidates.sort_by(|a, b| b.share_percent.total_cmp(&a.share_percent));
    candidates
}

fn endpoints(
    snapshot: &Snapshot,
    key: &ServiceKey,
    request: &RouteRequest<'_>,
    candidate: &ExplainedCandidate,
) -> Vec<ExplainedEndpoint> {
    if !candidate.local {
        let part = snapshot.import(key).and_then(|import| import.part(Some(&candidate.cluster)));
        let known = part.iter().flat_map(|part| part.endpoints.iter()).take(MAX_ENDPOINTS_SHOWN);
        let explained = |id: &str| ExplainedEndpoint { id: id.to_owned(), share_percent: None, reason: None };
        return known.map(|endpoint| explained(endpoint.id)).collect();
    }
    let Some(service) = snapshot.local(key) else { return Vec::new() };
    let request = PickRequest {
        protocol: request.protocol,
        zone: request.zone,
        endpoint: request.endpoint,
        plain: request.plain,
        ..PickRequest::tcp(request.port, &candidate.subset)
    };
    let assessed = routing::assess(service, &request);
    let total: u64 = assessed.iter().filter_map(|(_, weight)| weight.ok()).map(u64::from).sum();
    let share = |weight: u32| candidate.share_percent * f64::from(weight) / total as f64;
    let explained = assessed.into_iter().take(MAX_ENDPOINTS_SHOWN).map(|(endpoint, weight)| ExplainedEndpoint {
        id: endpoint.endpoint.id.to_string(),
        share_percent: weight.ok().map(share),
        reason: weight.err(),
    });
    explained.collect()
}

/// What the splits ask for and no candidate is.
fn rejected(snapshot: &Snapshot, plan: &Plan<'_>, candidates: &[ExplainedCandidate]) -> Vec<Rejected> {
    let mut rejected: Vec<Rejected> = Vec::new();
    for (row, part, standing) in plan.table() {
        let cluster = part.cluster.as_ref().unwrap_or(snapshot.cluster());
        let taken = candidates.iter().any(|known| known.cluster == *cluster && known.subset == **row.subset);
        if !taken {
            let reason = reason(row, standing, plan.fits(row, part), plan.left_out_of_failover(part));
            rejected.push(Rejected { cluster: cluster.clone(), subset: row.subset.as_ref().clone(), reason });
        }
    }
    rejected
}

fn reason(row: &Row<'_>, standing: &Standing, fits: bool, left_out: bool) -> RejectReason {
    if row.weight == 0 {
        RejectReason::WeightZero
    } else if standing.excluded {
        RejectReason::NotRequested
    } else if !standing.port {
        RejectReason::PortNotOffered
    } else if !standing.subset && !row.subset.is_empty() {
        RejectReason::SubsetNotFound
    } else if standing.stale {
        RejectReason::PeerDown
    } else if standing.ready == 0 && standing.tls_required {
        RejectReason::TlsRequired
    } else if standing.ready == 0 {
        RejectReason::NoReadyEndpoint
    } else if !fits {
        RejectReason::OtherCluster
    } else if left_out {
        RejectReason::NotInFailover
    } else {
        RejectReason::FartherAway
    }
}

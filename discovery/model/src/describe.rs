//! Explains a routing decision by the engine that makes it.

use crate::endpoint::Subset;
use crate::import::Conflict;
use crate::name::{ClusterName, ServiceKey};
use crate::routing::plan::{Level, Plan, Row, Standing};
use crate::routing::{RouteError, RouteRequest};
use crate::store::Snapshot;

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
    /// `namespace/name` of the traffic policy that applies.
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
    /// Of all connections, 0 to 100.
    pub share_percent: f64,
    /// The cluster is down; nothing better is left.
    pub stale: bool,
    /// Only draining endpoints are left.
    pub draining: bool,
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
    /// This cluster, or one nearer, is preferred.
    FartherAway,
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
    let Some(import) = snapshot.import(key) else {
        explanation.error = Some(RouteError::UnknownService.to_string());
        return explanation;
    };
    explanation.conflicts.clone_from(&import.conflicts);
    explanation.policy = import.policy.as_ref().map(|policy| format!("{}/{}", key.namespace, policy.name));
    explanation.sticky = import.session_affinity != crate::service::SessionAffinity::None;
    let mut plan = match Plan::new(snapshot.cluster(), import, request) {
        Ok(plan) => plan,
        Err(error) => {
            explanation.error = Some(error.to_string());
            return explanation;
        }
    };
    let level = plan.compute();
    let shares = plan.shares();
    if shares.is_empty() {
        explanation.error = Some(RouteError::NoEndpoints.to_string());
    }
    let total: u64 = shares.iter().map(|share| share.weight).sum();
    for share in shares {
        let (cluster, subset) = plan.names(*share);
        let percent = share.weight as f64 * 100.0 / total as f64;
        let known =
            explanation.candidates.iter_mut().find(|known| known.cluster == *cluster && known.subset == *subset);
        match known {
            Some(known) => known.share_percent += percent,
            None => explanation.candidates.push(ExplainedCandidate {
                cluster: cluster.clone(),
                local: cluster == snapshot.cluster(),
                subset: subset.clone(),
                share_percent: percent,
                stale: level == Level::Stale,
                draining: level == Level::Draining,
            }),
        }
    }
    explanation.candidates.sort_by(|a, b| b.share_percent.total_cmp(&a.share_percent));
    for (row, _, part, standing) in plan.table() {
        let cluster = part.cluster.as_ref().unwrap_or(snapshot.cluster());
        let taken =
            explanation.candidates.iter().any(|known| known.cluster == *cluster && known.subset == **row.subset);
        if !taken {
            let reason = reason(row, plan.fits(row, part), standing);
            let (cluster, subset) = (cluster.clone(), row.subset.as_ref().clone());
            explanation.rejected.push(Rejected { cluster, subset, reason });
        }
    }
    explanation
}

fn reason(row: &Row<'_>, fits: bool, standing: &Standing) -> RejectReason {
    if row.weight == 0 {
        RejectReason::WeightZero
    } else if standing.excluded {
        RejectReason::NotRequested
    } else if !standing.port {
        RejectReason::PortNotOffered
    } else if !standing.subset {
        RejectReason::SubsetNotFound
    } else if standing.stale {
        RejectReason::PeerDown
    } else if standing.ready == 0 {
        RejectReason::NoReadyEndpoint
    } else if !fits {
        RejectReason::OtherCluster
    } else {
        RejectReason::FartherAway
    }
}

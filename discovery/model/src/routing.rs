//! Where a connection goes: pure functions of a snapshot, a request and a source of randomness.
//!
//! Order of preference, always: clusters that are up and have ready endpoints, then draining
//! endpoints, then clusters that are down (their last known state may be wrong, but nothing else is
//! left). Within each of these the traffic policy's weights, locality and failover apply.

mod affinity;
mod pick;
pub(crate) mod plan;

pub use affinity::affinity_key;
pub(crate) use pick::assess;
pub use pick::{Failing, PickError, PickReject, PickRequest, pick_endpoint};

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use crate::endpoint::{EndpointId, Subset, TlsMode};
use crate::import::Import;
use crate::name::{ClusterName, ServiceKey};
use crate::service::{PortNumber, Protocol, SessionAffinity};
use crate::store::Snapshot;
use plan::{Plan, Share};

/// Most candidates of a [`Route`]: the choice, and one for each of the three retries that a
/// connection gets before delivery.
pub const MAX_CANDIDATES: usize = 4;

/// What a client asks for.
#[derive(Clone, Copy, Debug)]
pub struct RouteRequest<'a> {
    /// Transport of the port.
    pub protocol: Protocol,
    /// The service's port.
    pub port: PortNumber,
    /// Zone of the client, if known.
    pub zone: Option<&'a str>,
    /// Only endpoints with these labels; the policy's splits are not applied then.
    pub subset: Option<&'a Arc<Subset>>,
    /// Only this cluster, which may be the own one.
    pub cluster: Option<&'a ClusterName>,
    /// Exactly this endpoint of `cluster` (none: the own cluster).
    pub endpoint: Option<&'a EndpointId>,
    /// Address of the client, for session affinity.
    pub client: Option<IpAddr>,
    /// The client speaks no TLS: endpoints that take nothing else are not for it.
    pub plain: bool,
}

impl<'a> RouteRequest<'a> {
    /// A TCP connection to this port, without further wishes.
    #[must_use]
    pub fn tcp(port: PortNumber) -> Self {
        let (protocol, client, plain) = (Protocol::Tcp, None, false);
        Self { protocol, port, zone: None, subset: None, cluster: None, endpoint: None, client, plain }
    }

    /// From this client address.
    #[must_use]
    pub fn from_client(self, client: IpAddr) -> Self {
        Self { client: Some(client), ..self }
    }

    /// To this cluster only.
    #[must_use]
    pub fn to_cluster(self, cluster: &'a ClusterName) -> Self {
        Self { cluster: Some(cluster), ..self }
    }
}

/// Where to try, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The choice first, then what takes over if it cannot be reached; 1 to [`MAX_CANDIDATES`].
    pub candidates: Vec<Candidate>,
    /// To be handed to [`pick_endpoint`], here or at the owner: the client's affinity, if the
    /// service is sticky.
    pub affinity: Option<u64>,
}

/// One cluster and a choice of endpoints in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The peer; none: this cluster.
    pub cluster: Option<ClusterName>,
    /// Labels the endpoint must have.
    pub subset: Arc<Subset>,
    /// Exactly this endpoint.
    pub endpoint: Option<EndpointId>,
    /// The peer is down: the dial will most likely fail at once.
    pub stale: bool,
}

/// Why there is no route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// No cluster exports a service of this name to us.
    #[error("no such import")]
    UnknownService,
    /// No cluster that exports it has this port.
    #[error("the service has no such port")]
    UnknownPort,
    /// The cluster asked for does not export it.
    #[error("the cluster does not export the service")]
    UnknownCluster,
    /// No endpoint that the request and the policy admit is left.
    #[error("no endpoint is left")]
    NoEndpoints,
    /// Those that are left take mutual TLS only, and the client speaks none.
    #[error("TLS_REQUIRED: its endpoints take mutual TLS only, which needs a sidecar at the client")]
    TlsRequired,
}

/// The labels that every endpoint has: none.
pub(crate) fn any_subset() -> &'static Arc<Subset> {
    static ANY: LazyLock<Arc<Subset>> = LazyLock::new(Arc::default);
    &ANY
}

/// Chooses where a connection to the import `key` goes. `draw(n)` returns a number below `n`, all
/// equally likely; it is not used for sticky services of known clients.
///
/// # Errors
/// [`RouteError`]; a service that is only local is unknown here, for it was not exported.
pub fn route(
    snapshot: &Snapshot,
    key: &ServiceKey,
    request: &RouteRequest<'_>,
    mut draw: impl FnMut(u64) -> u64,
) -> Result<Route, RouteError> {
    let import = snapshot.import(key).ok_or(RouteError::UnknownService)?;
    if let Some(endpoint) = request.endpoint {
        return to_endpoint(snapshot, import, request, endpoint);
    }
    let affinity = match (import.session_affinity, request.client) {
        (SessionAffinity::ClientIp { .. }, Some(client)) => Some(affinity_key(client, key)),
        (SessionAffinity::ClientIp { .. } | SessionAffinity::None, _) => None,
    };
    let mut plan = Plan::new(snapshot.cluster(), import, request)?;
    let mut candidates = Vec::with_capacity(MAX_CANDIDATES);
    while candidates.len() < MAX_CANDIDATES {
        plan.compute();
        let chosen = match affinity {
            Some(client) => affinity::choose_share(client, &plan),
            None => choose(plan.shares(), &mut draw),
        };
        let Some(chosen) = chosen else { break };
        candidates.push(plan.candidate(chosen));
        plan.exclude(chosen);
    }
    match candidates.is_empty() {
        true if plan.wants_tls() => Err(RouteError::TlsRequired),
        true => Err(RouteError::NoEndpoints),
        false => Ok(Route { candidates, affinity }),
    }
}

/// A candidate and how much of the connections goes there, compared with others of its tier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weighted {
    /// Where.
    pub candidate: Candidate,
    /// How much; never 0.
    pub weight: u64,
}

/// All that [`route`] chooses from, for clients that choose themselves: the first tier is where connections go, each
/// further one takes over when nothing of those before can be reached. 1 to [`MAX_CANDIDATES`] tiers.
///
/// # Errors
/// [`RouteError`]
pub fn tiers(
    snapshot: &Snapshot,
    key: &ServiceKey,
    request: &RouteRequest<'_>,
) -> Result<Vec<Vec<Weighted>>, RouteError> {
    let import = snapshot.import(key).ok_or(RouteError::UnknownService)?;
    let mut plan = Plan::new(snapshot.cluster(), import, request)?;
    let mut tiers = Vec::new();
    while tiers.len() < MAX_CANDIDATES {
        plan.compute();
        let shares = plan.shares().to_vec();
        if shares.is_empty() {
            break;
        }
        let mut tier: Vec<Weighted> = Vec::with_capacity(shares.len());
        for share in shares {
            let candidate = plan.candidate(share);
            match tier.iter_mut().find(|known| known.candidate == candidate) {
                Some(known) => known.weight = known.weight.saturating_add(share.weight),
                None => tier.push(Weighted { candidate, weight: share.weight }),
            }
            plan.exclude(share);
        }
        tiers.push(tier);
    }
    match tiers.is_empty() {
        true if plan.wants_tls() => Err(RouteError::TlsRequired),
        true => Err(RouteError::NoEndpoints),
        false => Ok(tiers),
    }
}

/// The peers and labels that connections to a port of an import may be sent to, now or when others fail.
#[must_use]
pub fn remote_shares(own: &ClusterName, import: &Import, port: PortNumber) -> BTreeSet<(ClusterName, Arc<Subset>)> {
    let mut shares: BTreeSet<_> = match Plan::new(own, import, &RouteRequest::tcp(port)) {
        Ok(plan) => plan.remote().map(|(cluster, subset)| (cluster.clone(), Arc::clone(subset))).collect(),
        Err(_) => return BTreeSet::new(),
    };
    let wanted = import.wanted.iter().flat_map(|wanted| wanted.iter());
    for one in wanted.filter(|one| one.port.is_none_or(|number| number == port)) {
        let peers = import.parts.iter().filter_map(|part| part.cluster.clone());
        shares.extend(peers.map(|cluster| (cluster, Arc::clone(&one.share.subset))));
    }
    shares
}

/// One of the shares, each as likely as its weight says.
fn choose(shares: &[Share], draw: impl FnOnce(u64) -> u64) -> Option<Share> {
    if let [only] = shares {
        return Some(*only);
    }
    let total: u64 = shares.iter().map(|share| share.weight).sum();
    let mut left = if total == 0 { return None } else { draw(total) };
    for share in shares {
        match left.checked_sub(share.weight) {
            Some(rest) => left = rest,
            None => return Some(*share),
        }
    }
    // Only if `draw` broke its promise.
    shares.last().copied()
}

/// The one way to an endpoint that the client names itself.
fn to_endpoint(
    snapshot: &Snapshot,
    import: &Import,
    request: &RouteRequest<'_>,
    endpoint: &EndpointId,
) -> Result<Route, RouteError> {
    let cluster = request.cluster.filter(|cluster| *cluster != snapshot.cluster());
    let part = import.part(cluster).ok_or(RouteError::UnknownCluster)?;
    if !part.serves(request.protocol, request.port) {
        return Err(RouteError::UnknownPort);
    }
    let known = match &part.cluster {
        None => {
            let local = snapshot.local(&import.key).and_then(|local| local.endpoints.get(endpoint));
            local.map(|local| local.endpoint.tls)
        }
        // Without records of its endpoints only the owner can tell.
        Some(_) if part.endpoints.is_empty() => Some(TlsMode::None),
        Some(_) => part.endpoints.get(endpoint.as_str()).map(|endpoint| endpoint.shape.tls),
    };
    match known {
        None => return Err(RouteError::NoEndpoints),
        Some(tls) if request.plain && tls.refuses_plain() => return Err(RouteError::TlsRequired),
        Some(_) => {}
    }
    let candidate = Candidate {
        cluster: part.cluster.clone(),
        subset: Arc::clone(any_subset()),
        endpoint: Some(endpoint.clone()),
        stale: part.stale,
    };
    Ok(Route { candidates: vec![candidate], affinity: None })
}

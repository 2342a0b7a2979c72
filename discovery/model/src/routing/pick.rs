//! The endpoint that takes a connection, chosen by its owner.

use std::collections::HashMap;
use std::fmt;
use std::time::Instant;

use super::affinity::Score;
use crate::endpoint::{EndpointId, LocalEndpoint, LocalEndpoints, Subset};
use crate::service::{LocalService, PortKey, PortNumber, Protocol, ServiceKind};

/// How many endpoints are drawn blindly before all are looked at: at least these, and one for each
/// 16 endpoints, so that blind draws never cost more than a small part of the look at all.
const MIN_DRAWS: usize = 16;

/// What an endpoint is wanted for.
#[derive(Clone, Copy, Debug)]
pub struct PickRequest<'a> {
    /// Transport of the port.
    pub protocol: Protocol,
    /// The service's port.
    pub port: PortNumber,
    /// Labels the endpoint must have.
    pub subset: &'a Subset,
    /// This endpoint; of a plain service that is not headless one with the same labels while it cannot be reached.
    pub endpoint: Option<&'a EndpointId>,
    /// Endpoints in this zone are preferred.
    pub zone: Option<&'a str>,
    /// The same endpoint for the same key, see [`super::affinity_key`].
    pub affinity: Option<u64>,
    /// Endpoints that could not be reached lately: taken only if nothing else is left.
    pub failing: Option<Failing<'a>>,
    /// The client speaks no TLS: endpoints that take nothing else are not for it.
    pub plain: bool,
    /// Endpoints that were tried already: taken only if not even a failing one is left.
    pub avoid: &'a [EndpointId],
}

/// Endpoints that could not be reached lately.
#[derive(Clone, Copy, Debug)]
pub struct Failing<'a> {
    /// Until when each is avoided.
    pub until: &'a HashMap<EndpointId, Instant>,
    /// The time.
    pub now: Instant,
}

impl Failing<'_> {
    /// Whether the endpoint is avoided now.
    #[must_use]
    pub fn contains(&self, endpoint: &EndpointId) -> bool {
        self.until.get(endpoint).is_some_and(|until| self.now < *until)
    }
}

/// Why no endpoint takes the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PickError {
    /// The service has no such port.
    #[error("the service has no such port")]
    UnknownPort,
    /// None of its endpoints is ready, or drains, and has the port and the labels.
    #[error("no endpoint is ready")]
    NoEndpoints,
    /// Those that are ready take mutual TLS only, and the client speaks none.
    #[error("TLS_REQUIRED: its endpoints take mutual TLS only")]
    TlsRequired,
}

/// Which endpoints are good enough; tried in this order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Tier {
    /// Ready, in the client's zone, not tried yet.
    Near,
    /// Ready, not tried yet.
    Ready,
    /// Draining, not tried yet.
    Draining,
    /// Ready or draining, failing, not tried yet.
    Failing,
    /// Ready or draining, tried.
    Tried,
}

const TIERS: [Tier; 5] = [Tier::Near, Tier::Ready, Tier::Draining, Tier::Failing, Tier::Tried];

impl<'a> PickRequest<'a> {
    /// Any endpoint with this TCP port.
    #[must_use]
    pub fn tcp(port: PortNumber, subset: &'a Subset) -> Self {
        let (protocol, plain) = (Protocol::Tcp, false);
        Self { protocol, port, subset, endpoint: None, zone: None, affinity: None, failing: None, plain, avoid: &[] }
    }

    /// The best tier the endpoint belongs to.
    fn tier(&self, endpoint: &LocalEndpoint) -> Option<Tier> {
        self.assess(endpoint).ok()
    }

    /// The best tier that any endpoint can be in.
    fn top_tier(&self) -> Tier {
        if self.zone.is_some() { Tier::Near } else { Tier::Ready }
    }

    fn assess(&self, endpoint: &LocalEndpoint) -> Result<Tier, PickReject> {
        let LocalEndpoint { endpoint, target_ports, .. } = endpoint;
        let condition = endpoint.condition;
        if self.endpoint.is_some_and(|id| *id != endpoint.id) {
            return Err(PickReject::NotRequested);
        }
        if !condition.ready && !condition.is_draining() {
            return Err(PickReject::NotReady);
        }
        if !self.subset.iter().all(|(key, value)| endpoint.subset.get(key) == Some(value)) {
            return Err(PickReject::OtherLabels);
        }
        if !target_ports.contains_key(&PortKey { number: self.port, protocol: self.protocol }) {
            return Err(PickReject::PortNotServed);
        }
        if self.plain && endpoint.tls.refuses_plain() {
            return Err(PickReject::TlsRequired);
        }
        let near = self.zone.is_some() && endpoint.zone.as_deref() == self.zone;
        Ok(match condition.ready {
            _ if self.avoid.contains(&endpoint.id) => Tier::Tried,
            _ if self.failing.is_some_and(|failing| failing.contains(&endpoint.id)) => Tier::Failing,
            true if near => Tier::Near,
            true => Tier::Ready,
            false => Tier::Draining,
        })
    }
}

/// Why an endpoint takes no connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub enum PickReject {
    /// It fails its health check, or is on its way out.
    NotReady,
    /// It drains, and others are ready.
    Draining,
    /// It lies in another zone, and others are ready in the client's.
    OtherZone,
    /// It does not have the labels.
    OtherLabels,
    /// It does not have the port.
    PortNotServed,
    /// It could not be reached a moment ago, and there are others.
    Failing,
    /// It was tried already.
    Tried,
    /// The client named another endpoint.
    NotRequested,
    /// It takes mutual TLS only, and the client speaks none.
    TlsRequired,
}

impl fmt::Display for PickReject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotReady => "it fails its health check, or is on its way out",
            Self::Draining => "it drains, and others are ready",
            Self::OtherZone => "it is in another zone, and others are ready in the client's",
            Self::OtherLabels => "it does not have the labels",
            Self::PortNotServed => "it does not serve the port",
            Self::Failing => "it could not be reached a moment ago, and there are others",
            Self::Tried => "it was tried already",
            Self::NotRequested => "another endpoint was asked for",
            Self::TlsRequired => "it takes mutual TLS only, which needs a sidecar at the client",
        })
    }
}

/// For each endpoint its weight among those that connections are shared out to (in an idle
/// service), or why it gets none: [`pick_endpoint`] without the draw.
pub(crate) fn assess<'s>(
    service: &'s LocalService,
    request: &PickRequest<'_>,
) -> Vec<(&'s LocalEndpoint, Result<u32, PickReject>)> {
    let best = service.endpoints.iter().filter_map(|endpoint| request.tier(endpoint)).min();
    let verdict = |endpoint: &LocalEndpoint| match request.assess(endpoint)? {
        tier if Some(tier) == best => Ok(endpoint.endpoint.weight.max(1)),
        Tier::Near | Tier::Ready => Err(PickReject::OtherZone),
        Tier::Draining => Err(PickReject::Draining),
        Tier::Failing => Err(PickReject::Failing),
        Tier::Tried => Err(PickReject::Tried),
    };
    service.endpoints.iter().map(|endpoint| (&**endpoint, verdict(endpoint))).collect()
}

/// Chooses an endpoint: of two drawn by weight the one with fewer connections for its weight.
/// `in_flight` tells how many connections an endpoint has; `draw(n)` returns a number below `n`,
/// all equally likely.
///
/// # Errors
/// [`PickError`].
pub fn pick_endpoint<'s>(
    service: &'s LocalService,
    request: &PickRequest<'_>,
    in_flight: impl Fn(&EndpointId) -> u32,
    draw: impl FnMut(u64) -> u64,
) -> Result<&'s LocalEndpoint, PickError> {
    if service.record.port(request.protocol, request.port).is_none() {
        return Err(PickError::UnknownPort);
    }
    let Some(id) = request.endpoint else { return pick_any(service, request, in_flight, draw) };
    let named = service.endpoints.get(id).map(AsRef::as_ref);
    let (named, tier) =
        named.and_then(|named| Some((named, request.tier(named)?))).ok_or_else(|| nothing(service, request))?;
    if tier < Tier::Failing || named.endpoint.tls.is_mutual() || service.record.kind == ServiceKind::Headless {
        return Ok(named);
    }
    // It cannot be reached, and only the client's proxy has chosen it, which learns no more than that a connection ended
    // and would choose it again: one with the same labels stands in. Not where a name of its own leads to it, nor where
    // the client will ask it to prove who it is.
    let among = PickRequest { endpoint: None, subset: &named.endpoint.subset, ..*request };
    let other = pick_any(service, &among, in_flight, draw).ok();
    Ok(other.filter(|other| among.tier(other).is_some_and(|other| other < tier)).unwrap_or(named))
}

fn pick_any<'s>(
    service: &'s LocalService,
    request: &PickRequest<'_>,
    in_flight: impl Fn(&EndpointId) -> u32,
    mut draw: impl FnMut(u64) -> u64,
) -> Result<&'s LocalEndpoint, PickError> {
    if let Some(client) = request.affinity {
        return stick(&service.endpoints, request, client).ok_or_else(|| nothing(service, request));
    }
    let (first, second) = match draw_two(&service.endpoints, request, &mut draw) {
        Some(two) => two,
        None => scan_two(&service.endpoints, request, &mut draw).ok_or_else(|| nothing(service, request))?,
    };
    // Compares connections per weight without dividing; on a tie the first draw stands, so that
    // an idle service is used by weight.
    let load = |endpoint: &LocalEndpoint| u64::from(in_flight(&endpoint.endpoint.id));
    let weight = |endpoint: &LocalEndpoint| u64::from(endpoint.endpoint.weight.max(1));
    let second_is_freer = load(second) * weight(first) < load(first) * weight(second);
    Ok(if second_is_freer { second } else { first })
}

/// Why none was found.
fn nothing(service: &LocalService, request: &PickRequest<'_>) -> PickError {
    let mut verdicts = service.endpoints.iter().map(|endpoint| request.assess(endpoint));
    let wants_tls = verdicts.any(|verdict| matches!(verdict, Err(PickReject::TlsRequired)));
    if wants_tls { PickError::TlsRequired } else { PickError::NoEndpoints }
}

/// The endpoint of the best tier with the highest score for this client.
fn stick<'s>(endpoints: &'s LocalEndpoints, request: &PickRequest<'_>, client: u64) -> Option<&'s LocalEndpoint> {
    let top = request.top_tier();
    let mut best: Option<(Tier, Score, &LocalEndpoint)> = None;
    for (key, endpoint) in endpoints.keyed() {
        let score = Score::new(client, key.hash, u64::from(key.weight));
        let beaten = |(tier, highest, _): &(Tier, Score, _)| *tier == top && !score.beats(highest);
        if best.as_ref().is_some_and(beaten) {
            continue;
        }
        let Some(tier) = request.tier(endpoint) else { continue };
        if best.as_ref().is_none_or(|(best, highest, _)| tier < *best || (tier == *best && score.beats(highest))) {
            best = Some((tier, score, endpoint));
        }
    }
    best.map(|(_, _, endpoint)| endpoint)
}

/// Two endpoints of the best tier there can be, drawn blindly; `None` if that did not find two.
fn draw_two<'s>(
    endpoints: &'s LocalEndpoints,
    request: &PickRequest<'_>,
    mut draw: impl FnMut(u64) -> u64,
) -> Option<(&'s LocalEndpoint, &'s LocalEndpoint)> {
    let (len, max_weight) = (u64::try_from(endpoints.len()).ok()?, u64::from(endpoints.max_weight()));
    let (top, draws) = (request.top_tier(), endpoints.len() / 16);
    if endpoints.len() <= MIN_DRAWS || max_weight == 0 {
        return None;
    }
    let mut first: Option<&LocalEndpoint> = None;
    for _ in 0..draws.max(MIN_DRAWS) {
        let endpoint = endpoints.nth(usize::try_from(draw(len)).ok()?)?;
        let weight = u64::from(endpoint.endpoint.weight);
        if request.tier(endpoint) != Some(top) || (weight < max_weight && draw(max_weight) >= weight) {
            continue;
        }
        match first {
            None => first = Some(endpoint),
            Some(first) => return Some((first, endpoint)),
        }
    }
    None
}

/// Two endpoints of the best tier that has any, drawn by weight after a look at all.
fn scan_two<'s>(
    endpoints: &'s LocalEndpoints,
    request: &PickRequest<'_>,
    mut draw: impl FnMut(u64) -> u64,
) -> Option<(&'s LocalEndpoint, &'s LocalEndpoint)> {
    let mut weights = [0_u64; TIERS.len()];
    for endpoint in endpoints.iter() {
        let tier = request.tier(endpoint).and_then(|tier| weights.get_mut(tier as usize));
        if let Some(total) = tier {
            *total += u64::from(endpoint.endpoint.weight.max(1));
        }
    }
    let (tier, total) = TIERS.into_iter().zip(weights).find(|(_, total)| *total > 0)?;
    let at = |mut left: u64| {
        let of_tier = endpoints.iter().filter(|endpoint| request.tier(endpoint) == Some(tier));
        of_tier.map(AsRef::as_ref).find(|endpoint: &&LocalEndpoint| {
            match left.checked_sub(u64::from(endpoint.endpoint.weight.max(1))) {
                Some(rest) => {
                    left = rest;
                    false
                }
                None => true,
            }
        })
    };
    let first = at(draw(total))?;
    Some((first, at(draw(total))?))
}

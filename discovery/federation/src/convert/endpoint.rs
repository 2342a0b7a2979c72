//! Endpoint records.

use eastway_model::{Endpoint, EndpointCondition, EndpointId, Label};
use eastway_proto::federation::v1 as wire;
use prost::Message;

use super::text::{PairKind, Texts, pairs_from_wire, pairs_to_wire, token_from_wire};
use super::{MAX_RECORD, MAX_SUBSET, MAX_WEIGHT, identity_from_wire, tls_from_wire, tls_to_wire};
use crate::close::excerpt;
use crate::reject::RejectReason;

/// The record as it crosses.
#[must_use]
pub fn endpoint_to_wire(endpoint: &Endpoint) -> wire::Endpoint {
    let Endpoint { id, hostname, subset, zone, condition, weight, identity, tls } = endpoint;
    let EndpointCondition { ready, serving, terminating } = *condition;
    wire::Endpoint {
        id: id.to_string(),
        hostname: hostname.as_ref().map(Label::to_string).unwrap_or_default(),
        subset: pairs_to_wire(subset.iter()),
        zone: zone.as_deref().unwrap_or_default().to_owned(),
        ready,
        serving,
        terminating,
        weight: *weight,
        identity: identity.as_ref().map(ToString::to_string).unwrap_or_default(),
        tls: tls_to_wire(*tls).into(),
        tls_required: tls.refuses_plain(),
    }
}

/// Reads and checks one encoded endpoint.
///
/// # Errors
/// [`RejectReason`] says what is wrong with the record.
pub fn endpoint_from_wire(encoded: &[u8], trust_domain: &str, texts: &mut Texts) -> Result<Endpoint, RejectReason> {
    if encoded.len() > MAX_RECORD {
        return Err(RejectReason::TooLarge(encoded.len()));
    }
    let endpoint = wire::Endpoint::decode(encoded).map_err(|error| RejectReason::Unreadable(error.to_string()))?;
    let wire::Endpoint { id, hostname, subset, zone, ready, serving, terminating, weight, identity, tls, tls_required } =
        endpoint;
    let weight_good = (1..=MAX_WEIGHT).contains(&u64::from(weight));
    if !weight_good {
        return Err(RejectReason::OutOfRange { field: "weight", value: weight.into() });
    }
    Ok(Endpoint {
        id: EndpointId::parse(&id)
            .ok_or_else(|| RejectReason::BadText { field: "endpoint id", text: excerpt(&id, 64) })?,
        hostname: hostname_from_wire(&hostname)?,
        subset: pairs_from_wire(&subset, "subset", PairKind::Label, MAX_SUBSET, texts)?.into(),
        zone: token_from_wire(&zone, "zone", texts)?,
        condition: EndpointCondition { ready, serving, terminating },
        weight,
        identity: match identity.as_str() {
            "" => None,
            uri => Some(identity_from_wire(uri, trust_domain, texts)?),
        },
        tls: tls_from_wire(tls, tls_required)?,
    })
}

fn hostname_from_wire(text: &str) -> Result<Option<Label>, RejectReason> {
    if text.is_empty() {
        return Ok(None);
    }
    let bad = |source| RejectReason::BadName { field: "hostname", text: excerpt(text, 64), source };
    Label::parse(text).map(Some).map_err(bad)
}

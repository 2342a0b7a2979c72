//! Between what crosses and what the model holds.
//!
//! Outwards nothing can fail; inwards everything is checked, and a bad record is an error of its
//! own that leaves the others alone. Both directions take the structs apart field by field: a new
//! field does not compile until somebody decides what it means. There is no address on either side
//! of these functions but in [`eastway_model::LocalEndpoint`], which is not taken here (I1).

mod endpoint;
mod service;
mod text;

pub use endpoint::{endpoint_from_wire, endpoint_to_wire};
pub use service::{
    EncodedService, counts_to_wire, key_from_wire, key_to_wire, record_from_wire, record_with_counts,
    service_from_wire, service_to_wire,
};
pub use text::Texts;

use eastway_model::{TlsMode, WorkloadIdentity};
use eastway_proto::federation::v1 as wire;

use crate::close::excerpt;
use crate::reject::RejectReason;

/// Largest encoded service or endpoint, bytes.
pub const MAX_RECORD: usize = 64 << 10;

/// Most ports of a service (Kubernetes allows 250 in practice by object size).
pub const MAX_PORTS: usize = 250;

/// Most groups of a service: zones x subsets x TLS modes.
pub const MAX_GROUPS: usize = 256;

/// Most exported labels of a service, and most exported annotations.
pub const MAX_PAIRS: usize = 64;

/// Most pairs of a subset.
pub const MAX_SUBSET: usize = 16;

/// Most identities of a group.
pub const MAX_IDENTITIES: usize = 64;

/// Largest count of endpoints in a group.
pub const MAX_COUNT: u64 = 1_000_000;

/// Largest weight of an endpoint.
pub const MAX_WEIGHT: u64 = 1_000_000;

fn tls_from_wire(value: i32, required: bool) -> Result<TlsMode, RejectReason> {
    match wire::TlsMode::try_from(value) {
        // What it would require is not there.
        Ok(wire::TlsMode::None) => Ok(TlsMode::None),
        Ok(wire::TlsMode::Mesh) => Ok(if required { TlsMode::MeshStrict } else { TlsMode::Mesh }),
        Ok(wire::TlsMode::Istio) => Ok(if required { TlsMode::IstioStrict } else { TlsMode::Istio }),
        Ok(wire::TlsMode::Unspecified) | Err(_) => Err(RejectReason::UnknownValue { field: "tls", value }),
    }
}

fn tls_to_wire(tls: TlsMode) -> wire::TlsMode {
    match tls {
        TlsMode::None => wire::TlsMode::None,
        TlsMode::Mesh | TlsMode::MeshStrict => wire::TlsMode::Mesh,
        TlsMode::Istio | TlsMode::IstioStrict => wire::TlsMode::Istio,
    }
}

/// An identity in the peer's trust domain; a peer vouches for no other (design §5).
fn identity_from_wire(uri: &str, trust_domain: &str, texts: &mut Texts) -> Result<WorkloadIdentity, RejectReason> {
    let identity = texts.identity(uri).ok_or_else(|| RejectReason::BadIdentity(excerpt(uri, 128)))?;
    if *identity.trust_domain != *trust_domain {
        return Err(RejectReason::ForeignIdentity {
            identity: excerpt(uri, 128),
            trust_domain: trust_domain.to_owned(),
        });
    }
    Ok(identity)
}

#[cfg(test)]
mod tests;

//! Certificates: who this gateway is, and whom it accepts.
//!
//! - [`ca`]: the issuing CA of a cluster, from files in Istio's layout. Only the `ca` role opens it.
//! - [`Identity`], [`IdentityStore`]: the leaf this process presents, replaced while links live.
//! - [`TrustStore`]: the Peers, each by its pinned CA keys and its gateway identity, and the one verifier.
//! - [`anchor`]: what sidecars know a trust domain by.
//! - [`local`]: the same between the processes of one cluster, by its own CA.
//! - [`tls`]: rustls configurations built on both. [`reauth`]: a renewed leaf for a running link.
//! - [`web`]: a server that an API server knows by its own certificate alone.
//!
//! rustls, rcgen and webpki stay behind this crate. The tunnel sees configurations, verdicts and errors.
//! What is not here: who may ask the CA for what (the `ca` role), and configuration files.

pub mod anchor;
pub mod ca;
mod certificate;
mod clock;
pub mod crl;
pub mod csr;
mod der;
mod handshake;
mod identity;
pub mod kept;
mod key;
pub mod local;
mod pem;
mod pin;
pub mod reauth;
mod spiffe;
mod timestamp;
pub mod tls;
mod trust;
pub mod web;

pub use anchor::{Anchor, AnchorDer, AnchorError};
pub use ca::Ca;
pub use certificate::{CertificateFacts, certificate_facts, names_issuer};
pub use clock::{Clock, system_clock};
pub use identity::{Identity, IdentityError, IdentityStore, renewal_time};
pub use key::{KeyError, PrivateKey, key_to_pem};
pub use pem::{BundleError, certificates_from_pem, certificates_to_pem, crls_to_pem};
pub use pin::{PinError, SpkiPin};
pub use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
pub use spiffe::{SpiffeId, SpiffeIdError};
pub use timestamp::Timestamp;
pub use trust::{
    PeerTrust, Refusal, SanProblem, TrustError, TrustProblem, TrustStore, VerifiedPeer, VerifyError, VerifyReason,
};

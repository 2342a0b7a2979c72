//! TLS 1.3 between the processes of one cluster: the gateway, the controller and the CA know each other by the
//! cluster's own issuing CA and by the one identity that is wanted, never by a host name.
//!
//! The anchor is the key of the *issuing* CA, not the root: clusters may share a root, and then a root would let any
//! of them speak for the others.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::CertificateDer;

use crate::clock::Clock;
use crate::crl;
use crate::handshake::{self, Judge};
use crate::identity::IdentityStore;
use crate::pin::SpkiPin;
use crate::spiffe::SpiffeId;
use crate::trust::{VerifyError, verify_local};

pub use crate::handshake::ClientAuth;

/// The application protocol: gRPC speaks HTTP/2 and nothing else.
pub const ALPN: &[u8] = b"h2";

/// The certificates of the issuing CA: the current one, and those of a rotation. Asked at every handshake, so that a
/// rotation needs no restart.
pub type Anchors = Arc<dyn Fn() -> Vec<CertificateDer<'static>> + Send + Sync>;

/// The issuing CA of the identity that the store holds at the time.
#[must_use]
pub fn anchors_of(identity: Arc<IdentityStore>) -> Anchors {
    Arc::new(move || identity.current().chain().iter().skip(1).take(1).cloned().collect())
}

/// Whom to accept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// One identity.
    Identity(SpiffeId),
    /// Any identity of one trust domain.
    TrustDomain(Arc<str>),
    /// Any workload of one trust domain: what has a namespace and a service account there. Who is in the namespace
    /// `but` is none: that is where this mesh itself runs.
    Workloads {
        /// The trust domain.
        trust_domain: Arc<str>,
        /// The namespace.
        but: Arc<str>,
    },
}

impl Wanted {
    fn accepts(&self, id: &SpiffeId) -> bool {
        match self {
            Self::Identity(wanted) => wanted == id,
            Self::TrustDomain(domain) => id.trust_domain() == &**domain,
            Self::Workloads { trust_domain, but } => {
                let namespace = id.service_account().map(|(namespace, _)| namespace);
                id.trust_domain() == &**trust_domain && namespace.is_some_and(|namespace| namespace != &**but)
            }
        }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Identity(id) => id.fmt(f),
            Self::TrustDomain(domain) => write!(f, "an identity of {domain}"),
            Self::Workloads { trust_domain, but } => {
                write!(f, "a workload of {trust_domain} outside of the namespace {but}")
            }
        }
    }
}

/// A process of this cluster whose chain was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalCaller {
    /// Who it is.
    pub id: SpiffeId,
    /// Serial number of its leaf, in hexadecimal.
    pub serial: Arc<str>,
    /// Earliest end of life in its chain.
    pub not_after: SystemTime,
}

/// Why a chain was refused. `Display` completes the sentence "the other side …".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LocalError {
    /// Another CA issued it.
    #[error("presented a certificate of another CA (key {presented}, CA \"{issuer}\"), not of this cluster's")]
    OtherCa {
        /// Key of the issuing CA as presented.
        presented: SpkiPin,
        /// Its name in the leaf.
        issuer: String,
    },
    /// Ours, but not who is wanted.
    #[error("is {presented}; wanted is {wanted}")]
    NotWanted {
        /// Who it is.
        presented: SpiffeId,
        /// Who is wanted.
        wanted: Wanted,
    },
    /// There is no issuing CA to judge by.
    #[error("cannot be judged: this process knows no CA certificate of its cluster yet")]
    NoAnchor,
    /// The chain itself is at fault.
    #[error(transparent)]
    Certificate(VerifyError),
}

/// Judges chains of this cluster's own CA.
#[derive(Clone)]
pub struct LocalTrust {
    anchors: Anchors,
    wanted: Wanted,
}

impl LocalTrust {
    /// Accepts `wanted`, as certified by one of `anchors`.
    #[must_use]
    pub fn new(anchors: Anchors, wanted: Wanted) -> Self {
        Self { anchors, wanted }
    }

    /// Judges a chain, leaf first.
    ///
    /// # Errors
    /// [`LocalError`] says why it is refused.
    pub fn verify(&self, chain: &[CertificateDer<'_>], now: SystemTime) -> Result<LocalCaller, LocalError> {
        let anchors = (self.anchors)();
        if anchors.is_empty() {
            return Err(LocalError::NoAnchor);
        }
        let (id, not_after) = verify_local(anchors, chain, now).map_err(|error| {
            #[expect(clippy::wildcard_enum_match_arm, reason = "all others are about the chain itself")]
            match error {
                VerifyError::NotPinned { presented, issuer, .. } => LocalError::OtherCa { presented, issuer },
                other => LocalError::Certificate(other),
            }
        })?;
        if !self.wanted.accepts(&id) {
            return Err(LocalError::NotWanted { presented: id, wanted: self.wanted.clone() });
        }
        let serial = chain.first().and_then(crl::serial).unwrap_or_default();
        Ok(LocalCaller { id, serial: serial.into(), not_after })
    }
}

impl fmt::Debug for LocalTrust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalTrust").field("wanted", &self.wanted).finish_non_exhaustive()
    }
}

/// A server for processes of this cluster.
///
/// # Errors
/// The provider lacks TLS 1.3, which this build's does not.
pub fn server_config(
    identity: Arc<IdentityStore>,
    trust: LocalTrust,
    auth: ClientAuth,
    clock: Clock,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    handshake::server_config(&[ALPN], identity, trust, auth, clock).map(Arc::new)
}

/// A client that accepts only a server of `trust`. Without an identity it presents none.
///
/// # Errors
/// The provider lacks TLS 1.3, which this build's does not.
pub fn client_config(
    identity: Option<Arc<IdentityStore>>,
    trust: LocalTrust,
    clock: Clock,
) -> Result<Arc<ClientConfig>, rustls::Error> {
    handshake::client_config(&[ALPN], identity, trust, clock)
}

impl Judge for LocalTrust {
    fn judge(&self, chain: &[CertificateDer<'_>], now: SystemTime) -> Result<(), rustls::Error> {
        let Err(error) = self.verify(chain, now) else { return Ok(()) };
        let other = rustls::OtherError(Arc::new(error));
        Err(rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other)))
    }
}

/// The verdict inside a rustls error, if the verifier gave one.
#[must_use]
pub fn verdict(error: &rustls::Error) -> Option<&LocalError> {
    #[expect(clippy::wildcard_enum_match_arm, reason = "a verdict comes in one shape only")]
    match error {
        rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other)) => other.0.downcast_ref(),
        _ => None,
    }
}

//! TLS 1.3 between the processes of one cluster: the gateway, the controller and the CA know each other by the
//! cluster's own issuing CA and by the one identity that is wanted, never by a host name.
//!
//! The anchor is the key of the *issuing* CA, not the root: clusters may share a root, and then a root would let any
//! of them speak for the others.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::clock::Clock;
use crate::identity::IdentityStore;
use crate::pin::SpkiPin;
use crate::spiffe::SpiffeId;
use crate::tls::{ClockTime, no_tls12, provider};
use crate::trust::{VerifyError, verify_local};

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
}

impl Wanted {
    fn accepts(&self, id: &SpiffeId) -> bool {
        match self {
            Self::Identity(wanted) => wanted == id,
            Self::TrustDomain(domain) => id.trust_domain() == &**domain,
        }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Identity(id) => id.fmt(f),
            Self::TrustDomain(domain) => write!(f, "an identity of {domain}"),
        }
    }
}

/// A process of this cluster whose chain was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalCaller {
    /// Who it is.
    pub id: SpiffeId,
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
        Ok(LocalCaller { id, not_after })
    }
}

impl fmt::Debug for LocalTrust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalTrust").field("wanted", &self.wanted).finish_non_exhaustive()
    }
}

/// Whether a client has to show a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// No handshake without one.
    Required,
    /// One that is shown is judged; who shows none proves itself otherwise.
    Optional,
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
    let provider = provider();
    let verifier = Verifier::new(&provider, trust, auth == ClientAuth::Required);
    let mut config = ServerConfig::builder_with_details(provider, Arc::new(ClockTime(clock)))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(Presented(Some(identity))));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
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
    let provider = provider();
    let verifier = Verifier::new(&provider, trust, true);
    let mut config = ClientConfig::builder_with_details(provider, Arc::new(ClockTime(clock)))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(Presented(identity)));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.enable_sni = false;
    Ok(Arc::new(config))
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

/// Presents the store's identity of the moment.
#[derive(Debug)]
struct Presented(Option<Arc<IdentityStore>>);

impl Presented {
    fn current(&self) -> Option<Arc<CertifiedKey>> {
        self.0.as_ref().map(|store| Arc::clone(store.current().certified()))
    }
}

impl ResolvesServerCert for Presented {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // rustls lets a client pass that names no protocol at all; see `tls`.
        if hello.alpn()?.any(|protocol| protocol == ALPN) { self.current() } else { None }
    }
}

impl ResolvesClientCert for Presented {
    fn resolve(&self, _root_hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.current()
    }

    fn has_certs(&self) -> bool {
        self.0.is_some()
    }
}

#[derive(Debug)]
struct Verifier {
    trust: LocalTrust,
    mandatory: bool,
    algorithms: rustls::crypto::WebPkiSupportedAlgorithms,
}

impl Verifier {
    fn new(provider: &CryptoProvider, trust: LocalTrust, mandatory: bool) -> Self {
        Self { trust, mandatory, algorithms: provider.signature_verification_algorithms }
    }

    fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(now.as_secs());
        let chain: Vec<_> = std::iter::once(leaf).chain(others).cloned().collect();
        match self.trust.verify(&chain, now) {
            Ok(_) => Ok(()),
            Err(error) => {
                let other = rustls::OtherError(Arc::new(error));
                Err(rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other)))
            }
        }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.judge(end_entity, intermediates, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.judge(end_entity, intermediates, now).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

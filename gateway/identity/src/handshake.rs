//! What every TLS configuration of this crate shares: TLS 1.3 only, both sides authenticated, nothing resumed, no early
//! data, the clock given; and rustls' traits for a verifier and a presenter, implemented once.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::clock::Clock;
use crate::identity::IdentityStore;
use crate::tls::provider;

/// Judges the chain of the other side.
pub(crate) trait Judge: fmt::Debug + Send + Sync {
    /// Accepts the chain, leaf first, or says why not in rustls' words.
    fn judge(&self, chain: &[CertificateDer<'_>], now: SystemTime) -> Result<(), rustls::Error>;
}

/// Whether a client has to show a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// No handshake without one.
    Required,
    /// One that is shown is judged; who shows none proves itself otherwise.
    Optional,
}

/// A server that speaks `protocols`, the preferred one first, and nothing else.
///
/// # Errors
/// The provider lacks TLS 1.3, which this build's does not.
pub(crate) fn server_config(
    protocols: &'static [&'static [u8]],
    identity: Arc<IdentityStore>,
    judge: impl Judge + 'static,
    auth: ClientAuth,
    clock: Clock,
) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_details(provider(), Arc::new(ClockTime(clock)))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(Verifier::new(judge, auth)))
        .with_cert_resolver(Arc::new(Presented { identity: Some(identity), protocols }));
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

/// A client that speaks `protocols` and nothing else. Without an identity it presents none.
///
/// # Errors
/// The provider lacks TLS 1.3, which this build's does not.
pub(crate) fn client_config(
    protocols: &'static [&'static [u8]],
    identity: Option<Arc<IdentityStore>>,
    judge: impl Judge + 'static,
    clock: Clock,
) -> Result<Arc<ClientConfig>, rustls::Error> {
    let mut config = ClientConfig::builder_with_details(provider(), Arc::new(ClockTime(clock)))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier::new(judge, ClientAuth::Required)))
        .with_client_cert_resolver(Arc::new(Presented { identity, protocols }));
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.enable_sni = false;
    Ok(Arc::new(config))
}

/// rustls' view of a [`Clock`].
struct ClockTime(Clock);

impl TimeProvider for ClockTime {
    fn current_time(&self) -> Option<UnixTime> {
        let since = (self.0)().duration_since(SystemTime::UNIX_EPOCH).ok()?;
        Some(UnixTime::since_unix_epoch(since))
    }
}

impl fmt::Debug for ClockTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClockTime")
    }
}

/// Presents the store's identity of the moment.
#[derive(Debug)]
struct Presented {
    identity: Option<Arc<IdentityStore>>,
    protocols: &'static [&'static [u8]],
}

impl Presented {
    fn current(&self) -> Option<Arc<CertifiedKey>> {
        self.identity.as_ref().map(|store| Arc::clone(store.current().certified()))
    }
}

impl ResolvesServerCert for Presented {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // rustls refuses a client whose protocols do not include ours, but over TCP lets one pass that names none
        // (threat U9). Without a certificate the handshake fails.
        if hello.alpn()?.any(|protocol| self.protocols.contains(&protocol)) { self.current() } else { None }
    }
}

impl ResolvesClientCert for Presented {
    fn resolve(&self, _root_hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.current()
    }

    fn has_certs(&self) -> bool {
        self.identity.is_some()
    }
}

/// A [`Judge`] in rustls' clothes.
#[derive(Debug)]
struct Verifier<J> {
    judge: J,
    auth: ClientAuth,
    algorithms: rustls::crypto::WebPkiSupportedAlgorithms,
}

impl<J: Judge> Verifier<J> {
    fn new(judge: J, auth: ClientAuth) -> Self {
        Self { judge, auth, algorithms: provider().signature_verification_algorithms }
    }

    fn chain(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(now.as_secs());
        let chain: Vec<_> = std::iter::once(leaf).chain(others).cloned().collect();
        self.judge.judge(&chain, now)
    }

    fn signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, leaf, signed, &self.algorithms)
    }
}

/// TLS 1.2 is not negotiated; should rustls ever ask, the answer is no.
fn no_tls12() -> rustls::Error {
    rustls::Error::PeerIncompatible(rustls::PeerIncompatible::Tls12NotOffered)
}

impl<J: Judge> ServerCertVerifier for Verifier<J> {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.chain(end_entity, intermediates, now).map(|()| ServerCertVerified::assertion())
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
        self.signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl<J: Judge> ClientCertVerifier for Verifier<J> {
    fn client_auth_mandatory(&self) -> bool {
        self.auth == ClientAuth::Required
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // A stranger is not told which CAs we know.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.chain(end_entity, intermediates, now).map(|()| ClientCertVerified::assertion())
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
        self.signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

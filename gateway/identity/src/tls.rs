//! rustls configurations for links: TLS 1.3 with both sides authenticated, and nothing else.
//!
//! The crypto provider is always given explicitly. No session is ever resumed and no early data is ever sent or
//! read (invariant I9): a link lives for days, and a resumed session would skip the verifier.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, cipher_suite, kx_group};
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::CertificateDer;

use crate::clock::Clock;
use crate::handshake::{self, ClientAuth, Judge};
use crate::identity::IdentityStore;
use crate::trust::{TrustStore, VerifyError};

/// The one application protocol of links over QUIC (RFC 7301). A handshake without it fails.
pub const ALPN: &[u8] = b"eastway/1";

/// Likewise of links over TCP: one can never be taken for the other.
pub const TCP_ALPN: &[u8] = b"eastway-tcp/1";

/// Likewise of TCP connections that carry many of those of a link, each in a stream of HTTP/2.
pub const SHARED_ALPN: &[u8] = b"eastway-h2/1";

/// A server name for APIs that insist on one. It is never sent (no SNI) and never checked: peers are known by pin
/// and URI SAN.
pub const SERVER_NAME: &str = "gateway.eastway.invalid";

/// The crypto provider of the whole process: aws-lc-rs, AES-128-GCM first, X25519MLKEM768 preferred.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1],
        ..aws_lc_rs::default_provider()
    })
}

/// Accepts any configured Peer. Which one it was the caller learns by [`TrustStore::verify`] with the chain that the
/// finished handshake holds.
///
/// # Errors
/// The provider lacks TLS 1.3, which this build's does not.
pub fn server_config(
    identity: Arc<IdentityStore>,
    trust: Arc<TrustStore>,
    clock: Clock,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    server_config_for(&[ALPN], identity, trust, clock)
}

/// As [`server_config`], for links over TCP.
///
/// # Errors
/// The provider lacks TLS 1.3, which this build's does not.
pub fn tcp_server_config(
    identity: Arc<IdentityStore>,
    trust: Arc<TrustStore>,
    clock: Clock,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    server_config_for(&[TCP_ALPN], identity, trust, clock)
}

/// As [`tcp_server_config`], where the other side may also have many of its connections share this one
/// ([`SHARED_ALPN`]).
///
/// # Errors
/// The provider lacks TLS 1.3, which this build's does not.
pub fn tcp_server_config_with_shared(
    identity: Arc<IdentityStore>,
    trust: Arc<TrustStore>,
    clock: Clock,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    server_config_for(&[TCP_ALPN, SHARED_ALPN], identity, trust, clock)
}

fn server_config_for(
    protocols: &'static [&'static [u8]],
    identity: Arc<IdentityStore>,
    trust: Arc<TrustStore>,
    clock: Clock,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let anyone = Peers { trust, expected: None };
    let mut config = handshake::server_config(protocols, identity, anyone, ClientAuth::Required, clock)?;
    config.ignore_client_order = true;
    Ok(Arc::new(config))
}

/// Accepts the named Peer only.
///
/// # Errors
/// The provider lacks TLS 1.3, which this build's does not.
pub fn client_config(
    identity: Arc<IdentityStore>,
    trust: Arc<TrustStore>,
    clock: Clock,
    peer: Arc<str>,
) -> Result<Arc<ClientConfig>, rustls::Error> {
    handshake::client_config(&[ALPN], Some(identity), Peers { trust, expected: Some(peer) }, clock)
}

/// As [`client_config`], for links over TCP.
///
/// # Errors
/// The provider lacks TLS 1.3, which this build's does not.
pub fn tcp_client_config(
    identity: Arc<IdentityStore>,
    trust: Arc<TrustStore>,
    clock: Clock,
    peer: Arc<str>,
) -> Result<Arc<ClientConfig>, rustls::Error> {
    handshake::client_config(&[TCP_ALPN], Some(identity), Peers { trust, expected: Some(peer) }, clock)
}

/// As [`tcp_client_config`], for a connection that many of a link share.
///
/// # Errors
/// The provider lacks TLS 1.3, which this build's does not.
pub fn shared_client_config(
    identity: Arc<IdentityStore>,
    trust: Arc<TrustStore>,
    clock: Clock,
    peer: Arc<str>,
) -> Result<Arc<ClientConfig>, rustls::Error> {
    handshake::client_config(&[SHARED_ALPN], Some(identity), Peers { trust, expected: Some(peer) }, clock)
}

/// Judges by the Peers of a [`TrustStore`], which keeps count of whom it refuses.
struct Peers {
    trust: Arc<TrustStore>,
    expected: Option<Arc<str>>,
}

impl Judge for Peers {
    fn judge(&self, chain: &[CertificateDer<'_>], now: SystemTime) -> Result<(), rustls::Error> {
        let Err(error) = self.trust.verify(chain, now, self.expected.as_deref()) else { return Ok(()) };
        Err(self.trust.refuse(error, now, chain.first(), self.expected.as_ref()))
    }
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peers").field("expected", &self.expected).finish_non_exhaustive()
    }
}

/// The verdict inside a rustls error, if the verifier gave one.
#[must_use]
pub fn verdict(error: &rustls::Error) -> Option<&VerifyError> {
    VerifyError::in_tls_error(error)
}

//! Re-authentication: a renewed certificate for a link that is up.
//!
//! Before its leaf expires each side sends its new chain and a signature by the new leaf's key over
//! ```text
//! "eastway reauth v1" 00 | role (1 byte) | exporter (32) | SHA-256 of the leaf of the handshake (32) | SHA-256 of the new leaf (32)
//! ```
//! The exporter (RFC 8446 §7.5) ties it to this TLS session, the role to this direction, the first hash to the
//! certificate that opened the link. It is judged by the same verifier as a handshake; the link's deadline becomes
//! the `not_after` of the result.

use std::fmt;
use std::time::SystemTime;

use rustls::SignatureScheme;
use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use webpki::EndEntityCert;

use crate::identity::Identity;
use crate::trust::{TrustStore, VerifiedPeer, VerifyError};

/// Label for `export_keying_material`; its context is empty and its output 32 bytes.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-eastway-reauth-v1";

const CONTEXT: &[u8] = b"eastway reauth v1\0";

/// Schemes a signer may use, in the order of preference: those of the leaves the verifier accepts.
const SCHEMES: &[SignatureScheme] = &[
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ED25519,
    SignatureScheme::RSA_PSS_SHA256,
    SignatureScheme::RSA_PSS_SHA384,
    SignatureScheme::RSA_PSS_SHA512,
];

/// Keying material exported from the link's TLS session under [`EXPORTER_LABEL`].
#[derive(Clone, PartialEq, Eq)]
pub struct Exporter(pub [u8; 32]);

impl fmt::Debug for Exporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Exporter(redacted)")
    }
}

/// Which end of the link signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The side that dialled: the TLS client.
    Dialler,
    /// The side that accepted: the TLS server.
    Acceptor,
}

/// A renewed chain with its proof, as it travels on the control stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reauth {
    /// Leaf first, DER.
    pub chain: Vec<CertificateDer<'static>>,
    /// TLS SignatureScheme code point.
    pub scheme: u16,
    /// By the key of the leaf in `chain`.
    pub signature: Vec<u8>,
}

/// Why a re-authentication cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// The key has no scheme that verifiers accept.
    #[error("the identity's key has no usable signature scheme")]
    NoScheme,
    /// The provider failed.
    #[error("the crypto provider could not sign")]
    Sign,
}

/// Signs `identity` into a running link. `handshake_leaf_sha256` is the hash of the leaf that this side presented in
/// the handshake.
///
/// # Errors
/// [`SignError`].
pub fn sign(
    identity: &Identity,
    exporter: &Exporter,
    role: Role,
    handshake_leaf_sha256: [u8; 32],
) -> Result<Reauth, SignError> {
    let signer = identity.key().choose_scheme(SCHEMES).ok_or(SignError::NoScheme)?;
    let message = message(exporter, role, handshake_leaf_sha256, identity.leaf_sha256());
    let signature = signer.sign(&message).map_err(|_| SignError::Sign)?;
    Ok(Reauth { chain: identity.chain().to_vec(), scheme: u16::from(signer.scheme()), signature })
}

/// Judges a re-authentication at `now`. `role` and `handshake_leaf_sha256` are those of its sender.
///
/// An earlier `not_after` than before is fine: the result holds the new deadline.
///
/// # Errors
/// The chain is refused as in a handshake ([`TrustStore::verify_live`]), or the signature is not by its leaf over
/// this link.
pub fn verify(
    trust: &TrustStore,
    reauth: &Reauth,
    exporter: &Exporter,
    role: Role,
    handshake_leaf_sha256: [u8; 32],
    expected_peer: &str,
    now: SystemTime,
) -> Result<VerifiedPeer, VerifyError> {
    let peer = trust.verify_live(&reauth.chain, now, expected_peer)?;
    let refused = |reason| VerifyError::Reauth { reason };
    let scheme = SignatureScheme::from(reauth.scheme);
    if !SCHEMES.contains(&scheme) {
        return Err(refused("its signature scheme is not accepted"));
    }
    let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms;
    let algorithm = algorithms.mapping.iter().find(|(candidate, _)| *candidate == scheme);
    // TLS 1.3: one scheme is one algorithm on one curve.
    let algorithm = algorithm.and_then(|(_, algorithms)| algorithms.first());
    let algorithm = algorithm.ok_or_else(|| refused("its signature scheme is not accepted"))?;
    let leaf_der = reauth.chain.first().ok_or(VerifyError::NoCertificate)?;
    let leaf = EndEntityCert::try_from(leaf_der).map_err(|_| refused("its leaf cannot be read"))?;
    let message = message(exporter, role, handshake_leaf_sha256, Sha256::digest(leaf_der).into());
    leaf.verify_signature(*algorithm, &message, &reauth.signature)
        .map_err(|_| refused("it was not signed for this link by the key of its certificate"))?;
    Ok(peer)
}

fn message(exporter: &Exporter, role: Role, handshake_leaf: [u8; 32], new_leaf: [u8; 32]) -> Vec<u8> {
    let role = match role {
        Role::Dialler => 1,
        Role::Acceptor => 2,
    };
    let mut message = CONTEXT.to_vec();
    message.push(role);
    message.extend_from_slice(&exporter.0);
    message.extend_from_slice(&handshake_leaf);
    message.extend_from_slice(&new_leaf);
    message
}

//! Private keys: parsed, used to sign, wiped, and never printed (invariant I10).

use std::fmt;
use std::sync::Arc;

use rcgen::SigningKey as _;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::{Zeroize, Zeroizing};

use crate::pem;

/// Why a private key cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The bytes are not a key of a kind that is supported.
    #[error("not a private key of a supported kind (ECDSA P-256 or P-384, RSA of 2048 to 8192 bits)")]
    Unsupported,
    /// The random generator or the provider failed.
    #[error("the crypto provider could not generate a key")]
    Generate,
    /// The provider failed to sign.
    #[error("the crypto provider could not sign")]
    Sign,
}

/// The private key of a leaf, PKCS#8 DER. Wiped from memory when dropped.
#[derive(Clone)]
pub struct PrivateKey(Zeroizing<Vec<u8>>);

impl PrivateKey {
    /// Takes a PKCS#8 DER key; it is parsed where it is used.
    #[must_use]
    pub fn from_pkcs8(der: Vec<u8>) -> Self {
        Self(Zeroizing::new(der))
    }

    /// The secret bytes, PKCS#8 DER, for the one consumer that must hand them on (SDS).
    #[must_use]
    pub fn secret_pkcs8(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn signing_key(&self) -> Result<Arc<dyn rustls::sign::SigningKey>, KeyError> {
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.0.as_slice()));
        rustls::crypto::aws_lc_rs::sign::any_supported_type(&der).map_err(|_| KeyError::Unsupported)
    }
}

/// PEM of a private key (RFC 5958), for the one consumer that must hand it on. Wiped from memory when dropped.
#[must_use]
pub fn key_to_pem(key: &PrivateKey) -> Zeroizing<String> {
    Zeroizing::new(pem::encode("PRIVATE KEY", key.secret_pkcs8()))
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(redacted)")
    }
}

/// The key of a CA. Signs certificates; wiped from memory when dropped.
pub(crate) struct CaKey(rcgen::KeyPair);

impl CaKey {
    pub(crate) fn generate(kind: KeyKind) -> Result<Self, KeyError> {
        let algorithm = match kind {
            KeyKind::P256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            KeyKind::P384 => &rcgen::PKCS_ECDSA_P384_SHA384,
        };
        rcgen::KeyPair::generate_for(algorithm).map(Self).map_err(|_| KeyError::Generate)
    }

    pub(crate) fn parse(der: &PrivateKeyDer<'_>) -> Result<Self, KeyError> {
        rcgen::KeyPair::try_from(der).map(Self).map_err(|_| KeyError::Unsupported)
    }

    /// DER SubjectPublicKeyInfo.
    pub(crate) fn spki(&self) -> Vec<u8> {
        rcgen::PublicKeyData::subject_public_key_info(&self.0)
    }

    /// DER AlgorithmIdentifier of the signatures this key makes, if it may sign certificates here.
    pub(crate) fn signature_algorithm(&self) -> Result<&'static [u8], KeyError> {
        let algorithm = self.0.algorithm();
        if algorithm == &rcgen::PKCS_ECDSA_P256_SHA256 {
            Ok(crate::der::ECDSA_WITH_SHA256)
        } else if algorithm == &rcgen::PKCS_ECDSA_P384_SHA384 {
            Ok(crate::der::ECDSA_WITH_SHA384)
        } else if algorithm == &rcgen::PKCS_RSA_SHA256 {
            Ok(crate::der::RSA_WITH_SHA256)
        } else {
            Err(KeyError::Unsupported)
        }
    }

    pub(crate) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        self.0.sign(message).map_err(|_| KeyError::Sign)
    }

    /// The secret bytes as they were read or generated.
    pub(crate) fn secret_der(&self) -> &[u8] {
        self.0.serialized_der()
    }

    /// PEM of the secret bytes. Only for keys made by [`CaKey::generate`], which are PKCS#8.
    pub(crate) fn secret_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.0.serialize_pem())
    }
}

impl Drop for CaKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for CaKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CaKey(redacted)")
    }
}

/// Kind of key that a new CA gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyKind {
    /// ECDSA on P-256: small, fast, accepted by everything.
    #[default]
    P256,
    /// ECDSA on P-384.
    P384,
}

//! Pins: the hash of a CA's public key, the one root of trust of a Peer.

use std::fmt;

use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};

const PREFIX: &str = "sha256:";

/// Why a text or a certificate gives no pin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PinError {
    /// Not `sha256:` and 64 hexadecimal digits.
    #[error("a pin has the form sha256:<64 hexadecimal digits>; `eastway peer export` prints it")]
    Format,
    /// Not a DER certificate.
    #[error("not a certificate that can be read: {0}")]
    Certificate(String),
}

/// SHA-256 of a DER SubjectPublicKeyInfo. Text form: `sha256:<64 hexadecimal digits>`.
///
/// A pin names a key, not a certificate: a CA certificate renewed with its key keeps the pin.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpkiPin([u8; 32]);

impl SpkiPin {
    /// Reads the text form; digits may be of either case.
    ///
    /// # Errors
    /// [`PinError::Format`].
    pub fn parse(text: &str) -> Result<Self, PinError> {
        let digits = text.strip_prefix(PREFIX).ok_or(PinError::Format)?.as_bytes();
        let mut hash = [0_u8; 32];
        if digits.len() != 2 * hash.len() {
            return Err(PinError::Format);
        }
        for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = match pair {
                [high, low] => hex_digit(*high)? << 4 | hex_digit(*low)?,
                _ => return Err(PinError::Format),
            };
        }
        Ok(Self(hash))
    }

    /// The pin of a certificate's key.
    ///
    /// # Errors
    /// [`PinError::Certificate`]: not a certificate.
    pub fn of_certificate(certificate: &CertificateDer<'_>) -> Result<Self, PinError> {
        // webpki's reading, because webpki is what checks signatures with this very key.
        let anchor = webpki::anchor_from_trusted_cert(certificate)
            .map_err(|error| PinError::Certificate(format!("{error:?}")))?;
        Ok(Self::of_spki(&webpki::spki_for_anchor(&anchor)))
    }

    /// The pin of a DER SubjectPublicKeyInfo.
    #[must_use]
    pub fn of_spki(spki: &[u8]) -> Self {
        Self(Sha256::digest(spki).into())
    }

    /// A hash that was computed elsewhere.
    #[must_use]
    pub const fn from_bytes(hash: [u8; 32]) -> Self {
        Self(hash)
    }

    /// The hash.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

fn hex_digit(digit: u8) -> Result<u8, PinError> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        b'A'..=b'F' => Ok(digit - b'A' + 10),
        _ => Err(PinError::Format),
    }
}

impl fmt::Display for SpkiPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PREFIX)?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for SpkiPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for SpkiPin {
    type Err = PinError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

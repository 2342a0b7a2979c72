//! Keys that all replicas of a gateway share, so that one can answer for another's connections.

use std::fmt;

use aws_lc_rs::hkdf;
use zeroize::Zeroize;

use crate::key::KeyError;

const SALT: &[u8] = b"eastway link keys v1";
const LENGTH: usize = 64;

/// Three keys of 64 bytes, derived from the CA key with HKDF-SHA256 (RFC 5869). Wiped when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct LinkKeys {
    /// HMAC key of stateless resets.
    pub reset: [u8; LENGTH],
    /// Authenticates connection ids.
    pub connection_id: [u8; LENGTH],
    /// Seals Retry tokens.
    pub token: [u8; LENGTH],
}

impl LinkKeys {
    /// Derives the keys from secret bytes of any length.
    pub(super) fn derive(secret: &[u8]) -> Result<Self, KeyError> {
        let root = hkdf::Salt::new(hkdf::HKDF_SHA256, SALT).extract(secret);
        let mut keys = Self { reset: [0; LENGTH], connection_id: [0; LENGTH], token: [0; LENGTH] };
        let LinkKeys { reset, connection_id, token } = &mut keys;
        for (label, key) in [(&b"reset"[..], reset), (b"connection id", connection_id), (b"token", token)] {
            root.expand(&[label], Length).and_then(|expanded| expanded.fill(key)).map_err(|_| KeyError::Generate)?;
        }
        Ok(keys)
    }
}

struct Length;

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        LENGTH
    }
}

impl Drop for LinkKeys {
    fn drop(&mut self) {
        self.reset.zeroize();
        self.connection_id.zeroize();
        self.token.zeroize();
    }
}

impl fmt::Debug for LinkKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LinkKeys(redacted)")
    }
}

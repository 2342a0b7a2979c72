//! Keys that all replicas of a gateway share, so that one can answer for another's connections.

use std::fmt;
use std::io::ErrorKind;
use std::path::Path;

use aws_lc_rs::hkdf;
use zeroize::{Zeroize, Zeroizing};

use super::error::CaError;
use super::files;
use super::init::{self, InitError};
use crate::key::KeyError;
use crate::pem;

const SALT: &[u8] = b"eastway link keys v1";
const LENGTH: usize = 64;
/// Where a rotation keeps them, in the folder of the CA.
pub(super) const FILE: &str = "link-keys.pem";
const LABEL: &str = "EASTWAY LINK KEYS";

/// Three keys of 64 bytes, derived from a CA key with HKDF-SHA256 (RFC 5869): the issuing one's, or that of before the
/// first rotation, which keeps them. Wiped when dropped.
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

    /// Those that a rotation kept in `dir`, if any.
    pub(super) fn kept(dir: &Path) -> Result<Option<Self>, CaError> {
        let bytes = match files::bytes(dir, FILE, "") {
            Ok(bytes) => bytes,
            Err(CaError::Missing { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let wrong = || CaError::LinkKeys { file: files::path(dir, FILE) };
        let blocks = pem::blocks(&bytes).map_err(|_| wrong())?;
        let block = blocks.iter().find(|block| block.label == LABEL).ok_or_else(wrong)?;
        let (parts, rest) = block.der.as_chunks::<LENGTH>();
        match parts {
            [reset, connection_id, token] if rest.is_empty() => {
                Ok(Some(Self { reset: *reset, connection_id: *connection_id, token: *token }))
            }
            _ => Err(wrong()),
        }
    }

    /// Keeps them in `dir`, for its owner only.
    pub(super) fn keep(&self, dir: &Path) -> Result<(), InitError> {
        let bytes = Zeroizing::new([self.reset, self.connection_id, self.token].concat());
        let text = Zeroizing::new(pem::encode(LABEL, &bytes));
        init::write_file(&dir.join(FILE), text.as_bytes(), 0o600)
    }

    /// Those of the issuing key count again.
    pub(super) fn forget(dir: &Path) -> Result<(), InitError> {
        let file = dir.join(FILE);
        match std::fs::remove_file(&file) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(init::write_error(&file, &error)),
            Ok(()) | Err(_) => Ok(()),
        }
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

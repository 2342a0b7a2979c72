//! SPIFFE ids: the only names that this mesh authenticates.

use std::fmt;
use std::sync::Arc;

/// Longest id that is accepted (SPIFFE-ID standard §2.3 asks for 2048 bytes of support; no more is taken).
const MAX_ID: usize = 2048;
/// Longest trust domain (SPIFFE-ID standard §2.1: a host of at most 255 bytes).
const MAX_TRUST_DOMAIN: usize = 255;
/// Namespace and service account of gateways unless a Peer says otherwise.
const GATEWAY_PATH: &str = "ns/eastway-system/sa/eastway-gateway";

/// Why a text is not a SPIFFE id (SPIFFE-ID standard §2).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeIdError {
    /// Does not begin with `spiffe://`, in lower case.
    #[error("must begin with spiffe://")]
    Scheme,
    /// More than 2048 bytes.
    #[error("is {0} bytes long; at most 2048 are allowed")]
    TooLong(usize),
    /// Empty, longer than 255 bytes, or with a character other than `a-z0-9.-_`.
    #[error("trust domain must be 1 to 255 characters of a-z, 0-9, '.', '-' and '_'")]
    TrustDomain,
    /// No path: that names a whole trust domain, not one identity.
    #[error("names a trust domain, not an identity in it: a path is missing")]
    NoPath,
    /// An empty segment, `.`, `..`, a trailing slash or a character other than `a-zA-Z0-9.-_`.
    #[error("path segments must be characters of a-z, A-Z, 0-9, '.', '-' and '_', and not empty, '.' or '..'")]
    Path,
}

/// A SPIFFE id with a path, as in the URI SAN of a leaf: `spiffe://<trust domain>/<path>`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId {
    text: Arc<str>,
    /// Offset of the slash that ends the trust domain.
    path_at: usize,
}

impl SpiffeId {
    /// Checks the grammar. Nothing is normalised: two different texts are two different identities.
    ///
    /// # Errors
    /// [`SpiffeIdError`] says which rule the text breaks.
    pub fn parse(text: &str) -> Result<Self, SpiffeIdError> {
        if text.len() > MAX_ID {
            return Err(SpiffeIdError::TooLong(text.len()));
        }
        let rest = text.strip_prefix("spiffe://").ok_or(SpiffeIdError::Scheme)?;
        let (trust_domain, path) = rest.split_once('/').map_or((rest, None), |(td, path)| (td, Some(path)));
        check_trust_domain(trust_domain)?;
        let path = path.ok_or(SpiffeIdError::NoPath)?;
        if path.is_empty() {
            return Err(SpiffeIdError::NoPath);
        }
        if !path.split('/').all(is_segment) {
            return Err(SpiffeIdError::Path);
        }
        Ok(Self { text: Arc::from(text), path_at: "spiffe://".len() + trust_domain.len() })
    }

    /// The identity of a gateway unless its Peer says otherwise:
    /// `spiffe://<trust domain>/ns/eastway-system/sa/eastway-gateway`.
    ///
    /// # Errors
    /// The trust domain breaks the grammar.
    pub fn gateway(trust_domain: &str) -> Result<Self, SpiffeIdError> {
        Self::parse(&format!("spiffe://{trust_domain}/{GATEWAY_PATH}"))
    }

    /// The identity of a workload, as Istio forms it: `spiffe://<trust domain>/ns/<namespace>/sa/<account>`.
    ///
    /// # Errors
    /// One of the parts breaks the grammar, or holds a slash.
    pub fn workload(trust_domain: &str, namespace: &str, account: &str) -> Result<Self, SpiffeIdError> {
        if !is_segment(namespace) || !is_segment(account) {
            return Err(SpiffeIdError::Path);
        }
        Self::parse(&format!("spiffe://{trust_domain}/ns/{namespace}/sa/{account}"))
    }

    /// The trust domain, without scheme and slashes.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        self.text.get("spiffe://".len()..self.path_at).unwrap_or_default()
    }

    /// The path, without its first slash.
    #[must_use]
    pub fn path(&self) -> &str {
        self.text.get(self.path_at + 1..).unwrap_or_default()
    }

    /// Namespace and service account, if the path has Istio's form `ns/<namespace>/sa/<account>`.
    #[must_use]
    pub fn service_account(&self) -> Option<(&str, &str)> {
        let mut parts = self.path().split('/');
        match (parts.next(), parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some("ns"), Some(namespace), Some("sa"), Some(account), None) => Some((namespace, account)),
            _ => None,
        }
    }

    /// The whole id.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// Checks that a text can be a trust domain.
pub(crate) fn check_trust_domain(text: &str) -> Result<(), SpiffeIdError> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
    if text.is_empty() || text.len() > MAX_TRUST_DOMAIN || !text.bytes().all(allowed) {
        return Err(SpiffeIdError::TrustDomain);
    }
    Ok(())
}

fn is_segment(segment: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    !matches!(segment, "" | "." | "..") && segment.bytes().all(allowed)
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::str::FromStr for SpiffeId {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

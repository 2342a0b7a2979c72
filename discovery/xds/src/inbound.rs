//! Where a sidecar takes connections for its workload, as the sidecar says in its node's metadata. Whoever holds the
//! workload's certificate decides this: it is about its own ports and its own application.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::resources::AppProtocol;

/// Key of the metadata: a list of [`Inbound`] as JSON in a text.
pub const KEY: &str = "INBOUND";
/// Most places of one sidecar.
pub const MAX_INBOUND: usize = 64;
/// Most identities of one place.
pub const MAX_ALLOWED: usize = 256;
/// Key of the metadata: a [`ByService`] as JSON in a text. Of its own, so that gateways that do not know it take those places
/// for bytes.
pub const BY_SERVICE: &str = "INBOUND_BY_SERVICE";
/// Most addresses of one workload.
pub const MAX_ADDRESSES: usize = 16;

/// A place where a sidecar listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Inbound {
    /// Where.
    pub listen: SocketAddr,
    /// Where the application listens.
    pub app: SocketAddr,
    /// What is spoken.
    pub protocol: AppProtocol,
    /// Services say different things of what is spoken, so that it is bytes whoever comes. Not for a sidecar to say.
    #[serde(skip)]
    pub mixed: bool,
    /// Whether plain text is taken as well.
    pub mode: Mode,
    /// Who may connect by TLS; empty: everybody whose trust domain is known.
    #[serde(default)]
    pub allow: Vec<Allowed>,
}

/// Of which of a sidecar's places Services say what is spoken.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ByService {
    /// Where Services lead to the workload: the addresses of its pod.
    pub addresses: BTreeSet<IpAddr>,
    /// Ports of the application; of all others the sidecar says it.
    #[serde(default)]
    pub ports: BTreeSet<u16>,
}

/// Whether plain text is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Mutual TLS only.
    Strict,
    /// Both.
    Permissive,
}

/// A SPIFFE id, or all below a path: `spiffe://gke.example/ns/bookinfo/*`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Allowed(String);

/// Not what [`Allowed`] wants.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be a SPIFFE id such as spiffe://gke.example/ns/bookinfo/sa/web, or end with /* for all below it")]
pub struct NotAllowed;

impl Allowed {
    /// Reads one.
    ///
    /// # Errors
    /// [`NotAllowed`]
    pub fn parse(text: &str) -> Result<Self, NotAllowed> {
        let rest = text.strip_prefix("spiffe://").ok_or(NotAllowed)?;
        let path = rest.strip_suffix("/*").unwrap_or(rest);
        let good = |part: &str| {
            let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
            !part.is_empty() && part.bytes().all(good)
        };
        // At least a trust domain: who may be anybody is said by leaving the list empty.
        if text.len() > 1024 || !path.split('/').all(good) || (path == rest && !rest.contains('/')) {
            return Err(NotAllowed);
        }
        Ok(Self(text.to_owned()))
    }

    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What comes before `*`; `None`: it is one id.
    #[must_use]
    pub fn prefix(&self) -> Option<&str> {
        self.0.strip_suffix('*')
    }
}

impl TryFrom<String> for Allowed {
    type Error = NotAllowed;

    fn try_from(text: String) -> Result<Self, NotAllowed> {
        Self::parse(&text)
    }
}

impl From<Allowed> for String {
    fn from(allowed: Allowed) -> Self {
        allowed.0
    }
}

/// Why a list is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InboundError {
    /// It cannot be read.
    #[error("{0} of the node's metadata cannot be read: {1}")]
    Malformed(&'static str, String),
    /// Too many places, or too many identities of one.
    #[error("{KEY} of the node's metadata has more than {MAX_INBOUND} places, or {MAX_ALLOWED} identities for one")]
    TooMany,
    /// Too many addresses or ports.
    #[error("{BY_SERVICE} of the node's metadata has more than {MAX_ADDRESSES} addresses, or {MAX_INBOUND} ports")]
    TooManyOfServices,
    /// Two of the same place.
    #[error("{KEY} of the node's metadata has {0} twice")]
    Twice(SocketAddr),
}

/// Reads what a sidecar says; without it there is no place.
///
/// # Errors
/// [`InboundError`]
pub fn parse(text: Option<&str>) -> Result<Vec<Inbound>, InboundError> {
    let Some(text) = text else { return Ok(Vec::new()) };
    let list: Vec<Inbound> =
        serde_json::from_str(text).map_err(|error| InboundError::Malformed(KEY, error.to_string()))?;
    if list.len() > MAX_INBOUND || list.iter().any(|inbound| inbound.allow.len() > MAX_ALLOWED) {
        return Err(InboundError::TooMany);
    }
    let mut places = BTreeSet::new();
    match list.iter().find(|inbound| !places.insert(inbound.listen)) {
        Some(twice) => Err(InboundError::Twice(twice.listen)),
        None => Ok(list),
    }
}

/// Reads what a sidecar leaves to Services; without it there is no such place.
///
/// # Errors
/// [`InboundError`]
pub fn parse_by_service(text: Option<&str>) -> Result<ByService, InboundError> {
    let Some(text) = text else { return Ok(ByService::default()) };
    let said: ByService =
        serde_json::from_str(text).map_err(|error| InboundError::Malformed(BY_SERVICE, error.to_string()))?;
    match said.addresses.len() > MAX_ADDRESSES || said.ports.len() > MAX_INBOUND {
        true => Err(InboundError::TooManyOfServices),
        false => Ok(said),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_to_services_is_bounded() {
        let text = r#"{"addresses": ["10.0.0.7", "fd00::7"], "ports": [8080]}"#;
        let said = parse_by_service(Some(text)).unwrap();
        assert_eq!((said.addresses.len(), said.ports.first()), (2, Some(&8080)));
        assert_eq!(parse_by_service(None), Ok(ByService::default()));
        let many = ByService { ports: (1..=65).collect(), ..said };
        let many = serde_json::to_string(&many).unwrap();
        assert_eq!(parse_by_service(Some(&many)), Err(InboundError::TooManyOfServices));
        assert!(parse_by_service(Some(r#"{"addresses": ["web"]}"#)).is_err());
    }

    #[test]
    fn what_a_sidecar_says_is_read_once_into_what_cannot_be_wrong() {
        let text = r#"[{"listen": "10.0.0.7:9443", "app": "127.0.0.1:8080", "protocol": "http", "mode": "strict",
            "allow": ["spiffe://gke.example/ns/shop/*"]}]"#;
        let list = parse(Some(text)).unwrap();
        assert_eq!(list[0].allow[0].prefix(), Some("spiffe://gke.example/ns/shop/"));
        assert_eq!(parse(Some(&serde_json::to_string(&list).unwrap())), Ok(list.clone()));
        assert_eq!(parse(None), Ok(Vec::new()));
        let twice = serde_json::to_string(&[&list[0], &list[0]]).unwrap();
        assert_eq!(parse(Some(&twice)), Err(InboundError::Twice(list[0].listen)));
        for (part, other) in [("strict", "off"), ("9443", "x"), ("spiffe://", "https://"), ("\"app\"", "\"host\"")] {
            assert!(parse(Some(&text.replace(part, other))).is_err(), "{other}");
        }
    }

    #[test]
    fn an_identity_is_whole_or_a_path() {
        for good in ["spiffe://gke.example/ns/shop/sa/web", "spiffe://gke.example/*", "spiffe://a/ns/x/sa/*"] {
            assert!(Allowed::parse(good).is_ok(), "{good}");
        }
        for bad in
            ["spiffe://*", "spiffe://gke.example", "spiffe://gke.exa*", "spiffe://a//b", "spiffe://a/b,c", "*", ""]
        {
            assert!(Allowed::parse(bad).is_err(), "{bad}");
        }
    }
}

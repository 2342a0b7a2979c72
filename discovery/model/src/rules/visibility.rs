//! What workloads of a namespace are told of. This keeps what their sidecars hold small; who may reach what is decided
//! by access policies.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::filter::{Glob, GlobError};
use crate::name::{Label, ServiceKey};

/// Most patterns of one namespace.
pub const MAX_PATTERNS: usize = 1_000;

/// By namespace of the workloads; who is not here is told everything.
pub type Visibility = BTreeMap<Label, Arc<Visible>>;

/// The services that workloads of one namespace are told of: those of the namespace itself, and what matches.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Visible {
    /// Of the workloads.
    pub namespace: Label,
    /// Any of them.
    pub services: Vec<ServicePattern>,
}

impl Visible {
    /// Whether they are told of this service.
    #[must_use]
    pub fn shows(&self, service: &ServiceKey) -> bool {
        service.namespace == self.namespace || self.services.iter().any(|pattern| pattern.matches(service))
    }
}

/// `namespace/name`, both with `*` for any run of characters, or `*` for every service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServicePattern {
    namespace: Glob,
    name: Glob,
}

/// Why a text is no pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// No `/`.
    #[error("must have the form namespace/service, or be \"*\" for all services")]
    Form,
    /// One of the two parts.
    #[error("namespace and service of a pattern {0}")]
    Part(#[from] GlobError),
}

impl ServicePattern {
    /// Whether the service is meant.
    #[must_use]
    pub fn matches(&self, service: &ServiceKey) -> bool {
        self.namespace.matches(service.namespace.as_str()) && self.name.matches(service.name.as_str())
    }
}

impl FromStr for ServicePattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "*" {
            return Ok(Self { namespace: Glob::any(), name: Glob::any() });
        }
        let (namespace, name) = text.split_once('/').ok_or(PatternError::Form)?;
        Ok(Self { namespace: Glob::parse(namespace)?, name: Glob::parse(name)? })
    }
}

impl fmt::Display for ServicePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl serde::Serialize for ServicePattern {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_sees_itself_and_what_matches() {
        let of = |patterns: &[&str]| Visible {
            namespace: Label::parse("shop").unwrap(),
            services: patterns.iter().map(|text| text.parse().unwrap()).collect(),
        };
        let shows = |patterns: &[&str], service: &str| of(patterns).shows(&service.parse().unwrap());
        assert!(shows(&[], "shop/web") && !shows(&[], "bank/ledger"));
        assert!(shows(&["*"], "bank/ledger"));
        assert!(shows(&["bank/*", "x/y"], "bank/ledger") && !shows(&["bank/*"], "banks/ledger"));
        assert!(shows(&["team-*/api"], "team-a/api") && !shows(&["team-*/api"], "team-a/apis"));
    }

    #[test]
    fn a_pattern_has_two_parts() {
        for bad in ["", "shop", "**", "Shop/*", "shop/", "/web", "a/b/c", "shop/w.b"] {
            assert!(bad.parse::<ServicePattern>().is_err(), "{bad:?}");
        }
        assert_eq!("*".parse::<ServicePattern>().unwrap().to_string(), "*/*");
    }
}

//! Who may call which service from another cluster. Only exact, typed comparisons: no pattern of
//! any kind takes part in a decision about access.

use std::sync::Arc;

use crate::name::{ClusterName, Label, ServiceKey};

/// Anything, or exactly one value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Match {
    /// `*`
    Any,
    /// This and nothing else.
    Exact(Label),
}

impl Match {
    /// Whether `value` is meant. What is not known is only matched by [`Match::Any`].
    #[must_use]
    pub fn matches(&self, value: Option<&Label>) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(wanted) => value == Some(wanted),
        }
    }
}

impl serde::Serialize for Match {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Any => serializer.serialize_str("*"),
            Self::Exact(label) => label.serialize(serializer),
        }
    }
}

/// Whether refusals are carried out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub enum AccessMode {
    /// What no policy allows is refused.
    #[default]
    Enforce,
    /// What no policy allows is counted and logged, and let through.
    DryRun,
}

/// Allows callers from other clusters to reach some services, of its own namespace unless it names others.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AccessPolicy {
    /// Its name; logs and verdicts say `namespace/name`.
    pub name: Arc<str>,
    /// Its namespace.
    pub namespace: Label,
    /// Namespaces of the services; empty: its own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<Match>,
    /// The services.
    pub services: Vec<Match>,
    /// Only report what this policy would refuse.
    pub dry_run: bool,
    /// Who is allowed: any of these.
    pub allow: Vec<AccessRule>,
}

/// Callers of one kind.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AccessRule {
    /// The cluster they call from, as its certificate proves.
    pub cluster: Match,
    /// Their namespace, as that cluster attests.
    pub namespace: Match,
    /// Their service account, as that cluster attests; at least one.
    pub service_accounts: Vec<Match>,
}

impl AccessPolicy {
    /// Whether the policy is about this service.
    #[must_use]
    pub fn selects(&self, key: &ServiceKey) -> bool {
        let here = if self.namespaces.is_empty() {
            self.namespace == key.namespace
        } else {
            self.namespaces.iter().any(|namespace| namespace.matches(Some(&key.namespace)))
        };
        here && self.services.iter().any(|service| service.matches(Some(&key.name)))
    }

    /// The first rule that allows this caller, with its position.
    #[must_use]
    pub fn allowing(
        &self,
        cluster: &ClusterName,
        namespace: Option<&Label>,
        service_account: Option<&Label>,
    ) -> Option<usize> {
        self.allow.iter().position(|rule| {
            rule.cluster.matches(Some(cluster))
                && rule.namespace.matches(namespace)
                && rule.service_accounts.iter().any(|account| account.matches(service_account))
        })
    }
}

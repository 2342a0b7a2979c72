//! How connections to one service are shared out between clusters and versions.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::route::Origin;
use crate::endpoint::Subset;
use crate::name::{ClusterName, ServiceKey};

/// Most splits of one policy.
pub const MAX_SPLITS: usize = 32;
/// Largest weight of a split.
pub const MAX_WEIGHT: u32 = 1_000_000;

/// A cluster in a policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ClusterRef {
    /// The cluster that reads the policy, whichever it is.
    Local,
    /// The cluster of this name; may be the own one.
    Named(ClusterName),
}

impl serde::Serialize for ClusterRef {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Local => serializer.serialize_str("local"),
            Self::Named(name) => name.serialize(serializer),
        }
    }
}

/// Which of several clusters with ready endpoints is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
pub enum Locality {
    /// This cluster as long as it has a ready endpoint.
    PreferLocal,
    /// All, by the weight of their ready endpoints.
    Any,
}

/// A share of the connections.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Split {
    /// Its weight among all splits, 0 to [`MAX_WEIGHT`]; 0 gets nothing, even on failover.
    pub weight: u32,
    /// Only this cluster; none: any that has endpoints of the subset.
    pub cluster: Option<ClusterRef>,
    /// Only endpoints with these labels; empty: all.
    pub subset: Arc<Subset>,
}

/// The policy of one service.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TrafficPolicy {
    /// Its name; explanations say `namespace/name`.
    pub name: Arc<str>,
    /// Whose object it was written as.
    #[serde(skip_serializing_if = "Origin::is_gateway_api")]
    pub origin: Origin,
    /// The service.
    pub service: ServiceKey,
    /// Shares; empty: everything goes where `locality` and `failover` say.
    pub split: Vec<Split>,
    /// Where the share of a split without endpoints goes, in this order; empty: any cluster.
    pub failover: Vec<ClusterRef>,
    /// Which cluster serves a share that is not pinned to one.
    pub locality: Locality,
    /// What only sidecars do.
    #[serde(flatten)]
    pub sidecars: SidecarPolicy,
}

/// What only a proxy beside the client can do to the traffic to a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SidecarPolicy {
    /// When a single endpoint is left alone for a while.
    pub outliers: Outliers,
    /// How much one client may have under way.
    pub limits: ConnectionLimits,
    /// Which endpoint is taken.
    pub balance: Balance,
    /// Failures that are made on purpose.
    pub fault: Option<Fault>,
}

/// Which endpoint of those that serve a share is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Balance {
    /// Of two, the one with less to do.
    #[default]
    LeastRequest,
    /// One after the other.
    RoundRobin,
    /// Any.
    Random,
}

/// When an endpoint is ejected, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Outliers {
    /// Answers of 5xx in a row, requests without an answer among them; 0: they do not count.
    pub errors: u32,
    /// Connections of bytes that failed in a row, and of requests if errors do not count; 0: they do not count.
    pub failures: u32,
    /// How often it is looked.
    pub interval: Duration,
    /// The shortest ejection; each further one is longer.
    pub ejection: Duration,
    /// Most endpoints that are ejected at once, percent.
    pub most_percent: u32,
}

impl Default for Outliers {
    fn default() -> Self {
        let (interval, ejection) = (Duration::from_secs(10), Duration::from_secs(30));
        Self { errors: 5, failures: 3, interval, ejection, most_percent: 100 }
    }
}

/// Limits of one client; `None`: as good as none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionLimits {
    /// Connections to one cluster or version.
    pub connections: Option<u32>,
    /// Requests that wait for a connection.
    pub pending: Option<u32>,
    /// Requests under way.
    pub requests: Option<u32>,
}

/// Failures that are made on purpose. Those of a service are made between a sidecar and the endpoint it chose: timeouts and
/// retries see them as if the endpoint had failed. Those of a rule are made before all that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Fault {
    /// Some requests wait.
    pub delay: Option<Delay>,
    /// Some requests are not sent on.
    pub abort: Option<Abort>,
}

/// Some requests wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Delay {
    /// For so long.
    pub duration: Duration,
    /// Of [`MAX_FRACTION`](super::route::MAX_FRACTION) requests.
    pub per_million: u32,
}

/// Some requests are answered in place of the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Abort {
    /// The answer's status, 200 to 599.
    pub status: u16,
    /// Of [`MAX_FRACTION`](super::route::MAX_FRACTION) requests.
    pub per_million: u32,
}

/// Why a policy is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrafficPolicyError {
    /// More than [`MAX_SPLITS`].
    #[error("split has {0} entries; at most {MAX_SPLITS} are allowed")]
    TooManySplits(usize),
    /// Above [`MAX_WEIGHT`].
    #[error("split[{0}].weight is {1}; at most {MAX_WEIGHT} is allowed")]
    WeightTooLarge(usize, u32),
    /// Nothing would be routed.
    #[error("all weights are 0: no connection could be routed")]
    NoWeight,
    /// The same cluster and labels in two splits.
    #[error("split[{0}] selects the same cluster and labels as split[{1}]")]
    DuplicateSplit(usize, usize),
    /// A cluster stands twice in the failover order.
    #[error("failover[{0}] is listed twice")]
    DuplicateFailover(usize),
}

impl TrafficPolicy {
    /// A policy that routes something and says nothing twice. `locality` is `PreferLocal` unless
    /// given or there is a split: a split says itself where connections go.
    ///
    /// # Errors
    /// [`TrafficPolicyError`] for the first rule it breaks.
    pub fn new(
        name: &str,
        service: ServiceKey,
        split: Vec<Split>,
        failover: Vec<ClusterRef>,
        locality: Option<Locality>,
    ) -> Result<Self, TrafficPolicyError> {
        if split.len() > MAX_SPLITS {
            return Err(TrafficPolicyError::TooManySplits(split.len()));
        }
        for (index, entry) in split.iter().enumerate() {
            if entry.weight > MAX_WEIGHT {
                return Err(TrafficPolicyError::WeightTooLarge(index, entry.weight));
            }
            let same = |other: &Split| other.cluster == entry.cluster && other.subset == entry.subset;
            if let Some(first) = split.iter().take(index).position(same) {
                return Err(TrafficPolicyError::DuplicateSplit(index, first));
            }
        }
        if !split.is_empty() && split.iter().all(|entry| entry.weight == 0) {
            return Err(TrafficPolicyError::NoWeight);
        }
        let mut seen = BTreeSet::new();
        if let Some(index) = failover.iter().position(|cluster| !seen.insert(cluster)) {
            return Err(TrafficPolicyError::DuplicateFailover(index));
        }
        let locality = locality.unwrap_or(if split.is_empty() { Locality::PreferLocal } else { Locality::Any });
        let (origin, sidecars) = (Origin::default(), SidecarPolicy::default());
        Ok(Self { name: Arc::from(name), origin, service, split, failover, locality, sidecars })
    }

    /// With what only sidecars do.
    #[must_use]
    pub fn with_sidecars(self, sidecars: SidecarPolicy) -> Self {
        Self { sidecars, ..self }
    }
}

/// `TrafficPolicy shop/web`.
impl fmt::Display for TrafficPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.origin.is_gateway_api() { "TrafficPolicy" } else { "DestinationRule" };
        write!(f, "{kind} {}/{}", self.service.namespace, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(weight: u32, version: &str) -> Split {
        let subset = [(Arc::from("version"), Arc::from(version))].into();
        Split { weight, cluster: None, subset: Arc::new(subset) }
    }

    fn policy(split: Vec<Split>, failover: Vec<ClusterRef>) -> Result<TrafficPolicy, TrafficPolicyError> {
        TrafficPolicy::new("reviews", "bookinfo/reviews".parse().unwrap(), split, failover, None)
    }

    #[test]
    fn a_policy_that_routes_nothing_or_says_something_twice_is_refused() {
        let of = |split| policy(split, Vec::new()).unwrap_err();
        assert_eq!(of(vec![split(0, "v1"), split(0, "v2")]), TrafficPolicyError::NoWeight);
        assert_eq!(of(vec![split(1, "v1"), split(2, "v1")]), TrafficPolicyError::DuplicateSplit(1, 0));
        assert_eq!(of(vec![split(1_000_001, "v1")]), TrafficPolicyError::WeightTooLarge(0, 1_000_001));
        let many = (0..33).map(|number| split(1, &format!("v{number}"))).collect();
        assert_eq!(of(many), TrafficPolicyError::TooManySplits(33));
        let twice = policy(Vec::new(), vec![ClusterRef::Local, ClusterRef::Local]);
        assert_eq!(twice, Err(TrafficPolicyError::DuplicateFailover(1)));
    }

    #[test]
    fn locality_is_local_unless_a_split_says_where_to_go() {
        assert_eq!(policy(Vec::new(), Vec::new()).unwrap().locality, Locality::PreferLocal);
        assert_eq!(policy(vec![split(1, "v1")], Vec::new()).unwrap().locality, Locality::Any);
    }
}

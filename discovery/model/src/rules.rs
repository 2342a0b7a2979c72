//! What the operator configured, as plain validated types: who may offer what, how connections are
//! shared out, who may call whom. The YAML they come from is not known here.

mod access;
mod filter;
pub mod route;
mod traffic;
mod visibility;

pub use access::{AccessMode, AccessPolicy, AccessRule, Match};
pub use filter::{FilterError, Glob, GlobError, NEVER_SHARED, NameFilter, NameFilterEntry, never_shared};
pub use route::{Route, RouteBook, RouteTable, ServiceShare};
pub use traffic::{
    Abort, Balance, ClusterRef, ConnectionLimits, Delay, Fault, Locality, MAX_SPLITS, MAX_WEIGHT, Outliers,
    SidecarPolicy, Split, TrafficPolicy, TrafficPolicyError,
};
pub use visibility::{MAX_PATTERNS, PatternError, ServicePattern, Visibility, Visible};

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::name::{ClusterName, ServiceKey};
use crate::time::UnixMillis;

/// How long the imports of an unreachable peer are kept unless its Peer says otherwise: a day.
pub const DEFAULT_WITHDRAW_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// Everything configured that a decision depends on. The default allows nothing to cross.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rules {
    /// The peers. What a cluster that is not here sends is kept out of every import.
    pub peers: BTreeMap<ClusterName, Arc<PeerRules>>,
    /// How connections to a service are shared out; none: local first, then any cluster.
    pub traffic: BTreeMap<ServiceKey, Arc<TrafficPolicy>>,
    /// Which request or connection to a service goes where, by Gateway API objects.
    pub routes: Arc<RouteBook>,
    /// Who may call whom, of all namespaces.
    pub access: Vec<Arc<AccessPolicy>>,
    /// Whether a refusal is carried out at all.
    pub access_mode: AccessMode,
    /// What workloads are told of.
    pub visibility: Arc<Visibility>,
    /// Names of our own for imports.
    pub names: Vec<NameRule>,
}

/// What one peer may see and bring.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerRules {
    /// The peer's cluster name.
    pub name: ClusterName,
    /// Which of our exported services it is offered.
    pub export: NameFilter,
    /// Which of its services we take.
    pub import: NameFilter,
    /// Identities in its records and headers must lie in this trust domain.
    pub trust_domain: Arc<str>,
    /// When the Peer was accepted: its export times before that count as that moment.
    pub accepted_at: UnixMillis,
    /// How long after losing all links to it its imports are withdrawn.
    pub withdraw_after: Duration,
    /// Both sides agreed to live in one trust domain, without isolation of workloads.
    pub shared_trust_domain: bool,
}

impl PeerRules {
    /// A peer that is offered nothing and of which nothing is taken.
    #[must_use]
    pub fn new(name: ClusterName, trust_domain: &str, accepted_at: UnixMillis) -> Self {
        Self {
            name,
            export: NameFilter::default(),
            import: NameFilter::default(),
            trust_domain: Arc::from(trust_domain),
            accepted_at,
            withdraw_after: DEFAULT_WITHDRAW_AFTER,
            shared_trust_domain: false,
        }
    }
}

/// A name in a zone of our own that leads to an import.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NameRule {
    /// The name: lower case, fully qualified, no final dot.
    pub fqdn: Arc<str>,
    /// The service it leads to.
    pub service: ServiceKey,
    /// Only this cluster's endpoints; none: as the service's traffic policy says.
    pub cluster: Option<ClusterName>,
}

impl Rules {
    /// Whether services of `key` are taken from `peer`.
    #[must_use]
    pub fn may_import(&self, peer: &str, key: &ServiceKey) -> bool {
        self.peers.get(peer).is_some_and(|peer| peer.import.allows(key))
    }

    /// Whether a service of `key` may be offered to `peer`, if it is exported at all.
    #[must_use]
    pub fn may_export(&self, peer: &str, key: &ServiceKey) -> bool {
        self.peers.get(peer).is_some_and(|peer| peer.export.allows(key))
    }
}

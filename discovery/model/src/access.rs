//! Who may call what. Calls inside the cluster are not Eastway's business; a call from another
//! cluster needs a policy that allows it.

use std::fmt;
use std::sync::Arc;

use crate::endpoint::WorkloadIdentity;
use crate::name::{ClusterName, Label, ServiceKey};
use crate::rules::{AccessMode, AccessPolicy};
use crate::store::Snapshot;

/// Who opens a connection: the cluster as its certificate proves, the rest as that cluster attests.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceIdentity {
    /// The cluster.
    pub cluster: ClusterName,
    /// Namespace of the workload; none: unknown.
    pub namespace: Option<Label>,
    /// Its service account; none: unknown.
    pub service_account: Option<Label>,
    /// What it proved by a certificate of its own.
    pub identity: Option<WorkloadIdentity>,
}

impl SourceIdentity {
    /// A caller of which only the cluster is known.
    #[must_use]
    pub fn unknown(cluster: ClusterName) -> Self {
        Self { cluster, namespace: None, service_account: None, identity: None }
    }
}

impl fmt::Display for SourceIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |part: &Option<Label>| part.as_ref().map_or_else(|| "?".to_owned(), Label::to_string);
        write!(f, "{}/{}/{}", self.cluster, shown(&self.namespace), shown(&self.service_account))
    }
}

/// Whether a call goes through, and why.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    /// Let it through.
    pub allowed: bool,
    /// What decided.
    pub rule: Rule,
    /// It goes through only because the policies, or the gateway, are in dry-run mode: to be
    /// counted and logged as a denial that was not carried out.
    pub dry_run: bool,
}

/// What decided about a call.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum Rule {
    /// Caller and service are in this cluster.
    Local,
    /// A rule of this policy allows it.
    Allowed {
        /// `namespace/name` of the policy.
        policy: String,
        /// Position in its `allow` list.
        index: usize,
    },
    /// Policies select the service, and none allows this caller.
    NotAllowed {
        /// `namespace/name` of the first of them.
        policy: String,
    },
    /// No policy selects the service: denied by default.
    NoPolicy,
    /// The caller's cluster is no peer.
    UnknownPeer,
    /// The certificate does not fit: not of the peer's trust domain, or not of the namespace and
    /// service account that the caller is said to have.
    IdentityMismatch,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => f.write_str("calls inside the cluster are not restricted"),
            Self::Allowed { policy, index } => write!(f, "allowed by access policy {policy}, allow[{index}]"),
            Self::NotAllowed { policy } => write!(f, "access policy {policy} does not allow this caller"),
            Self::NoPolicy => {
                f.write_str("no access policy selects the service; across clusters the default is to deny")
            }
            Self::UnknownPeer => f.write_str("the caller's cluster is no peer"),
            Self::IdentityMismatch => f.write_str("the caller's identity does not fit its trust domain or namespace"),
        }
    }
}

/// Decides whether `source` may call the local service `key`. Says nothing about whether it is
/// exported: see [`Snapshot::export_to`].
#[must_use]
pub fn authorize(snapshot: &Snapshot, source: &SourceIdentity, key: &ServiceKey) -> Verdict {
    if source.cluster == *snapshot.cluster() {
        return Verdict { allowed: true, rule: Rule::Local, dry_run: false };
    }
    let rules = snapshot.rules();
    let Some(peer) = rules.peers.get(&source.cluster) else { return denied(Rule::UnknownPeer) };
    if source.identity.as_ref().is_some_and(|identity| !fits(source, identity, &peer.trust_domain)) {
        return denied(Rule::IdentityMismatch);
    }
    let selecting =
        |dry_run: bool| rules.access.iter().filter(move |policy| policy.dry_run == dry_run && policy.selects(key));
    let (verdict, enforced) = match judge(source, selecting(false)) {
        Some(verdict) => (verdict, true),
        None => match judge(source, selecting(true)) {
            Some(verdict) => (verdict, false),
            None => (denied(Rule::NoPolicy), true),
        },
    };
    if verdict.allowed || (enforced && rules.access_mode == AccessMode::Enforce) {
        return verdict;
    }
    Verdict { allowed: true, dry_run: true, ..verdict }
}

/// What these policies say together; `None` if there is none.
fn judge<'a>(source: &SourceIdentity, policies: impl Iterator<Item = &'a Arc<AccessPolicy>>) -> Option<Verdict> {
    let mut first = None;
    for policy in policies {
        let (namespace, account) = (source.namespace.as_ref(), source.service_account.as_ref());
        if let Some(index) = policy.allowing(&source.cluster, namespace, account) {
            let rule = Rule::Allowed { policy: full_name(policy), index };
            return Some(Verdict { allowed: true, rule, dry_run: false });
        }
        first.get_or_insert(policy);
    }
    first.map(|policy| denied(Rule::NotAllowed { policy: full_name(policy) }))
}

fn fits(source: &SourceIdentity, identity: &WorkloadIdentity, trust_domain: &Arc<str>) -> bool {
    identity.trust_domain == *trust_domain
        && source.namespace.as_ref() == Some(&identity.namespace)
        && source.service_account.as_ref() == Some(&identity.service_account)
}

fn denied(rule: Rule) -> Verdict {
    Verdict { allowed: false, rule, dry_run: false }
}

fn full_name(policy: &AccessPolicy) -> String {
    format!("{}/{}", policy.namespace, policy.name)
}

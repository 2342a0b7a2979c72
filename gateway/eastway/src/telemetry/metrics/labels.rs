//! Labels of the families.

use std::sync::Arc;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;

use super::family::{Family, Labels, OTHER};

/// How an attempt to connect ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DialOutcome {
    /// Connected.
    Connected,
    /// Refused by the other end.
    Refused,
    /// No answer in time.
    Timeout,
    /// Not authenticated: certificate, pin, identity or protocol.
    Rejected,
    /// No address to dial, or its name does not resolve.
    Unresolved,
    /// Anything else.
    Failed,
}

impl DialOutcome {
    /// The label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Refused => "refused",
            Self::Timeout => "timeout",
            Self::Rejected => "rejected",
            Self::Unresolved => "unresolved",
            Self::Failed => "failed",
        }
    }
}

/// The peer that series belong to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct PeerLabel {
    pub(super) peer: Arc<str>,
}

impl Labels for PeerLabel {
    fn owner(&self) -> Option<&Arc<str>> {
        Some(&self.peer)
    }

    fn overflow(&self) -> Self {
        Self { peer: Arc::from(OTHER) }
    }
}

/// A peer and a word from a fixed set.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct PeerReason {
    pub(super) peer: Arc<str>,
    pub(super) reason: &'static str,
}

impl Labels for PeerReason {
    fn owner(&self) -> Option<&Arc<str>> {
        Some(&self.peer)
    }

    fn overflow(&self) -> Self {
        Self { peer: Arc::from(OTHER), reason: self.reason }
    }
}

/// Two clusters, and which way.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct PairLabels {
    pub(super) source_cluster: Arc<str>,
    pub(super) destination_cluster: Arc<str>,
}

impl PairLabels {
    pub(super) fn new(from: &Arc<str>, to: &Arc<str>) -> Self {
        Self { source_cluster: Arc::clone(from), destination_cluster: Arc::clone(to) }
    }
}

impl Labels for PairLabels {
    fn owner(&self) -> Option<&Arc<str>> {
        Some(&self.source_cluster)
    }

    fn overflow(&self) -> Self {
        Self { source_cluster: Arc::clone(&self.source_cluster), destination_cluster: Arc::from(OTHER) }
    }
}

/// Which way something went.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Direction {
    pub(super) direction: &'static str,
}

impl Labels for Direction {
    fn owner(&self) -> Option<&Arc<str>> {
        None
    }

    fn overflow(&self) -> Self {
        Self { direction: OTHER }
    }
}

/// What carries a link.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Carrier {
    pub(super) transport: &'static str,
}

impl Labels for Carrier {
    fn owner(&self) -> Option<&Arc<str>> {
        None
    }

    fn overflow(&self) -> Self {
        Self { transport: OTHER }
    }
}

/// A word from a fixed set.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Reason {
    pub(super) reason: &'static str,
}

impl Labels for Reason {
    fn owner(&self) -> Option<&Arc<str>> {
        None
    }

    fn overflow(&self) -> Self {
        Self { reason: OTHER }
    }
}

/// A kind of resource.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct KindLabel {
    pub(super) kind: &'static str,
}

impl Labels for KindLabel {
    fn owner(&self) -> Option<&Arc<str>> {
        None
    }

    fn overflow(&self) -> Self {
        Self { kind: OTHER }
    }
}

/// A denied connection: the service is our own, the source's namespace is what the peer says.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct DenialLabels {
    pub(super) source_cluster: Arc<str>,
    pub(super) source_namespace: Arc<str>,
    pub(super) destination_namespace: Arc<str>,
    pub(super) destination_service: Arc<str>,
    pub(super) dry_run: &'static str,
}

impl Labels for DenialLabels {
    fn owner(&self) -> Option<&Arc<str>> {
        Some(&self.source_cluster)
    }

    fn overflow(&self) -> Self {
        let other: Arc<str> = Arc::from(OTHER);
        Self {
            source_cluster: Arc::clone(&self.source_cluster),
            source_namespace: Arc::clone(&other),
            destination_namespace: Arc::clone(&other),
            destination_service: other,
            dry_run: self.dry_run,
        }
    }
}

/// A certificate.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct CertificateLabels {
    pub(super) kind: &'static str,
    pub(super) peer: Arc<str>,
}

impl Labels for CertificateLabels {
    fn owner(&self) -> Option<&Arc<str>> {
        (!self.peer.is_empty()).then_some(&self.peer)
    }

    fn overflow(&self) -> Self {
        Self { kind: self.kind, peer: Arc::from(OTHER) }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct BuildLabels {
    pub(super) version: &'static str,
}

/// The series of `peer`.
pub(super) fn peer_label(peer: &Arc<str>) -> PeerLabel {
    PeerLabel { peer: Arc::clone(peer) }
}

/// The series of `peer` with one word.
pub(super) fn peer_reason(peer: &Arc<str>, reason: &'static str) -> PeerReason {
    PeerReason { peer: Arc::clone(peer), reason }
}

/// The counters of one peer, by reason.
pub(super) fn counts_of(family: &Family<PeerReason, Counter>, peer: &str) -> Vec<(&'static str, u64)> {
    let mut counts = Vec::new();
    // The closure does not fail.
    let _done = family.for_each(|labels, counter| {
        if *labels.peer == *peer {
            counts.push((labels.reason, counter.get()));
        }
        Ok(())
    });
    counts
}

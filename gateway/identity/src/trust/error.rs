//! Why a chain is refused: typed for counters, worded for operators.

use std::sync::Arc;

use crate::pin::SpkiPin;
use crate::spiffe::{SpiffeId, SpiffeIdError};
use crate::timestamp::Timestamp;

/// Why a chain was refused. `Display` completes the sentence "peer at *address* …".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// No certificate was presented.
    #[error("presented no certificate")]
    NoCertificate,
    /// More certificates than any sane chain has.
    #[error("presented {length} certificates; at most 8 are read")]
    ChainTooLong {
        /// How many there were.
        length: usize,
    },
    /// A certificate cannot be read.
    #[error("presented a certificate that cannot be read ({what}): {reason}")]
    Malformed {
        /// Which one.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// No key of the chain is pinned.
    #[error("presented key {presented} (CA \"{issuer}\") which is not pinned for any peer{}", claims_text(.claims.as_deref()))]
    NotPinned {
        /// The key of the issuing CA as presented; the leaf's own if it came alone.
        presented: SpkiPin,
        /// Issuer name in the leaf.
        issuer: String,
        /// The Peer whose gateway identity the leaf claims: two clusters of one name, or an impostor.
        claims: Option<Arc<str>>,
    },
    /// The chain is that of another Peer than the one that was dialled.
    #[error("is peer {found} (key {presented}), but {expected} was expected at this address")]
    WrongPeer {
        /// Who was dialled.
        expected: Arc<str>,
        /// Whose pinned key it is.
        found: Arc<str>,
        /// The pinned key.
        presented: SpkiPin,
    },
    /// The Peer is not, or no longer, configured.
    #[error("peer {name} is not configured")]
    UnknownPeer {
        /// The name.
        name: Arc<str>,
    },
    /// A leaf of the Peer's CA that is not its gateway: a pod's, for instance.
    #[error("presented {presented} from the CA of peer {peer}, but its gateway is {expected}")]
    NotTheGateway {
        /// Whose CA issued it.
        peer: Arc<str>,
        /// The Peer's gateway identity.
        expected: SpiffeId,
        /// The identity in the leaf.
        presented: SpiffeId,
    },
    /// Not exactly one URI SAN that is a SPIFFE id.
    #[error("presented a leaf without a usable identity: {0}")]
    San(#[from] SanProblem),
    /// Wrong or missing (extended) key usage.
    #[error("presented a leaf that is not for links: {reason}")]
    Purpose {
        /// What is missing.
        reason: String,
    },
    /// A CA certificate where a leaf belongs.
    #[error("presented a CA certificate as its leaf")]
    CaLeaf,
    /// Past the end of life.
    #[error(
        "presented an expired certificate ({what}): it ended {not_after}, our clock says {now}; renew it, or set the clock"
    )]
    Expired {
        /// Which one.
        what: &'static str,
        /// End of its life.
        not_after: Timestamp,
        /// Our clock.
        now: Timestamp,
    },
    /// Before the begin of life.
    #[error(
        "presented a certificate that is not valid yet ({what}): it begins {not_before}, our clock says {now}; the clocks differ"
    )]
    NotYetValid {
        /// Which one.
        what: &'static str,
        /// Begin of its life.
        not_before: Timestamp,
        /// Our clock.
        now: Timestamp,
    },
    /// On a revocation list.
    #[error("presented a revoked certificate ({what}) of peer {peer}")]
    Revoked {
        /// Which one.
        what: &'static str,
        /// The Peer.
        peer: Arc<str>,
    },
    /// The revocation list is too old to trust.
    #[error(
        "crl: nextUpdate passed ({next_update}, our clock says {now}); new peers refused (strict); install a fresh list of peer {peer}'s CA"
    )]
    CrlExpired {
        /// The Peer.
        peer: Arc<str>,
        /// When the next list was due.
        next_update: Timestamp,
        /// Our clock.
        now: Timestamp,
    },
    /// A revocation list names the issuer but cannot be used.
    #[error("crl: the list of peer {peer}'s CA cannot be used: {reason}; new peers refused (strict)")]
    CrlUnusable {
        /// The Peer.
        peer: Arc<str>,
        /// What is wrong with it.
        reason: String,
    },
    /// A signature in the chain is wrong.
    #[error("presented a chain whose signatures do not fit: {reason}")]
    Signature {
        /// What webpki says.
        reason: String,
    },
    /// A CA in the chain breaks a rule for CAs.
    #[error("presented a chain with an unusable CA: {reason}")]
    Chain {
        /// What is wrong.
        reason: String,
    },
    /// A re-authentication that its sender did not sign for this link.
    #[error("re-authentication refused: {reason}")]
    Reauth {
        /// What is wrong.
        reason: &'static str,
    },
}

fn claims_text(peer: Option<&str>) -> String {
    peer.map(|peer| format!("; it claims the identity of peer {peer}")).unwrap_or_default()
}

/// Why the names in a leaf are no identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SanProblem {
    /// No URI among the subject alternative names.
    #[error("it has no URI SAN")]
    None,
    /// More than one URI (SPIFFE X.509-SVID §2 allows one; Consul had CVE-2022-40716).
    #[error("it has {0} URI SANs; exactly one is allowed")]
    Several(usize),
    /// The extension or one of its names cannot be read.
    #[error("its SAN extension cannot be read")]
    Malformed,
    /// The URI is not a SPIFFE id.
    #[error("its URI SAN {uri:?} {problem}")]
    NotSpiffe {
        /// The URI, cut to 256 characters.
        uri: String,
        /// Which rule it breaks.
        problem: SpiffeIdError,
    },
}

/// [`VerifyError`] without its fields: a label for metrics and for the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum VerifyReason {
    /// Chain missing, too long or unreadable.
    BadChain,
    /// No key of the chain is pinned.
    NotPinned,
    /// Unpinned, and claiming the identity of a configured Peer.
    PeerIdentityConflict,
    /// Another Peer than expected.
    WrongPeer,
    /// The Peer is not configured.
    UnknownPeer,
    /// Not the gateway's leaf.
    NotTheGateway,
    /// No single SPIFFE id.
    BadSan,
    /// Wrong key usage, or a CA as leaf.
    BadPurpose,
    /// Past the end of life.
    CertExpired,
    /// Before the begin of life.
    CertNotYetValid,
    /// Revoked.
    CertRevoked,
    /// Revocation list expired or unusable.
    CrlExpired,
    /// A signature does not fit.
    BadSignature,
    /// Re-authentication not signed for this link.
    BadReauth,
}

impl VerifyReason {
    /// All reasons, in the order of their declaration.
    pub const ALL: [Self; 14] = [
        Self::BadChain,
        Self::NotPinned,
        Self::PeerIdentityConflict,
        Self::WrongPeer,
        Self::UnknownPeer,
        Self::NotTheGateway,
        Self::BadSan,
        Self::BadPurpose,
        Self::CertExpired,
        Self::CertNotYetValid,
        Self::CertRevoked,
        Self::CrlExpired,
        Self::BadSignature,
        Self::BadReauth,
    ];

    /// Stable name, as in metrics and logs: `NOT_PINNED`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BadChain => "BAD_CHAIN",
            Self::NotPinned => "NOT_PINNED",
            Self::PeerIdentityConflict => "PEER_IDENTITY_CONFLICT",
            Self::WrongPeer => "WRONG_PEER",
            Self::UnknownPeer => "UNKNOWN_PEER",
            Self::NotTheGateway => "NOT_THE_GATEWAY",
            Self::BadSan => "BAD_SAN",
            Self::BadPurpose => "BAD_PURPOSE",
            Self::CertExpired => "CERT_EXPIRED",
            Self::CertNotYetValid => "CERT_NOT_YET_VALID",
            Self::CertRevoked => "CERT_REVOKED",
            Self::CrlExpired => "CRL_EXPIRED",
            Self::BadSignature => "BAD_SIGNATURE",
            Self::BadReauth => "BAD_REAUTH",
        }
    }

    /// What the other side is told. It has not proved who it is, so it learns nothing about our configuration:
    /// not which identities are known here, for instance.
    #[must_use]
    pub fn public(self) -> &'static str {
        match self {
            Self::PeerIdentityConflict | Self::WrongPeer | Self::UnknownPeer => Self::NotPinned.as_str(),
            Self::BadChain
            | Self::NotPinned
            | Self::NotTheGateway
            | Self::BadSan
            | Self::BadPurpose
            | Self::CertExpired
            | Self::CertNotYetValid
            | Self::CertRevoked
            | Self::CrlExpired
            | Self::BadSignature
            | Self::BadReauth => self.as_str(),
        }
    }
}

impl VerifyReason {
    /// The reason that the other side gave for refusing us, if the text of a failed handshake holds one.
    #[must_use]
    pub fn told_in(text: &str) -> Option<Self> {
        let (before, _) = text.split_once(super::refusals::MARK)?;
        let word = before.trim_end_matches([' ', '(']).rsplit(|c: char| !c.is_ascii_uppercase() && c != '_').next()?;
        Self::ALL.into_iter().find(|reason| reason.as_str() == word)
    }
}

impl std::fmt::Display for VerifyReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl VerifyError {
    /// The Peer that the verdict is about, where it names one.
    pub(crate) fn peer(&self) -> Option<&Arc<str>> {
        match self {
            Self::NotPinned { claims, .. } => claims.as_ref(),
            Self::WrongPeer { expected: peer, .. }
            | Self::UnknownPeer { name: peer }
            | Self::NotTheGateway { peer, .. }
            | Self::Revoked { peer, .. }
            | Self::CrlExpired { peer, .. }
            | Self::CrlUnusable { peer, .. } => Some(peer),
            Self::NoCertificate
            | Self::ChainTooLong { .. }
            | Self::Malformed { .. }
            | Self::San(_)
            | Self::Purpose { .. }
            | Self::CaLeaf
            | Self::Expired { .. }
            | Self::NotYetValid { .. }
            | Self::Signature { .. }
            | Self::Chain { .. }
            | Self::Reauth { .. } => None,
        }
    }

    /// The reason without details, for counting.
    #[must_use]
    pub fn reason(&self) -> VerifyReason {
        match self {
            Self::NoCertificate | Self::ChainTooLong { .. } | Self::Malformed { .. } | Self::Chain { .. } => {
                VerifyReason::BadChain
            }
            Self::NotPinned { claims: None, .. } => VerifyReason::NotPinned,
            Self::NotPinned { claims: Some(_), .. } => VerifyReason::PeerIdentityConflict,
            Self::WrongPeer { .. } => VerifyReason::WrongPeer,
            Self::UnknownPeer { .. } => VerifyReason::UnknownPeer,
            Self::NotTheGateway { .. } => VerifyReason::NotTheGateway,
            Self::San(_) => VerifyReason::BadSan,
            Self::Purpose { .. } | Self::CaLeaf => VerifyReason::BadPurpose,
            Self::Expired { .. } => VerifyReason::CertExpired,
            Self::NotYetValid { .. } => VerifyReason::CertNotYetValid,
            Self::Revoked { .. } => VerifyReason::CertRevoked,
            Self::CrlExpired { .. } | Self::CrlUnusable { .. } => VerifyReason::CrlExpired,
            Self::Signature { .. } => VerifyReason::BadSignature,
            Self::Reauth { .. } => VerifyReason::BadReauth,
        }
    }
}

//! Why a stream or a link ended, as numbers on the wire.

use std::fmt;

use eastway_identity::{VerifyError, VerifyReason};

/// Why one stream was refused or cut: the application error code of `RESET_STREAM` and
/// `STOP_SENDING`. The number of a code never changes its meaning; new ones are added at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[repr(u8)]
pub enum ResetCode {
    /// The side that uses the stream gave up: its local connection was reset, or it was dropped.
    Cancelled = 1,
    /// No header, a broken one, or none within the deadline.
    BadHeader = 2,
    /// A header of a version that the receiver does not speak.
    Version = 3,
    /// A kind of stream or a field that the receiver does not know and must not ignore.
    Unsupported = 4,
    /// A name that is no name, an address in place of one included.
    BadName = 5,
    /// No such service or port for this peer: what is hidden and what does not exist look alike (I7).
    NotExported = 6,
    /// A service of another cluster: streams are not relayed by this kind of header (I3).
    NotLocal = 7,
    /// Exported, and no endpoint takes connections now.
    NoEndpoints = 8,
    /// The endpoint refused the connection.
    UpstreamRefused = 9,
    /// The endpoint did not answer in time.
    UpstreamTimeout = 10,
    /// The endpoint reset a connection that was up.
    UpstreamReset = 11,
    /// The source may not use the service.
    PermissionDenied = 12,
    /// The endpoint wants mutual TLS and the source sent plain text.
    TlsRequired = 13,
    /// Over a limit on streams or bytes.
    Overloaded = 14,
    /// The gateway is on its way out; another replica may serve.
    Draining = 15,
    /// No byte moved in either direction for too long.
    IdleTimeout = 16,
    /// A fault of the gateway itself, or a code this version does not know.
    Internal = 17,
}

impl ResetCode {
    /// Every code, in the order of their numbers.
    pub const ALL: [Self; 17] = [
        Self::Cancelled,
        Self::BadHeader,
        Self::Version,
        Self::Unsupported,
        Self::BadName,
        Self::NotExported,
        Self::NotLocal,
        Self::NoEndpoints,
        Self::UpstreamRefused,
        Self::UpstreamTimeout,
        Self::UpstreamReset,
        Self::PermissionDenied,
        Self::TlsRequired,
        Self::Overloaded,
        Self::Draining,
        Self::IdleTimeout,
        Self::Internal,
    ];

    /// The number on the wire.
    #[must_use]
    pub const fn to_wire(self) -> u64 {
        self as u64
    }

    /// The code of a number from the wire; what this version does not know counts as [`Self::Internal`].
    #[must_use]
    pub fn from_wire(number: u64) -> Self {
        Self::ALL.into_iter().find(|code| code.to_wire() == number).unwrap_or(Self::Internal)
    }

    /// Position in [`Self::ALL`], for counters.
    pub(crate) const fn index(self) -> usize {
        self as usize - 1
    }

    /// Whether another endpoint, replica or cluster may be tried, provided that no byte was delivered.
    #[must_use]
    pub const fn is_retryable_before_delivery(self) -> bool {
        matches!(self, Self::NoEndpoints | Self::UpstreamRefused | Self::Draining)
    }

    /// The name as it appears in logs, metrics and documents.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cancelled => "CANCELLED",
            Self::BadHeader => "BAD_HEADER",
            Self::Version => "VERSION",
            Self::Unsupported => "UNSUPPORTED",
            Self::BadName => "BAD_NAME",
            Self::NotExported => "NOT_EXPORTED",
            Self::NotLocal => "NOT_LOCAL",
            Self::NoEndpoints => "NO_ENDPOINTS",
            Self::UpstreamRefused => "UPSTREAM_REFUSED",
            Self::UpstreamTimeout => "UPSTREAM_TIMEOUT",
            Self::UpstreamReset => "UPSTREAM_RESET",
            Self::PermissionDenied => "PERMISSION_DENIED",
            Self::TlsRequired => "TLS_REQUIRED",
            Self::Overloaded => "OVERLOADED",
            Self::Draining => "DRAINING",
            Self::IdleTimeout => "IDLE_TIMEOUT",
            Self::Internal => "INTERNAL",
        }
    }
}

impl fmt::Display for ResetCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a whole link was closed: the code of a `CONNECTION_CLOSE` and of a control `LinkError`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[repr(u8)]
pub enum CloseCode {
    /// The link is no longer needed: shutdown after a drain, or a duplicate.
    Done = 1,
    /// The other side broke the protocol of the link.
    Protocol = 2,
    /// No common version of the control protocol.
    VersionUnsupported = 3,
    /// Hello names another cluster than the certificate (I2).
    ClusterMismatch = 4,
    /// The other side presented a certificate of a Peer with a key that is not pinned for it.
    PeerIdentityConflict = 5,
    /// The certificate ended and was not renewed.
    CertificateExpired = 6,
    /// The certificate, its pin or the whole Peer is no longer trusted.
    Revoked = 7,
    /// The other side did not answer in time.
    Timeout = 8,
    /// The gateway takes no links now.
    Draining = 9,
    /// Over a limit on links.
    Overloaded = 10,
    /// A fault of the gateway itself, or a code this version does not know.
    Internal = 11,
}

impl CloseCode {
    /// Why a link ends whose other side is not accepted any more.
    pub(crate) fn of_verdict(error: &VerifyError) -> Self {
        match error.reason() {
            VerifyReason::CertExpired | VerifyReason::CertNotYetValid => Self::CertificateExpired,
            VerifyReason::PeerIdentityConflict => Self::PeerIdentityConflict,
            VerifyReason::BadChain
            | VerifyReason::NotPinned
            | VerifyReason::WrongPeer
            | VerifyReason::UnknownPeer
            | VerifyReason::NotTheGateway
            | VerifyReason::BadSan
            | VerifyReason::BadPurpose
            | VerifyReason::CertRevoked
            | VerifyReason::CrlExpired
            | VerifyReason::BadSignature
            | VerifyReason::BadReauth => Self::Revoked,
        }
    }

    const ALL: [Self; 11] = [
        Self::Done,
        Self::Protocol,
        Self::VersionUnsupported,
        Self::ClusterMismatch,
        Self::PeerIdentityConflict,
        Self::CertificateExpired,
        Self::Revoked,
        Self::Timeout,
        Self::Draining,
        Self::Overloaded,
        Self::Internal,
    ];

    /// Whether the side that closed will not have the other one: its certificate, name or protocol. Trying
    /// again soon does not help.
    #[must_use]
    pub const fn is_refusal(self) -> bool {
        match self {
            Self::Protocol
            | Self::VersionUnsupported
            | Self::ClusterMismatch
            | Self::PeerIdentityConflict
            | Self::CertificateExpired
            | Self::Revoked => true,
            Self::Done | Self::Timeout | Self::Draining | Self::Overloaded | Self::Internal => false,
        }
    }

    /// The number on the wire.
    #[must_use]
    pub const fn to_wire(self) -> u32 {
        self as u32
    }

    /// The code of a number from the wire; what this version does not know counts as [`Self::Internal`].
    #[must_use]
    pub fn from_wire(number: u64) -> Self {
        Self::ALL.into_iter().find(|code| u64::from(code.to_wire()) == number).unwrap_or(Self::Internal)
    }

    /// The name as it appears in logs, metrics and documents.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Done => "DONE",
            Self::Protocol => "PROTOCOL",
            Self::VersionUnsupported => "VERSION_UNSUPPORTED",
            Self::ClusterMismatch => "CLUSTER_MISMATCH",
            Self::PeerIdentityConflict => "PEER_IDENTITY_CONFLICT",
            Self::CertificateExpired => "CERT_EXPIRED",
            Self::Revoked => "REVOKED",
            Self::Timeout => "TIMEOUT",
            Self::Draining => "DRAINING",
            Self::Overloaded => "OVERLOADED",
            Self::Internal => "INTERNAL",
        }
    }
}

impl fmt::Display for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_fixed_and_unknown_ones_are_internal() {
        for (index, code) in ResetCode::ALL.into_iter().enumerate() {
            assert_eq!(code.index(), index);
            assert_eq!(code.to_wire(), index as u64 + 1, "{code}");
            assert_eq!(ResetCode::from_wire(code.to_wire()), code);
            let json = format!("\"{}\"", code.name());
            assert_eq!(serde_json::to_string(&code).unwrap(), json);
        }
        for unknown in [0, 18, u64::MAX] {
            assert_eq!(ResetCode::from_wire(unknown), ResetCode::Internal);
        }
        for code in CloseCode::ALL {
            assert_eq!(CloseCode::from_wire(code.to_wire().into()), code);
        }
    }
}

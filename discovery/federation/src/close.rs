//! Why a federation stream ends. Names and texts are part of the contract with operators.

use eastway_proto::federation::v1::{Close, CloseCode};

/// Why a session ends. The text begins with the class of the failure and the name of the code.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// The two sides have no version in common.
    #[error(
        "FAILED_PRECONDITION VERSION_UNSUPPORTED (we speak {}-{}, the peer {min}-{max})",
        crate::MIN_VERSION,
        crate::MAX_VERSION
    )]
    VersionUnsupported {
        /// Lowest version the peer speaks.
        min: u32,
        /// Highest version the peer speaks.
        max: u32,
    },
    /// The body names another cluster than the certificate (invariant I2, threat P3).
    #[error("PERMISSION_DENIED CLUSTER_MISMATCH (the stream is of {expected}, the message says {claimed:?})")]
    ClusterMismatch {
        /// Name of the Peer that the certificate was matched to.
        expected: String,
        /// What the message says, cut to 64 bytes.
        claimed: String,
    },
    /// A frame of more than 1 MiB.
    #[error("RESOURCE_EXHAUSTED MESSAGE_TOO_LARGE ({bytes} bytes; at most {} are allowed)", crate::codec::MAX_MESSAGE)]
    MessageTooLarge {
        /// Its length.
        bytes: usize,
    },
    /// A frame that is no message.
    #[error("INVALID_ARGUMENT MALFORMED ({0})")]
    Malformed(String),
    /// A message that may not come now.
    #[error("FAILED_PRECONDITION PROTOCOL ({0})")]
    Protocol(&'static str),
    /// The peer acknowledged nothing for [`crate::Limits::ack_timeout`].
    #[error("DEADLINE_EXCEEDED ACK_TIMEOUT (sequence {sequence} is not acknowledged after 30 s)")]
    AckTimeout {
        /// The oldest message that is not acknowledged.
        sequence: u64,
    },
    /// The peer ignores a bound of the protocol.
    #[error("RESOURCE_EXHAUSTED TOO_MUCH ({0})")]
    TooMuch(&'static str),
    /// A snapshot did not go on for [`crate::Limits::stall_timeout`].
    #[error("DEADLINE_EXCEEDED STALLED (the snapshot did not go on for 30 s)")]
    Stalled,
    /// A newer session of the same table took over.
    #[error("ABORTED SUPERSEDED (a newer session took over)")]
    Superseded,
    /// This process ends.
    #[error("UNAVAILABLE DRAINING (open a stream to another replica)")]
    Draining,
    /// The Peer is no longer configured.
    #[error("PERMISSION_DENIED PEER_REMOVED (the Peer is no longer configured)")]
    PeerRemoved,
    /// The other side closed; its words, escaped and cut to 256 bytes.
    #[error("closed by the peer: {reason}")]
    ByPeer {
        /// Its code.
        code: CloseCode,
        /// Its words.
        reason: String,
    },
}

impl CloseReason {
    /// Its code on the wire.
    #[must_use]
    pub fn code(&self) -> CloseCode {
        match self {
            Self::VersionUnsupported { .. } => CloseCode::VersionUnsupported,
            Self::ClusterMismatch { .. } => CloseCode::ClusterMismatch,
            Self::MessageTooLarge { .. } => CloseCode::MessageTooLarge,
            Self::Malformed(_) => CloseCode::Malformed,
            Self::Protocol(_) => CloseCode::Protocol,
            Self::AckTimeout { .. } => CloseCode::AckTimeout,
            Self::TooMuch(_) => CloseCode::TooMuch,
            Self::Stalled => CloseCode::Stalled,
            Self::Superseded => CloseCode::Superseded,
            Self::Draining => CloseCode::Draining,
            Self::PeerRemoved => CloseCode::PeerRemoved,
            Self::ByPeer { code, .. } => *code,
        }
    }

    /// The last message to send, nothing if the other side has closed already.
    #[must_use]
    pub fn to_wire(&self) -> Option<Close> {
        match self {
            Self::ByPeer { .. } => None,
            Self::VersionUnsupported { .. }
            | Self::ClusterMismatch { .. }
            | Self::MessageTooLarge { .. }
            | Self::Malformed(_)
            | Self::Protocol(_)
            | Self::AckTimeout { .. }
            | Self::TooMuch(_)
            | Self::Stalled
            | Self::Superseded
            | Self::Draining
            | Self::PeerRemoved => Some(Close { code: self.code().into(), reason: self.to_string() }),
        }
    }

    /// What the other side said, made safe for logs (threat P11).
    #[must_use]
    pub fn from_wire(close: &Close) -> Self {
        let Close { code: _, reason } = close;
        Self::ByPeer { code: close.code(), reason: excerpt(reason, 256) }
    }
}

/// The beginning of a peer's text with everything escaped that could leave its line in a log.
pub(crate) fn excerpt(text: &str, max: usize) -> String {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let cut = text.get(..end).unwrap_or_default();
    let mut out: String = cut
        .chars()
        .flat_map(|c| {
            let plain = (c.is_ascii() && !c.is_ascii_control()) || c.is_alphanumeric();
            let escaped = (!plain).then(|| c.escape_unicode());
            plain.then_some(c).into_iter().chain(escaped.into_iter().flatten())
        })
        .collect();
    if end < text.len() {
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p11_texts_of_a_peer_are_escaped_and_cut() {
        assert_eq!(excerpt("a\nb\x1b[31m\u{202e}\0", 64), r"a\u{a}b\u{1b}[31m\u{202e}\u{0}");
        assert_eq!(excerpt(&"x".repeat(64 << 10), 64).len(), 64 + '…'.len_utf8());
        assert_eq!(excerpt("aé", 2), "a…");
        let close = Close { code: 99, reason: "nice\r\ntry".to_owned() };
        assert_eq!(CloseReason::from_wire(&close).to_string(), r"closed by the peer: nice\u{d}\u{a}try");
        assert_eq!(CloseReason::from_wire(&close).code(), CloseCode::Unspecified);
    }

    #[test]
    fn reasons_say_class_and_code() {
        let text = |reason: CloseReason| reason.to_string();
        assert_eq!(
            text(CloseReason::VersionUnsupported { min: 2, max: 999 }),
            "FAILED_PRECONDITION VERSION_UNSUPPORTED (we speak 1-1, the peer 2-999)"
        );
        assert_eq!(
            text(CloseReason::ClusterMismatch { expected: "a".into(), claimed: "b".into() }),
            "PERMISSION_DENIED CLUSTER_MISMATCH (the stream is of a, the message says \"b\")"
        );
        assert!(
            text(CloseReason::MessageTooLarge { bytes: 1 << 21 }).starts_with("RESOURCE_EXHAUSTED MESSAGE_TOO_LARGE")
        );
        assert!(text(CloseReason::AckTimeout { sequence: 7 }).contains("ACK_TIMEOUT"));
    }
}

//! What happens to links, told as it happens: for the counters and logs of whoever runs the tunnel.

use std::net::SocketAddr;
use std::sync::Arc;

use eastway_identity::VerifyError;
use serde::Serialize;

use crate::config::{HostPort, ReplicaId};
use crate::header::HeaderError;
use crate::transport::{CloseReason, DialError};

/// Told of links by the tunnel's own tasks: it must be quick, and it must not block.
pub trait Observer: Send + Sync + 'static {
    /// Something happened.
    fn happened(&self, event: &Event<'_>);
}

/// Nobody looks.
impl Observer for () {
    fn happened(&self, _event: &Event<'_>) {}
}

/// What happened.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A dial ended.
    Dialled {
        /// Who was dialled.
        peer: &'a Arc<str>,
        /// Where, as configured.
        address: &'a HostPort,
        /// Why it gave no link; `None`: it did.
        failure: Option<&'a LinkFailure>,
    },
    /// A link ended.
    Closed {
        /// Who was at its other end.
        peer: &'a Arc<str>,
        /// Which of its replicas.
        replica: ReplicaId,
        /// Where that was.
        remote: SocketAddr,
        /// Why.
        reason: &'a CloseReason,
    },
    /// A stream of a peer began with a header that cannot be taken.
    Header {
        /// Whose.
        peer: &'a Arc<str>,
        /// What is wrong with it.
        error: &'a HeaderError,
    },
    /// A pipe to or from another cluster was not carried or taken.
    RelayRefused {
        /// Whose link brought it.
        peer: &'a Arc<str>,
        /// Why, as a label of metrics: from a small fixed set.
        reason: &'static str,
        /// Why, in words; names clusters that the other side named.
        text: &'a str,
    },
    /// The connections of a link were to share a few, which the other side's version cannot: each stream has one of its
    /// own.
    Unshared {
        /// Who was dialled.
        peer: &'a Arc<str>,
        /// Where: the peer, or the proxy on the way.
        remote: SocketAddr,
    },
    /// Somebody dialled us and got no link.
    Refused {
        /// Who it was, if that was proved.
        peer: Option<&'a Arc<str>>,
        /// Where it came from; not to be trusted.
        remote: SocketAddr,
        /// Why, as a label of metrics: from a small fixed set.
        reason: &'static str,
        /// Why, in words; may quote the other side.
        text: &'a str,
    },
}

/// Why there is no link: a dial failed, or a link ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkFailure {
    /// What it was.
    pub cause: FailureCause,
    /// In words; may quote the other side.
    pub text: String,
    /// What is wrong with the other side's certificate, if this side refused that.
    pub verdict: Option<VerifyError>,
}

impl LinkFailure {
    pub(crate) fn new(cause: FailureCause, text: impl Into<String>) -> Self {
        Self { cause, text: text.into(), verdict: None }
    }
}

/// Kinds of failures, by who has to do something about them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum FailureCause {
    /// The peer's name has no address.
    Unresolved,
    /// Nothing came back.
    NoReply,
    /// The proxy on the way does not connect.
    Proxy,
    /// This side could not even try.
    Local,
    /// This side refused the other: its certificate, key, identity, name or protocol.
    Rejected,
    /// The other side refused this one.
    RefusedUs,
    /// The other side is silent, restarting, on its way out, or has too much to do.
    Lost,
    /// A third cluster does not relay, or the other side takes nothing from it.
    Relay,
    /// The transport found a fault.
    Fault,
    /// One of both sides wanted it so.
    Done,
}

impl From<DialError> for LinkFailure {
    fn from(error: DialError) -> Self {
        let text = error.to_string();
        let (cause, verdict) = match error {
            DialError::NoReply { .. } | DialError::NoConnection { .. } => (FailureCause::NoReply, None),
            DialError::Rejected { verdict, .. } => (FailureCause::Rejected, verdict),
            DialError::RefusedUs { .. } => (FailureCause::RefusedUs, None),
            DialError::Proxy { .. } => (FailureCause::Proxy, None),
            DialError::Local { .. } => (FailureCause::Local, None),
            DialError::Relay { refused: true, .. } => (FailureCause::Relay, None),
            DialError::Relay { refused: false, .. } => (FailureCause::Lost, None),
        };
        Self { cause, text, verdict }
    }
}

impl From<&CloseReason> for LinkFailure {
    fn from(reason: &CloseReason) -> Self {
        use crate::code::CloseCode::Done;
        let cause = match reason {
            CloseReason::Local { code: Done, .. } | CloseReason::Remote { code: Done, .. } => FailureCause::Done,
            CloseReason::Local { code, .. } if code.is_refusal() => FailureCause::Rejected,
            CloseReason::Remote { code, .. } if code.is_refusal() => FailureCause::RefusedUs,
            CloseReason::RefusedUs(_) => FailureCause::RefusedUs,
            CloseReason::Transport(_) => FailureCause::Fault,
            CloseReason::Local { .. }
            | CloseReason::Remote { .. }
            | CloseReason::Reset
            | CloseReason::Silent
            | CloseReason::Cut(_) => FailureCause::Lost,
        };
        Self::new(cause, reason.to_string())
    }
}

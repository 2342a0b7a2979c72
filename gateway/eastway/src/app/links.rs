//! Counts and logs what happens to links: dials, links that end, and strangers at the door.
//!
//! Each line says what happened, to whom, why, and what to do about it; at most one per kind, peer and reason in
//! each interval, because a peer that is down is dialled for days and strangers are many.

use std::sync::Arc;
use std::time::{Duration, Instant};

use eastway_model::Label;
use eastway_tunnel::transport::CloseReason;
use eastway_tunnel::{CloseCode, Event, FailureCause, LinkFailure, Observer};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::config::Loaded;
use crate::telemetry::{DialOutcome, Escaped, LogLimit, Refusal, Telemetry};

/// Shortest time between two lines about one peer and reason.
const INTERVAL: Duration = Duration::from_secs(30);

/// What happened, why, and to whom. Reasons are few and peers are configured, so that these are bounded.
type Key = (Kind, &'static str, Option<Arc<str>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Dial,
    Close,
    Refuse,
    Relay,
    Unshared,
}

/// Told of links by the tunnel.
pub struct LinkLog {
    telemetry: Telemetry,
    /// Series of a peer that was removed are not begun again by the end of its last link.
    configured: watch::Receiver<Arc<Loaded>>,
    lines: LogLimit<Key>,
}

impl LinkLog {
    /// Counts into `telemetry`, for the peers that are `configured`.
    #[must_use]
    pub fn new(telemetry: Telemetry, configured: watch::Receiver<Arc<Loaded>>) -> Self {
        Self { telemetry, configured, lines: LogLimit::new(INTERVAL) }
    }

    fn is_configured(&self, peer: &str) -> bool {
        Label::parse(peer).is_ok_and(|peer| self.configured.borrow().peers.contains_key(&peer))
    }

    fn admit(&self, kind: Kind, reason: &'static str, peer: Option<&Arc<str>>) -> Option<u64> {
        self.lines.admit((kind, reason, peer.cloned()), Instant::now())
    }
}

impl Observer for LinkLog {
    fn happened(&self, event: &Event<'_>) {
        let metrics = &self.telemetry.metrics;
        match *event {
            Event::Dialled { peer, address, failure } => {
                let outcome = failure.map_or(DialOutcome::Connected, outcome);
                let reason = outcome.as_str();
                if self.is_configured(peer) {
                    metrics.link_dial(peer, outcome);
                }
                let Some(LinkFailure { cause, text, .. }) = failure else { return };
                if let Some(suppressed) = self.admit(Kind::Dial, reason, Some(peer)) {
                    let (text, advice) = (Escaped(text), dial_advice(*cause));
                    warn!(%peer, %address, reason, suppressed, "no link to the peer: {text}; {advice}");
                }
            }
            Event::Closed { peer, replica, remote, reason } => {
                let label = reason.label();
                if self.is_configured(peer) {
                    metrics.link_closed(peer, label);
                }
                if matches!(reason, CloseReason::Local { code: CloseCode::Protocol, .. }) {
                    self.telemetry.refusals.count(Refusal::Control, Some(peer));
                }
                let Some(suppressed) = self.admit(Kind::Close, label, Some(peer)) else { return };
                let text = reason.to_string();
                let (text, advice) = (Escaped(&text), close_advice(reason));
                if LinkFailure::from(reason).cause == FailureCause::Done {
                    info!(%peer, %replica, %remote, reason = label, suppressed, "link ended: {text}; {advice}");
                } else {
                    warn!(%peer, %replica, %remote, reason = label, suppressed, "link lost: {text}; {advice}");
                }
            }
            Event::Header { peer, error } => {
                self.telemetry.refusals.refused(Refusal::StreamHeader, Some(peer), error);
            }
            Event::RelayRefused { peer, reason, text } => {
                self.telemetry.refusals.count(Refusal::Relay, Some(peer).filter(|peer| self.is_configured(peer)));
                if let Some(suppressed) = self.admit(Kind::Relay, reason, Some(peer)) {
                    warn!(%peer, reason, suppressed, "refused a pipe between clusters: {}", Escaped(text));
                }
            }
            Event::Unshared { peer, remote } => {
                if let Some(suppressed) = self.admit(Kind::Unshared, "UNSHARED", Some(peer)) {
                    warn!(
                        %peer, %remote, suppressed,
                        "maxConnections has no effect: the peer's version cannot share connections, each stream has one of its own; upgrade it"
                    );
                }
            }
            Event::Refused { peer, remote, reason, text } => {
                metrics.handshake_refused(reason);
                self.telemetry.refusals.count(Refusal::Handshake, peer.filter(|peer| self.is_configured(peer)));
                if let Some(suppressed) = self.admit(Kind::Refuse, reason, peer) {
                    let (who, text) = (peer.map_or("-", |peer| peer), Escaped(text));
                    let advice = refusal_advice(reason);
                    warn!(peer = who, %remote, reason, suppressed, "refused a link: {text}; {advice}");
                }
            }
        }
    }
}

/// A dial as metrics count it.
fn outcome(failure: &LinkFailure) -> DialOutcome {
    match failure.cause {
        FailureCause::Unresolved => DialOutcome::Unresolved,
        FailureCause::NoReply => DialOutcome::Timeout,
        FailureCause::Rejected => DialOutcome::Rejected,
        FailureCause::RefusedUs => DialOutcome::Refused,
        FailureCause::Relay
        | FailureCause::Proxy
        | FailureCause::Local
        | FailureCause::Lost
        | FailureCause::Fault
        | FailureCause::Done => DialOutcome::Failed,
    }
}

fn dial_advice(cause: FailureCause) -> &'static str {
    match cause {
        FailureCause::Unresolved => "correct `addresses` of the Peer, or its DNS record",
        FailureCause::NoReply => "open its UDP or TCP port to this gateway, or correct `addresses` of the Peer",
        FailureCause::Proxy => "correct `proxy` of the Peer, or ask the proxy's operator",
        FailureCause::Local => "see to the routes and the firewall of this machine",
        FailureCause::Rejected => "`eastway check` says what does not fit our Peer file",
        FailureCause::RefusedUs => "give its operator the output of `eastway peer export`; its log says why",
        FailureCause::Relay => "`relay.allow` there, and `via` in both Peer files, have to agree",
        FailureCause::Lost | FailureCause::Fault | FailureCause::Done => "it is dialled again",
    }
}

fn close_advice(reason: &CloseReason) -> &'static str {
    match reason {
        CloseReason::Silent => "it is dialled again; look for a firewall or a NAT that drops UDP flows",
        CloseReason::Reset | CloseReason::Cut(_) => "it is dialled again",
        CloseReason::RefusedUs(_) => dial_advice(FailureCause::RefusedUs),
        CloseReason::Transport(_) => "see the log of the peer's gateway",
        CloseReason::Local { code, .. } => code_advice(*code, true),
        CloseReason::Remote { code, .. } => code_advice(*code, false),
    }
}

/// What to do about a link that was closed with `code`, `here` or by the peer.
fn code_advice(code: CloseCode, here: bool) -> &'static str {
    match code {
        CloseCode::Done => "nothing to do",
        CloseCode::CertificateExpired if here => "see the ca role of the peer, and compare the clocks",
        CloseCode::CertificateExpired => "see our own ca role, and compare the clocks",
        CloseCode::Revoked | CloseCode::PeerIdentityConflict | CloseCode::ClusterMismatch if here => {
            dial_advice(FailureCause::Rejected)
        }
        CloseCode::Revoked | CloseCode::PeerIdentityConflict | CloseCode::ClusterMismatch => {
            dial_advice(FailureCause::RefusedUs)
        }
        CloseCode::VersionUnsupported | CloseCode::Protocol => "compare `eastway version` on both sides",
        CloseCode::Timeout => "it is dialled again; look for packet loss, and for a gateway without CPU",
        CloseCode::Overloaded => "it is dialled again; raise the limits on links if these are its replicas",
        CloseCode::Internal if !here => "see the log of the peer's gateway",
        CloseCode::Draining | CloseCode::Internal => "it is dialled again",
    }
}

/// What to do about a handshake that was refused for `reason`.
fn refusal_advice(reason: &str) -> &'static str {
    match reason {
        "NOT_PINNED" | "UNKNOWN_PEER" => {
            "if it is to be a peer, add its pin, or save its `eastway peer export` in the peers folder"
        }
        "WRONG_PEER" | "PEER_IDENTITY_CONFLICT" => {
            "it claims to be a Peer whose pin it does not have: ask that Peer's operator for the pin by another way"
        }
        "NOT_THE_GATEWAY" => "correct `gateway` of the Peer, or the certificate there; workloads open no links",
        "BAD_CHAIN" | "BAD_SAN" | "BAD_PURPOSE" | "BAD_SIGNATURE" | "BAD_REAUTH" => {
            "that is no certificate of a gateway's ca role: see the log there"
        }
        "CERT_EXPIRED" | "CERT_NOT_YET_VALID" => "see the ca role of the peer, and compare the clocks",
        "CERT_REVOKED" | "REVOKED" => {
            "it is revoked or removed here; if that is a mistake, correct `trust.crl` or its Peer"
        }
        "CRL_EXPIRED" => "publish a new revocation list at `trust.crl`",
        "REFUSED_US" => {
            "it dialled us and does not accept our certificate: send it the output of `eastway peer export`"
        }
        "CLUSTER_MISMATCH" => "correct `metadata.name` of our Peer file, or `cluster` in its configuration",
        "ALPN" | "PROTOCOL" | "VERSION_UNSUPPORTED" | "REQUEST" | "HTTP2" => {
            "another kind of client dials this port, or the versions are too far apart"
        }
        "IDLE_TIMEOUT_TOO_SHORT" => "raise `link.idleTimeout` at that gateway",
        "TIMEOUT" | "SILENT" | "TRANSPORT" | "STATELESS_RESET" | "RETRY_TOKEN" => {
            "packets are lost or altered on the way, or somebody scans this port"
        }
        "TOO_MANY" | "OVERLOADED" => "a flood, or more gateways at once than the limits on links allow",
        _ => "it will try again",
    }
}

#[cfg(test)]
mod tests {
    use eastway_identity::VerifyReason;

    use super::*;

    #[test]
    fn every_reason_of_the_verifier_has_its_advice() {
        for reason in VerifyReason::ALL {
            assert_ne!(refusal_advice(reason.as_str()), refusal_advice("RENEWED"), "{reason:?}");
        }
    }
}

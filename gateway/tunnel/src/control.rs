//! The control session of a link: who is there, does it still answer, may it still be used.
//!
//! A pure state machine: [`ControlSession::handle`] and the other calls take a message or an event and the
//! time, and return what to do. It reads no clock, opens nothing and knows no transport. The bytes are
//! those of [`codec`]; `link::driver` connects both to a stream.

pub mod codec;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use eastway_identity::{AnchorDer, SpkiPin};
use eastway_proto::control::v1::{
    Accepts, Anchor, Anchors, ControlMessage, GoAway, Heartbeat, HeartbeatAck, Hello, LinkError, Reauthenticate,
    control_message::Body,
};

use crate::code::CloseCode;
use crate::config::ReplicaId;

/// Lowest version of the control protocol that is spoken.
pub const MIN_VERSION: u32 = 1;
/// Highest one.
pub const MAX_VERSION: u32 = 1;
/// Replicas of one cluster that a peer may name; more are a fault.
const MAX_REPLICAS: usize = 256;
/// Keys of our CA that a peer may name; more are a fault.
const MAX_PINS: usize = 64;
/// Anchors of one trust domain that a peer may name, and that it is told; more are a fault.
const MAX_ANCHORS: usize = 4;
/// Bytes of anchors that it is told: the rest of a message is small.
const MAX_ANCHOR_BYTES: usize = codec::MAX_MESSAGE - 1024;
/// Re-authentications that a peer may send in a [`REAUTH_PERIOD`]; each costs signature checks.
const MAX_REAUTHS: u32 = 8;
const REAUTH_PERIOD: Duration = Duration::from_secs(60);
/// Messages that a peer may send in a second: an honest one sends two or three, and more only after a stall.
const MAX_MESSAGES: u32 = 100;
const MESSAGE_PERIOD: Duration = Duration::from_secs(1);

/// The time, as both clocks tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Since any fixed point; never goes back.
    pub mono: Duration,
    /// Wall clock, milliseconds since the Unix epoch: shown, never trusted.
    pub wall_ms: u64,
}

/// What a session is told at its start.
#[derive(Clone, Debug)]
pub struct ControlConfig {
    /// Name of this cluster.
    pub cluster: Arc<str>,
    /// This replica.
    pub replica: ReplicaId,
    /// All live replicas of this cluster, this one included.
    pub live: Arc<[ReplicaId]>,
    /// The Peer that the certificate was matched to.
    pub peer: Arc<str>,
    /// Shown to the other side.
    pub software_version: Arc<str>,
    /// Between two heartbeats.
    pub heartbeat: Duration,
    /// Without an acknowledgement for this long the link is closed.
    pub acknowledge: Duration,
    /// For the other side's Hello.
    pub handshake: Duration,
}

/// What the other side said in Hello.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerHello {
    /// Its incarnation.
    pub replica: ReplicaId,
    /// Live replicas of its cluster; always holds `replica`.
    pub live: Vec<ReplicaId>,
    /// For people.
    pub software_version: String,
    /// Its clock minus ours, milliseconds, network delay included.
    pub clock_skew_ms: i64,
    /// The version both speak.
    pub version: u32,
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub enum ControlAction {
    /// Send this message.
    Send(ControlMessage),
    /// Hello was exchanged: streams of the other side may be served.
    Established(PeerHello),
    /// An acknowledgement came: the link works in both directions.
    Acknowledged {
        /// The other side's clock minus ours, milliseconds, half a round trip taken off.
        clock_skew_ms: i64,
    },
    /// No acknowledgement for two heartbeats: use other links first.
    Stale,
    /// The other side's live replicas changed.
    Replicas(Vec<ReplicaId>),
    /// These keys the other side accepts of this cluster's CA, as it says.
    Accepts(Vec<SpkiPin>),
    /// Its trust domain is known by these, as it says. Not checked.
    Anchors(Vec<AnchorDer>),
    /// Check this renewed certificate, then call [`ControlSession::reauthenticated`].
    Verify(Reauthenticate),
    /// The other side drains: open nothing new on this link.
    GoAway {
        /// In its words.
        reason: String,
        /// When it closes the link.
        deadline: Duration,
    },
    /// Close the link, after what was to be sent.
    Close(CloseCode, String),
}

/// The state of one control stream.
#[derive(Debug)]
pub struct ControlSession {
    config: ControlConfig,
    started: Duration,
    peer: Option<PeerHello>,
    next_sequence: u64,
    /// Last heartbeat sent: its number and when.
    sent: Option<(u64, Duration)>,
    next_heartbeat: Duration,
    last_ack: Option<Duration>,
    acked_sequence: u64,
    stale: bool,
    /// Own live replicas changed since the last heartbeat.
    announce: bool,
    reauths: Quota,
    messages: Quota,
    closed: bool,
}

/// At most so many of something in a period.
#[derive(Debug)]
struct Quota {
    begin: Duration,
    count: u32,
}

impl Quota {
    /// Counts one; whether it is one too many.
    fn exceeds(&mut self, most: u32, period: Duration, now: Duration) -> bool {
        if now.saturating_sub(self.begin) >= period {
            *self = Self { begin: now, count: 0 };
        }
        self.count = self.count.saturating_add(1);
        self.count > most
    }
}

impl ControlSession {
    /// Begins with a Hello.
    #[must_use]
    pub fn new(config: ControlConfig, now: Now) -> (Self, Vec<ControlAction>) {
        let hello = Hello {
            min_version: MIN_VERSION,
            max_version: MAX_VERSION,
            cluster: config.cluster.to_string(),
            replica_id: Bytes::copy_from_slice(&config.replica.0),
            live_replicas: wire_replicas(&config.live),
            software_version: config.software_version.to_string(),
            wall_clock_ms: now.wall_ms,
        };
        let session = Self {
            config,
            started: now.mono,
            peer: None,
            next_sequence: 1,
            sent: None,
            next_heartbeat: now.mono,
            last_ack: None,
            acked_sequence: 0,
            stale: false,
            announce: false,
            reauths: Quota { begin: now.mono, count: 0 },
            messages: Quota { begin: now.mono, count: 0 },
            closed: false,
        };
        (session, vec![send(Body::Hello(hello))])
    }

    /// One message of the other side.
    pub fn handle(&mut self, message: ControlMessage, now: Now) -> Vec<ControlAction> {
        if self.closed {
            return Vec::new();
        }
        if self.messages.exceeds(MAX_MESSAGES, MESSAGE_PERIOD, now.mono) {
            return self.fail(CloseCode::Protocol, "too many control messages");
        }
        let Some(body) = message.body else {
            // A message of a later version: released messages only gain fields.
            return Vec::new();
        };
        match (body, self.peer.is_some()) {
            (Body::Hello(hello), false) => self.hello(&hello, now),
            (Body::Error(error), _) => {
                self.closed = true;
                let code = CloseCode::from_wire(u64::from(error.code));
                vec![ControlAction::Close(code, format!("the peer says: {}", printable(&error.message)))]
            }
            (Body::Hello(_), true) => self.fail(CloseCode::Protocol, "a second Hello"),
            (_, false) => self.fail(CloseCode::Protocol, "the first message is not Hello"),
            (Body::Heartbeat(heartbeat), true) => self.heartbeat(&heartbeat, now),
            (Body::HeartbeatAck(ack), true) => self.acknowledged(ack, now),
            (Body::Reauthenticate(reauth), true) => self.reauthenticate(reauth, now),
            (Body::Accepts(accepts), true) => match pins(&accepts.pins) {
                Some(pins) => vec![ControlAction::Accepts(pins)],
                None => self.fail(CloseCode::Protocol, "a key hash that is not 32 bytes, or too many"),
            },
            (Body::Anchors(Anchors { anchors }), true) => {
                if anchors.len() > MAX_ANCHORS {
                    return self.fail(CloseCode::Protocol, "too many anchors");
                }
                let der =
                    |anchor: Anchor| AnchorDer { certificate: anchor.certificate.to_vec(), crl: anchor.crl.to_vec() };
                vec![ControlAction::Anchors(anchors.into_iter().map(der).collect())]
            }
            (Body::GoAway(GoAway { reason, deadline_ms }), true) => {
                let deadline = now.mono.saturating_add(Duration::from_millis(deadline_ms));
                vec![ControlAction::GoAway { reason: printable(&reason), deadline }]
            }
        }
    }

    fn hello(&mut self, hello: &Hello, now: Now) -> Vec<ControlAction> {
        let version = MAX_VERSION.min(hello.max_version);
        if version < MIN_VERSION.max(hello.min_version) {
            let message = format!(
                "the peer speaks versions {} to {} of the control protocol (we speak {MIN_VERSION} to {MAX_VERSION})",
                hello.min_version, hello.max_version
            );
            return self.fail(CloseCode::VersionUnsupported, &message);
        }
        if *hello.cluster != *self.config.peer {
            let message = format!(
                "the peer calls itself {}, but its certificate is that of peer {}",
                printable(&hello.cluster),
                self.config.peer
            );
            return self.fail(CloseCode::ClusterMismatch, &message);
        }
        let replica = ReplicaId::from_wire(&hello.replica_id);
        let (Some(replica), Some(mut live)) = (replica, replicas(&hello.live_replicas)) else {
            return self.fail(CloseCode::Protocol, "Hello holds a replica id that is not 16 bytes, or too many");
        };
        if replica == self.config.replica {
            return self.fail(CloseCode::Protocol, "the peer has our own replica id");
        }
        if !live.contains(&replica) {
            live.push(replica);
        }
        let clock_skew_ms = difference(hello.wall_clock_ms, now.wall_ms);
        let software_version = printable(&hello.software_version);
        let peer = PeerHello { replica, live, software_version, clock_skew_ms, version };
        self.peer = Some(peer.clone());
        self.started = now.mono;
        let mut actions = vec![ControlAction::Established(peer)];
        actions.push(self.send_heartbeat(now));
        actions
    }

    fn heartbeat(&mut self, heartbeat: &Heartbeat, now: Now) -> Vec<ControlAction> {
        let ack = HeartbeatAck { sequence: heartbeat.sequence, wall_clock_ms: now.wall_ms };
        let mut actions = vec![send(Body::HeartbeatAck(ack))];
        if !heartbeat.live_replicas.is_empty() {
            let Some(mut live) = replicas(&heartbeat.live_replicas) else {
                return self
                    .fail(CloseCode::Protocol, "a heartbeat holds a replica id that is not 16 bytes, or too many");
            };
            if let Some(peer) = &mut self.peer {
                if !live.contains(&peer.replica) {
                    live.push(peer.replica);
                }
                if live != peer.live {
                    peer.live.clone_from(&live);
                    actions.push(ControlAction::Replicas(live));
                }
            }
        }
        actions
    }

    fn acknowledged(&mut self, ack: HeartbeatAck, now: Now) -> Vec<ControlAction> {
        // Only what was sent and not yet acknowledged counts: a repeated or invented number is no sign of life.
        let Some((newest, sent)) = self.sent else {
            return self.fail(CloseCode::Protocol, "an acknowledgement of nothing");
        };
        if ack.sequence > newest {
            return self.fail(CloseCode::Protocol, "an acknowledgement of a heartbeat that was not sent");
        }
        if ack.sequence <= self.acked_sequence {
            return Vec::new();
        }
        self.acked_sequence = ack.sequence;
        self.last_ack = Some(now.mono);
        self.stale = false;
        // The other clock was read half a round trip ago, as far as can be told from here.
        let half = if ack.sequence == newest { now.mono.saturating_sub(sent) / 2 } else { Duration::ZERO };
        let half = i64::try_from(half.as_millis()).unwrap_or(i64::MAX);
        let clock_skew_ms = difference(ack.wall_clock_ms, now.wall_ms).saturating_add(half);
        vec![ControlAction::Acknowledged { clock_skew_ms }]
    }

    fn reauthenticate(&mut self, reauth: Reauthenticate, now: Now) -> Vec<ControlAction> {
        if self.reauths.exceeds(MAX_REAUTHS, REAUTH_PERIOD, now.mono) {
            return self.fail(CloseCode::Protocol, "too many re-authentications");
        }
        vec![ControlAction::Verify(reauth)]
    }

    /// The verdict on a [`ControlAction::Verify`].
    pub fn reauthenticated(&mut self, verdict: Result<(), (CloseCode, String)>) -> Vec<ControlAction> {
        match verdict {
            Ok(()) => Vec::new(),
            Err((code, reason)) => self.fail(code, &reason),
        }
    }

    /// Sends a renewed certificate of this side.
    pub fn renew(&mut self, reauth: Reauthenticate) -> Vec<ControlAction> {
        if self.closed { Vec::new() } else { vec![send(Body::Reauthenticate(reauth))] }
    }

    /// Tells the other side which keys are accepted of its CA.
    pub fn accepts(&mut self, pins: &[SpkiPin]) -> Vec<ControlAction> {
        if self.closed {
            return Vec::new();
        }
        let pins = pins.iter().take(MAX_PINS).map(|pin| Bytes::copy_from_slice(pin.as_bytes())).collect();
        vec![send(Body::Accepts(Accepts { pins }))]
    }

    /// Tells the other side what this trust domain is known by.
    pub fn anchors(&mut self, anchors: &[AnchorDer]) -> Vec<ControlAction> {
        if self.closed {
            return Vec::new();
        }
        let mut room = MAX_ANCHOR_BYTES;
        let mut told = Vec::new();
        for AnchorDer { certificate, crl } in anchors.iter().take(MAX_ANCHORS) {
            let Some(left) = room.checked_sub(certificate.len() + crl.len()) else { break };
            room = left;
            told.push(Anchor { certificate: certificate.clone().into(), crl: crl.clone().into() });
        }
        vec![send(Body::Anchors(Anchors { anchors: told }))]
    }

    /// Tells the other side to open nothing new; this side closes after `within`.
    pub fn go_away(&mut self, reason: &str, within: Duration) -> Vec<ControlAction> {
        if self.closed {
            return Vec::new();
        }
        let deadline_ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
        vec![send(Body::GoAway(GoAway { reason: reason.to_owned(), deadline_ms }))]
    }

    /// The live replicas of this cluster changed; the next heartbeat says so.
    pub fn set_live(&mut self, live: Arc<[ReplicaId]>, now: Now) {
        if live != self.config.live {
            self.config.live = live;
            self.announce = true;
            self.next_heartbeat = now.mono;
        }
    }

    /// Time has passed; due when [`ControlSession::next_timeout`] says.
    pub fn handle_timeout(&mut self, now: Now) -> Vec<ControlAction> {
        if self.closed {
            return Vec::new();
        }
        if self.peer.is_none() {
            return if now.mono >= self.started.saturating_add(self.config.handshake) {
                self.fail(CloseCode::Timeout, "no Hello within the deadline")
            } else {
                Vec::new()
            };
        }
        let heard = self.last_ack.unwrap_or(self.started);
        if now.mono >= heard.saturating_add(self.config.acknowledge) {
            return self.fail(CloseCode::Timeout, "heartbeats are not acknowledged");
        }
        let mut actions = Vec::new();
        if now.mono >= self.next_heartbeat {
            actions.push(self.send_heartbeat(now));
        }
        if !self.stale && now.mono >= heard.saturating_add(self.stale_after()) {
            self.stale = true;
            actions.push(ControlAction::Stale);
        }
        actions
    }

    /// When [`ControlSession::handle_timeout`] is due. `None`: never again.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Duration> {
        if self.closed {
            return None;
        }
        if self.peer.is_none() {
            return Some(self.started.saturating_add(self.config.handshake));
        }
        let heard = self.last_ack.unwrap_or(self.started);
        let close = heard.saturating_add(self.config.acknowledge);
        let stale = if self.stale { close } else { heard.saturating_add(self.stale_after()) };
        Some(self.next_heartbeat.min(close).min(stale))
    }

    fn stale_after(&self) -> Duration {
        self.config.heartbeat * 2 + self.config.heartbeat / 2
    }

    fn send_heartbeat(&mut self, now: Now) -> ControlAction {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        self.sent = Some((sequence, now.mono));
        self.next_heartbeat = now.mono.saturating_add(self.config.heartbeat);
        let live_replicas =
            if std::mem::take(&mut self.announce) { wire_replicas(&self.config.live) } else { Vec::new() };
        send(Body::Heartbeat(Heartbeat { sequence, wall_clock_ms: now.wall_ms, live_replicas }))
    }

    fn fail(&mut self, code: CloseCode, message: &str) -> Vec<ControlAction> {
        self.closed = true;
        let error = LinkError { code: code.to_wire(), message: message.to_owned() };
        vec![send(Body::Error(error)), ControlAction::Close(code, message.to_owned())]
    }
}

fn send(body: Body) -> ControlAction {
    ControlAction::Send(ControlMessage { body: Some(body) })
}

fn wire_replicas(live: &[ReplicaId]) -> Vec<Bytes> {
    live.iter().map(|replica| Bytes::copy_from_slice(&replica.0)).collect()
}

/// `None`: an id of the wrong length, or too many.
fn replicas(wire: &[Bytes]) -> Option<Vec<ReplicaId>> {
    if wire.len() > MAX_REPLICAS {
        return None;
    }
    let mut live = wire.iter().map(|bytes| ReplicaId::from_wire(bytes)).collect::<Option<Vec<_>>>()?;
    live.sort_unstable();
    live.dedup();
    Some(live)
}

/// `None`: a hash of the wrong length, or too many.
fn pins(wire: &[Bytes]) -> Option<Vec<SpkiPin>> {
    let pin = |bytes: &Bytes| bytes.as_ref().try_into().ok().map(SpkiPin::from_bytes);
    if wire.len() > MAX_PINS { None } else { wire.iter().map(pin).collect() }
}

fn difference(theirs: u64, ours: u64) -> i64 {
    i64::try_from(i128::from(theirs) - i128::from(ours)).unwrap_or(if theirs > ours { i64::MAX } else { i64::MIN })
}

/// Text of the other side as it may stand in a log or on a terminal (threat P11): at most 200 characters.
pub(crate) fn printable(text: &str) -> String {
    text.chars().take(200).map(|c| if c == ' ' || c.is_ascii_graphic() { c } else { '?' }).collect()
}

#[cfg(test)]
mod tests;

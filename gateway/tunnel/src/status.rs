//! What there is to see: peers, links, and how they do. For `eastway status`, the admin port and metrics.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use eastway_identity::{CertificateDer, SpkiPin, VerifyError};
use serde::{Serialize, Serializer};

use crate::config::{HostPort, ReplicaId, TransportPolicy};
use crate::events::FailureCause;
use crate::link::{Link, LinkRole, LinkState};
pub use crate::peers::BulkStatus;
use crate::peers::{Address, Peer, Traffic};
use crate::transport::{Side, TransportKind};

/// Peers by name, as the events tell them: latest wins.
pub type PeerStates = BTreeMap<Arc<str>, PeerState>;

/// Whether a peer can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerState {
    /// A link to it was acknowledged within the last five seconds (invariant I13).
    pub up: bool,
    /// Since when it is so.
    pub since: SystemTime,
    /// Links that are up.
    pub links: usize,
}

/// One peer.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerStatus {
    /// Its name.
    pub name: Arc<str>,
    /// A link to it was acknowledged within the last five seconds (invariant I13).
    pub up: bool,
    /// Since when it is so.
    #[serde(serialize_with = "unix_ms")]
    pub since: SystemTime,
    /// Its links.
    pub links: Vec<LinkStatus>,
    /// Where it is dialled; empty: it dials us.
    pub addresses: Vec<AddressStatus>,
    /// Why the last link by way of another cluster did not come about; none if one did, or none was needed.
    pub relay_error: Option<String>,
    /// Replicas that the peer says it has and that no link leads to.
    pub missing_replicas: Vec<ReplicaId>,
    /// Dials made.
    pub dials: u64,
    /// Why the last dial failed or the last link ended.
    pub last_error: Option<String>,
    /// When it could not be reached any more, the last 16 times, the latest last.
    #[serde(skip)]
    pub losses: Vec<SystemTime>,
    /// Its clock minus ours, milliseconds, by its youngest link.
    pub clock_skew_ms: Option<i64>,
    /// Bytes of streams sent on its links, those that are gone included.
    pub bytes_sent: u64,
    /// Bytes of streams received on its links, those that are gone included.
    pub bytes_received: u64,
    /// Datagrams lost on its links, those that are gone included.
    pub packets_lost: u64,
    /// Datagrams sent a second time on its links because the path loses some, those that are gone included.
    pub packets_repeated: u64,
    /// How often links that were dialled from here went on from another port because nothing came back, those that are
    /// gone included.
    pub hops: u64,
}

/// One address of a peer.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AddressStatus {
    /// The address.
    pub address: HostPort,
    /// The replica that the last dial reached.
    pub replica: Option<ReplicaId>,
    /// Dials in a row that gave no lasting link.
    pub failures: u32,
    /// The round trip time that a link had there last, microseconds.
    pub rtt_us: Option<u64>,
    /// Why the last one failed.
    pub last_error: Option<String>,
    /// Likewise, by who has to do something about it.
    pub cause: Option<FailureCause>,
    /// What was wrong with the certificate of the other side, if it was that.
    #[serde(skip)]
    pub verdict: Option<VerifyError>,
    /// What it was dialled by when that gave no link; none if that was never needed.
    pub fallback: Option<FallbackStatus>,
}

/// How an address does by its second transport.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FallbackStatus {
    /// Which it is.
    pub transport: TransportKind,
    /// Dials in a row that gave no lasting link.
    pub failures: u32,
    /// Why the last one failed; none if it gave a link.
    pub last_error: Option<String>,
    /// Likewise, by who has to do something about it.
    pub cause: Option<FailureCause>,
}

/// One link.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LinkStatus {
    /// Where the other end is.
    pub remote: SocketAddr,
    /// The replica at the other end.
    pub replica: ReplicaId,
    /// Dialled from here, not from there.
    pub dialled: bool,
    /// Since when it is authenticated.
    #[serde(serialize_with = "unix_ms")]
    pub since: SystemTime,
    /// Whether it is acknowledged.
    pub state: LinkState,
    /// Takes no new streams.
    pub draining: bool,
    /// What carries it.
    pub transport: TransportKind,
    /// Another transport is preferred, and does not pass.
    pub degraded: bool,
    /// Which streams it takes.
    pub role: LinkRole,
    /// What carries streams that move much to the same replica, and why; none where nothing moved much yet.
    pub bulk: Option<BulkStatus>,
    /// The cluster that it goes by way of; none if by no other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub via: Option<Arc<str>>,
    /// Begin of life of the other side's certificate.
    #[serde(serialize_with = "unix_ms")]
    pub cert_not_before: SystemTime,
    /// End of life of the other side's certificate: the link ends then unless it is renewed.
    #[serde(serialize_with = "unix_ms")]
    pub cert_not_after: SystemTime,
    /// The last certificate that the other side shows: that of its CA, or of one above it.
    #[serde(skip)]
    pub issuer: Option<Arc<CertificateDer<'static>>>,
    /// Milliseconds since the last acknowledgement.
    pub last_acknowledged_ms: Option<u64>,
    /// The other side's clock minus ours, milliseconds.
    pub clock_skew_ms: Option<i64>,
    /// Smoothed round trip time, microseconds.
    pub rtt_us: u64,
    /// Streams opened from here that have not ended.
    pub streams_opened: u32,
    /// Streams opened by the peer that have not ended.
    pub streams_served: u32,
    /// UDP flows, opened by either side; each is one of the streams, too.
    pub flows: usize,
    /// Bytes of streams sent.
    pub bytes_sent: u64,
    /// Bytes of streams received.
    pub bytes_received: u64,
    /// Datagrams sent.
    pub packets_sent: u64,
    /// Datagrams lost.
    pub packets_lost: u64,
    /// Congestion window, bytes.
    pub congestion_window: u64,
    /// Largest datagram that the path carries, bytes.
    pub mtu: u16,
    /// Connections that carry it beside the first, to use several cores.
    pub lanes: u16,
    /// TCP connections that carry it: one and one for each stream, open or waiting, or those that all of them share. 0: it
    /// goes by none of its own.
    pub connections: usize,
    /// Unread bytes that the link may hold.
    pub receive_window: u64,
    /// The keys of our CA that the other side accepts, as it says; none if it does not say.
    #[serde(skip)]
    pub accepts: Option<Arc<Vec<SpkiPin>>>,
}

impl PeerStatus {
    pub(crate) fn new(name: &Arc<str>, peer: &Peer, links: &[Link]) -> Self {
        let mut traffic = peer.past;
        links.iter().filter(|link| link.peer() == name).for_each(|link| traffic += Traffic::of(link));
        // Nobody takes note of links that end while the tunnel closes.
        let live = links.iter().filter(|link| link.peer() == name && link.0.state() != LinkState::Closed);
        let links: Vec<_> = live.map(|link| LinkStatus::new(link, peer)).collect();
        let mut addresses: Vec<AddressStatus> = Vec::new();
        let is_relay = |way: &&Address| way.transport == TransportKind::Relay;
        let relay = peer.addresses.iter().find(is_relay).and_then(|way| way.last_failure.as_ref());
        for way in peer.addresses.iter().filter(|way| !is_relay(way)) {
            match addresses.iter_mut().find(|address| address.address == way.host) {
                Some(address) => address.add(way),
                None => addresses.push(AddressStatus::new(way)),
            }
        }
        Self {
            name: Arc::clone(name),
            up: peer.up && !links.is_empty(),
            since: peer.since,
            clock_skew_ms: links.iter().rev().find_map(|link| link.clock_skew_ms),
            addresses,
            relay_error: relay.map(|failure| failure.text.clone()).or_else(|| peer.relay_refused.clone()),
            missing_replicas: peer.missing(),
            dials: peer.dials,
            last_error: peer.last_error.clone(),
            losses: peer.losses.iter().copied().collect(),
            links,
            bytes_sent: traffic.bytes_sent,
            bytes_received: traffic.bytes_received,
            packets_lost: traffic.packets_lost,
            packets_repeated: traffic.packets_repeated,
            hops: traffic.hops,
        }
    }
}

impl AddressStatus {
    fn new(way: &Address) -> Self {
        Self {
            address: way.host.clone(),
            replica: way.replica,
            failures: way.failures,
            rtt_us: way.rtt.map(micros),
            last_error: way.last_failure.as_ref().map(|failure| failure.text.clone()),
            cause: way.last_failure.as_ref().map(|failure| failure.cause),
            verdict: way.last_failure.as_ref().and_then(|failure| failure.verdict.clone()),
            fallback: None,
        }
    }

    /// One more way to the same address.
    fn add(&mut self, way: &Address) {
        self.replica = self.replica.or(way.replica);
        self.rtt_us = self.rtt_us.or(way.rtt.map(micros));
        if way.replica.is_some() || way.last_failure.is_some() {
            self.fallback = Some(FallbackStatus {
                transport: way.transport,
                failures: way.failures,
                last_error: way.last_failure.as_ref().map(|failure| failure.text.clone()),
                cause: way.last_failure.as_ref().map(|failure| failure.cause),
            });
        }
    }
}

impl LinkStatus {
    fn new(link: &Link, peer: &Peer) -> Self {
        let shared = &link.0;
        let (live, path) = (shared.live(), shared.connection.path());
        Self {
            remote: link.remote_addr(),
            replica: link.replica(),
            dialled: shared.identity.side == Side::Dialler,
            since: shared.identity.since,
            state: shared.state(),
            draining: shared.going_away(),
            transport: shared.connection.kind(),
            degraded: shared.connection.kind() == TransportKind::Tcp
                && peer.policy != TransportPolicy::Tcp
                && shared.role() == LinkRole::Whole,
            role: shared.role(),
            bulk: peer.bulk(&link.replica()).filter(|_| shared.role() == LinkRole::Whole),
            via: shared.connection.via(),
            cert_not_before: live.certificate.0,
            cert_not_after: live.certificate.1,
            issuer: shared.issuer(),
            last_acknowledged_ms: live.last_acknowledged.map(|at| micros(at.elapsed()) / 1_000),
            clock_skew_ms: live.clock_skew_ms,
            rtt_us: micros(path.rtt),
            streams_opened: link.in_flight(),
            streams_served: shared.served(),
            flows: shared.flows.len(),
            bytes_sent: shared.bytes_sent.load(Ordering::Relaxed),
            bytes_received: shared.bytes_received.load(Ordering::Relaxed),
            packets_sent: path.sent_packets,
            packets_lost: path.lost_packets,
            congestion_window: path.congestion_window,
            mtu: path.mtu,
            lanes: path.lanes,
            connections: shared.connection.connections(),
            receive_window: live.receive_window,
            accepts: shared.accepts(),
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Milliseconds since the Unix epoch.
fn unix_ms<S: Serializer>(at: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    serializer.serialize_u64(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

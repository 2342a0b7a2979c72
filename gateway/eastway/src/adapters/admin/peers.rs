//! Peers: what is configured, what the tunnel sees, what the store holds.

use std::sync::Arc;
use std::time::Duration;

use eastway_model::PeerState;
use eastway_model::store::Snapshot;
use eastway_tunnel::{ForwardingCounters, LinkRole, LinkStatus, PeerStatus, RelayStatus, Tunnel};

use super::millis;
use crate::admin::views::{BulkView, LinkView, PeerCondition, PeerView, RelayView};
use crate::app::Gateway;
use crate::config::PeerSettings;
use crate::telemetry::{Certificate, Metrics, PeerSample};

/// What a peer exports is current while a link to it acknowledges within this time (invariant I13).
const CURRENT: Duration = Duration::from_secs(5);

pub(super) fn views(gateway: &Gateway) -> Vec<PeerView> {
    let loaded = gateway.configuration.loaded.borrow().clone();
    let snapshot = gateway.reader.load_full();
    let status = gateway.tunnel.get().map(|tunnel| tunnel.status()).unwrap_or_default();
    loaded.peers.values().map(|peer| view(gateway, peer, &snapshot, find(&status, peer))).collect()
}

fn find<'a>(status: &'a [PeerStatus], peer: &PeerSettings) -> Option<&'a PeerStatus> {
    status.iter().find(|status| &*status.name == peer.name.as_str())
}

fn view(gateway: &Gateway, peer: &PeerSettings, snapshot: &Snapshot, status: Option<&PeerStatus>) -> PeerView {
    let stored = snapshot.peer(peer.name.as_str());
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let state = stored.map_or(PeerState::Unknown, |stored| stored.state);
    // The store is told of links, a moment later, and not any more while the process stops.
    let condition = match state {
        PeerState::Up if status.is_some_and(|status| status.up) => PeerCondition::Up,
        PeerState::Up | PeerState::Down { .. } => PeerCondition::Down,
        PeerState::Unknown => PeerCondition::Unknown,
    };
    let rejected = gateway.telemetry.metrics.rejected_records(peer.name.as_str());
    PeerView {
        name: peer.name.to_string(),
        state: condition,
        since: status.map(|status| millis(status.since)),
        trust_domain: peer.trust_domain.to_string(),
        gateway: peer.gateway.to_string(),
        pins: peer.pins.iter().map(ToString::to_string).collect(),
        workload_isolation: if peer.shared_trust_domain { "none" } else { "trust domain" }.to_owned(),
        addresses: peer.addresses.iter().map(ToString::to_string).collect(),
        links: status.map(|status| status.links.iter().map(link).collect()).unwrap_or_default(),
        missing_replicas: status
            .map(|status| status.missing_replicas.iter().map(ToString::to_string).collect())
            .unwrap_or_default(),
        last_error: status.filter(|status| !status.up).and_then(|status| status.last_error.clone()),
        dials: status.map(|status| status.dials).unwrap_or_default(),
        clock_skew_ms: status.and_then(|status| status.clock_skew_ms),
        imported_services: count(stored.map_or(0, |stored| stored.services)),
        imported_endpoints: stored.map_or(0, |stored| stored.endpoints as u64),
        exported_services: count(snapshot.exports_to(&peer.name).count()),
        rejected_records: rejected.into_iter().map(|(_, count)| count).sum(),
        stale_ms: stale(gateway, peer.name.as_str(), state),
    }
}

/// For how long what is held of a peer could not be confirmed; none if it is current or nothing is held.
pub(super) fn stale(gateway: &Gateway, name: &str, state: PeerState) -> Option<u64> {
    let age = gateway.freshness.age(name)?;
    let is_stale = state != PeerState::Up || age > CURRENT;
    is_stale.then(|| u64::try_from(age.as_millis()).unwrap_or(u64::MAX))
}

fn link(link: &LinkStatus) -> LinkView {
    LinkView {
        replica: link.replica.to_string(),
        remote: link.remote.to_string(),
        transport: link.transport.name().to_owned(),
        degraded: link.degraded,
        role: match link.role {
            LinkRole::Whole => "whole",
            LinkRole::Bulk => "bulk",
            LinkRole::Standby => "standby",
        }
        .to_owned(),
        bulk: link.bulk.as_ref().map(|bulk| BulkView {
            transport: if bulk.tcp { "tcp" } else { "quic" }.to_owned(),
            why: bulk.why.to_owned(),
            quic_bytes_per_second: bulk.quic_rate,
            tcp_bytes_per_second: bulk.tcp_rate,
        }),
        connections: u32::try_from(link.connections).ok().filter(|count| *count > 0),
        via: link.via.as_ref().map(ToString::to_string),
        dialled: link.dialled,
        draining: link.draining,
        since: millis(link.since),
        rtt_us: Some(link.rtt_us),
        mtu: Some(link.mtu).filter(|mtu| *mtu > 0),
        certificate_not_after: Some(millis(link.cert_not_after)),
        streams: link.streams_opened.saturating_add(link.streams_served),
        flows: u32::try_from(link.flows).unwrap_or(u32::MAX),
        sent_bytes: link.bytes_sent,
        received_bytes: link.bytes_received,
        lost_packets: link.packets_lost,
    }
}

/// For whom links are carried.
pub(super) fn relayed(tunnel: &Tunnel) -> Vec<RelayView> {
    let view = |pair: RelayStatus| RelayView {
        between: pair.between.iter().map(ToString::to_string).collect(),
        streams: pair.streams,
        max_streams: pair.max_streams,
        bytes: pair.bytes.to_vec(),
        today_bytes: pair.today,
        max_bytes_per_day: pair.bytes_per_day,
        refused: pair.refused,
    };
    tunnel.relayed().into_iter().map(view).collect()
}

/// Brings the gauges of all peers up to date.
pub(super) fn refresh(gateway: &Gateway, metrics: &Metrics) {
    let Some(tunnel) = gateway.tunnel.get() else { return };
    let counters = tunnel.counters();
    forwarding(&counters.forwarding, metrics);
    for (reason, packets) in &counters.flow_packets_lost {
        metrics.set_udp_dropped(reason, *packets);
    }
    for (transport, streams) in &counters.streams_opened_by {
        metrics.set_streams_opened(transport, *streams);
    }
    metrics.set_replicas(tunnel.live_replicas().len());
    metrics.set_relayed(&tunnel.relayed());
    let snapshot = gateway.reader.load_full();
    for status in tunnel.status() {
        let links = &status.links;
        let best = links.iter().map(|link| link.rtt_us).min();
        let sample = PeerSample {
            up: status.up,
            links: u32::try_from(links.len()).unwrap_or(u32::MAX),
            degraded: links.iter().any(|link| link.degraded),
            connections: links.iter().map(|link| link.connections).sum(),
            rtt: best.map(Duration::from_micros),
            clock_skew_ms: status.clock_skew_ms,
            streams: links.iter().map(|link| link.streams_opened + link.streams_served).sum(),
            flows: links.iter().map(|link| link.flows).sum(),
            sent_bytes: status.bytes_sent,
            received_bytes: status.bytes_received,
            lost_packets: status.packets_lost,
            repeated_packets: status.packets_repeated,
            hops: status.hops,
        };
        metrics.set_peer(&status.name, &sample);
        if let Some(not_after) = links.iter().map(|link| link.cert_not_after).max() {
            metrics.set_certificate(&Certificate::Peer(&status.name), not_after);
        }
        if let Some(age) = gateway.freshness.age(&status.name) {
            metrics.set_federation_lag(&status.name, age);
        }
        objects(&snapshot, &status.name, metrics);
    }
}

fn forwarding(counters: &ForwardingCounters, metrics: &Metrics) {
    for (direction, packets) in &counters.packets {
        let bytes = counters.bytes.get(direction).copied().unwrap_or_default();
        metrics.set_forwarded(direction, *packets, bytes);
    }
    for (reason, packets) in &counters.dropped {
        metrics.set_forward_dropped(reason, *packets);
    }
}

fn objects(snapshot: &Snapshot, name: &Arc<str>, metrics: &Metrics) {
    if let Some(peer) = snapshot.peer(name) {
        let exported = snapshot.exports_to(&peer.name).count();
        metrics.set_federation_objects(name, peer.services, peer.endpoints, exported);
    }
}

//! QUIC's settings. Every one that a peer could profit from is set here, with the reason.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::{hkdf, hmac};
use quinn_proto::congestion::CubicConfig;
use quinn_proto::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn_proto::{
    ClientConfig, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, NoneTokenStore, ServerConfig, TransportConfig,
    ValidationTokenConfig, VarInt,
};

use super::QuicError;
use super::cid::{ConnectionIdKey, KeyedConnectionIds};
use super::congestion::{ByPath, Lossy};
use super::floor::Floored;
use crate::config::TunnelConfig;
use crate::replicas::network::Network;
use crate::transport::Side;

/// QUIC version 1 (RFC 9000) and no other: there is nothing to negotiate and nothing to downgrade to.
const QUIC_V1: u32 = 1;
/// Payload that every path carries (RFC 9000 §14).
const MIN_DATAGRAM: u16 = 1_200;
/// What an interface for frames of 9,000 bytes takes over IPv6. A train has as many as fit one system call.
const MAX_DATAGRAM: u16 = 8_952;
/// The same for frames of 1,500 bytes: where the interface does not say.
const USUAL_DATAGRAM: u16 = 1_452;
/// First congestion window, in datagrams: RFC 6928's ten are made for strangers; a link joins two gateways
/// that paid for their network.
const INITIAL_WINDOW: u64 = 32 * MIN_DATAGRAM as u64;
/// Before the first sample of the round trip: lost first packets are repeated after three times this. With 30 of 100 packets
/// lost, 99 of 100 links are up within 7 s; with twice as much it was 10 s (fault F7). Where the round trip is longer than
/// three times this, a packet or two is repeated too early.
const INITIAL_RTT: Duration = Duration::from_millis(100);
/// The same where links are taken. There quinn begins anew with it when a link moves, unless it sees the same IPv4 address
/// before and after. Until the new path is validated little more than a packet may be sent on it (RFC 9000 §8.1), and
/// that is tried once and given up after twelve times this: what a lost packet costs when a NAT rebinds. The price is
/// that a handshake over a longer path repeats a packet or two too early.
const PATH_RTT: Duration = Duration::from_millis(25);
/// A Retry comes back within a round trip; the rest is for a machine that is busy.
const RETRY_TOKEN_LIFETIME: Duration = Duration::from_secs(10);
/// Bytes of datagrams that wait to be read: 16 ms of a gigabit per second, while the reader's core does something else.
const DATAGRAMS_RECEIVED: usize = 2 << 20;
/// Bytes of datagrams that quinn-proto has: more than a batch ([`datagrams`](super::datagrams)).
const DATAGRAMS_SENT: usize = 512 << 10;

pub(super) fn endpoint(config: &TunnelConfig, network: Option<&Arc<Network>>) -> Result<EndpointConfig, QuicError> {
    let keys = &config.keys;
    let mut endpoint = EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &keys.reset)));
    let key = ConnectionIdKey::new(&keys.connection_id, config.quic_lb.as_ref());
    let (replica, predecessors, network) = (config.replica, Arc::clone(&config.predecessors), network.cloned());
    let generator = move || KeyedConnectionIds::new(key.clone(), replica, Arc::clone(&predecessors), network.clone());
    endpoint
        .cid_generator(move || Box::new(generator()))
        .supported_versions(vec![QUIC_V1])
        .max_udp_payload_size(config.limits.max_datagram.clamp(1_472, MAX_DATAGRAM))
        .map_err(|_| QuicError::OutOfRange)?;
    Ok(endpoint)
}

/// The way to a peer, as far as it is known before anything was sent on it.
pub(super) struct Way {
    pub(super) remote: IpAddr,
    /// The most that the interface takes in one packet.
    pub(super) datagram: Option<u16>,
    pub(super) lossy: Arc<Lossy>,
}

pub(super) fn transport(config: &TunnelConfig, side: Side, way: Way) -> Result<TransportConfig, QuicError> {
    let (limits, timing) = (&config.limits, &config.timing);
    let idle = IdleTimeout::try_from(timing.idle).map_err(|_| QuicError::OutOfRange)?;
    let mut congestion = CubicConfig::default();
    congestion.initial_window(INITIAL_WINDOW);
    let mut discovery = MtuDiscoveryConfig::default();
    let most = limits.max_datagram.clamp(MIN_DATAGRAM, MAX_DATAGRAM);
    discovery.upper_bound(way.datagram.unwrap_or(USUAL_DATAGRAM).clamp(MIN_DATAGRAM, most));
    let congestion = ByPath { cubic: Arc::new(congestion), lossy: way.lossy, remote: way.remote };
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(timing.keep_alive))
        // quinn pays for every stream it admits, used or not.
        .max_concurrent_bidi_streams(VarInt::from_u32(limits.initial_streams))
        // One, and only to close the link with PROTOCOL when it comes.
        .max_concurrent_uni_streams(VarInt::from_u32(1))
        .stream_receive_window(VarInt::from_u32(limits.stream_window))
        // quinn's default is without a bound; what is above it moves with `link::balance`.
        .receive_window(VarInt::from_u32(limits.link_window))
        .send_window(u64::from(limits.send_window))
        .send_fairness(true)
        .initial_mtu(MIN_DATAGRAM)
        .min_mtu(MIN_DATAGRAM)
        .mtu_discovery_config(Some(discovery))
        .initial_rtt(match side {
            Side::Dialler => INITIAL_RTT,
            Side::Acceptor => PATH_RTT,
        })
        .congestion_controller_factory(Arc::new(congestion))
        .datagram_receive_buffer_size(Some(DATAGRAMS_RECEIVED))
        .datagram_send_buffer_size(DATAGRAMS_SENT)
        .allow_spin(false)
        .enable_segmentation_offload(true);
    Ok(transport)
}

pub(super) fn server(config: &TunnelConfig, tls: Arc<rustls::ServerConfig>) -> Result<ServerConfig, QuicError> {
    let crypto = QuicServerConfig::try_from(tls).map_err(|_| QuicError::InitialSuite)?;
    let crypto = Floored { inner: Arc::new(crypto), idle: config.timing.idle_floor };
    let token_key = hkdf::Salt::new(hkdf::HKDF_SHA256, &[]).extract(&config.keys.token);
    let mut validation = ValidationTokenConfig::default();
    // Tokens of earlier connections would stand in for Retry (invariant I9).
    validation.sent(0);
    let limits = &config.limits;
    let mut server = ServerConfig::new(Arc::new(crypto), Arc::new(token_key));
    server
        .validation_token_config(validation)
        .retry_token_lifetime(RETRY_TOKEN_LIFETIME)
        // A NAT that rebinds must not cost the link (fault F10).
        .migration(true)
        .max_incoming(usize::from(limits.incoming))
        .incoming_buffer_size(limits.incoming_bytes / u64::from(limits.incoming.max(1)))
        .incoming_buffer_size_total(limits.incoming_bytes);
    Ok(server)
}

pub(super) fn client(
    config: &TunnelConfig,
    tls: Arc<rustls::ClientConfig>,
    way: Way,
) -> Result<ClientConfig, QuicError> {
    let crypto = QuicClientConfig::try_from(tls).map_err(|_| QuicError::InitialSuite)?;
    let crypto = Floored { inner: Arc::new(crypto), idle: config.timing.idle_floor };
    let mut client = ClientConfig::new(Arc::new(crypto));
    let transport = Arc::new(transport(config, Side::Dialler, way)?);
    client.transport_config(transport).token_store(Arc::new(NoneTokenStore)).version(QUIC_V1);
    Ok(client)
}

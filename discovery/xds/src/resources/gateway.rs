//! The way to the gateway: the internal listener that turns each connection into a CONNECT stream, and the cluster of
//! gateways behind it.

use std::net::IpAddr;

use eastway_proto::envoy::config::cluster::v3 as cluster;
use eastway_proto::envoy::config::core::v3 as core;
use eastway_proto::envoy::config::endpoint::v3 as endpoint;
use eastway_proto::envoy::config::listener::v3 as listener;
use eastway_proto::envoy::extensions::filters::network::tcp_proxy::v3 as tcp;
use eastway_proto::envoy::extensions::transport_sockets::tls::v3 as tls;
use eastway_proto::envoy::extensions::upstreams::http::v3 as http;
use eastway_proto::envoy::r#type::matcher::v3 as matcher;
use prost::Name;

use super::import::BUFFER;
use super::parts::{agents_secret, any, filter_chain, number, seconds, socket, transport_socket};
use super::{GATEWAY_CLUSTER, Generated, HBONE, METADATA, Settings};
use crate::kind::Kind;
use crate::resource::Resource;

/// Longest dial of the gateway, which is near: another replica is tried after it.
const CONNECT: u64 = 1;
/// Dials of one tunnel: the gateway that goes while it is dialled costs one.
const CONNECT_ATTEMPTS: u32 = 2;
/// Tunnels in one connection, and the windows of each: streams times window fit the connection's, or readers that
/// stand still would stop all others.
const STREAMS: u32 = 64;
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = STREAMS * STREAM_WINDOW;
/// The gateway sends fine window updates for many streams; the default of 10 closed whole connections.
const WINDOW_UPDATES: u32 = 1_000;
/// More than are ever wanted: the defaults of 1,024 are a limit on tunnels.
const CONNECTIONS: u32 = 1_000;
const TUNNELS: u32 = 100_000;

/// Where sidecars reach the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayAddress {
    /// An IP address or a DNS name.
    pub host: String,
    /// Its port.
    pub port: u16,
}

/// Listener and cluster.
pub(super) fn resources(settings: &Settings) -> Vec<Generated> {
    let (listener, cluster) = (internal_listener(), gateway_cluster(settings));
    vec![
        (Kind::Cluster, Resource::new(Kind::Cluster, GATEWAY_CLUSTER, &cluster)),
        (Kind::Listener, Resource::new(Kind::Listener, HBONE, &listener)),
    ]
}

fn internal_listener() -> listener::Listener {
    let header = core::HeaderValue {
        key: "x-eastway-service".to_owned(),
        value: format!("%DYNAMIC_METADATA({METADATA}:service)%"),
        ..core::HeaderValue::default()
    };
    let tunnel = tcp::tcp_proxy::TunnelingConfig {
        // Envoy 1.37 knows the endpoint without metadata, 1.36 does not.
        hostname: format!("%DYNAMIC_METADATA({METADATA}:endpoint)%"),
        propagate_response_headers: true,
        headers_to_add: vec![core::HeaderValueOption { header: Some(header), ..core::HeaderValueOption::default() }],
        ..tcp::tcp_proxy::TunnelingConfig::default()
    };
    let proxy = tcp::TcpProxy {
        stat_prefix: HBONE.to_owned(),
        cluster_specifier: Some(tcp::tcp_proxy::ClusterSpecifier::Cluster(GATEWAY_CLUSTER.to_owned())),
        // How long a connection may stand still is the gateway's to say.
        idle_timeout: seconds(0),
        max_connect_attempts: number(CONNECT_ATTEMPTS),
        tunneling_config: Some(tunnel),
        ..tcp::TcpProxy::default()
    };
    listener::Listener {
        name: HBONE.to_owned(),
        filter_chains: vec![filter_chain("envoy.filters.network.tcp_proxy", &proxy)],
        listener_specifier: Some(listener::listener::ListenerSpecifier::InternalListener(
            listener::listener::InternalListenerConfig::default(),
        )),
        per_connection_buffer_limit_bytes: number(BUFFER),
        ..listener::Listener::default()
    }
}

/// Without outlier detection: one bad remote endpoint would take the gateway away from all others.
fn gateway_cluster(settings: &Settings) -> cluster::Cluster {
    let GatewayAddress { host, port } = &settings.gateway;
    let discovery = match host.parse::<IpAddr>() {
        Ok(_) => cluster::cluster::DiscoveryType::Static,
        Err(_) => cluster::cluster::DiscoveryType::StrictDns,
    };
    let host_identifier = endpoint::lb_endpoint::HostIdentifier::Endpoint(endpoint::Endpoint {
        address: Some(socket(host, *port)),
        ..endpoint::Endpoint::default()
    });
    let gateway = endpoint::LbEndpoint { host_identifier: Some(host_identifier), ..endpoint::LbEndpoint::default() };
    let assignment = endpoint::ClusterLoadAssignment {
        cluster_name: GATEWAY_CLUSTER.to_owned(),
        endpoints: vec![endpoint::LocalityLbEndpoints {
            lb_endpoints: vec![gateway],
            ..endpoint::LocalityLbEndpoints::default()
        }],
        ..endpoint::ClusterLoadAssignment::default()
    };
    let thresholds = cluster::circuit_breakers::Thresholds {
        max_connections: number(CONNECTIONS),
        max_pending_requests: number(TUNNELS),
        max_requests: number(TUNNELS),
        ..cluster::circuit_breakers::Thresholds::default()
    };
    let protocol = any(&tunnels());
    cluster::Cluster {
        name: GATEWAY_CLUSTER.to_owned(),
        cluster_discovery_type: Some(cluster::cluster::ClusterDiscoveryType::Type(discovery.into())),
        connect_timeout: seconds(CONNECT),
        load_assignment: Some(assignment),
        circuit_breakers: Some(cluster::CircuitBreakers {
            thresholds: vec![thresholds],
            ..cluster::CircuitBreakers::default()
        }),
        typed_extension_protocol_options: [(http::HttpProtocolOptions::full_name(), protocol)].into(),
        transport_socket: Some(transport_socket("envoy.transport_sockets.tls", &tls(settings))),
        ..cluster::Cluster::default()
    }
}

fn tunnels() -> http::HttpProtocolOptions {
    use http::http_protocol_options::explicit_http_config::ProtocolConfig;
    use http::http_protocol_options::{ExplicitHttpConfig, UpstreamProtocolOptions};
    // A gateway that froze is noticed within two seconds, not at the end of a request's patience.
    let keepalive =
        core::KeepaliveSettings { interval: seconds(1), timeout: seconds(1), ..core::KeepaliveSettings::default() };
    let http2 = core::Http2ProtocolOptions {
        max_concurrent_streams: number(STREAMS),
        initial_stream_window_size: number(STREAM_WINDOW),
        initial_connection_window_size: number(CONNECTION_WINDOW),
        max_inbound_window_update_frames_per_data_frame_sent: number(WINDOW_UPDATES),
        connection_keepalive: Some(keepalive),
        ..core::Http2ProtocolOptions::default()
    };
    let explicit = ExplicitHttpConfig { protocol_config: Some(ProtocolConfig::Http2ProtocolOptions(http2)) };
    http::HttpProtocolOptions {
        upstream_protocol_options: Some(UpstreamProtocolOptions::ExplicitHttpConfig(explicit)),
        ..http::HttpProtocolOptions::default()
    }
}

/// Mutual TLS 1.3 with exactly this cluster's gateway; Envoy's clients stop at 1.2 by default.
fn tls(settings: &Settings) -> tls::UpstreamTlsContext {
    use tls::common_tls_context::{CombinedCertificateValidationContext, ValidationContextType};
    let exact = matcher::string_matcher::MatchPattern::Exact(settings.gateway_identity.clone());
    let identity = tls::SubjectAltNameMatcher {
        san_type: tls::subject_alt_name_matcher::SanType::Uri.into(),
        matcher: Some(matcher::StringMatcher { match_pattern: Some(exact), ..matcher::StringMatcher::default() }),
        ..tls::SubjectAltNameMatcher::default()
    };
    let validation = CombinedCertificateValidationContext {
        default_validation_context: Some(tls::CertificateValidationContext {
            match_typed_subject_alt_names: vec![identity],
            ..tls::CertificateValidationContext::default()
        }),
        validation_context_sds_secret_config: Some(agents_secret(&format!("bundle:{}", settings.trust_domain))),
        ..CombinedCertificateValidationContext::default()
    };
    let version = i32::from(tls::tls_parameters::TlsProtocol::TlSv13);
    let parameters = tls::TlsParameters {
        tls_minimum_protocol_version: version,
        tls_maximum_protocol_version: version,
        ..tls::TlsParameters::default()
    };
    tls::UpstreamTlsContext {
        common_tls_context: Some(tls::CommonTlsContext {
            tls_params: Some(parameters),
            tls_certificate_sds_secret_configs: vec![agents_secret("workload")],
            alpn_protocols: vec!["h2".to_owned()],
            validation_context_type: Some(ValidationContextType::CombinedValidationContext(validation)),
            ..tls::CommonTlsContext::default()
        }),
        // No resumption: each connection proves anew who is there (invariant I9).
        max_session_keys: number(0),
        ..tls::UpstreamTlsContext::default()
    }
}

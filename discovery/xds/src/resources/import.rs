//! One import: a cluster, its endpoints, and a listener with its route for each TCP port.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use eastway_model::rules::{Balance, SidecarPolicy};
use eastway_model::store::Snapshot;
use eastway_model::{AppProtocol, Import, Protocol, ServicePort};
use eastway_proto::envoy::config::cluster::v3 as cluster;
use eastway_proto::envoy::config::core::v3 as core;
use eastway_proto::envoy::config::listener::v3 as listener;
use eastway_proto::envoy::extensions::filters::http::fault::v3 as http_fault;
use eastway_proto::envoy::extensions::filters::http::router::v3 as router;
use eastway_proto::envoy::extensions::filters::http::stateful_session::v3 as session;
use eastway_proto::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use eastway_proto::envoy::extensions::filters::network::tcp_proxy::v3 as tcp;
use eastway_proto::envoy::extensions::transport_sockets::internal_upstream::v3 as internal;
use eastway_proto::envoy::extensions::transport_sockets::raw_buffer::v3 as raw;
use eastway_proto::envoy::extensions::upstreams::http::v3 as http;
use eastway_proto::envoy::r#type::metadata::v3 as metadata;
use eastway_proto::envoy::r#type::v3::Percent;
use prost::Name;

use super::assignment::{Form, assignment};
use super::capture::captured;
use super::parts::{ads, any, duration, filter_chain, number, seconds, socket, transport_socket};
use super::{Generated, METADATA, affinity, cluster_name, connections, fault, routes, subset, tls};
use crate::kind::Kind;
use crate::resource::Resource;

/// Bytes of either direction that wait in Envoy on one connection. Where who reads is slower than who writes each has as many
/// several times, and by Envoy's default of 1 MiB a hundred such connections would be all of a sidecar's memory.
pub const BUFFER: u32 = 256 << 10;
/// Longest dial of an endpoint: the CONNECT stream, the other cluster's dial, and TLS in it once there is some.
const CONNECT: u64 = 5;
/// Most connections and requests that one sidecar has under way to one cluster, unless a policy says otherwise: more than are
/// wanted, where Envoy's own 1,024 are not, and few enough to be refused before its memory is gone.
pub(super) const MOST: u32 = 10_000;
/// Requests of a connection to a summary: a dial of some round trips for each hundred is little.
const REQUESTS: u32 = 100;
/// Dials of a connection of bytes, each of another endpoint.
const DIALS: u32 = 3;

/// What is told of an import that listens at these addresses, with its endpoints in this form.
pub(super) fn resources(
    snapshot: &Snapshot,
    import: &Import,
    addresses: &[IpAddr],
    (trust_domain, form): (&str, Form),
) -> Vec<Generated> {
    let mut resources = Vec::new();
    let policy = import.policy.as_ref().map(|policy| policy.sidecars).unwrap_or_default();
    for port in import.ports.iter().filter(|port| port.protocol == Protocol::Tcp) {
        let protocol = AppProtocol::of(port);
        for share in subset::shares(import, port) {
            let name = subset::name(snapshot.cluster(), &import.key, port.number, &share);
            let mut cluster = cluster(&name, protocol, policy);
            cluster.lb_policy = balancing(import, form).into();
            if form == Form::Summary {
                spread(&mut cluster, protocol);
            }
            cluster.transport_socket_matches = tls::matches(snapshot, import, port, trust_domain);
            resources.push((Kind::Cluster, Resource::new(Kind::Cluster, &name, &cluster)));
            if let Some(fault) = fault::of(import, port) {
                resources.extend(fault::resources(&name, protocol, fault));
            }
            let endpoints = assignment(snapshot, import, port, &share, (&name, form));
            resources.push((Kind::Endpoints, Resource::new(Kind::Endpoints, &name, &endpoints)));
        }
        let name = cluster_name(&import.key, port.number);
        if protocol.is_http() {
            let routes = routes::configuration(snapshot, import, port, &name);
            resources.push((Kind::Route, Resource::new(Kind::Route, &name, &routes)));
        }
        // One each: a family that the host does not have must not cost the other.
        for address in addresses {
            let listener = listener(snapshot, import, *address, port, &name);
            resources.push((Kind::Listener, Resource::new(Kind::Listener, &listener.name, &listener)));
            resources.push(captured(listener));
        }
    }
    resources
}

/// A cluster without its transport sockets.
pub(super) fn cluster(name: &str, protocol: AppProtocol, policy: SidecarPolicy) -> cluster::Cluster {
    let SidecarPolicy { outliers, limits, balance: _, fault: _ } = policy;
    let thresholds = cluster::circuit_breakers::Thresholds {
        max_connections: number(limits.connections.unwrap_or(MOST)),
        max_pending_requests: number(limits.pending.unwrap_or(MOST)),
        max_requests: number(limits.requests.unwrap_or(MOST)),
        // Envoy's own limit is three at a time, whatever a rule says of tries.
        max_retries: number(MOST),
        ..cluster::circuit_breakers::Thresholds::default()
    };
    let common = cluster::cluster::CommonLbConfig {
        // 1.36 collects changes of health for a second otherwise.
        update_merge_window: duration(Duration::ZERO),
        // By default half of the endpoints being down would send requests to those as well. At one in a hundred it is
        // only when nobody is left, here or anywhere: to try those that failed a moment ago beats refusing everything
        // until their ejection ends.
        healthy_panic_threshold: Some(Percent { value: 1.0 }),
        ..cluster::cluster::CommonLbConfig::default()
    };
    let outliers = cluster::OutlierDetection {
        // The first hop of a connection, to the gateway, succeeds whatever becomes of it further on. Counted apart, that
        // would wipe out each failure; with requests, one that fails is an answer with an error.
        split_external_local_origin_errors: !protocol.is_http() || outliers.errors == 0,
        consecutive_5xx: number(outliers.errors.max(1)),
        enforcing_consecutive_5xx: (outliers.errors == 0).then(|| number(0)).flatten(),
        consecutive_local_origin_failure: number(outliers.failures.max(1)),
        enforcing_consecutive_local_origin_failure: (outliers.failures == 0).then(|| number(0)).flatten(),
        interval: duration(outliers.interval),
        base_ejection_time: duration(outliers.ejection),
        max_ejection_percent: number(outliers.most_percent),
        ..cluster::OutlierDetection::default()
    };
    let plain = transport_socket("envoy.transport_sockets.raw_buffer", &raw::RawBuffer::default());
    let options = protocol_options(protocol).map(|options| (http::HttpProtocolOptions::full_name(), any(&options)));
    cluster::Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(cluster::cluster::ClusterDiscoveryType::Type(
            cluster::cluster::DiscoveryType::Eds.into(),
        )),
        eds_cluster_config: Some(cluster::cluster::EdsClusterConfig {
            eds_config: Some(ads()),
            ..cluster::cluster::EdsClusterConfig::default()
        }),
        connect_timeout: seconds(CONNECT),
        common_lb_config: Some(common),
        circuit_breakers: Some(cluster::CircuitBreakers {
            thresholds: vec![thresholds],
            ..cluster::CircuitBreakers::default()
        }),
        outlier_detection: Some(outliers),
        typed_extension_protocol_options: options.into_iter().collect(),
        transport_socket: Some(transport_socket(
            "envoy.transport_sockets.internal_upstream",
            &named_to_the_gateway(plain),
        )),
        per_connection_buffer_limit_bytes: number(BUFFER),
        ..cluster::Cluster::default()
    }
}

/// By what an endpoint is chosen.
fn balancing(import: &Import, form: Form) -> cluster::cluster::LbPolicy {
    use cluster::cluster::LbPolicy;
    match form {
        Form::Single | Form::Summary if affinity::is_sticky(import) => LbPolicy::RingHash,
        Form::Single => match import.policy.as_ref().map(|policy| policy.sidecars.balance).unwrap_or_default() {
            Balance::LeastRequest => LbPolicy::LeastRequest,
            Balance::RoundRobin => LbPolicy::RoundRobin,
            Balance::Random => LbPolicy::Random,
        },
        // Requests under way are few for a thousand endpoints and many for one: what stands for several gets its share
        // by weight alone.
        Form::Summary => LbPolicy::RoundRobin,
    }
}

/// Behind a summary each connection is with one endpoint: new ones bring requests to the others.
fn spread(cluster: &mut cluster::Cluster, protocol: AppProtocol) {
    let Some(options) = protocol_options(protocol) else { return };
    let common = core::HttpProtocolOptions {
        max_requests_per_connection: number(REQUESTS),
        ..core::HttpProtocolOptions::default()
    };
    let options = http::HttpProtocolOptions { common_http_protocol_options: Some(common), ..options };
    cluster.typed_extension_protocol_options =
        [(http::HttpProtocolOptions::full_name(), any(&options))].into_iter().collect();
}

/// There is no TLS inside that could choose between them.
pub(super) fn protocol_options(protocol: AppProtocol) -> Option<http::HttpProtocolOptions> {
    use http::http_protocol_options::explicit_http_config::ProtocolConfig;
    use http::http_protocol_options::{ExplicitHttpConfig, UpstreamProtocolOptions};
    let config = match protocol {
        AppProtocol::Http => ProtocolConfig::HttpProtocolOptions(core::Http1ProtocolOptions::default()),
        AppProtocol::Http2 => ProtocolConfig::Http2ProtocolOptions(core::Http2ProtocolOptions::default()),
        AppProtocol::Tcp => return None,
    };
    let explicit = ExplicitHttpConfig { protocol_config: Some(config) };
    Some(http::HttpProtocolOptions {
        upstream_protocol_options: Some(UpstreamProtocolOptions::ExplicitHttpConfig(explicit)),
        ..http::HttpProtocolOptions::default()
    })
}

/// Hands the metadata of the chosen endpoint to the internal listener, which names it to the gateway; `inner` is what
/// runs inside. An endpoint of this cluster, which has an address, is dialled as it is.
pub(super) fn named_to_the_gateway(inner: core::TransportSocket) -> internal::InternalUpstreamTransport {
    let host = metadata::metadata_kind::Kind::Host(metadata::metadata_kind::Host::default());
    let source = internal::internal_upstream_transport::MetadataValueSource {
        kind: Some(metadata::MetadataKind { kind: Some(host) }),
        name: METADATA.to_owned(),
    };
    internal::InternalUpstreamTransport { passthrough_metadata: vec![source], transport_socket: Some(inner) }
}

fn listener(
    snapshot: &Snapshot,
    import: &Import,
    address: IpAddr,
    port: &ServicePort,
    name: &str,
) -> listener::Listener {
    let at = SocketAddr::new(address, port.number.get());
    let mut filters = Vec::new();
    let sticky = affinity::is_sticky(import);
    let chains = if AppProtocol::of(port).is_http() {
        vec![filter_chain("envoy.filters.network.http_connection_manager", &http_proxy(name))]
    } else {
        let chains = connections::chains(snapshot, import, port);
        if chains.iter().any(|chain| !chain.server_names.is_empty()) {
            filters.push(connections::tls_inspector());
        }
        chains.into_iter().map(|chain| bytes_chain(name, chain, sticky)).collect()
    };
    listener::Listener {
        name: at.to_string(),
        address: Some(socket(&address.to_string(), port.number.get())),
        listener_filters: filters,
        filter_chains: chains,
        traffic_direction: core::TrafficDirection::Outbound.into(),
        per_connection_buffer_limit_bytes: number(BUFFER),
        ..listener::Listener::default()
    }
}

/// A chain that hands on the bytes of those connections.
pub(super) fn bytes_chain(name: &str, chain: connections::Chain, sticky: bool) -> listener::FilterChain {
    let proxy = tcp::TcpProxy {
        stat_prefix: name.to_owned(),
        cluster_specifier: Some(chain.clusters),
        // How long a connection may stand still is the gateway's to say.
        idle_timeout: seconds(0),
        max_connect_attempts: number(DIALS),
        hash_policy: sticky.then(affinity::of_connection).into_iter().collect(),
        ..tcp::TcpProxy::default()
    };
    let server_names = chain.server_names;
    let only = listener::FilterChainMatch { server_names, ..listener::FilterChainMatch::default() };
    let filter_chain_match = (!only.server_names.is_empty()).then_some(only);
    listener::FilterChain { filter_chain_match, ..filter_chain("envoy.filters.network.tcp_proxy", &proxy) }
}

fn http_proxy(name: &str) -> hcm::HttpConnectionManager {
    use hcm::http_connection_manager::{RouteSpecifier, ServerHeaderTransformation};
    let filter = |name: &str, config| hcm::HttpFilter {
        name: name.to_owned(),
        config_type: Some(hcm::http_filter::ConfigType::TypedConfig(config)),
        ..hcm::HttpFilter::default()
    };
    // They do nothing unless a route says so. A filter that came with the first such route would change the listener,
    // which closes connections.
    let faults = filter(fault::FAULTS, any(&http_fault::HttpFault::default()));
    let sessions = filter(routes::SESSIONS, any(&session::StatefulSession::default()));
    hcm::HttpConnectionManager {
        stat_prefix: name.to_owned(),
        route_specifier: Some(RouteSpecifier::Rds(hcm::Rds {
            config_source: Some(ads()),
            route_config_name: name.to_owned(),
        })),
        http_filters: vec![faults, sessions, router_filter()],
        upgrade_configs: vec![websocket()],
        server_header_transformation: ServerHeaderTransformation::PassThrough.into(),
        // A request may take as long as its two ends like.
        stream_idle_timeout: seconds(0),
        ..hcm::HttpConnectionManager::default()
    }
}

/// The last filter of every proxy of HTTP.
pub(super) fn router_filter() -> hcm::HttpFilter {
    hcm::HttpFilter {
        name: "envoy.filters.http.router".to_owned(),
        config_type: Some(hcm::http_filter::ConfigType::TypedConfig(any(&router::Router::default()))),
        ..hcm::HttpFilter::default()
    }
}

/// Lets WebSocket through.
pub(super) fn websocket() -> hcm::http_connection_manager::UpgradeConfig {
    let upgrade_type = "websocket".to_owned();
    hcm::http_connection_manager::UpgradeConfig {
        upgrade_type,
        ..hcm::http_connection_manager::UpgradeConfig::default()
    }
}

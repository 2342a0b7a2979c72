//! Failures on purpose: between the router, which tries again and gives up in time, and the endpoint stands a listener
//! inside the proxy that delays and aborts. To the router it looks as if the endpoint did.

use eastway_model::rules::Fault;
use eastway_model::{AppProtocol, Import, ServicePort};
use eastway_proto::envoy::config::cluster::v3 as cluster;
use eastway_proto::envoy::config::core::v3 as core;
use eastway_proto::envoy::config::endpoint::v3 as endpoint;
use eastway_proto::envoy::config::listener::v3 as listener;
use eastway_proto::envoy::extensions::filters::common::fault::v3 as common;
use eastway_proto::envoy::extensions::filters::http::fault::v3 as fault;
use eastway_proto::envoy::extensions::filters::http::router::v3 as router;
use eastway_proto::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use eastway_proto::envoy::extensions::upstreams::http::v3 as http;
use eastway_proto::envoy::r#type::v3::FractionalPercent;
use eastway_proto::envoy::r#type::v3::fractional_percent::DenominatorType;
use prost::Name;

use super::Generated;
use super::import::{BUFFER, MOST, protocol_options};
use super::parts::{any, duration, everything_to, filter_chain, number, seconds};
use crate::kind::Kind;
use crate::resource::Resource;

/// Name of the filter.
pub(super) const FAULTS: &str = "envoy.filters.http.fault";

/// The failures that requests to a port meet, if there are any.
pub(super) fn of(import: &Import, port: &ServicePort) -> Option<Fault> {
    let policy = import.policy.as_ref().filter(|_| AppProtocol::of(port).is_http())?;
    policy.sidecars.fault
}

/// Name of the cluster and the listener before the cluster `name`.
pub(super) fn name_before(name: &str) -> String {
    name.replacen("outbound|", "fault|", 1)
}

/// The cluster that leads to the listener, and the listener.
pub(super) fn resources(target: &str, protocol: AppProtocol, fault: Fault) -> [Generated; 2] {
    let name = name_before(target);
    let (cluster, listener) = (cluster(&name, protocol), listener(&name, target, fault));
    [
        (Kind::Cluster, Resource::new(Kind::Cluster, &name, &cluster)),
        (Kind::Listener, Resource::new(Kind::Listener, &name, &listener)),
    ]
}

fn cluster(name: &str, protocol: AppProtocol) -> cluster::Cluster {
    let internal = core::EnvoyInternalAddress {
        endpoint_id: name.to_owned(),
        address_name_specifier: Some(core::envoy_internal_address::AddressNameSpecifier::ServerListenerName(
            name.to_owned(),
        )),
    };
    let address = core::Address { address: Some(core::address::Address::EnvoyInternalAddress(internal)) };
    let endpoint = endpoint::Endpoint { address: Some(address), ..endpoint::Endpoint::default() };
    let host = endpoint::LbEndpoint {
        host_identifier: Some(endpoint::lb_endpoint::HostIdentifier::Endpoint(endpoint)),
        ..endpoint::LbEndpoint::default()
    };
    let hosts = endpoint::LocalityLbEndpoints { lb_endpoints: vec![host], ..endpoint::LocalityLbEndpoints::default() };
    let thresholds = cluster::circuit_breakers::Thresholds {
        max_connections: number(MOST),
        max_pending_requests: number(MOST),
        max_requests: number(MOST),
        max_retries: number(MOST),
        ..cluster::circuit_breakers::Thresholds::default()
    };
    let options = protocol_options(protocol).map(|options| (http::HttpProtocolOptions::full_name(), any(&options)));
    cluster::Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(cluster::cluster::ClusterDiscoveryType::Type(
            cluster::cluster::DiscoveryType::Static.into(),
        )),
        connect_timeout: seconds(1),
        load_assignment: Some(endpoint::ClusterLoadAssignment {
            cluster_name: name.to_owned(),
            endpoints: vec![hosts],
            ..endpoint::ClusterLoadAssignment::default()
        }),
        circuit_breakers: Some(cluster::CircuitBreakers {
            thresholds: vec![thresholds],
            ..cluster::CircuitBreakers::default()
        }),
        typed_extension_protocol_options: options.into_iter().collect(),
        per_connection_buffer_limit_bytes: number(BUFFER),
        ..cluster::Cluster::default()
    }
}

fn listener(name: &str, target: &str, fault: Fault) -> listener::Listener {
    use hcm::http_connection_manager::{RouteSpecifier, ServerHeaderTransformation, UpgradeConfig};
    let filter = |name: &str, config| hcm::HttpFilter {
        name: name.to_owned(),
        config_type: Some(hcm::http_filter::ConfigType::TypedConfig(config)),
        ..hcm::HttpFilter::default()
    };
    let manager = hcm::HttpConnectionManager {
        stat_prefix: name.to_owned(),
        route_specifier: Some(RouteSpecifier::RouteConfig(everything_to(target, "/", seconds(0)))),
        http_filters: vec![
            filter(FAULTS, any(&faults(fault))),
            filter("envoy.filters.http.router", any(&router::Router::default())),
        ],
        upgrade_configs: vec![UpgradeConfig { upgrade_type: "websocket".to_owned(), ..UpgradeConfig::default() }],
        server_header_transformation: ServerHeaderTransformation::PassThrough.into(),
        stream_idle_timeout: seconds(0),
        ..hcm::HttpConnectionManager::default()
    };
    listener::Listener {
        name: name.to_owned(),
        filter_chains: vec![filter_chain("envoy.filters.network.http_connection_manager", &manager)],
        listener_specifier: Some(listener::listener::ListenerSpecifier::InternalListener(
            listener::listener::InternalListenerConfig::default(),
        )),
        per_connection_buffer_limit_bytes: number(BUFFER),
        ..listener::Listener::default()
    }
}

/// What the filter does.
pub(super) fn faults(fault: Fault) -> fault::HttpFault {
    let percent = |numerator| Some(FractionalPercent { numerator, denominator: DenominatorType::Million.into() });
    fault::HttpFault {
        delay: fault.delay.map(|delay| common::FaultDelay {
            percentage: percent(delay.per_million),
            fault_delay_secifier: duration(delay.duration).map(common::fault_delay::FaultDelaySecifier::FixedDelay),
        }),
        abort: fault.abort.map(|abort| fault::FaultAbort {
            percentage: percent(abort.per_million),
            error_type: Some(fault::fault_abort::ErrorType::HttpStatus(u32::from(abort.status))),
            ..fault::FaultAbort::default()
        }),
        ..fault::HttpFault::default()
    }
}

//! Small parts of Envoy's messages.

use std::time::Duration;

use eastway_proto::envoy::config::core::v3 as core;
use eastway_proto::envoy::config::listener::v3 as listener;
use eastway_proto::envoy::config::route::v3 as route;
use eastway_proto::envoy::extensions::transport_sockets::tls::v3 as tls;
use eastway_proto::envoy::google::protobuf;
use prost::{Message, Name};

use super::AGENT_CLUSTER;

/// A message of any type.
pub(super) fn any<M: Message + Name>(message: &M) -> protobuf::Any {
    protobuf::Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

pub(super) fn duration(duration: Duration) -> Option<protobuf::Duration> {
    let seconds = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    Some(protobuf::Duration { seconds, nanos: i32::try_from(duration.subsec_nanos()).unwrap_or_default() })
}

pub(super) fn seconds(seconds: u64) -> Option<protobuf::Duration> {
    duration(Duration::from_secs(seconds))
}

pub(super) fn number(value: u32) -> Option<protobuf::UInt32Value> {
    Some(protobuf::UInt32Value { value })
}

/// From the stream that this came on.
pub(super) fn ads() -> core::ConfigSource {
    core::ConfigSource {
        resource_api_version: core::ApiVersion::V3.into(),
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::Ads(
            core::AggregatedConfigSource::default(),
        )),
        ..core::ConfigSource::default()
    }
}

pub(super) fn socket(address: &str, port: u16) -> core::Address {
    let socket = core::SocketAddress {
        address: address.to_owned(),
        port_specifier: Some(core::socket_address::PortSpecifier::PortValue(u32::from(port))),
        ..core::SocketAddress::default()
    };
    core::Address { address: Some(core::address::Address::SocketAddress(socket)) }
}

pub(super) fn transport_socket<M: Message + Name>(name: &str, config: &M) -> core::TransportSocket {
    let config_type = core::transport_socket::ConfigType::TypedConfig(any(config));
    core::TransportSocket { name: name.to_owned(), config_type: Some(config_type) }
}

/// Routes without a name that send everything to one cluster. `prefix` is what every path begins with: `/`, or nothing for gRPC.
pub(super) fn everything_to(
    cluster: &str,
    prefix: &str,
    timeout: Option<protobuf::Duration>,
) -> route::RouteConfiguration {
    let action = route::RouteAction {
        cluster_specifier: Some(route::route_action::ClusterSpecifier::Cluster(cluster.to_owned())),
        timeout,
        ..route::RouteAction::default()
    };
    let all = route::RouteMatch {
        path_specifier: Some(route::route_match::PathSpecifier::Prefix(prefix.to_owned())),
        ..route::RouteMatch::default()
    };
    let route = route::Route {
        r#match: Some(all),
        action: Some(route::route::Action::Route(action)),
        ..route::Route::default()
    };
    route::RouteConfiguration { name: String::new(), ..for_all_hosts(cluster, vec![route]) }
}

/// Routes where it does not matter which host is asked for: the listener says which service is meant.
pub(super) fn for_all_hosts(name: &str, routes: Vec<route::Route>) -> route::RouteConfiguration {
    let host = route::VirtualHost {
        name: name.to_owned(),
        domains: vec!["*".to_owned()],
        routes,
        ..route::VirtualHost::default()
    };
    route::RouteConfiguration {
        name: name.to_owned(),
        virtual_hosts: vec![host],
        ..route::RouteConfiguration::default()
    }
}

/// A filter chain of one filter, for any connection.
pub(super) fn filter_chain<M: Message + Name>(name: &str, config: &M) -> listener::FilterChain {
    listener::FilterChain { filters: vec![filter(name, config)], ..listener::FilterChain::default() }
}

pub(super) fn filter<M: Message + Name>(name: &str, config: &M) -> listener::Filter {
    let config_type = listener::filter::ConfigType::TypedConfig(any(config));
    listener::Filter { name: name.to_owned(), config_type: Some(config_type) }
}

/// A secret from the agent, whatever this stream is doing.
pub(super) fn agents_secret(name: &str) -> tls::SdsSecretConfig {
    let grpc = core::grpc_service::EnvoyGrpc {
        cluster_name: AGENT_CLUSTER.to_owned(),
        ..core::grpc_service::EnvoyGrpc::default()
    };
    let service = core::GrpcService {
        target_specifier: Some(core::grpc_service::TargetSpecifier::EnvoyGrpc(grpc)),
        ..core::GrpcService::default()
    };
    let source = core::ApiConfigSource {
        api_type: core::api_config_source::ApiType::DeltaGrpc.into(),
        transport_api_version: core::ApiVersion::V3.into(),
        grpc_services: vec![service],
        ..core::ApiConfigSource::default()
    };
    let config = core::ConfigSource {
        resource_api_version: core::ApiVersion::V3.into(),
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::ApiConfigSource(source)),
        ..core::ConfigSource::default()
    };
    tls::SdsSecretConfig { name: name.to_owned(), sds_config: Some(config) }
}

//! A sidecar's own listeners: where its workload is reached. Mutual TLS ends here, and the workload is told by whom.

use std::sync::Arc;

use eastway_proto::envoy::config::cluster::v3 as cluster;
use eastway_proto::envoy::config::core::v3 as core;
use eastway_proto::envoy::config::endpoint::v3 as endpoint;
use eastway_proto::envoy::config::listener::v3 as listener;
use eastway_proto::envoy::config::rbac::v3 as rbac_config;
use eastway_proto::envoy::config::route::v3 as route;
use eastway_proto::envoy::extensions::filters::listener::tls_inspector::v3 as inspector;
use eastway_proto::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use eastway_proto::envoy::extensions::filters::network::rbac::v3 as rbac;
use eastway_proto::envoy::extensions::filters::network::tcp_proxy::v3 as tcp;
use eastway_proto::envoy::extensions::matching::common_inputs::ssl::v3::UriSanInput;
use eastway_proto::envoy::extensions::transport_sockets::tls::v3 as tls;
use eastway_proto::envoy::extensions::upstreams::http::v3 as http;
use eastway_proto::envoy::google::protobuf;
use eastway_proto::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use eastway_proto::xds_matcher::{core::v3 as xds_core, matcher::v3 as xds};
use prost::Name as _;

use super::import::{BUFFER, MOST, protocol_options, router_filter, websocket};
use super::parts::{any, everything_to, filter, number, seconds, socket, transport_socket};
use super::secrets::ALL_ANCHORS;
use super::tls::{BYTES_ALPN, ISTIO_ALPN, common, uri};
use super::{AppProtocol, Generated};
use crate::inbound::{Inbound, Mode};
use crate::kind::Kind;
use crate::resource::Resource;

/// Longest dial of the application, which is on this host.
const CONNECT: u64 = 5;
/// Longest handshake.
const HANDSHAKE: u64 = 15;
/// A connection that says nothing for so long is plain text: its server speaks first.
const SILENCE: u64 = 5;

/// What of a sidecar's own resources comes from elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Trust domains whose anchors are known.
    pub trust_domains: Vec<Arc<str>>,
    /// See [`super::Trust::cut`].
    pub cut: Arc<str>,
}

/// A listener and a cluster for each place.
pub(crate) fn resources(inbound: &[Inbound], surroundings: &Surroundings) -> Vec<Generated> {
    let mut resources = Vec::new();
    for inbound in inbound {
        let name = format!("inbound|{}", inbound.listen);
        let cluster = application(&name, inbound);
        resources.push((Kind::Cluster, Resource::new(Kind::Cluster, &name, &cluster)));
        let listener = place(&name, inbound, surroundings);
        resources.push((Kind::Listener, Resource::new(Kind::Listener, &name, &listener)));
    }
    resources
}

fn application(name: &str, inbound: &Inbound) -> cluster::Cluster {
    let address = endpoint::lb_endpoint::HostIdentifier::Endpoint(endpoint::Endpoint {
        address: Some(socket(&inbound.app.ip().to_string(), inbound.app.port())),
        ..endpoint::Endpoint::default()
    });
    let endpoint = endpoint::LbEndpoint { host_identifier: Some(address), ..endpoint::LbEndpoint::default() };
    let assignment = endpoint::ClusterLoadAssignment {
        cluster_name: name.to_owned(),
        endpoints: vec![endpoint::LocalityLbEndpoints {
            lb_endpoints: vec![endpoint],
            ..endpoint::LocalityLbEndpoints::default()
        }],
        ..endpoint::ClusterLoadAssignment::default()
    };
    let thresholds = cluster::circuit_breakers::Thresholds {
        max_connections: number(MOST),
        max_pending_requests: number(MOST),
        max_requests: number(MOST),
        ..cluster::circuit_breakers::Thresholds::default()
    };
    let options =
        protocol_options(inbound.protocol).map(|options| (http::HttpProtocolOptions::full_name(), any(&options)));
    cluster::Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(cluster::cluster::ClusterDiscoveryType::Type(
            cluster::cluster::DiscoveryType::Static.into(),
        )),
        connect_timeout: seconds(CONNECT),
        load_assignment: Some(assignment),
        circuit_breakers: Some(cluster::CircuitBreakers {
            thresholds: vec![thresholds],
            ..cluster::CircuitBreakers::default()
        }),
        typed_extension_protocol_options: options.into_iter().collect(),
        per_connection_buffer_limit_bytes: number(BUFFER),
        ..cluster::Cluster::default()
    }
}

fn place(name: &str, inbound: &Inbound, surroundings: &Surroundings) -> listener::Listener {
    let mut chains = vec![mutual(name, inbound, surroundings)];
    let mut filters = Vec::new();
    if inbound.mode == Mode::Permissive {
        chains.push(plain(name, inbound));
        let inspect = inspector::TlsInspector::default();
        filters.push(listener::ListenerFilter {
            name: "envoy.filters.listener.tls_inspector".to_owned(),
            config_type: Some(listener::listener_filter::ConfigType::TypedConfig(any(&inspect))),
            ..listener::ListenerFilter::default()
        });
    }
    listener::Listener {
        name: name.to_owned(),
        address: Some(socket(&inbound.listen.ip().to_string(), inbound.listen.port())),
        filter_chains: chains,
        listener_filters: filters,
        listener_filters_timeout: seconds(SILENCE),
        continue_on_listener_filters_timeout: true,
        traffic_direction: core::TrafficDirection::Inbound.into(),
        per_connection_buffer_limit_bytes: number(BUFFER),
        ..listener::Listener::default()
    }
}

/// Mutual TLS by anybody whose trust domain is known, or by those who are named.
fn mutual(name: &str, inbound: &Inbound, surroundings: &Surroundings) -> listener::FilterChain {
    let chosen = match (inbound.mode, inbound.protocol) {
        (Mode::Strict, _) => None,
        // Clients of one of the Services come as those of HTTP do; one that names its port so does no TLS by itself.
        (Mode::Permissive, AppProtocol::Tcp) if inbound.mixed => Some(Vec::new()),
        // An application that does TLS by itself is not ours: only what a sidecar says it is.
        (Mode::Permissive, AppProtocol::Tcp) => Some(vec![BYTES_ALPN.to_owned(), ISTIO_ALPN.to_owned()]),
        (Mode::Permissive, AppProtocol::Http | AppProtocol::Http2) => Some(Vec::new()),
    };
    let chosen = chosen.map(|application_protocols| listener::FilterChainMatch {
        transport_protocol: "tls".to_owned(),
        application_protocols,
        ..listener::FilterChainMatch::default()
    });
    let text = protobuf::value::Kind::StringValue(surroundings.cut.to_string());
    let value = protobuf::Value { kind: Some(text) };
    // A chain that changes ends the connections it has: those of who is trusted no more among them.
    let version = protobuf::Struct { fields: [("trust".to_owned(), value)].into() };
    let metadata =
        core::Metadata { filter_metadata: [(super::METADATA.to_owned(), version)].into(), ..core::Metadata::default() };
    listener::FilterChain {
        name: "mutual".to_owned(),
        filter_chain_match: chosen,
        filters: vec![
            filter("envoy.filters.network.rbac", &one_identity(name, inbound, surroundings)),
            application_filter(name, inbound, hcm::http_connection_manager::ForwardClientCertDetails::SanitizeSet),
        ],
        transport_socket: Some(transport_socket("envoy.transport_sockets.tls", &context(inbound, surroundings))),
        transport_socket_connect_timeout: seconds(HANDSHAKE),
        metadata: Some(metadata),
        ..listener::FilterChain::default()
    }
}

fn plain(name: &str, inbound: &Inbound) -> listener::FilterChain {
    listener::FilterChain {
        name: "plain".to_owned(),
        filters: vec![application_filter(
            name,
            inbound,
            hcm::http_connection_manager::ForwardClientCertDetails::Sanitize,
        )],
        ..listener::FilterChain::default()
    }
}

fn context(inbound: &Inbound, surroundings: &Surroundings) -> tls::DownstreamTlsContext {
    use tls::downstream_tls_context::SessionTicketKeysType;
    let who = if inbound.allow.is_empty() {
        let domains = surroundings.trust_domains.iter();
        domains.map(|domain| uri(MatchPattern::Prefix(format!("spiffe://{domain}/")))).collect()
    } else {
        let allowed = inbound.allow.iter();
        let pattern = allowed.map(|allowed| match allowed.prefix() {
            Some(prefix) => MatchPattern::Prefix(prefix.to_owned()),
            None => MatchPattern::Exact(allowed.as_str().to_owned()),
        });
        pattern.map(uri).collect()
    };
    let names: &[&str] = match inbound.protocol {
        AppProtocol::Http | AppProtocol::Http2 => &["h2", "http/1.1"],
        AppProtocol::Tcp => &[BYTES_ALPN, ISTIO_ALPN],
    };
    let alpn = names.iter().map(|name| (*name).to_owned()).collect();
    tls::DownstreamTlsContext {
        common_tls_context: Some(common(alpn, who, ALL_ANCHORS.to_owned())),
        require_client_certificate: Some(protobuf::BoolValue { value: true }),
        // No resumption: each connection proves anew who is there (invariant I9).
        disable_stateful_session_resumption: true,
        session_ticket_keys_type: Some(SessionTicketKeysType::DisableStatelessSessionResumption(true)),
        ..tls::DownstreamTlsContext::default()
    }
}

/// A certificate has exactly one identity, and it is one of those who may. Envoy itself takes several; matchers of names
/// would be content with any of them. What is matched are all URIs of the certificate, joined by commas.
fn one_identity(name: &str, inbound: &Inbound, surroundings: &Surroundings) -> rbac::Rbac {
    use xds::matcher::matcher_list::predicate::{MatchType, SinglePredicate, single_predicate};
    use xds::matcher::matcher_list::{FieldMatcher, Predicate};
    use xds::matcher::{MatcherList, MatcherType, OnMatch, on_match};
    let action = |action: rbac_config::rbac::Action| OnMatch {
        on_match: Some(on_match::OnMatch::Action(xds_core::TypedExtensionConfig {
            name: "envoy.filters.rbac.action".to_owned(),
            typed_config: Some(any(&rbac_config::Action { name: "identity".to_owned(), action: action.into() })),
        })),
        ..OnMatch::default()
    };
    let input = xds_core::TypedExtensionConfig {
        name: "envoy.matching.inputs.uri_san".to_owned(),
        typed_config: Some(any(&UriSanInput {})),
    };
    let regex = xds::RegexMatcher {
        regex: identities(inbound, surroundings),
        engine_type: Some(xds::regex_matcher::EngineType::GoogleRe2(xds::regex_matcher::GoogleRe2 {})),
    };
    let value = xds::StringMatcher {
        match_pattern: Some(xds::string_matcher::MatchPattern::SafeRegex(regex)),
        ..xds::StringMatcher::default()
    };
    let predicate = SinglePredicate { input: Some(input), matcher: Some(single_predicate::Matcher::ValueMatch(value)) };
    let allowed = FieldMatcher {
        predicate: Some(Predicate { match_type: Some(MatchType::SinglePredicate(predicate)) }),
        on_match: Some(action(rbac_config::rbac::Action::Allow)),
    };
    let matcher = xds::Matcher {
        matcher_type: Some(MatcherType::MatcherList(MatcherList { matchers: vec![allowed] })),
        on_no_match: Some(Box::new(action(rbac_config::rbac::Action::Deny))),
    };
    rbac::Rbac { matcher: Some(matcher), stat_prefix: format!("{name}."), ..rbac::Rbac::default() }
}

/// A regular expression of one identity.
fn identities(inbound: &Inbound, surroundings: &Surroundings) -> String {
    // Of what identities are made of only the dot means something.
    let escaped = |text: &str| text.replace('.', "\\.");
    let alternatives: Vec<String> = if inbound.allow.is_empty() {
        let domains = surroundings.trust_domains.iter();
        domains.map(|domain| format!("spiffe://{}/[^,]*", escaped(domain))).collect()
    } else {
        let allowed = inbound.allow.iter();
        let regex = allowed.map(|allowed| match allowed.prefix() {
            Some(prefix) => format!("{}[^,]*", escaped(prefix)),
            None => escaped(allowed.as_str()),
        });
        regex.collect()
    };
    alternatives.join("|")
}

fn application_filter(
    name: &str,
    inbound: &Inbound,
    certificate: hcm::http_connection_manager::ForwardClientCertDetails,
) -> listener::Filter {
    if inbound.protocol.is_http() {
        filter("envoy.filters.network.http_connection_manager", &http_proxy(name, certificate))
    } else {
        let proxy = tcp::TcpProxy {
            stat_prefix: name.to_owned(),
            cluster_specifier: Some(tcp::tcp_proxy::ClusterSpecifier::Cluster(name.to_owned())),
            // How long a connection may stand still is its two ends' to say.
            idle_timeout: seconds(0),
            ..tcp::TcpProxy::default()
        };
        filter("envoy.filters.network.tcp_proxy", &proxy)
    }
}

fn http_proxy(
    name: &str,
    certificate: hcm::http_connection_manager::ForwardClientCertDetails,
) -> hcm::HttpConnectionManager {
    use hcm::http_connection_manager::{RouteSpecifier, ServerHeaderTransformation, SetCurrentClientCertDetails};
    let routes = route::RouteConfiguration { name: name.to_owned(), ..everything_to(name, "/", seconds(0)) };
    hcm::HttpConnectionManager {
        stat_prefix: name.to_owned(),
        route_specifier: Some(RouteSpecifier::RouteConfig(routes)),
        http_filters: vec![router_filter()],
        upgrade_configs: vec![websocket()],
        server_header_transformation: ServerHeaderTransformation::PassThrough.into(),
        // The workload reads there who its client is; what the client itself says there is taken out.
        forward_client_cert_details: certificate.into(),
        set_current_client_cert_details: Some(SetCurrentClientCertDetails {
            uri: true,
            ..SetCurrentClientCertDetails::default()
        }),
        stream_idle_timeout: seconds(0),
        ..hcm::HttpConnectionManager::default()
    }
}

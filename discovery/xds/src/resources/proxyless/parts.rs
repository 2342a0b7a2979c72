//! The four kinds of resources, with what gRPC reads of them and nothing else.

use std::net::IpAddr;
use std::sync::Arc;

use eastway_proto::envoy::config::cluster::v3 as cluster;
use eastway_proto::envoy::config::core::v3 as core;
use eastway_proto::envoy::config::endpoint::v3 as endpoint;
use eastway_proto::envoy::config::listener::v3 as listener;
use eastway_proto::envoy::config::route::v3 as route;
use eastway_proto::envoy::extensions::filters::http::router::v3 as router;
use eastway_proto::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;

use crate::kind::Kind;
use crate::resource::Resource;
use crate::resources::parts::{ads, any, everything_to, number, socket};

/// The cluster without endpoints. Libraries put its name into what they say of a call that failed.
pub(super) const NOBODY: &str = "no-such-service";
/// Requests at once: more than are ever wanted.
const REQUESTS: u32 = 100_000;
/// Weights of one priority have to fit 32 bits together; half of that leaves room for those raised to 1.
const MOST: u64 = 1 << 31;

/// Endpoints that share a weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Locality {
    /// Their cluster.
    pub(super) region: String,
    /// What else tells them from others of that cluster.
    pub(super) sub_zone: String,
    /// How much goes there, compared with others of the same priority.
    pub(super) weight: u64,
    pub(super) endpoints: Vec<(IpAddr, u16)>,
}

/// What a target is looked up by: the routes of `name`.
pub(super) fn listener(target: &str, name: &str) -> listener::Listener {
    use hcm::http_connection_manager::RouteSpecifier;
    let routes = RouteSpecifier::Rds(hcm::Rds { config_source: Some(ads()), route_config_name: name.to_owned() });
    listening(target, routes)
}

/// The answer to a target that nobody serves: a listener that leads to the empty cluster, so that every call fails at once, as
/// UNAVAILABLE, instead of after the time that a client waits for one that may come. It is replaced once there is one.
#[must_use]
pub fn nobody(kind: Kind, name: &str) -> Option<Arc<Resource>> {
    use hcm::http_connection_manager::RouteSpecifier;
    if kind != Kind::Listener {
        return None;
    }
    // A configuration without routes would do for two libraries; JavaScript's waits for one that has some.
    Some(Resource::new(kind, name, &listening(name, RouteSpecifier::RouteConfig(routes(NOBODY)))))
}

fn listening(name: &str, routes: hcm::http_connection_manager::RouteSpecifier) -> listener::Listener {
    let router = hcm::HttpFilter {
        name: "envoy.filters.http.router".to_owned(),
        config_type: Some(hcm::http_filter::ConfigType::TypedConfig(any(&router::Router::default()))),
        ..hcm::HttpFilter::default()
    };
    let manager = hcm::HttpConnectionManager {
        stat_prefix: name.to_owned(),
        route_specifier: Some(routes),
        http_filters: vec![router],
        ..hcm::HttpConnectionManager::default()
    };
    listener::Listener {
        name: name.to_owned(),
        api_listener: Some(listener::ApiListener { api_listener: Some(any(&manager)) }),
        ..listener::Listener::default()
    }
}

/// Everything goes to the one cluster.
pub(super) fn routes(name: &str) -> route::RouteConfiguration {
    route::RouteConfiguration { name: name.to_owned(), ..everything_to(name, "", None) }
}

/// Without outlier detection: an address stands for a whole cloud, and one bad pod would take it away.
pub(super) fn cluster(name: &str) -> cluster::Cluster {
    let thresholds = cluster::circuit_breakers::Thresholds {
        max_requests: number(REQUESTS),
        ..cluster::circuit_breakers::Thresholds::default()
    };
    cluster::Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(cluster::cluster::ClusterDiscoveryType::Type(
            cluster::cluster::DiscoveryType::Eds.into(),
        )),
        eds_cluster_config: Some(cluster::cluster::EdsClusterConfig {
            eds_config: Some(ads()),
            ..cluster::cluster::EdsClusterConfig::default()
        }),
        lb_policy: cluster::cluster::LbPolicy::RoundRobin.into(),
        circuit_breakers: Some(cluster::CircuitBreakers {
            thresholds: vec![thresholds],
            ..cluster::CircuitBreakers::default()
        }),
        ..cluster::Cluster::default()
    }
}

/// Endpoints by priority.
pub(super) fn assignment(name: &str, tiers: Vec<Vec<Locality>>) -> endpoint::ClusterLoadAssignment {
    let mut endpoints = Vec::new();
    for (priority, tier) in (0_u32..).zip(tiers) {
        let total: u64 = tier.iter().fold(0, |total, locality| total.saturating_add(locality.weight));
        endpoints.extend(tier.into_iter().map(|locality| localized(locality, priority, total)));
    }
    endpoint::ClusterLoadAssignment {
        cluster_name: name.to_owned(),
        endpoints,
        ..endpoint::ClusterLoadAssignment::default()
    }
}

fn localized(locality: Locality, priority: u32, total: u64) -> endpoint::LocalityLbEndpoints {
    let Locality { region, sub_zone, weight, endpoints } = locality;
    let endpoint = |(address, port): (IpAddr, u16)| endpoint::LbEndpoint {
        host_identifier: Some(endpoint::lb_endpoint::HostIdentifier::Endpoint(endpoint::Endpoint {
            address: Some(socket(&address.to_string(), port)),
            ..endpoint::Endpoint::default()
        })),
        health_status: core::HealthStatus::Healthy.into(),
        load_balancing_weight: number(1),
        ..endpoint::LbEndpoint::default()
    };
    endpoint::LocalityLbEndpoints {
        locality: Some(core::Locality { region, zone: String::new(), sub_zone }),
        lb_endpoints: endpoints.into_iter().map(endpoint).collect(),
        load_balancing_weight: number(scaled(weight, total)),
        priority,
        ..endpoint::LocalityLbEndpoints::default()
    }
}

fn scaled(weight: u64, total: u64) -> u32 {
    let part = u128::from(weight) * u128::from(MOST) / u128::from(total.max(1));
    let part = if total <= MOST { u128::from(weight) } else { part };
    u32::try_from(part).unwrap_or(u32::MAX).max(1)
}

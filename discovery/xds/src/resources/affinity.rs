//! Services whose clients stay with one endpoint (`sessionAffinity: ClientIP`): a ring of all endpoints, and a client's
//! place on it by its address, as at a virtual address without memory: an endpoint that comes or goes moves the clients
//! that it has, and no others.
//!
//! The address is the one that Envoy sees. To tell hosts apart where it is the same on all of them takes an object that
//! Envoy 1.36 cannot hash (`envoy.hashable_string`).

use eastway_model::{Import, SessionAffinity};
use eastway_proto::envoy::config::route::v3 as route;
use eastway_proto::envoy::google::protobuf;
use eastway_proto::envoy::r#type::v3 as types;

/// Whether clients of the service stay with one endpoint.
pub(super) fn is_sticky(import: &Import) -> bool {
    matches!(import.session_affinity, SessionAffinity::ClientIp { .. })
}

/// Chooses a connection's endpoint by its client.
pub(super) fn of_connection() -> types::HashPolicy {
    use types::hash_policy::{PolicySpecifier, SourceIp};
    types::HashPolicy { policy_specifier: Some(PolicySpecifier::SourceIp(SourceIp::default())) }
}

/// Chooses a request's endpoint by its client, and among weighted clusters the same one.
pub(super) fn of_request(action: &mut route::RouteAction) {
    use route::route_action::HashPolicy;
    use route::route_action::hash_policy::{ConnectionProperties, PolicySpecifier};
    use route::weighted_cluster::RandomValueSpecifier;
    let by = PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip: true });
    action.hash_policy = vec![HashPolicy { policy_specifier: Some(by), ..HashPolicy::default() }];
    if let Some(route::route_action::ClusterSpecifier::WeightedClusters(weighted)) = &mut action.cluster_specifier {
        let yes = protobuf::BoolValue { value: true };
        weighted.random_value_specifier = Some(RandomValueSpecifier::UseHashPolicy(yes));
    }
}

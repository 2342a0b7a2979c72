//! Rules as far as gRPC's libraries carry them out (gRFC A28): by path and headers to clusters by weight.

use eastway_model::ServicePort;
use eastway_model::rules::route::{Entry, PathMatch, RequestMatch};
use eastway_model::store::Snapshot;
use eastway_proto::envoy::config::route::v3 as route;
use route::route_action::ClusterSpecifier;
use route::route_match::PathSpecifier;

use super::parts::NOBODY;
use crate::resources::matching::request_match;
use crate::resources::parts::{for_all_hosts, number};
use crate::resources::subset::{NOWHERE, Weighted, weighted};

/// The routes of `name`. A call that none matches fails as UNAVAILABLE.
pub(super) fn routes(
    snapshot: &Snapshot,
    port: &ServicePort,
    name: &str,
    entries: &[&Entry],
) -> route::RouteConfiguration {
    let mut routes: Vec<route::Route> =
        entries.iter().filter(|entry| is_possible(entry)).map(|entry| of_entry(snapshot, port, entry)).collect();
    // The library of JavaScript waits for a configuration that has routes.
    if routes.is_empty() {
        routes.push(to(request_match(None), ClusterSpecifier::Cluster(NOBODY.to_owned())));
    }
    for_all_hosts(name, routes)
}

/// Whether a call of gRPC can match: it is a POST, and its path has no query.
fn is_possible(entry: &Entry) -> bool {
    let wanted = entry.request_match();
    wanted.is_none_or(|one| one.query.is_empty() && one.method.as_deref().is_none_or(|method| method == "POST"))
}

fn of_entry(snapshot: &Snapshot, port: &ServicePort, entry: &Entry) -> route::Route {
    // Every call is a POST, and the library has no such header.
    let wanted = entry.request_match().map(|one| RequestMatch { method: None, ..one.clone() });
    let mut matched = request_match(wanted.as_ref());
    if let Some(PathMatch::Prefix(prefix)) = wanted.as_ref().and_then(|one| one.path.as_ref()) {
        matched.path_specifier = Some(path(prefix));
    }
    let backends = entry.rule().map(|rule| rule.backends.as_slice()).unwrap_or_default();
    let references = backends.iter().map(|backend| &backend.reference);
    let all = references.zip(entry.weighted()).map(|(reference, (target, weight))| (reference, target, weight));
    to(matched, clusters(weighted(snapshot, port, all)))
}

/// Paths have two elements, service and method; the library knows texts that a path begins with, and whole paths.
fn path(prefix: &str) -> PathSpecifier {
    match prefix.matches('/').count() {
        _ if prefix == "/" => PathSpecifier::Prefix(prefix.to_owned()),
        1 => PathSpecifier::Prefix(format!("{prefix}/")),
        _ => PathSpecifier::Path(prefix.to_owned()),
    }
}

fn clusters(mut weighted: Vec<Weighted>) -> ClusterSpecifier {
    for one in &mut weighted {
        if one.name == NOWHERE {
            NOBODY.clone_into(&mut one.name);
        }
        // Failures on purpose are a sidecar's.
        if let Some(rest) = one.name.strip_prefix("fault|") {
            one.name = format!("outbound|{rest}");
        }
    }
    match weighted.as_slice() {
        [] => ClusterSpecifier::Cluster(NOBODY.to_owned()),
        [only] => ClusterSpecifier::Cluster(only.name.clone()),
        _ => {
            let clusters = weighted.into_iter().map(|one| route::weighted_cluster::ClusterWeight {
                name: one.name,
                weight: number(one.weight),
                ..route::weighted_cluster::ClusterWeight::default()
            });
            ClusterSpecifier::WeightedClusters(route::WeightedCluster {
                clusters: clusters.collect(),
                ..route::WeightedCluster::default()
            })
        }
    }
}

fn to(matched: route::RouteMatch, clusters: ClusterSpecifier) -> route::Route {
    let action = route::RouteAction { cluster_specifier: Some(clusters), ..route::RouteAction::default() };
    route::Route {
        r#match: Some(matched),
        action: Some(route::route::Action::Route(action)),
        ..route::Route::default()
    }
}

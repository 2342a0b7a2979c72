//! Where connections of a port of bytes go: by the name that TLS asks for, by weight, or all to one cluster.

use eastway_model::rules::route::{Entry, RouteKind};
use eastway_model::store::Snapshot;
use eastway_model::{Import, ServicePort};
use eastway_proto::envoy::config::listener::v3 as listener;
use eastway_proto::envoy::extensions::filters::listener::tls_inspector::v3 as inspector;
use eastway_proto::envoy::extensions::filters::network::tcp_proxy::v3 as tcp;
use tcp::tcp_proxy::ClusterSpecifier;

use super::parts::any;
use super::subset::{NOWHERE, Weighted, splits, weighted};

/// Connections, and the clusters that they go to.
pub(super) struct Chain {
    /// Only those that ask for one of these; empty: all.
    pub(super) server_names: Vec<String>,
    pub(super) clusters: ClusterSpecifier,
}

/// What a listener does. A port with TLSRoutes has nothing for who asks for another name: it is closed.
pub(super) fn chains(snapshot: &Snapshot, import: &Import, port: &ServicePort) -> Vec<Chain> {
    let chain = |server_names, weighted: Vec<Weighted>| Chain { server_names, clusters: clusters(weighted) };
    match import.routes.as_deref().and_then(|table| table.at(port)) {
        Some(routes) if routes.kind == RouteKind::Tls => {
            let mut taken: Vec<&str> = Vec::new();
            let mut chains = Vec::new();
            for entry in routes.entries {
                let names: Vec<&str> = entry.server_names().iter().map(AsRef::as_ref).collect();
                let new: Vec<&str> = names.into_iter().filter(|name| !taken.contains(name)).collect();
                taken.extend(&new);
                if !new.is_empty() {
                    let names = new.into_iter().map(str::to_owned).collect();
                    chains.push(chain(names, of_entry(snapshot, port, entry)));
                }
            }
            chains
        }
        Some(routes) => {
            let first = routes.entries.first().map(|entry| of_entry(snapshot, port, entry));
            vec![chain(Vec::new(), first.unwrap_or_default())]
        }
        None => vec![chain(Vec::new(), splits(snapshot, import, port))],
    }
}

fn of_entry(snapshot: &Snapshot, port: &ServicePort, entry: &Entry) -> Vec<Weighted> {
    let backends = entry.rule().map(|rule| rule.backends.as_slice()).unwrap_or_default();
    let references = backends.iter().map(|backend| &backend.reference);
    let all = references.zip(entry.weighted()).map(|(reference, (target, weight))| (reference, target, weight));
    weighted(snapshot, port, all)
}

fn clusters(weighted: Vec<Weighted>) -> ClusterSpecifier {
    use tcp::tcp_proxy::WeightedCluster;
    use tcp::tcp_proxy::weighted_cluster::ClusterWeight;
    match weighted.as_slice() {
        [] => ClusterSpecifier::Cluster(NOWHERE.to_owned()),
        [only] => ClusterSpecifier::Cluster(only.name.clone()),
        _ => {
            let clusters = weighted.into_iter().map(|Weighted { name, weight, .. }| ClusterWeight {
                name,
                weight,
                ..ClusterWeight::default()
            });
            ClusterSpecifier::WeightedClusters(WeightedCluster { clusters: clusters.collect() })
        }
    }
}

/// Reads the name that a TLS client asks for, and leaves the bytes as they are.
pub(super) fn tls_inspector() -> listener::ListenerFilter {
    let config_type = listener::listener_filter::ConfigType::TypedConfig(any(&inspector::TlsInspector::default()));
    listener::ListenerFilter {
        name: "envoy.filters.listener.tls_inspector".to_owned(),
        config_type: Some(config_type),
        ..listener::ListenerFilter::default()
    }
}

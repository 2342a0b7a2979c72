//! A headless import: each of its endpoints has an address and a name of its own, and behind that address there is a
//! cluster of exactly that endpoint. It is bytes to a sidecar, whatever they are: nothing is chosen.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use eastway_model::rules::SidecarPolicy;
use eastway_model::store::Snapshot;
use eastway_model::{AppProtocol, ClusterName, EndpointId, Import, Protocol, ServiceKey, ServicePort};
use eastway_proto::envoy::config::core::v3 as core;
use eastway_proto::envoy::config::listener::v3 as listener;
use eastway_proto::envoy::extensions::filters::network::tcp_proxy::v3 as tcp;

use super::assignment::assignment_of_one;
use super::capture::captured;
use super::connections::Chain;
use super::import::{BUFFER, bytes_chain, cluster};
use super::parts::{number, socket};
use super::{Generated, share_cluster_name, tls};
use crate::kind::Kind;
use crate::resource::Resource;

/// Addresses of endpoints of headless imports, by service.
pub type EndpointAddresses = BTreeMap<ServiceKey, OneByOne>;
/// Addresses of the endpoints of one import.
pub type OneByOne = BTreeMap<(ClusterName, EndpointId), Vec<IpAddr>>;

/// What is told of an import whose endpoints have these addresses.
pub(super) fn resources(
    snapshot: &Snapshot,
    import: &Import,
    endpoints: &OneByOne,
    trust_domain: &str,
) -> Vec<Generated> {
    let mut resources = Vec::new();
    for port in import.ports.iter().filter(|port| port.protocol == Protocol::Tcp) {
        let sockets = tls::matches(snapshot, import, port, trust_domain);
        for ((owner, id), addresses) in endpoints {
            let name = share_cluster_name(&import.key, port.number, &format!("endpoint.{id}_cluster.{owner}"));
            let Some(assignment) = assignment_of_one(snapshot, import, port, (owner, id), &name) else { continue };
            let mut cluster = cluster(&name, AppProtocol::Tcp, SidecarPolicy::default());
            // There is no other.
            cluster.outlier_detection = None;
            cluster.transport_socket_matches.clone_from(&sockets);
            resources.push((Kind::Cluster, Resource::new(Kind::Cluster, &name, &cluster)));
            resources.push((Kind::Endpoints, Resource::new(Kind::Endpoints, &name, &assignment)));
            for address in addresses {
                let listener = listener(*address, port, &name);
                resources.push((Kind::Listener, Resource::new(Kind::Listener, &listener.name, &listener)));
                resources.push(captured(listener));
            }
        }
    }
    resources
}

fn listener(address: IpAddr, port: &ServicePort, name: &str) -> listener::Listener {
    let clusters = tcp::tcp_proxy::ClusterSpecifier::Cluster(name.to_owned());
    let chain = bytes_chain(name, Chain { server_names: Vec::new(), clusters }, false);
    listener::Listener {
        name: SocketAddr::new(address, port.number.get()).to_string(),
        address: Some(socket(&address.to_string(), port.number.get())),
        filter_chains: vec![chain],
        traffic_direction: core::TrafficDirection::Outbound.into(),
        per_connection_buffer_limit_bytes: number(BUFFER),
        ..listener::Listener::default()
    }
}

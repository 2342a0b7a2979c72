//! Ports at which the name in TLS says what is wanted of a peer.

use std::net::SocketAddr;

use eastway_model::{ClusterName, Label};
use eastway_registry::yaml::{At, Context, List};

use super::SniSettings;
use super::convert::{parse_socket_addr, take};
use crate::config::file::SniSection;

/// `listen.sni`. `taken`: TCP listeners so far.
pub(super) fn sni(
    ports: &List<SniSection>,
    taken: &mut Vec<(SocketAddr, String)>,
    cx: &mut Context<'_>,
) -> Vec<SniSettings> {
    let mut found = Vec::new();
    for (index, item) in ports.items().enumerate() {
        let section = &item.value;
        let what = "the peer that stands for the other network";
        let cluster = cx.required_parse(item.at, "cluster", &section.cluster, what, ClusterName::parse);
        let what = "an address and a port, e.g. 0.0.0.0:15444";
        let address = cx.required_parse(item.at, "address", &section.address, what, parse_socket_addr);
        let network = section.network.get().and_then(|text| cx.parse(text, Label::parse));
        let (Some(cluster), Some(address)) = (cluster, address) else { continue };
        let at = section.address.get().map_or(item.at, |text| text.at);
        take(&At { value: address, at }, &format!("listen.sni[{index}]"), taken, cx);
        let network = network.unwrap_or_else(|| cluster.clone());
        found.push(SniSettings { cluster, network, address });
    }
    found
}

//! What the controller knows of Istio: by the configuration's ports for its sidecars, one for each peer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use eastway_kubernetes::controller::desired::Istio;
use eastway_kubernetes::controller::networks::{Network, Place};
use eastway_model::ServiceKey;

use crate::config::Settings;
use crate::config::settings::SniSettings;

/// `None`: it is not there, or knows of no other network.
pub(super) fn of(settings: &Settings) -> Option<Istio> {
    let (_, all) = ports(settings)?;
    let networks = all.into_iter().map(|network| (network.cluster, network.name)).collect();
    // Those that lead to one cluster have an address of their own.
    let rules = settings.dns.names.iter().filter(|rule| rule.cluster.is_none());
    let mut names: BTreeMap<ServiceKey, BTreeSet<Arc<str>>> = BTreeMap::new();
    for rule in rules {
        names.entry(rule.service.clone()).or_default().insert(Arc::clone(&rule.fqdn));
    }
    Some(Istio { networks, names })
}

/// Where istiod finds the ports, and which there are; `None`: as for [`of`].
pub(super) fn ports(settings: &Settings) -> Option<(Place, Vec<Network>)> {
    let service = settings.kubernetes.as_ref()?.istio_service.as_ref()?.to_string();
    let network = |port: &SniSettings| Network {
        name: port.network.clone(),
        cluster: port.cluster.clone(),
        port: port.address.port(),
    };
    let place = Place { namespace: settings.system_namespace().to_owned(), service };
    let all: Vec<Network> = settings.listen.sni.iter().map(network).collect();
    (!all.is_empty()).then_some((place, all))
}

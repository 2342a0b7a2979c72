//! What `eastway check` looks at where Istio is beside Eastway.

use eastway_model::store::Snapshot;
use eastway_model::{ClusterName, EndpointGroup, TlsMode};

use crate::config::{Loaded, Settings};

/// Clusters that ports for Istio's sidecars are for, and that are no peers.
pub(super) fn nobody(loaded: &Loaded) -> Vec<String> {
    let clusters = loaded.settings.listen.sni.iter().map(|port| &port.cluster);
    clusters.filter(|cluster| !loaded.peers.contains_key(*cluster)).map(ToString::to_string).collect()
}

/// Services of a peer that is a network of Istio's, with endpoints that istiod is not told of.
pub(super) fn plain(settings: &Settings, snapshot: &Snapshot, peer: &ClusterName) -> Vec<String> {
    if settings.istio().is_none() || !settings.listen.sni.iter().any(|port| port.cluster == *peer) {
        return Vec::new();
    }
    let parts = snapshot.imports().filter_map(|import| Some((&import.key, import.part(Some(peer))?)));
    let untold = parts.filter(|(_, part)| part.record.groups.iter().any(is_untold));
    untold.map(|(key, _)| key.to_string()).collect()
}

fn is_untold(group: &EndpointGroup) -> bool {
    let speaks = matches!(group.tls, TlsMode::Istio | TlsMode::IstioStrict);
    group.ready > 0 && (!speaks || group.identities.is_empty())
}

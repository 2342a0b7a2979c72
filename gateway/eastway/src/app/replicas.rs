//! The other gateways of this cluster: who may be one is what the configuration says now.

use std::net::SocketAddr;
use std::sync::Arc;

use eastway_tunnel::ReplicaNetwork;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::app::Gateway;
use crate::config::Loaded;

/// What the tunnel needs to find the others; `None`: there are none.
#[must_use]
pub fn network(gateway: &Gateway, siblings: &watch::Sender<Arc<[SocketAddr]>>) -> Option<ReplicaNetwork> {
    let listen = gateway.settings.replicas.as_ref()?.listen;
    siblings.send_replace(configured(&gateway.configuration.loaded.borrow()));
    Some(ReplicaNetwork { listen, siblings: siblings.subscribe() })
}

/// Keeps `siblings` as configured, until `end`.
pub async fn follow(
    mut loaded: watch::Receiver<Arc<Loaded>>,
    siblings: watch::Sender<Arc<[SocketAddr]>>,
    end: CancellationToken,
) {
    while let Some(Ok(())) = end.run_until_cancelled(loaded.changed()).await {
        let new = configured(&loaded.borrow_and_update());
        siblings.send_if_modified(|current| {
            let changed = *current != new;
            *current = new;
            changed
        });
    }
}

fn configured(loaded: &Loaded) -> Arc<[SocketAddr]> {
    loaded.settings.replicas.as_ref().map(|replicas| replicas.siblings.clone()).unwrap_or_default().into()
}

//! The other gateways of this cluster: who may be one is what the configuration says now, and in Kubernetes also the
//! pods of the gateways' Service.

use std::net::SocketAddr;
use std::sync::Arc;

use eastway_kubernetes::siblings::{self, Gateways};
use eastway_tunnel::ReplicaNetwork;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::adapters;
use crate::app::Gateway;
use crate::config::{Loaded, Settings};

/// What the tunnel needs to find the others; `None`: there are none.
#[must_use]
pub fn network(gateway: &Gateway, siblings: &watch::Sender<Arc<[SocketAddr]>>) -> Option<ReplicaNetwork> {
    let listen = gateway.settings.replicas.as_ref()?.listen;
    siblings.send_replace(configured(&gateway.configuration.loaded.borrow()));
    Some(ReplicaNetwork { listen, siblings: siblings.subscribe() })
}

/// Keeps `siblings` as configured and as found in Kubernetes, until `end`.
pub async fn follow(
    mut loaded: watch::Receiver<Arc<Loaded>>,
    siblings: watch::Sender<Arc<[SocketAddr]>>,
    end: CancellationToken,
) {
    let (sender, mut found) = watch::channel(Arc::default());
    let settings = loaded.borrow().settings.clone();
    let find = find(settings, sender, end.clone());
    let keep = async {
        loop {
            tokio::select! {
                changed = loaded.changed() => if changed.is_err() { return },
                changed = found.changed() => if changed.is_err() { return },
            }
            let mut all = configured(&loaded.borrow_and_update()).to_vec();
            all.extend(found.borrow_and_update().iter());
            all.sort_unstable();
            all.dedup();
            siblings.send_if_modified(|current| {
                let changed = **current != *all;
                *current = all.into();
                changed
            });
        }
    };
    tokio::select! {
        () = find => {}
        () = keep => {}
        () = end.cancelled() => {}
    }
}

/// Tells the pods of the gateways' Service until `end`; outside Kubernetes there is nothing to tell.
async fn find(settings: Arc<Settings>, found: watch::Sender<Arc<[SocketAddr]>>, end: CancellationToken) {
    let (Some(kubernetes), Some(replicas)) = (&settings.kubernetes, &settings.replicas) else {
        return end.cancelled().await;
    };
    let gateways = Gateways {
        namespace: kubernetes.namespace.to_string(),
        service: kubernetes.service.to_string(),
        port: replicas.listen.port(),
    };
    let access = adapters::kubernetes_access(Some(&kubernetes.access));
    // The other users of the same API server say so, too, and try again with the next start.
    if let Err(error) = siblings::run(&access, &gateways, found, end.clone()).await {
        error!(%error, "the other gateways of this cluster cannot be found");
    }
    end.cancelled().await;
}

fn configured(loaded: &Loaded) -> Arc<[SocketAddr]> {
    loaded.settings.replicas.as_ref().map(|replicas| replicas.siblings.clone()).unwrap_or_default().into()
}

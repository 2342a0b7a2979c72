//! The ports for Istio's sidecars, in their place among what the gateway does.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use eastway_kubernetes::client::Access;
use eastway_kubernetes::subsets;
use eastway_model::rules::route::Subsets;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use super::Running;
use super::addresses::CLIENT_PAUSE;
use crate::adapters;
use crate::config::Settings;
use crate::proxy::sni::{Leaving, SniListener, SniPorts};

/// A port cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("listen.sni: cannot listen on {address}: {source}")]
pub struct BindError {
    address: SocketAddr,
    #[source]
    source: io::Error,
}

/// Binds those that are configured.
pub(super) fn bind(settings: &Settings) -> Result<Vec<SniListener>, BindError> {
    let ports = settings.listen.sni.iter().map(|port| {
        let failed = |source| BindError { address: port.address, source };
        SniListener::bind(port.cluster.clone(), port.address).map_err(failed)
    });
    ports.collect()
}

/// Follows what Istio's DestinationRules call a subset, until `end`.
async fn follow(access: Access, told: watch::Sender<Arc<Subsets>>, end: CancellationToken) {
    loop {
        match subsets::follow(&access, told.clone(), end.clone()).await {
            Ok(()) => return,
            Err(error) => warn!(%error, "subsets of Istio cannot be read from the API server; trying again"),
        }
        if end.run_until_cancelled(tokio::time::sleep(CLIENT_PAUSE)).await.is_none() {
            return;
        }
    }
}

/// Serves them. A drain waits for `connections`.
pub(super) fn serve(running: &Running, listeners: Vec<SniListener>, connections: &TaskTracker) {
    let (router, settings) = (running.gateway.router.clone(), &running.gateway.settings);
    let (told, known) = watch::channel(Arc::new(Subsets::new()));
    if let Some(kubernetes) = settings.kubernetes.as_ref().filter(|_| settings.istio().is_some()) {
        let access = adapters::kubernetes_access(Some(&kubernetes.access));
        running.spawn("subsets of Istio", follow(access, told, running.end.clone()));
    }
    let leaving = Leaving { told: running.leaving.clone(), drain: settings.link.drain };
    let ports = SniPorts::new(router, known, connections.clone(), leaving, super::file_descriptors());
    for listener in listeners {
        running.spawn("SNI port", ports.clone().accept(listener, running.accepting.clone()));
    }
}

//! The port for sidecars, in its place among what the gateway does.

use std::sync::Arc;

use eastway_identity::local::Wanted;
use tokio_util::task::TaskTracker;
use tracing::error;

use super::Running;
use crate::config::Settings;
use crate::local::listener::{BindError, LocalListener};
use crate::proxy::hbone::{self, Shared, Stages};

/// Binds it, if it is configured.
pub(super) async fn bind(settings: &Settings) -> Result<Option<LocalListener>, BindError> {
    let Some(address) = settings.listen.hbone else { return Ok(None) };
    let listener = LocalListener::bind("listen.hbone", address).await?;
    Ok(Some(listener.with_limits(hbone::limits(super::file_descriptors()))))
}

/// Serves the workloads of this cluster. A drain waits for `connections`.
pub(super) fn serve(running: &Running, listener: Option<LocalListener>, connections: &TaskTracker) {
    let gateway = &running.gateway;
    let (Some(listener), Some(identity)) = (listener, gateway.identity.get()) else { return };
    let settings = &gateway.settings;
    let listener = listener.with_revoked(gateway.revoked.subscribe());
    let workloads =
        Wanted::Workloads { trust_domain: settings.trust.domain.clone(), but: Arc::from(settings.system_namespace()) };
    let stages = Stages { drain: running.stop.clone(), accepting: running.accepting.clone(), end: running.end.clone() };
    let (identity, connections) = (identity.clone(), connections.clone());
    let (router, held, renewals) = (gateway.router.clone(), gateway.tunnels.clone(), gateway.renewals.clone());
    let shared = Shared { router, held, renewals, revoked: gateway.revoked.subscribe() };
    running.spawn("sidecar port", async move {
        if let Err(error) = hbone::serve(listener, shared, identity, workloads, connections, stages).await {
            error!(%error, "sidecars are not served");
        }
    });
}

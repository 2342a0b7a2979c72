//! The ports for Istio's sidecars, in their place among what the gateway does.

use std::io;
use std::net::SocketAddr;

use tokio_util::task::TaskTracker;

use super::Running;
use crate::config::Settings;
use crate::proxy::sni::{SniListener, SniPorts};

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

/// Serves them. A drain waits for `connections`.
pub(super) fn serve(running: &Running, listeners: Vec<SniListener>, connections: &TaskTracker) {
    let router = running.gateway.router.clone();
    let ports = SniPorts::new(router, connections.clone(), super::file_descriptors());
    for listener in listeners {
        running.spawn("SNI port", ports.clone().accept(listener, running.accepting.clone()));
    }
}

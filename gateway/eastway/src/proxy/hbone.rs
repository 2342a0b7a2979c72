//! HBONE: HTTP/2 CONNECT over mutual TLS, by which sidecars of this cluster reach services, and single endpoints of
//! them, through this gateway.
//!
//! - `authority`: what a sidecar asks for.
//! - `session`: one connection of a sidecar, and what becomes of the requests on it.
//! - `tunnel`: one request that was granted, to its end.
//! - `body`: the two directions of its stream.
//! - [`held`]: what all of them hold in memory.
//! - [`renewals`]: which sidecars have renewed their certificates.
//!
//! It is `h2` itself and not hyper: of an upgraded stream hyper hides how its directions end and are reset, and copies
//! what it carries.

pub mod authority;
mod body;
pub mod held;
pub mod renewals;
mod session;
mod tunnel;

use std::collections::BTreeSet;
use std::sync::Arc;

use eastway_identity::local::{ClientAuth, LocalTrust, Wanted, anchors_of, server_config};
use eastway_identity::{IdentityStore, system_clock};
use tokio::sync::watch;
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::local::listener::{ConnectionLimits, LocalListener};
use crate::router::Router;
use held::Held;
use renewals::Renewals;
use session::Session;

/// Connections of one address: each carries [`session::MAX_STREAMS`] tunnels, and outside of Kubernetes the sidecars of
/// a host share its address.
const CONNECTIONS_EACH: usize = 64;
/// Most connections of all, whatever the machine allows.
const MAX_CONNECTIONS: usize = 8_192;

/// Connections that sidecars may have at once: a share of a limit on file descriptors, as tunnels to endpoints of this
/// cluster and everything else need theirs.
#[must_use]
pub fn limits(file_descriptors: u64) -> ConnectionLimits {
    let all = usize::try_from(file_descriptors / 8).unwrap_or(usize::MAX).clamp(64, MAX_CONNECTIONS);
    ConnectionLimits { all, each: CONNECTIONS_EACH }
}

/// When a server does what.
#[derive(Clone, Debug)]
pub struct Stages {
    /// Connections are told to open no more tunnels.
    pub drain: CancellationToken,
    /// No connection is accepted any more.
    pub accepting: CancellationToken,
    /// Connections end, with what they carry.
    pub end: CancellationToken,
}

/// What connections have in common with the rest of the gateway.
#[derive(Clone)]
pub struct Shared {
    /// Where tunnels go.
    pub router: Arc<Router>,
    /// What they hold.
    pub held: Arc<Held>,
    /// Who has renewed its certificate.
    pub renewals: Arc<Renewals>,
    /// Serial numbers of revoked certificates.
    pub revoked: watch::Receiver<Arc<BTreeSet<String>>>,
}

/// Serves `workloads` until the stages are over. `connections` counts connections and tunnels, to wait for in a drain:
/// what a tunnel said last is sent only when its connection has ended.
///
/// # Errors
/// TLS cannot be set up.
pub async fn serve(
    listener: LocalListener,
    shared: Shared,
    identity: Arc<IdentityStore>,
    workloads: Wanted,
    connections: TaskTracker,
    stages: Stages,
) -> Result<(), rustls::Error> {
    let trust = LocalTrust::new(anchors_of(Arc::clone(&identity)), workloads);
    let tls = server_config(identity, trust.clone(), ClientAuth::Required, system_clock())?;
    let refusals = Arc::clone(&shared.router.telemetry.refusals);
    let (accepted, accept) = listener.accept(tls, trust, refusals, stages.accepting.clone());
    let mut accepted = accepted.filter_map(Result::ok);
    let sessions = TaskTracker::new();
    let serving = async {
        while let Some(io) = accepted.next().await {
            let session = Session::new(io, shared.clone(), connections.clone(), stages.drain.clone());
            if let Some(session) = session {
                let (end, counted) = (stages.end.clone(), connections.token());
                sessions.spawn(async move {
                    // Told to end or ended by itself.
                    let _ended: Option<()> = end.run_until_cancelled(session.run()).await;
                    drop(counted);
                });
            }
        }
        sessions.close();
        sessions.wait().await;
    };
    tokio::join!(accept, serving);
    Ok(())
}

//! What a tunnel asks of the world outside, and what it tells it: the time, the addresses of names, events.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use eastway_identity::{Clock, system_clock};

use crate::config::HostPort;
use crate::events::Observer;
use crate::transport::BoxFuture;

/// Looks the addresses of a peer up. Called anew for each dial.
pub type Resolver = Arc<dyn Fn(HostPort) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync>;

/// The world outside. [`World::default`] is the real one.
#[derive(Clone)]
pub struct World {
    /// The wall clock: certificates are judged by it.
    pub clock: Clock,
    /// Addresses of names.
    pub resolver: Resolver,
    /// Told what happens to links.
    pub observer: Arc<dyn Observer>,
}

impl Default for World {
    fn default() -> Self {
        Self { clock: system_clock(), resolver: system_resolver(), observer: Arc::new(()) }
    }
}

fn system_resolver() -> Resolver {
    Arc::new(|address: HostPort| {
        Box::pin(async move {
            let found = tokio::net::lookup_host((&*address.host, address.port)).await?;
            Ok(found.collect())
        })
    })
}

//! What an operator is told of a peer that refuses.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use eastway_identity::IdentityStore;
use eastway_tunnel::transport::memory::MemoryNetwork;
use eastway_tunnel::transport::{
    BoxFuture, CloseReason, Connection, DialError, Established, ExporterError, Halves, Lost, PathStats, Side, Transport,
};
use eastway_tunnel::{CloseCode, FailureCause, HostPort, PeerTarget, TransportKind, Tunnel};

use crate::support::{ByName, pair, until};

/// Its connections are refused by the other side before they can be used.
struct Refused {
    inner: Arc<dyn Transport>,
    dials: Arc<AtomicUsize>,
}

impl Transport for Refused {
    fn kind(&self) -> TransportKind {
        self.inner.kind()
    }

    fn local_addr(&self) -> SocketAddr {
        self.inner.local_addr()
    }

    fn dial(&self, peer: Arc<str>, remote: SocketAddr) -> BoxFuture<'static, Result<Established, DialError>> {
        let (dial, dials) = (self.inner.dial(peer, remote), Arc::clone(&self.dials));
        Box::pin(async move {
            let established = dial.await?;
            dials.fetch_add(1, Ordering::Relaxed);
            Ok(Established { connection: Arc::new(Gone(established.connection)), ..established })
        })
    }

    fn accept(&self) -> BoxFuture<'_, Option<Established>> {
        self.inner.accept()
    }

    fn handshake_failures(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.inner.close()
    }
}

/// A connection that the other side has closed.
struct Gone(Arc<dyn Connection>);

impl Connection for Gone {
    fn kind(&self) -> TransportKind {
        self.0.kind()
    }

    fn side(&self) -> Side {
        self.0.side()
    }

    fn remote_addr(&self) -> SocketAddr {
        self.0.remote_addr()
    }

    fn open(&self) -> BoxFuture<'_, Result<Halves, Lost>> {
        Box::pin(std::future::ready(Err(Lost)))
    }

    fn accept(&self) -> BoxFuture<'_, Result<Halves, Lost>> {
        Box::pin(std::future::ready(Err(Lost)))
    }

    fn export(&self, label: &[u8]) -> Result<[u8; 32], ExporterError> {
        self.0.export(label)
    }

    fn close(&self, code: CloseCode, reason: &str) {
        self.0.close(code, reason);
    }

    fn closed(&self) -> BoxFuture<'_, CloseReason> {
        let message = "NOT_PINNED: your key is not pinned".to_owned();
        Box::pin(std::future::ready(CloseReason::Remote { code: CloseCode::PeerIdentityConflict, message }))
    }

    fn path(&self) -> PathStats {
        self.0.path()
    }

    fn set_receive_window(&self, bytes: u64) {
        self.0.set_receive_window(bytes);
    }

    fn set_send_window(&self, bytes: u64) {
        self.0.set_send_window(bytes);
    }

    fn set_max_streams(&self, streams: u32) {
        self.0.set_max_streams(streams);
    }
}

/// The refusal may come before the first stream is opened: it is the reason all the same, each time.
#[tokio::test(start_paused = true)]
async fn a_refusal_is_told_however_early_it_comes() {
    let (a, b) = pair();
    let network = MemoryNetwork::new(Duration::from_millis(20), Duration::from_secs(4));
    let (here, there) = (SocketAddr::from(([10, 0, 0, 1], 15_443)), SocketAddr::from(([10, 0, 0, 2], 15_443)));
    let _right = b.gateway_in(&network, there);
    let identity = IdentityStore::new(a.identity());
    let (trust, clock) = (Arc::clone(&a.trust), Arc::clone(&a.world.clock));
    let inner = network.transport(here, Arc::clone(&identity), Arc::clone(&trust), clock);
    let dials = Arc::new(AtomicUsize::new(0));
    let transport = Arc::new(Refused { inner, dials: Arc::clone(&dials) });
    let config = a.config(here);
    let tunnel = Tunnel::with_transport(a.world.clone(), config, identity, trust, Arc::new(ByName), transport);
    tunnel.set_peers(vec![PeerTarget {
        name: "b".into(),
        addresses: vec![HostPort::from(there)],
        ..PeerTarget::default()
    }]);
    // Of a coin that is tossed, no twenty tosses are alike.
    for dial in 1..=20 {
        until("another dial", || (dials.load(Ordering::Relaxed) >= dial).then_some(())).await;
        let address = until("its outcome", || {
            let address = tunnel.status().remove(0).addresses.remove(0);
            (usize::try_from(address.failures).unwrap() >= dial).then_some(address)
        });
        let address = address.await;
        assert_eq!(address.cause, Some(FailureCause::RefusedUs), "dial {dial}: {:?}", address.last_error);
        assert!(address.last_error.unwrap().contains("NOT_PINNED"));
    }
}

//! Connections as the traits of [`crate::transport`] have them.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use quinn_proto::{ConnectionClose, ConnectionError, Dir, VarInt};
use tokio::runtime::Handle;

use super::drive::Conn;
use super::lanes::Lanes;
use super::stream::halves;
use crate::code::CloseCode;
use crate::control::printable;
use crate::replicas::network::Network;
use crate::replicas::paths::is_path;
use crate::transport::{
    BoxFuture, CloseReason, Connection, DATAGRAMS_AT_ONCE, DatagramRefused, ExporterError, Halves, Lost, PathStats,
    Side, Take, TransportKind,
};

/// A connection that ends when nobody holds it any more.
pub(super) struct Held(pub(super) Arc<Conn>);

impl Drop for Held {
    fn drop(&mut self) {
        if self.0.lock().error.is_none() {
            self.0.close(CloseCode::Done, "");
        }
    }
}

/// A QUIC connection.
pub(super) struct QuicConnection {
    /// The first, whose end is the end of all.
    conn: Held,
    lanes: Lanes,
    side: Side,
    peer: Arc<str>,
    windows: Mutex<Windows>,
    /// Knows where the other side is if its packets come by way of another replica.
    network: Option<Arc<Network>>,
    /// How often it changed its port: see [`hop`](super::hop).
    hops: Arc<AtomicU64>,
}

/// What lanes of a link share, or all have.
#[derive(Clone, Copy)]
struct Windows {
    /// What the link may hold for streams that move; the rest is for those that do not.
    moving: u64,
    receive: Option<u64>,
    send: Option<u64>,
    streams: Option<u32>,
}

impl Windows {
    /// Streams that do not move may all be on one lane.
    fn apply(&self, lane: &Conn, lanes: u64) {
        let receive = self.receive.unwrap_or(self.moving);
        let share = receive.min(self.moving) / lanes.max(1) + receive.saturating_sub(self.moving);
        lane.change(|conn| {
            conn.set_receive_window(VarInt::from_u64(share).unwrap_or(VarInt::MAX));
            if let Some(bytes) = self.send {
                conn.set_send_window(bytes);
            }
            if let Some(streams) = self.streams {
                conn.set_max_concurrent_streams(Dir::Bi, VarInt::from_u32(streams));
            }
        });
    }
}

impl QuicConnection {
    /// `window`: what the link may hold for streams that move.
    pub(super) fn new(
        conn: Held,
        side: Side,
        peer: Arc<str>,
        window: u64,
        network: Option<Arc<Network>>,
        hops: Arc<AtomicU64>,
    ) -> Self {
        let windows = Windows { moving: window, receive: None, send: None, streams: None };
        Self { conn, lanes: Lanes::new(), side, peer, windows: Mutex::new(windows), network, hops }
    }

    fn conn(&self) -> &Arc<Conn> {
        &self.conn.0
    }

    pub(super) fn first(&self) -> &Arc<Conn> {
        self.conn()
    }

    pub(super) fn peer(&self) -> &Arc<str> {
        &self.peer
    }

    pub(super) fn hops(&self) -> &Arc<AtomicU64> {
        &self.hops
    }

    pub(super) fn lanes(&self) -> &Lanes {
        &self.lanes
    }

    /// `false`: there are enough.
    pub(super) fn add_lane(&self, lane: &Arc<Conn>) -> bool {
        let added = self.lanes.add(lane);
        self.share(|_| {});
        added
    }

    pub(super) fn remove_lane(&self, lane: &Arc<Conn>) {
        self.lanes.remove(lane);
        self.share(|_| {});
    }

    /// Changes what lanes share, and gives each its share.
    fn share(&self, change: impl FnOnce(&mut Windows)) {
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut windows);
        let others = self.lanes.others();
        for lane in others.iter().chain([self.conn()]) {
            windows.apply(lane, others.len() as u64 + 1);
        }
    }

    fn reason(&self, error: ConnectionError) -> CloseReason {
        use ConnectionError as E;
        match error {
            E::ApplicationClosed(close) => CloseReason::Remote {
                code: CloseCode::from_wire(close.error_code.into_inner()),
                message: printable(&String::from_utf8_lossy(&close.reason)),
            },
            E::ConnectionClosed(close) if is_alert(&close) => CloseReason::RefusedUs(words(&close)),
            E::ConnectionClosed(close) => CloseReason::Transport(printable(&close.to_string())),
            E::Reset => CloseReason::Reset,
            E::TimedOut => CloseReason::Silent,
            E::LocallyClosed => {
                let unknown = || (CloseCode::Done, "shutting down".to_owned());
                let (code, message) = self.conn().local_reason().unwrap_or_else(unknown);
                CloseReason::Local { code, message }
            }
            error @ (E::VersionMismatch | E::TransportError(_) | E::CidsExhausted) => {
                CloseReason::Transport(printable(&error.to_string()))
            }
        }
    }
}

impl Connection for QuicConnection {
    fn kind(&self) -> TransportKind {
        TransportKind::Quic
    }

    fn side(&self) -> Side {
        self.side
    }

    fn remote_addr(&self) -> SocketAddr {
        let address = self.conn().remote_address();
        let network = self.network.as_ref().filter(|_| is_path(&address));
        canonical(network.and_then(|network| network.client(address)).unwrap_or(address))
    }

    fn open(&self) -> BoxFuture<'_, Result<Halves, Lost>> {
        Box::pin(async {
            let lane = self.lanes.pick(self.conn());
            if !Arc::ptr_eq(&lane, self.conn())
                && let Ok(id) = lane.open().await
            {
                return Ok(halves(&lane, id));
            }
            // A lane that has just ended is no reason to open none.
            self.conn().open().await.map(|id| halves(self.conn(), id)).map_err(|_| Lost)
        })
    }

    fn accept(&self) -> BoxFuture<'_, Result<Halves, Lost>> {
        Box::pin(async { self.conn().accept().await.map(|id| halves(self.conn(), id)).map_err(|_| Lost) })
    }

    fn serve(self: Arc<Self>, take: Take) -> BoxFuture<'static, ()> {
        self.lanes.serve(&take);
        Box::pin(async move {
            while let Ok(halves) = self.accept().await {
                take(halves);
            }
        })
    }

    fn home(&self) -> Option<Handle> {
        Some(self.conn().home.clone())
    }

    fn export(&self, label: &[u8]) -> Result<[u8; 32], ExporterError> {
        let mut out = [0; 32];
        let state = self.conn().lock();
        state.inner.crypto_session().export_keying_material(&mut out, label, &[]).map_err(|_| ExporterError)?;
        Ok(out)
    }

    fn max_datagram(&self) -> Option<usize> {
        self.conn().lock().inner.datagrams().max_size()
    }

    fn send_datagram(&self, datagram: Bytes) -> Result<(), DatagramRefused> {
        self.conn().send_datagram(&datagram)
    }

    fn send_datagrams(&self, datagrams: &mut Vec<Bytes>) {
        self.conn().send_datagrams(datagrams);
    }

    fn read_datagrams<'a>(&'a self, datagrams: &'a mut Vec<Bytes>) -> BoxFuture<'a, Result<(), Lost>> {
        Box::pin(async {
            let mut read = self.conn().read_datagrams(DATAGRAMS_AT_ONCE).await.map_err(|_| Lost)?;
            datagrams.append(&mut read);
            Ok(())
        })
    }

    fn close(&self, code: CloseCode, reason: &str) {
        self.conn().close(code, reason);
        for lane in self.lanes.others().iter() {
            lane.close(code, reason);
        }
    }

    fn closed(&self) -> BoxFuture<'_, CloseReason> {
        Box::pin(async { self.reason(self.conn().closed().await) })
    }

    fn path(&self) -> PathStats {
        let stats = self.conn().stats();
        let mut path = PathStats {
            rtt: stats.path.rtt,
            mtu: stats.path.current_mtu,
            hops: self.hops.load(Ordering::Relaxed),
            repeated_packets: self.conn().repeated(),
            dropped_datagrams: self.conn().dropped_datagrams(),
            ..PathStats::default()
        };
        let others = self.lanes.others();
        path.lanes = u16::try_from(others.len()).unwrap_or(u16::MAX);
        path.repeated_packets += others.iter().map(|lane| lane.repeated()).sum::<u64>();
        for stats in others.iter().map(|lane| lane.stats()).chain([stats]) {
            path.congestion_window = path.congestion_window.saturating_add(stats.path.cwnd);
            path.sent_packets += stats.path.sent_packets;
            path.lost_packets += stats.path.lost_packets;
            path.sent_bytes += stats.udp_tx.bytes;
            path.received_bytes += stats.udp_rx.bytes;
        }
        path
    }

    fn rtt(&self) -> Duration {
        self.conn().rtt()
    }

    fn set_receive_window(&self, bytes: u64) {
        self.share(|windows| windows.receive = Some(bytes));
    }

    fn set_send_window(&self, bytes: u64) {
        self.share(|windows| windows.send = Some(bytes));
    }

    fn set_max_streams(&self, streams: u32) {
        self.share(|windows| windows.streams = Some(streams));
    }
}

/// Whether the other side closed by an alert of TLS (RFC 9001 §4.8).
pub(super) fn is_alert(close: &ConnectionClose) -> bool {
    (0x100..0x200).contains(&u64::from(close.error_code))
}

/// What the other side says about it, and if it says nothing, the number of its alert.
pub(super) fn words(close: &ConnectionClose) -> String {
    if close.reason.is_empty() {
        return close.to_string();
    }
    let reason = String::from_utf8_lossy(&close.reason);
    // A gateway's own words, inside those of rustls.
    let own = reason.strip_prefix("invalid peer certificate: Other(OtherError(").and_then(|own| own.strip_suffix("))"));
    printable(own.unwrap_or(&reason))
}

/// An IPv4 address as such, also when the socket is an IPv6 one.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

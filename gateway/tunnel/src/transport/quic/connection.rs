//! quinn's connections and streams as the traits of [`crate::transport`].

use std::future::Future;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use futures_util::FutureExt;
use quinn::{ReadError, ResetError, SendDatagramError, StoppedError, VarInt, WriteError};

use crate::code::{CloseCode, ResetCode};
use crate::control::printable;
use crate::replicas::network::Network;
use crate::replicas::paths::is_path;
use crate::transport::{
    BoxFuture, CloseReason, Connection, DATAGRAMS_AT_ONCE, DatagramRefused, ExporterError, Halves, Lost, PathStats,
    RecvStream, SendStream, Side, StreamError, TransportKind,
};

/// A quinn connection.
pub(super) struct QuicConnection {
    inner: quinn::Connection,
    side: Side,
    /// Knows where the other side is if its packets come by way of another replica.
    network: Option<Arc<Network>>,
    /// How often it changed its port: see [`hop`](super::hop).
    hops: Arc<AtomicU64>,
    /// Datagrams that made room for later ones.
    dropped_datagrams: AtomicU64,
    /// Why this side closed it.
    closed: Mutex<Option<CloseReason>>,
}

impl QuicConnection {
    pub(super) fn new(
        inner: quinn::Connection,
        side: Side,
        network: Option<Arc<Network>>,
        hops: Arc<AtomicU64>,
    ) -> Self {
        Self { inner, side, network, hops, dropped_datagrams: AtomicU64::new(0), closed: Mutex::new(None) }
    }

    fn reason(&self, error: quinn::ConnectionError) -> CloseReason {
        use quinn::ConnectionError as E;
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
                let closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let unknown = || CloseReason::Local { code: CloseCode::Done, message: "shutting down".to_owned() };
                closed.unwrap_or_else(unknown)
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
        let address = self.inner.remote_address();
        let network = self.network.as_ref().filter(|_| is_path(&address));
        canonical(network.and_then(|network| network.client(address)).unwrap_or(address))
    }

    fn open(&self) -> BoxFuture<'_, Result<Halves, Lost>> {
        Box::pin(async { self.inner.open_bi().await.map(halves).map_err(|_| Lost) })
    }

    fn accept(&self) -> BoxFuture<'_, Result<Halves, Lost>> {
        Box::pin(async { self.inner.accept_bi().await.map(halves).map_err(|_| Lost) })
    }

    fn export(&self, label: &[u8]) -> Result<[u8; 32], ExporterError> {
        let mut out = [0; 32];
        self.inner.export_keying_material(&mut out, label, &[]).map_err(|_| ExporterError)?;
        Ok(out)
    }

    fn max_datagram(&self) -> Option<usize> {
        self.inner.max_datagram_size()
    }

    fn send_datagram(&self, datagram: Bytes) -> Result<(), DatagramRefused> {
        // quinn does not tell what it drops.
        if self.inner.datagram_send_buffer_space() < datagram.len() {
            self.dropped_datagrams.fetch_add(1, Ordering::Relaxed);
        }
        self.inner.send_datagram(datagram).map_err(|error| match error {
            SendDatagramError::TooLarge => DatagramRefused::TooLong,
            SendDatagramError::UnsupportedByPeer | SendDatagramError::Disabled => DatagramRefused::Unsupported,
            SendDatagramError::ConnectionLost(_) => DatagramRefused::Lost,
        })
    }

    fn read_datagrams<'a>(&'a self, datagrams: &'a mut Vec<Bytes>) -> BoxFuture<'a, Result<(), Lost>> {
        Box::pin(async {
            datagrams.push(self.inner.read_datagram().await.map_err(|_| Lost)?);
            for _ in 1..DATAGRAMS_AT_ONCE {
                let Some(Ok(datagram)) = self.inner.read_datagram().now_or_never() else { break };
                datagrams.push(datagram);
            }
            Ok(())
        })
    }

    fn close(&self, code: CloseCode, reason: &str) {
        let mut closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        if closed.is_none() {
            *closed = Some(CloseReason::Local { code, message: reason.to_owned() });
        }
        drop(closed);
        self.inner.close(VarInt::from_u32(code.to_wire()), reason.as_bytes());
    }

    fn closed(&self) -> BoxFuture<'_, CloseReason> {
        Box::pin(async { self.reason(self.inner.closed().await) })
    }

    fn path(&self) -> PathStats {
        let stats = self.inner.stats();
        PathStats {
            rtt: stats.path.rtt,
            congestion_window: stats.path.cwnd,
            sent_packets: stats.path.sent_packets,
            lost_packets: stats.path.lost_packets,
            sent_bytes: stats.udp_tx.bytes,
            received_bytes: stats.udp_rx.bytes,
            mtu: stats.path.current_mtu,
            hops: self.hops.load(Ordering::Relaxed),
            dropped_datagrams: self.dropped_datagrams.load(Ordering::Relaxed),
        }
    }

    fn rtt(&self) -> std::time::Duration {
        self.inner.rtt()
    }

    fn set_receive_window(&self, bytes: u64) {
        self.inner.set_receive_window(VarInt::from_u64(bytes).unwrap_or(VarInt::MAX));
    }

    fn set_send_window(&self, bytes: u64) {
        self.inner.set_send_window(bytes);
    }

    fn set_max_streams(&self, streams: u32) {
        self.inner.set_max_concurrent_bi_streams(VarInt::from_u32(streams));
    }
}

/// Whether the other side closed by an alert of TLS (RFC 9001 §4.8).
pub(super) fn is_alert(close: &quinn::ConnectionClose) -> bool {
    (0x100..0x200).contains(&u64::from(close.error_code))
}

/// What the other side says about it, and if it says nothing, the number of its alert.
pub(super) fn words(close: &quinn::ConnectionClose) -> String {
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

fn halves((send, recv): (quinn::SendStream, quinn::RecvStream)) -> Halves {
    (Box::new(QuicSend { inner: send, stopped: None }), Box::new(QuicRecv { inner: recv, reset: None, watched: false }))
}

type Stopped = Pin<Box<dyn Future<Output = Result<Option<VarInt>, StoppedError>> + Send + Sync>>;

struct QuicSend {
    inner: quinn::SendStream,
    /// Made when somebody waits for it.
    stopped: Option<Stopped>,
}

impl SendStream for QuicSend {
    fn poll_write(&mut self, cx: &mut Context<'_>, chunks: &mut [Bytes]) -> Poll<Result<usize, StreamError>> {
        // The future keeps nothing between two polls, so a fresh one does.
        let written = ready!(pin!(self.inner.write_chunks(chunks)).poll(cx));
        Poll::Ready(written.map(|written| written.bytes).map_err(|error| match error {
            WriteError::Stopped(code) => StreamError::Reset(reset_code(code)),
            WriteError::ConnectionLost(_) | WriteError::ZeroRttRejected => StreamError::LinkLost,
            WriteError::ClosedStream => StreamError::Closed,
        }))
    }

    fn poll_stopped(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<ResetCode>, StreamError>> {
        let inner = &self.inner;
        let stopped = self.stopped.get_or_insert_with(|| Box::pin(inner.stopped()));
        let result = ready!(stopped.as_mut().poll(cx));
        self.stopped = None;
        Poll::Ready(result.map(|code| code.map(reset_code)).map_err(|_| StreamError::LinkLost))
    }

    fn finish(&mut self) {
        // Fails only if it was ended before.
        self.inner.finish().ok();
    }

    fn reset(&mut self, code: ResetCode) {
        self.inner.reset(wire_code(code)).ok();
    }

    fn set_priority(&self, priority: i32) {
        self.inner.set_priority(priority).ok();
    }
}

struct QuicRecv {
    inner: quinn::RecvStream,
    /// Once seen, it stays: quinn forgets the stream.
    reset: Option<ResetCode>,
    /// Somebody waits for a reset.
    watched: bool,
}

impl QuicRecv {
    /// Lets go of who waited for a reset. quinn has one place for the waker of a stream, and clears it when more comes:
    /// of a stream whose end has come already, it would keep the task behind the waker for as long as the link lasts.
    fn unwatch(&mut self) -> Option<ResetCode> {
        if !std::mem::take(&mut self.watched) {
            return self.reset;
        }
        match self.poll_reset(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(StreamError::Reset(code)) => Some(code),
            Poll::Ready(StreamError::LinkLost | StreamError::Closed) => None,
            Poll::Pending => {
                self.watched = false;
                None
            }
        }
    }

    fn error(&mut self, error: &ReadError) -> StreamError {
        match error {
            ReadError::Reset(code) => {
                let code = reset_code(*code);
                self.reset = Some(code);
                StreamError::Reset(code)
            }
            ReadError::ConnectionLost(_) | ReadError::ZeroRttRejected => StreamError::LinkLost,
            ReadError::ClosedStream | ReadError::IllegalOrderedRead => {
                self.reset.map_or(StreamError::Closed, StreamError::Reset)
            }
        }
    }
}

impl RecvStream for QuicRecv {
    fn poll_read(&mut self, cx: &mut Context<'_>, max: usize) -> Poll<Result<Option<Bytes>, StreamError>> {
        // quinn reports a reset once and an orderly end ever after.
        if let Some(code) = self.unwatch() {
            return Poll::Ready(Err(StreamError::Reset(code)));
        }
        let result = ready!(pin!(self.inner.read_chunk(max, true)).poll(cx));
        Poll::Ready(result.map(|chunk| chunk.map(|chunk| chunk.bytes)).map_err(|error| self.error(&error)))
    }

    fn poll_read_chunks(
        &mut self,
        cx: &mut Context<'_>,
        chunks: &mut [Bytes],
    ) -> Poll<Result<Option<usize>, StreamError>> {
        if let Some(code) = self.unwatch() {
            return Poll::Ready(Err(StreamError::Reset(code)));
        }
        let result = ready!(pin!(self.inner.read_chunks(chunks)).poll(cx));
        Poll::Ready(result.map_err(|error| self.error(&error)))
    }

    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        if let Some(code) = self.reset {
            return Poll::Ready(StreamError::Reset(code));
        }
        self.watched = true;
        match ready!(pin!(self.inner.received_reset()).poll(cx)) {
            Ok(Some(code)) => {
                let code = reset_code(code);
                self.reset = Some(code);
                Poll::Ready(StreamError::Reset(code))
            }
            // All has arrived: nothing can cut it any more.
            Ok(None) => Poll::Pending,
            Err(ResetError::ConnectionLost(_) | ResetError::ZeroRttRejected) => Poll::Ready(StreamError::LinkLost),
        }
    }

    fn stop(&mut self, code: ResetCode) {
        self.inner.stop(wire_code(code)).ok();
    }
}

fn wire_code(code: ResetCode) -> VarInt {
    VarInt::from_u64(code.to_wire()).unwrap_or(VarInt::MAX)
}

fn reset_code(code: VarInt) -> ResetCode {
    ResetCode::from_wire(code.into_inner())
}

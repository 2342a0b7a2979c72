//! The socket that takes links, when there are several replicas: what is another's is handed over to it, what
//! others hand over is taken, and answers to that go back by where it came from.
//!
//! A packet that is where it belongs costs one look at its connection id and nothing else: no lock, no
//! allocation, no copy. Ids of own links are recognised by their last eight bytes once one was checked.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use quinn::udp::{EcnCodepoint, RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

use super::cid::ConnectionIdKey;
use crate::replicas::Dropped;
use crate::replicas::envelope::{Flow, ShortId};
use crate::replicas::network::{Network, Outlet, Route, View};
use crate::replicas::paths::is_path;

/// Own connection ids that are remembered: a link uses one at a time.
const REMEMBERED: usize = 256;

/// See the module's documentation.
pub(super) struct ForwardingSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    network: Arc<Network>,
    ids: Ids,
}

impl ForwardingSocket {
    /// Wraps `inner`, by which answers for other replicas leave from now on.
    pub(super) fn new(
        inner: Arc<dyn AsyncUdpSocket>,
        network: Arc<Network>,
        key: ConnectionIdKey,
        own: ShortId,
    ) -> Self {
        network.set_outlet(Box::new(LinkSocket(Arc::clone(&inner))));
        let mine = std::iter::repeat_with(AtomicU64::default).take(REMEMBERED).collect();
        Self { inner, network, ids: Ids { key, own, mine } }
    }

    /// Fills `bufs` with what others handed over. Returns how many it took: not all, so that packets from outside
    /// are not kept waiting.
    fn take(&self, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> usize {
        let most = bufs.len().div_ceil(2);
        let mut taken = 0;
        for (buf, meta) in bufs.iter_mut().zip(meta).take(most) {
            let Some(handed) = self.network.take() else { break };
            let length = handed.packet.len();
            if let Some(buf) = buf.get_mut(..length) {
                buf.copy_from_slice(&handed.packet);
                (meta.addr, meta.len, meta.stride) = (handed.path, length, length);
                (meta.ecn, meta.dst_ip) = (EcnCodepoint::from_bits(handed.ecn), None);
                taken += 1;
            } else {
                self.network.dropped(Dropped::Oversized);
            }
        }
        taken
    }

    /// Hands over what is another's, and leaves the rest where it is.
    fn divert(&self, view: &View, buf: &mut [u8], meta: &mut RecvMeta) {
        if is_path(&meta.addr) {
            meta.len = 0;
            return self.network.dropped(Dropped::SpoofedPath);
        }
        if view.is_alone() {
            return;
        }
        let stride = meta.stride.max(1);
        let (mut at, mut kept) = (0, 0);
        while at < meta.len {
            let end = (at + stride).min(meta.len);
            let Some(datagram) = buf.get(at..end) else { return };
            if let Some(route) = self.ids.owner(view, datagram) {
                let flow = Flow { client: meta.addr, local: meta.dst_ip };
                self.network.hand_over(route, &flow, bits(meta.ecn), datagram);
            } else {
                // Only behind a gap is there anything to move.
                if kept < at {
                    buf.copy_within(at..end, kept);
                }
                kept += end - at;
            }
            at = end;
        }
        meta.len = kept;
    }
}

impl AsyncUdpSocket for ForwardingSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.inner).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if !is_path(&transmit.destination) {
            return self.inner.try_send(transmit);
        }
        let size = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        for packet in transmit.contents.chunks(size) {
            self.network.answer(transmit.destination, bits(transmit.ecn), packet);
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let taken = self.take(bufs, meta);
        let (Some(bufs), Some(meta)) = (bufs.get_mut(taken..), meta.get_mut(taken..)) else {
            return Poll::Ready(Ok(taken));
        };
        if bufs.is_empty() {
            return Poll::Ready(Ok(taken));
        }
        match self.inner.poll_recv(cx, bufs, meta) {
            Poll::Ready(Ok(received)) => {
                let view = self.network.view();
                for (buf, meta) in bufs.iter_mut().zip(meta).take(received) {
                    self.divert(&view, buf, meta);
                }
                Poll::Ready(Ok(taken + received))
            }
            // What is wrong with the socket, it says again.
            _ if taken > 0 => Poll::Ready(Ok(taken)),
            Poll::Pending => {
                if self.network.wait(cx.waker()) {
                    cx.waker().wake_by_ref();
                }
                Poll::Pending
            }
            failed @ Poll::Ready(Err(_)) => failed,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

impl fmt::Debug for ForwardingSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForwardingSocket").field("inner", &self.inner).finish_non_exhaustive()
    }
}

/// The socket that takes links, as the way out for answers of other replicas.
struct LinkSocket(Arc<dyn AsyncUdpSocket>);

impl Outlet for LinkSocket {
    fn send(&self, flow: &Flow, ecn: u8, packet: &[u8]) -> bool {
        let transmit = Transmit {
            destination: flow.client,
            ecn: EcnCodepoint::from_bits(ecn),
            contents: packet,
            segment_size: None,
            src_ip: flow.local,
        };
        self.0.try_send(&transmit).is_ok()
    }
}

/// Tells whose a packet is.
struct Ids {
    key: ConnectionIdKey,
    own: ShortId,
    /// The last bytes of own ids that were checked, each in the place that its fourth byte says; 0: none.
    mine: Box<[AtomicU64]>,
}

impl Ids {
    /// The sibling that `datagram` is for. `None`: this replica, or nobody that is known.
    fn owner<'a>(&self, view: &'a View, datagram: &[u8]) -> Option<&'a Arc<Route>> {
        let id = self.key.destination(datagram)?;
        let end = u64::from_be_bytes(*id.last_chunk()?);
        let place = self.mine.get(usize::try_from(end >> 32).ok()? % REMEMBERED)?;
        if place.load(Ordering::Relaxed) == end {
            return None;
        }
        let owner = self.key.owner(id)?;
        if owner == self.own {
            place.store(end, Ordering::Relaxed);
            return None;
        }
        view.route(owner)
    }
}

fn bits(ecn: Option<EcnCodepoint>) -> u8 {
    ecn.map_or(0, |ecn| ecn as u8)
}

#[cfg(test)]
mod tests;

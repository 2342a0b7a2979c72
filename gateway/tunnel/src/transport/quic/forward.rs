//! The socket that takes links, when there are several replicas: what is another's is handed over to it, what
//! others hand over is taken, and answers to that go back by where it came from.
//!
//! A packet that is where it belongs costs one look at its connection id and nothing else: no lock, no
//! allocation, no copy. Ids of own links are recognised by their last eight bytes once one was checked.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;

use arc_swap::Guard;
use quinn_proto::{EcnCodepoint, Transmit};
use quinn_udp::RecvMeta;

use super::cid::ConnectionIdKey;
use super::port::Port;
use super::udp::Udp;
use crate::replicas::Dropped;
use crate::replicas::envelope::{Flow, ShortId};
use crate::replicas::network::{Network, Outlet, Route, View};
use crate::replicas::paths::is_path;

/// Own connection ids that are remembered: a link uses one at a time.
const REMEMBERED: usize = 256;
/// Packets from others that are taken before those from outside have their turn.
const TURN: usize = 32;

/// See the module's documentation.
pub(super) struct Forwarding {
    network: Arc<Network>,
    ids: Ids,
}

impl Forwarding {
    /// Beside `socket`, by which answers for other replicas leave from now on.
    pub(super) fn new(socket: Arc<Udp>, network: Arc<Network>, key: ConnectionIdKey, own: ShortId) -> Self {
        network.set_outlet(Box::new(LinkSocket(socket)));
        Self { network, ids: Ids::new(key, own) }
    }

    /// Who is there.
    pub(super) fn view(&self) -> Guard<Arc<View>> {
        self.network.view()
    }

    /// Gives `port` what others hand over, for ever.
    pub(super) async fn take_all(&self, port: &Arc<Port>) {
        loop {
            let mut turn = TURN;
            while turn > 0
                && let Some(handed) = self.network.take()
            {
                port.handed_over(&handed.packet, handed.path, EcnCodepoint::from_bits(handed.ecn));
                turn -= 1;
            }
            if turn == 0 {
                tokio::task::yield_now().await;
                continue;
            }
            let mut waits = false;
            poll_fn(|cx| {
                if waits || self.network.wait(cx.waker()) {
                    return Poll::Ready(());
                }
                waits = true;
                Poll::Pending
            })
            .await;
        }
    }

    /// Answers somebody who comes by way of another replica.
    pub(super) fn answer(&self, transmit: &Transmit, contents: &[u8]) {
        let size = transmit.segment_size.unwrap_or(contents.len()).max(1);
        for packet in contents.chunks(size) {
            self.network.answer(transmit.destination, transmit.ecn.map_or(0, |ecn| ecn as u8), packet);
        }
    }

    /// Hands over what is another's, and leaves the rest where it is.
    pub(super) fn divert(&self, view: &View, buf: &mut [u8], meta: &mut RecvMeta) {
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
                self.network.hand_over(route, &flow, meta.ecn.map_or(0, |ecn| ecn as u8), datagram);
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

/// The socket that takes links, as the way out for answers of other replicas.
struct LinkSocket(Arc<Udp>);

impl Outlet for LinkSocket {
    fn send(&self, flow: &Flow, ecn: u8, packet: &[u8]) -> bool {
        let transmit = Transmit {
            destination: flow.client,
            ecn: EcnCodepoint::from_bits(ecn),
            size: packet.len(),
            segment_size: None,
            src_ip: flow.local,
        };
        self.0.send(&transmit, packet)
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
    fn new(key: ConnectionIdKey, own: ShortId) -> Self {
        Self { key, own, mine: std::iter::repeat_with(AtomicU64::default).take(REMEMBERED).collect() }
    }

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

#[cfg(test)]
mod tests;

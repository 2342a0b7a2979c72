//! A queue of its own for each link that was taken, beside the one where strangers knock.
//!
//! The listening socket has one queue. Whoever floods its port fills it, and what does not fit is lost, packets of links
//! among it. Linux gives a packet to the socket that is connected to its sender, if there is one: so each link that was
//! taken gets such a socket on the same port. All of them are read as one; what they lose is their own. Of what strangers
//! send, only so much is read as [`strangers`] says.
//!
//! Here, too, IPv4 addresses that a socket for both families tells as IPv6 ones are shown as what they are, because quinn
//! keeps what it knows of a path, when a NAT rebinds it, only for those it sees as IPv4: see [`config`](super::config).

mod strangers;

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::task::AtomicWaker;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Runtime, UdpPoller};

use super::socket;
use crate::replicas::paths::is_path;
use strangers::Strangers;

/// Between two looks at whether a link's other end has moved.
const LOOK: Duration = Duration::from_secs(1);

/// The listening socket with those of links.
pub(super) struct Lanes {
    main: Arc<dyn AsyncUdpSocket>,
    strangers: Strangers,
    /// For both families, or for IPv6 alone.
    ipv6: bool,
    own: ArcSwap<Vec<Arc<dyn AsyncUdpSocket>>>,
    /// Which is read first.
    turn: AtomicUsize,
    reader: AtomicWaker,
}

/// One link's socket. Dropping it gives its packets back to the listening one.
struct Lane {
    lanes: Arc<Lanes>,
    socket: Arc<dyn AsyncUdpSocket>,
    remote: SocketAddr,
}

impl Lanes {
    pub(super) fn new(main: Arc<dyn AsyncUdpSocket>) -> io::Result<Arc<Self>> {
        let ipv6 = main.local_addr()?.is_ipv6();
        let (own, turn, reader) = (ArcSwap::default(), AtomicUsize::new(0), AtomicWaker::new());
        Ok(Arc::new(Self { main, strangers: Strangers::new(), ipv6, own, turn, reader }))
    }

    /// Keeps a lane for `connection`, wherever its other end moves, until it is closed. What cannot have one goes on by
    /// the listening socket.
    pub(super) async fn keep(self: Arc<Self>, connection: quinn::Connection, runtime: Arc<dyn Runtime>, buffer: usize) {
        let mut looks = tokio::time::interval(LOOK);
        let mut lane: Option<Lane> = None;
        loop {
            tokio::select! {
                _ = connection.closed() => return,
                _ = looks.tick() => {}
            }
            let remote = connection.remote_address();
            if lane.as_ref().is_some_and(|lane| lane.remote == remote) {
                continue;
            }
            drop(lane.take());
            // By way of another replica: there is no such sender.
            if is_path(&remote) {
                continue;
            }
            let opened = self.open(connection.local_ip(), remote, &*runtime, buffer);
            lane =
                opened.inspect_err(|error| tracing::debug!(%remote, %error, "The link has no socket of its own")).ok();
        }
    }

    fn open(
        self: &Arc<Self>,
        local: Option<IpAddr>,
        remote: SocketAddr,
        runtime: &dyn Runtime,
        buffer: usize,
    ) -> io::Result<Lane> {
        let listening = self.main.local_addr()?;
        let local = self.inward(SocketAddr::new(local.unwrap_or(listening.ip()), listening.port()));
        let socket = socket::connected(local, self.inward(remote), buffer)?;
        let socket = runtime.wrap_udp_socket(socket)?;
        self.own.rcu(|own| own.iter().chain([&socket]).cloned().collect::<Vec<_>>());
        self.reader.wake();
        Ok(Lane { lanes: Arc::clone(self), socket, remote })
    }

    /// Reads the listening socket, while there is room for strangers.
    fn poll_strangers(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        ready!(self.strangers.poll_ready(cx));
        let received = ready!(self.main.poll_recv(cx, bufs, meta));
        if let Some(meta) = received.as_ref().ok().and_then(|count| meta.get(..*count)) {
            self.strangers.read(bufs, meta);
        }
        Poll::Ready(received)
    }

    /// `address` as the sockets have it.
    fn inward(&self, address: SocketAddr) -> SocketAddr {
        match address {
            SocketAddr::V4(v4) if self.ipv6 => SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()),
            SocketAddr::V4(_) | SocketAddr::V6(_) => address,
        }
    }
}

/// `address` as it is shown.
fn outward(address: SocketAddr) -> SocketAddr {
    let SocketAddr::V6(v6) = address else { return address };
    v6.ip().to_ipv4_mapped().map_or(address, |ip| SocketAddr::new(ip.into(), v6.port()))
}

impl Drop for Lane {
    fn drop(&mut self) {
        let others = |own: &Arc<Vec<Arc<dyn AsyncUdpSocket>>>| {
            own.iter().filter(|socket| !Arc::ptr_eq(socket, &self.socket)).cloned().collect::<Vec<_>>()
        };
        self.lanes.own.rcu(others);
    }
}

impl AsyncUdpSocket for Lanes {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.main).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let Transmit { ecn, contents, segment_size, src_ip, .. } = *transmit;
        self.main.try_send(&Transmit {
            destination: self.inward(transmit.destination),
            ecn,
            contents,
            segment_size,
            src_ip,
        })
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.reader.register(cx.waker());
        let own = self.own.load();
        // Another one is first each time: none waits for more than one batch of each other.
        let count = own.len() + 1;
        let first = self.turn.fetch_add(1, Ordering::Relaxed);
        for offset in 0..count {
            let index = first.wrapping_add(offset) % count;
            let received = match own.get(index) {
                Some(socket) => socket.poll_recv(cx, bufs, meta),
                None => self.poll_strangers(cx, bufs, meta),
            };
            if let Poll::Ready(received) = received {
                let filled = received.as_ref().copied().unwrap_or(0);
                meta.iter_mut().take(filled).for_each(|meta| meta.addr = outward(meta.addr));
                return Poll::Ready(received);
            }
        }
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.main.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.main.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.main.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.main.may_fragment()
    }
}

impl fmt::Debug for Lanes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lanes").field("main", &self.main).field("own", &self.own.load().len()).finish_non_exhaustive()
    }
}

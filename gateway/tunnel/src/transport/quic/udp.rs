//! A UDP socket, by trains of datagrams: one system call takes or gives as many as fit.

use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use quinn_udp::{EcnCodepoint, RecvMeta, Transmit, UdpSocketState};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::Handle;

/// Trains that one system call takes: more seldom wait.
pub(super) const TRAINS: usize = 16;
/// Largest payload of a UDP packet over IPv4, which bounds a train, too.
pub(super) const MAX_TRAIN: usize = 65_507;
/// The kernel joins up to this much.
const BUFFER: usize = 65_535;
/// Before a socket is tried again of which it cannot be told when it has room.
const PAUSE: Duration = Duration::from_millis(1);

/// A socket that belongs to one runtime.
pub(super) struct Udp {
    /// Only packets that come wake its thread: each that leaves would, too, if it were waited for room.
    io: AsyncFd<UdpSocket>,
    state: UdpSocketState,
    local_addr: SocketAddr,
    home: Handle,
}

impl Udp {
    /// `home`: the runtime that waits for packets.
    pub(super) fn new(socket: UdpSocket, home: &Handle) -> io::Result<Self> {
        let state = UdpSocketState::new((&socket).into())?;
        let local_addr = socket.local_addr()?;
        let _entered = home.enter();
        Ok(Self { io: watch(socket, Interest::READABLE)?, state, local_addr, home: home.clone() })
    }

    /// The runtime that waits for packets: who reads them elsewhere is woken across threads.
    pub(super) fn home(&self) -> &Handle {
        &self.home
    }

    pub(super) fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Whether a packet that is too large may be cut into pieces on its way.
    pub(super) fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }

    /// Datagrams of `size` that a train may have.
    pub(super) fn train(&self, size: usize) -> usize {
        (MAX_TRAIN / size.max(1)).clamp(1, self.state.max_gso_segments().max(1))
    }

    /// Sends a train and never waits. `false`: the socket takes no more now. What fails otherwise is lost, as on any
    /// path.
    pub(super) fn send(&self, transmit: &quinn_proto::Transmit, contents: &[u8]) -> bool {
        let transmit = Transmit {
            destination: self.inward(transmit.destination),
            ecn: transmit.ecn.and_then(|ecn| EcnCodepoint::from_bits(ecn as u8)),
            contents,
            segment_size: transmit.segment_size,
            src_ip: transmit.src_ip,
        };
        let sent = self.state.send(self.io.get_ref().into(), &transmit);
        !sent.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Waits until the socket takes something again.
    pub(super) async fn writable(&self) {
        if self.has_room().await.is_err() {
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn has_room(&self) -> io::Result<()> {
        let room = watch(self.io.get_ref().try_clone()?, Interest::WRITABLE)?;
        room.writable().await.map(drop)
    }

    /// Waits for packets and has `take` look at them, until there are none or `most` batches were taken: whether there may
    /// be more.
    pub(super) async fn receive(&self, most: usize, mut take: impl FnMut(&mut Batch)) -> io::Result<bool> {
        self.io.readable().await?.retain_ready();
        for _ in 0..most {
            let is_full = Batch::with(|batch| {
                batch.count = 0;
                let received = self.io.try_io(Interest::READABLE, |socket| batch.fill(&self.state, socket));
                if batch.count > 0 {
                    take(batch);
                }
                received
            });
            match is_full {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// `address` as the socket has it.
    pub(super) fn inward(&self, address: SocketAddr) -> SocketAddr {
        match address {
            SocketAddr::V4(v4) if self.local_addr.is_ipv6() => {
                SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port())
            }
            SocketAddr::V4(_) | SocketAddr::V6(_) => address,
        }
    }
}

#[allow(deprecated, reason = "the new name is unsafe, for what does not own its descriptor as sockets do")]
fn watch(socket: UdpSocket, interest: Interest) -> io::Result<AsyncFd<UdpSocket>> {
    AsyncFd::with_interest(socket, interest)
}

/// Trains as they were received.
pub(super) struct Batch {
    buffers: [Vec<u8>; TRAINS],
    metas: [RecvMeta; TRAINS],
    count: usize,
}

impl Batch {
    fn new() -> Self {
        Self {
            buffers: std::array::from_fn(|_| vec![0; BUFFER]),
            metas: std::array::from_fn(|_| RecvMeta::default()),
            count: 0,
        }
    }

    /// With the one that each thread has: nothing that was received outlives the turn.
    fn with<T>(run: impl FnOnce(&mut Self) -> T) -> T {
        thread_local! {
            static BATCH: std::cell::RefCell<Option<Box<Batch>>> = const { std::cell::RefCell::new(None) };
        }
        BATCH.with_borrow_mut(|batch| run(batch.get_or_insert_with(|| Box::new(Self::new()))))
    }

    /// Fails with `WouldBlock` also if there was less than fits: what comes from now on is told anew, and nobody needs to
    /// ask for it once more.
    fn fill(&mut self, state: &UdpSocketState, socket: &UdpSocket) -> io::Result<()> {
        let mut slices = self.buffers.each_mut().map(|buffer| IoSliceMut::new(buffer));
        loop {
            match state.recv(socket.into(), &mut slices, &mut self.metas) {
                // Somebody refused a packet that was sent earlier; nothing that concerns this socket.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
                Err(error) => return Err(error),
                Ok(count) => {
                    self.count = count;
                    return if count < TRAINS { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) };
                }
            }
        }
    }

    /// What was received: the bytes of each train, and what is known of it.
    pub(super) fn trains(&mut self) -> impl Iterator<Item = (&mut [u8], &mut RecvMeta)> {
        let trains = self.buffers.iter_mut().zip(&mut self.metas).take(self.count);
        trains.map(|(buffer, meta)| (buffer.as_mut_slice(), meta))
    }
}

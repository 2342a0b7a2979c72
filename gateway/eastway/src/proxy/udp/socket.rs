//! UDP sockets, many packets a system call: what a packet costs is mostly its trip through the kernel.
//!
//! Packets of one length that go to one place make one trip (UDP GSO, Linux 4.18), and come in one where the sender did the
//! same (GRO, 5.0). A packet longer than the path carries is fragmented, as for any program that says nothing about it.

use std::cell::RefCell;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::libc::{in_addr, in_pktinfo, in6_addr, in6_pktinfo};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmsg, setsockopt,
    sockopt,
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::proxy::anyip;

/// Messages per system call.
const BATCH: usize = 32;
/// Longest message: the longest packet, or as many as the kernel hands over in one.
const MESSAGE: usize = 64 << 10;
/// Most packets of one length that the kernel takes in one message (`UDP_MAX_SEGMENTS`), and their bytes.
const SEGMENTS: usize = 64;
const SEGMENTS_BYTES: usize = 65_000;
/// What a burst may take up while this process does something else; the kernel may grant less (`net.core.rmem_max`).
const BUFFER: usize = 4 << 20;

/// A UDP socket. Sending never waits and may be done anywhere; what receives is a [`Receiver`].
#[derive(Debug)]
pub(in crate::proxy) struct PacketSocket {
    socket: Socket,
    /// The kernel does not cut messages on the way that packets take from here.
    uncut: AtomicBool,
}

/// Receives what comes to a socket, in the runtime that it was made in.
pub(super) struct Receiver {
    /// Only packets and errors wake its thread: each packet that leaves would, too, if it were waited for room.
    io: AsyncFd<Arc<PacketSocket>>,
}

impl AsRawFd for PacketSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// Where a packet arrived, to answer from there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Arrived {
    address: IpAddr,
    interface: u32,
}

/// Packets that came together from one place, all of one length but the last.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message<'a> {
    /// Who sent them; of a connected socket nobody else can.
    pub(super) from: Option<SocketAddr>,
    /// Where they arrived, if the socket takes what is for any address.
    pub(super) at: Option<Arrived>,
    bytes: &'a [u8],
    segment: usize,
}

impl<'a> Message<'a> {
    pub(super) fn packets(self) -> impl Iterator<Item = &'a [u8]> {
        let empty = self.bytes.is_empty().then_some(self.bytes);
        self.bytes.chunks(self.segment.max(1)).chain(empty)
    }
}

impl PacketSocket {
    /// Listens at an address, which may be one of a range that is routed here; `[::]` takes IPv4 too.
    pub(super) fn listen(address: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        if address.ip().is_unspecified() {
            if address.is_ipv6() {
                socket.set_only_v6(false)?;
                setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
            } else {
                setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
            }
        }
        anyip::bind(&socket, address)?;
        Self::of(socket)
    }

    /// Connected to an endpoint, from a port of its own.
    pub(in crate::proxy) fn connect(address: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        socket.connect(&address.into())?;
        Self::of(socket)
    }

    fn of(socket: Socket) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        socket.set_recv_buffer_size(BUFFER)?;
        socket.set_send_buffer_size(BUFFER)?;
        // Older kernels have none of it; then each packet is a message.
        let _older = setsockopt(&socket, sockopt::UdpGroSegment, &true);
        Ok(Self { socket, uncut: AtomicBool::new(false) })
    }

    /// To be called within a runtime; there is one at a time.
    ///
    /// # Errors
    /// The system cannot watch the socket.
    pub(super) fn receiver(self: &Arc<Self>) -> io::Result<Receiver> {
        #[allow(deprecated, reason = "the new name is unsafe, for what does not own its descriptor as sockets do")]
        let io = AsyncFd::with_interest(Arc::clone(self), Interest::READABLE | Interest::ERROR)?;
        Ok(Receiver { io })
    }

    /// Sends packets, `to` and `from` where the socket does not say it. Returns how many did not go.
    ///
    /// # Errors
    /// What the system says of the first that did not go, unless there was only no room.
    pub(super) fn send(
        &self,
        to: Option<SocketAddr>,
        from: Option<Arrived>,
        packets: &[impl AsRef<[u8]>],
    ) -> (usize, io::Result<()>) {
        let to = to.map(SockaddrStorage::from);
        let mut lost = 0;
        let mut result = Ok(());
        let mut rest = packets;
        while let Some(run) = rest.get(..self.run(rest)).filter(|run| !run.is_empty()) {
            rest = rest.get(run.len()..).unwrap_or_default();
            let mut sent = self.transmit(to.as_ref(), from, run);
            if run.len() > 1 && matches!(sent, Err(Errno::EIO | Errno::EINVAL | Errno::EMSGSIZE | Errno::EOPNOTSUPP)) {
                // The device, or the length of these packets. The path tells of most lengths that it does not carry.
                self.uncut.store(true, Ordering::Relaxed);
                for packet in run {
                    sent = self.transmit(to.as_ref(), from, std::slice::from_ref(packet));
                    lost += usize::from(sent.is_err());
                }
            } else if sent.is_err() {
                lost += run.len();
            }
            match sent {
                Err(Errno::EAGAIN | Errno::ENOBUFS) => {}
                Err(error) if result.is_ok() => result = Err(error.into()),
                Ok(()) | Err(_) => {}
            }
        }
        (lost, result)
    }

    /// How many of the first packets go in one message: those of one length, and one more that is shorter.
    fn run(&self, packets: &[impl AsRef<[u8]>]) -> usize {
        let length = |packet: &_| AsRef::<[u8]>::as_ref(packet).len();
        let Some(first) = packets.first().map(length) else { return 0 };
        let most = SEGMENTS.min(SEGMENTS_BYTES / first.max(1));
        if most < 2 || first == 0 || self.uncut.load(Ordering::Relaxed) {
            return 1;
        }
        let alike = packets.iter().take(most).take_while(|packet| length(packet) == first).count();
        let last = packets.get(alike).map(length).is_some_and(|last| alike < most && last > 0 && last < first);
        alike + usize::from(last)
    }

    fn transmit(
        &self,
        to: Option<&SockaddrStorage>,
        from: Option<Arrived>,
        packets: &[impl AsRef<[u8]>],
    ) -> nix::Result<()> {
        let mut slices = [IoSlice::new(&[]); SEGMENTS];
        for (slice, packet) in slices.iter_mut().zip(packets) {
            *slice = IoSlice::new(packet.as_ref());
        }
        let slices = slices.get(..packets.len()).unwrap_or_default();
        let segment =
            packets.first().filter(|_| packets.len() > 1).and_then(|first| u16::try_from(first.as_ref().len()).ok());
        let (v4, v6);
        let mut control = Vec::new();
        match from.map(|from| (from.address, from.interface)) {
            Some((IpAddr::V4(address), _)) => {
                let address = in_addr { s_addr: u32::from_ne_bytes(address.octets()) };
                v4 = in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: address, ipi_addr: in_addr { s_addr: 0 } };
                control.push(ControlMessage::Ipv4PacketInfo(&v4));
            }
            Some((IpAddr::V6(address), interface)) => {
                v6 = in6_pktinfo { ipi6_addr: in6_addr { s6_addr: address.octets() }, ipi6_ifindex: interface };
                control.push(ControlMessage::Ipv6PacketInfo(&v6));
            }
            None => {}
        }
        control.extend(segment.as_ref().map(ControlMessage::UdpGsoSegments));
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        sendmsg(self.socket.as_raw_fd(), slices, &control, flags, to).map(drop)
    }
}

impl Receiver {
    /// Waits for packets, and gives what is there to `take`.
    ///
    /// # Errors
    /// Those of the system; of a connected socket also that the other end has nobody at its port.
    pub(super) async fn receive(&self, mut take: impl FnMut(&[Message<'_>])) -> io::Result<()> {
        loop {
            // That the other end has nobody at its port shows as an error and nothing to read.
            let mut ready = self.io.ready(Interest::READABLE | Interest::ERROR).await?;
            let socket = self.io.as_raw_fd();
            match INBOX.with_borrow_mut(|inbox| inbox.receive(socket, &mut take)) {
                Ok(BATCH..) => return Ok(()),
                // What comes from now on is told anew, and nobody needs to ask for it once more.
                Ok(_) => {
                    ready.clear_ready();
                    return Ok(());
                }
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

thread_local! {
    /// What receiving needs, once for all sockets that a thread reads. Of its memory only what packets touch is real.
    static INBOX: RefCell<Inbox> = RefCell::new(Inbox::new());
}

struct Inbox {
    messages: Vec<Vec<u8>>,
}

impl Inbox {
    fn new() -> Self {
        Self { messages: (0..BATCH).map(|_| vec![0; MESSAGE]).collect() }
    }

    fn receive(&mut self, socket: RawFd, take: &mut impl FnMut(&[Message<'_>])) -> nix::Result<usize> {
        let mut slices: Vec<_> = self.messages.iter_mut().map(|message| [IoSliceMut::new(message)]).collect();
        // Not to be used again: the kernel notes in them how little room the last messages took.
        let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(BATCH, Some(cmsg_space!(in6_pktinfo, i32)));
        let received = recvmmsg(socket, &mut headers, slices.iter_mut(), MsgFlags::MSG_DONTWAIT, None)?;
        let mut messages = Vec::with_capacity(BATCH);
        for message in received {
            let bytes = message.iovs().next().unwrap_or_default();
            let (mut at, mut segment) = (None, bytes.len());
            for control in message.cmsgs().into_iter().flatten() {
                if let ControlMessageOwned::UdpGroSegments(length) = control {
                    segment = usize::try_from(length).unwrap_or(segment);
                }
                at = arrived(&control).or(at);
            }
            messages.push(Message { from: message.address.as_ref().and_then(to_std), at, bytes, segment });
        }
        take(&messages);
        Ok(messages.len())
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the kernel may tell more than was asked for")]
fn arrived(control: &ControlMessageOwned) -> Option<Arrived> {
    match control {
        ControlMessageOwned::Ipv4PacketInfo(info) => {
            let address = Ipv4Addr::from(info.ipi_spec_dst.s_addr.to_ne_bytes());
            Some(Arrived { address: address.into(), interface: 0 })
        }
        ControlMessageOwned::Ipv6PacketInfo(info) => {
            let address = Ipv6Addr::from(info.ipi6_addr.s6_addr);
            // Others are routed as any packet is.
            let interface = if address.is_unicast_link_local() { info.ipi6_ifindex } else { 0 };
            Some(Arrived { address: address.into(), interface })
        }
        _ => None,
    }
}

fn to_std(address: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(v4) = address.as_sockaddr_in() {
        return Some(SocketAddr::from((v4.ip(), v4.port())));
    }
    address.as_sockaddr_in6().map(|v6| SocketAddr::from(*v6))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn bytes(length: usize, byte: u8) -> Bytes {
        vec![byte; length].into()
    }

    async fn receive(socket: &Arc<PacketSocket>, count: usize) -> Vec<(Option<SocketAddr>, Option<Arrived>, Vec<u8>)> {
        let (mut all, socket) = (Vec::new(), socket.receiver().unwrap());
        while all.len() < count {
            let received = socket.receive(|messages| {
                for message in messages {
                    all.extend(message.packets().map(|packet| (message.from, message.at, packet.to_vec())));
                }
            });
            tokio::time::timeout(std::time::Duration::from_secs(10), received).await.unwrap().unwrap();
        }
        all
    }

    #[tokio::test]
    async fn packets_of_all_lengths_arrive_as_they_were_sent() {
        let server = Arc::new(PacketSocket::listen("127.0.0.1:0".parse().unwrap()).unwrap());
        let to = server.socket.local_addr().unwrap().as_socket().unwrap();
        let client = Arc::new(PacketSocket::connect(to).unwrap());
        let lengths = [1_200, 1_200, 1_200, 400, 0, 9_000, 9_000, 65_507, 1, 1, 1, 2];
        let sent: Vec<_> = (0..).zip(lengths).map(|(number, length)| bytes(length, number)).collect();
        let (lost, result) = client.send(None, None, &sent);
        assert_eq!(lost, 0, "{result:?}");
        let received = receive(&server, sent.len()).await;
        assert!(received.iter().map(|(_, _, packet)| packet).eq(&sent), "whole and in order");
        assert_eq!(received[0].0, Some(client.socket.local_addr().unwrap().as_socket().unwrap()));
    }

    #[tokio::test]
    async fn answers_come_from_where_was_asked() {
        for (listen, ask) in
            [("0.0.0.0:0", "127.0.0.7"), ("[::]:0", "127.0.0.7"), ("[::]:0", "::1"), ("[::1]:0", "::1")]
        {
            let server = Arc::new(PacketSocket::listen(listen.parse().unwrap()).unwrap());
            let port = server.socket.local_addr().unwrap().as_socket().unwrap().port();
            let client = Arc::new(PacketSocket::connect(SocketAddr::new(ask.parse().unwrap(), port)).unwrap());
            assert_eq!(client.send(None, None, &[bytes(20, 1)]).0, 0);
            let (from, at, _) = receive(&server, 1).await.remove(0);
            let (lost, result) = server.send(from, at, &[bytes(1_000, 2), bytes(1_000, 3), bytes(10, 4)]);
            assert_eq!(lost, 0, "{listen} {ask}: {result:?}");
            // A connected socket takes what comes from there and nothing else.
            assert_eq!(receive(&client, 3).await.len(), 3, "{listen} {ask}");
        }
    }

    #[tokio::test]
    async fn nobody_at_the_port_is_an_error() {
        let gone = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let client = Arc::new(PacketSocket::connect(gone).unwrap());
        client.send(None, None, &[bytes(1, 0)]).1.unwrap();
        let error = client.receiver().unwrap().receive(|_| ()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}

//! The UDP loop: take what is there, answer all of it, send all replies. No task per query, so
//! what is in flight is bounded by the batch; what comes meanwhile waits in the socket's buffer,
//! and the kernel drops the newest when that is full (threat D2).

use std::io::{IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::time::Instant;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::libc::{in_addr, in_pktinfo, in6_pktinfo};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmsg, setsockopt,
    sockopt,
};
use rustix::net::addr::SocketAddrArg;
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, sendmmsg};
use socket2::Socket;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::counters::DropReason;
use crate::respond::{Outcome, Responder, Transport};
use crate::server::REST;
use crate::wire::MAX_UDP;

/// Queries per system call.
const BATCH: usize = 32;
/// Longest query read. Longer ones are cut by the kernel and so malformed.
const MAX_QUERY: usize = 2048;

/// Makes a socket bound to all addresses tell to which of them each datagram came: a reply from
/// another one is no reply to the client.
pub(super) fn prepare(socket: &Socket, address: SocketAddr) -> std::io::Result<()> {
    match address {
        _ if !address.ip().is_unspecified() => {}
        SocketAddr::V4(_) => setsockopt(socket, sockopt::Ipv4PacketInfo, &true)?,
        SocketAddr::V6(_) => setsockopt(socket, sockopt::Ipv6RecvPacketInfo, &true)?,
    }
    Ok(())
}

/// Serves one socket on the calling thread until `cancel` is cancelled and the socket wakes up: it
/// blocks, which costs two system calls per batch where readiness would cost four. Errors of the
/// socket do not end it (U6).
pub(super) fn serve(socket: &Socket, responder: &Responder, cancel: &CancellationToken) {
    let mut batch = Batch::new();
    while !cancel.is_cancelled() {
        match batch.turn(socket, responder) {
            Ok(()) | Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(error) => {
                responder.counters().socket_error();
                debug!(%error, "Receiving DNS queries failed");
                // Whatever it is (ENOBUFS, ENOMEM, an ICMP error), it must neither end nor spin.
                std::thread::sleep(REST);
            }
        }
    }
}

/// Buffers for one turn, reused.
struct Batch {
    headers: MultiHeaders<SockaddrStorage>,
    queries: Vec<Vec<u8>>,
    replies: Vec<Vec<u8>>,
    targets: Vec<Target>,
}

/// Where a reply goes, and from which of our addresses if the socket has several.
struct Target {
    to: SocketAddr,
    from: Option<Local>,
}

/// The address a query came to.
#[derive(Clone, Copy)]
enum Local {
    V4(in_addr),
    V6(in6_pktinfo),
}

impl Batch {
    fn new() -> Self {
        Self {
            headers: MultiHeaders::preallocate(BATCH, Some(cmsg_space!(in6_pktinfo))),
            queries: vec![vec![0; MAX_QUERY]; BATCH],
            replies: (0..BATCH).map(|_| Vec::with_capacity(MAX_UDP)).collect(),
            targets: Vec::with_capacity(BATCH),
        }
    }

    /// Waits for a query, takes what else is there, answers it and sends the replies.
    fn turn(&mut self, socket: &Socket, responder: &Responder) -> nix::Result<()> {
        let mut slices: Vec<_> = self.queries.iter_mut().map(|query| [IoSliceMut::new(query)]).collect();
        let flags = MsgFlags::MSG_WAITFORONE;
        let received = recvmmsg(socket.as_raw_fd(), &mut self.headers, slices.iter_mut(), flags, None)?;
        let now = Instant::now();
        self.targets.clear();
        let mut count = 0;
        for message in received {
            count += 1;
            let Some(to) = message.address.as_ref().and_then(to_std) else { continue };
            let Some(reply) = self.replies.get_mut(self.targets.len()) else { break };
            let query = message.iovs().next().unwrap_or_default();
            if responder.respond(query, to, Transport::Udp, now, reply) == Outcome::Reply {
                let from = message.cmsgs().ok().and_then(|mut messages| messages.find_map(|message| local(&message)));
                self.targets.push(Target { to, from });
            }
        }
        responder.counters().set_in_flight(count);
        self.send(socket, responder);
        responder.counters().set_in_flight(0);
        Ok(())
    }

    /// Sends the replies. What cannot be sent at once is dropped: the client asks again.
    fn send(&self, socket: &Socket, responder: &Responder) {
        let replies: Vec<_> = self.replies.iter().zip(&self.targets).collect();
        let mut rest = replies.as_slice();
        while let Some(((reply, first), others)) = rest.split_first() {
            let sent = match first.from {
                Some(from) => usize::from(send_from(socket, from, first.to, reply).is_ok()),
                None => send_all(socket, rest),
            };
            // One that cannot be sent must not keep back those behind it.
            if sent == 0 {
                responder.counters().dropped(DropReason::Send);
            }
            rest = rest.get(sent.max(1)..).unwrap_or(others);
        }
    }
}

/// Sends replies from the socket's own address in one call. Gives how many went.
fn send_all(socket: &Socket, replies: &[(&Vec<u8>, &Target)]) -> usize {
    let addresses: Vec<_> = replies.iter().map(|(_, target)| target.to.as_any()).collect();
    let slices: Vec<_> = replies.iter().map(|(reply, _)| [IoSlice::new(reply)]).collect();
    let mut nothing: Vec<_> = replies.iter().map(|_| SendAncillaryBuffer::default()).collect();
    let mut messages: Vec<_> = addresses
        .iter()
        .zip(&slices)
        .zip(&mut nothing)
        .map(|((address, slice), nothing)| MMsgHdr::new_with_addr(address, slice, nothing))
        .collect();
    sendmmsg(socket, &mut messages, SendFlags::DONTWAIT).unwrap_or(0)
}

/// Sends one reply from the address its query came to.
fn send_from(socket: &Socket, from: Local, to: SocketAddr, reply: &[u8]) -> nix::Result<()> {
    let (fd, slice, flags) = (socket.as_raw_fd(), [IoSlice::new(reply)], MsgFlags::MSG_DONTWAIT);
    let to = SockaddrStorage::from(to);
    match from {
        Local::V4(address) => {
            let info = in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: address, ipi_addr: in_addr { s_addr: 0 } };
            sendmsg(fd, &slice, &[ControlMessage::Ipv4PacketInfo(&info)], flags, Some(&to))?;
        }
        Local::V6(info) => {
            sendmsg(fd, &slice, &[ControlMessage::Ipv6PacketInfo(&info)], flags, Some(&to))?;
        }
    }
    Ok(())
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the kernel may tell more than was asked for")]
fn local(message: &ControlMessageOwned) -> Option<Local> {
    match message {
        ControlMessageOwned::Ipv4PacketInfo(info) => Some(Local::V4(info.ipi_spec_dst)),
        ControlMessageOwned::Ipv6PacketInfo(info) => Some(Local::V6(*info)),
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
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use socket2::{Domain, Type};

    use super::*;
    use crate::counters::Counters;
    use crate::limit::RateLimiter;
    use crate::{Responder, ZoneStore};

    fn responder(counters: &Counters) -> Responder {
        let limiter = Arc::new(RateLimiter::new(0, Instant::now()));
        Responder::new(ZoneStore::new([]).unwrap(), limiter).for_worker(counters.worker(0))
    }

    #[test]
    fn u6_a_socket_that_fails_does_not_end_the_loop() {
        let counters = Counters::new(1);
        // Not connected, and not a datagram socket: every receive is an error.
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let cancel = CancellationToken::new();
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| serve(&socket, &responder(&counters), &cancel));
            let deadline = Instant::now() + Duration::from_secs(10);
            while counters.snapshot().socket_errors < 3 {
                assert!(Instant::now() < deadline && !worker.is_finished());
                std::thread::yield_now();
            }
            cancel.cancel();
        });
    }

    #[test]
    fn u6_a_reply_that_cannot_be_sent_does_not_keep_back_the_others() {
        let counters = Counters::new(1);
        let client = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        let to_client = client.local_addr().unwrap();
        // Broadcasting is not allowed on this socket.
        let refused: SocketAddr = "255.255.255.255:53".parse().unwrap();
        let mut batch = Batch::new();
        for (index, to) in [refused, to_client, refused, refused, to_client, refused].into_iter().enumerate() {
            batch.replies[index] = vec![u8::try_from(index).unwrap(); 20];
            batch.targets.push(Target { to, from: None });
        }
        batch.send(&socket, &responder(&counters));
        let mut received = [0; 64];
        for expected in [1, 4] {
            assert_eq!(client.recv(&mut received).unwrap(), 20);
            assert_eq!(received[0], expected);
        }
        assert_eq!(counters.snapshot().dropped(DropReason::Send), 4);
    }
}

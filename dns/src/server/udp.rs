//! The UDP loop: take what is there, answer all of it, send all replies. No task per query, so
//! what is in flight is bounded by the batch; what comes meanwhile waits in the socket's buffer,
//! and the kernel drops the newest when that is full (threat D2). The loop rests between batches
//! only where replies go together, as [`send`] says: more of them do after a rest.

mod plan;
mod send;

use std::array;
use std::io::IoSliceMut;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::libc::in6_pktinfo;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, setsockopt, sockopt};
use socket2::Socket;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::counters::DropReason;
use crate::respond::{Outcome, Responder, Transport};
use crate::server::REST;
use crate::server::udp::plan::Local;
use crate::server::udp::send::{Outbox, Transmitter, cuts};

/// Queries per system call.
const BATCH: usize = 64;
/// Longest query read. Longer ones are cut by the kernel and so malformed.
const MAX_QUERY: usize = 2048;
/// So many trips saved by one turn make the next one worth waiting for: a few tens of thousands of
/// queries per second, several from each client. Where queries are few, or clients ask one at a
/// time, nobody waits.
const GATHER_FROM: usize = 4;
/// How long queries gather, to which the kernel adds as much. Network cards do the same.
const GATHER: Duration = Duration::from_micros(50);

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
    let mut batch = Batch::new(socket);
    while !cancel.is_cancelled() {
        match batch.turn(socket, responder) {
            Ok(turn) if turn.is_worth_a_rest() => std::thread::sleep(GATHER),
            Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(error) => {
                responder.counters().socket_error();
                debug!(%error, "Receiving DNS queries failed");
                // Whatever it is (ENOBUFS, ENOMEM, an ICMP error), it must neither end nor spin.
                std::thread::sleep(REST);
            }
        }
    }
}

/// What one turn needs, used again.
struct Batch {
    headers: MultiHeaders<SockaddrStorage>,
    queries: [Box<[u8; MAX_QUERY]>; BATCH],
    outbox: Outbox,
    transmitter: Transmitter,
}

/// What a turn did.
#[derive(Clone, Copy, Debug)]
struct Turn {
    /// How many queries were there.
    queries: usize,
    /// How many trips through the stack the replies did not need.
    saved: usize,
}

impl Turn {
    /// Whether the next turn shall let queries gather: as many answers at once as now, and more
    /// when they have gathered, cost less. Not if there were more than one turn takes.
    fn is_worth_a_rest(self) -> bool {
        self.saved >= GATHER_FROM && self.queries < BATCH
    }
}

impl Batch {
    fn new(socket: &Socket) -> Self {
        Self {
            headers: MultiHeaders::preallocate(BATCH, Some(cmsg_space!(in6_pktinfo))),
            queries: array::from_fn(|_| Box::new([0; MAX_QUERY])),
            outbox: Outbox::new(cuts(socket)),
            transmitter: Transmitter::new(),
        }
    }

    /// Waits for a query, takes what else is there, answers it and sends the replies.
    fn turn(&mut self, socket: &Socket, responder: &Responder) -> nix::Result<Turn> {
        let mut slices = self.queries.each_mut().map(|query| [IoSliceMut::new(query.as_mut_slice())]);
        let flags = MsgFlags::MSG_WAITFORONE;
        let received = recvmmsg(socket.as_raw_fd(), &mut self.headers, slices.iter_mut(), flags, None)?;
        let now = Instant::now();
        let mut queries = 0;
        for message in received {
            queries += 1;
            let Some(to) = message.address.as_ref().and_then(to_std) else { continue };
            let Some(reply) = self.outbox.slot() else { break };
            let query = message.iovs().next().unwrap_or_default();
            if responder.respond(query, to, Transport::Udp, now, reply) == Outcome::Reply {
                let from = message.cmsgs().ok().and_then(|mut messages| messages.find_map(|message| local(&message)));
                self.outbox.push(to, from);
            }
        }
        responder.counters().set_in_flight(queries);
        let saved = self.send(socket, responder);
        responder.counters().set_in_flight(0);
        Ok(Turn { queries, saved })
    }

    fn send(&mut self, socket: &Socket, responder: &Responder) -> usize {
        let transmitter = &mut self.transmitter;
        self.outbox.send(
            |kind, messages, to| transmitter.send(socket, kind, messages, to),
            || responder.counters().dropped(DropReason::Send),
        )
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the kernel may tell more than was asked for")]
fn local(message: &ControlMessageOwned) -> Option<Local> {
    match message {
        ControlMessageOwned::Ipv4PacketInfo(info) => {
            Some(Local { address: IpAddr::from(info.ipi_spec_dst.s_addr.to_ne_bytes()), interface: 0 })
        }
        ControlMessageOwned::Ipv6PacketInfo(info) => {
            Some(Local { address: IpAddr::from(info.ipi6_addr.s6_addr), interface: info.ipi6_ifindex })
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
    use std::sync::Arc;

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
        let mut batch = Batch::new(&socket);
        for (index, to) in [refused, to_client, refused, refused, to_client, refused].into_iter().enumerate() {
            batch.outbox.slot().unwrap().resize(20, u8::try_from(index).unwrap());
            batch.outbox.push(to, None);
        }
        batch.send(&socket, &responder(&counters));
        let mut received = [0; 64];
        for expected in [1, 4] {
            assert_eq!(client.recv(&mut received).unwrap(), 20);
            assert_eq!(received[0], expected);
        }
        assert_eq!(counters.snapshot().dropped(DropReason::Send), 4);
    }

    /// A query for a name of one label.
    fn query(id: u8, label: usize) -> Vec<u8> {
        let head = [0, id, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, u8::try_from(label).unwrap()];
        [&head[..], &vec![b'x'; label], &[0, 0, 1, 0, 1]].concat()
    }

    #[test]
    fn a_client_receives_each_reply_as_a_datagram_of_its_own_from_where_it_asked() {
        for (listen, ask, from) in [
            ("127.0.0.1:0", "127.0.0.1", "127.0.0.1:0"),
            ("0.0.0.0:0", "127.0.0.3", "127.0.0.1:0"),
            ("[::1]:0", "::1", "[::1]:0"),
            ("[::]:0", "::1", "[::1]:0"),
        ] {
            let listen: SocketAddr = listen.parse().unwrap();
            let socket = Socket::new(Domain::for_address(listen), Type::DGRAM, None).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            prepare(&socket, listen).unwrap();
            socket.bind(&listen.into()).unwrap();
            let port = socket.local_addr().unwrap().as_socket().unwrap().port();
            let server = SocketAddr::new(ask.parse().unwrap(), port);
            let clients = [(); 3].map(|()| std::net::UdpSocket::bind(from).unwrap());
            for id in 0..18 {
                clients[usize::from(id % 3)].send_to(&query(id, 1 + usize::from(id / 3 % 2)), server).unwrap();
            }

            let (counters, mut batch) = (Counters::new(1), Batch::new(&socket));
            let turn = batch.turn(&socket, &responder(&counters)).unwrap();
            // Each client gets 6 replies of two lengths: two messages.
            assert_eq!((turn.queries, turn.saved, turn.is_worth_a_rest()), (18, 12, true), "{listen}");
            assert_eq!(counters.snapshot().dropped(DropReason::Send), 0);
            for (first, client) in (0_u8..).zip(&clients) {
                client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                let mut ids = Vec::new();
                let mut received = [0; 2048];
                for _ in 0..6 {
                    let (length, replied) = client.recv_from(&mut received).unwrap();
                    let (id, label) = (received[1], 1 + usize::from(received[1] / 3 % 2));
                    assert_eq!(replied, server);
                    assert_eq!(received[..length][12..18 + label], query(id, label)[12..], "{listen}");
                    assert_eq!(received[2] & 0x80, 0x80);
                    ids.push(id);
                }
                ids.sort_unstable();
                assert_eq!(ids, (0..6).map(|index| first + 3 * index).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn queries_gather_only_where_that_saves_something() {
        let worth = |queries, saved| Turn { queries, saved }.is_worth_a_rest();
        assert!(worth(10, 4));
        // Two stub resolvers, or many clients with one question each: an answer is not delayed.
        assert!(!worth(4, 2) && !worth(BATCH - 1, 0));
        // There is more to do already.
        assert!(!worth(BATCH, BATCH - 1));
    }
}

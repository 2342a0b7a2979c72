//! Sends the replies of one batch in as few trips through the kernel's network stack as they
//! allow: those trips are three quarters of what a reply costs. What goes to one client is one
//! trip (UDP GSO, Linux 4.18): a stub resolver has two questions in flight, A and AAAA, a forwarder
//! many. So replies overtake each other, which over UDP they may.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::slice;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::libc::{in_addr, in_pktinfo, in6_addr, in6_pktinfo};
use nix::sys::socket::{ControlMessage, MsgFlags, MultiHeaders, SockaddrStorage, getsockopt, sendmmsg, sockopt};
use smallvec::SmallVec;
use tracing::debug;

use super::BATCH;
use super::plan::{Kind, Local, Plan, Route};
use crate::wire::MAX_UDP;

/// An address as the kernel takes it; there always is one.
type Address = Option<SockaddrStorage>;

/// Replies that wait to be sent. Its memory is used again.
pub(super) struct Outbox {
    replies: Vec<Vec<u8>>,
    routes: Vec<Route>,
    plan: Plan,
    addresses: Vec<Address>,
    /// Whether the kernel cuts messages.
    cuts: bool,
}

impl Outbox {
    pub(super) fn new(cuts: bool) -> Self {
        Self {
            replies: (0..BATCH).map(|_| Vec::with_capacity(MAX_UDP)).collect(),
            routes: Vec::with_capacity(BATCH),
            plan: Plan::new(),
            addresses: Vec::with_capacity(BATCH),
            cuts,
        }
    }

    /// Where to write the next reply; none after a whole batch. It waits once it is pushed.
    pub(super) fn slot(&mut self) -> Option<&mut Vec<u8>> {
        self.replies.get_mut(self.routes.len())
    }

    /// Keeps the reply in the slot until [`Outbox::send`].
    pub(super) fn push(&mut self, to: SocketAddr, from: Option<Local>) {
        self.routes.push(Route { to, from });
    }

    /// Sends all by `transmit`, which takes messages of one kind and says how many of them went.
    /// What cannot be sent at once is dropped, and `dropped` called for each: the client asks again.
    /// Gives how many trips were saved.
    pub(super) fn send(
        &mut self,
        mut transmit: impl FnMut(Kind, &[&[IoSlice<'_>]], &[Address]) -> nix::Result<usize>,
        mut dropped: impl FnMut(),
    ) -> usize {
        let lengths = self.replies.iter().map(Vec::len);
        self.plan.make(self.routes.iter().copied().zip(lengths), self.cuts);
        self.routes.clear();
        self.addresses.clear();
        self.addresses.extend(self.plan.messages().iter().map(|message| Some(message.to.into())));
        let replies = self.plan.order().iter().filter_map(|index| self.replies.get(*index));
        let replies: SmallVec<[_; BATCH]> = replies.map(|reply| IoSlice::new(reply)).collect();
        let messages = self.plan.messages().iter();
        let messages: SmallVec<[_; BATCH]> =
            messages.map(|message| replies.get(message.replies.clone()).unwrap_or_default()).collect();

        let mut saved = replies.len() - messages.len();
        let mut done = 0;
        while let Some((first, others)) = self.plan.messages().get(done..).and_then(<[_]>::split_first) {
            let alike = 1 + others.iter().take_while(|message| message.kind == first.kind).count();
            let run = done..done + alike;
            let (Some(run), Some(to)) = (messages.get(run.clone()), self.addresses.get(run)) else { break };
            let error = match transmit(first.kind, run, to) {
                Ok(sent) if sent > 0 => {
                    done += sent;
                    continue;
                }
                Ok(_) => Errno::EAGAIN,
                Err(error) => error,
            };
            // One that cannot be sent must not keep back those behind it.
            done += 1;
            let alone = Kind { cut: None, ..first.kind };
            let parts = run.first().copied().unwrap_or_default();
            let mut went = 0;
            for part in parts {
                let to = to.get(..1).unwrap_or_default();
                // What already was alone is not tried again.
                match first.kind.cut.map(|_| transmit(alone, &[slice::from_ref(part)], to)) {
                    Some(Ok(1)) => went += 1,
                    _ => dropped(),
                }
            }
            saved = saved.saturating_sub(parts.len() - 1);
            if went > 0 && matches!(error, Errno::EIO | Errno::EINVAL | Errno::ENOPROTOOPT | Errno::EOPNOTSUPP) {
                debug!(%error, "The kernel does not cut UDP messages here, DNS replies go one by one");
                self.cuts = false;
            }
        }
        saved
    }
}

/// Whether the kernel knows how to cut messages. One that does not would send them whole.
pub(super) fn cuts(socket: &impl AsFd) -> bool {
    getsockopt(socket, sockopt::UdpGsoSegment).is_ok()
}

/// The way into the kernel.
pub(super) struct Transmitter {
    /// Headers by what they have room for: it must be used to the byte.
    headers: BTreeMap<Control, MultiHeaders<SockaddrStorage>>,
}

/// Which control messages there are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Control {
    from: Source,
    cut: bool,
}

/// What says the address to send from.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    Nothing,
    V4,
    V6,
}

impl Control {
    fn of(kind: Kind) -> Self {
        let from = match kind.from.map(|from| from.address) {
            None => Source::Nothing,
            Some(IpAddr::V4(_)) => Source::V4,
            Some(IpAddr::V6(_)) => Source::V6,
        };
        Self { from, cut: kind.cut.is_some() }
    }

    fn space(self) -> Option<Vec<u8>> {
        match (self.from, self.cut) {
            (Source::Nothing, false) => None,
            (Source::Nothing, true) => Some(cmsg_space!(u16)),
            (Source::V4, false) => Some(cmsg_space!(in_pktinfo)),
            (Source::V4, true) => Some(cmsg_space!(in_pktinfo, u16)),
            (Source::V6, false) => Some(cmsg_space!(in6_pktinfo)),
            (Source::V6, true) => Some(cmsg_space!(in6_pktinfo, u16)),
        }
    }
}

impl Transmitter {
    pub(super) fn new() -> Self {
        Self { headers: BTreeMap::new() }
    }

    /// Sends messages of one kind in one call. Gives how many went, which is at least one.
    pub(super) fn send(
        &mut self,
        socket: &impl AsRawFd,
        kind: Kind,
        messages: &[&[IoSlice<'_>]],
        to: &[Address],
    ) -> nix::Result<usize> {
        let (v4, v6);
        let mut control: SmallVec<[ControlMessage<'_>; 2]> = SmallVec::new();
        match kind.from.map(|from| (from.address, from.interface)) {
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
        control.extend(kind.cut.as_ref().map(ControlMessage::UdpGsoSegments));
        let room = Control::of(kind);
        let headers = self.headers.entry(room).or_insert_with(|| MultiHeaders::preallocate(BATCH, room.space()));
        sendmmsg(socket.as_raw_fd(), headers, messages, to, control.as_slice(), MsgFlags::MSG_DONTWAIT)
            .map(Iterator::count)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::UdpSocket;
    use std::time::Duration;

    use super::*;

    /// A client and the datagrams it received, up to the last one that was sent.
    fn client() -> UdpSocket {
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        client
    }

    /// `count` replies of lengths from 20 to 22, to each of which its number is the first byte.
    fn fill(outbox: &mut Outbox, count: u8, to: SocketAddr) -> BTreeSet<Vec<u8>> {
        let replies: BTreeSet<_> = (0..count).map(|number| vec![number; 20 + usize::from(number % 3)]).collect();
        for reply in &replies {
            let slot = outbox.slot().unwrap();
            slot.clear();
            slot.extend(reply);
            outbox.push(to, None);
        }
        replies
    }

    fn received(client: &UdpSocket, count: u8) -> BTreeSet<Vec<u8>> {
        let mut buffer = [0; 2048];
        (0..count).map(|_| client.recv(&mut buffer).map(|length| buffer[..length].to_vec()).unwrap()).collect()
    }

    #[test]
    fn what_the_kernel_refuses_to_cut_goes_one_by_one() {
        // A device or kernel that never can, and one reply that is too long for one path.
        for (refusal, calls_later) in
            [(Errno::EIO, 0), (Errno::EINVAL, 0), (Errno::ENOPROTOOPT, 0), (Errno::EMSGSIZE, 2)]
        {
            let (client, server) = (client(), UdpSocket::bind("127.0.0.1:0").unwrap());
            let (mut outbox, mut transmitter) = (Outbox::new(true), Transmitter::new());
            let mut refused = [0, 0];
            for refused in &mut refused {
                let sent = fill(&mut outbox, 6, client.local_addr().unwrap());
                let transmit = |kind: Kind, messages: &[&[IoSlice<'_>]], to: &[Address]| {
                    if kind.cut.is_none() {
                        return transmitter.send(&server, kind, messages, to);
                    }
                    *refused += 1;
                    Err(refusal)
                };
                assert_eq!(outbox.send(transmit, || panic!("a reply was dropped")), 0);
                assert_eq!(received(&client, 6), sent);
            }
            assert_eq!(refused, [2, calls_later], "{refusal}");
        }
    }

    #[test]
    fn a_target_that_cannot_be_reached_does_not_end_cutting() {
        let (client, server) = (client(), UdpSocket::bind("127.0.0.1:0").unwrap());
        let (mut outbox, mut transmitter) = (Outbox::new(cuts(&server)), Transmitter::new());
        for _ in 0..2 {
            let mut dropped = 0;
            // Broadcasting is not allowed on this socket.
            fill(&mut outbox, 5, "255.255.255.255:53".parse().unwrap());
            let sent = fill(&mut outbox, 6, client.local_addr().unwrap());
            let transmit =
                |kind: Kind, messages: &[&[IoSlice<'_>]], to: &[Address]| transmitter.send(&server, kind, messages, to);
            assert_eq!(outbox.send(transmit, || dropped += 1), 4);
            assert_eq!((received(&client, 6), dropped), (sent, 5));
        }
    }
}

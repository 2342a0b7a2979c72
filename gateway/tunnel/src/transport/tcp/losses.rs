//! What became of the segments of TCP connections: the system is asked for its `tcp_info` by sock_diag(7), which needs
//! no privilege, and whose answers are bytes.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with};

/// `SOCK_DIAG_BY_FAMILY`, `NLM_F_REQUEST`, `IPPROTO_TCP`, the bit of `INET_DIAG_INFO` and its number.
const BY_FAMILY: u16 = 20;
const REQUEST: u16 = 1;
const TCP: u8 = 6;
const INFO_BIT: u8 = 1 << 1;
const INFO: u16 = 2;
/// Bytes of `nlmsghdr`, and of that and `inet_diag_msg`.
const HEADER: usize = 16;
const FIXED: usize = HEADER + 72;
/// A question, and an answer with more than is asked for.
const QUESTION: usize = HEADER + 56;
const ANSWER: usize = 2_048;
/// The system answers at once.
const PATIENCE: Duration = Duration::from_millis(50);

/// Of one connection since its beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Segments {
    /// With data, sent.
    pub(super) sent: u64,
    /// Sent again, and not for nothing as far as the other side says.
    pub(super) lost: u64,
    /// With data, received.
    pub(super) received: u64,
    /// Of those, out of order.
    pub(super) disordered: u64,
}

impl Segments {
    pub(super) fn add(&mut self, more: &Self) {
        self.sent += more.sent;
        self.lost += more.lost;
        self.received += more.received;
        self.disordered += more.disordered;
    }

    /// What is more here than there.
    pub(super) fn since(&self, before: &Self) -> Self {
        Self {
            sent: self.sent.saturating_sub(before.sent),
            lost: self.lost.saturating_sub(before.lost),
            received: self.received.saturating_sub(before.received),
            disordered: self.disordered.saturating_sub(before.disordered),
        }
    }
}

/// Where the system is asked.
pub(super) struct Diagnosis(OwnedFd);

impl Diagnosis {
    /// # Errors
    /// The system has no such thing, or does not let us.
    pub(super) fn open() -> io::Result<Self> {
        let socket =
            socket_with(AddressFamily::NETLINK, SocketType::DGRAM, SocketFlags::CLOEXEC, Some(netlink::SOCK_DIAG))?;
        set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
        Ok(Self(socket))
    }

    /// Of the connection between these two; none if the system does not say.
    pub(super) fn segments(&self, local: SocketAddr, remote: SocketAddr) -> Option<Segments> {
        let question = question(local, remote);
        send(&self.0, &question, SendFlags::empty()).ok()?;
        let mut answer = [0_u8; ANSWER];
        let (length, _) = recv(&self.0, answer.as_mut_slice(), RecvFlags::empty()).ok()?;
        parse(answer.get(..length)?)
    }
}

/// `nlmsghdr` and `inet_diag_req_v2` (linux/inet_diag.h).
fn question(local: SocketAddr, remote: SocketAddr) -> Vec<u8> {
    let (family, address): (u8, fn(IpAddr) -> [u8; 16]) = match (local.ip(), remote.ip()) {
        (IpAddr::V4(_), IpAddr::V4(_)) => (2, v4),
        _ => (10, v6),
    };
    let mut out = Vec::with_capacity(QUESTION);
    out.extend(u32::try_from(QUESTION).unwrap_or_default().to_ne_bytes());
    out.extend([BY_FAMILY, REQUEST].map(u16::to_ne_bytes).as_flattened());
    out.extend([0_u8; 8]);
    // Of whatever state.
    out.extend([family, TCP, INFO_BIT, 0, 0xff, 0xff, 0xff, 0xff]);
    out.extend([local.port(), remote.port()].map(u16::to_be_bytes).as_flattened());
    out.extend(address(local.ip()));
    out.extend(address(remote.ip()));
    // Of any interface; no cookie.
    out.extend([0_u8; 4]);
    out.extend([0xff_u8; 8]);
    out
}

fn v4(address: IpAddr) -> [u8; 16] {
    let mut bytes = [0; 16];
    if let IpAddr::V4(address) = address {
        bytes.iter_mut().zip(address.octets()).for_each(|(byte, octet)| *byte = octet);
    }
    bytes
}

fn v6(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// Finds `tcp_info` (linux/tcp.h), and in it what matters here. Older kernels give less of it.
fn parse(answer: &[u8]) -> Option<Segments> {
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    if kind != BY_FAMILY {
        return None;
    }
    let mut rest = answer.get(FIXED..)?;
    loop {
        let (head, body) = rest.split_first_chunk::<4>()?;
        let [a, b, c, d] = *head;
        let length = usize::from(u16::from_ne_bytes([a, b])).checked_sub(head.len())?;
        if u16::from_ne_bytes([c, d]) == INFO {
            let info = body.get(..length)?;
            let word = |at: usize| info.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes).map(u64::from);
            return Some(Segments {
                sent: word(156)?,
                lost: word(100)?.saturating_sub(word(216).unwrap_or_default()),
                received: word(152)?,
                disordered: word(224).unwrap_or_default(),
            });
        }
        // Each begins at a multiple of four.
        rest = body.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn the_system_tells_of_a_connection() {
        for address in ["127.0.0.1:0", "[::]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let mut one = TcpStream::connect(("127.0.0.1", listener.local_addr().unwrap().port())).unwrap();
            let (mut other, _) = listener.accept().unwrap();
            let data = vec![7; 1 << 20];
            let writing = std::thread::spawn(move || {
                one.write_all(&data).unwrap();
                one
            });
            other.read_exact(&mut vec![0; 1 << 20]).unwrap();
            let one = writing.join().unwrap();
            let system = Diagnosis::open().unwrap();
            let of = |stream: &TcpStream| {
                system.segments(stream.local_addr().unwrap(), stream.peer_addr().unwrap()).unwrap()
            };
            let (sent, received) = (of(&one), of(&other));
            assert!(sent.sent > 10 && sent.lost <= sent.sent, "{sent:?}");
            assert!(received.received > 10 && received.disordered <= received.received, "{received:?}");
            drop((one, other));
            let nobody = SocketAddr::from(([127, 0, 0, 1], 1));
            assert_eq!(system.segments(nobody, nobody), None);
        }
    }

    #[test]
    fn u5_whatever_is_answered_is_read_or_not() {
        let mut random = fastrand::Rng::with_seed(5);
        for length in 0..400 {
            let mut bytes: Vec<u8> = std::iter::repeat_with(|| random.u8(..8)).take(length).collect();
            if let Some(kind) = bytes.get_mut(4..6) {
                kind.copy_from_slice(&BY_FAMILY.to_ne_bytes());
            }
            parse(&bytes);
        }
    }
}

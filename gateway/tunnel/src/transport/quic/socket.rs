//! UDP sockets with buffers that a burst fits into.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

/// Opens a socket on `address`; an unspecified IPv6 address takes IPv4 too. `buffer` 0: as it comes.
pub(super) fn bind(address: SocketAddr, buffer: usize) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    if buffer > 0 {
        enlarge(&socket, buffer);
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Opens the socket that takes links: [`connected`] ones may share its port.
pub(super) fn listening(address: SocketAddr, buffer: usize) -> io::Result<UdpSocket> {
    let socket = bind(address, buffer)?;
    // Not before it is bound: a second process at the port is an error of its start.
    SockRef::from(&socket).set_reuse_port(true)?;
    Ok(socket)
}

/// Opens a socket on `local`, where another one listens, that gets what comes from `remote`.
pub(super) fn connected(local: SocketAddr, remote: SocketAddr, buffer: usize) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(local), Type::DGRAM, Some(Protocol::UDP))?;
    if local.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    enlarge(&socket, buffer);
    socket.set_nonblocking(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&local.into())?;
    socket.connect(&remote.into())?;
    Ok(socket.into())
}

/// Opens a socket on a fresh port to dial `remote` from.
pub(super) fn for_dial(remote: SocketAddr, buffer: usize) -> io::Result<UdpSocket> {
    let any = match remote {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    bind(any, buffer)
}

/// The largest payload that the interface towards `remote` takes in one packet; `None`: it does not say.
pub(super) fn largest_payload(remote: SocketAddr) -> Option<u16> {
    let socket = for_dial(remote, 0).ok()?;
    socket.connect(remote).ok()?;
    let (mtu, headers) = match remote {
        SocketAddr::V4(_) => (rustix::net::sockopt::ip_mtu(&socket).ok()?, 28),
        SocketAddr::V6(_) => (rustix::net::sockopt::ipv6_mtu(&socket).ok()?, 48),
    };
    u16::try_from(mtu.saturating_sub(headers).min(u32::from(u16::MAX))).ok()
}

/// Bytes that the system granted for receiving, in the measure of `net.core.rmem_max`: Linux reports twice
/// that, because it counts its own bookkeeping (socket(7), `SO_RCVBUF`).
pub(super) fn receive_buffer(socket: &UdpSocket) -> Option<u64> {
    let reported = rustix::net::sockopt::socket_recv_buffer_size(socket).ok()?;
    let granted = if cfg!(target_os = "linux") { reported / 2 } else { reported };
    u64::try_from(granted).ok()
}

/// Asks for `buffer` bytes each way and takes what the system grants (`net.core.rmem_max`, `wmem_max`, unless
/// the process has `CAP_NET_ADMIN`). The default of 208 KiB loses packets in every burst.
fn enlarge(socket: &Socket, buffer: usize) {
    use rustix::net::sockopt;
    let forced = sockopt::set_socket_recv_buffer_size_force(socket, buffer).and_then(|()| {
        // There is no forced variant for sending in rustix; receiving is what loses packets.
        sockopt::set_socket_send_buffer_size(socket, buffer)
    });
    if forced.is_ok() {
        return;
    }
    let result = socket.set_recv_buffer_size(buffer).and_then(|()| socket.set_send_buffer_size(buffer));
    if let Err(error) = result {
        tracing::debug!(%error, buffer, "The socket keeps its default buffers");
    }
}

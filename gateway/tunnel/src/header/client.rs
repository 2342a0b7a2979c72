//! The address of a client, as the gateway that it connected to saw it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use eastway_proto::tunnel::v1 as proto;

use super::HeaderError;

/// Who connected, to be told to an endpoint. It says nothing about where to connect, and whoever gets it from a peer has
/// only that peer's word for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientAddress(SocketAddr);

impl ClientAddress {
    /// `None`: no client has this address. One that stands for an IPv4 address becomes that.
    #[must_use]
    pub fn new(address: SocketAddr) -> Option<Self> {
        let ip = address.ip().to_canonical();
        let is_broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
        let is_of_nobody = ip.is_unspecified() || ip.is_multicast() || is_broadcast || address.port() == 0;
        (!is_of_nobody).then(|| Self(SocketAddr::new(ip, address.port())))
    }

    /// To be shown, and told to the endpoint; never to be dialled (invariant I1).
    #[must_use]
    pub const fn shown(self) -> SocketAddr {
        self.0
    }

    pub(super) fn to_proto(self) -> proto::ClientAddress {
        let ip = match self.0.ip() {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        proto::ClientAddress { ip: ip.into(), port: self.0.port().into() }
    }

    pub(super) fn from_proto(wire: &proto::ClientAddress) -> Result<Self, HeaderError> {
        let v4 = <[u8; 4]>::try_from(wire.ip.as_ref()).map(|octets| IpAddr::from(Ipv4Addr::from(octets)));
        let v6 = || <[u8; 16]>::try_from(wire.ip.as_ref()).map(|octets| IpAddr::from(Ipv6Addr::from(octets)));
        let (ip, port) = (v4.or_else(|_| v6()).ok(), u16::try_from(wire.port).ok());
        let address = ip.zip(port).map(|(ip, port)| SocketAddr::new(ip, port));
        // One form for each address.
        address
            .filter(|address| address.ip().to_canonical() == address.ip())
            .and_then(Self::new)
            .ok_or(HeaderError::ClientAddress)
    }
}

//! The header by which an endpoint is told who connects: the PROXY protocol, version 2, in its binary form
//! (HAProxy's `proxy-protocol.txt`, §2.2).

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// What every header begins with.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, and the connection is the sender's own.
const LOCAL: u8 = 0x20;
/// Version 2, and the connection is somebody else's.
const PROXY: u8 = 0x21;
/// Address family and transport.
const UNSPECIFIED: u8 = 0x00;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;

/// TLV of the cluster that the client is in (§2.2.7: 0xE0 to 0xEF are for applications).
pub const TYPE_CLUSTER: u8 = 0xe0;
/// TLV of who the client is: the URI that its workload proved, or `<namespace>/<service account>`.
pub const TYPE_SOURCE: u8 = 0xe1;
/// Longest value of a TLV here, bytes; what is longer is left out. All together stay below 536 bytes, which the
/// specification says fit a first segment.
pub const MAX_VALUE: usize = 200;

/// Who connects, and where to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The client.
    pub client: SocketAddr,
    /// What it reached.
    pub endpoint: SocketAddr,
}

/// The header. `None`: the sender speaks for itself, as for a health check, or does not know for whom. Of `more`, types
/// with their values, those that fit are told.
#[must_use]
pub fn header(addresses: Option<Addresses>, more: &[(u8, &str)]) -> Vec<u8> {
    let (command, family, mut rest) = match addresses.map(|it| (it, it.client.ip(), it.endpoint.ip())) {
        None => (LOCAL, UNSPECIFIED, Vec::new()),
        Some((it, IpAddr::V4(client), IpAddr::V4(endpoint))) => {
            (PROXY, TCP_OVER_IPV4, [&client.octets()[..], &endpoint.octets(), &ports(it)].concat())
        }
        // There is one family for both: an IPv4 address is written as IPv6 beside one of that.
        Some((it, client, endpoint)) => {
            (PROXY, TCP_OVER_IPV6, [&wide(client).octets()[..], &wide(endpoint).octets(), &ports(it)].concat())
        }
    };
    for (kind, value) in more {
        if let Some(length) = u8::try_from(value.len()).ok().filter(|length| usize::from(*length) <= MAX_VALUE) {
            rest.extend_from_slice(&[*kind, 0, length]);
            rest.extend_from_slice(value.as_bytes());
        }
    }
    // Bounded above: two addresses and a few values.
    let length = u16::try_from(rest.len()).unwrap_or_default().to_be_bytes();
    [&SIGNATURE[..], &[command, family], &length, &rest].concat()
}

fn ports(addresses: Addresses) -> [u8; 4] {
    let ([a, b], [c, d]) = (addresses.client.port().to_be_bytes(), addresses.endpoint.port().to_be_bytes());
    [a, b, c, d]
}

fn wide(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: &[u8] = b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a";

    fn of(client: &str, endpoint: &str) -> Vec<u8> {
        let [client, endpoint] = [client, endpoint].map(|text| text.parse().unwrap());
        header(Some(Addresses { client, endpoint }), &[])
    }

    #[test]
    fn headers_are_as_the_specification_has_them() {
        assert_eq!(header(None, &[]), [START, b"\x20\x00\x00\x00"].concat());
        let v4 = b"\x21\x11\x00\x0c\x0a\x01\x02\x03\xac\x10\x00\x09\x9c\x40\x1f\x90";
        assert_eq!(of("10.1.2.3:40000", "172.16.0.9:8080"), [START, v4].concat());
        let v6 = of("[2001:db8::1]:1", "[fd00::2]:65535");
        assert_eq!(v6[12..16], *b"\x21\x21\x00\x24");
        assert_eq!(v6[16..32], "2001:db8::1".parse::<Ipv6Addr>().unwrap().octets());
        assert_eq!(v6[32..48], "fd00::2".parse::<Ipv6Addr>().unwrap().octets());
        assert_eq!(v6[48..], *b"\x00\x01\xff\xff");
        let mixed = of("[2001:db8::1]:1", "10.0.0.1:2");
        assert_eq!(mixed[13], 0x21);
        assert_eq!(mixed[32..48], "::ffff:10.0.0.1".parse::<Ipv6Addr>().unwrap().octets());
    }

    #[test]
    fn more_is_told_as_far_as_it_fits() {
        let long = "x".repeat(MAX_VALUE + 1);
        let more = [(TYPE_CLUSTER, "gke"), (TYPE_SOURCE, long.as_str()), (TYPE_SOURCE, "shop/web")];
        let told = header(None, &more);
        assert_eq!(told, [START, b"\x20\x00\x00\x11", b"\xe0\x00\x03gke", b"\xe1\x00\x08shop/web"].concat());
        let most = "x".repeat(MAX_VALUE);
        let ip = SocketAddr::from((Ipv6Addr::LOCALHOST, 1));
        let both = [(TYPE_CLUSTER, most.as_str()), (TYPE_SOURCE, most.as_str())];
        assert!(header(Some(Addresses { client: ip, endpoint: ip }), &both).len() <= 536);
    }
}

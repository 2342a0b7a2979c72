//! Which addresses may be dialled.

use std::net::IpAddr;

/// Why an address must not be dialled for a service (threat P6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RefusedAddress {
    /// `127.0.0.0/8`, `::1`.
    #[error("loopback")]
    Loopback,
    /// `169.254.0.0/16`, `fe80::/10`: cloud metadata services live there.
    #[error("link-local")]
    LinkLocal,
    /// `224.0.0.0/4`, `ff00::/8`.
    #[error("multicast")]
    Multicast,
    /// `0.0.0.0/8`, `::`: "this host" on most systems.
    #[error("unspecified")]
    Unspecified,
    /// `255.255.255.255`.
    #[error("broadcast")]
    Broadcast,
    /// `::ffff:a.b.c.d` and `::a.b.c.d`: an IPv4 address that filters for IPv4 do not see.
    #[error("an IPv4 address in IPv6 form; write it as IPv4")]
    MappedV4,
}

/// Whether a gateway may dial `address` as an endpoint. `allow_loopback` is for demonstrations and
/// tests on one machine.
///
/// # Errors
/// [`RefusedAddress`] says which kind of address is refused.
pub fn dialable(address: IpAddr, allow_loopback: bool) -> Result<(), RefusedAddress> {
    let refused = match address {
        IpAddr::V4(v4) if v4.octets()[0] == 0 => Some(RefusedAddress::Unspecified),
        IpAddr::V4(v4) if v4.is_link_local() => Some(RefusedAddress::LinkLocal),
        IpAddr::V4(v4) if v4.is_multicast() => Some(RefusedAddress::Multicast),
        IpAddr::V4(v4) if v4.is_broadcast() => Some(RefusedAddress::Broadcast),
        IpAddr::V4(v4) if v4.is_loopback() => Some(RefusedAddress::Loopback),
        IpAddr::V4(_) => None,
        IpAddr::V6(v6) if v6.is_unspecified() => Some(RefusedAddress::Unspecified),
        IpAddr::V6(v6) if v6.is_loopback() => Some(RefusedAddress::Loopback),
        IpAddr::V6(v6) if v6.is_multicast() => Some(RefusedAddress::Multicast),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some(RefusedAddress::LinkLocal),
        // Deprecated ::a.b.c.d (RFC 4291 §2.5.5.1) is routed by some stacks all the same.
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() || v6.segments().starts_with(&[0; 6]) => {
            Some(RefusedAddress::MappedV4)
        }
        IpAddr::V6(_) => None,
    };
    match refused {
        Some(RefusedAddress::Loopback) if allow_loopback => Ok(()),
        Some(refused) => Err(refused),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p6_only_addresses_of_workloads_are_dialled() {
        let refused = [
            "127.0.0.1",
            "127.255.0.1",
            "169.254.169.254",
            "224.0.0.1",
            "0.0.0.0",
            "0.1.2.3",
            "255.255.255.255",
            "::1",
            "::",
            "fe80::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::10.0.0.1",
        ];
        for text in refused {
            assert!(dialable(text.parse().unwrap(), false).is_err(), "{text}");
        }
        for text in ["10.0.0.1", "192.0.2.1", "fd00::1", "2001:db8::1", "242.0.0.1"] {
            assert_eq!(dialable(text.parse().unwrap(), false), Ok(()), "{text}");
        }
        assert_eq!(dialable("127.0.0.5".parse().unwrap(), true), Ok(()));
        assert_eq!(dialable("::1".parse().unwrap(), true), Ok(()));
        assert!(dialable("::ffff:127.0.0.1".parse().unwrap(), true).is_err());
        assert!(dialable("169.254.169.254".parse().unwrap(), true).is_err());
    }
}

//! Binds to addresses of a range that is routed here and assigned to no interface.
//!
//! Linux lets a socket bind an IPv4 address if a route of type `local` leads to it. For IPv6 it looks at assigned
//! addresses only (`inet6_bind` and `ipv6_chk_addr`), whatever the routes say, unless the socket asks for
//! `IPV6_FREEBIND`. With that it binds anything, so that the route is looked for here: an address that nothing leads to
//! must stay an error that is told.

use std::fs;
use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use socket2::Socket;

/// The kernel's IPv6 routes: destination, prefix length, …, flags, interface, all numbers in hexadecimal.
const ROUTES: &str = "/proc/self/net/ipv6_route";
/// `RTF_LOCAL` of `linux/ipv6_route.h`.
const LOCAL: u32 = 0x8000_0000;

/// For how long the routes are taken as they were read. A host may have thousands, and a start binds hundreds of
/// listeners at once; one that fails for a route that is new is tried again later.
const FRESH: Duration = Duration::from_secs(1);

/// The local ranges that were read last, and when.
static RANGES: Mutex<Option<(Instant, Vec<Range>)>> = Mutex::new(None);

/// Network and prefix length.
type Range = (Ipv6Addr, u32);

/// Binds `socket` to `address`, which may be one of a range that is routed here.
///
/// # Errors
/// Those of `bind`; `AddrNotAvailable` if no route of type `local` leads to the address.
pub fn bind(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    match (socket.bind(&address.into()), address) {
        (Err(error), SocketAddr::V6(v6)) if error.kind() == io::ErrorKind::AddrNotAvailable => {
            if !is_local(*v6.ip(), Instant::now()) {
                return Err(error);
            }
            socket.set_freebind_v6(true)?;
            socket.bind(&address.into())
        }
        (result, _) => result,
    }
}

/// As [`leads_here`], by the kernel's routes.
fn is_local(address: Ipv6Addr, now: Instant) -> bool {
    let mut ranges = RANGES.lock().unwrap_or_else(PoisonError::into_inner);
    let fresh = ranges.take().filter(|(read, _)| now.saturating_duration_since(*read) < FRESH);
    let read = || (now, local_ranges(&fs::read_to_string(ROUTES).unwrap_or_default()));
    let (_, ranges) = ranges.insert(fresh.unwrap_or_else(read));
    leads_here(ranges, address)
}

/// Whether a route of type `local` covers `address`.
fn leads_here(ranges: &[Range], address: Ipv6Addr) -> bool {
    ranges.iter().any(|(network, length)| {
        let differ = address.to_bits() ^ network.to_bits();
        differ.checked_shr(128 - length).unwrap_or(0) == 0
    })
}

fn local_ranges(routes: &str) -> Vec<Range> {
    routes.lines().filter_map(local_range).collect()
}

/// Destination and prefix length of a line, if it is a route of type `local`.
fn local_range(line: &str) -> Option<Range> {
    let mut fields = line.split_ascii_whitespace();
    let network = u128::from_str_radix(fields.next()?, 16).ok()?;
    let length = u32::from_str_radix(fields.next()?, 16).ok().filter(|length| *length <= 128)?;
    let flags = u32::from_str_radix(fields.nth(6)?, 16).ok()?;
    (flags & LOCAL != 0).then(|| (Ipv6Addr::from_bits(network), length))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
fd000000000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001     eth0
00000000000000000000000000000000 00 00000000000000000000000000000000 00 fd000000000000000000000000000001 00000400 00000002 00000000 00000003     eth0
fd656173747700000000000000000000 30 00000000000000000000000000000000 00 00000000000000000000000000000000 00000400 00000001 00000000 80000001       lo
00000000000000000000000000000001 80 00000000000000000000000000000000 00 00000000000000000000000000000000 00000000 00000004 00000000 80200001       lo
garbage 80 x
";

    #[test]
    fn only_local_routes_lead_here() {
        let leads = |address: &str| leads_here(&local_ranges(TABLE), address.parse().unwrap());
        assert!(leads("fd65:6173:7477::1"));
        assert!(leads("fd65:6173:7477:ffff:ffff:ffff:ffff:ffff"));
        assert!(leads("::1"));
        assert!(!leads("fd65:6173:7478::1"), "next to the range");
        assert!(!leads("fd00::7"), "on the link, at somebody else");
        assert!(!leads("2001:db8::1"), "by the default route");
        assert!(!leads_here(&[], "::1".parse().unwrap()));
        let everything = "00000000000000000000000000000000 00 0 00 0 0 0 0 80000001 lo";
        assert!(leads_here(&local_ranges(everything), "2001:db8::1".parse().unwrap()), "a prefix of no bits");
    }
}

//! Dials endpoints of this cluster, and only those.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use dashmap::DashMap;
use eastway_model::EndpointId;
use eastway_model::vip::VipRange;
use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::proxy::copy::reset_unless_done;
use crate::telemetry::DialOutcome;

/// How long an endpoint may take to accept a connection.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(3);

/// Why an endpoint was not reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The address may not be dialled, whatever a registry says (threat P6).
    #[error("address {0} is refused: {1}")]
    Forbidden(IpAddr, &'static str),
    /// No answer in time.
    #[error("{0} did not accept within {DIAL_TIMEOUT:?}")]
    Timeout(SocketAddr),
    /// The operating system's error.
    #[error("{0}: {1}")]
    Failed(SocketAddr, #[source] io::Error),
}

/// What this gateway never dials, whatever a registry says, beside what nobody can.
#[derive(Clone, Debug, Default)]
pub struct DialRules {
    /// Endpoints on loopback addresses may be dialled: for demonstrations and tests.
    pub allow_loopback: bool,
    /// Virtual addresses of imports: an endpoint there would make this cluster carry traffic from
    /// peer to peer, or in a circle (threat P13).
    pub virtual_ranges: Vec<VipRange>,
}

/// Connects to an endpoint after looking at the address once more: a registry may have been
/// tricked between its check and now. The connection is reset unless it ends in order.
///
/// # Errors
/// [`DialError`]
pub async fn dial(address: SocketAddr, rules: &DialRules) -> Result<TcpStream, DialError> {
    if let Some(why) = forbidden(address.ip(), rules) {
        return Err(DialError::Forbidden(address.ip(), why));
    }
    match timeout(DIAL_TIMEOUT, connect(address)).await {
        Err(_elapsed) => Err(DialError::Timeout(address)),
        Ok(connected) => connected.map_err(|error| DialError::Failed(address, error)),
    }
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    reset_unless_done(&socket);
    let begun = socket.connect(&address.into());
    let tcp = TcpStream::from_std(socket.into())?;
    match begun {
        Err(error) if Errno::from_io_error(&error) != Some(Errno::INPROGRESS) => Err(error),
        // Who is on this node has answered before the system call was over: nobody need be woken for it.
        Ok(()) | Err(_) if tcp.peer_addr().is_ok() => Ok(tcp),
        Ok(()) | Err(_) => {
            tcp.writable().await?;
            tcp.take_error()?.map_or(Ok(tcp), Err)
        }
    }
}

/// A dial as metrics count it.
#[must_use]
pub fn outcome<T>(dialled: &Result<T, DialError>) -> DialOutcome {
    match dialled {
        Ok(_) => DialOutcome::Connected,
        Err(DialError::Timeout(_)) => DialOutcome::Timeout,
        Err(DialError::Forbidden(..)) => DialOutcome::Rejected,
        Err(DialError::Failed(_, error)) if error.kind() == io::ErrorKind::ConnectionRefused => DialOutcome::Refused,
        Err(DialError::Failed(..)) => DialOutcome::Failed,
    }
}

/// Why an address is never an endpoint of a service.
#[must_use]
pub fn forbidden(address: IpAddr, rules: &DialRules) -> Option<&'static str> {
    if let IpAddr::V6(v6) = address
        && v6.to_ipv4_mapped().is_some()
    {
        return Some("IPv4-mapped");
    }
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    match () {
        () if address.is_unspecified() => Some("unspecified"),
        () if address.is_multicast() || broadcast => Some("multicast"),
        () if link_local => Some("link-local"),
        () if address.is_loopback() && !rules.allow_loopback => Some("loopback"),
        () if rules.virtual_ranges.iter().any(|range| range.contains(address)) => Some("a virtual address of ours"),
        () => None,
    }
}

/// Connections in flight per endpoint of this cluster, for power-of-two-choices.
#[derive(Debug, Default)]
pub struct InFlight(DashMap<EndpointId, Arc<AtomicU32>>);

impl InFlight {
    /// Connections to `endpoint` right now.
    #[must_use]
    pub fn of(&self, endpoint: &EndpointId) -> u32 {
        self.0.get(endpoint).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// Connections to all endpoints of this cluster right now.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().map(|entry| u64::from(entry.value().load(Ordering::Relaxed))).sum()
    }

    /// Counts one connection until the guard is dropped.
    #[must_use]
    pub fn enter(self: &Arc<Self>, endpoint: &EndpointId) -> InFlightGuard {
        let entry = self.0.entry(endpoint.clone()).or_default();
        // Counted while the entry is held: else the last one to leave could remove it in between.
        entry.fetch_add(1, Ordering::Relaxed);
        let count = entry.clone();
        drop(entry);
        InFlightGuard { table: self.clone(), endpoint: endpoint.clone(), count }
    }
}

/// One connection in flight.
#[derive(Debug)]
pub struct InFlightGuard {
    table: Arc<InFlight>,
    endpoint: EndpointId,
    count: Arc<AtomicU32>,
}

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        if self.count.fetch_sub(1, Ordering::Relaxed) == 1 {
            // Endpoint ids are never reused: without this the table would grow for ever.
            self.table.0.remove_if(&self.endpoint, |_, count| count.load(Ordering::Relaxed) == 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p6_addresses_that_are_never_dialled() {
        for (address, why) in [
            ("127.0.0.1", "loopback"),
            ("::1", "loopback"),
            ("169.254.169.254", "link-local"),
            ("fe80::1", "link-local"),
            ("0.0.0.0", "unspecified"),
            ("::", "unspecified"),
            ("224.0.0.1", "multicast"),
            ("255.255.255.255", "multicast"),
            ("::ffff:10.0.0.1", "IPv4-mapped"),
        ] {
            assert_eq!(forbidden(address.parse().unwrap(), &DialRules::default()), Some(why), "{address}");
        }
        assert_eq!(forbidden("10.244.0.1".parse().unwrap(), &DialRules::default()), None);
        let rules = DialRules { allow_loopback: true, virtual_ranges: Vec::new() };
        assert_eq!(forbidden("127.0.0.1".parse().unwrap(), &rules), None);
    }

    #[test]
    fn p13_an_import_is_no_endpoint() {
        let rules = DialRules { virtual_ranges: vec!["242.0.0.0/16".parse().unwrap()], ..DialRules::default() };
        assert_eq!(forbidden("242.0.7.9".parse().unwrap(), &rules), Some("a virtual address of ours"));
        assert_eq!(forbidden("242.1.0.1".parse().unwrap(), &rules), None);
    }

    #[test]
    fn in_flight_counts_and_forgets() {
        let table = Arc::new(InFlight::default());
        let id = EndpointId::parse("e-1").unwrap();
        let (first, second) = (table.enter(&id), table.enter(&id));
        assert_eq!(table.of(&id), 2);
        drop(first);
        assert_eq!(table.of(&id), 1);
        drop(second);
        assert_eq!((table.of(&id), table.0.len()), (0, 0));
    }
}

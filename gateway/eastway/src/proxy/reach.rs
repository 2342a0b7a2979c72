//! Finds an endpoint of this cluster that takes a connection.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use eastway_model::EndpointId;
use eastway_model::proxy_protocol::{self, Addresses, TYPE_CLUSTER, TYPE_SOURCE};
use eastway_model::routing::{Failing, PickError};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::proxy::connection::Connection;
use crate::proxy::dial::{self, DIAL_TIMEOUT, DialError, InFlightGuard};
use crate::proxy::udp::PacketSocket;
use crate::router::{Picked, Router};
use crate::telemetry::{Path, Refusal};

/// Endpoints tried for one connection at most. One that refuses costs a fraction of a millisecond, and each is known
/// to fail after that.
const MAX_DIALS: usize = 32;
/// Of these, how many that were known to fail.
const MAX_FAILING_DIALS: usize = 3;
/// No other endpoint is tried for one connection later than this after the first that failed: with two that do not
/// answer the connection has taken as long as anybody waits.
const LAST_DIAL: Duration = DIAL_TIMEOUT.saturating_add(Duration::from_millis(500));
/// How long an endpoint that could not be dialled gets connections only if there is no other.
const FAILING_FOR: Duration = Duration::from_secs(5);
/// Endpoints that are remembered at most.
const MAX_FAILING: usize = 4_096;

/// Why no endpoint was reached.
#[derive(Debug, thiserror::Error)]
pub enum ReachError {
    /// There was none to try.
    #[error(transparent)]
    Pick(#[from] PickError),
    /// The last one that was tried.
    #[error(transparent)]
    Dial(#[from] DialError),
}

/// An endpoint that took the connection.
#[derive(Debug)]
pub struct Reached {
    /// The connection.
    pub tcp: TcpStream,
    /// Which endpoint.
    pub picked: Picked,
    /// Counts the connection.
    pub in_flight: InFlightGuard,
}

/// Endpoints of this cluster that could not be dialled lately. Their registry will say so, too; until then this does.
#[derive(Debug, Default)]
pub struct FailingEndpoints {
    /// Until when each is avoided.
    until: ArcSwap<HashMap<EndpointId, Instant>>,
}

impl FailingEndpoints {
    /// Calls `then` with those that fail at `now`; `None` if there are none.
    pub fn with<R>(&self, then: impl FnOnce(Option<Failing<'_>>) -> R) -> R {
        let until = self.until.load();
        then(if until.is_empty() { None } else { Some(Failing { until: &until, now: Instant::now() }) })
    }

    /// Whether an endpoint is avoided now.
    #[must_use]
    pub fn contains(&self, endpoint: &EndpointId) -> bool {
        self.with(|failing| failing.is_some_and(|failing| failing.contains(endpoint)))
    }

    /// It could not be reached now.
    pub fn note(&self, endpoint: &EndpointId) {
        let now = Instant::now();
        self.until.rcu(|until| {
            // Ids are never reused: without this the table would grow for ever.
            let others = until.iter().filter(|(_, until)| **until > now).take(MAX_FAILING - 1);
            let others = others.map(|(id, until)| (id.clone(), *until));
            others.chain([(endpoint.clone(), now + FAILING_FOR)]).collect::<HashMap<_, _>>()
        });
    }

    fn forget(&self, endpoint: &EndpointId) {
        if self.until.load().contains_key(endpoint) {
            self.until.rcu(|until| {
                let mut others = HashMap::clone(until);
                others.remove(endpoint);
                others
            });
        }
    }
}

/// A socket of UDP that is connected to the endpoint. Whether anybody is there, packets will tell.
///
/// # Errors
/// [`DialError`]
pub(super) fn connect_udp(router: &Router, picked: &Picked) -> Result<PacketSocket, DialError> {
    let address = picked.address;
    if let Some(why) = dial::forbidden(address.ip(), &router.dial) {
        return Err(DialError::Forbidden(address.ip(), why));
    }
    PacketSocket::connect(address).map_err(|error| {
        router.failing.note(&picked.endpoint);
        DialError::Failed(address, error)
    })
}

/// What was tried for one connection.
#[derive(Debug, Default)]
struct Tries {
    tried: Vec<EndpointId>,
    failing: usize,
    first_failed: Option<Instant>,
}

impl Tries {
    /// Notes an endpoint that was not reached; whether another may be tried.
    fn failed(&mut self, picked: &Picked) -> bool {
        let first_failed = *self.first_failed.get_or_insert_with(Instant::now);
        self.tried.push(picked.endpoint.clone());
        self.failing += usize::from(picked.is_failing);
        let room = self.tried.len() < MAX_DIALS && self.failing < MAX_FAILING_DIALS;
        room && first_failed.elapsed() < LAST_DIAL
    }
}

/// Dials what `pick` names, given what was tried, until an endpoint takes the connection.
///
/// # Errors
/// [`ReachError`]
pub async fn reach(
    router: &Router,
    path: Path,
    connection: &mut Connection,
    pick: impl Fn(&[EndpointId]) -> Result<Picked, PickError>,
) -> Result<Reached, ReachError> {
    let mut tries = Tries::default();
    let mut last: Option<DialError> = None;
    loop {
        let picked = match (pick(&tries.tried), last.take()) {
            (Ok(picked), None) => picked,
            (Ok(picked), Some(_)) if !tries.tried.contains(&picked.endpoint) => picked,
            (_, Some(last)) => return Err(last.into()),
            (Err(error), None) => return Err(error.into()),
        };
        connection.set_upstream(path, picked.address);
        connection.set_version(picked.version.clone());
        let in_flight = router.in_flight.enter(&picked.endpoint);
        match dial(router, &picked, connection).await {
            Ok(tcp) => return Ok(Reached { tcp, picked, in_flight }),
            Err(error) if tries.failed(&picked) => last = Some(error),
            Err(error) => return Err(error.into()),
        }
    }
}

async fn dial(router: &Router, picked: &Picked, connection: &Connection) -> Result<TcpStream, DialError> {
    let mut dialled = dial::dial(picked.address, &router.dial).await;
    if let Ok(tcp) = &mut dialled
        && picked.proxy_protocol
        && let Err(error) = tcp.write_all(&introduction(connection, picked.address)).await
    {
        dialled = Err(DialError::Failed(picked.address, error));
    }
    router.telemetry.metrics.upstream_dial(dial::outcome(&dialled));
    match &dialled {
        Ok(_) => router.failing.forget(&picked.endpoint),
        Err(error @ DialError::Forbidden(..)) => router.telemetry.refusals.refused(Refusal::Address, None, error),
        Err(DialError::Timeout(_) | DialError::Failed(..)) => router.failing.note(&picked.endpoint),
    }
    dialled
}

/// What an endpoint is told of who connects, before anything else: a header that fits the empty buffer of a new socket.
fn introduction(connection: &Connection, endpoint: SocketAddr) -> Vec<u8> {
    let addresses = connection.client().map(|client| Addresses { client, endpoint });
    let Some(source) = connection.source() else { return proxy_protocol::header(addresses, &[]) };
    let who = match (&source.identity, &source.namespace, &source.service_account) {
        (Some(identity), ..) => Some(identity.to_string()),
        (None, Some(namespace), Some(account)) => Some(format!("{namespace}/{account}")),
        (None, ..) => None,
    };
    let more = [(TYPE_CLUSTER, source.cluster.as_str()), (TYPE_SOURCE, who.as_deref().unwrap_or_default())];
    proxy_protocol::header(addresses, if who.is_some() { &more } else { &more[..1] })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use eastway_model::routing::PickRequest;
    use eastway_model::store::Writer;
    use eastway_model::{
        Change, ClusterName, Endpoint, EndpointCondition, Label, LocalChange, LocalEndpoint, LocalService, PortNumber,
        Protocol, ServiceKey, ServicePort, ServiceRecord, Subset, TlsMode, UnixMillis,
    };
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;
    use crate::proxy::copy::Limits;
    use crate::proxy::dial::DialRules;
    use crate::telemetry::{AccessMode, Telemetry};

    fn picked(number: usize, is_failing: bool) -> Picked {
        let endpoint = EndpointId::parse(&format!("e-{number}")).unwrap();
        Picked {
            endpoint,
            address: SocketAddr::from(([10, 0, 0, 1], 80)),
            version: None,
            is_failing,
            cut: None,
            proxy_protocol: false,
        }
    }

    /// What an endpoint that is told clients gets first, for a client that has `client` as its address.
    async fn told(client: Option<SocketAddr>) -> Vec<u8> {
        let (mut writer, reader) = Writer::new(ClusterName::parse("a").unwrap());
        let never = Limits { idle: Duration::ZERO, half_closed: Duration::ZERO };
        let rules = DialRules { allow_loopback: true, ..DialRules::default() };
        let router = Router::new(reader, rules, never, Telemetry::new(AccessMode::Off));
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (port, key) = (PortNumber::new(80).unwrap(), ServiceKey::parse("shop", "web").unwrap());
        let listed = ServicePort { name: None, number: port, protocol: Protocol::Tcp, app_protocol: None };
        let endpoint = LocalEndpoint {
            endpoint: Endpoint {
                id: EndpointId::parse("e-1").unwrap(),
                hostname: None,
                subset: Subset::default(),
                zone: None,
                condition: EndpointCondition { ready: true, serving: true, terminating: false },
                weight: 1,
                identity: None,
                tls: TlsMode::None,
            },
            address: [127, 0, 0, 1].into(),
            service_account: None,
            target_ports: [(port.into(), server.local_addr().unwrap().port())].into(),
        };
        let record = ServiceRecord { proxy_protocol: [port].into(), ..ServiceRecord::new(key.clone(), vec![listed]) };
        let service = Arc::new(LocalService::new(record, true, [endpoint]));
        let change = LocalChange::Replace(vec![service]);
        writer.apply([Change::Local { registry: Label::parse("hosts").unwrap(), change }], UnixMillis(1));
        let mut connection = Connection::inbound(router.cluster(), &key, 80, &Arc::from("b"));
        connection.set_client(client);
        let pick = |_: &[EndpointId]| {
            let none = Subset::default();
            router.pick(&key, &PickRequest::tcp(port, &none))
        };
        let reached = reach(&router, Path::Quic, &mut connection, pick).await.unwrap();
        drop(reached);
        let mut got = Vec::new();
        server.accept().await.unwrap().0.read_to_end(&mut got).await.unwrap_or_default();
        got
    }

    #[tokio::test]
    async fn i1_the_clients_address_is_told_and_not_dialled() {
        let client = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = client.local_addr().unwrap();
        let got = told(Some(address)).await;
        assert_eq!((&got[..16], &got[16..20]), (&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"[..], &[127, 0, 0, 1][..]));
        assert_eq!(got[24..26], address.port().to_be_bytes());
        assert!(futures_util::FutureExt::now_or_never(client.accept()).is_none(), "nobody connects to the client");
        let unknown = told(None).await;
        assert_eq!(unknown, b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0");
    }

    #[test]
    fn what_failed_is_avoided_until_it_is_reached_again() {
        let endpoints = FailingEndpoints::default();
        let (one, other) = (picked(1, false).endpoint, picked(2, false).endpoint);
        endpoints.with(|failing| assert!(failing.is_none(), "nothing is asked for the time"));
        endpoints.note(&one);
        endpoints.note(&other);
        assert!(endpoints.contains(&one));
        endpoints.forget(&one);
        assert!(!endpoints.contains(&one));
        endpoints.with(|failing| {
            let later = Failing { now: Instant::now() + FAILING_FOR, ..failing.unwrap() };
            assert!(!later.contains(&other), "for some seconds only");
        });
    }

    #[test]
    fn the_table_of_failing_endpoints_is_bounded() {
        let endpoints = FailingEndpoints::default();
        endpoints.until.store(Arc::new((0..2 * MAX_FAILING).map(|n| (picked(n, false).endpoint, far())).collect()));
        endpoints.note(&picked(9_999, false).endpoint);
        assert_eq!(endpoints.until.load().len(), MAX_FAILING);
        assert!(endpoints.contains(&picked(9_999, false).endpoint));
    }

    fn far() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn many_that_refuse_are_tried_and_few_that_are_known_to() {
        let dials = |is_failing| {
            let mut tries = Tries::default();
            (0..100).take_while(|number| tries.failed(&picked(*number, is_failing))).count() + 1
        };
        assert_eq!(dials(false), MAX_DIALS);
        assert_eq!(dials(true), MAX_FAILING_DIALS);
    }

    #[test]
    fn nobody_waits_for_a_third_that_does_not_answer() {
        let mut tries = Tries { first_failed: Instant::now().checked_sub(LAST_DIAL), ..Tries::default() };
        assert!(!tries.failed(&picked(1, false)));
    }
}

//! What is told about a connection: metrics while it runs, one access line when it ended.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use eastway_model::access::SourceIdentity;
use eastway_model::routing::{Candidate, PickError, RouteError};
use eastway_model::{ClusterName, ServiceKey};
use eastway_tunnel::{ResetCode, StreamError};

use crate::proxy::copy::{CopyError, Transferred};
use crate::proxy::dial::DialError;
use crate::proxy::outbound::ConnectError;
use crate::proxy::reach::ReachError;
use crate::telemetry::{
    AccessRecord, ConnectionLabels, ConnectionMetrics, Destination, Direction, Path, Reporter, ResponseFlag, Telemetry,
    Workload,
};

/// How a connection ended.
#[derive(Debug)]
pub enum Outcome {
    /// It was never established.
    NotConnected(ConnectError),
    /// It was refused by this gateway, as the owner of the service.
    Rejected(ResetCode, String),
    /// It was established, and ended so.
    Ended(Result<(), CopyError>),
}

/// One connection, as far as it is known.
#[derive(Debug)]
pub struct Connection {
    direction: Direction,
    began: Instant,
    start_time: SystemTime,
    cluster: Arc<str>,
    service: ServiceKey,
    port: u16,
    client: Option<SocketAddr>,
    /// A flow of UDP, not a connection of TCP.
    udp: bool,
    /// The client proved who it is.
    mutual_tls: bool,
    /// Where the client connected to.
    local: Option<SocketAddr>,
    traceparent: Option<Arc<str>>,
    source: Option<SourceIdentity>,
    peer: Option<Arc<str>>,
    path: Path,
    upstream: Option<SocketAddr>,
    version: Option<Arc<str>>,
    metrics: Option<ConnectionMetrics>,
}

impl Connection {
    /// A connection of a client of `cluster`, which is this one.
    #[must_use]
    pub fn outbound(cluster: &ClusterName, service: &ServiceKey, port: u16, client: SocketAddr) -> Self {
        Self::new(Direction::Outbound, cluster, service, port, Some(client))
    }

    /// A connection that `peer` brings to a service of `cluster`, which is this one.
    #[must_use]
    pub fn inbound(cluster: &ClusterName, service: &ServiceKey, port: u16, peer: &Arc<str>) -> Self {
        let mut connection = Self::new(Direction::Inbound, cluster, service, port, None);
        connection.peer = Some(peer.clone());
        connection
    }

    fn new(
        direction: Direction,
        cluster: &ClusterName,
        service: &ServiceKey,
        port: u16,
        client: Option<SocketAddr>,
    ) -> Self {
        Self {
            direction,
            began: Instant::now(),
            start_time: SystemTime::now(),
            cluster: Arc::from(cluster),
            service: service.clone(),
            port,
            client,
            udp: false,
            mutual_tls: false,
            local: None,
            traceparent: None,
            source: None,
            peer: None,
            path: Path::None,
            upstream: None,
            version: None,
            metrics: None,
        }
    }

    /// The address that the client connected to.
    pub fn set_local(&mut self, address: Option<SocketAddr>) {
        self.local = address;
    }

    /// It is a flow of UDP.
    pub fn set_udp(&mut self) {
        self.udp = true;
    }

    /// The client comes by mutual TLS.
    pub fn set_mutual_tls(&mut self) {
        self.mutual_tls = true;
    }

    /// The W3C `traceparent` that came with it.
    pub fn set_traceparent(&mut self, traceparent: Option<Arc<str>>) {
        self.traceparent = traceparent;
    }

    /// Whose connection it is, as a peer attests it.
    pub fn set_client(&mut self, client: Option<SocketAddr>) {
        self.client = client;
    }

    /// Whose connection it is, as far as that is known.
    #[must_use]
    pub fn client(&self) -> Option<SocketAddr> {
        self.client
    }

    /// Who connects.
    #[must_use]
    pub fn source(&self) -> Option<&SourceIdentity> {
        self.source.as_ref()
    }

    /// Who connects.
    pub fn set_source(&mut self, source: &SourceIdentity) {
        self.source = Some(source.clone());
    }

    /// Where it is tried next; the last one tried is what is told.
    pub fn set_candidate(&mut self, candidate: &Candidate) {
        self.peer = candidate.cluster.as_ref().map(Arc::from);
        self.version = candidate.subset.get("version").cloned();
        self.upstream = None;
        self.path = Path::Local;
    }

    /// The gateway or the endpoint at the other end.
    pub fn set_upstream(&mut self, path: Path, address: SocketAddr) {
        self.path = path;
        self.upstream = Some(address);
    }

    /// Labels of the endpoint that serves it.
    pub fn set_version(&mut self, version: Option<Arc<str>>) {
        self.version = version;
    }

    /// It is established.
    pub fn opened(&mut self, telemetry: &Telemetry) {
        self.metrics = Some(telemetry.metrics.connection_opened(&self.labels()));
    }

    /// Counts what it carried so far.
    pub fn count(&mut self, moved: &Transferred) {
        let (from_client, to_client) = self.bytes(moved);
        if let Some(metrics) = &mut self.metrics {
            metrics.carried(from_client, to_client);
        }
    }

    /// Bytes from the client, and to it.
    fn bytes(&self, moved: &Transferred) -> (u64, u64) {
        match self.direction {
            Direction::Outbound => (moved.from_local.taken(), moved.to_local.given()),
            Direction::Inbound => (moved.to_local.taken(), moved.from_local.given()),
        }
    }

    /// It ended, established or not.
    pub fn closed(&mut self, telemetry: &Telemetry, outcome: &Outcome, moved: &Transferred) {
        let flag = flag(self.direction, outcome);
        self.count(moved);
        let (from_client, to_client) = self.bytes(moved);
        if let Some(metrics) = self.metrics.take() {
            metrics.closed(flag);
        }
        if !telemetry.access.wants(flag) {
            return;
        }
        let mut record = self.record(flag, outcome, from_client, to_client);
        if let (Outcome::Rejected(_, why), Some(peer)) = (outcome, &self.peer) {
            match telemetry.access.admits_rejected(peer, flag) {
                None => return,
                Some(0) => {}
                Some(more) => record.details = Some(Arc::from(format!("{why}; {more} more had no line"))),
            }
        }
        telemetry.access.record(&record);
    }

    fn record(&self, flag: ResponseFlag, outcome: &Outcome, bytes_received: u64, bytes_sent: u64) -> AccessRecord {
        AccessRecord {
            direction: self.direction,
            start_time: self.start_time,
            duration: self.age(),
            service: Some(Arc::from(self.service.to_string())),
            port: self.port,
            peer: self.peer.clone(),
            path: self.path,
            source: self.source.as_ref().map(|source| Arc::from(source.to_string())),
            downstream_remote_address: self.client,
            downstream_local_address: self.local,
            upstream_host: self.upstream,
            bytes_received,
            bytes_sent,
            response_flags: flag,
            details: details(outcome).map(Arc::from),
            traceparent: self.traceparent.clone(),
        }
    }

    /// Time since the connection came in.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.began.elapsed()
    }

    fn labels(&self) -> ConnectionLabels {
        let (reporter, owner) = match self.direction {
            Direction::Outbound => (Reporter::Source, self.peer.clone().unwrap_or_else(|| self.cluster.clone())),
            Direction::Inbound => (Reporter::Destination, self.cluster.clone()),
        };
        let namespace: Arc<str> = Arc::from(&self.service.namespace);
        let service: Arc<str> = Arc::from(&self.service.name);
        ConnectionLabels {
            reporter,
            peer: self.peer.clone(),
            source: self.source_workload(),
            destination: Destination {
                namespace: namespace.clone(),
                service: service.clone(),
                workload: Workload { cluster: owner, namespace, name: service, version: self.version.clone() },
            },
            udp: self.udp,
            mutual_tls: self.mutual_tls || self.peer.is_some(),
        }
    }

    /// The client as metrics know it.
    #[must_use]
    pub fn source_workload(&self) -> Workload {
        let cluster = match (&self.direction, &self.peer) {
            (Direction::Inbound, Some(peer)) => peer,
            (Direction::Inbound | Direction::Outbound, _) => &self.cluster,
        };
        let mut workload = Workload::unknown(cluster);
        if let Some(source) = &self.source {
            if let Some(namespace) = &source.namespace {
                workload.namespace = Arc::from(namespace);
            }
            if let Some(account) = &source.service_account {
                workload.name = Arc::from(account);
            }
        }
        workload
    }
}

fn details(outcome: &Outcome) -> Option<String> {
    match outcome {
        Outcome::NotConnected(error) => Some(error.to_string()),
        Outcome::Rejected(code, why) => Some(format!("{code}: {why}")),
        Outcome::Ended(Err(error)) => Some(error.to_string()),
        Outcome::Ended(Ok(())) => None,
    }
}

fn flag(direction: Direction, outcome: &Outcome) -> ResponseFlag {
    match outcome {
        Outcome::NotConnected(error) => connect_flag(error),
        Outcome::Rejected(code, _) => code_flag(*code),
        Outcome::Ended(Ok(())) => ResponseFlag::None,
        Outcome::Ended(Err(CopyError::Idle(..))) => ResponseFlag::IdleTimeout,
        Outcome::Ended(Err(CopyError::Revoked)) => ResponseFlag::UpstreamReset,
        Outcome::Ended(Err(CopyError::Local(_))) => match direction {
            Direction::Outbound => ResponseFlag::DownstreamReset,
            Direction::Inbound => ResponseFlag::UpstreamReset,
        },
        Outcome::Ended(Err(CopyError::Stream(error))) => stream_flag(error),
    }
}

fn connect_flag(error: &ConnectError) -> ResponseFlag {
    match error {
        ConnectError::Route(RouteError::TlsRequired)
        | ConnectError::Reach(ReachError::Pick(PickError::TlsRequired)) => ResponseFlag::TlsRequired,
        ConnectError::Route(RouteError::NoEndpoints)
        | ConnectError::Reach(ReachError::Pick(_))
        | ConnectError::NoLink(_) => ResponseFlag::NoEndpoints,
        ConnectError::Route(_) | ConnectError::Header => ResponseFlag::NoRoute,
        ConnectError::Open(..) => ResponseFlag::Overflow,
        ConnectError::Refused(_, error) => stream_flag(error),
        ConnectError::Reach(ReachError::Dial(DialError::Timeout(_))) | ConnectError::Timeout => {
            ResponseFlag::UpstreamTimeout
        }
        ConnectError::Reach(ReachError::Dial(_)) => ResponseFlag::UpstreamFailure,
        ConnectError::Broken(..) => ResponseFlag::UpstreamReset,
        ConnectError::Client(_) => ResponseFlag::DownstreamReset,
    }
}

fn stream_flag(error: &StreamError) -> ResponseFlag {
    match error {
        StreamError::Reset(code) => code_flag(*code),
        StreamError::LinkLost | StreamError::Closed => ResponseFlag::UpstreamReset,
    }
}

fn code_flag(code: ResetCode) -> ResponseFlag {
    match code {
        ResetCode::Cancelled => ResponseFlag::DownstreamReset,
        ResetCode::NotExported | ResetCode::NotLocal => ResponseFlag::NoRoute,
        ResetCode::NoEndpoints => ResponseFlag::NoEndpoints,
        ResetCode::UpstreamRefused => ResponseFlag::UpstreamFailure,
        ResetCode::UpstreamTimeout => ResponseFlag::UpstreamTimeout,
        ResetCode::UpstreamReset => ResponseFlag::UpstreamReset,
        ResetCode::PermissionDenied => ResponseFlag::Denied,
        ResetCode::TlsRequired => ResponseFlag::TlsRequired,
        ResetCode::Overloaded => ResponseFlag::Overflow,
        ResetCode::Draining => ResponseFlag::Draining,
        ResetCode::IdleTimeout => ResponseFlag::IdleTimeout,
        ResetCode::BadHeader
        | ResetCode::Version
        | ResetCode::Unsupported
        | ResetCode::BadName
        | ResetCode::Internal => ResponseFlag::Protocol,
    }
}

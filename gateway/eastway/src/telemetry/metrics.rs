//! Everything that `/metrics` shows, as typed methods: a caller cannot invent a name or a label.
//!
//! Names begin with `istio_tcp_` where Istio has one for the same thing (see `traffic`), else with `eastway_`.
//! Label values come from fixed sets, from this cluster's configuration, or are bounded by a `Family`, so that the
//! number of series stays below 5,000 whatever a peer sends.

mod controller;
mod family;
mod labels;
mod own;
mod process;
mod recent;
mod replicas;
mod traffic;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use eastway_tunnel::{RelayStatus, ResetCode};
use prometheus_client::encoding::EncodeMetric;
use prometheus_client::metrics::TypedMetric;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

pub use self::controller::ControllerSample;
use self::family::{Family, Labels};
pub use self::labels::DialOutcome;
use self::labels::{
    BuildLabels, Carrier, CertificateLabels, DenialLabels, Direction, KindLabel, PairLabels, PeerLabel, PeerReason,
    Reason, counts_of, peer_label, peer_reason,
};
pub use self::process::{open_fds, resident_bytes};
pub use self::recent::RECENT;
use self::recent::Recent;
pub use self::traffic::{ConnectionLabels, ConnectionMetrics, Destination, Reporter, ResponseFlag, UNKNOWN, Workload};
use super::refusals::Refusal;

/// Most sets of connection labels; each is shown as 3 series and one more for each way connections ended.
const MAX_CONNECTION_SETS: usize = 600;
/// How many of them one peer can create.
const MAX_CONNECTION_SETS_PER_PEER: usize = 150;
/// Most series of each other family, and how many of them belong to one peer.
const MAX_SERIES: usize = 220;
const MAX_SERIES_PER_PEER: usize = 32;

type FloatGauge = Gauge<f64, AtomicU64>;

/// Whose certificate an expiry belongs to.
#[derive(Clone, Debug)]
pub enum Certificate<'a> {
    /// This gateway's leaf.
    Leaf,
    /// The issuing CA's.
    Issuer,
    /// The one that a peer's link presented; its name.
    Peer(&'a Arc<str>),
}

/// State of one peer at the time of a scrape; see [`Metrics::set_peer`].
#[derive(Clone, Debug, Default)]
pub struct PeerSample {
    /// Whether a link acknowledged something within 5 s.
    pub up: bool,
    /// Live links.
    pub links: u32,
    /// A link is carried by TCP because QUIC does not pass.
    pub degraded: bool,
    /// TCP connections that carry links.
    pub connections: usize,
    /// Smoothed round-trip time of the best link.
    pub rtt: Option<Duration>,
    /// The peer's clock minus ours.
    pub clock_skew_ms: Option<i64>,
    /// Streams open on all links.
    pub streams: u32,
    /// How many of them are UDP flows.
    pub flows: usize,
    /// Bytes sent over all links since our start.
    pub sent_bytes: u64,
    /// Bytes received over all links since our start.
    pub received_bytes: u64,
    /// Packets lost on all links since our start.
    pub lost_packets: u64,
    /// Packets sent a second time on all links since our start.
    pub repeated_packets: u64,
    /// How often links changed their port because nothing came back, since our start.
    pub hops: u64,
}

macro_rules! metrics {
    ($($field:ident : $kind:ty, $name:literal, $help:literal;)*) => {
        /// All metrics of the process.
        pub struct Metrics {
            registry: Registry,
            overflowed: Counter,
            connections: Family<ConnectionLabels, traffic::Series>,
            certificate: Family<CertificateLabels, FloatGauge>,
            denials: Family<DenialLabels, Counter>,
            denied: Recent,
            denied_there: Recent,
            rejected: Recent,
            $($field: $kind,)*
        }

        impl Metrics {
            /// All at zero.
            #[must_use]
            pub fn new() -> Self {
                let overflowed = Counter::default();
                let mut registry = Registry::default();
                let connections = Family::new(MAX_CONNECTION_SETS, MAX_CONNECTION_SETS_PER_PEER, overflowed.clone());
                registry.register_collector(Box::new(traffic::Connections(connections.clone())));
                registry.register_collector(Box::new(process::Process));
                let certificate = <Family<_, _> as Fresh>::fresh(&overflowed);
                let help = "When a certificate ends, in seconds since the Unix epoch";
                registry.register("eastway_certificate_not_after_timestamp_seconds", help, certificate.clone());
                let denials = <Family<_, _> as Fresh>::fresh(&overflowed);
                registry.register("eastway_access_denied", "Connections that no access rule allows", denials.clone());
                $(
                    let $field = <$kind as Fresh>::fresh(&overflowed);
                    registry.register($name, $help, $field.clone());
                )*
                let help = "Updates counted under `other` because a family has too many series";
                registry.register("eastway_metrics_overflowed", help, overflowed.clone());
                let build: prometheus_client::metrics::family::Family<BuildLabels, Gauge> =
                    prometheus_client::metrics::family::Family::default();
                build.get_or_create(&BuildLabels { version: env!("CARGO_PKG_VERSION") }).set(1);
                registry.register("eastway_build_info", "Version of this process", build);
                let started: FloatGauge = Gauge::default();
                started.set(unix_seconds(SystemTime::now()));
                let help = "When this process started, in seconds since the Unix epoch";
                registry.register("process_start_time_seconds", help, started);
                let (denied, denied_there, rejected) = Default::default();
                Self { registry, overflowed, connections, certificate, denials, denied, denied_there, rejected, $($field,)* }
            }

            fn forget_series_of(&self, peer: &str) {
                self.connections.forget_owner(peer);
                self.certificate.forget_owner(peer);
                self.denials.forget_owner(peer);
                $(Fresh::forget(&self.$field, peer);)*
            }
        }
    };
}

metrics! {
    peer_up: Family<PeerLabel, Gauge>, "eastway_peer_up", "1 if a link to the peer acknowledged something within 5 s";
    links: Family<PeerLabel, Gauge>, "eastway_links", "Live links to the peer";
    degraded: Family<PeerLabel, Gauge>, "eastway_peer_degraded", "1 if a link to the peer is carried by TCP because UDP does not pass";
    link_connections: Family<PeerLabel, Gauge>, "eastway_link_tcp_connections", "TCP connections that carry links to the peer";
    rtt: Family<PeerLabel, FloatGauge>, "eastway_peer_rtt_seconds", "Smoothed round-trip time to the peer";
    skew: Family<PeerLabel, FloatGauge>, "eastway_peer_clock_skew_seconds", "The peer's clock minus ours";
    link_streams: Family<PeerLabel, Gauge>, "eastway_link_streams", "Streams open on the links to the peer";
    link_flows: Family<PeerLabel, Gauge>, "eastway_link_flows", "UDP flows on the links to the peer; each is one of the streams, too";
    link_sent: Family<PeerLabel, Counter>, "eastway_link_sent_bytes", "Bytes sent over links";
    link_received: Family<PeerLabel, Counter>, "eastway_link_received_bytes", "Bytes received over links";
    link_lost: Family<PeerLabel, Counter>, "eastway_link_lost_packets", "Packets lost on links";
    link_repeated: Family<PeerLabel, Counter>, "eastway_link_repeated_packets", "Packets sent a second time because the path loses some";
    link_hops: Family<PeerLabel, Counter>, "eastway_link_hops", "Changes of the port of a link because nothing came back";
    link_opens: Family<Carrier, Counter>, "eastway_link_streams_opened", "Streams opened on links, by what carries the link";
    link_dials: Family<PeerReason, Counter>, "eastway_link_dials", "Attempts to open a link, by outcome";
    link_closed: Family<PeerReason, Counter>, "eastway_links_closed", "Links closed, by reason";
    handshakes_refused: Family<Reason, Counter>, "eastway_handshakes_refused", "Incoming handshakes refused, by reason";
    replicas: Gauge, "eastway_replicas", "Live gateways of this cluster, this one included";
    forwarded_packets: Family<Direction, Counter>, "eastway_forwarded_packets", "Packets of links handed over between gateways of this cluster, by direction";
    forwarded: Family<Direction, Counter>, "eastway_forwarded_bytes", "Bytes in those packets, by direction";
    forward_dropped: Family<Reason, Counter>, "eastway_forward_dropped_packets", "Packets between gateways of this cluster that were dropped, by reason";
    relay_pipes: Family<PairLabels, Gauge>, "eastway_relay_pipes", "Pipes that are carried between two other clusters";
    relayed: Family<PairLabels, Counter>, "eastway_relayed_bytes", "Bytes carried between two other clusters, by direction";
    relay_refused: Family<PairLabels, Counter>, "eastway_relay_pipes_refused", "Pipes between two clusters that are relayed for that were refused";
    stream_opens: Family<PeerReason, Counter>, "eastway_stream_opens", "Streams opened to the peer, by outcome";
    stream_requests: Family<PeerReason, Counter>, "eastway_stream_requests", "Streams of the peer, by answer";
    hbone_requests: Family<Reason, Counter>, "eastway_hbone_requests", "Requests of sidecars, by answer";
    upstream_dials: Family<Reason, Counter>, "eastway_upstream_dials", "Dials to local endpoints, by outcome";
    retries: Family<PeerLabel, Counter>, "eastway_stream_retries", "Streams retried elsewhere before any delivery";
    federation_applied: Family<PeerReason, Counter>, "eastway_federation_applied", "Changes of the peer applied, by kind";
    federation_rejected: Family<PeerReason, Counter>, "eastway_imports_rejected", "Records of the peer refused, by reason";
    federation_sessions: Family<PeerReason, Counter>, "eastway_federation_sessions_closed", "Import and export sessions closed, by reason";
    federation_lag: Family<PeerLabel, FloatGauge>, "eastway_federation_lag_seconds", "Time since the peer's state was known to be current";
    federation_objects: Family<PeerReason, Gauge>, "eastway_federation_objects", "Services and endpoints imported from the peer, and services exported to it";
    dns_answers: Family<Reason, Counter>, "eastway_dns_answers", "DNS answers, by response code";
    dns_dropped: Family<Reason, Counter>, "eastway_dns_dropped", "DNS packets dropped without an answer, by reason";
    refusals: Family<PeerReason, Counter>, "eastway_refused", "Refused inputs, by kind; peer is empty if it is not known";
    udp_dropped: Family<Reason, Counter>, "eastway_udp_dropped_packets", "Packets of UDP flows that were dropped here, by reason";
    config_reloads: Family<Reason, Counter>, "eastway_config_reloads", "Configuration reloads, by result";
    config_success: Gauge, "eastway_config_last_reload_success", "1 if the files on disk are what runs";
    config_time: FloatGauge, "eastway_config_last_reload_success_timestamp_seconds", "When the running configuration was read";
    vips: Gauge, "eastway_vips", "Imports that have a virtual address";
    vips_exhausted: Counter, "eastway_vips_exhausted", "Imports that got no virtual address because the ranges are full, or lack listeners because there are too many";
    snapshot_version: Gauge<i64, AtomicI64>, "eastway_snapshot_version", "Version of the published snapshot";
    controller_leading: Gauge, "eastway_controller_leading", "1 if this replica writes to the Kubernetes API";
    controller_pending: Gauge, "eastway_controller_pending", "Services whose objects wait to be written";
    controller_failing: Gauge, "eastway_controller_failing", "Services whose objects could not be written; the log says why";
    controller_ports: Gauge, "eastway_controller_ports", "Ports of the gateways that stand for imports, out of 12000";
    controller_writes: Counter, "eastway_controller_writes", "Requests that wrote to the Kubernetes API";
    controller_failures: Counter, "eastway_controller_failures", "Requests to write to the Kubernetes API that failed";
    hbone_tunnels: Gauge, "eastway_hbone_tunnels", "Tunnels of sidecars that are open";
    hbone_buffered: Gauge, "eastway_hbone_buffered_bytes", "Bytes that tunnels of sidecars hold in memory";
    hbone_buffer_limit: Gauge, "eastway_hbone_buffer_limit_bytes", "Bytes beyond which no further tunnel is granted";
    sidecars: Gauge, "eastway_sidecars", "Sidecars that are connected for their configuration";
    sidecar_pushes: Family<KindLabel, Counter>, "eastway_sidecar_pushes", "Responses sent to sidecars, by kind of resource";
    sidecar_refusals: Family<KindLabel, Counter>, "eastway_sidecar_refusals", "Responses that sidecars refused (NACK), by kind of resource";
    controller_feed: Gauge, "eastway_controller_feed_connected", "1 if a gateway tells the controller what peers export";
    injections: Family<Reason, Counter>, "eastway_injection_requests", "Questions of API servers about new pods, by answer: injected, why not, or invalid";
    ready: Gauge, "eastway_ready", "1 if this process is ready";
    log_lines_dropped: Counter, "eastway_log_lines_dropped", "Log lines dropped because the output was blocked";
}

/// How a field of [`Metrics`] begins, and what a removed peer takes with it.
trait Fresh: EncodeMetric + Clone {
    fn fresh(overflowed: &Counter) -> Self;
    fn forget(&self, _peer: &str) {}
}

impl<L: Labels, M: Clone + Default + EncodeMetric + TypedMetric> Fresh for Family<L, M> {
    fn fresh(overflowed: &Counter) -> Self {
        Self::new(MAX_SERIES, MAX_SERIES_PER_PEER, overflowed.clone())
    }

    fn forget(&self, peer: &str) {
        self.forget_owner(peer);
    }
}

impl Fresh for Counter {
    fn fresh(_overflowed: &Counter) -> Self {
        Self::default()
    }
}

impl Fresh for Gauge {
    fn fresh(_overflowed: &Counter) -> Self {
        Self::default()
    }
}

impl Fresh for FloatGauge {
    fn fresh(_overflowed: &Counter) -> Self {
        Self::default()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").field("overflowed", &self.overflowed.get()).finish_non_exhaustive()
    }
}

/// The data path.
impl Metrics {
    /// A connection was opened; the returned handle counts its bytes and its end. One lookup per connection,
    /// none per read or write.
    #[must_use]
    pub fn connection_opened(&self, labels: &ConnectionLabels) -> ConnectionMetrics {
        ConnectionMetrics::open(self.connections.get(labels))
    }

    /// A dial to a local endpoint ended.
    pub fn upstream_dial(&self, outcome: DialOutcome) {
        self.upstream_dials.get(&Reason { reason: outcome.as_str() }).inc();
    }

    /// A stream to `peer` was answered; `outcome` is `dialled` or the name of the reset code.
    pub fn stream_opened(&self, peer: &Arc<str>, outcome: &'static str) {
        if outcome == ResetCode::PermissionDenied.name() {
            self.denied_there.count(peer, "", 1, Instant::now());
        }
        self.stream_opens.get(&peer_reason(peer, outcome)).inc();
    }

    /// We answered a stream of `peer`; `outcome` is `dialled` or the name of the reset code.
    pub fn stream_answered(&self, peer: &Arc<str>, outcome: &'static str) {
        self.stream_requests.get(&peer_reason(peer, outcome)).inc();
    }

    /// Streams that were opened on links that `transport` carries.
    pub fn set_streams_opened(&self, transport: &'static str, total: u64) {
        raise(&self.link_opens.get(&Carrier { transport }), total);
    }

    /// Packets of UDP flows were dropped.
    pub fn udp_dropped(&self, reason: &'static str, packets: usize) {
        self.udp_dropped.get(&Reason { reason }).inc_by(packets as u64);
    }

    /// So many packets of UDP flows were dropped for this reason since our start.
    pub fn set_udp_dropped(&self, reason: &'static str, total: u64) {
        raise(&self.udp_dropped.get(&Reason { reason }), total);
    }

    /// A request of a sidecar was answered.
    pub fn hbone_answered(&self, answer: &'static str) {
        self.hbone_requests.get(&Reason { reason: answer }).inc();
    }

    /// A question about a pod was answered.
    pub fn injection_answered(&self, answer: &'static str) {
        self.injections.get(&Reason { reason: answer }).inc();
    }

    /// A stream that `peer` refused before delivery was tried elsewhere.
    pub fn stream_retried(&self, peer: &Arc<str>) {
        self.retries.get(&peer_label(peer)).inc();
    }

    /// No access rule allows a source; with `dry_run` it went through all the same.
    pub fn access_denied(&self, source: &Workload, namespace: &Arc<str>, service: &Arc<str>, dry_run: bool) {
        let labels = DenialLabels {
            source_cluster: Arc::clone(&source.cluster),
            source_namespace: Arc::clone(&source.namespace),
            destination_namespace: Arc::clone(namespace),
            destination_service: Arc::clone(service),
            dry_run: if dry_run { "true" } else { "false" },
        };
        self.denials.get(&labels).inc();
    }

    /// An input was refused; see [`super::Refusals::refused`], which also logs.
    pub(super) fn refused(&self, kind: Refusal, peer: Option<&Arc<str>>) {
        if let (Refusal::Denied, Some(peer)) = (kind, peer) {
            self.denied.count(peer, "", 1, Instant::now());
        }
        let peer = peer.cloned().unwrap_or_else(|| Arc::from(""));
        self.refusals.get(&PeerReason { peer, reason: kind.as_str() }).inc();
    }
}

/// Links and federation.
impl Metrics {
    /// The state of `peer` now.
    pub fn set_peer(&self, peer: &Arc<str>, sample: &PeerSample) {
        let label = peer_label(peer);
        self.peer_up.get(&label).set(i64::from(sample.up));
        self.links.get(&label).set(i64::from(sample.links));
        self.degraded.get(&label).set(i64::from(sample.degraded));
        self.link_connections.get(&label).set(count_of(sample.connections));
        self.link_streams.get(&label).set(i64::from(sample.streams));
        self.link_flows.get(&label).set(count_of(sample.flows));
        if let Some(rtt) = sample.rtt {
            self.rtt.get(&label).set(rtt.as_secs_f64());
        }
        if let Some(skew) = sample.clock_skew_ms {
            self.skew.get(&label).set(millis(skew));
        }
        raise(&self.link_sent.get(&label), sample.sent_bytes);
        raise(&self.link_received.get(&label), sample.received_bytes);
        raise(&self.link_lost.get(&label), sample.lost_packets);
        raise(&self.link_repeated.get(&label), sample.repeated_packets);
        raise(&self.link_hops.get(&label), sample.hops);
    }

    /// How relaying does, pair by pair.
    pub fn set_relayed(&self, pairs: &[RelayStatus]) {
        for pair in pairs {
            let [one, other] = &pair.between;
            let [there, back] = [(one, other), (other, one)].map(|(from, to)| PairLabels::new(from, to));
            self.relay_pipes.get(&there).set(i64::from(pair.streams));
            raise(&self.relay_refused.get(&there), pair.refused);
            for (labels, bytes) in [&there, &back].into_iter().zip(pair.bytes) {
                raise(&self.relayed.get(labels), bytes);
            }
        }
    }

    /// An attempt to open a link to `peer` ended.
    pub fn link_dial(&self, peer: &Arc<str>, outcome: DialOutcome) {
        self.link_dials.get(&peer_reason(peer, outcome.as_str())).inc();
    }

    /// A link to `peer` was closed.
    pub fn link_closed(&self, peer: &Arc<str>, reason: &'static str) {
        self.link_closed.get(&peer_reason(peer, reason)).inc();
    }

    /// An incoming handshake was refused.
    pub fn handshake_refused(&self, reason: &'static str) {
        self.handshakes_refused.get(&Reason { reason }).inc();
    }

    /// A change of `peer` was applied; `kind` is `upsert`, `remove`, `snapshot` or `endpoints`.
    pub fn federation_applied(&self, peer: &Arc<str>, kind: &'static str) {
        self.federation_applied.get(&peer_reason(peer, kind)).inc();
    }

    /// `count` records of `peer` were refused.
    pub fn federation_rejected(&self, peer: &Arc<str>, reason: &'static str, count: usize) {
        self.federation_rejected.get(&peer_reason(peer, reason)).inc_by(count as u64);
        self.rejected.count(peer, reason, count as u64, Instant::now());
    }

    /// Records of `peer` refused within [`RECENT`], by reason, the most frequent first.
    #[must_use]
    pub fn recently_rejected(&self, peer: &str) -> Vec<(&'static str, u64)> {
        self.rejected.by_reason(peer, Instant::now())
    }

    /// Records of `peer` refused since our start, by reason, the most frequent first.
    #[must_use]
    pub fn rejected_records(&self, peer: &str) -> Vec<(&'static str, u64)> {
        let mut rejected = counts_of(&self.federation_rejected, peer);
        rejected.sort_by_key(|(reason, count)| (std::cmp::Reverse(*count), *reason));
        rejected
    }

    /// Connections of `peer` that no access rule allowed within [`RECENT`].
    #[must_use]
    pub fn recently_denied(&self, peer: &str) -> u64 {
        self.denied.of(peer, Instant::now())
    }

    /// Connections from here that the access rules of `peer` denied within [`RECENT`].
    #[must_use]
    pub fn recently_denied_by(&self, peer: &str) -> u64 {
        self.denied_there.of(peer, Instant::now())
    }

    /// A federation session with `peer` was closed.
    pub fn federation_closed(&self, peer: &Arc<str>, reason: &'static str) {
        self.federation_sessions.get(&peer_reason(peer, reason)).inc();
    }

    /// How long ago the state of `peer` was known to be current.
    pub fn set_federation_lag(&self, peer: &Arc<str>, lag: Duration) {
        self.federation_lag.get(&peer_label(peer)).set(lag.as_secs_f64());
    }

    /// How many services and endpoints `peer` exports to us, and how many services we export to it.
    pub fn set_federation_objects(&self, peer: &Arc<str>, services: usize, endpoints: usize, exported: usize) {
        let counts =
            [("imported_services", services), ("imported_endpoints", endpoints), ("exported_services", exported)];
        for (kind, count) in counts {
            self.federation_objects.get(&peer_reason(peer, kind)).set(count_of(count));
        }
    }

    /// `peer` was removed: its series go with it.
    pub fn forget_peer(&self, peer: &str) {
        self.denied.forget_peer(peer);
        self.denied_there.forget_peer(peer);
        self.rejected.forget_peer(peer);
        self.forget_series_of(peer);
    }
}

/// Sets a counter that somebody else keeps; it never goes down, as counters must not.
fn raise(counter: &Counter, total: u64) {
    counter.inner().fetch_max(total, Ordering::Relaxed);
}

fn count_of(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn millis(value: i64) -> f64 {
    let magnitude = Duration::from_millis(value.unsigned_abs()).as_secs_f64();
    if value < 0 { -magnitude } else { magnitude }
}

fn unix_seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests;

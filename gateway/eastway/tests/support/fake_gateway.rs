//! The three HTTP ports over a made-up process: what they show is fixed, so that answers can be compared.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use eastway::admin::check::{AddressFacts, CheckFacts, DnsFacts, GatewayFacts, HandshakeFault, PeerFacts, Reach};
use eastway::admin::rules::{RuleView, RulesView};
use eastway::admin::sidecars::{
    CertificateView, RefusedView, ResourceKind, ResourceView, SidecarConfigView, SidecarKindView, SidecarState,
    SidecarView,
};
use eastway::admin::views::{
    BenchView, CandidateView, Description, DnsView, EndpointView, IdentityView, Leftovers, LinkView, PartView,
    PeerCondition, PeerCounts, PeerView, PortView, RejectedView, ServiceCounts, ServiceView, SnapshotView, StatusView,
};
use eastway::admin::{
    AdminContext, AdminPort, AdminSource, BenchQuery, BoxFuture, DescribeQuery, HealthPort, MetricsPort, Readiness,
    SourceError,
};
use eastway::telemetry::{AccessMode, Metrics, PeerSample, Telemetry};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// 2026-11-23T12:00:00Z.
pub(crate) const NOW: u64 = 1_795_435_200_000;
const HOUR: u64 = 3_600_000;

/// A gateway `onprem` with a peer `gke` that is up and a peer `edge` that is down.
#[derive(Default)]
pub(crate) struct FakeSource {
    /// How often [`AdminSource::leftovers`] still finds something.
    pub(crate) leftovers_for: AtomicU32,
    /// What [`AdminSource::config`] returns.
    pub(crate) config: serde_json::Value,
    /// Whether the checks find errors.
    pub(crate) broken: bool,
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn socket(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn strings(items: &[&str]) -> Vec<String> {
    items.iter().map(|&item| item.to_owned()).collect()
}

fn labels(version: &str) -> BTreeMap<String, String> {
    BTreeMap::from([("version".to_owned(), version.to_owned())])
}

impl AdminSource for FakeSource {
    fn status(&self) -> StatusView {
        StatusView {
            cluster: "onprem".to_owned(),
            trust_domain: "onprem.example".to_owned(),
            version: "0.1.0".to_owned(),
            roles: strings(&["gateway", "ca"]),
            started_at: NOW - HOUR,
            listeners: BTreeMap::from([
                ("dns".to_owned(), vec![socket("127.0.0.1:15053")]),
                ("link".to_owned(), vec![socket("0.0.0.0:15443")]),
            ]),
            snapshot: SnapshotView { version: 42, local_synced: true, restored_age_ms: None },
            identity: Some(IdentityView {
                id: "spiffe://onprem.example/ns/eastway-system/sa/eastway-gateway".to_owned(),
                not_after: NOW + 23 * HOUR,
                pin: "sha256:00aa".to_owned(),
                issuer_not_after: Some(NOW + 8_760 * HOUR),
            }),
            peers: PeerCounts { up: 1, down: 1, unknown: 0 },
            services: ServiceCounts { local: 2, exported: 2, imported: 2, vips: 3 },
            open_connections: 7,
            ..StatusView::default()
        }
    }

    fn peers(&self) -> Vec<PeerView> {
        let edge = PeerView {
            name: "edge".to_owned(),
            state: PeerCondition::Down,
            since: Some(NOW - HOUR),
            trust_domain: "edge.example".to_owned(),
            workload_isolation: "trust domain".to_owned(),
            last_error: Some("no link; it has to dial us".to_owned()),
            stale_ms: Some(HOUR),
            imported_services: 1,
            ..PeerView::default()
        };
        let gke = PeerView {
            name: "gke".to_owned(),
            state: PeerCondition::Up,
            since: Some(NOW - HOUR),
            trust_domain: "gke.example".to_owned(),
            gateway: "spiffe://gke.example/ns/eastway-system/sa/eastway-gateway".to_owned(),
            pins: strings(&["sha256:11bb"]),
            workload_isolation: "trust domain".to_owned(),
            addresses: strings(&["198.51.100.12:15443"]),
            links: vec![LinkView {
                replica: "00112233".to_owned(),
                remote: "198.51.100.12:15443".to_owned(),
                transport: "quic".to_owned(),
                dialled: true,
                since: NOW - HOUR,
                rtt_us: Some(20_400),
                mtu: Some(1_452),
                certificate_not_after: Some(NOW + 20 * HOUR),
                streams: 3,
                sent_bytes: 1_000,
                received_bytes: 2_000_000,
                ..LinkView::default()
            }],
            dials: 1,
            clock_skew_ms: Some(-3),
            imported_services: 1,
            imported_endpoints: 3,
            exported_services: 2,
            ..PeerView::default()
        };
        vec![edge, gke]
    }

    fn services(&self) -> Vec<ServiceView> {
        let part = |cluster: &str, ready: u32, stale: bool, subsets: &[(&str, u32)]| PartView {
            cluster: cluster.to_owned(),
            local: cluster == "onprem",
            stale,
            ready,
            draining: 0,
            subsets: subsets.iter().map(|(key, count)| ((*key).to_owned(), *count)).collect(),
        };
        let http = PortView {
            name: Some("http".to_owned()),
            port: 9_080,
            protocol: "TCP".to_owned(),
            app_protocol: Some("http".to_owned()),
        };
        let service = |name: &str, parts: Vec<PartView>| ServiceView {
            namespace: "bookinfo".to_owned(),
            name: name.to_owned(),
            kind: "ClusterSetIP".to_owned(),
            dns_names: vec![format!("{name}.bookinfo.svc.clusterset.local")],
            vips: vec![ip("242.0.1.2")],
            ports: vec![http.clone()],
            exported: parts.iter().any(|part| part.local),
            parts,
            ..ServiceView::default()
        };
        vec![
            service("ratings", vec![part("edge", 1, true, &[])]),
            service(
                "reviews",
                vec![
                    part("onprem", 1, false, &[("version=v1", 1)]),
                    part("gke", 3, false, &[("version=v2", 2), ("version=v3", 1)]),
                ],
            ),
        ]
    }

    fn endpoints(&self) -> Vec<EndpointView> {
        vec![EndpointView {
            namespace: "bookinfo".to_owned(),
            service: "reviews".to_owned(),
            cluster: "onprem".to_owned(),
            id: "reviews-0".to_owned(),
            address: Some(ip("10.244.0.11")),
            labels: labels("v1"),
            zone: Some("a".to_owned()),
            state: "ready".to_owned(),
            weight: 100,
            identity: Some("spiffe://onprem.example/ns/bookinfo/sa/bookinfo-reviews".to_owned()),
            in_flight: 2,
        }]
    }

    fn dns(&self) -> DnsView {
        DnsView {
            listeners: vec![socket("127.0.0.1:15053")],
            zones: strings(&["clusterset.local", "shop.example"]),
            names: 5,
            synced: true,
            answers: BTreeMap::from([("NOERROR".to_owned(), 10), ("NXDOMAIN".to_owned(), 2)]),
            ..DnsView::default()
        }
    }

    fn describe(&self, query: &DescribeQuery) -> Result<Description, SourceError> {
        if query.target != "bookinfo/reviews" {
            return Err(SourceError::NotFound(query.target.clone(), strings(&["bookinfo/reviews"])));
        }
        if query.port.is_some_and(|port| port != 9_080) {
            return Err(SourceError::BadQuery("bookinfo/reviews has no port 80; it has 9080".to_owned()));
        }
        let candidate = |cluster: &str, version: &str, share: f64, path: &str| CandidateView {
            cluster: cluster.to_owned(),
            local: cluster == "onprem",
            subset: labels(version),
            share,
            ready: 1,
            path: path.to_owned(),
            reason: "split of TrafficPolicy reviews".to_owned(),
            endpoints: Vec::new(),
        };
        Ok(Description {
            service: "bookinfo/reviews".to_owned(),
            port: 9_080,
            source: query.namespace.clone().map_or_else(|| "unknown".to_owned(), |ns| format!("onprem/{ns}/default")),
            dns_names: strings(&["reviews.bookinfo.svc.clusterset.local", "reviews.shop.example"]),
            vips: vec![ip("242.0.1.2")],
            policy: "TrafficPolicy bookinfo/reviews".to_owned(),
            candidates: vec![
                candidate("onprem", "v1", 50.0, "direct"),
                candidate("gke", "v2", 30.0, "quic, 20.4 ms"),
                candidate("gke", "v3", 20.0, "quic, 20.4 ms"),
            ],
            rejected: vec![RejectedView {
                cluster: "edge".to_owned(),
                what: String::new(),
                reason: "no link for 1h; others have endpoints".to_owned(),
            }],
            access: None,
            rules: query.request.as_ref().map(|_| rules()),
            sidecars: None,
            istio: Vec::new(),
            warnings: Vec::new(),
        })
    }

    fn sidecars(&self, node: Option<&str>) -> Result<Vec<SidecarView>, SourceError> {
        let kind = |kind: &str, state: SidecarState| SidecarKindView {
            kind: kind.to_owned(),
            state,
            since: NOW - HOUR,
            resources: node.map(|_| 3),
            sent: Some(7),
            acknowledged: Some(7),
            ..SidecarKindView::default()
        };
        let refused = RefusedView {
            version: 8,
            reason: "Didn't find a registered implementation\nfor 'x'".to_owned(),
            names: strings(&["outbound|9080||reviews.bookinfo.svc.clusterset.local"]),
        };
        let sidecar = |name: &str, kinds: Vec<SidecarKindView>| SidecarView {
            node: format!("sidecar~{name}.bookinfo"),
            proxy: "envoy 1.40.0".to_owned(),
            identity: "spiffe://onprem.example/ns/bookinfo/sa/productpage".to_owned(),
            address: "10.244.0.11:40000".to_owned(),
            since: NOW - HOUR,
            serial: "0a1b".to_owned(),
            not_after: NOW + 23 * HOUR,
            kinds,
        };
        let mut sidecars = vec![
            sidecar(
                "details-1",
                vec![
                    SidecarKindView {
                        refused: Some(refused),
                        refusals: 1,
                        sent: Some(8),
                        ..kind("cds", SidecarState::Refused)
                    },
                    SidecarKindView { sent: None, acknowledged: None, ..kind("lds", SidecarState::NotSent) },
                ],
            ),
            sidecar(
                "productpage-1",
                vec![
                    kind("cds", SidecarState::Synced),
                    SidecarKindView { sent: Some(8), unanswered: 1, ..kind("eds", SidecarState::Stale) },
                ],
            ),
        ];
        sidecars.retain(|sidecar| node.is_none_or(|node| sidecar.node == format!("sidecar~{node}")));
        match node {
            Some(node) if sidecars.is_empty() => Err(SourceError::UnknownSidecar(
                node.to_owned(),
                strings(&["details-1.bookinfo", "productpage-1.bookinfo"]),
            )),
            _ => Ok(sidecars),
        }
    }

    fn sidecar_config(&self, node: &str, kind: ResourceKind) -> Result<SidecarConfigView, SourceError> {
        if node != "productpage-1.bookinfo" {
            return Err(SourceError::UnknownSidecar(node.to_owned(), Vec::new()));
        }
        let name = "outbound|9080||reviews.bookinfo.svc.clusterset.local";
        let item = |resource| ResourceView {
            name: name.to_owned(),
            version: "00ff".to_owned(),
            resource,
            ..ResourceView::default()
        };
        let items = match kind {
            ResourceKind::Listeners => vec![item(serde_json::json!({"filter_chains": [
                {"filters": [{"typed_config": {"@type": "x/a.HttpConnectionManager", "rds": {"route_config_name": name}}}]},
                {"filter_chain_match": {"transport_protocol": "tls", "server_names": ["a.example"]}, "transport_socket": {},
                 "filters": [{"typed_config": {"@type": "x/a.TcpProxy", "cluster": name}}]},
            ]}))],
            ResourceKind::Routes => vec![item(serde_json::json!({"virtual_hosts": [{"domains": ["*"], "routes": [
                {"match": {"prefix": "/", "headers": [{"name": "end-user", "string_match": {"exact": "jason"}}]},
                 "route": {"cluster": name, "timeout": "2s", "retry_policy": {"num_retries": 3}}},
                {"match": {"safe_regex": {"regex": "/a.*"}}, "redirect": {"path_redirect": "/b"}},
                {"match": {"path": "/c"}, "route": {"weighted_clusters": {"clusters": [{"name": "v1", "weight": 80}, {"name": "v3", "weight": 20}]}}},
            ]}]}))],
            ResourceKind::Clusters => vec![item(serde_json::json!({"type": "EDS", "lb_policy": "LEAST_REQUEST",
                "transport_socket": {"typed_config": {"transport_socket": {"typed_config": {"@type": "x/UpstreamTlsContext"}}}}}))],
            ResourceKind::Endpoints => vec![item(serde_json::json!({"endpoints": [
                {"locality": {"region": "onprem", "zone": "a"}, "lb_endpoints": [
                    {"endpoint": {"address": {"socket_address": {"address": "10.244.0.12", "port_value": 9080}}}, "health_status": "HEALTHY", "load_balancing_weight": 100},
                ]},
                {"locality": {"region": "gke"}, "priority": 1, "lb_endpoints": [
                    {"metadata": {"filter_metadata": {"eastway": {"endpoint": "r1.reviews.bookinfo.gke:9080"}, "envoy.lb": {"version": "v2"}}}, "health_status": "DRAINING"},
                ]},
            ]}))],
            ResourceKind::Secrets => vec![ResourceView {
                name: "workload".to_owned(),
                certificates: vec![CertificateView {
                    subject: "spiffe://onprem.example/ns/bookinfo/sa/productpage".to_owned(),
                    serial: "0a1b".to_owned(),
                    not_after: NOW + 23 * HOUR,
                }],
                ..ResourceView::default()
            }],
        };
        Ok(SidecarConfigView { node: format!("sidecar~{node}"), refused: None, items })
    }

    fn config(&self) -> serde_json::Value {
        self.config.clone()
    }

    fn leftovers(&self, peer: &str) -> Leftovers {
        let left = self.leftovers_for.load(Ordering::Relaxed);
        if left == 0 || peer != "gke" {
            return Leftovers::default();
        }
        self.leftovers_for.store(left.saturating_sub(1), Ordering::Relaxed);
        Leftovers { configured: left > 2, links: 1, imports: left, ..Leftovers::default() }
    }

    fn bench(&self, query: BenchQuery) -> BoxFuture<'_, Result<BenchView, SourceError>> {
        let view = BenchView {
            peer: query.peer,
            transport: "quic".to_owned(),
            mtu: 1_452,
            bits_per_second: 187_000_000,
            ..BenchView::default()
        };
        Box::pin(async move { Ok(view) })
    }

    fn check(&self, peer: Option<String>) -> BoxFuture<'_, CheckFacts> {
        let gke = PeerFacts {
            name: "gke".to_owned(),
            up: true,
            addresses: vec![AddressFacts {
                address: "198.51.100.12:15443".to_owned(),
                reach: Reach::Answered(Duration::from_millis(20)),
            }],
            echo: Some(Ok(Duration::from_millis(21))),
            pins: 1,
            import_rules: 1,
            export_rules: 1,
            imported_services: 1,
            exported_services: 2,
            synced: true,
            ..PeerFacts::default()
        };
        let edge = PeerFacts {
            name: "edge".to_owned(),
            addresses: vec![AddressFacts { address: "203.0.113.7:15443".to_owned(), reach: Reach::Silent }],
            handshake: Some(HandshakeFault::Unpinned("sha256:22cc".to_owned())),
            import_rules: 1,
            export_rules: 1,
            exported_services: 1,
            ..PeerFacts::default()
        };
        let mut peers = if self.broken { vec![edge, gke] } else { vec![gke] };
        peers.retain(|known| peer.as_ref().is_none_or(|name| *name == known.name));
        let facts = CheckFacts {
            now: NOW,
            gateway: GatewayFacts { leaf: Some((NOW - HOUR, NOW + 23 * HOUR)), ..GatewayFacts::default() },
            dns: DnsFacts { enabled: true, answers: true, synced: true, ..DnsFacts::default() },
            peers,
        };
        Box::pin(std::future::ready(facts))
    }

    fn refresh(&self, metrics: &Metrics) {
        let sample = PeerSample { up: true, links: 1, rtt: Some(Duration::from_millis(20)), ..PeerSample::default() };
        metrics.set_peer(&Arc::from("gke"), &sample);
    }
}

/// The ports, serving until this is dropped.
pub(crate) struct FakeGateway {
    pub(crate) health: SocketAddr,
    pub(crate) metrics: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) readiness: Readiness,
    // Owns the listeners' tasks: they end with it.
    _tasks: JoinSet<()>,
}

impl FakeGateway {
    /// Binds all three to loopback.
    pub(crate) async fn start(source: FakeSource) -> Self {
        let any = socket("127.0.0.1:0");
        let readiness = Readiness::new();
        let telemetry = Telemetry::new(AccessMode::Off);
        let context = AdminContext::new(Arc::new(source), readiness.clone(), telemetry.clone(), None);
        let shutdown = CancellationToken::new();
        let health = HealthPort::bind(any).await.unwrap();
        let metrics = MetricsPort::bind(any).await.unwrap();
        let admin = AdminPort::bind(any).await.unwrap();
        let addresses = (health.local_addr(), metrics.local_addr(), admin.local_addr());
        let mut tasks = JoinSet::new();
        tasks.spawn(health.run(readiness.clone(), telemetry, shutdown.clone()));
        tasks.spawn(metrics.run(context.clone(), shutdown.clone()));
        tasks.spawn(admin.run(context, shutdown));
        Self { health: addresses.0, metrics: addresses.1, admin: addresses.2, readiness, _tasks: tasks }
    }
}

/// What becomes of a request of jason.
fn rules() -> RulesView {
    let rule = |number: usize, matches: &str, does: &str, why_not: Option<&str>| RuleView {
        rule: format!("HTTPRoute bookinfo/reviews rules[{number}]"),
        matches: matches.to_owned(),
        does: does.to_owned(),
        chosen: why_not.is_none(),
        why_not: why_not.map(str::to_owned),
    };
    RulesView {
        kind: "HTTPRoute".to_owned(),
        rules: vec![
            rule(2, "/admin/*", "100 % to version=v3 of bookinfo/reviews", Some("path is not /admin/*")),
            rule(0, "header end-user: jason", "100 % to version=v2 of bookinfo/reviews", None),
            rule(
                1,
                "everything",
                "100 % to version=v1 of bookinfo/reviews",
                Some("HTTPRoute bookinfo/reviews rules[0] is more specific, or older"),
            ),
        ],
        outcome: Some("100 % to version=v2 of bookinfo/reviews".to_owned()),
        statuses: vec!["HTTPRoute bookinfo/reviews: Accepted: True Accepted (port 9080)".to_owned()],
    }
}

//! `kind: GatewayConfig`: one process of the gateway.

use eastway_registry::yaml::{Field, List, Text};
use schemars::JsonSchema;
use serde::Deserialize;

use super::injection::InjectionSection;
use super::registries::RegistrySection;
use crate::telemetry::{AccessMode, LogFormat};

/// Configuration of one gateway: its cluster's name, where it listens, and where to find the rest.
/// Relative paths start at the folder of this file.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GatewayConfig {
    /// Always `eastway.dev/v1alpha1`.
    #[schemars(extend("const" = "eastway.dev/v1alpha1"))]
    pub api_version: Field<String>,
    /// Always `GatewayConfig`.
    #[schemars(extend("const" = "GatewayConfig"))]
    pub kind: Field<String>,
    /// Name of this cluster, unique in the clusterset. Peers call it by this name.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub cluster: Field<String>,
    /// Identities and certificates.
    pub trust: Field<TrustSection>,
    /// Where the gateway listens.
    #[serde(default)]
    pub listen: Field<ListenSection>,
    /// Links to peers.
    #[serde(default)]
    pub link: Field<LinkSection>,
    /// Pairs of peers that cannot reach each other and whose links this gateway carries. Default: none.
    #[serde(default)]
    pub relay: Field<RelaySection>,
    /// Other gateways of this cluster, if there are several behind one address. Default: there are none.
    #[serde(default)]
    pub replicas: Field<ReplicasSection>,
    /// Sources of this cluster's own services.
    #[serde(default)]
    pub registries: List<RegistrySection>,
    /// Folder of `kind: Peer` files, one per peer. Default: `./peers`, if it is there.
    #[serde(default)]
    pub peers: Field<String>,
    /// Folder of `kind: TrafficPolicy` and `kind: AccessPolicy` files. Default: `./policies`, if it
    /// is there.
    #[serde(default)]
    pub policies: Field<String>,
    /// What the DNS server answers beside `clusterset.local`.
    #[serde(default)]
    pub dns: Field<DnsSection>,
    /// Virtual addresses of imported services.
    #[serde(default)]
    pub vip: Field<VipSection>,
    /// Sidecars of this cluster. Default: none are served.
    #[serde(default)]
    pub sidecars: Field<SidecarsSection>,
    /// Whether connections that no AccessPolicy allows are refused (`enforce`) or only counted and
    /// logged (`dryRun`). Default: `enforce`.
    #[serde(default)]
    pub authorization: Field<AuthorizationWord>,
    /// Folder for what survives a restart: imports, virtual addresses, keys. Default: `./state`.
    #[serde(default)]
    pub state: Field<String>,
    /// The Kubernetes cluster that this process works in. With it, virtual addresses are the cluster IPs that the
    /// controller gives out, and `vip` has no effect.
    #[serde(default)]
    pub kubernetes: Field<KubernetesSection>,
    /// Logs.
    #[serde(default)]
    pub log: Field<LogSection>,
    /// Bounds on what peers and clients can use up.
    #[serde(default)]
    pub limits: Field<LimitsSection>,
    /// Accept endpoints on loopback addresses. For demonstrations and tests on one machine only:
    /// peers then reach what listens on this machine's loopback, if it is listed and exported.
    #[serde(default)]
    pub allow_loopback: Field<bool>,
}

/// What happens to connections that no AccessPolicy allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub enum AuthorizationWord {
    /// Refused.
    Enforce,
    /// Counted and logged.
    DryRun,
}

/// Identities and certificates.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrustSection {
    /// Trust domain of this cluster's identities, e.g. `onprem.example`.
    #[schemars(length(min = 1, max = 255), regex(pattern = r"^[a-z0-9._-]+$"))]
    pub domain: Field<String>,
    /// Folder of the issuing CA in Istio's `cacerts` layout. Only the ca role reads its key; who asks a CA at
    /// `https://` reads `cert-chain.pem` and `root-cert.pem` there to know it by. Default: `./cacerts`.
    #[serde(default)]
    pub cacerts: Field<String>,
    /// Where certificates are asked for: `unix:` and a path, or `https://` with host and port of a ca role that
    /// listens on `listen.ca`. Default: `unix:./run/ca.sock`.
    #[serde(default)]
    pub ca: Field<String>,
    /// Service-account token, for the audience `eastway-ca`, that is shown to a CA at `https://`; read anew for each
    /// request. Default: `/var/run/secrets/eastway/token`.
    #[serde(default)]
    pub token: Field<String>,
    /// Folder, best one in memory, where a gateway keeps its certificate with its key, and the keys that replicas
    /// share: so it comes up again while the CA, or what the CA asks, is away. Default: not kept.
    #[serde(default)]
    pub keep: Field<String>,
    /// Lifetime of certificates, 1m to 24h. Default: `24h`.
    #[serde(default)]
    pub leaf_ttl: Field<Text>,
    /// PEM file of revocation lists that peers' certificates are checked against.
    #[serde(default)]
    pub crl: Field<String>,
    /// Workloads outside Kubernetes that get certificates: the ca role makes a Unix socket for each, and whoever can open
    /// it is that workload. Followed while it runs. Default: none.
    #[serde(default)]
    #[schemars(length(max = 1024))]
    pub workloads: List<WorkloadSection>,
}

/// A workload outside Kubernetes that gets certificates on a socket of its own.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkloadSection {
    /// Its namespace; not Eastway's own.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub namespace: Field<String>,
    /// Its service account.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub service_account: Field<String>,
    /// Its socket, made with mode 0600; the folder's own permissions count as well.
    pub socket: Field<String>,
    /// The user whom the socket is given to, by number. Only root may give it away. Default: that of the ca role.
    #[serde(default)]
    #[schemars(range(max = 4_294_967_294_u64))]
    pub uid: Field<u64>,
}

/// Where the gateway listens.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ListenSection {
    /// Links from peers (UDP and TCP): the only address that must be reachable from outside. Default:
    /// `0.0.0.0:15443`.
    #[serde(default)]
    pub link: Field<Text>,
    /// Addresses at which peers reach `link`, as `eastway peer export` prints them. Empty: peers
    /// cannot dial this gateway, it dials them.
    #[serde(default)]
    pub advertise: List<Text>,
    /// DNS (UDP and TCP). Default: `127.0.0.1:15053`.
    #[serde(default)]
    pub dns: List<Text>,
    /// Administration; must be a loopback address. Default: `127.0.0.1:15000`.
    #[serde(default)]
    pub admin: Field<Text>,
    /// What the controller and, with `sidecars`, the sidecars of this cluster are told, with mutual TLS by the
    /// cluster's own CA (TCP), e.g. `0.0.0.0:15012`. Default: not at all.
    #[serde(default)]
    pub local: Field<Text>,
    /// Sidecars of this cluster (TCP), which reach single endpoints of imports there: HTTP/2 CONNECT with mutual TLS by
    /// the cluster's own CA, e.g. `0.0.0.0:15008`. Default: not at all.
    #[serde(default)]
    pub hbone: Field<Text>,
    /// Istio's sidecars of this cluster (TCP), whose mesh calls this gateway that of another network: a port for each peer.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub sni: List<SniSection>,
    /// The ca role (TCP), for `trust.ca: https://…`, e.g. `0.0.0.0:15012`. It asks an API server whom a token belongs
    /// to. Default: on the Unix socket of `trust.ca` only.
    #[serde(default)]
    pub ca: Field<Text>,
    /// The injector role (TCP): the webhook that API servers ask about pods, with TLS, e.g. `0.0.0.0:15017`. Default:
    /// `127.0.0.1:15017`.
    #[serde(default)]
    pub injection: Field<Text>,
    /// Prometheus metrics. Default: `127.0.0.1:15020`.
    #[serde(default)]
    pub metrics: Field<Text>,
    /// Health checks. Default: `127.0.0.1:15021`.
    #[serde(default)]
    pub health: Field<Text>,
}

/// A port where the name in TLS says what is wanted of a peer, as Istio writes it; what is said is not read.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SniSection {
    /// The peer that stands for the other network.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub cluster: Field<String>,
    /// What Istio calls that network. Default: as the peer.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    #[serde(default)]
    pub network: Field<String>,
    /// Where it listens, e.g. `0.0.0.0:15444`.
    #[schemars(length(min = 1))]
    pub address: Field<Text>,
}

/// Links to peers.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LinkSection {
    /// How often a silent link proves that it lives, 100ms to 30s. Default: `1s`.
    #[serde(default)]
    pub keep_alive: Field<Text>,
    /// A link that acknowledged nothing for so long is down, 2s to 5s and at least 3 x keepAlive; after 4s without
    /// an acknowledged heartbeat it is down in any case. Default: `4s`.
    #[serde(default)]
    pub idle_timeout: Field<Text>,
    /// How long streams may go on when the process stops; a second signal cuts them and tells peers. Default: `30s`.
    #[serde(default)]
    pub drain: Field<Text>,
    /// How a load balancer in front of the gateways reads connection ids of QUIC (QUIC-LB). Default: it does not, or where
    /// the environment has `AWS_LBC_QUIC_SERVER_ID` as AWS' does.
    #[serde(default)]
    pub quic_lb: Field<QuicLbSection>,
}

/// How a load balancer reads connection ids of QUIC: as its configuration says, which is the same for all gateways but for
/// the server id. Read when the process starts.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct QuicLbSection {
    /// By what it knows this gateway: 1 to 15 bytes as hexadecimal digits, e.g. `0x2d6575a16fa08ea4`. Default: what
    /// `AWS_LBC_QUIC_SERVER_ID` says.
    #[serde(default)]
    pub server_id: Field<Text>,
    /// Its configuration's number. Default: 0.
    #[serde(default)]
    #[schemars(range(max = 6))]
    pub configuration: Field<u64>,
    /// Bytes of the nonce; with the server id at most 19. Only as long as both are at most 12 bytes, replicas hand packets
    /// to each other and peers learn of a restart at once. Default: 4.
    #[serde(default)]
    #[schemars(range(min = 4, max = 18))]
    pub nonce_length: Field<u64>,
    /// File with the key that it decrypts them by, 32 hexadecimal digits. Default: they are not encrypted.
    #[serde(default)]
    pub key_file: Field<String>,
}

/// Relaying for others. Who relays learns which two clusters talk and how much, and nothing else.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RelaySection {
    /// For whom. Both Peer files there have to say `via: <this cluster>`.
    #[schemars(length(max = 1024))]
    pub allow: List<RelayPairSection>,
}

/// Two peers whose links are carried, and how much of them, both directions together.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RelayPairSection {
    /// The two peers.
    #[schemars(length(min = 2, max = 2))]
    pub between: List<String>,
    /// Pipes at one time, 1 to 65536: a link takes some 20, and one more for each of its streams. Default: 512.
    #[serde(default)]
    #[schemars(range(min = 1, max = 65_536))]
    pub streams: Field<u64>,
    /// Bytes in a second, e.g. `20MiB`. Default: as many as will go.
    #[serde(default)]
    pub bytes_per_second: Field<Text>,
    /// Bytes in a day that begins with the first of them, e.g. `100GiB`. Default: as many as will go.
    #[serde(default)]
    pub bytes_per_day: Field<Text>,
}

/// Other gateways of this cluster. They find each other, tell peers how many they are, and hand over packets of links
/// that a load balancer gave to the wrong one.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ReplicasSection {
    /// Where this one hears the others (UDP), on a network between them that nothing else needs to reach. Default:
    /// `0.0.0.0:15442`.
    #[serde(default)]
    pub listen: Field<Text>,
    /// Where the gateways of this cluster listen so, `address:port` each. This one may be among them, so that all can
    /// have the same list.
    #[schemars(length(max = 64))]
    #[serde(default)]
    pub siblings: List<Text>,
}

/// What the DNS server answers beside `clusterset.local`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DnsSection {
    /// Zones of your own, e.g. `shop.example`.
    #[serde(default)]
    pub zones: List<String>,
    /// Names in them, and the services they lead to.
    #[serde(default)]
    pub names: List<NameSection>,
}

/// A name of your own for a service.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NameSection {
    /// The name, e.g. `reviews.shop.example`; it must be in one of the zones.
    pub name: Field<String>,
    /// The service it leads to: `namespace/name`.
    #[schemars(regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?/[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub service: Field<String>,
    /// Only this cluster's endpoints. Default: any, as the service's traffic policy says.
    #[serde(default)]
    pub cluster: Field<String>,
}

/// Virtual addresses of imported services.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VipSection {
    /// Ranges to take them from. Default: `242.0.0.0/16` and `fd65:6173:7477::/48`.
    #[serde(default)]
    pub ranges: List<String>,
    /// Whether this gateway decides and keeps which import has which address; one gateway of a
    /// cluster does. Default: `true`.
    #[serde(default)]
    pub owner: Field<bool>,
}

/// Envoy proxies beside workloads of this cluster. They ask at `listen.local` for their configuration (xDS), and reach
/// single endpoints of other clusters through the gateway.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SidecarsSection {
    /// Host and port at which sidecars reach the gateway's HBONE port, e.g. `10.0.0.5:15008`. Default: the port of
    /// `listen.hbone` at its address, or at that of `listen.local`, if it is one that can be connected to.
    #[serde(default)]
    pub gateway: Field<Text>,
    /// Most endpoints that other clusters may have of one service for sidecars to be told them one by one, 1 to 1000000.
    /// Of a service with more they are told one for each cluster, and for each set of labels of it that a rule leads to,
    /// weighted by how many it stands for; single ones again when a fifth fewer are left. Default: 500.
    #[serde(default)]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub endpoints_per_service: Field<u64>,
    /// Sidecars that are put into pods, by the injector role. Default: none are.
    #[serde(default)]
    pub injection: Field<InjectionSection>,
}

/// A Kubernetes cluster, and where Eastway is in it.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KubernetesSection {
    /// Namespace that Eastway runs in; its service accounts are `eastway-gateway`, `eastway-controller` and
    /// `eastway-ca`. Default: `eastway-system`.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    #[serde(default)]
    pub namespace: Field<String>,
    /// Service of the gateways; where a cloud leads to it, `eastway peer export` tells peers, unless
    /// `listen.advertise` says something else. Default: `eastway-gateway`.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    #[serde(default)]
    pub service: Field<String>,
    /// A kubeconfig file. Default: the service account of the pod.
    #[serde(default)]
    pub kubeconfig: Field<String>,
    /// A context of that file. Default: its current one.
    #[serde(default)]
    pub context: Field<String>,
    /// Where the controller is told by a gateway what peers export: host and port of the gateways' `listen.local`.
    /// Default: `eastway-gateway-local`, a Service in that namespace, port 15012.
    #[serde(default)]
    pub gateways: Field<Text>,
    /// Labels of the gateway pods, which the controller leads imports to. Default:
    /// `app.kubernetes.io/name=eastway,app.kubernetes.io/component=gateway`.
    #[serde(default)]
    pub gateway_labels: Field<String>,
    /// Istio runs in this cluster: the Service, in that namespace, in front of the ports of `listen.sni`. Pods with Istio's
    /// sidecar count as those of `trust.domain`, and the controller tells istiod of services of the peers of
    /// `listen.sni`. Default: there is no Istio.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    #[serde(default)]
    pub istio_service: Field<String>,
    /// Whose routes are read from its API, beside Peers and policies: `gatewayApi` (HTTPRoute, GRPCRoute, TCPRoute, TLSRoute),
    /// `istio` (VirtualService, DestinationRule). Routes that no service is a parent of are left alone. Default: none.
    #[serde(default)]
    pub routes: List<RoutesWord>,
}

/// Whose routes are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, serde::Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub enum RoutesWord {
    /// Those of the Gateway API.
    GatewayApi,
    /// Istio's.
    Istio,
}

/// Logs.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LogSection {
    /// `text` or `json`. Default: `text`.
    #[serde(default)]
    pub format: Field<LogFormat>,
    /// `error`, `warn`, `info`, `debug`, `trace`, or filter directives such as
    /// `info,eastway_dns=debug`. Default: `info`.
    #[serde(default)]
    pub level: Field<String>,
    /// One line per connection: `off`, `errors` (those that failed) or `all`. Default: `errors`.
    #[serde(default)]
    pub access: Field<AccessMode>,
}

/// Bounds on what peers and clients can use up.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LimitsSection {
    /// Services of one peer, 1 to 1000000. Default: 10000.
    #[serde(default)]
    pub services_per_peer: Field<u64>,
    /// Endpoints of one peer, 1 to 10000000. Default: 100000.
    #[serde(default)]
    pub endpoints_per_peer: Field<u64>,
    /// Changed services and endpoints of one peer per second in the long run, 1 to 1000000: above it the peer has to wait. Default: 10000.
    #[serde(default)]
    pub updates_per_second_per_peer: Field<u64>,
    /// Open streams of one peer, 1 to 1000000, and no more than a quarter of the file descriptors that the process
    /// may open. Default: 65536.
    #[serde(default)]
    pub streams_per_peer: Field<u64>,
    /// Seconds in an hour for which one peer may measure its link by `eastway bench`, 0 to 3600; 0: no peer may. Default: 60.
    #[serde(default)]
    pub bench_seconds_per_hour: Field<u64>,
    /// Bytes of all links that may wait in buffers, 16MiB to 64GiB. Default: a quarter of the memory that the process may
    /// use, at most `256MiB`.
    #[serde(default)]
    pub buffer_bytes: Field<Text>,
    /// Bytes that tunnels of sidecars may hold in buffers, 16MiB to 64GiB. While they hold more, further ones are refused
    /// with 503; those that exist go on. Default: as for `bufferBytes`.
    #[serde(default)]
    pub hbone_buffer_bytes: Field<Text>,
    /// DNS connections over TCP at once, 1 to 65536; over UDP at most 64 queries per core are in work. Default: 128.
    #[serde(default)]
    pub dns_connections: Field<u64>,
    /// DNS answers per second and client network, 1 to 10000000. Default: 10000.
    #[serde(default)]
    pub dns_answers_per_second: Field<u64>,
    /// A connection is reset when no byte moved in either direction for so long, or bytes waited and nobody
    /// took them, 1s to 168h. Default: `1h`.
    #[serde(default)]
    pub connection_idle: Field<Text>,
    /// A connection of which one direction has ended is reset when no byte moved in the other for so long, 1s to
    /// 168h. Default: `10m`.
    #[serde(default)]
    pub connection_half_closed: Field<Text>,
    /// A UDP flow, which is what one client sends from one port to one service, is over when no packet passed for so long,
    /// 1s to 1h; after 10 s already if it was at most two questions that have an answer. Default: `60s`.
    #[serde(default)]
    pub udp_idle: Field<Text>,
}

//! `kind: SidecarConfig`: one workload with an Envoy beside it.

use eastway_registry::yaml::{Field, List, Text};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::telemetry::LogFormat;

/// Configuration of `eastway sidecar`, which runs beside one workload: it gets the workload's certificate, and starts an
/// Envoy that the gateway configures, or leaves that to the workload's gRPC library. Relative paths start at the folder of this file.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SidecarConfig {
    /// Always `eastway.dev/v1alpha1`.
    #[schemars(extend("const" = "eastway.dev/v1alpha1"))]
    pub api_version: Field<String>,
    /// Always `SidecarConfig`.
    #[schemars(extend("const" = "SidecarConfig"))]
    pub kind: Field<String>,
    /// `envoy`: it starts an Envoy. `agent`: it starts nothing, and programs whose gRPC library speaks xDS get their
    /// configuration through it. Default: `envoy`.
    #[serde(default)]
    pub mode: Field<SidecarMode>,
    /// Which workload it stands beside.
    pub workload: Field<WorkloadNameSection>,
    /// Where its certificate comes from.
    pub trust: Field<SidecarTrustSection>,
    /// The `listen.local` of a gateway of this cluster, host and port, e.g. `10.0.0.5:15012`.
    #[schemars(length(min = 1))]
    pub gateway: Field<Text>,
    /// Where it takes connections for its workload. Endpoints in a `kind: ServiceList` name these addresses, and `tls`
    /// there says what they speak. Default: nowhere, the workload only connects out.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub inbound: List<InboundSection>,
    /// Whether it takes connections to the virtual addresses of imports. Without `capture` they have to be addresses of this
    /// host then. Default: `true`.
    #[serde(default)]
    pub outbound: Field<bool>,
    /// Places on this host that lead to one import each, for workloads that name them and whose connections nothing leads to
    /// Envoy. Default: none.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub listeners: List<ListenerSection>,
    /// How connections get to Envoy. `none`: whoever connects has to name its addresses. `nftables`: it is led there by rules
    /// in this network namespace, which the workload knows nothing of: what goes to a virtual address, and what comes from
    /// other hosts to the port of an `inbound[].app`. It takes `nft` and CAP_NET_ADMIN. `prepared`: such rules are there
    /// already, made by `eastway sidecar --prepare-capture` (in a pod, a container that runs before), and what goes to no
    /// virtual address goes on as it would have. Default: `none`.
    #[serde(default)]
    pub capture: Field<CaptureWord>,
    /// Virtual addresses that `capture` leads to Envoy: those of `vip.ranges` of the gateway's file. Default: `242.0.0.0/16`
    /// and `fd65:6173:7477::/48`; with `capture: prepared` all addresses.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub vips: List<String>,
    /// Where it answers `/healthz` (it runs) and `/readyz` (Envoy has its configuration and listens at all of `inbound`, and
    /// the certificate is good), e.g. `0.0.0.0:15021`. Default: nowhere.
    #[serde(default)]
    pub health: Field<Text>,
    /// Folder for sockets and for Envoy's own file; nothing in it needs to be kept. Each sidecar has its own. Default:
    /// `./state`.
    #[serde(default)]
    pub state: Field<String>,
    /// Envoy.
    #[serde(default)]
    pub envoy: Field<EnvoySection>,
    /// How long connections may go on when it is told to stop, 0s to 1h. Default: `10s`.
    #[serde(default)]
    pub drain: Field<Text>,
    /// Logs, those of Envoy among them.
    #[serde(default)]
    pub log: Field<SidecarLogSection>,
}

/// What a sidecar does for its workload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, serde::Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub enum SidecarMode {
    /// Runs Envoy, which connections go through.
    #[default]
    Envoy,
    /// Tells gRPC libraries where to connect to.
    Agent,
}

/// How connections get to Envoy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, serde::Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub enum CaptureWord {
    /// By its addresses.
    #[default]
    None,
    /// By rules in the kernel.
    Nftables,
    /// By rules in the kernel that somebody else made.
    Prepared,
}

/// A place where connections are taken for the workload.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InboundSection {
    /// Where Envoy listens, e.g. `10.0.0.7:9443`.
    pub listen: Field<Text>,
    /// Where the workload listens, e.g. `127.0.0.1:8080`.
    pub app: Field<Text>,
    /// What is spoken: `http`, `http2` (gRPC too) or `tcp`; or `service`: what services of the workload's namespace say that have an
    /// endpoint at one of `workload.addresses` with the port of `app`, else of `listen`, by `appProtocol` or the name of their port
    /// (`tcp` if none does, or if they contradict each other). Workloads that speak HTTP read in `x-forwarded-client-cert` who
    /// their client is. Default: `tcp`.
    #[serde(default)]
    pub protocol: Field<InboundProtocolWord>,
    /// `strict`: mutual TLS only. `permissive`: plain text as well. Default: `strict`.
    #[serde(default)]
    pub mode: Field<ModeWord>,
    /// Who may connect by TLS: SPIFFE ids, or all below a path, as `spiffe://gke.example/ns/bookinfo/*`. Default: every
    /// workload of this trust domain and of those of peers.
    #[serde(default)]
    #[schemars(length(max = 256))]
    pub allow: List<Text>,
}

/// A place that leads to one import.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ListenerSection {
    /// Where Envoy listens, e.g. `127.0.0.1:9080`. Whoever reaches it is this workload to others.
    pub listen: Field<Text>,
    /// The service, e.g. `bookinfo/reviews`.
    #[schemars(length(min = 1, max = 127))]
    pub service: Field<String>,
    /// Its port.
    #[schemars(range(min = 1, max = 65535))]
    pub port: Field<u64>,
    /// What is spoken: `http`, `http2` (gRPC too) or `tcp`. Rules about requests want HTTP here and at the service's port.
    /// Default: `tcp`.
    #[serde(default)]
    pub protocol: Field<ProtocolWord>,
}

/// What is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum ProtocolWord {
    /// HTTP/1.1.
    Http,
    /// HTTP/2.
    Http2,
    /// Bytes.
    Tcp,
}

/// What is spoken at a place, or who says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum InboundProtocolWord {
    /// HTTP/1.1.
    Http,
    /// HTTP/2.
    Http2,
    /// Bytes.
    Tcp,
    /// Services that lead there.
    Service,
}

/// Whether plain text is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum ModeWord {
    /// No.
    Strict,
    /// Yes.
    Permissive,
}

/// A workload. Namespace and service account are those that its certificate is for.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkloadNameSection {
    /// Its namespace.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub namespace: Field<String>,
    /// Its service account.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub service_account: Field<String>,
    /// Its own name, that of the pod or host; unique in its namespace.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: Field<String>,
    /// Its addresses as services of this cluster have them, with commas between them, at most 16. Default: none.
    #[serde(default)]
    pub addresses: Field<String>,
}

/// Where the workload's certificate comes from.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SidecarTrustSection {
    /// Trust domain of this cluster's identities, e.g. `onprem.example`.
    #[schemars(length(min = 1, max = 255), regex(pattern = r"^[a-z0-9._-]+$"))]
    pub domain: Field<String>,
    /// Where certificates are asked for: `unix:` and the socket that `trust.workloads` of the ca role's file has for this
    /// workload, or `https://` with host and port of a ca role that listens on `listen.ca`.
    pub ca: Field<String>,
    /// Folder with `cert-chain.pem` and `root-cert.pem` of the issuing CA, which a CA at `https://` is known by. Default:
    /// `./cacerts`.
    #[serde(default)]
    pub cacerts: Field<String>,
    /// Service-account token, for the audience `eastway-ca`, that is shown to a CA at `https://`; read anew for each
    /// request. Default: `/var/run/secrets/eastway/token`.
    #[serde(default)]
    pub token: Field<String>,
    /// Folder, best one in memory, where certificate and key are kept over a restart, for nobody but this user: while the CA
    /// is away a restarted sidecar goes on with them until they end. Default: they are nowhere but in memory.
    #[serde(default)]
    pub keep: Field<String>,
    /// Lifetime of certificates, 1m to 24h; the CA may give less. Default: `24h`.
    #[serde(default)]
    pub leaf_ttl: Field<Text>,
    /// Namespace that Eastway runs in; with it gateway and CA are known. Default: `eastway-system`.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    #[serde(default)]
    pub system_namespace: Field<String>,
}

/// Envoy.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EnvoySection {
    /// Its program, 1.36 or newer. Default: `envoy`, as `PATH` has it.
    #[serde(default)]
    pub path: Field<String>,
    /// Further arguments. What the sidecar sets itself (configuration, log format, drain, concurrency) is refused.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub args: List<Text>,
    /// Port on 127.0.0.1 of Envoy's administration, with its statistics. Whoever reaches it can stop Envoy. Default: none,
    /// only a socket in the state folder.
    #[serde(default)]
    #[schemars(range(min = 1, max = 65535))]
    pub admin: Field<u64>,
    /// Worker threads, 1 to 1024. Default: 2.
    #[serde(default)]
    #[schemars(range(min = 1, max = 1024))]
    pub concurrency: Field<u64>,
    /// Memory that it may use, e.g. `400MiB`, 32MiB or more. At 85 % of it, it gives free memory back, at 95 % it takes no further
    /// connections until there is some again; how many it takes at all, one for each 64 KiB, goes by it too. Default: what a
    /// memory limit of this process (of the container, of the unit) leaves it; without one it is not watched.
    #[serde(default)]
    pub memory: Field<Text>,
    /// What it logs: `trace`, `debug`, `info`, `warning`, `error`, `critical` or `off`. Default: `warning`.
    #[serde(default)]
    pub log: Field<EnvoyLogWord>,
}

/// Envoy's log levels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, serde::Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub enum EnvoyLogWord {
    /// Everything.
    Trace,
    /// Much.
    Debug,
    /// What it does.
    Info,
    /// What is probably not meant.
    #[default]
    Warning,
    /// What fails.
    Error,
    /// What it dies of.
    Critical,
    /// Nothing.
    Off,
}

impl EnvoyLogWord {
    /// As Envoy's command line has it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trace => "trace",
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
            Self::Critical => "critical",
            Self::Off => "off",
        }
    }
}

/// Logs.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SidecarLogSection {
    /// `text` or `json`. Default: `text`.
    #[serde(default)]
    pub format: Field<LogFormat>,
    /// `error`, `warn`, `info`, `debug`, `trace`, or filter directives such as `info,envoy=debug`. Default: `info`.
    #[serde(default)]
    pub level: Field<String>,
}

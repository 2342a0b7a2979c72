//! `kind: Peer`: another cluster's gateway.

use std::collections::BTreeMap;

use eastway_registry::yaml::{Field, List, Text};
use schemars::JsonSchema;
use serde::Deserialize;

/// Another cluster: where its gateway is, how it proves who it is, and what crosses in which
/// direction. Nothing crosses by default. `eastway peer export` on the other side prints this file.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Peer {
    /// Always `eastway.dev/v1alpha1`.
    #[schemars(extend("const" = "eastway.dev/v1alpha1"))]
    pub api_version: Field<String>,
    /// Always `Peer`.
    #[schemars(extend("const" = "Peer"))]
    pub kind: Field<String>,
    /// Which cluster.
    pub metadata: Field<PeerMetadata>,
    /// All about it.
    pub spec: Field<PeerSpec>,
}

/// Which cluster.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PeerMetadata {
    /// The peer's cluster name, as its own configuration has it.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: Field<String>,
    /// Not used; for tools of your own.
    #[serde(default)]
    pub labels: Field<BTreeMap<String, Field<String>>>,
    /// Not used; for tools of your own.
    #[serde(default)]
    pub annotations: Field<BTreeMap<String, Field<String>>>,
}

/// All about a peer.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PeerSpec {
    /// Where its gateway takes links: `host:port`. Empty: it has no inbound address and dials us.
    #[serde(default)]
    pub addresses: List<Text>,
    /// What carries the links that are dialled from here: `auto` is QUIC, and TLS on TCP, of the same port, where UDP
    /// does not pass, or for what moves much where that is measured to be faster; `fallback` is the former only; `quic` and
    /// `tcp` are that alone. Default: `auto`.
    #[serde(default)]
    pub transport: Field<TransportWord>,
    /// An HTTP proxy that connects on request (`CONNECT`): links over TCP are dialled by way of it. It sees TLS
    /// between the gateways and nothing else. Default: none.
    #[serde(default)]
    pub proxy: Field<ProxySection>,
    /// TCP connections that carry a link over TCP at most, 1 to 16, where a proxy or a firewall allows few: streams share
    /// them, as HTTP/2. The other side has to be of a version that can. Default: a connection for each stream, and some
    /// that wait.
    #[serde(default)]
    #[schemars(range(min = 1, max = 16))]
    pub max_connections: Field<i64>,
    /// Another peer by way of which links to it are made while no direct way works. That one's `relay.allow` has to name
    /// both clusters, and the file for us on the other side the same `via`. Default: none.
    #[serde(default)]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub via: Field<String>,
    /// Trust domain of its identities, e.g. `gke.example`.
    #[schemars(length(min = 1, max = 255), regex(pattern = r"^[a-z0-9._-]+$"))]
    pub trust_domain: Field<String>,
    /// Identity of its gateway. Default:
    /// `spiffe://<trustDomain>/ns/eastway-system/sa/eastway-gateway`.
    #[serde(default)]
    pub gateway: Field<String>,
    /// SHA-256 of its CA's public key, as `sha256:<64 hexadecimal digits>`; several while it rotates
    /// its CA.
    #[schemars(length(min = 1))]
    pub pins: List<Text>,
    /// Certificates of its CA in PEM; used only if their keys are among the pins.
    #[serde(default)]
    pub bundle: Field<String>,
    /// Which of our exported services it may see. Default: none.
    #[serde(default)]
    pub export: List<NameFilterSection>,
    /// Which of its services we take. Default: none.
    #[serde(default)]
    pub import: List<NameFilterSection>,
    /// How long its services are kept after the last link to it broke. Default: `24h`.
    #[serde(default)]
    pub withdraw_after: Field<Text>,
    /// Must be true, here and in its file for us, if both clusters are in one trust domain:
    /// workloads of one can then pose as those of the other. Default: false.
    #[serde(default)]
    pub shared_trust_domain: Field<bool>,
}

/// What carries links.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum TransportWord {
    /// QUIC, and TCP where it does not pass, or beside it where that is measured to be faster.
    Auto,
    /// QUIC, and TCP only where it does not pass.
    Fallback,
    /// QUIC alone.
    Quic,
    /// TLS on TCP alone.
    Tcp,
}

/// An HTTP proxy.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProxySection {
    /// Where it is: `http://host:port`.
    #[schemars(length(min = 1, max = 300))]
    pub url: Field<String>,
    /// The name that it wants to see. Default: it wants none.
    #[serde(default)]
    pub username: Field<String>,
    /// File with the password, read for each connection. Needed with `username`.
    #[serde(default)]
    pub password_file: Field<String>,
}

/// Services by name.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NameFilterSection {
    /// A namespace; `*` stands for any characters. `kube-*`, `istio-system` and `eastway-system` never
    /// cross.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[-a-z0-9*]+$"))]
    pub namespace: Field<String>,
    /// Names of services in it; `*` stands for any characters. Default: `["*"]`.
    #[serde(default)]
    pub services: List<String>,
}

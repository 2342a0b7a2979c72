//! `kind: ServiceList` as users write it.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::yaml::{Field, List, Text};

/// The services of this cluster, as a file: where no Kubernetes API has them.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceList {
    /// Always `eastway.dev/v1alpha1`.
    #[schemars(extend("const" = "eastway.dev/v1alpha1"))]
    pub api_version: Field<String>,
    /// Always `ServiceList`.
    #[schemars(extend("const" = "ServiceList"))]
    pub kind: Field<String>,
    /// The services.
    #[serde(default)]
    pub services: List<ServiceSection>,
    /// Workloads that only connect out: who an address is, as access policies see it.
    #[serde(default)]
    pub workloads: List<WorkloadSection>,
}

/// A service.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceSection {
    /// Its namespace.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub namespace: Field<String>,
    /// Its name; the same name in another cluster is the same service.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: Field<String>,
    /// `ClusterSetIP`: one virtual address in front of all endpoints. `Headless`: names lead to
    /// endpoints. Default: `ClusterSetIP`.
    #[serde(default, rename = "type")]
    pub kind: Field<KindWord>,
    /// Whether peers may see it, as far as their `export` lists allow. Default: false.
    #[serde(default)]
    pub export: Field<bool>,
    /// Ports that clients connect to.
    #[schemars(length(min = 1, max = 250))]
    pub ports: List<PortSection>,
    /// How to find out whether an endpoint can serve. Default: it always can.
    #[serde(default)]
    pub health: Field<HealthSection>,
    /// Whether its endpoints are sidecars that take mutual TLS from workload to workload: `plain`: no. `permissive`: yes,
    /// and plain text as well. `strict`: yes, and nothing else; who has no sidecar is refused. `istio` and `istioStrict`:
    /// the same of Istio's sidecars. Default: `plain`.
    #[serde(default)]
    pub tls: Field<TlsWord>,
    /// Where it runs.
    #[serde(default)]
    pub endpoints: List<EndpointSection>,
    /// `ClientIP`: connections of one client address stay at one endpoint. Default: `None`.
    #[serde(default)]
    pub session_affinity: Field<AffinityWord>,
    /// How long a client may be idle and still come back to its endpoint, 1s to 24h. Default: `3h`.
    #[serde(default)]
    pub session_affinity_timeout: Field<Text>,
    /// Labels that peers see.
    #[serde(default)]
    pub labels: Field<BTreeMap<String, Field<String>>>,
    /// Annotations that peers see.
    #[serde(default)]
    pub annotations: Field<BTreeMap<String, Field<String>>>,
}

/// Whether a service has an address of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum KindWord {
    /// One virtual address.
    #[serde(rename = "ClusterSetIP")]
    ClusterSetIp,
    /// None.
    Headless,
}

/// What endpoints speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub enum TlsWord {
    /// Their own protocol.
    Plain,
    /// Mutual TLS, and their own protocol.
    Permissive,
    /// Mutual TLS.
    Strict,
    /// Mutual TLS of Istio's sidecars, and their own protocol.
    Istio,
    /// Mutual TLS of Istio's sidecars.
    IstioStrict,
}

/// Whether connections of one client stay together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum AffinityWord {
    /// No.
    None,
    /// By client address.
    #[serde(rename = "ClientIP")]
    ClientIp,
}

/// A transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
#[schemars(inline)]
pub enum ProtocolWord {
    /// A byte stream.
    Tcp,
    /// Datagrams.
    Udp,
}

/// How an endpoint is told who connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub enum ProxyProtocolWord {
    /// A binary header of the PROXY protocol.
    V2,
}

/// A port that clients connect to.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PortSection {
    /// Its name; a service with one port may leave it out.
    #[serde(default)]
    #[schemars(length(min = 1, max = 15), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: Field<String>,
    /// Its number.
    #[schemars(range(min = 1, max = 65535))]
    pub port: Field<i64>,
    /// The port that endpoints listen on, unless they say otherwise. Default: `port`.
    #[serde(default)]
    #[schemars(range(min = 1, max = 65535))]
    pub target_port: Field<i64>,
    /// `TCP` or `UDP`. Default: `TCP`.
    #[serde(default)]
    pub protocol: Field<ProtocolWord>,
    /// What is spoken, e.g. `http`, `grpc`, `kubernetes.io/h2c`.
    #[serde(default)]
    pub app_protocol: Field<String>,
    /// `v2`: its endpoints get a header of the PROXY protocol, version 2, before anything else, with the address of the client
    /// as its own gateway saw it. They have to expect one. Not together with `tls`. Default: none.
    #[serde(default)]
    pub proxy_protocol: Field<ProxyProtocolWord>,
}

/// How to find out whether an endpoint can serve: `http` or `tcp`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HealthSection {
    /// By an HTTP request: any answer from 200 to 399 is good.
    #[serde(default)]
    pub http: Field<HttpSection>,
    /// By a TCP connection.
    #[serde(default)]
    pub tcp: Field<TcpSection>,
    /// How often, 100ms to 1h. Default: `5s`.
    #[serde(default)]
    pub interval: Field<Text>,
    /// How long to wait, 10ms to 1m, at most `interval`. Default: `1s`.
    #[serde(default)]
    pub timeout: Field<Text>,
    /// Failures in a row that take an endpoint out. Default: 2.
    #[serde(default)]
    #[schemars(range(min = 1, max = 100))]
    pub unhealthy_after: Field<i64>,
    /// Successes in a row that take it back in. Default: 1.
    #[serde(default)]
    #[schemars(range(min = 1, max = 100))]
    pub healthy_after: Field<i64>,
}

/// A health check by HTTP.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpSection {
    /// What to ask for. Default: `/`.
    #[serde(default)]
    pub path: Field<String>,
    /// The name of a port of the service, or a number. Default: its first TCP port.
    #[serde(default)]
    pub port: Field<Text>,
}

/// A health check by TCP.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TcpSection {
    /// The name of a port of the service, or a number. Default: its first TCP port.
    #[serde(default)]
    pub port: Field<Text>,
}

/// One place where a service runs.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EndpointSection {
    /// Its IP address. It never leaves this cluster.
    pub address: Field<Text>,
    /// Labels that traffic policies select by, e.g. `{version: v2}`.
    #[serde(default)]
    pub labels: Field<BTreeMap<String, Field<String>>>,
    /// Its topology zone.
    #[serde(default)]
    #[schemars(length(min = 1, max = 63))]
    pub zone: Field<String>,
    /// Its share of connections among the endpoints, 1 to 1000000. Default: 100.
    #[serde(default)]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub weight: Field<i64>,
    /// The service account it runs under, as access policies see it.
    #[serde(default)]
    pub service_account: Field<String>,
    /// Its hostname, for names of single endpoints of headless services.
    #[serde(default)]
    pub hostname: Field<String>,
    /// Where it listens: port name (or number) to port number. Default: as the service's ports say.
    #[serde(default)]
    pub ports: Field<BTreeMap<String, Field<i64>>>,
    /// It finishes its connections and gets new ones only if no other endpoint can. Default: false.
    #[serde(default)]
    pub draining: Field<bool>,
}

/// A workload that only connects out.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkloadSection {
    /// Its IP address.
    pub address: Field<Text>,
    /// Its namespace.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub namespace: Field<String>,
    /// Its service account.
    #[serde(default)]
    pub service_account: Field<String>,
}

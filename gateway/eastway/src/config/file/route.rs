//! Routes of the Gateway API, as far as they are carried out, and `kind: ServiceShare`, which backends can name.
//!
//! Names and meanings are those of the Gateway API v1; a field that is not here is refused by its name.

mod filter;

use std::collections::BTreeMap;

use eastway_registry::yaml::{Field, List};
use schemars::JsonSchema;
use serde::Deserialize;

pub use filter::{
    CookieSection, FilterWord, FractionSection, HeaderSection, HeaderValueSection, HttpFilter, LifetimeWord,
    MirrorSection, PathEditSection, PathEditWord, PersistenceSection, PersistenceWord, RedirectSection,
    ReferenceSection, RetrySection, RewriteSection, SchemeWord, TimeoutsSection,
};

/// Where the HTTP requests to a service go: to which of its clusters and versions, by what they ask for and by weight.
/// What looks at requests is done by sidecars; the weights of a rule for everything count for virtual addresses too.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "HTTPRoute")]
pub struct HttpRoute {
    /// `gateway.networking.k8s.io/v1`, or `v1beta1`.
    pub api_version: Field<String>,
    /// Always `HTTPRoute`.
    #[schemars(extend("const" = "HTTPRoute"))]
    pub kind: Field<String>,
    /// Its name, and the namespace of the services whose traffic it is about.
    pub metadata: Field<RouteMetadata>,
    /// The rules.
    pub spec: Field<HttpRouteSpec>,
}

/// Where the gRPC calls of a service go. Of routes of several kinds at one port the GRPCRoutes count.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "GRPCRoute")]
pub struct GrpcRoute {
    /// `gateway.networking.k8s.io/v1`, or `v1alpha2`.
    pub api_version: Field<String>,
    /// Always `GRPCRoute`.
    #[schemars(extend("const" = "GRPCRoute"))]
    pub kind: Field<String>,
    /// Its name, and the namespace of the services whose traffic it is about.
    pub metadata: Field<RouteMetadata>,
    /// The rules.
    pub spec: Field<GrpcRouteSpec>,
}

/// Where the connections to a service go, by weight: those to its virtual address too.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "TCPRoute")]
pub struct TcpRoute {
    /// `gateway.networking.k8s.io/v1`, or `v1alpha2`.
    pub api_version: Field<String>,
    /// Always `TCPRoute`.
    #[schemars(extend("const" = "TCPRoute"))]
    pub kind: Field<String>,
    /// Its name, and the namespace of the services whose traffic it is about.
    pub metadata: Field<RouteMetadata>,
    /// The rules.
    pub spec: Field<TcpRouteSpec>,
}

/// Where TLS connections to a service go by the name that the client asks for; nothing of them is read beyond it. What
/// asks for another name is closed.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "TLSRoute")]
pub struct TlsRoute {
    /// `gateway.networking.k8s.io/v1`, `v1alpha3` or `v1alpha2`.
    pub api_version: Field<String>,
    /// Always `TLSRoute`.
    #[schemars(extend("const" = "TLSRoute"))]
    pub kind: Field<String>,
    /// Its name, and the namespace of the services whose traffic it is about.
    pub metadata: Field<RouteMetadata>,
    /// The rules.
    pub spec: Field<TlsRouteSpec>,
}

/// A part of a service that backends of routes can name: the endpoints of one cluster, those of a version, or both.
/// Without endpoints its share goes to the same version in any cluster, then to the other shares of its service in the
/// rule; a TrafficPolicy's `failover` order counts for it too.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceShare {
    /// Always `eastway.dev/v1alpha1`.
    #[schemars(extend("const" = "eastway.dev/v1alpha1"))]
    pub api_version: Field<String>,
    /// Always `ServiceShare`.
    #[schemars(extend("const" = "ServiceShare"))]
    pub kind: Field<String>,
    /// Its name, and the namespace of the service.
    pub metadata: Field<RouteMetadata>,
    /// The part.
    pub spec: Field<ServiceShareSpec>,
}

/// A part of a service.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceShareSpec {
    /// The service's name.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub service: Field<String>,
    /// Only endpoints of this cluster; `local` is the one that reads this. Default: any.
    #[serde(default)]
    pub cluster: Field<String>,
    /// Only endpoints with all these labels, e.g. `{version: v2}`. Default: all.
    #[serde(default)]
    pub subset: Field<BTreeMap<String, Field<String>>>,
}

/// Name and namespace of an object.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RouteMetadata {
    /// Its name, unique in its namespace and kind.
    #[schemars(length(min = 1, max = 253))]
    pub name: Field<String>,
    /// Its namespace.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub namespace: Field<String>,
    /// Not used; for tools of your own.
    #[serde(default)]
    pub labels: Field<BTreeMap<String, Field<String>>>,
    /// Not used; for tools of your own.
    #[serde(default)]
    pub annotations: Field<BTreeMap<String, Field<String>>>,
}

/// Parents and rules.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRouteSpec {
    /// The services whose traffic it is about, in its own namespace; at most 32. Gateways among them are left to
    /// others.
    #[schemars(length(min = 1, max = 32))]
    pub parent_refs: List<ParentSection>,
    /// Means nothing in a mesh; match the header `Host` instead.
    #[serde(default)]
    pub hostnames: List<String>,
    /// At most 16. The most specific match of all rules for a service counts; what none matches is answered with 404.
    #[schemars(length(min = 1, max = 16))]
    pub rules: List<HttpRule>,
}

/// Parents and rules.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcRouteSpec {
    /// The services whose traffic it is about, in its own namespace; at most 32. Gateways among them are left to
    /// others.
    #[schemars(length(min = 1, max = 32))]
    pub parent_refs: List<ParentSection>,
    /// Means nothing in a mesh.
    #[serde(default)]
    pub hostnames: List<String>,
    /// At most 16.
    #[schemars(length(min = 1, max = 16))]
    pub rules: List<GrpcRule>,
}

/// Parents and rules.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TcpRouteSpec {
    /// The services whose traffic it is about, in its own namespace; at most 32. Gateways among them are left to
    /// others.
    #[schemars(length(min = 1, max = 32))]
    pub parent_refs: List<ParentSection>,
    /// One.
    #[schemars(length(min = 1, max = 1))]
    pub rules: List<TcpRule>,
}

/// Parents and rules.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TlsRouteSpec {
    /// The services whose traffic it is about, in its own namespace; at most 32. Gateways among them are left to
    /// others.
    #[schemars(length(min = 1, max = 32))]
    pub parent_refs: List<ParentSection>,
    /// Names that clients ask for (SNI), at most 16; `*.` may stand for the first label.
    #[schemars(length(min = 1, max = 16))]
    pub hostnames: List<String>,
    /// One.
    #[schemars(length(min = 1, max = 1))]
    pub rules: List<TcpRule>,
}

/// Whose traffic a route is about.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ParentSection {
    /// Empty for a Service, `multicluster.x-k8s.io` for a ServiceImport. Default: that of gateways, which are not ours.
    #[serde(default)]
    pub group: Field<String>,
    /// `Service` or `ServiceImport`: both mean the service as clients of this cluster reach it.
    #[serde(default)]
    pub kind: Field<String>,
    /// Default: the route's own, and no other is possible.
    #[serde(default)]
    pub namespace: Field<String>,
    /// The service's name.
    pub name: Field<String>,
    /// A part of a gateway; of a service use `port`.
    #[serde(default)]
    pub section_name: Field<String>,
    /// Only this port. Default: all.
    #[serde(default)]
    pub port: Field<i64>,
}

/// What it applies to, and what it does.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRule {
    /// For messages.
    #[serde(default)]
    pub name: Field<String>,
    /// One of these has to match, at most 64. Default: everything does.
    #[serde(default)]
    pub matches: List<HttpMatch>,
    /// What happens on the way, at most 16.
    #[serde(default)]
    pub filters: List<HttpFilter>,
    /// Where to, at most 16. Default, but for a redirect: requests fail.
    #[serde(default)]
    pub backend_refs: List<HttpBackend>,
    /// How long it may take. Default: as long as it likes.
    #[serde(default)]
    pub timeouts: Field<TimeoutsSection>,
    /// What is tried again. Default: twice, what failed before it reached a server, and 502, 503 and 504.
    #[serde(default)]
    pub retry: Field<RetrySection>,
    /// Requests of one session stay at one endpoint. Default: they do not.
    #[serde(default)]
    pub session_persistence: Field<PersistenceSection>,
}

/// What a request has to be; all of it.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpMatch {
    /// Its path. Default: any.
    #[serde(default)]
    pub path: Field<PathSection>,
    /// Headers, at most 16; each has to be there.
    #[serde(default)]
    pub headers: List<NamedSection>,
    /// Query parameters, at most 16; each has to be there.
    #[serde(default)]
    pub query_params: List<NamedSection>,
    /// Its method.
    #[serde(default)]
    pub method: Field<MethodWord>,
}

/// A path.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PathSection {
    /// Default: `PathPrefix`.
    #[serde(default, rename = "type")]
    pub kind: Field<PathWord>,
    /// Default: `/`.
    #[serde(default)]
    pub value: Field<String>,
}

/// How paths are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum PathWord {
    /// The whole path.
    Exact,
    /// Its first elements.
    PathPrefix,
    /// A regular expression of RE2 that matches all of it.
    RegularExpression,
}

/// How texts are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum TextWord {
    /// The whole text.
    Exact,
    /// A regular expression of RE2 that matches all of it.
    RegularExpression,
}

/// Methods of HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
#[schemars(inline)]
#[expect(missing_docs, reason = "they are what they are called")]
pub enum MethodWord {
    Get,
    Head,
    Post,
    Put,
    Delete,
    Connect,
    Options,
    Trace,
    Patch,
}

/// A header or a query parameter.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NamedSection {
    /// Default: `Exact`.
    #[serde(default, rename = "type")]
    pub kind: Field<TextWord>,
    /// Its name.
    pub name: Field<String>,
    /// Its value.
    pub value: Field<String>,
}

/// A destination with its weight and changes of its own.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpBackend {
    /// Empty for a Service, `multicluster.x-k8s.io` for a ServiceImport, `eastway.dev` for a ServiceShare. Default:
    /// empty.
    #[serde(default)]
    pub group: Field<String>,
    /// `Service`, `ServiceImport` or `ServiceShare`. Default: `Service`.
    #[serde(default)]
    pub kind: Field<String>,
    /// Its name.
    pub name: Field<String>,
    /// Default: the route's own.
    #[serde(default)]
    pub namespace: Field<String>,
    /// The service's port; of a Service required. Default: the one that was asked for.
    #[serde(default)]
    pub port: Field<i64>,
    /// Its share among all backends of the rule, 0 to 1000000. Default: 1.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub weight: Field<i64>,
    /// Changes of headers that only this backend sees.
    #[serde(default)]
    pub filters: List<HttpFilter>,
}

/// A destination with its weight.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Backend {
    /// Empty for a Service, `multicluster.x-k8s.io` for a ServiceImport, `eastway.dev` for a ServiceShare. Default:
    /// empty.
    #[serde(default)]
    pub group: Field<String>,
    /// `Service`, `ServiceImport` or `ServiceShare`. Default: `Service`.
    #[serde(default)]
    pub kind: Field<String>,
    /// Its name.
    pub name: Field<String>,
    /// Default: the route's own.
    #[serde(default)]
    pub namespace: Field<String>,
    /// The service's port; of a Service required. Default: the one that was asked for.
    #[serde(default)]
    pub port: Field<i64>,
    /// Its share among all backends of the rule, 0 to 1000000. Default: 1.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub weight: Field<i64>,
}

/// Where connections go.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TcpRule {
    /// For messages.
    #[serde(default)]
    pub name: Field<String>,
    /// Where to, at most 16.
    #[schemars(length(min = 1, max = 16))]
    pub backend_refs: List<Backend>,
}

/// What it applies to, and what it does.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcRule {
    /// For messages.
    #[serde(default)]
    pub name: Field<String>,
    /// One of these has to match, at most 64. Default: everything does.
    #[serde(default)]
    pub matches: List<GrpcMatch>,
    /// What happens on the way, at most 16: header changes and mirrors.
    #[serde(default)]
    pub filters: List<HttpFilter>,
    /// Where to, at most 16.
    #[serde(default)]
    pub backend_refs: List<HttpBackend>,
    /// Calls of one session stay at one endpoint. Default: they do not.
    #[serde(default)]
    pub session_persistence: Field<PersistenceSection>,
}

/// What a call has to be; all of it.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcMatch {
    /// Its method. Default: any.
    #[serde(default)]
    pub method: Field<GrpcMethodSection>,
    /// Headers, at most 16; each has to be there.
    #[serde(default)]
    pub headers: List<NamedSection>,
}

/// A method of gRPC; at least one of `service` and `method`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcMethodSection {
    /// Default: `Exact`.
    #[serde(default, rename = "type")]
    pub kind: Field<TextWord>,
    /// Full name of the service. Default: any.
    #[serde(default)]
    pub service: Field<String>,
    /// The method. Default: any.
    #[serde(default)]
    pub method: Field<String>,
}

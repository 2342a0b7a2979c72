//! Routes of the Gateway API (v1, as meshes use them: GEP-1294), as plain validated types: which request or connection
//! to a service goes to which of its shares, or to another service, and what happens to it on its way.
//!
//! Whatever needs more than the address of a connection is done by sidecars; weights alone act on virtual addresses
//! too. The shapes, their precedence and their conflicts are those of the specification; what is ours is the
//! [`ServiceShare`], a backend that is one cluster's part of a service, or a version of it.

mod book;
mod filter;
mod origin;
mod pattern;
mod request;
mod status;
mod table;

pub use book::{RouteBook, Subsets, Wanted};
pub use filter::{
    Filters, HeaderEdit, HeaderEdits, Lifetime, MAX_ATTEMPTS, MAX_FRACTION, MAX_TIMEOUT, Mirror, PathEdit, Persistence,
    Redirect, Retry, RetryOn, Rewrite, Scheme, Timeouts,
};
pub use origin::Origin;
pub use pattern::{MAX_PATTERN, MAX_STEPS, Pattern, PatternError, TextMatch};
pub use request::{GrpcMethod, NamedMatch, PathMatch, Request, RequestMatch};
pub use status::{Condition, ConditionKind, ParentStatus, Reason};
pub use table::{Attached, Entry, PortRoutes, RouteTable, Target, Targets};

use std::fmt;
use std::sync::Arc;

use super::traffic::{ClusterRef, Fault};
use crate::endpoint::Subset;
use crate::name::{Label, ServiceKey};
use crate::service::PortNumber;
use crate::time::UnixMillis;

/// Most parents of a route (Gateway API: `parentRefs`).
pub const MAX_PARENTS: usize = 32;
/// Most rules of a route (Gateway API: `rules`).
pub const MAX_RULES: usize = 16;
/// Most matches of a rule (Gateway API: `matches`).
pub const MAX_MATCHES: usize = 64;
/// Most backends of a rule (Gateway API: `backendRefs`).
pub const MAX_BACKENDS: usize = 16;
/// Most header or query parameter matches of a match, and most headers that a filter changes.
pub const MAX_NAMED: usize = 16;
/// Most mirrors of a rule.
pub const MAX_MIRRORS: usize = 4;
/// Most server names of a TLSRoute.
pub const MAX_HOSTNAMES: usize = 16;
/// Largest weight of a backend (Gateway API: `weight`).
pub const MAX_BACKEND_WEIGHT: u32 = 1_000_000;
/// Most routes of a cluster.
pub const MAX_ROUTES: usize = 10_000;
/// Most routes of one service.
pub const MAX_ROUTES_OF_SERVICE: usize = 100;

/// Most [steps](Pattern::steps) of all regular expressions of one service. Whoever is told of the service compiles them
/// all, for each of its ports.
pub const MAX_STEPS_OF_SERVICE: u32 = 150_000;
/// Most of all services together.
pub const MAX_STEPS_OF_ALL: u32 = 1_500_000;

/// What a route is about, the most specific first: of several kinds that are attached to one port the first counts
/// (GEP-1294, "Route types").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub enum RouteKind {
    /// Calls of gRPC methods.
    #[serde(rename = "GRPCRoute")]
    Grpc,
    /// HTTP requests.
    #[serde(rename = "HTTPRoute")]
    Http,
    /// TLS connections by the name their client asks for, unread otherwise.
    #[serde(rename = "TLSRoute")]
    Tls,
    /// Connections.
    #[serde(rename = "TCPRoute")]
    Tcp,
}

impl RouteKind {
    /// All, the most specific first.
    pub const ALL: [Self; 4] = [Self::Grpc, Self::Http, Self::Tls, Self::Tcp];

    /// Its name in the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Grpc => "GRPCRoute",
            Self::Http => "HTTPRoute",
            Self::Tls => "TLSRoute",
            Self::Tcp => "TCPRoute",
        }
    }

    /// Whether it looks at requests.
    #[must_use]
    pub fn is_http(self) -> bool {
        matches!(self, Self::Grpc | Self::Http)
    }
}

impl fmt::Display for RouteKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Namespace and name of an object; its name is a DNS subdomain of at most 253 bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    /// Its namespace.
    pub namespace: Label,
    /// Its name.
    pub name: Arc<str>,
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl serde::Serialize for ObjectName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One route.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Route {
    /// Its kind.
    pub kind: RouteKind,
    /// Whose object it was written as.
    #[serde(skip_serializing_if = "Origin::is_gateway_api")]
    pub origin: Origin,
    /// Its namespace and name, unique in its kind.
    pub name: ObjectName,
    /// When the object was created; the epoch for one in a file. The older of two that match alike counts.
    pub created: UnixMillis,
    /// Whose traffic it is about, 1 to [`MAX_PARENTS`].
    pub parents: Vec<Parent>,
    /// The names that a TLS client may ask for; `*.` may stand for the first label. Empty for other kinds, whose
    /// `hostnames` mean nothing in a mesh (GEP-1294).
    pub server_names: Vec<Arc<str>>,
    /// 1 to [`MAX_RULES`], and more of others than the Gateway API.
    pub rules: Vec<Rule>,
}

impl Route {
    /// [Steps](Pattern::steps) of all regular expressions in it.
    #[must_use]
    pub fn steps(&self) -> u32 {
        let matches = self.rules.iter().flat_map(|rule| &rule.matches);
        matches.fold(0, |steps, one| steps.saturating_add(one.steps()))
    }
}

/// A service whose traffic a route is about.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Parent {
    /// The service, as clients of this cluster reach it: an import.
    pub service: ServiceKey,
    /// One of its ports; `None`: all.
    pub port: Option<PortNumber>,
}

/// What a rule applies to, and what it does.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    /// Its name, if it has one.
    pub name: Option<Arc<str>>,
    /// One of these has to match; empty: everything does. At most [`MAX_MATCHES`].
    pub matches: Vec<RequestMatch>,
    /// What happens on the way.
    pub filters: Filters,
    /// Where to, by weight. Empty only beside a redirect.
    pub backends: Vec<Backend>,
    /// How long it may take.
    pub timeouts: Timeouts,
    /// Tries; `None`: those that are safe.
    pub retry: Option<Retry>,
    /// Failures on purpose, before the request is sent anywhere: no retry mends them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
    /// Requests of one session stay together.
    pub persistence: Option<Persistence>,
}

/// A destination and its share.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Backend {
    /// What it names.
    pub reference: BackendRef,
    /// Its weight among the rule's backends, 0 to [`MAX_BACKEND_WEIGHT`]; 0 gets nothing.
    pub weight: u32,
    /// Changes of the request's headers that only this backend sees.
    pub request: HeaderEdits,
    /// Changes of the headers of its answers.
    pub response: HeaderEdits,
}

/// What a backend names.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum BackendRef {
    /// A service or an import; all of it.
    Service {
        /// Which.
        service: ServiceKey,
        /// Its port; `None`: the one that was asked for.
        port: Option<PortNumber>,
    },
    /// An object that names a part of a service.
    #[serde(rename = "ServiceShare")]
    Share {
        /// The object.
        object: ObjectName,
        /// The service's port; `None`: the one that was asked for.
        port: Option<PortNumber>,
    },
    /// A part of a service by the name that a DestinationRule gives it.
    Subset {
        /// The service.
        service: ServiceKey,
        /// The name of the subset.
        subset: Arc<str>,
        /// The service's port; `None`: the one that was asked for.
        port: Option<PortNumber>,
    },
}

impl BackendRef {
    /// Whether it names a part of a service: one that is served by others if it has no endpoints.
    #[must_use]
    pub fn is_part(&self) -> bool {
        !matches!(self, Self::Service { .. })
    }
}

impl fmt::Display for BackendRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service { service, .. } => write!(f, "Service {service}"),
            Self::Share { object, .. } => write!(f, "ServiceShare {object}"),
            Self::Subset { service, subset, .. } => write!(f, "subset {subset} of {service}"),
        }
    }
}

/// A part of a service that backends can name: one cluster's endpoints, those of a version, or both.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceShare {
    /// Its namespace and name; the service is in the same namespace.
    pub name: ObjectName,
    /// The service.
    pub service: ServiceKey,
    /// Which part of it.
    pub share: Share,
}

/// A part of a service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Share {
    /// Only this cluster's endpoints; `None`: those of any.
    pub cluster: Option<ClusterRef>,
    /// Only endpoints with these labels; empty: all.
    pub subset: Arc<Subset>,
}

impl Share {
    /// The whole service.
    #[must_use]
    pub fn whole() -> Self {
        Self { cluster: None, subset: Arc::clone(crate::routing::any_subset()) }
    }

    /// Whether it is the whole service.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.cluster.is_none() && self.subset.is_empty()
    }
}

/// `version=v2 in gke`.
impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let labels: Vec<String> = self.subset.iter().map(|(key, value)| format!("{key}={value}")).collect();
        f.write_str(if labels.is_empty() { "all" } else { "" })?;
        f.write_str(&labels.join(","))?;
        match &self.cluster {
            None => Ok(()),
            Some(ClusterRef::Local) => f.write_str(" in this cluster"),
            Some(ClusterRef::Named(name)) => write!(f, " in {name}"),
        }
    }
}

#[cfg(test)]
mod tests;

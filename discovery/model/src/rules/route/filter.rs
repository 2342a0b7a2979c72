//! What happens to a request on its way.

use std::sync::Arc;
use std::time::Duration;

use super::{BackendRef, PortNumber};

/// Most of all requests in a mirror's fraction, and its whole.
pub const MAX_FRACTION: u32 = 1_000_000;
/// Most retries of a request.
pub const MAX_ATTEMPTS: u32 = 100;
/// Longest timeout: a day. `0s` is none.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// Changes and copies of a request, and answers in place of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Filters {
    /// Changes of the request's headers.
    pub request: HeaderEdits,
    /// Changes of the answer's headers.
    pub response: HeaderEdits,
    /// The client is sent elsewhere.
    pub redirect: Option<Redirect>,
    /// The request's host or path is changed.
    pub rewrite: Option<Rewrite>,
    /// Copies whose answers nobody waits for.
    pub mirrors: Vec<Mirror>,
}

/// Changes of headers, each name once among all.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HeaderEdits {
    /// Replaced, or added.
    pub set: Vec<HeaderEdit>,
    /// Added to those that are there.
    pub add: Vec<HeaderEdit>,
    /// Taken out.
    pub remove: Vec<Arc<str>>,
}

impl HeaderEdits {
    /// Whether nothing changes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.add.is_empty() && self.remove.is_empty()
    }
}

/// A header.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HeaderEdit {
    /// Its name, lower case.
    pub name: Arc<str>,
    /// Its value.
    pub value: Arc<str>,
}

/// Scheme of a URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// Without TLS.
    Http,
    /// With it.
    Https,
}

impl Scheme {
    /// The port that it has by default.
    #[must_use]
    pub fn port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// Where the client is sent; what is not given stays.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Redirect {
    /// Scheme.
    pub scheme: Option<Scheme>,
    /// Host.
    pub hostname: Option<Arc<str>>,
    /// Port; with neither this nor a scheme that of the service.
    pub port: Option<PortNumber>,
    /// Path.
    pub path: Option<PathEdit>,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
}

/// What the backend sees in place of what was asked for.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rewrite {
    /// Host.
    pub hostname: Option<Arc<str>>,
    /// Path.
    pub path: Option<PathEdit>,
}

/// Another path.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub enum PathEdit {
    /// All of it, without the query.
    Full(Arc<str>),
    /// What matched, byte by byte: of a path that begins with a text this text, else all of it (Istio).
    Matched(Arc<str>),
    /// The part that a prefix match matched. Only beside matches of that type.
    Prefix(Arc<str>),
}

/// A copy of requests.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Mirror {
    /// Who gets it.
    pub backend: BackendRef,
    /// Of so many requests …
    pub denominator: u32,
    /// … so many are copied.
    pub numerator: u32,
}

/// How long something may take. `None` and zero: as long as it likes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Timeouts {
    /// A request with all its tries (GEP-1742 `request`).
    pub request: Option<Duration>,
    /// One try (GEP-1742 `backendRequest`).
    pub backend_request: Option<Duration>,
}

/// How often is tried (GEP-1731).
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Retry {
    /// What is tried again beside statuses.
    pub on: Vec<RetryOn>,
    /// Statuses that are tried again, 400 to 599.
    pub codes: Vec<u16>,
    /// Tries after the first; 0: none, whatever happens. `None`: 2.
    pub attempts: Option<u32>,
    /// Shortest wait before a try; it grows, with jitter.
    pub backoff: Option<Duration>,
}

/// What is tried again, in Envoy's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RetryOn {
    /// The dial failed.
    ConnectFailure,
    /// The server refused the stream unseen.
    RefusedStream,
    /// The connection ended before an answer came. A dial that fails at the other end of a tunnel looks like that, and
    /// so does a server that broke off at work.
    Reset,
    /// The connection ended before the request was on it.
    ResetBeforeRequest,
    /// Any answer of 5xx, and none at all.
    #[serde(rename = "5xx")]
    Any5xx,
    /// 502, 503 and 504.
    GatewayError,
    /// 409.
    #[serde(rename = "retriable-4xx")]
    Retriable4xx,
    /// gRPC's CANCELLED.
    Cancelled,
    /// gRPC's DEADLINE_EXCEEDED.
    DeadlineExceeded,
    /// gRPC's INTERNAL.
    Internal,
    /// gRPC's RESOURCE_EXHAUSTED.
    ResourceExhausted,
    /// gRPC's UNAVAILABLE.
    Unavailable,
}

impl RetryOn {
    /// All, with their words.
    pub const ALL: [(Self, &str); 12] = [
        (Self::ConnectFailure, "connect-failure"),
        (Self::RefusedStream, "refused-stream"),
        (Self::Reset, "reset"),
        (Self::ResetBeforeRequest, "reset-before-request"),
        (Self::Any5xx, "5xx"),
        (Self::GatewayError, "gateway-error"),
        (Self::Retriable4xx, "retriable-4xx"),
        (Self::Cancelled, "cancelled"),
        (Self::DeadlineExceeded, "deadline-exceeded"),
        (Self::Internal, "internal"),
        (Self::ResourceExhausted, "resource-exhausted"),
        (Self::Unavailable, "unavailable"),
    ];

    /// What is tried again where statuses are named: what never was an answer.
    pub const BROKEN: [Self; 3] = [Self::ConnectFailure, Self::RefusedStream, Self::Reset];

    /// Its word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        Self::ALL.into_iter().find(|(one, _)| *one == self).map_or("", |(_, word)| word)
    }
}

/// How requests of one session find the same endpoint (GEP-1619).
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Persistence {
    /// Name of the cookie or header.
    pub name: Arc<str>,
    /// What carries it.
    pub carrier: Lifetime,
}

/// What carries the name of an endpoint, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Lifetime {
    /// A cookie, until the browser ends.
    SessionCookie,
    /// A cookie for so long.
    PermanentCookie(Duration),
    /// A header, which the client sends back.
    Header,
}

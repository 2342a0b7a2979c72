//! What a request has to be, and whether one is.

use std::fmt;
use std::sync::Arc;

use super::pattern::{Pattern, TextMatch};
use crate::service::PortNumber;

/// What a request has to be; all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestMatch {
    /// Its path; `None`: any.
    pub path: Option<PathMatch>,
    /// Its method, as the client writes it.
    pub method: Option<Arc<str>>,
    /// Headers that it has, each name once, lower case.
    pub headers: Vec<NamedMatch>,
    /// Query parameters that it has, each name once.
    pub query: Vec<NamedMatch>,
    /// The port that it is for; `None`: those of its route.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<PortNumber>,
    /// Names that a TLS client may ask for; empty: those of its route.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub server_names: Vec<Arc<str>>,
}

/// What a path has to be, without its query.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub enum PathMatch {
    /// This.
    Exact(Arc<str>),
    /// This, or this and further elements. Begins with `/` and ends without, but for `/` itself, which matches all.
    Prefix(Arc<str>),
    /// Anything that begins with this text, in the middle of an element too (Istio).
    Start(Arc<str>),
    /// Anything that it matches.
    Regex(Pattern),
    /// The path of a gRPC method, `/<service>/<method>`.
    Grpc(GrpcMethod),
}

/// A gRPC method; at least one of its two parts.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GrpcMethod {
    /// Full name of the service; `None`: any.
    pub service: Option<TextMatch>,
    /// The method; `None`: any.
    pub method: Option<TextMatch>,
}

/// What a header or a query parameter has to be.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NamedMatch {
    /// Its name.
    pub name: Arc<str>,
    /// Its value.
    pub value: TextMatch,
}

/// A request, as far as rules look at it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Its method.
    pub method: String,
    /// Its path without the query.
    pub path: String,
    /// Name, lower case, and value of its headers.
    pub headers: Vec<(String, String)>,
    /// Name and value of its query parameters.
    pub query: Vec<(String, String)>,
}

impl RequestMatch {
    /// Whether every request matches.
    #[must_use]
    pub fn is_any(&self) -> bool {
        let path = match &self.path {
            None => true,
            Some(PathMatch::Prefix(prefix)) => **prefix == *"/",
            Some(PathMatch::Exact(_) | PathMatch::Start(_) | PathMatch::Regex(_) | PathMatch::Grpc(_)) => false,
        };
        let names = self.server_names.is_empty();
        path && names && self.method.is_none() && self.headers.is_empty() && self.query.is_empty()
    }

    /// [Steps](Pattern::steps) of all its patterns.
    #[must_use]
    pub fn steps(&self) -> u32 {
        let path = match &self.path {
            None | Some(PathMatch::Exact(_) | PathMatch::Prefix(_) | PathMatch::Start(_)) => 0,
            Some(PathMatch::Regex(pattern)) => pattern.steps(),
            Some(PathMatch::Grpc(GrpcMethod { service, method })) => {
                service.iter().chain(method).map(TextMatch::steps).sum()
            }
        };
        self.headers.iter().chain(&self.query).fold(path, |steps, one| steps.saturating_add(one.value.steps()))
    }

    /// What of it the request is not; `None`: it matches.
    #[must_use]
    pub fn mismatch(&self, request: &Request) -> Option<String> {
        if let Some(path) = self.path.as_ref().filter(|path| !path.matches(&request.path)) {
            return Some(format!("path is not {path}"));
        }
        if let Some(method) = self.method.as_ref().filter(|method| ***method != *request.method) {
            return Some(format!("method is not {method}"));
        }
        let named = |what: &str, wanted: &[NamedMatch], found: &[(String, String)]| {
            wanted.iter().find_map(|one| {
                let mut values = found.iter().filter(|(name, _)| **name == *one.name).map(|(_, value)| value);
                match values.next() {
                    Some(value) if one.value.matches(value) => None,
                    Some(_) => Some(format!("{what} {} is not {}", one.name, one.value)),
                    None => Some(format!("it has no {what} {}", one.name)),
                }
            })
        };
        named("header", &self.headers, &request.headers).or_else(|| named("parameter", &self.query, &request.query))
    }
}

impl PathMatch {
    /// Whether a path, without its query, is it.
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(wanted) => **wanted == *path,
            Self::Prefix(prefix) if **prefix == *"/" => true,
            Self::Prefix(prefix) => {
                path.strip_prefix(&**prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
            Self::Start(text) => path.starts_with(&**text),
            Self::Regex(pattern) => pattern.matches(path),
            Self::Grpc(wanted) => {
                let parts = path.strip_prefix('/').and_then(|path| path.rsplit_once('/'));
                let is = |wanted: &Option<TextMatch>, text| wanted.as_ref().is_none_or(|wanted| wanted.matches(text));
                parts.is_some_and(|(service, method)| is(&wanted.service, service) && is(&wanted.method, method))
            }
        }
    }
}

impl fmt::Display for PathMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |part: &Option<TextMatch>| part.as_ref().map_or_else(|| "*".to_owned(), ToString::to_string);
        match self {
            Self::Exact(path) => f.write_str(path),
            Self::Prefix(prefix) => write!(f, "{}/*", prefix.trim_end_matches('/')),
            Self::Start(text) => write!(f, "{text}*"),
            Self::Regex(pattern) => write!(f, "~ {}", pattern.as_str()),
            Self::Grpc(wanted) => write!(f, "/{}/{}", part(&wanted.service), part(&wanted.method)),
        }
    }
}

/// `GET /login, header end-user: jason`.
impl fmt::Display for RequestMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        match (&self.method, &self.path) {
            (None, None) => {}
            (Some(method), None) => parts.push(method.to_string()),
            (None, Some(path)) => parts.push(path.to_string()),
            (Some(method), Some(path)) => parts.push(format!("{method} {path}")),
        }
        parts.extend(self.headers.iter().map(|one| format!("header {}: {}", one.name, one.value)));
        parts.extend(self.query.iter().map(|one| format!("parameter {}={}", one.name, one.value)));
        f.write_str(if parts.is_empty() { "everything" } else { "" })?;
        f.write_str(&parts.join(", "))
    }
}

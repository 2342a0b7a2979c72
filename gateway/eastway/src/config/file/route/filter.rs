//! What happens to a request on its way.

use eastway_registry::yaml::{Field, List, Text};
use schemars::JsonSchema;
use serde::Deserialize;

/// Something that happens on the way.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpFilter {
    /// Which of the others is set.
    #[serde(rename = "type")]
    pub kind: Field<FilterWord>,
    /// Changes headers of the request.
    #[serde(default)]
    pub request_header_modifier: Field<HeaderSection>,
    /// Changes headers of the answer.
    #[serde(default)]
    pub response_header_modifier: Field<HeaderSection>,
    /// Sends a copy elsewhere; its answer is thrown away.
    #[serde(default)]
    pub request_mirror: Field<MirrorSection>,
    /// Sends the client elsewhere.
    #[serde(default)]
    pub request_redirect: Field<RedirectSection>,
    /// Changes host and path.
    #[serde(default)]
    pub url_rewrite: Field<RewriteSection>,
}

/// What a filter does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum FilterWord {
    /// `requestHeaderModifier`
    RequestHeaderModifier,
    /// `responseHeaderModifier`
    ResponseHeaderModifier,
    /// `requestMirror`
    RequestMirror,
    /// `requestRedirect`
    RequestRedirect,
    /// `urlRewrite`
    #[serde(rename = "URLRewrite")]
    UrlRewrite,
}

/// Changes of headers, each name once.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderSection {
    /// Replaced, or added; at most 16.
    #[serde(default)]
    pub set: List<HeaderValueSection>,
    /// Added; at most 16.
    #[serde(default)]
    pub add: List<HeaderValueSection>,
    /// Taken out; at most 16.
    #[serde(default)]
    pub remove: List<String>,
}

/// A header.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderValueSection {
    /// Its name.
    pub name: Field<String>,
    /// Its value.
    pub value: Field<String>,
}

/// A copy.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MirrorSection {
    /// Who gets it.
    pub backend_ref: Field<ReferenceSection>,
    /// Of 100 requests so many. Default: all.
    #[serde(default)]
    #[schemars(range(min = 0, max = 100))]
    pub percent: Field<i64>,
    /// The same, finer.
    #[serde(default)]
    pub fraction: Field<FractionSection>,
}

/// A fraction.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FractionSection {
    /// So many …
    pub numerator: Field<i64>,
    /// … of so many, at most 1000000. Default: 100.
    #[serde(default)]
    pub denominator: Field<i64>,
}

/// Where the client is sent.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RedirectSection {
    /// `http` or `https`. Default: as it is.
    #[serde(default)]
    pub scheme: Field<SchemeWord>,
    /// Default: as it is.
    #[serde(default)]
    pub hostname: Field<String>,
    /// Default: as it is.
    #[serde(default)]
    pub path: Field<PathEditSection>,
    /// Default: that of the scheme, or as it is.
    #[serde(default)]
    pub port: Field<i64>,
    /// 301, 302, 303, 307 or 308. Default: 302.
    #[serde(default)]
    pub status_code: Field<i64>,
}

/// Schemes of URLs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum SchemeWord {
    /// Without TLS.
    Http,
    /// With it.
    Https,
}

/// What the backend is asked for.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RewriteSection {
    /// Default: as it is.
    #[serde(default)]
    pub hostname: Field<String>,
    /// Default: as it is.
    #[serde(default)]
    pub path: Field<PathEditSection>,
}

/// Another path.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PathEditSection {
    /// Which of the others is set.
    #[serde(rename = "type")]
    pub kind: Field<PathEditWord>,
    /// The whole path.
    #[serde(default)]
    pub replace_full_path: Field<String>,
    /// What a match of type `PathPrefix` matched. Only beside such matches.
    #[serde(default)]
    pub replace_prefix_match: Field<String>,
}

/// What of a path is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum PathEditWord {
    /// `replaceFullPath`
    ReplaceFullPath,
    /// `replacePrefixMatch`
    ReplacePrefixMatch,
}

/// How long requests may take; `0s` is for ever.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TimeoutsSection {
    /// A request with all its tries.
    #[serde(default)]
    pub request: Field<Text>,
    /// One try; not longer than `request`.
    #[serde(default)]
    pub backend_request: Field<Text>,
}

/// What is tried again: these statuses, and connections that end before an answer came. A server may have seen a
/// request by then, so give it to rules for requests that may be repeated.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RetrySection {
    /// Statuses, 400 to 599. Default: 502, 503 and 504.
    #[serde(default)]
    pub codes: List<i64>,
    /// Tries after the first; 0: none at all. Default: 2.
    #[serde(default)]
    #[schemars(range(min = 0, max = 100))]
    pub attempts: Field<i64>,
    /// Wait before a try, which grows to ten times as much, with jitter. Default: 25ms.
    #[serde(default)]
    pub backoff: Field<Text>,
}

/// How a client finds its endpoint again. It holds within one backend: a rule that shares sessions out among several by
/// weight sends some of them elsewhere.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PersistenceSection {
    /// Name of the cookie or header. Default: `eastway-session`.
    #[serde(default)]
    pub session_name: Field<String>,
    /// Life of a permanent cookie.
    #[serde(default)]
    pub absolute_timeout: Field<Text>,
    /// `Cookie` or `Header`. Default: `Cookie`.
    #[serde(default, rename = "type")]
    pub kind: Field<PersistenceWord>,
    /// Of a cookie.
    #[serde(default)]
    pub cookie_config: Field<CookieSection>,
}

/// What carries a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum PersistenceWord {
    /// A cookie.
    Cookie,
    /// A header.
    Header,
}

/// A cookie.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CookieSection {
    /// `Permanent` lives for `absoluteTimeout`, `Session` as long as the browser. Default: `Session`.
    #[serde(default)]
    pub lifetime_type: Field<LifetimeWord>,
}

/// Life of a cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum LifetimeWord {
    /// So long as `absoluteTimeout` says.
    Permanent,
    /// As long as the browser.
    Session,
}

/// A destination.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ReferenceSection {
    /// As in `backendRefs`.
    #[serde(default)]
    pub group: Field<String>,
    /// As in `backendRefs`.
    #[serde(default)]
    pub kind: Field<String>,
    /// Its name.
    pub name: Field<String>,
    /// Default: the route's own.
    #[serde(default)]
    pub namespace: Field<String>,
    /// As in `backendRefs`.
    #[serde(default)]
    pub port: Field<i64>,
}

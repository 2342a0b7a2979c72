//! What a request has to be, in Envoy's words.

use eastway_model::rules::route::{GrpcMethod, NamedMatch, PathMatch, RequestMatch, TextMatch};
use eastway_proto::envoy::config::route::v3 as route;
use eastway_proto::envoy::r#type::matcher::v3 as matcher;
use route::header_matcher::HeaderMatchSpecifier;
use route::query_parameter_matcher::QueryParameterMatchSpecifier;
use route::route_match::PathSpecifier;

/// `None`: anything.
pub(super) fn request_match(wanted: Option<&RequestMatch>) -> route::RouteMatch {
    let any = RequestMatch::default();
    let wanted = wanted.unwrap_or(&any);
    let method = wanted.method.iter().map(|method| header(":method", &TextMatch::Exact(method.clone())));
    let headers = wanted.headers.iter().map(|one| header(header_name(&one.name), &one.value));
    route::RouteMatch {
        path_specifier: Some(wanted.path.as_ref().map_or_else(|| PathSpecifier::Prefix("/".to_owned()), path)),
        headers: method.chain(headers).collect(),
        query_parameters: wanted.query.iter().map(parameter).collect(),
        ..route::RouteMatch::default()
    }
}

fn path(path: &PathMatch) -> PathSpecifier {
    match path {
        PathMatch::Exact(path) => PathSpecifier::Path(path.to_string()),
        PathMatch::Prefix(prefix) if **prefix == *"/" => PathSpecifier::Prefix("/".to_owned()),
        PathMatch::Prefix(prefix) => PathSpecifier::PathSeparatedPrefix(prefix.to_string()),
        PathMatch::Start(text) => PathSpecifier::Prefix(text.to_string()),
        PathMatch::Regex(pattern) => PathSpecifier::SafeRegex(regex(pattern.as_str().to_owned())),
        PathMatch::Grpc(wanted) => grpc(wanted),
    }
}

fn grpc(wanted: &GrpcMethod) -> PathSpecifier {
    match (&wanted.service, &wanted.method) {
        (Some(TextMatch::Exact(service)), Some(TextMatch::Exact(method))) => {
            PathSpecifier::Path(format!("/{service}/{method}"))
        }
        (Some(TextMatch::Exact(service)), None) => PathSpecifier::Prefix(format!("/{service}/")),
        (service, method) => {
            let part = |part: &Option<TextMatch>| match part {
                None => "[^/]+".to_owned(),
                Some(TextMatch::Exact(text)) => quoted(text),
                Some(TextMatch::Regex(pattern)) => format!("(?:{})", pattern.as_str()),
            };
            PathSpecifier::SafeRegex(regex(format!("/{}/{}", part(service), part(method))))
        }
    }
}

fn header(name: &str, value: &TextMatch) -> route::HeaderMatcher {
    route::HeaderMatcher {
        name: name.to_owned(),
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(text(value))),
        ..route::HeaderMatcher::default()
    }
}

/// HTTP/2 has another name for the host, and Envoy uses it throughout.
fn header_name(name: &str) -> &str {
    if name == "host" { ":authority" } else { name }
}

fn parameter(one: &NamedMatch) -> route::QueryParameterMatcher {
    route::QueryParameterMatcher {
        name: one.name.to_string(),
        query_parameter_match_specifier: Some(QueryParameterMatchSpecifier::StringMatch(text(&one.value))),
    }
}

fn text(wanted: &TextMatch) -> matcher::StringMatcher {
    use matcher::string_matcher::MatchPattern;
    let pattern = match wanted {
        TextMatch::Exact(text) => MatchPattern::Exact(text.to_string()),
        TextMatch::Regex(pattern) => MatchPattern::SafeRegex(regex(pattern.as_str().to_owned())),
    };
    matcher::StringMatcher { match_pattern: Some(pattern), ..matcher::StringMatcher::default() }
}

/// A regular expression of RE2; where it is used it has to match all of the text.
pub(super) fn regex(regex: String) -> matcher::RegexMatcher {
    matcher::RegexMatcher { regex, ..matcher::RegexMatcher::default() }
}

/// A text as a regular expression that matches it alone.
pub(super) fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_ascii_punctuation() {
            quoted.push('\\');
        }
        quoted.push(c);
    }
    quoted
}

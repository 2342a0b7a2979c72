//! Rules about requests.

use std::sync::Arc;
use std::time::Duration;

use eastway_model::rules::route::{
    Backend, Filters, GrpcMethod, HeaderEdit, HeaderEdits, Lifetime, MAX_ATTEMPTS, MAX_BACKENDS, MAX_FRACTION,
    MAX_MATCHES, MAX_MIRRORS, MAX_NAMED, MAX_TIMEOUT, Mirror, NamedMatch, PathEdit, PathMatch, Pattern, Persistence,
    Redirect, RequestMatch, Retry, RetryOn, Rewrite, Rule, Scheme, TextMatch, Timeouts,
};
use eastway_registry::diagnostic::Code;
use eastway_registry::yaml::{At, Context, Field, List, NodeId, Text};

use super::file;
use super::file::{
    FilterWord, LifetimeWord, MethodWord, PathEditWord, PathWord, PersistenceWord, SchemeWord, TextWord,
};
use super::parts::{Parts, Reference, bounded, host_name, number, port, rule_name, weight};
use crate::config::settings::duration_in;

/// Longest path and longest value of a header, bytes (Gateway API).
const MAX_PATH: usize = 1_024;
const MAX_VALUE: usize = 4_096;
/// Longest name of a header (Gateway API).
const MAX_NAME: usize = 256;
/// Statuses that are tried again if none are named.
const GATEWAY_ERRORS: [u16; 3] = [502, 503, 504];
/// Name of sessions that have none.
const SESSION: &str = "eastway-session";

pub(super) fn rule(section: &At<file::HttpRule>, parts: &mut Parts<'_>, cx: &mut Context<'_>) -> Rule {
    let rule = &section.value;
    let sections = bounded(&rule.matches, MAX_MATCHES, "matches", cx);
    let matches: Vec<RequestMatch> = sections.into_iter().map(|section| http_match(&section.value, cx)).collect();
    let filters = filters(&rule.filters, true, parts, cx);
    let backends = backends(&rule.backend_refs, parts, cx);
    if filters.redirect.is_some() && !backends.is_empty() {
        cx.error(section.at, Code::Conflict, "a rule that redirects has no backends: its requests go nowhere");
    }
    if filters.redirect.is_some() && filters.rewrite.is_some() {
        cx.error(section.at, Code::Conflict, "URLRewrite and RequestRedirect exclude each other");
    }
    let path = filters.redirect.iter().map(|one| &one.path).chain(filters.rewrite.iter().map(|one| &one.path));
    let needs_prefix = path.flatten().any(|path| matches!(path, PathEdit::Prefix(_)));
    let is_prefix = |one: &RequestMatch| matches!(one.path, None | Some(PathMatch::Prefix(_)));
    if needs_prefix && !matches.iter().all(is_prefix) {
        let message = "replacePrefixMatch needs matches whose path is of type PathPrefix, all of them";
        cx.error(section.at, Code::Conflict, message);
    }
    Rule {
        name: rule_name(&rule.name, cx),
        matches,
        filters,
        backends,
        timeouts: timeouts(&rule.timeouts, cx),
        retry: rule.retry.get().map(|section| retry(&section.value, cx)),
        persistence: rule.session_persistence.get().and_then(|section| persistence(section, cx)),
        ..Rule::default()
    }
}

pub(super) fn grpc_rule(section: &At<file::GrpcRule>, parts: &mut Parts<'_>, cx: &mut Context<'_>) -> Rule {
    let rule = &section.value;
    let sections = bounded(&rule.matches, MAX_MATCHES, "matches", cx);
    let matches = sections.into_iter().map(|section| RequestMatch {
        path: section.value.method.get().and_then(|method| grpc_method(method, cx)).map(PathMatch::Grpc),
        method: None,
        headers: named(&section.value.headers, header_name, cx),
        ..RequestMatch::default()
    });
    let matches = matches.collect();
    Rule {
        name: rule_name(&rule.name, cx),
        matches,
        filters: filters(&rule.filters, false, parts, cx),
        backends: backends(&rule.backend_refs, parts, cx),
        persistence: rule.session_persistence.get().and_then(|section| persistence(section, cx)),
        ..Rule::default()
    }
}

fn http_match(section: &file::HttpMatch, cx: &mut Context<'_>) -> RequestMatch {
    RequestMatch {
        path: section.path.get().and_then(|path| path_match(&path.value, cx)),
        method: section.method.value().map(|method| Arc::from(method_text(*method))),
        headers: named(&section.headers, header_name, cx),
        query: named(&section.query_params, parameter_name, cx),
        ..RequestMatch::default()
    }
}

fn method_text(method: MethodWord) -> &'static str {
    match method {
        MethodWord::Get => "GET",
        MethodWord::Head => "HEAD",
        MethodWord::Post => "POST",
        MethodWord::Put => "PUT",
        MethodWord::Delete => "DELETE",
        MethodWord::Connect => "CONNECT",
        MethodWord::Options => "OPTIONS",
        MethodWord::Trace => "TRACE",
        MethodWord::Patch => "PATCH",
    }
}

fn path_match(section: &file::PathSection, cx: &mut Context<'_>) -> Option<PathMatch> {
    let Some(value) = section.value.get() else { return Some(PathMatch::Prefix(Arc::from("/"))) };
    match section.kind.value().copied().unwrap_or(PathWord::PathPrefix) {
        PathWord::Exact => cx.parse(value, path).map(PathMatch::Exact),
        PathWord::PathPrefix => cx.parse(value, path).map(|path| {
            let trimmed = path.trim_end_matches('/');
            PathMatch::Prefix(if trimmed.is_empty() { Arc::from("/") } else { Arc::from(trimmed) })
        }),
        PathWord::RegularExpression => cx.parse(value, Pattern::parse).map(PathMatch::Regex),
    }
}

fn grpc_method(section: &At<file::GrpcMethodSection>, cx: &mut Context<'_>) -> Option<GrpcMethod> {
    let method = &section.value;
    let kind = method.kind.value().copied().unwrap_or(TextWord::Exact);
    let mut part = |field: &Field<String>| {
        let text = field.get()?;
        match kind {
            TextWord::RegularExpression => cx.parse(text, Pattern::parse).map(TextMatch::Regex),
            TextWord::Exact => {
                let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
                let is_name = |text: &str| !text.is_empty() && text.len() <= MAX_PATH && text.chars().all(good);
                cx.parse(text, |text| match is_name(text) {
                    true => Ok(TextMatch::Exact(Arc::from(text))),
                    false => Err("must be a name of letters, digits, '_' and '.'"),
                })
            }
        }
    };
    let (service, name) = (part(&method.service), part(&method.method));
    if matches!((&method.service, &method.method), (Field::Absent, Field::Absent)) {
        cx.error(section.at, Code::Missing, "service or method is required");
    }
    (service.is_some() || name.is_some()).then_some(GrpcMethod { service, method: name })
}

/// Headers or parameters; of several with one name the first counts (Gateway API, `HTTPRouteMatch.headers`).
fn named(
    list: &List<file::NamedSection>,
    name: fn(&str) -> Result<Arc<str>, &'static str>,
    cx: &mut Context<'_>,
) -> Vec<NamedMatch> {
    let mut found: Vec<NamedMatch> = Vec::new();
    for section in bounded(list, MAX_NAMED, "entries", cx) {
        let one = &section.value;
        let name = cx.required_parse(section.at, "name", &one.name, "what is looked at", name);
        let value = cx.required(section.at, "value", &one.value, "what it has to be");
        let value = value.and_then(|value| match one.kind.value().copied().unwrap_or(TextWord::Exact) {
            TextWord::Exact => cx.parse(value, header_value).map(TextMatch::Exact),
            TextWord::RegularExpression => cx.parse(value, Pattern::parse).map(TextMatch::Regex),
        });
        let (Some(name), Some(value)) = (name, value) else { continue };
        if found.iter().any(|known| known.name == name) {
            cx.warn(section.at, Code::Duplicate, format!("{name} is listed twice: only the first counts"));
            continue;
        }
        found.push(NamedMatch { name, value });
    }
    found
}

fn backends(list: &List<file::HttpBackend>, parts: &mut Parts<'_>, cx: &mut Context<'_>) -> Vec<Backend> {
    let mut found: Vec<Backend> = Vec::new();
    for section in bounded(list, MAX_BACKENDS, "backends", cx) {
        let file::HttpBackend { group, kind, name, namespace, port, weight: share, filters: changes } = &section.value;
        let reference = Reference { at: section.at, group, kind, name, namespace, port };
        let reference = parts.reference(&reference, cx);
        let changes = filters(changes, true, parts, cx);
        let others = changes.redirect.is_some() || changes.rewrite.is_some() || !changes.mirrors.is_empty();
        if others {
            let message = "a backend's own filters can change headers only; move the others to the rule";
            cx.error(section.at, Code::Value, message);
        }
        let Some(reference) = reference else { continue };
        let Filters { request, response, .. } = changes;
        found.push(Backend { reference, weight: weight(share, cx), request, response });
    }
    if let Some(list) = list.get().filter(|_| !found.is_empty() && found.iter().all(|backend| backend.weight == 0)) {
        let message = "all weights are 0: what comes to this rule gets 500";
        cx.warn(list.at, Code::Value, message);
    }
    found
}

fn filters(list: &List<file::HttpFilter>, http: bool, parts: &mut Parts<'_>, cx: &mut Context<'_>) -> Filters {
    let mut filters = Filters::default();
    let mut seen = Vec::new();
    for section in bounded(list, MAX_NAMED, "filters", cx) {
        let filter = &section.value;
        let Some(kind) = cx.required(section.at, "type", &filter.kind, "which filter it is") else { continue };
        if kind.value != FilterWord::RequestMirror && seen.contains(&kind.value) {
            cx.error(section.at, Code::Duplicate, "a filter of this type is listed twice; merge the two");
        }
        seen.push(kind.value);
        let needs_http = matches!(kind.value, FilterWord::RequestRedirect | FilterWord::UrlRewrite);
        if needs_http && !http {
            cx.error(kind.at, Code::Value, "cannot be done to calls of gRPC");
            continue;
        }
        only_its_own(section, kind.value, cx);
        match kind.value {
            FilterWord::RequestHeaderModifier => {
                let field = &filter.request_header_modifier;
                if let Some(own) = cx.required(section.at, "requestHeaderModifier", field, "its type says so") {
                    filters.request = header_edits(&own.value, cx);
                }
            }
            FilterWord::ResponseHeaderModifier => {
                let field = &filter.response_header_modifier;
                if let Some(own) = cx.required(section.at, "responseHeaderModifier", field, "its type says so") {
                    filters.response = header_edits(&own.value, cx);
                }
            }
            FilterWord::RequestMirror => {
                let own = cx.required(section.at, "requestMirror", &filter.request_mirror, "its type says so");
                filters.mirrors.extend(own.and_then(|own| mirror(own, parts, cx)));
                if filters.mirrors.len() > MAX_MIRRORS {
                    cx.error(section.at, Code::TooLarge, format!("at most {MAX_MIRRORS} mirrors are allowed"));
                }
            }
            FilterWord::RequestRedirect => {
                let own = cx.required(section.at, "requestRedirect", &filter.request_redirect, "its type says so");
                filters.redirect = own.map(|own| redirect(own, cx));
            }
            FilterWord::UrlRewrite => {
                let own = cx.required(section.at, "urlRewrite", &filter.url_rewrite, "its type says so");
                filters.rewrite = own.map(|own| Rewrite {
                    hostname: own.value.hostname.get().and_then(|text| cx.parse(text, host_name)),
                    path: own.value.path.get().and_then(|path| path_edit(path, cx)),
                });
            }
        }
    }
    filters
}

/// A filter has the section that its type names, and no other.
fn only_its_own(section: &At<file::HttpFilter>, kind: FilterWord, cx: &mut Context<'_>) {
    let filter = &section.value;
    let at = |field: Option<NodeId>, word| field.filter(|_| word != kind);
    let others = [
        at(filter.request_header_modifier.get().map(|one| one.at), FilterWord::RequestHeaderModifier),
        at(filter.response_header_modifier.get().map(|one| one.at), FilterWord::ResponseHeaderModifier),
        at(filter.request_mirror.get().map(|one| one.at), FilterWord::RequestMirror),
        at(filter.request_redirect.get().map(|one| one.at), FilterWord::RequestRedirect),
        at(filter.url_rewrite.get().map(|one| one.at), FilterWord::UrlRewrite),
    ];
    for at in others.into_iter().flatten() {
        cx.error(at, Code::Conflict, "the filter's type is another; make a filter of its own of it");
    }
}

fn header_edits(section: &file::HeaderSection, cx: &mut Context<'_>) -> HeaderEdits {
    let mut seen: Vec<Arc<str>> = Vec::new();
    let mut once = |name: Arc<str>, at: NodeId, cx: &mut Context<'_>| {
        if seen.contains(&name) {
            cx.error(at, Code::Duplicate, format!("{name} is listed twice"));
        }
        seen.push(Arc::clone(&name));
        name
    };
    let mut values = |list: &List<file::HeaderValueSection>, cx: &mut Context<'_>| {
        let mut edits = Vec::new();
        for one in bounded(list, MAX_NAMED, "headers", cx) {
            let name = cx.required_parse(one.at, "name", &one.value.name, "of a header", changed_header);
            let value = cx.required_parse(one.at, "value", &one.value.value, "of the header", header_value);
            let (Some(name), Some(value)) = (name, value) else { continue };
            edits.push(HeaderEdit { name: once(name, one.at, cx), value });
        }
        edits
    };
    let (set, add) = (values(&section.set, cx), values(&section.add, cx));
    let mut remove = Vec::new();
    for one in bounded(&section.remove, MAX_NAMED, "headers", cx) {
        if let Some(name) = cx.parse(one, changed_header) {
            remove.push(once(name, one.at, cx));
        }
    }
    HeaderEdits { set, add, remove }
}

fn mirror(section: &At<file::MirrorSection>, parts: &mut Parts<'_>, cx: &mut Context<'_>) -> Option<Mirror> {
    let mirror = &section.value;
    let backend = cx.required(section.at, "backendRef", &mirror.backend_ref, "who gets the copy")?;
    let file::ReferenceSection { group, kind, name, namespace, port } = &backend.value;
    let backend = parts.reference(&Reference { at: backend.at, group, kind, name, namespace, port }, cx);
    let (mut numerator, mut denominator) = (number(&mirror.percent, 0, 100, cx).unwrap_or(100), 100);
    if let Some(fraction) = mirror.fraction.get() {
        if let Some(percent) = mirror.percent.get() {
            cx.error(percent.at, Code::Conflict, "percent and fraction exclude each other");
        }
        cx.required(fraction.at, "numerator", &fraction.value.numerator, "so many of the denominator");
        denominator = number(&fraction.value.denominator, 1, MAX_FRACTION, cx).unwrap_or(100);
        numerator = number(&fraction.value.numerator, 0, denominator, cx).unwrap_or_default();
    }
    Some(Mirror { backend: backend?, denominator, numerator })
}

fn redirect(section: &At<file::RedirectSection>, cx: &mut Context<'_>) -> Redirect {
    let redirect = &section.value;
    let status = redirect.status_code.get().and_then(|at| match at.value {
        301 | 302 | 303 | 307 | 308 => u16::try_from(at.value).ok(),
        _ => {
            cx.error(at.at, Code::Value, "must be 301, 302, 303, 307 or 308");
            None
        }
    });
    Redirect {
        scheme: redirect.scheme.value().map(|scheme| match scheme {
            SchemeWord::Http => Scheme::Http,
            SchemeWord::Https => Scheme::Https,
        }),
        hostname: redirect.hostname.get().and_then(|text| cx.parse(text, host_name)),
        port: port(&redirect.port, cx),
        path: redirect.path.get().and_then(|path| path_edit(path, cx)),
        status: status.unwrap_or(302),
    }
}

fn path_edit(section: &At<file::PathEditSection>, cx: &mut Context<'_>) -> Option<PathEdit> {
    let edit = &section.value;
    let kind = cx.required(section.at, "type", &edit.kind, "ReplaceFullPath or ReplacePrefixMatch")?.value;
    let (own, other, key) = match kind {
        PathEditWord::ReplaceFullPath => (&edit.replace_full_path, &edit.replace_prefix_match, "replaceFullPath"),
        PathEditWord::ReplacePrefixMatch => (&edit.replace_prefix_match, &edit.replace_full_path, "replacePrefixMatch"),
    };
    if let Some(other) = other.get() {
        cx.error(other.at, Code::Conflict, "the type is another");
    }
    let text = cx.required(section.at, key, own, "the new path")?;
    let new = if text.value.is_empty() && kind == PathEditWord::ReplacePrefixMatch {
        Arc::from("/")
    } else {
        cx.parse(text, path)?
    };
    Some(match kind {
        PathEditWord::ReplaceFullPath => PathEdit::Full(new),
        PathEditWord::ReplacePrefixMatch => PathEdit::Prefix(new),
    })
}

fn timeouts(field: &Field<file::TimeoutsSection>, cx: &mut Context<'_>) -> Timeouts {
    let Some(section) = field.get() else { return Timeouts::default() };
    let mut limit =
        |field: &Field<Text>| field.get().map(|_| duration_in(field, Duration::ZERO, MAX_TIMEOUT, Duration::ZERO, cx));
    let (request, backend_request) = (limit(&section.value.request), limit(&section.value.backend_request));
    if let (Some(whole), Some(one)) = (request, backend_request)
        && !whole.is_zero()
        && one > whole
    {
        cx.error(section.at, Code::Conflict, "backendRequest cannot be longer than request: it is a part of it");
    }
    Timeouts { request, backend_request }
}

fn retry(section: &file::RetrySection, cx: &mut Context<'_>) -> Retry {
    let mut codes: Vec<u16> = Vec::new();
    for code in bounded(&section.codes, 200, "codes", cx) {
        match u16::try_from(code.value).ok().filter(|code| (400..=599).contains(code)) {
            Some(code) if !codes.contains(&code) => codes.push(code),
            Some(_) => {}
            None => cx.error(code.at, Code::Value, "must be 400 to 599"),
        }
    }
    let millisecond = Duration::from_millis(1);
    let backoff = section
        .backoff
        .get()
        .map(|_| duration_in(&section.backoff, millisecond, Duration::from_secs(3_600), millisecond, cx));
    if codes.is_empty() {
        codes.extend(GATEWAY_ERRORS);
    }
    Retry { on: RetryOn::BROKEN.to_vec(), codes, attempts: number(&section.attempts, 0, MAX_ATTEMPTS, cx), backoff }
}

fn persistence(section: &At<file::PersistenceSection>, cx: &mut Context<'_>) -> Option<Persistence> {
    let session = &section.value;
    let name = session.session_name.get().map_or(Some(Arc::from(SESSION)), |text| cx.parse(text, session_name));
    let kind = session.kind.value().copied().unwrap_or(PersistenceWord::Cookie);
    let cookie = session.cookie_config.get();
    let lifetime =
        cookie.and_then(|cookie| cookie.value.lifetime_type.value().copied()).unwrap_or(LifetimeWord::Session);
    let second = Duration::from_secs(1);
    let timeout = duration_in(&session.absolute_timeout, second, Duration::from_secs(366 * 86_400), second, cx);
    let carrier = match (kind, lifetime) {
        (PersistenceWord::Header, _) => {
            if let Some(cookie) = cookie {
                cx.error(cookie.at, Code::Conflict, "a header has no cookie");
            }
            Lifetime::Header
        }
        (PersistenceWord::Cookie, LifetimeWord::Session) => Lifetime::SessionCookie,
        (PersistenceWord::Cookie, LifetimeWord::Permanent) => {
            cx.required(section.at, "absoluteTimeout", &session.absolute_timeout, "life of a permanent cookie");
            Lifetime::PermanentCookie(timeout)
        }
    };
    let is_permanent = matches!(carrier, Lifetime::PermanentCookie(_));
    if let Some(timeout) = session.absolute_timeout.get().filter(|_| !is_permanent) {
        cx.error(timeout.at, Code::Conflict, "only a cookie whose lifetimeType is Permanent has a life of its own");
    }
    Some(Persistence { name: name?, carrier })
}

/// A path, without query and fragment, that no proxy takes for another.
pub(in crate::config) fn path(text: &str) -> Result<Arc<str>, &'static str> {
    let lower = text.to_ascii_lowercase();
    let odd = ["//", "/./", "/../", "%2f", "#", "?", " "];
    if !text.starts_with('/') {
        Err("must begin with /")
    } else if text.len() > MAX_PATH {
        Err("is longer than 1024 bytes")
    } else if odd.iter().any(|odd| lower.contains(odd)) || text.ends_with("/.") || text.ends_with("/..") {
        Err("must not have //, /./, /../, %2F, #, ? or blanks in it")
    } else if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        Err("must be printable ASCII; write other characters in percent form")
    } else {
        Ok(Arc::from(text))
    }
}

/// A header's name, lower case (RFC 9110 §5.1).
pub(in crate::config) fn header_name(text: &str) -> Result<Arc<str>, &'static str> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if text.is_empty() || text.len() > MAX_NAME || !text.bytes().all(good) {
        return Err("must be the name of a header: 1 to 256 letters, digits and dashes");
    }
    Ok(Arc::from(text.to_ascii_lowercase()))
}

/// A header that may be changed: the host is not among them.
pub(in crate::config) fn changed_header(text: &str) -> Result<Arc<str>, &'static str> {
    match &*header_name(text)? {
        "host" => Err("cannot be changed like this; use the filter URLRewrite with a hostname"),
        "content-length" | "transfer-encoding" | "connection" | "upgrade" | "te" | "trailer" => {
            Err("belongs to the connection and is not changed")
        }
        name => Ok(Arc::from(name)),
    }
}

pub(in crate::config) fn parameter_name(text: &str) -> Result<Arc<str>, &'static str> {
    if text.is_empty() || text.len() > MAX_NAME || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("must be the name of a parameter: 1 to 256 printable characters");
    }
    Ok(Arc::from(text))
}

pub(in crate::config) fn header_value(text: &str) -> Result<Arc<str>, &'static str> {
    let good = |byte: u8| byte.is_ascii_graphic() || byte == b' ' || byte == b'\t';
    if text.is_empty() || text.len() > MAX_VALUE || !text.bytes().all(good) {
        return Err("must be 1 to 4096 printable characters");
    }
    Ok(Arc::from(text))
}

fn session_name(text: &str) -> Result<Arc<str>, &'static str> {
    header_name(text).and_then(|name| if name.len() > 128 { Err("is longer than 128 bytes") } else { Ok(name) })
}

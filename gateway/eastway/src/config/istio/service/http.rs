//! Entries of `http`.

use std::sync::Arc;
use std::time::Duration;

use eastway_model::PortNumber;
use eastway_model::rules::route::{
    Filters, HeaderEdit, HeaderEdits, MAX_ATTEMPTS, MAX_FRACTION, MAX_MATCHES, MAX_MIRRORS, MAX_NAMED, MAX_TIMEOUT,
    Mirror, NamedMatch, ObjectName, PathEdit, PathMatch, Pattern, Redirect, RequestMatch, Retry, RetryOn, Rewrite,
    Rule, Scheme, Timeouts,
};
use eastway_model::rules::{Abort, Delay, Fault};
use eastway_registry::diagnostic::{Code, did_you_mean, quoted};
use eastway_registry::yaml::{At, Context, Field, NodeId};

use super::super::super::policy::sidecars::HOUR;
use super::super::super::route::http::{changed_header, header_name, header_value, parameter_name, path};
use super::super::super::route::parts::{host_name, number, port, subdomain};
use super::super::parts::{backends, destination, per_million, text, time, value_match};
use super::super::{CollectedIstio, fields};
use super::port_of_match;

/// Methods of HTTP.
const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
/// What Istio tries again if retries say nothing of it, beside the status 503.
const TRIED_AGAIN: [RetryOn; 4] =
    [RetryOn::ConnectFailure, RetryOn::RefusedStream, RetryOn::Unavailable, RetryOn::Cancelled];

const MILLISECOND: Duration = Duration::from_millis(1);

pub(super) fn rule(
    entry: NodeId,
    object: &ObjectName,
    collected: &mut CollectedIstio,
    cx: &mut Context<'_>,
) -> Option<Rule> {
    if !cx.keys(entry, fields::HTTP) {
        return None;
    }
    let mut matches = Vec::new();
    for item in cx.items(entry, "match", MAX_MATCHES) {
        matches.extend(request_match(item, cx));
    }
    let (request, response) = headers(entry, cx);
    let redirect = cx.child(entry, "redirect").map(|at| redirect(at, cx));
    let rewrite = cx.child(entry, "rewrite").map(|at| rewrite(at, cx));
    let mirrors = mirrors(entry, object, collected, cx);
    let backends = backends(entry, fields::ROUTE, object, collected, cx, headers);
    if redirect.is_none() && backends.is_empty() {
        cx.error(entry, Code::Missing, "route or redirect is required: requests would have nowhere to go");
    }
    if redirect.is_some() && !backends.is_empty() {
        cx.error(entry, Code::Conflict, "route and redirect exclude each other");
    }
    if redirect.is_some() && rewrite.is_some() {
        cx.error(entry, Code::Conflict, "rewrite and redirect exclude each other");
    }
    let retries = cx.child(entry, "retries");
    let name: Field<String> = cx.field(entry, "name");
    Some(Rule {
        // Istio's may be any text, and nothing depends on it.
        name: name.value().and_then(|name| subdomain(name).ok()),
        matches,
        filters: Filters { request, response, redirect, rewrite, mirrors },
        backends,
        timeouts: Timeouts {
            request: time(entry, "timeout", Duration::ZERO, MAX_TIMEOUT, cx),
            backend_request: retries.and_then(|at| time(at, "perTryTimeout", Duration::ZERO, MAX_TIMEOUT, cx)),
        },
        retry: retries.map(|at| retry(at, cx)),
        fault: cx.child(entry, "fault").map(|at| fault(at, cx)),
        persistence: None,
    })
}

fn request_match(item: NodeId, cx: &mut Context<'_>) -> Option<RequestMatch> {
    let port = port_of_match(item, fields::HTTP_MATCH, cx)?;
    let method = text(item, "method", cx).and_then(|(way, text)| {
        let is_one = way == "exact" && METHODS.contains(&&*text.value);
        if !is_one {
            cx.error(text.at, Code::Value, format!("is not done here: write exact, and one of {}", METHODS.join(", ")));
        }
        is_one.then(|| Arc::from(text.value.as_str()))
    });
    let mut wanted = RequestMatch { path: uri(item, cx), method, port, ..RequestMatch::default() };
    if let Some(at) = cx.child(item, "authority") {
        wanted.headers.extend(value_match(at, cx).map(|value| NamedMatch { name: Arc::from("host"), value }));
    }
    named(item, "headers", header_name, &mut wanted.headers, cx);
    named(item, "queryParams", parameter_name, &mut wanted.query, cx);
    Some(wanted)
}

fn uri(item: NodeId, cx: &mut Context<'_>) -> Option<PathMatch> {
    let (way, text) = text(item, "uri", cx)?;
    match way {
        "exact" => cx.parse(&text, path).map(PathMatch::Exact),
        "prefix" if text.value == "/" => Some(PathMatch::Prefix(Arc::from("/"))),
        "prefix" => cx.parse(&text, path).map(PathMatch::Start),
        _ => cx.parse(&text, Pattern::parse).map(PathMatch::Regex),
    }
}

fn named(
    item: NodeId,
    key: &str,
    name: fn(&str) -> Result<Arc<str>, &'static str>,
    found: &mut Vec<NamedMatch>,
    cx: &mut Context<'_>,
) {
    for (text, at) in cx.entries(item, key, MAX_NAMED) {
        let name = cx.parse(&At { value: text, at }, name);
        let (Some(name), Some(value)) = (name, value_match(at, cx)) else { continue };
        if found.iter().any(|known| known.name == name) {
            cx.error(at, Code::Duplicate, format!("{name} is matched twice"));
        }
        found.push(NamedMatch { name, value });
    }
}

/// Changes of the headers of requests and of answers.
fn headers(node: NodeId, cx: &mut Context<'_>) -> (HeaderEdits, HeaderEdits) {
    let Some(at) = cx.child(node, "headers").filter(|at| cx.keys(*at, fields::HEADERS)) else {
        return Default::default();
    };
    (edits(at, "request", cx), edits(at, "response", cx))
}

fn edits(at: NodeId, key: &str, cx: &mut Context<'_>) -> HeaderEdits {
    let mut edits = HeaderEdits::default();
    let Some(at) = cx.child(at, key).filter(|at| cx.keys(*at, fields::HEADER_CHANGES)) else { return edits };
    let mut seen: Vec<Arc<str>> = Vec::new();
    let mut once = |name: Option<Arc<str>>, at, cx: &mut Context<'_>| {
        let name = name?;
        if seen.contains(&name) {
            cx.error(at, Code::Duplicate, format!("{name} is listed twice"));
        }
        seen.push(Arc::clone(&name));
        Some(name)
    };
    for (key, list) in [("set", &mut edits.set), ("add", &mut edits.add)] {
        for (text, at) in cx.entries(at, key, MAX_NAMED) {
            let name = cx.parse(&At { value: text, at }, changed_header);
            let name = once(name, at, cx);
            let value = cx.value::<String>(at).and_then(|value| cx.parse(&value, header_value));
            list.extend(name.zip(value).map(|(name, value)| HeaderEdit { name, value }));
        }
    }
    for item in cx.items(at, "remove", MAX_NAMED) {
        let name = cx.value::<String>(item).and_then(|name| cx.parse(&name, changed_header));
        edits.remove.extend(once(name, item, cx));
    }
    edits
}

fn redirect(at: NodeId, cx: &mut Context<'_>) -> Redirect {
    cx.keys(at, fields::REDIRECT);
    let scheme: Field<String> = cx.field(at, "scheme");
    let scheme = scheme.get().and_then(|text| match text.value.as_str() {
        "http" => Some(Scheme::Http),
        "https" => Some(Scheme::Https),
        _ => {
            cx.error(text.at, Code::Value, "must be http or https");
            None
        }
    });
    let authority: Field<String> = cx.field(at, "authority");
    let (hostname, in_authority) = authority.get().map_or((None, None), |text| host_and_port(text, cx));
    // Where the host is another, and nothing is said of its port, it is that of the scheme.
    let by_itself = hostname.as_ref().filter(|_| scheme.is_none()).and_then(|_| PortNumber::new(Scheme::Http.port()));
    let code: Field<i64> = cx.field(at, "redirectCode");
    let status = code.get().map_or(Some(301), |code| match code.value {
        301 | 302 | 303 | 307 | 308 => u16::try_from(code.value).ok(),
        _ => {
            cx.error(code.at, Code::Value, "must be 301, 302, 303, 307 or 308");
            None
        }
    });
    let uri: Field<String> = cx.field(at, "uri");
    Redirect {
        scheme,
        port: port(&cx.field(at, "port"), cx).or(in_authority).or(by_itself),
        hostname,
        path: uri.get().and_then(|text| cx.parse(text, path)).map(PathEdit::Full),
        status: status.unwrap_or(301),
    }
}

fn host_and_port(text: &At<String>, cx: &mut Context<'_>) -> (Option<Arc<str>>, Option<PortNumber>) {
    let (host, number) = match text.value.rsplit_once(':') {
        Some((host, number)) => (host, number.parse().ok().and_then(PortNumber::new)),
        None => (text.value.as_str(), None),
    };
    if number.is_none() && host.len() != text.value.len() {
        cx.error(text.at, Code::Value, "has no good port after the colon");
    }
    (cx.parse(&At { value: host, at: text.at }, host_name), number)
}

fn rewrite(at: NodeId, cx: &mut Context<'_>) -> Rewrite {
    cx.keys(at, fields::REWRITE);
    let (authority, uri): (Field<String>, Field<String>) = (cx.field(at, "authority"), cx.field(at, "uri"));
    Rewrite {
        hostname: authority.get().and_then(|text| cx.parse(text, host_name)),
        path: uri.get().and_then(|text| cx.parse(text, path)).map(PathEdit::Matched),
    }
}

fn mirrors(entry: NodeId, object: &ObjectName, collected: &mut CollectedIstio, cx: &mut Context<'_>) -> Vec<Mirror> {
    let fraction = |per_million: u32| match per_million % (MAX_FRACTION / 100) {
        0 => (100, per_million / (MAX_FRACTION / 100)),
        _ => (MAX_FRACTION, per_million),
    };
    let mut found = Vec::new();
    let share = per_million(entry, "mirrorPercentage", cx).unwrap_or(MAX_FRACTION);
    if cx.child(entry, "mirror").is_some() {
        found.extend(destination(entry, "mirror", object, collected, cx).zip(Some(share)));
    }
    for item in cx.items(entry, "mirrors", MAX_MIRRORS) {
        if cx.keys(item, fields::MIRROR) {
            let share = per_million(item, "percentage", cx).unwrap_or(MAX_FRACTION);
            found.extend(destination(item, "destination", object, collected, cx).zip(Some(share)));
        }
    }
    let mirror = |(backend, share)| {
        let (denominator, numerator) = fraction(share);
        Mirror { backend, denominator, numerator }
    };
    found.into_iter().map(mirror).collect()
}

fn retry(at: NodeId, cx: &mut Context<'_>) -> Retry {
    cx.keys(at, fields::RETRIES);
    let conditions: Field<String> = cx.field(at, "retryOn");
    let (mut on, mut codes) = (TRIED_AGAIN.to_vec(), vec![503]);
    if let Some(text) = conditions.get().filter(|text| !text.value.is_empty()) {
        on.clear();
        codes.clear();
        for word in text.value.split(',').map(str::trim) {
            let status = word.parse::<u16>().ok().filter(|status| (400..=599).contains(status));
            match (RetryOn::ALL.into_iter().find(|(_, name)| *name == word), status) {
                (Some((one, _)), _) if !on.contains(&one) => on.push(one),
                (None, Some(status)) if !codes.contains(&status) => codes.push(status),
                (Some(_), _) | (_, Some(_)) => {}
                // The statuses of the list are meant anyway.
                (None, None) if word == "retriable-status-codes" => {}
                (None, None) => {
                    let names = RetryOn::ALL.into_iter().map(|(_, name)| name);
                    let meant = did_you_mean(word, names.clone()).map(|meant| format!(" (did you mean {meant}?)"));
                    let known = names.collect::<Vec<_>>().join(", ");
                    let message = format!(
                        "{} is not done here{}: possible are statuses from 400 to 599 and {known}",
                        quoted(word),
                        meant.unwrap_or_default()
                    );
                    cx.error(text.at, Code::Value, message);
                }
            }
        }
    }
    Retry {
        on,
        codes,
        // Without a number there are none, as in Istio.
        attempts: Some(number(&cx.field(at, "attempts"), 0, MAX_ATTEMPTS, cx).unwrap_or_default()),
        backoff: time(at, "backoff", MILLISECOND, HOUR, cx),
    }
}

fn fault(at: NodeId, cx: &mut Context<'_>) -> Fault {
    cx.keys(at, fields::FAULT);
    let delay = cx.child(at, "delay").filter(|at| cx.keys(*at, fields::DELAY)).and_then(|at| {
        let per_million = share(at, cx);
        if cx.child(at, "fixedDelay").is_none() {
            cx.error(at, Code::Missing, "fixedDelay is required (how long, e.g. 5s)");
        }
        Some(Delay { duration: time(at, "fixedDelay", MILLISECOND, HOUR, cx)?, per_million })
    });
    let abort = cx.child(at, "abort").filter(|at| cx.keys(*at, fields::ABORT)).and_then(|at| {
        let per_million = share(at, cx);
        let field = cx.field(at, "httpStatus");
        cx.required(at, "httpStatus", &field, "of the answer, e.g. 503");
        let status = u16::try_from(number(&field, 200, 599, cx)?).ok()?;
        Some(Abort { status, per_million })
    });
    Fault { delay, abort }
}

/// Without a percentage nothing happens, as in Istio; that is hardly meant.
fn share(at: NodeId, cx: &mut Context<'_>) -> u32 {
    if cx.child(at, "percentage").is_none() {
        cx.warn(at, Code::Missing, "has no effect without percentage: {value: 100}");
    }
    per_million(at, "percentage", cx).unwrap_or_default()
}

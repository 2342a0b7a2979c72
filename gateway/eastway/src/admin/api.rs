//! The admin port: views of the running process as JSON. Loopback only, GET only.
//!
//! A web page that a user of this machine visits can make their browser send requests to loopback. So requests
//! with an `Origin` are refused, and so is any `Host` that is not a loopback name: after DNS rebinding it is the attacker's.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::Query;
use eastway_tunnel::header::MAX_BENCH_SECONDS;
use hyper::StatusCode;
use hyper::header::{HOST, ORIGIN};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use super::check;
use super::dump;
use super::http::{Head, Response, answer, text};
use super::readiness::Readiness;
use super::sidecars;
use super::source::{AdminSource, BenchPart, BenchQuery, DescribeQuery, SourceError};
use super::views::{Items, LoggingView, View};
use crate::telemetry::{LogHandle, Telemetry};

/// The paths, and what each shows.
const INDEX: &str = "\
/status       this process: listeners, identity, snapshot, configuration
/peers        [?name=]  each peer: links, certificates, imports and exports
/services     [?namespace=&service=]  local services and imports, by cluster
/endpoints    [?namespace=&service=]  single endpoints
/describe     ?service=NAMESPACE/NAME&port=&cluster=&namespace=&serviceAccount=&zone=&method=&path=&headers=  where a connection or a request would go, and why
/dns          what the DNS server answers
/proxy-status [?node=]  each sidecar: what it was sent, has acknowledged and has refused
/proxy-config ?node=&kind=listeners|routes|clusters|endpoints|secrets  what a sidecar was told
/check        [?peer=NAME]  probes the peers and judges what it finds
/bench        ?peer=NAME&part=rtt|up|down&seconds=1..10  measures the link to a peer
/leftovers    ?peer=NAME  what is left of a peer
/logging      level of the log
/config_dump  the configuration that runs, without secrets
";

/// Longest name in a query.
pub(super) const MAX_NAME: usize = 255;

/// What the admin port needs beside its source.
#[derive(Clone)]
pub struct AdminContext {
    /// The running process.
    pub source: Arc<dyn AdminSource>,
    /// Shown by `/status`.
    pub readiness: Readiness,
    /// Shown by `/logging`.
    pub telemetry: Telemetry,
    /// Shown by `/logging`; `None` if somebody else set up logging.
    pub log: Option<LogHandle>,
    /// One `/check` or `/bench` at a time: they send packets.
    checking: Arc<Semaphore>,
}

impl AdminContext {
    /// All that is shown.
    #[must_use]
    pub fn new(
        source: Arc<dyn AdminSource>,
        readiness: Readiness,
        telemetry: Telemetry,
        log: Option<LogHandle>,
    ) -> Self {
        Self { source, readiness, telemetry, log, checking: Arc::new(Semaphore::new(1)) }
    }
}

/// Parameters of `/describe`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct DescribeParameters {
    service: String,
    port: Option<u16>,
    cluster: Option<String>,
    namespace: Option<String>,
    service_account: Option<String>,
    zone: Option<String>,
    method: Option<String>,
    path: Option<String>,
    /// One on each line.
    headers: Option<String>,
}

/// Parameters of `/leftovers`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PeerParameter {
    peer: String,
}

/// Parameters of `/check`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OptionalPeer {
    peer: Option<String>,
}

/// Parameters of `/peers`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PeerFilter {
    name: Option<String>,
}

/// Parameters of `/services` and `/endpoints`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ServiceFilter {
    namespace: Option<String>,
    service: Option<String>,
}

impl ServiceFilter {
    fn lets_through(&self, namespace: &str, service: &str) -> bool {
        self.namespace.as_deref().is_none_or(|wanted| wanted == namespace)
            && self.service.as_deref().is_none_or(|wanted| wanted == service)
    }
}

/// Answers one request.
pub async fn handle(head: Head, context: AdminContext) -> Response {
    if head.headers.contains_key(ORIGIN) {
        return text(StatusCode::FORBIDDEN, "requests of web pages are refused\n");
    }
    if !is_for_loopback(&head) {
        return text(StatusCode::FORBIDDEN, "the Host must be localhost or a loopback address\n");
    }
    match head.uri.path() {
        "/check" => return check(&head, &context).await,
        "/bench" => return bench(&head, &context).await,
        _ => {}
    }
    // A view of 100,000 endpoints takes a second to make: not on the threads that forward bytes.
    let view = tokio::task::spawn_blocking(move || show(&head, &context));
    view.await
        .unwrap_or_else(|error| text(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot make the view: {error}\n")))
}

fn show(head: &Head, context: &AdminContext) -> Response {
    let source = &context.source;
    match head.uri.path() {
        "/" => text(StatusCode::OK, INDEX),
        "/status" => json("Status", &status(context)),
        "/peers" => peers(head, source.as_ref()),
        "/services" => services(head, source.as_ref()),
        "/endpoints" => endpoints(head, source.as_ref()),
        "/dns" => json("Dns", &source.dns()),
        "/describe" => describe(head, context),
        "/proxy-status" => sidecars::status(head, source.as_ref()),
        "/proxy-config" => sidecars::config(head, source.as_ref()),
        "/leftovers" => match Query::<PeerParameter>::try_from_uri(&head.uri) {
            Ok(Query(PeerParameter { peer })) if peer.len() <= MAX_NAME => json("Leftovers", &source.leftovers(&peer)),
            Ok(_) | Err(_) => problem(StatusCode::BAD_REQUEST, "the query must be peer=NAME"),
        },
        "/logging" => json("Logging", &logging(context)),
        "/config_dump" => json("ConfigDump", &dump::Dump { config: dump::clean(source.config()) }),
        _ => problem(StatusCode::NOT_FOUND, "no such view; / lists them"),
    }
}

fn peers(head: &Head, source: &dyn AdminSource) -> Response {
    let Ok(Query(PeerFilter { name })) = Query::try_from_uri(&head.uri) else {
        return problem(StatusCode::BAD_REQUEST, "the query may be name=NAME");
    };
    let mut items = source.peers();
    items.retain(|peer| name.as_ref().is_none_or(|name| *name == peer.name));
    json("Peers", &Items { items })
}

fn services(head: &Head, source: &dyn AdminSource) -> Response {
    let Ok(Query(filter)) = Query::<ServiceFilter>::try_from_uri(&head.uri) else { return bad_filter() };
    let mut items = source.services();
    items.retain(|service| filter.lets_through(&service.namespace, &service.name));
    json("Services", &Items { items })
}

fn endpoints(head: &Head, source: &dyn AdminSource) -> Response {
    let Ok(Query(filter)) = Query::<ServiceFilter>::try_from_uri(&head.uri) else { return bad_filter() };
    let mut items = source.endpoints();
    items.retain(|endpoint| filter.lets_through(&endpoint.namespace, &endpoint.service));
    json("Endpoints", &Items { items })
}

fn bad_filter() -> Response {
    problem(StatusCode::BAD_REQUEST, "the query may have namespace and service")
}

/// Whether the request is meant for a loopback name: both the `Host` and, if the request line has one, the authority.
fn is_for_loopback(head: &Head) -> bool {
    let mut hosts = head.headers.get_all(HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
    let authority_is_good = head.uri.authority().is_none_or(|authority| is_loopback_host(authority.as_str()));
    authority_is_good && host.to_str().is_ok_and(is_loopback_host)
}

/// `localhost`, `127.x.y.z` or `[::1]`, with or without a port. Exact: neither a trailing dot nor another spelling of
/// an address is accepted.
fn is_loopback_host(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !name.is_empty() && !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    if let Some(address) = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return address.parse().is_ok_and(|ip: IpAddr| ip.is_ipv6() && ip.is_loopback());
    }
    name == "localhost" || name.parse().is_ok_and(|ip: IpAddr| ip.is_ipv4() && ip.is_loopback())
}

fn status(context: &AdminContext) -> super::views::StatusView {
    let mut view = context.source.status();
    view.ready = context.readiness.is_ready();
    view.draining = context.readiness.is_draining();
    view.pending = context.readiness.pending().iter().map(ToString::to_string).collect();
    view.resident_bytes = crate::telemetry::metrics::resident_bytes().unwrap_or_default();
    view
}

fn logging(context: &AdminContext) -> LoggingView {
    let access = context.telemetry.access.mode();
    LoggingView {
        level: context.log.as_ref().map_or_else(String::new, |log| log.level().to_string()),
        format: context.log.as_ref().map_or_else(String::new, |log| log.format().as_str().to_owned()),
        access: access.as_str().to_owned(),
        dropped_lines: dropped_lines(context),
    }
}

fn dropped_lines(context: &AdminContext) -> u64 {
    context.log.as_ref().map_or(0, LogHandle::dropped)
}

fn describe(head: &Head, context: &AdminContext) -> Response {
    let Ok(Query(parameters)) = Query::<DescribeParameters>::try_from_uri(&head.uri) else {
        let usage = "the query must be service=NAMESPACE/NAME, and may have port, cluster, namespace, serviceAccount, zone, method, path and headers";
        return problem(StatusCode::BAD_REQUEST, usage);
    };
    let DescribeParameters { service, port, cluster, namespace, service_account, zone, method, path, headers } =
        parameters;
    let request = match super::rules::request(method.as_deref(), path.as_deref(), headers.as_deref()) {
        Ok(request) => request,
        Err(error) => return problem(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    let query = DescribeQuery { target: service, port, cluster, namespace, service_account, zone, request };
    let names = [&query.cluster, &query.namespace, &query.service_account, &query.zone];
    let texts = names.into_iter().map(Option::as_ref).chain([Some(&query.target)]);
    if texts.flatten().any(|text| text.len() > MAX_NAME) {
        return problem(StatusCode::BAD_REQUEST, "names are at most 255 bytes long");
    }
    match context.source.describe(&query) {
        Ok(description) => json("Description", &description),
        Err(error @ (SourceError::NotFound(..) | SourceError::UnknownSidecar(..) | SourceError::NoSidecars)) => {
            problem(StatusCode::NOT_FOUND, &error.to_string())
        }
        Err(error @ SourceError::BadQuery(_)) => problem(StatusCode::BAD_REQUEST, &error.to_string()),
    }
}

async fn check(head: &Head, context: &AdminContext) -> Response {
    let Ok(Query(OptionalPeer { peer })) = Query::<OptionalPeer>::try_from_uri(&head.uri) else {
        return problem(StatusCode::BAD_REQUEST, "the query may be peer=NAME");
    };
    let Ok(_only_one) = context.checking.try_acquire() else {
        return problem(StatusCode::TOO_MANY_REQUESTS, "another check is running; try again in a few seconds");
    };
    if let Some(answer) = peer.as_ref().and_then(|name| unknown_peer(name, context)) {
        return answer;
    }
    let mut facts = context.source.check(peer).await;
    facts.gateway.dropped_log_lines = dropped_lines(context);
    json("Check", &check::judge(&facts))
}

/// Parameters of `/bench`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BenchParameters {
    peer: String,
    part: BenchPart,
    seconds: u8,
}

async fn bench(head: &Head, context: &AdminContext) -> Response {
    let query = Query::<BenchParameters>::try_from_uri(&head.uri).ok();
    let query = query.filter(|Query(query)| (1..=MAX_BENCH_SECONDS).contains(&query.seconds));
    let Some(Query(BenchParameters { peer, part, seconds })) = query else {
        return problem(StatusCode::BAD_REQUEST, "the query must be peer=NAME&part=rtt|up|down&seconds=1..10");
    };
    let Ok(_only_one) = context.checking.try_acquire() else {
        return problem(
            StatusCode::TOO_MANY_REQUESTS,
            "another measurement or check is running; try again in a few seconds",
        );
    };
    if let Some(answer) = unknown_peer(&peer, context) {
        return answer;
    }
    match context.source.bench(BenchQuery { peer, part, seconds }).await {
        Ok(view) => json("Bench", &view),
        Err(error) => problem(StatusCode::CONFLICT, &error.to_string()),
    }
}

fn unknown_peer(name: &str, context: &AdminContext) -> Option<Response> {
    let known: Vec<String> = context.source.peers().into_iter().map(|peer| peer.name).collect();
    if known.iter().any(|known| known == name) {
        return None;
    }
    let message = SourceError::NotFound(name.to_owned(), known).to_string();
    Some(problem(StatusCode::NOT_FOUND, &message))
}

#[derive(Serialize)]
struct Problem<'a> {
    message: &'a str,
}

pub(super) fn problem(status: StatusCode, message: &str) -> Response {
    with_status(status, "Error", &Problem { message })
}

pub(super) fn json<T: Serialize>(kind: &str, contents: &T) -> Response {
    with_status(StatusCode::OK, kind, contents)
}

fn with_status<T: Serialize>(status: StatusCode, kind: &str, contents: &T) -> Response {
    match serde_json::to_vec_pretty(&View::new(kind, contents)) {
        Ok(mut body) => {
            body.push(b'\n');
            answer(status, "application/json", body)
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot encode {kind}: {error}\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a1_only_loopback_names_are_loopback() {
        for good in ["localhost", "localhost:15000", "127.0.0.1", "127.0.0.1:15000", "127.9.9.9:1", "[::1]", "[::1]:80"]
        {
            assert!(is_loopback_host(good), "{good}");
        }
        let bad = [
            "",
            ":80",
            "example.com",
            "localhost.example.com",
            "localhost.",
            "127.0.0.1.nip.io",
            "127.1",
            "0x7f.1",
            "2130706433",
            "::1",
            "[::ffff:127.0.0.1]",
            "[127.0.0.1]",
            "10.0.0.1",
            "0.0.0.0",
            "localhost:",
            "localhost:80:80",
            "user@localhost",
            "LOCALHOST\0",
            "127.0.0.1 ",
        ];
        for bad in bad {
            assert!(!is_loopback_host(bad), "{bad:?}");
        }
    }
}

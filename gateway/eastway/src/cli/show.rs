//! `status`, `peers`, `services`, `endpoints`: tables of what a gateway knows.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use serde_json::Value;

use super::client::{self, Target, encode};
use super::exit::Failure;
use super::output::{Output, Table};
use crate::admin::views::{
    BulkView, EndpointView, Items, LinkView, PartView, PeerCondition, PeerView, ServiceView, StatusView,
};
use crate::human;

/// Arguments of `eastway status`.
#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
}

/// Arguments of commands that show a list.
#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Show only this one
    name: Option<String>,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
}

/// Arguments of commands that show things with a namespace.
#[derive(Debug, Args)]
pub(super) struct NamespacedArgs {
    /// Show only services of this name; NAMESPACE/NAME is taken, too
    service: Option<String>,
    /// Show only this namespace
    #[arg(long, short)]
    namespace: Option<String>,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
}

pub(super) fn status(args: &StatusArgs) -> Result<(), Failure> {
    let answer = args.target.get("/status")?;
    args.output.print(&answer, || Ok(status_table(&client::view(&answer)?, now())))
}

pub(super) fn peers(args: &ListArgs) -> Result<(), Failure> {
    let path = args.name.as_ref().map_or_else(|| "/peers".to_owned(), |name| format!("/peers?name={}", encode(name)));
    let answer = args.target.get(&path)?;
    if let Some(name) = &args.name {
        found(&answer, || format!("no peer is called {name:?}; `eastway peers` lists them"))?;
    }
    args.output.print(&answer, || Ok(peers_table(&client::view::<Items<PeerView>>(&answer)?.items, now())))
}

pub(super) fn services(args: &NamespacedArgs) -> Result<(), Failure> {
    let answer = args.ask("/services")?;
    args.output.print(&answer, || Ok(services_table(&client::view::<Items<ServiceView>>(&answer)?.items)))
}

pub(super) fn endpoints(args: &NamespacedArgs) -> Result<(), Failure> {
    let answer = args.ask("/endpoints")?;
    args.output.print(&answer, || Ok(endpoints_table(&client::view::<Items<EndpointView>>(&answer)?.items)))
}

impl NamespacedArgs {
    /// The view at `path`, with only the wanted services.
    fn ask(&self, path: &str) -> Result<Value, Failure> {
        let (namespace, service) = match self.service.as_deref().map(|name| name.split_once('/').ok_or(name)) {
            Some(Ok((namespace, name))) => (Some(namespace), Some(name)),
            Some(Err(name)) => (self.namespace.as_deref(), Some(name)),
            None => (self.namespace.as_deref(), None),
        };
        let parameters = [("namespace", namespace), ("service", service)];
        let query: Vec<String> =
            parameters.into_iter().filter_map(|(key, value)| Some(format!("{key}={}", encode(value?)))).collect();
        let path = if query.is_empty() { path.to_owned() } else { format!("{path}?{}", query.join("&")) };
        let answer = self.target.get(&path)?;
        if let Some(name) = &self.service {
            found(&answer, || format!("no service is called {name:?}; `eastway services` lists them"))?;
        }
        Ok(answer)
    }
}

/// Fails if nothing is left of what was asked for by name.
fn found(answer: &Value, message: impl FnOnce() -> String) -> Result<(), Failure> {
    match answer.get("items").and_then(Value::as_array) {
        Some(items) if items.is_empty() => Err(Failure::because(message())),
        _ => Ok(()),
    }
}

/// Milliseconds since the Unix epoch.
pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn status_table(view: &StatusView, now: u64) -> String {
    let mut lines: Vec<(&str, String)> = Vec::new();
    lines.push(("cluster", format!("{} (trust domain {})", view.cluster, view.trust_domain)));
    let state = match (view.draining, view.ready) {
        (true, _) => "draining".to_owned(),
        (false, true) => "ready".to_owned(),
        (false, false) => format!("not ready, waiting for {}", view.pending.join(", ")),
    };
    lines.push(("state", format!("{state}, up {}", human::age(view.started_at, now))));
    lines.push(("process", format!("eastway {} as {}", view.version, view.roles.join(", "))));
    lines.push(("memory", human::bytes(view.resident_bytes)));
    for (name, addresses) in &view.listeners {
        let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        lines.push(("listener", format!("{name} {}", addresses.join(", "))));
    }
    match &view.identity {
        Some(identity) => {
            lines.push(("identity", identity.id.clone()));
            lines.push(("certificate", format!("ends {}", human::until(identity.not_after, now))));
            if let Some(end) = identity.issuer_not_after {
                lines.push(("issuing CA", format!("ends {}, pin {}", human::until(end, now), identity.pin)));
            }
        }
        None => lines.push(("identity", "none yet".to_owned())),
    }
    let snapshot = &view.snapshot;
    let synced = if snapshot.local_synced { "local truth complete" } else { "local truth not known yet" };
    let restored = snapshot.restored_age_ms.map_or_else(String::new, |age| {
        format!(", imports from disk, {} old, not confirmed yet", human::duration(age))
    });
    lines.push(("snapshot", format!("version {}, {synced}{restored}", snapshot.version)));
    let peers = view.peers;
    lines.push(("peers", format!("{} up, {} down, {} unknown", peers.up, peers.down, peers.unknown)));
    for replica in &view.replicas {
        let leaving = if replica.draining { ", draining" } else { "" };
        lines.push(("replica", format!("{} at {}{leaving}", replica.replica, replica.address)));
    }
    for relay in &view.relay {
        let (pair, bytes) = (relay.between.join(" and "), relay.bytes.iter().sum());
        let today = relay.max_bytes_per_day.map_or_else(String::new, |most| {
            format!(", {} of {} today", human::bytes(relay.today_bytes), human::bytes(most))
        });
        let refused = if relay.refused > 0 { format!(", {} refused", relay.refused) } else { String::new() };
        let line = format!(
            "{pair}: {} of {} pipes, {}{today}{refused}",
            relay.streams,
            relay.max_streams,
            human::bytes(bytes)
        );
        lines.push(("relays for", line));
    }
    let services = view.services;
    let counts = format!(
        "{} local ({} exported), {} imported, {} virtual addresses",
        services.local, services.exported, services.imported, services.vips
    );
    lines.push(("services", counts));
    lines.push(("connections", view.open_connections.to_string()));
    for registry in &view.registries {
        let known = if registry.synced { "" } else { ", not known yet" };
        let unhealthy =
            if registry.unhealthy > 0 { format!(" ({} unhealthy)", registry.unhealthy) } else { String::new() };
        let counts = match registry.kind.as_str() {
            "clusterRegistry" => format!("{} API servers{known}", registry.api_servers),
            _ => format!("{} services, {} endpoints{unhealthy}{known}", registry.services, registry.endpoints),
        };
        lines.push(("registry", format!("{}: {counts}", registry.name)));
        // A file is refused as a whole; of the others all that can be read is.
        let prefix = if registry.kind == "file" { "REFUSED: " } else { "" };
        lines.extend(registry.errors.iter().map(|error| ("registry", format!("{prefix}{error}"))));
    }
    for error in &view.config.errors {
        lines.push(("config", format!("REFUSED, an older one runs: {error}")));
    }
    let mut text = String::new();
    let mut before = "";
    for (name, value) in lines {
        let shown = if name == before { "" } else { name };
        before = name;
        text.push_str(&format!("{shown:<12} {}\n", crate::telemetry::Escaped(&value)));
    }
    text
}

fn peers_table(peers: &[PeerView], now: u64) -> String {
    let mut table =
        Table::new(&["NAME", "STATE", "SINCE", "LINKS", "PATH", "RTT", "IN", "OUT", "CERTIFICATE", "MESSAGE"]);
    for peer in peers {
        let best = peer.links.iter().min_by_key(|link| (is_beside(link), link.rtt_us.unwrap_or(u64::MAX)));
        let state = match peer.state {
            PeerCondition::Up => "up",
            PeerCondition::Down => "down",
            PeerCondition::Unknown => "unknown",
        };
        table.row([
            peer.name.clone(),
            state.to_owned(),
            peer.since.map_or_else(String::new, |since| human::age(since, now)),
            peer.links.len().to_string(),
            best.map_or_else(String::new, |link| link.transport.clone()),
            best.and_then(|link| link.rtt_us).map_or_else(String::new, |rtt| human::millis(Duration::from_micros(rtt))),
            peer.imported_services.to_string(),
            peer.exported_services.to_string(),
            best.and_then(|link| link.certificate_not_after).map_or_else(String::new, |end| human::until(end, now)),
            peer_message(peer),
        ]);
    }
    table.or("no peers; save the output of the other side's `eastway peer export` in the peers folder")
}

/// It is kept beside another one, for some of the streams.
fn is_beside(link: &LinkView) -> bool {
    matches!(link.role.as_str(), "bulk" | "standby")
}

/// What carries what moves much, where that is not QUIC: `bulk by tcp: 6.4 instead of 4.1 Gbit/s`.
fn bulk(bulk: &BulkView) -> Option<String> {
    let gigabits = |rate: Option<u64>| {
        rate.map_or_else(
            || "?".to_owned(),
            |rate| {
                let tenths = rate.saturating_mul(8) / 100_000_000;
                format!("{}.{}", tenths / 10, tenths % 10)
            },
        )
    };
    let (tcp, quic) = (gigabits(bulk.tcp_bytes_per_second), gigabits(bulk.quic_bytes_per_second));
    (bulk.transport == "tcp").then(|| match bulk.tcp_bytes_per_second {
        Some(_) => format!("bulk by tcp: {tcp} instead of {quic} Gbit/s"),
        None => format!("bulk by tcp: {}", bulk.why),
    })
}

/// What an operator should know first.
fn peer_message(peer: &PeerView) -> String {
    let mut parts = Vec::new();
    if peer.state != PeerCondition::Up {
        parts.extend(peer.last_error.clone());
    }
    if let Some(age) = peer.stale_ms {
        parts.push(format!("services as of {} ago", human::duration(age)));
    }
    if !peer.missing_replicas.is_empty() {
        parts.push(format!("{} of its replicas not reached", peer.missing_replicas.len()));
    }
    if let Some(via) = peer.links.iter().find_map(|link| link.via.as_ref()) {
        parts.push(format!("relay via {via}"));
    }
    if let Some(link) = peer.links.iter().find(|link| link.degraded) {
        parts.push(format!("degraded: {}", link.transport));
    }
    parts.extend(peer.links.iter().filter_map(|link| link.bulk.as_ref()).find_map(bulk));
    if peer.workload_isolation == "none" {
        parts.push("workload isolation: none".to_owned());
    }
    if peer.rejected_records > 0 {
        parts.push(format!("{} records refused", peer.rejected_records));
    }
    parts.join("; ")
}

fn services_table(services: &[ServiceView]) -> String {
    let mut table = Table::new(&["NAMESPACE", "NAME", "READY IN", "EXPORTED", "PORTS", "ADDRESSES", "CONFLICTS"]);
    for service in services {
        let parts: Vec<String> = service.parts.iter().map(part).collect();
        let ports: Vec<String> = service.ports.iter().map(|port| format!("{}/{}", port.port, port.protocol)).collect();
        let vips: Vec<String> = service.vips.iter().map(ToString::to_string).collect();
        let conflicts: Vec<&str> = service.conflicts.iter().map(|conflict| conflict.reason.as_str()).collect();
        let exported = match (service.exported, service.exported_to.as_slice()) {
            (false, _) => "no".to_owned(),
            (true, []) => "yes".to_owned(),
            (true, peers) => peers.join(","),
        };
        table.row([
            service.namespace.clone(),
            service.name.clone(),
            parts.join(" "),
            exported,
            ports.join(","),
            vips.join(","),
            conflicts.join(","),
        ]);
    }
    table.or("no services; add them to a registry, or let peers export some to us")
}

/// `gke:3`, with what is odd about it.
fn part(part: &PartView) -> String {
    let draining = if part.draining > 0 { format!("+{} draining", part.draining) } else { String::new() };
    let stale = if part.stale { "(stale)" } else { "" };
    format!("{}:{}{draining}{stale}", part.cluster, part.ready)
}

fn endpoints_table(endpoints: &[EndpointView]) -> String {
    let mut table =
        Table::new(&["NAMESPACE", "SERVICE", "CLUSTER", "ID", "ADDRESS", "STATE", "ZONE", "WEIGHT", "OPEN", "LABELS"]);
    for endpoint in endpoints {
        table.row([
            endpoint.namespace.clone(),
            endpoint.service.clone(),
            endpoint.cluster.clone(),
            endpoint.id.clone(),
            endpoint.address.map_or_else(String::new, |address| address.to_string()),
            endpoint.state.clone(),
            endpoint.zone.clone().unwrap_or_default(),
            endpoint.weight.to_string(),
            endpoint.in_flight.to_string(),
            labels(&endpoint.labels),
        ]);
    }
    table.or("no endpoints")
}

/// `version=v2,zone=a`.
pub(super) fn labels(labels: &BTreeMap<String, String>) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

//! DestinationRules: names for parts of a service, and what sidecars do to all traffic to it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use eastway_model::Subset;
use eastway_model::rules::{Balance, ConnectionLimits, MAX_WEIGHT, Outliers, SidecarPolicy};
use eastway_registry::diagnostic::Code;
use eastway_registry::yaml::{Context, Field, NodeId};

use super::super::policy;
use super::super::policy::sidecars::{HOUR, MAX_ERRORS, number};
use super::super::route::parts::subdomain;
use super::parts::{for_everybody, own_host, time};
use super::{CollectedIstio, ServicePolicy, fields};

/// Most subsets of a service.
const MAX_SUBSETS: usize = 64;
/// Most endpoints that Istio ejects at once unless it is told otherwise, percent.
const MOST_EJECTED: u32 = 10;

/// Takes in a DestinationRule, and gives what it says of the whole service.
pub(super) fn take(collected: &mut CollectedIstio, cx: &mut Context<'_>) -> Option<ServicePolicy> {
    let (name, spec) = collected.header("DestinationRule", cx)?;
    if !cx.keys(spec, fields::DESTINATION_RULE) {
        return None;
    }
    let host: Field<String> = cx.field(spec, "host");
    let service = cx.required(spec, "host", &host, "a service").and_then(|text| own_host(text, &name, cx));
    for_everybody(spec, cx);
    let mut subsets = BTreeMap::new();
    for item in cx.items(spec, "subsets", MAX_SUBSETS) {
        let Some((name, labels)) = subset(item, cx) else { continue };
        if subsets.insert(Arc::clone(&name), labels).is_some() {
            cx.error(item, Code::Duplicate, format!("subset {name} is listed twice"));
        }
    }
    let policy = cx.child(spec, "trafficPolicy");
    let sidecars = policy.and_then(|at| sidecars(at, cx));
    let (service, at) = (service?, host.get()?.at);
    if let Some((_, earlier)) = collected.rules.get(&service) {
        let message = format!("{service} already has a DestinationRule in {earlier}; merge the two");
        cx.error(at, Code::Duplicate, message);
        return None;
    }
    collected.rules.insert(service.clone(), (subsets, cx.place(at)));
    Some(ServicePolicy { name: name.name, service, sidecars: sidecars?, at })
}

fn subset(item: NodeId, cx: &mut Context<'_>) -> Option<(Arc<str>, Arc<Subset>)> {
    if !cx.keys(item, fields::SUBSET) {
        return None;
    }
    let name: Field<String> = cx.field(item, "name");
    let name = cx.required_parse(item, "name", &name, "a name of your choice", subdomain);
    let labels = policy::subset(&cx.field(item, "labels"), cx);
    Some((name?, Arc::new(labels)))
}

/// `None`: it says nothing that is not done anyway.
fn sidecars(at: NodeId, cx: &mut Context<'_>) -> Option<SidecarPolicy> {
    if !cx.keys(at, fields::TRAFFIC_POLICY) {
        return None;
    }
    if let Some(at) = cx.child(at, "tls") {
        tls(at, cx);
    }
    let outliers = cx.child(at, "outlierDetection").map(|at| outliers(at, cx));
    let limits = cx.child(at, "connectionPool").map(|at| limits(at, cx));
    let balance = cx.child(at, "loadBalancer").map(|at| balance(at, cx));
    if outliers.is_none() && limits.is_none() && balance.is_none() {
        return None;
    }
    Some(SidecarPolicy {
        outliers: outliers.unwrap_or_default(),
        limits: limits.unwrap_or_default(),
        balance: balance.unwrap_or_default(),
        fault: None,
    })
}

/// Mutual TLS between sidecars is what happens, whatever is written.
fn tls(at: NodeId, cx: &mut Context<'_>) {
    cx.keys(at, fields::TLS);
    let mode: Field<String> = cx.field(at, "mode");
    if let Some(mode) = mode.get().filter(|mode| mode.value != "ISTIO_MUTUAL") {
        let message = "is not done here: sidecars speak mutual TLS to every server that takes it; write ISTIO_MUTUAL, or leave tls out";
        cx.error(mode.at, Code::Value, message);
    }
}

fn outliers(at: NodeId, cx: &mut Context<'_>) -> Outliers {
    cx.keys(at, fields::OUTLIERS);
    let split: Field<bool> = cx.field(at, "splitExternalLocalOriginErrors");
    if let Some(split) = split.get().filter(|split| split.value) {
        cx.error(
            split.at,
            Code::Value,
            "is not done here: a failed connection counts as a bad answer at ports of requests; leave it out",
        );
    }
    let defaults = Outliers::default();
    let least = Duration::from_millis(100);
    Outliers {
        errors: number(&cx.field(at, "consecutive5xxErrors"), 0, MAX_ERRORS, cx).unwrap_or(defaults.errors),
        failures: number(&cx.field(at, "consecutiveLocalOriginFailures"), 0, MAX_ERRORS, cx)
            .unwrap_or(defaults.failures),
        interval: time(at, "interval", least, HOUR, cx).unwrap_or(defaults.interval),
        ejection: time(at, "baseEjectionTime", least, HOUR, cx).unwrap_or(defaults.ejection),
        most_percent: number(&cx.field(at, "maxEjectionPercent"), 0, 100, cx).unwrap_or(MOST_EJECTED),
    }
}

fn limits(at: NodeId, cx: &mut Context<'_>) -> ConnectionLimits {
    let mut limits = ConnectionLimits::default();
    cx.keys(at, fields::POOL);
    if let Some(tcp) = cx.child(at, "tcp").filter(|at| cx.keys(*at, fields::POOL_TCP)) {
        limits.connections = number(&cx.field(tcp, "maxConnections"), 1, MAX_WEIGHT, cx);
    }
    if let Some(http) = cx.child(at, "http").filter(|at| cx.keys(*at, fields::POOL_HTTP)) {
        limits.pending = number(&cx.field(http, "http1MaxPendingRequests"), 1, MAX_WEIGHT, cx);
        limits.requests = number(&cx.field(http, "http2MaxRequests"), 1, MAX_WEIGHT, cx);
    }
    limits
}

fn balance(at: NodeId, cx: &mut Context<'_>) -> Balance {
    cx.keys(at, fields::BALANCER);
    let simple: Field<String> = cx.field(at, "simple");
    let Some(simple) = simple.get() else { return Balance::default() };
    match simple.value.as_str() {
        "UNSPECIFIED" | "LEAST_REQUEST" | "LEAST_CONN" => Balance::LeastRequest,
        "ROUND_ROBIN" => Balance::RoundRobin,
        "RANDOM" => Balance::Random,
        _ => {
            cx.error(simple.at, Code::Value, "must be LEAST_REQUEST, ROUND_ROBIN or RANDOM");
            Balance::default()
        }
    }
}

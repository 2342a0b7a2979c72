//! Explains a request's way through the rules of a service.

use crate::endpoint::Subset;
use crate::name::ServiceKey;
use crate::rules::ClusterRef;
use crate::rules::route::{Entry, Origin, Request, RouteKind, Rule, Share};
use crate::service::ServicePort;
use crate::store::Snapshot;

/// The rules of one port, in the order in which they are tried.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExplainedRules {
    /// What they look at.
    pub kind: RouteKind,
    /// All of them.
    pub rules: Vec<ExplainedRule>,
    /// What becomes of a request that was asked about.
    pub outcome: Option<String>,
    /// What became of the routes of the service, a line for each statement.
    pub statuses: Vec<String>,
}

/// One match of one rule.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExplainedRule {
    /// E.g. `HTTPRoute shop/web rules[0]`.
    pub rule: String,
    /// What a request has to be.
    pub matches: String,
    /// What happens then, in words.
    pub does: String,
    /// Of a request that was asked about: it is the one.
    pub chosen: bool,
    /// Why it is not.
    pub why_not: Option<String>,
}

/// The rules for the traffic to a port of a service; `None`: there are none. Sidecars go by all of them.
#[must_use]
pub fn explain_rules(
    snapshot: &Snapshot,
    key: &ServiceKey,
    port: &ServicePort,
    request: Option<&Request>,
) -> Option<ExplainedRules> {
    let table = snapshot.import(key)?.routes.as_deref()?;
    let mut statuses = Vec::new();
    for attached in &table.attached {
        let route = &attached.route;
        for status in route.status(snapshot).iter().filter(|status| status.parent.service == *key) {
            let line = |condition| format!("{route}: {condition}");
            statuses.extend(status.conditions.iter().map(line));
        }
    }
    statuses.dedup();
    let Some(routes) = table.at(port) else {
        let kind = table.attached.first()?.route.kind;
        return Some(ExplainedRules { kind, rules: Vec::new(), outcome: None, statuses });
    };
    let mut chosen: Option<String> = None;
    let mut rules = Vec::new();
    for entry in &routes.entries {
        let name = format!("{} {}", entry.route, entry.route.rule_name(entry.rule));
        let does = does(snapshot, port, entry);
        let mismatch = request.map(|request| mismatch(entry, request));
        let why_not = match (mismatch, &chosen) {
            (None, _) => None,
            (Some(Some(mismatch)), _) => Some(mismatch),
            (Some(None), Some(earlier)) => Some(match entry.route.origin {
                Origin::GatewayApi => format!("{earlier} is more specific, or older"),
                Origin::Istio => format!("{earlier} comes first"),
            }),
            (Some(None), None) => None,
        };
        let is_it = request.is_some() && why_not.is_none();
        if is_it {
            chosen = Some(name.clone());
        }
        let matches = match routes.kind {
            RouteKind::Tls => format!("name {}", entry.server_names().join(", ")),
            RouteKind::Tcp => "every connection".to_owned(),
            RouteKind::Grpc | RouteKind::Http => entry.request_match().cloned().unwrap_or_default().to_string(),
        };
        rules.push(ExplainedRule { rule: name, matches, does, chosen: is_it, why_not });
    }
    let outcome = request.map(|_| match rules.iter().find(|rule| rule.chosen) {
        Some(rule) => rule.does.clone(),
        None => "404: no rule matches".to_owned(),
    });
    Some(ExplainedRules { kind: routes.kind, rules, outcome, statuses })
}

fn mismatch(entry: &Entry, request: &Request) -> Option<String> {
    if !entry.route.kind.is_http() {
        return None;
    }
    entry.request_match()?.mismatch(request)
}

/// Redirect or backends, and what happens on the way.
fn does(snapshot: &Snapshot, port: &ServicePort, entry: &Entry) -> String {
    let Some(rule) = entry.rule() else { return String::new() };
    if let Some(redirect) = &rule.filters.redirect {
        return format!("{}: the client is sent elsewhere", redirect.status);
    }
    let total: u64 = entry.weighted().map(|(_, weight)| u64::from(weight)).sum();
    if total == 0 {
        return "500: no backend gets anything".to_owned();
    }
    let backends = entry.weighted().filter(|(_, weight)| *weight > 0).map(|(target, weight)| {
        let percent = u64::from(weight) * 100 / total;
        let place = match target {
            None => "nowhere (500: there is no such ServiceShare, or subset)".to_owned(),
            Some(target) => match target.missing(snapshot, port) {
                Some(missing) => format!("nowhere (500: {missing})"),
                None => format!("{} of {}", part(&target.share), target.service),
            },
        };
        format!("{percent} % to {place}")
    });
    let mut text = backends.collect::<Vec<_>>().join(", ");
    let extras = extras(rule);
    if !extras.is_empty() {
        text.push_str(&format!("; {}", extras.join(", ")));
    }
    text
}

fn part(share: &Share) -> String {
    let labels =
        |subset: &Subset| -> Vec<String> { subset.iter().map(|(key, value)| format!("{key}={value}")).collect() };
    let labels = labels(&share.subset);
    let what = if labels.is_empty() { "all".to_owned() } else { labels.join(",") };
    match &share.cluster {
        None => what,
        Some(ClusterRef::Local) => format!("{what} in this cluster"),
        Some(ClusterRef::Named(name)) => format!("{what} in {name}"),
    }
}

fn extras(rule: &Rule) -> Vec<&'static str> {
    let Rule { filters, timeouts, retry, fault, persistence, .. } = rule;
    let all = [
        (!filters.request.is_empty() || !filters.response.is_empty(), "headers are changed"),
        (filters.rewrite.is_some(), "host or path is changed"),
        (!filters.mirrors.is_empty(), "copies are sent"),
        (timeouts.request.or(timeouts.backend_request).is_some(), "with timeouts"),
        (retry.is_some(), "with retries of its own"),
        (fault.is_some(), "with failures on purpose"),
        (persistence.is_some(), "sessions stay together"),
    ];
    all.into_iter().filter(|(is_so, _)| *is_so).map(|(_, what)| what).collect()
}

//! Values that several objects have.

use std::sync::Arc;
use std::time::Duration;

use eastway_model::rules::MAX_WEIGHT;
use eastway_model::rules::route::{Backend, BackendRef, HeaderEdits, MAX_BACKENDS, ObjectName, Pattern, TextMatch};
use eastway_model::{Label, PortNumber, ServiceKey};
use eastway_registry::diagnostic::Code;
use eastway_registry::value::{DurationError, duration, show_duration};
use eastway_registry::yaml::{At, Context, Field, Keys, NodeId, Text};

use super::super::route::http::header_value;
use super::super::route::parts::{number, port};
use super::{CollectedIstio, fields};

/// Most gateways and namespaces of a list.
const MAX_LISTED: usize = 32;

/// The service that a host is. A name without a dot is a service of the object's own namespace, as in Istio; with the
/// domain of a cluster or of the set of clusters it is the same service, wherever its endpoints are.
pub(super) fn host(text: &At<String>, namespace: &Label, cx: &mut Context<'_>) -> Option<ServiceKey> {
    let name = text.value.trim_end_matches('.');
    if !name.contains('.') && !name.contains('*') {
        return Some(ServiceKey { namespace: namespace.clone(), name: cx.parse(text, Label::parse_service)? });
    }
    let domains = [".svc.cluster.local", ".svc.clusterset.local"];
    let key = domains.into_iter().find_map(|domain| name.strip_suffix(domain)).and_then(|rest| rest.split_once('.'));
    let key = key.and_then(|(name, namespace)| ServiceKey::parse(namespace, name).ok());
    if key.is_none() {
        let message = "is no service of the mesh: write its name, or name.namespace.svc.cluster.local";
        cx.error(text.at, Code::Value, message);
    }
    key
}

/// The services of other namespaces are their own matter.
pub(super) fn own_host(text: &At<String>, object: &ObjectName, cx: &mut Context<'_>) -> Option<ServiceKey> {
    let service = host(text, &object.namespace, cx)?;
    if service.namespace == object.namespace {
        return Some(service);
    }
    let message =
        format!("is a service of another namespace; this object acts on services of its own, {}", object.namespace);
    cx.error(text.at, Code::Value, message);
    None
}

/// `exportTo`: everybody, or nothing is said.
pub(super) fn for_everybody(spec: NodeId, cx: &mut Context<'_>) {
    only(spec, "exportTo", "*", "it counts for all clients of the service; leave exportTo out", cx);
}

/// `gateways`: this is not one.
pub(super) fn in_the_mesh(node: NodeId, cx: &mut Context<'_>) {
    only(
        node,
        "gateways",
        "mesh",
        "rules are for the mesh; leave gateways out, and give a gateway an object of its own",
        cx,
    );
}

fn only(node: NodeId, key: &str, word: &str, else_: &str, cx: &mut Context<'_>) {
    for item in cx.items(node, key, MAX_LISTED) {
        if cx.value::<String>(item).is_some_and(|text| text.value != word) {
            cx.error(item, Code::Value, format!("is not done here: {else_}"));
        }
    }
}

/// `number` under `key`, which is a mapping of its own.
pub(super) fn port_of(node: NodeId, key: &str, cx: &mut Context<'_>) -> Option<PortNumber> {
    let at = cx.child(node, key)?;
    if !cx.keys(at, fields::PORT) {
        return None;
    }
    let field = cx.field(at, "number");
    cx.required(at, "number", &field, "a port");
    port(&field, cx)
}

/// A text to compare with, in one of three ways; `None`: it is wrong, or not there.
pub(super) fn text(node: NodeId, key: &str, cx: &mut Context<'_>) -> Option<(&'static str, At<String>)> {
    let at = cx.child(node, key)?;
    text_at(at, cx)
}

fn text_at(at: NodeId, cx: &mut Context<'_>) -> Option<(&'static str, At<String>)> {
    if !cx.keys(at, fields::TEXT) {
        return None;
    }
    let ways = ["exact", "prefix", "regex"];
    let mut found = ways.into_iter().filter(|way| cx.child(at, way).is_some());
    let (first, second) = (found.next(), found.next());
    drop(found);
    match (first, second) {
        (Some(way), None) => match cx.field::<String>(at, way) {
            Field::Set(text) => Some((way, text)),
            Field::Absent | Field::Invalid => None,
        },
        (None, _) => {
            cx.error(at, Code::Missing, "exact, prefix or regex is required");
            None
        }
        (Some(_), Some(_)) => {
            cx.error(at, Code::Conflict, "exact, prefix and regex exclude each other");
            None
        }
    }
}

/// What a header or a parameter has to be; of an empty mapping: anything.
pub(super) fn value_match(at: NodeId, cx: &mut Context<'_>) -> Option<TextMatch> {
    if cx.is_empty(at) {
        return Pattern::parse(".*").ok().map(TextMatch::Regex);
    }
    let (way, text) = text_at(at, cx)?;
    match way {
        "exact" => cx.parse(&text, header_value).map(TextMatch::Exact),
        "prefix" => cx.parse(&text, Pattern::beginning).map(TextMatch::Regex),
        _ => cx.parse(&text, Pattern::parse).map(TextMatch::Regex),
    }
}

/// A duration as Istio's users write them: ours, and fractions of a unit such as `0.5s`.
pub(super) fn time(node: NodeId, key: &str, least: Duration, most: Duration, cx: &mut Context<'_>) -> Option<Duration> {
    let field: Field<Text> = cx.field(node, key);
    let at = field.get()?;
    let value = cx.parse(at, |text| match duration(text) {
        Err(DurationError::Format) => fraction(text).ok_or(DurationError::Format),
        result => result,
    })?;
    if (least..=most).contains(&value) {
        return Some(value);
    }
    cx.error(at.at, Code::Value, format!("must be {} to {}", show_duration(least), show_duration(most)));
    None
}

fn fraction(text: &str) -> Option<Duration> {
    let split = text.find(|c: char| c.is_ascii_alphabetic())?;
    let (number, unit) = text.split_at(split);
    if !number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return None;
    }
    let seconds = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3_600.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()
}

/// `{value: 12.5}` under `key`, of a million; `None`: it is not there, or wrong.
pub(super) fn per_million(node: NodeId, key: &str, cx: &mut Context<'_>) -> Option<u32> {
    let at = cx.child(node, key)?;
    if !cx.keys(at, fields::PERCENT) {
        return None;
    }
    let field: Field<f64> = cx.field(at, "value");
    let Some(value) = field.get() else { return matches!(field, Field::Absent).then_some(0) };
    if !(0.0..=100.0).contains(&value.value) {
        cx.error(value.at, Code::Value, "must be 0 to 100");
        return None;
    }
    // A part of a second in millionths is the same part of a million, and rounded already.
    Duration::try_from_secs_f64(value.value / 100.0).ok().and_then(|part| u32::try_from(part.as_micros()).ok())
}

/// What a destination leads to.
pub(super) fn destination(
    parent: NodeId,
    key: &str,
    object: &ObjectName,
    collected: &mut CollectedIstio,
    cx: &mut Context<'_>,
) -> Option<BackendRef> {
    let Some(at) = cx.child(parent, key) else {
        cx.error(parent, Code::Missing, format!("{key} is required"));
        return None;
    };
    if !cx.keys(at, fields::DESTINATION) {
        return None;
    }
    let name: Field<String> = cx.field(at, "host");
    let service = cx.required(at, "host", &name, "a service").and_then(|text| host(text, &object.namespace, cx));
    let port = port_of(at, "port", cx);
    let subset: Field<String> = cx.field(at, "subset");
    let service = service?;
    let Some(subset) = subset.get() else { return Some(BackendRef::Service { service, port }) };
    let name: Arc<str> = Arc::from(subset.value.as_str());
    collected.named.push((service.clone(), Arc::clone(&name), cx.place(subset.at)));
    Some(BackendRef::Subset { service, subset: name, port })
}

/// Where to, by weight. One alone gets all; of several, one without a weight gets nothing, as in Istio.
pub(super) fn backends(
    rule: NodeId,
    keys: Keys,
    object: &ObjectName,
    collected: &mut CollectedIstio,
    cx: &mut Context<'_>,
    edits: impl Fn(NodeId, &mut Context<'_>) -> (HeaderEdits, HeaderEdits),
) -> Vec<Backend> {
    let items = cx.items(rule, "route", MAX_BACKENDS);
    let alone = items.len() == 1;
    let mut backends = Vec::new();
    for item in items.iter().copied().filter(|item| cx.keys(*item, keys)).collect::<Vec<_>>() {
        let reference = destination(item, "destination", object, collected, cx);
        let weight = number(&cx.field(item, "weight"), 0, MAX_WEIGHT, cx);
        let weight = if alone { 1 } else { weight.unwrap_or_default() };
        let (request, response) = edits(item, cx);
        backends.extend(reference.map(|reference| Backend { reference, weight, request, response }));
    }
    if !backends.is_empty() && backends.iter().all(|backend| backend.weight == 0) {
        cx.error(rule, Code::Value, "all weights are 0 or left out: nothing could be sent anywhere");
    }
    backends
}

//! VirtualServices: which request or connection to a service goes where, by the first entry that matches.

mod http;

use std::sync::Arc;

use eastway_model::rules::route::{
    HeaderEdits, MAX_HOSTNAMES, MAX_MATCHES, MAX_PARENTS, ObjectName, Origin, Parent, RequestMatch, Route, RouteKind,
    Rule,
};
use eastway_model::{PortNumber, UnixMillis};
use eastway_registry::diagnostic::Code;
use eastway_registry::yaml::{Context, Field, Keys, NodeId};

use super::super::route::parts::{port, server_name};
use super::parts::{backends, for_everybody, in_the_mesh, own_host};
use super::{CollectedIstio, fields};

/// Most entries of `http`, `tls` and `tcp`.
const MAX_ENTRIES: usize = 100;

/// Takes in a VirtualService: a route of each kind that it has entries of.
pub(super) fn take(collected: &mut CollectedIstio, cx: &mut Context<'_>) {
    let Some((name, spec)) = collected.header("VirtualService", cx) else { return };
    if !cx.keys(spec, fields::VIRTUAL_SERVICE) {
        return;
    }
    in_the_mesh(spec, cx);
    for_everybody(spec, cx);
    let parents = parents(spec, &name, cx);
    let mut said = false;
    for (kind, key) in [(RouteKind::Http, "http"), (RouteKind::Tls, "tls"), (RouteKind::Tcp, "tcp")] {
        let mut rules = Vec::new();
        for entry in cx.items(spec, key, MAX_ENTRIES) {
            rules.extend(match kind {
                RouteKind::Grpc | RouteKind::Http => http::rule(entry, &name, collected, cx),
                RouteKind::Tls | RouteKind::Tcp => connections(entry, kind, &name, collected, cx),
            });
        }
        if rules.is_empty() {
            continue;
        }
        said = true;
        let route = Route {
            kind,
            origin: Origin::Istio,
            name: name.clone(),
            // Of a file nobody knows for how long it has said the same: its name decides.
            created: UnixMillis(0),
            parents: parents.clone(),
            server_names: Vec::new(),
            rules,
        };
        collected.routes.insert((kind, name.clone()), (Arc::new(route), cx.place(spec)));
    }
    if !said {
        cx.error(spec, Code::Missing, "http, tls or tcp is required: there is no rule");
    }
}

fn parents(spec: NodeId, name: &ObjectName, cx: &mut Context<'_>) -> Vec<Parent> {
    let mut parents: Vec<Parent> = Vec::new();
    let items = cx.items(spec, "hosts", MAX_PARENTS);
    if items.is_empty() {
        cx.error(spec, Code::Missing, "hosts is required: the services whose traffic this is about");
    }
    for item in items {
        let Some(text) = cx.value::<String>(item) else { continue };
        let Some(service) = own_host(&text, name, cx) else { continue };
        let parent = Parent { service, port: None };
        if parents.contains(&parent) {
            cx.error(item, Code::Duplicate, format!("{} is listed twice", parent.service));
        }
        parents.push(parent);
    }
    parents
}

/// An entry of `tls` or `tcp`.
fn connections(
    entry: NodeId,
    kind: RouteKind,
    name: &ObjectName,
    collected: &mut CollectedIstio,
    cx: &mut Context<'_>,
) -> Option<Rule> {
    if !cx.keys(entry, fields::CONNECTION) {
        return None;
    }
    let keys = if kind == RouteKind::Tls { fields::TLS_MATCH } else { fields::TCP_MATCH };
    let mut matches = Vec::new();
    for item in cx.items(entry, "match", MAX_MATCHES) {
        let Some(port) = port_of_match(item, keys, cx) else { continue };
        let mut server_names = Vec::new();
        for item in cx.items(item, "sniHosts", MAX_HOSTNAMES) {
            let text = cx.value::<String>(item);
            server_names.extend(text.and_then(|text| cx.parse(&text, server_name)));
        }
        if kind == RouteKind::Tls && server_names.is_empty() {
            cx.error(item, Code::Missing, "sniHosts is required: the names that clients ask for");
        }
        matches.push(RequestMatch { port, server_names, ..RequestMatch::default() });
    }
    if kind == RouteKind::Tls && matches.is_empty() {
        cx.error(entry, Code::Missing, "match is required: the names that clients ask for");
    }
    let nothing = |_, _: &mut Context<'_>| (HeaderEdits::default(), HeaderEdits::default());
    let backends = backends(entry, fields::CONNECTION_ROUTE, name, collected, cx, nothing);
    if backends.is_empty() {
        cx.error(entry, Code::Missing, "route is required: connections would have nowhere to go");
    }
    Some(Rule { matches, backends, ..Rule::default() })
}

/// Checks the keys of a match, and gives its port. `None`: it is no mapping.
fn port_of_match(item: NodeId, keys: Keys, cx: &mut Context<'_>) -> Option<Option<PortNumber>> {
    if !cx.keys(item, keys) {
        return None;
    }
    in_the_mesh(item, cx);
    let field: Field<i64> = cx.field(item, "port");
    Some(port(&field, cx))
}

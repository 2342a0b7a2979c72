//! Routes after all checks.

pub(super) mod http;
pub(super) mod parts;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use eastway_model::rules::route::{
    MAX_HOSTNAMES, MAX_PARENTS, MAX_ROUTES, MAX_ROUTES_OF_SERVICE, MAX_RULES, MAX_STEPS_OF_ALL, MAX_STEPS_OF_SERVICE,
    ObjectName, Origin, Parent, Route, RouteBook, RouteKind, Rule, ServiceShare, Share,
};
use eastway_model::{Label, ServiceKey, UnixMillis};
use eastway_registry::diagnostic::{Code, Diagnostic, Diagnostics, quoted};
use eastway_registry::yaml::{Context, Document, Field, List, NodeId, Place};

use super::file::route as file;
use super::istio::CollectedIstio;
use super::policy;
use parts::{Parts, bounded, object_name, port};

/// Group of the API.
const GATEWAY_API: &str = "gateway.networking.k8s.io";
/// Group of imports.
const MULTICLUSTER: &str = "multicluster.x-k8s.io";
/// Our own group.
const EASTWAY: &str = "eastway.dev";

/// The kinds that [`CollectedRoutes::document`] reads.
pub(super) const KINDS: [&str; 5] = ["HTTPRoute", "GRPCRoute", "TCPRoute", "TLSRoute", "ServiceShare"];

/// Routes and shares while their files are read.
#[derive(Clone, Debug, Default)]
pub(super) struct CollectedRoutes {
    routes: BTreeMap<(RouteKind, ObjectName), (Arc<Route>, Place)>,
    shares: BTreeMap<ObjectName, (Arc<ServiceShare>, Place)>,
    /// Shares that backends name, to be found when all files are read.
    named: Vec<(ObjectName, Place)>,
    /// Clusters that shares name, to be compared with the Peers.
    pub(super) clusters: Vec<(Label, Place)>,
}

impl CollectedRoutes {
    pub(super) fn finish(self, istio: CollectedIstio) -> RouteBook {
        let shares = self.shares.into_iter().map(|(name, (share, _))| (name, share)).collect();
        let (translated, subsets) = istio.finish();
        let routes = self.routes.into_values().map(|(route, _)| route).chain(translated).collect();
        RouteBook::new(routes, shares, subsets)
    }

    /// What only shows when all files are read.
    pub(super) fn check(&self, istio: &CollectedIstio, sink: &mut Diagnostics) {
        let mut told = BTreeSet::new();
        for (name, place) in self.named.iter().filter(|(name, _)| !self.shares.contains_key(name)) {
            if told.insert(name) {
                let mut message = format!("there is no ServiceShare {name}");
                let names = self.shares.keys().filter(|known| known.namespace == name.namespace);
                let meant = eastway_registry::diagnostic::did_you_mean(&name.name, names.map(|known| &*known.name));
                if let Some(meant) = meant {
                    message.push_str(&format!(" (did you mean {meant}?)"));
                }
                let report = place.error(Code::Value, message);
                sink.push(
                    report.with_help("a ServiceShare names a cluster or labels of a service; write one beside it"),
                );
            }
        }
        self.bounds(istio, sink);
    }

    /// What only shows of all routes together, and of each file too.
    pub(super) fn bounds(&self, istio: &CollectedIstio, sink: &mut Diagnostics) {
        let routes = self.routes.values().chain(istio.routes());
        let mut of_service: BTreeMap<&ServiceKey, (usize, u32)> = BTreeMap::new();
        let mut of_all = 0_u32;
        for (number, (route, place)) in routes.enumerate() {
            if number == MAX_ROUTES {
                sink.push(place.error(Code::TooLarge, format!("there are more than {MAX_ROUTES} routes")));
            }
            let own = route.steps();
            let had = of_all;
            for parent in &route.parents {
                let (count, steps) = of_service.entry(&parent.service).or_default();
                *count += 1;
                if *count == MAX_ROUTES_OF_SERVICE + 1 {
                    let message = format!("{} has more than {MAX_ROUTES_OF_SERVICE} routes", parent.service);
                    sink.push(place.error(Code::TooLarge, message));
                }
                let before = *steps;
                *steps = steps.saturating_add(own);
                of_all = of_all.saturating_add(own);
                if before <= MAX_STEPS_OF_SERVICE && *steps > MAX_STEPS_OF_SERVICE {
                    let whose = format!("the routes of {}", parent.service);
                    sink.push(too_large(place, &whose, *steps, MAX_STEPS_OF_SERVICE));
                }
            }
            if had <= MAX_STEPS_OF_ALL && of_all > MAX_STEPS_OF_ALL {
                sink.push(too_large(place, "all routes", of_all, MAX_STEPS_OF_ALL));
            }
        }
    }

    /// Takes in a document of one of [`KINDS`].
    pub(super) fn document(&mut self, kind: &str, document: &Arc<Document>, sink: &mut Diagnostics) {
        match kind {
            "HTTPRoute" => {
                let Some(route) = document.decode::<file::HttpRoute>(sink) else { return };
                self.http_route(&route, &mut Context::new(document, sink));
            }
            "GRPCRoute" => {
                let Some(route) = document.decode::<file::GrpcRoute>(sink) else { return };
                self.grpc_route(&route, &mut Context::new(document, sink));
            }
            "TCPRoute" => {
                let Some(route) = document.decode::<file::TcpRoute>(sink) else { return };
                let cx = &mut Context::new(document, sink);
                let header = (&route.api_version, &route.kind, &route.metadata);
                let Some((root, name)) = self.header(RouteKind::Tcp, header, cx) else { return };
                let Some(spec) = cx.required(root, "spec", &route.spec, "parentRefs and rules") else { return };
                let rules = self.connection_rules(spec.at, &spec.value.rules, &name, cx);
                self.take(RouteKind::Tcp, name, (spec.at, &spec.value.parent_refs), Vec::new(), rules, cx);
            }
            "TLSRoute" => {
                let Some(route) = document.decode::<file::TlsRoute>(sink) else { return };
                self.tls_route(&route, &mut Context::new(document, sink));
            }
            _ => {
                let Some(share) = document.decode::<file::ServiceShare>(sink) else { return };
                self.share(&share, &mut Context::new(document, sink));
            }
        }
    }

    fn http_route(&mut self, route: &file::HttpRoute, cx: &mut Context<'_>) {
        let header = (&route.api_version, &route.kind, &route.metadata);
        let Some((root, name)) = self.header(RouteKind::Http, header, cx) else { return };
        let Some(spec) = cx.required(root, "spec", &route.spec, "parentRefs and rules") else { return };
        hostnames_mean_nothing(&spec.value.hostnames, cx);
        let sections = required_rules(spec.at, &spec.value.rules, MAX_RULES, cx);
        let mut parts = Parts { namespace: &name.namespace, named: &mut self.named };
        let rules = sections.iter().map(|section| http::rule(section, &mut parts, cx)).collect();
        self.take(RouteKind::Http, name, (spec.at, &spec.value.parent_refs), Vec::new(), rules, cx);
    }

    fn grpc_route(&mut self, route: &file::GrpcRoute, cx: &mut Context<'_>) {
        let header = (&route.api_version, &route.kind, &route.metadata);
        let Some((root, name)) = self.header(RouteKind::Grpc, header, cx) else { return };
        let Some(spec) = cx.required(root, "spec", &route.spec, "parentRefs and rules") else { return };
        hostnames_mean_nothing(&spec.value.hostnames, cx);
        let sections = required_rules(spec.at, &spec.value.rules, MAX_RULES, cx);
        let mut parts = Parts { namespace: &name.namespace, named: &mut self.named };
        let rules = sections.iter().map(|section| http::grpc_rule(section, &mut parts, cx)).collect();
        self.take(RouteKind::Grpc, name, (spec.at, &spec.value.parent_refs), Vec::new(), rules, cx);
    }

    fn tls_route(&mut self, route: &file::TlsRoute, cx: &mut Context<'_>) {
        let header = (&route.api_version, &route.kind, &route.metadata);
        let Some((root, name)) = self.header(RouteKind::Tls, header, cx) else { return };
        let what = "parentRefs, hostnames and rules";
        let Some(spec) = cx.required(root, "spec", &route.spec, what) else { return };
        let names = &spec.value.hostnames;
        cx.required(spec.at, "hostnames", names, "names that clients ask for");
        let names = bounded(names, MAX_HOSTNAMES, "names", cx);
        let names: Vec<Arc<str>> = names.into_iter().filter_map(|text| cx.parse(text, parts::server_name)).collect();
        let rules = self.connection_rules(spec.at, &spec.value.rules, &name, cx);
        self.take(RouteKind::Tls, name, (spec.at, &spec.value.parent_refs), names, rules, cx);
    }

    fn connection_rules(
        &mut self,
        at: NodeId,
        list: &List<file::TcpRule>,
        name: &ObjectName,
        cx: &mut Context<'_>,
    ) -> Vec<Rule> {
        let sections = required_rules(at, list, 1, cx);
        let mut parts = Parts { namespace: &name.namespace, named: &mut self.named };
        let rule = |section: &eastway_registry::yaml::At<file::TcpRule>| {
            let backends = cx.required(section.at, "backendRefs", &section.value.backend_refs, "where connections go");
            if let Some(empty) = backends.filter(|list| list.value.is_empty()) {
                cx.error(empty.at, Code::Empty, "the list is empty: connections would have nowhere to go");
            }
            let backends = parts.backends(&section.value.backend_refs, cx);
            Rule { name: parts::rule_name(&section.value.name, cx), backends, ..Rule::default() }
        };
        sections.into_iter().map(rule).collect()
    }

    fn share(&mut self, share: &file::ServiceShare, cx: &mut Context<'_>) {
        let root = cx.root();
        cx.header(root, &share.api_version, &share.kind, "ServiceShare");
        let name = object_name(root, &share.metadata, cx);
        let what = "service, and cluster or subset";
        let Some(section) = cx.required(root, "spec", &share.spec, what) else { return };
        let spec = &section.value;
        let service =
            cx.required_parse(section.at, "service", &spec.service, "the name of a service", Label::parse_service);
        let cluster = spec.cluster.get().and_then(|text| policy::cluster_ref(text, &mut self.clusters, cx));
        let subset = Arc::new(policy::subset(&spec.subset, cx));
        let (Some(name), Some(service)) = (name, service) else { return };
        let share = Share { cluster, subset };
        if share.is_whole() && matches!((&spec.cluster, &spec.subset), (Field::Absent, Field::Absent)) {
            let help = "a backend of kind Service is the whole service";
            cx.error_help(section.at, Code::Missing, "cluster or subset is required: this is the whole service", help);
            return;
        }
        let at = parts::name_at(cx);
        if let Some((_, earlier)) = self.shares.get(&name) {
            cx.error(at, Code::Duplicate, format!("ServiceShare {name} is already defined in {earlier}"));
            return;
        }
        let service = ServiceKey { namespace: name.namespace.clone(), name: service };
        self.shares.insert(name.clone(), (Arc::new(ServiceShare { name, service, share }), cx.place(at)));
    }

    /// Checks `apiVersion` and `kind`, and gives root and name.
    fn header(
        &self,
        kind: RouteKind,
        (api_version, kind_text, metadata): (&Field<String>, &Field<String>, &Field<file::RouteMetadata>),
        cx: &mut Context<'_>,
    ) -> Option<(NodeId, ObjectName)> {
        let root = cx.root();
        let versions: &[&str] = match kind {
            RouteKind::Http => &["v1", "v1beta1"],
            RouteKind::Grpc => &["v1", "v1alpha2"],
            RouteKind::Tcp => &["v1", "v1alpha2"],
            RouteKind::Tls => &["v1", "v1alpha3", "v1alpha2"],
        };
        let wanted = format!("{GATEWAY_API}/{}", versions.first()?);
        if let Some(text) = cx.required(root, "apiVersion", api_version, &wanted) {
            let known = text.value.split_once('/').filter(|(group, _)| *group == GATEWAY_API);
            if known.is_none_or(|(_, version)| !versions.contains(&version)) {
                cx.error(text.at, Code::Kind, format!("must be {wanted}, not {}", quoted(&text.value)));
            }
        }
        cx.required(root, "kind", kind_text, kind.as_str());
        let name = object_name(root, metadata, cx)?;
        Some((root, name))
    }

    fn take(
        &mut self,
        kind: RouteKind,
        name: ObjectName,
        (at, parents): (NodeId, &List<file::ParentSection>),
        server_names: Vec<Arc<str>>,
        rules: Vec<Rule>,
        cx: &mut Context<'_>,
    ) {
        let parents = parents_of(at, parents, &name, cx);
        let key = (kind, name.clone());
        let at = parts::name_at(cx);
        if let Some((_, earlier)) = self.routes.get(&key) {
            cx.error(at, Code::Duplicate, format!("{kind} {name} is already defined in {earlier}"));
            return;
        }
        // Of a file nobody knows for how long it has said the same: its name decides among equals.
        let origin = Origin::GatewayApi;
        let route = Route { kind, origin, name, created: UnixMillis(0), parents, server_names, rules };
        self.routes.insert(key, (Arc::new(route), cx.place(at)));
    }
}

/// Every proxy that is told of the services compiles their expressions.
fn too_large(place: &Place, whose: &str, steps: u32, most: u32) -> Diagnostic {
    let message = format!(
        "with this one the regular expressions of {whose} come to {steps} steps, counted repetitions written out; {most} are allowed"
    );
    let help = "write prefixes and exact paths where they say the same, lower counts in { }, or repeat without a bound";
    place.error(Code::TooLarge, message).with_help(help)
}

fn hostnames_mean_nothing(hostnames: &List<String>, cx: &mut Context<'_>) {
    if let Some(list) = hostnames.get().filter(|list| !list.value.is_empty()) {
        let message = "has no effect: a service has its own names; to tell hosts apart match the header Host";
        cx.warn(list.at, Code::Value, message);
    }
}

fn required_rules<'f, T>(
    at: NodeId,
    list: &'f List<T>,
    most: usize,
    cx: &mut Context<'_>,
) -> Vec<&'f eastway_registry::yaml::At<T>> {
    let rules = cx.required(at, "rules", list, "what applies, and where it goes");
    if let Some(empty) = rules.filter(|list| list.value.is_empty()) {
        cx.error(empty.at, Code::Empty, "the list is empty: a route needs a rule");
    }
    bounded(list, most, "rules", cx)
}

/// The parents that are services. Gateways are for others.
fn parents_of(at: NodeId, list: &List<file::ParentSection>, name: &ObjectName, cx: &mut Context<'_>) -> Vec<Parent> {
    let known = cx.required(at, "parentRefs", list, "the services whose traffic this is about");
    let mut parents = Vec::new();
    let mut is_someones = false;
    for section in bounded(list, MAX_PARENTS, "parents", cx) {
        let parent = &section.value;
        let group = parent.group.value().map_or(GATEWAY_API, String::as_str);
        let kind = parent.kind.value().map_or("Gateway", String::as_str);
        if !matches!((group, kind), ("" | "core", "Service") | (MULTICLUSTER, "ServiceImport")) {
            is_someones = true;
            if !matches!((group, kind), (GATEWAY_API, _)) {
                let message = format!("{kind} of group {} is no parent here", quoted(group));
                let help = "a parent is a Service (group: \"\", kind: Service) or a ServiceImport (group: multicluster.x-k8s.io, kind: ServiceImport)";
                cx.error_help(section.at, Code::Value, message, help);
            }
            continue;
        }
        if let Some(named) = parent.section_name.get() {
            cx.error(named.at, Code::Value, "is a part of a gateway; of a service name the port");
        }
        let what = "the service's name";
        let service = cx.required_parse(section.at, "name", &parent.name, what, Label::parse_service);
        let namespace = parent.namespace.get().map_or(Some(name.namespace.clone()), |text| {
            let namespace = cx.parse(text, Label::parse)?;
            if namespace != name.namespace {
                let message = format!("a route acts on services of its own namespace, which is {}", name.namespace);
                cx.error_help(text.at, Code::Value, message, "move the route to the namespace of the service");
            }
            Some(namespace)
        });
        let port = port(&parent.port, cx);
        let (Some(namespace), Some(service)) = (namespace, service) else { continue };
        let parent = Parent { service: ServiceKey { namespace, name: service }, port };
        if parents.contains(&parent) {
            cx.error(section.at, Code::Duplicate, format!("{} is listed twice", parent.service));
        }
        parents.push(parent);
    }
    if let Some(list) = known.filter(|_| parents.is_empty()) {
        let message = if is_someones { "no parent is a service" } else { "the list is empty" };
        let help = "a parent is a Service (group: \"\", kind: Service) or a ServiceImport (group: multicluster.x-k8s.io, kind: ServiceImport)";
        cx.error_help(list.at, Code::Empty, message, help);
    }
    parents
}

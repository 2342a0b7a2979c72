//! All rules for the traffic to one service, in the order in which they are tried.

use std::cmp::Reverse;
use std::sync::Arc;

use super::request::{PathMatch, RequestMatch};
use super::{Origin, Parent, Route, RouteKind, Rule, Share};
use crate::app_protocol::AppProtocol;
use crate::name::ServiceKey;
use crate::service::{PortNumber, ServicePort};

/// What a backend leads to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    /// The service.
    pub service: ServiceKey,
    /// Its port; `None`: the one that was asked for.
    pub port: Option<PortNumber>,
    /// Which part of it.
    pub share: Share,
}

/// What a rule's backends, or its mirrors, lead to, in their order; `None`: there is no such share.
pub type Targets = Arc<[Option<Target>]>;

/// A route, as far as it is about this service.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Attached {
    /// The route.
    pub route: Arc<Route>,
    /// The port that it names; `None`: all.
    pub port: Option<PortNumber>,
}

/// One match of one rule of a route.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// Its route.
    pub route: Arc<Route>,
    /// The port that it is for; `None`: all.
    pub port: Option<PortNumber>,
    /// Which of the route's rules.
    pub rule: usize,
    /// Which of its matches; `None`: it has none.
    pub matching: Option<usize>,
    /// Of the rule's backends.
    pub targets: Targets,
    /// Of its mirrors.
    pub mirrors: Targets,
}

impl Entry {
    /// Its rule.
    #[must_use]
    pub fn rule(&self) -> Option<&Rule> {
        self.route.rules.get(self.rule)
    }

    /// What a request has to be; `None`: anything.
    #[must_use]
    pub fn request_match(&self) -> Option<&RequestMatch> {
        self.rule()?.matches.get(self.matching?)
    }

    /// The names that a TLS client may ask for.
    #[must_use]
    pub fn server_names(&self) -> &[Arc<str>] {
        let own = self.request_match().map(|one| one.server_names.as_slice()).unwrap_or_default();
        if own.is_empty() { &self.route.server_names } else { own }
    }

    /// Whether a gRPC library that reads rules itself can carry it out: which calls it is for, and where they go (gRFC A28).
    fn is_for_libraries(&self) -> bool {
        let plain = Rule::default();
        let does = self.rule().is_none_or(|rule| {
            let Rule { name: _, matches: _, filters, backends, timeouts, retry, fault, persistence } = rule;
            let edits = backends.iter().any(|one| !one.request.is_empty() || !one.response.is_empty());
            let same = (filters, timeouts, retry, fault, persistence)
                == (&plain.filters, &plain.timeouts, &plain.retry, &plain.fault, &plain.persistence);
            same && !edits
        });
        // The library knows neither the host nor binary metadata as headers.
        let seen = |name: &str| name != "host" && !name.ends_with("-bin");
        does && self.request_match().is_none_or(|one| one.headers.iter().all(|header| seen(&header.name)))
    }

    /// Whether everything matches.
    #[must_use]
    pub fn is_any(&self) -> bool {
        self.request_match().is_none_or(RequestMatch::is_any)
    }

    /// Its backends that can be given something: what each leads to, and its weight.
    pub fn weighted(&self) -> impl Iterator<Item = (Option<&Target>, u32)> {
        let backends = self.rule().map(|rule| rule.backends.as_slice()).unwrap_or_default();
        self.targets.iter().zip(backends).map(|(target, backend)| (target.as_ref(), backend.weight))
    }
}

/// The rules that count for one port.
#[derive(Clone, Debug)]
pub struct PortRoutes<'a> {
    /// What they look at.
    pub kind: RouteKind,
    /// In the order in which they are tried.
    pub entries: Vec<&'a Entry>,
}

/// All rules for the traffic to one service.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteTable {
    /// The routes, in no order.
    pub attached: Vec<Attached>,
    /// By kind; of one kind in the order in which they are tried.
    pub(super) entries: Vec<Entry>,
}

impl RouteTable {
    /// `resolve` gives what the backends and the mirrors of each rule of a route lead to.
    pub(super) fn new(attached: Vec<Attached>, resolve: impl Fn(&Rule) -> (Targets, Targets)) -> Self {
        let mut entries = Vec::new();
        for Attached { route, port } in &attached {
            for (index, rule) in route.rules.iter().enumerate() {
                let (targets, mirrors) = resolve(rule);
                let entry = |matching: Option<usize>| Entry {
                    route: Arc::clone(route),
                    port: matching.and_then(|index| rule.matches.get(index)?.port).or(*port),
                    rule: index,
                    matching,
                    targets: Arc::clone(&targets),
                    mirrors: Arc::clone(&mirrors),
                };
                if rule.matches.is_empty() {
                    entries.push(entry(None));
                }
                entries.extend((0..rule.matches.len()).map(|matching| entry(Some(matching))));
            }
        }
        entries.sort_by_cached_key(precedence);
        Self { attached, entries }
    }

    /// The rules for a port, if there are any: those of the most specific kind that is attached to it (GEP-1294,
    /// "Route types"), and of Istio's objects those of the first: two for one service are not mixed there either.
    #[must_use]
    pub fn at(&self, port: &ServicePort) -> Option<PortRoutes<'_>> {
        let protocol = AppProtocol::of(port);
        let here = |entry: &&Entry| entry.port.is_none_or(|number| number == port.number);
        let of_kind = |kind| self.entries.iter().filter(here).filter(move |entry| entry.route.kind == kind);
        let kind =
            RouteKind::ALL.into_iter().find(|kind| kind_fits(*kind, protocol) && of_kind(*kind).next().is_some())?;
        let first = &of_kind(kind).next()?.route;
        let together = |entry: &&Entry| {
            let Route { origin, name, .. } = &*entry.route;
            *origin == first.origin && (origin.is_gateway_api() || *name == first.name)
        };
        Some(PortRoutes { kind, entries: of_kind(kind).filter(together).collect() })
    }

    /// The rules for a port that programs go by whose gRPC library reads rules itself, in their order; `None`: they go by
    /// weights alone. No rule is carried out in part: if one asks for what such a library does not do, none counts.
    #[must_use]
    pub fn for_libraries(&self, port: &ServicePort) -> Option<Vec<&Entry>> {
        let routes =
            self.at(port).filter(|routes| routes.kind.is_http() && AppProtocol::of(port) == AppProtocol::Http2)?;
        routes.entries.iter().all(|entry| entry.is_for_libraries()).then_some(routes.entries)
    }

    /// The rule whose weights are for those who have no sidecar too: it applies to everything that comes to `port`, and
    /// shares out the service itself.
    #[must_use]
    pub fn for_addresses(&self, service: &ServiceKey, port: &ServicePort) -> Option<&Entry> {
        let routes = self.at(port).filter(|routes| routes.kind != RouteKind::Tls)?;
        let entry = routes.entries.into_iter().find(|entry| entry.is_any())?;
        let own = |target: &Target| target.service == *service && target.port.is_none_or(|to| to == port.number);
        let all_own = entry.targets.iter().all(|target| target.as_ref().is_some_and(own));
        (all_own && entry.weighted().any(|(_, weight)| weight > 0)).then_some(entry)
    }
}

/// Whether a route of this kind can be about a port that speaks this.
pub(super) fn kind_fits(kind: RouteKind, protocol: AppProtocol) -> bool {
    match kind {
        RouteKind::Grpc => protocol == AppProtocol::Http2,
        RouteKind::Http => protocol.is_http(),
        RouteKind::Tls => protocol == AppProtocol::Tcp,
        RouteKind::Tcp => true,
    }
}

/// What comes first is smaller. Gateway API v1, `HTTPRouteRule.matches` and `GRPCRouteRule.matches`; what the
/// specification leaves open is the place of regular expressions: after exact paths, the longest first, since they say
/// more than the prefix that they would otherwise hide behind.
///
/// Istio's come in the order of their list, whatever they say.
type Precedence = (RouteKind, Origin, Specificity, Age, (usize, usize));
/// Kind of the path match, its length, whether the method is given, and how many headers and parameters are.
type Specificity = (u8, Reverse<usize>, Reverse<usize>, Reverse<bool>, Reverse<usize>, Reverse<usize>);
/// The oldest first, then by name.
type Age = (crate::time::UnixMillis, String);

fn precedence(entry: &Entry) -> Precedence {
    let any = RequestMatch::default();
    let origin = entry.route.origin;
    let wanted = entry.request_match().filter(|_| origin.is_gateway_api()).unwrap_or(&any);
    let (class, first, second) = match &wanted.path {
        Some(PathMatch::Exact(path)) => (0, path.len(), 0),
        Some(PathMatch::Regex(pattern)) => (1, pattern.as_str().len(), 0),
        Some(PathMatch::Prefix(prefix) | PathMatch::Start(prefix)) => (2, prefix.len(), 0),
        Some(PathMatch::Grpc(method)) => {
            let length = |part: &Option<super::TextMatch>| part.as_ref().map_or(0, |part| part.as_str().len());
            (2, length(&method.service), length(&method.method))
        }
        // As the prefix /, which is what a match without a path means.
        None => (2, usize::from(entry.route.kind == RouteKind::Http), 0),
    };
    let specificity = (
        class,
        Reverse(first),
        Reverse(second),
        Reverse(wanted.method.is_some()),
        Reverse(wanted.headers.len()),
        Reverse(wanted.query.len()),
    );
    let age = (entry.route.created, entry.route.name.to_string());
    (entry.route.kind, origin, specificity, age, (entry.rule, entry.matching.unwrap_or_default()))
}

impl Attached {
    pub(super) fn new(route: &Arc<Route>, parent: &Parent) -> Self {
        Self { route: Arc::clone(route), port: parent.port }
    }
}

//! What became of a route, for each service that it is about, in the words of the specification.

use std::fmt;

use super::table::{Entry, Target, kind_fits};
use super::{BackendRef, Parent, Route, RouteBook, RouteKind, Rule};
use crate::app_protocol::AppProtocol;
use crate::import::Import;
use crate::service::{Protocol, ServiceKind, ServicePort};
use crate::store::Snapshot;

/// One statement.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What about.
    #[serde(rename = "type")]
    pub kind: ConditionKind,
    /// Whether it holds.
    pub status: bool,
    /// Why, in one word.
    pub reason: Reason,
    /// Why, for people.
    pub message: String,
}

/// What a condition is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub enum ConditionKind {
    /// The route is carried out (Gateway API).
    Accepted,
    /// All that it refers to is there (Gateway API).
    ResolvedRefs,
    /// Who is subject to it; ours.
    AppliesTo,
}

/// Why, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub enum Reason {
    /// It is carried out.
    Accepted,
    /// No service is what the parent says.
    NoMatchingParent,
    /// Another kind of route, or an older route, has the port.
    Conflicted,
    /// It asks for something that is not done here.
    UnsupportedValue,
    /// All is there.
    ResolvedRefs,
    /// A backend is not there.
    BackendNotFound,
    /// Only who has a sidecar is subject to it.
    SidecarsOnly,
    /// Connections to the virtual address are subject to its weights.
    SidecarsAndAddresses,
}

/// What became of a route at one of its parents.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ParentStatus {
    /// The parent.
    pub parent: Parent,
    /// Accepted first; the others only of an accepted route.
    pub conditions: Vec<Condition>,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// As it is written in Kubernetes, but for ours, which say who.
impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, status, reason, message } = self;
        let who = match reason {
            Reason::SidecarsOnly => Some("sidecars-only"),
            Reason::SidecarsAndAddresses => Some("sidecars and virtual addresses"),
            Reason::Accepted
            | Reason::NoMatchingParent
            | Reason::Conflicted
            | Reason::UnsupportedValue
            | Reason::ResolvedRefs
            | Reason::BackendNotFound => None,
        };
        match who {
            Some(who) => write!(f, "{kind:?}: {who} ({message})"),
            None => write!(f, "{kind:?}: {} {reason} ({message})", if *status { "True" } else { "False" }),
        }
    }
}

impl Route {
    /// What became of it.
    #[must_use]
    pub fn status(&self, snapshot: &Snapshot) -> Vec<ParentStatus> {
        self.status_in(&snapshot.rules().routes, snapshot)
    }

    /// What becomes of it as one of the routes of `book`.
    #[must_use]
    pub fn status_in(&self, book: &RouteBook, snapshot: &Snapshot) -> Vec<ParentStatus> {
        let status = |parent: &Parent| ParentStatus {
            parent: parent.clone(),
            conditions: match self.accepted(parent, book, snapshot) {
                Err((reason, message)) => {
                    vec![Condition { kind: ConditionKind::Accepted, status: false, reason, message }]
                }
                Ok((import, ports)) => self.of_accepted(import, &ports, book, snapshot),
            },
        };
        self.parents.iter().map(status).collect()
    }

    /// The ports at which it counts.
    fn accepted<'s>(
        &self,
        parent: &Parent,
        book: &RouteBook,
        snapshot: &'s Snapshot,
    ) -> Result<(&'s Import, Vec<&'s ServicePort>), (Reason, String)> {
        let Parent { service, port: wanted } = parent;
        if service.namespace != self.name.namespace {
            let message = "a route acts on services of its own namespace; routes of clients' namespaces are not done";
            return Err((Reason::UnsupportedValue, message.to_owned()));
        }
        let none = |message: String| Err((Reason::NoMatchingParent, message));
        let Some(import) = snapshot.import(service) else {
            return none(format!("no cluster exports {service}"));
        };
        if import.kind == ServiceKind::Headless {
            return none(format!("{service} is headless: it has no address that rules could be for"));
        }
        let is_meant =
            |port: &&ServicePort| port.protocol == Protocol::Tcp && wanted.is_none_or(|wanted| wanted == port.number);
        let ports: Vec<&ServicePort> = import.ports.iter().filter(is_meant).collect();
        let (Some(first), table) = (ports.first(), book.table(service)) else {
            return none(match wanted {
                Some(wanted) => format!("{service} has no TCP port {wanted}"),
                None => format!("{service} has no TCP port"),
            });
        };
        let fitting: Vec<&ServicePort> =
            ports.iter().copied().filter(|port| kind_fits(self.kind, AppProtocol::of(port))).collect();
        if fitting.is_empty() {
            let needs = match self.kind {
                RouteKind::Grpc => "speaks gRPC: appProtocol grpc or kubernetes.io/h2c",
                RouteKind::Http => "speaks HTTP: appProtocol http or kubernetes.io/h2c",
                RouteKind::Tls | RouteKind::Tcp => "carries bytes: an appProtocol other than HTTP's, or none",
            };
            return none(format!("port {} of {service} would need to be one that {needs}", first.number));
        }
        let mut rival = String::new();
        let counts = |port: &&ServicePort| {
            let Some(routes) = table.and_then(|table| table.at(port)) else { return false };
            let mut entries = routes.entries.iter();
            // Of TCPRoutes one counts; requests and server names tell the rules of others apart.
            let entry = match routes.kind {
                RouteKind::Tcp => entries.next().filter(|entry| self.is(entry)),
                RouteKind::Grpc | RouteKind::Http | RouteKind::Tls => entries.find(|entry| self.is(entry)),
            };
            if let (None, Some(other)) = (entry, routes.entries.first()) {
                rival = other.route.to_string();
            }
            entry.is_some()
        };
        let counting: Vec<&ServicePort> = fitting.into_iter().filter(counts).collect();
        if counting.is_empty() {
            Err((Reason::Conflicted, format!("{rival} has the port")))
        } else {
            Ok((import, counting))
        }
    }

    fn of_accepted(
        &self,
        import: &Import,
        ports: &[&ServicePort],
        book: &RouteBook,
        snapshot: &Snapshot,
    ) -> Vec<Condition> {
        let numbers: Vec<String> = ports.iter().map(|port| port.number.to_string()).collect();
        let of_ports = format!("{} {}", if ports.len() == 1 { "port" } else { "ports" }, numbers.join(", "));
        let accepted =
            Condition { kind: ConditionKind::Accepted, status: true, reason: Reason::Accepted, message: of_ports };
        vec![accepted, self.resolved(import, ports, book, snapshot), self.applies_to(import, ports, book)]
    }

    fn resolved(&self, import: &Import, ports: &[&ServicePort], book: &RouteBook, snapshot: &Snapshot) -> Condition {
        let table = book.table(&import.key);
        let entries = ports.iter().filter_map(|port| table?.at(port).map(|routes| (*port, routes)));
        let problem = entries.flat_map(|(port, routes)| routes.entries.into_iter().map(move |entry| (port, entry)));
        let problem = problem.filter(|(_, entry)| self.is(entry)).find_map(|(port, entry)| {
            let rule = entry.rule()?;
            let backends = rule.backends.iter().map(|backend| &backend.reference).zip(entry.targets.iter());
            let mirrors = rule.filters.mirrors.iter().map(|mirror| &mirror.backend).zip(entry.mirrors.iter());
            backends.chain(mirrors).find_map(|(reference, target)| {
                let missing = match target {
                    None if matches!(reference, BackendRef::Subset { .. }) => {
                        Some("no DestinationRule of the service has it".to_owned())
                    }
                    None => Some("there is no such object".to_owned()),
                    Some(target) => target.missing(snapshot, port),
                };
                missing.map(|missing| format!("{reference}: {missing}"))
            })
        });
        let (status, reason, message) = match problem {
            Some(problem) => (false, Reason::BackendNotFound, problem),
            None => (true, Reason::ResolvedRefs, "all backends are there".to_owned()),
        };
        Condition { kind: ConditionKind::ResolvedRefs, status, reason, message }
    }

    fn applies_to(&self, import: &Import, ports: &[&ServicePort], book: &RouteBook) -> Condition {
        let table = book.table(&import.key);
        let split = import.policy.as_ref().filter(|policy| !policy.split.is_empty());
        let everywhere = ports.iter().find_map(|port| {
            table?.for_addresses(&import.key, port).filter(|entry| self.is(entry)).map(|entry| entry.rule)
        });
        let why =
            self.rules.iter().enumerate().find_map(|(index, rule)| Some((index, rule.needs_requests(self.kind)?)));
        let named = |index: usize| self.rule_name(index);
        let (reason, mut message) = match (everywhere, split, why) {
            (Some(index), Some(policy), _) => (
                Reason::SidecarsOnly,
                format!(
                    "{} is for everybody, but TrafficPolicy {}/{} has a split, which counts for virtual addresses",
                    named(index),
                    import.key.namespace,
                    policy.name
                ),
            ),
            (Some(index), None, Some((other, what))) => (
                Reason::SidecarsAndAddresses,
                format!(
                    "{} {what}, which only sidecars do; the weights of {} count for all",
                    named(other),
                    named(index)
                ),
            ),
            (Some(_), None, None) => (Reason::SidecarsAndAddresses, "its weights count for all".to_owned()),
            (None, _, Some((other, what))) => (Reason::SidecarsOnly, format!("{} {what}", named(other))),
            (None, _, None) => (Reason::SidecarsOnly, "it leads to other services".to_owned()),
        };
        if ports.iter().any(|port| table.is_some_and(|table| table.for_libraries(port).is_some())) {
            message.push_str("; gRPC libraries go by all of its rules");
        }
        Condition { kind: ConditionKind::AppliesTo, status: true, reason, message }
    }

    fn is(&self, entry: &Entry) -> bool {
        let Self { kind, origin, name, .. } = &*entry.route;
        (*kind, *origin, name) == (self.kind, self.origin, &self.name)
    }
}

impl Rule {
    /// What of it only somebody can do who sees requests, or the name that TLS asks for.
    fn needs_requests(&self, kind: RouteKind) -> Option<&'static str> {
        let Self { matches, filters, timeouts, retry, fault, persistence, backends, .. } = self;
        let edits = backends.iter().any(|backend| !backend.request.is_empty() || !backend.response.is_empty());
        let wants = [
            (kind == RouteKind::Tls, "looks at the server's name"),
            (matches.iter().any(|one| !one.is_any()), "looks at requests"),
            (filters.redirect.is_some(), "redirects"),
            (filters.rewrite.is_some(), "changes requests"),
            (!filters.request.is_empty() || !filters.response.is_empty() || edits, "changes headers"),
            (!filters.mirrors.is_empty(), "copies requests"),
            (timeouts.request.or(timeouts.backend_request).is_some(), "has timeouts"),
            (retry.is_some(), "has retries"),
            (fault.is_some(), "makes failures"),
            (persistence.is_some(), "has sessions"),
        ];
        wants.into_iter().find(|(wants, _)| *wants).map(|(_, what)| what)
    }
}

impl Target {
    /// Why nothing can be sent to it by a request for `port`; `None`: it is there.
    #[must_use]
    pub fn missing(&self, snapshot: &Snapshot, port: &ServicePort) -> Option<String> {
        let number = self.port.unwrap_or(port.number);
        let Some(import) = snapshot.import(&self.service) else {
            let local = snapshot.local(&self.service).is_some();
            let hint = if local { ": it exists in this cluster, but is not exported" } else { "" };
            return Some(format!("no cluster exports {}{hint}", self.service));
        };
        if import.kind == ServiceKind::Headless {
            return Some(format!("{} is headless", self.service));
        }
        import.port(Protocol::Tcp, number).is_none().then(|| format!("{} has no TCP port {number}", self.service))
    }
}

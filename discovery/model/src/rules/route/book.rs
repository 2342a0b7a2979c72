//! All routes of a cluster, by the services that they are about.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::table::{Attached, RouteTable, Target, Targets};
use super::{BackendRef, ObjectName, Route, Rule, ServiceShare, Share};
use crate::endpoint::Subset;
use crate::name::ServiceKey;
use crate::service::PortNumber;

/// A part of a service that some rule leads to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Wanted {
    /// The port; `None`: any that the rule's parent has too.
    pub port: Option<PortNumber>,
    /// Which part.
    pub share: Share,
}

/// Labels by service and the names that DestinationRules give them.
pub type Subsets = BTreeMap<ServiceKey, BTreeMap<Arc<str>, Arc<Subset>>>;

/// All routes, and what follows from them. Computed once for a configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteBook {
    routes: Vec<Arc<Route>>,
    shares: BTreeMap<ObjectName, Arc<ServiceShare>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    subsets: Subsets,
    #[serde(skip)]
    tables: BTreeMap<ServiceKey, Arc<RouteTable>>,
    /// Parts that rules of any service lead to.
    #[serde(skip)]
    wanted: BTreeMap<ServiceKey, Arc<BTreeSet<Wanted>>>,
    /// Services whose rules lead to a service.
    #[serde(skip)]
    referrers: BTreeMap<ServiceKey, BTreeSet<ServiceKey>>,
}

impl RouteBook {
    /// The book of these routes and shares. A route is for services of its own namespace; as far as it is for others it
    /// says so in its status and does nothing.
    #[must_use]
    pub fn new(routes: Vec<Arc<Route>>, shares: BTreeMap<ObjectName, Arc<ServiceShare>>, subsets: Subsets) -> Self {
        let mut attached: BTreeMap<ServiceKey, Vec<Attached>> = BTreeMap::new();
        for route in &routes {
            for parent in route.parents.iter().filter(|parent| parent.service.namespace == route.name.namespace) {
                attached.entry(parent.service.clone()).or_default().push(Attached::new(route, parent));
            }
        }
        let mut book = Self { routes, shares, subsets, ..Self::default() };
        let tables: BTreeMap<_, _> = attached
            .into_iter()
            .map(|(key, attached)| (key, Arc::new(RouteTable::new(attached, |rule| book.resolve(rule)))))
            .collect();
        let mut wanted: BTreeMap<ServiceKey, BTreeSet<Wanted>> = BTreeMap::new();
        for (parent, table) in &tables {
            for entry in &table.entries {
                for target in entry.targets.iter().chain(&*entry.mirrors).flatten() {
                    book.referrers.entry(target.service.clone()).or_default().insert(parent.clone());
                    if !target.share.is_whole() {
                        let one = Wanted { port: target.port, share: target.share.clone() };
                        wanted.entry(target.service.clone()).or_default().insert(one);
                    }
                }
            }
        }
        book.wanted = wanted.into_iter().map(|(key, wanted)| (key, Arc::new(wanted))).collect();
        book.tables = tables;
        book
    }

    /// All routes.
    #[must_use]
    pub fn routes(&self) -> &[Arc<Route>] {
        &self.routes
    }

    /// All shares.
    pub fn shares(&self) -> impl Iterator<Item = &Arc<ServiceShare>> {
        self.shares.values()
    }

    /// The rules for the traffic to a service, if there are any.
    #[must_use]
    pub fn table(&self, service: &ServiceKey) -> Option<&Arc<RouteTable>> {
        self.tables.get(service)
    }

    /// The parts of a service that rules lead to, if there are any.
    #[must_use]
    pub fn wanted(&self, service: &ServiceKey) -> Option<&Arc<BTreeSet<Wanted>>> {
        self.wanted.get(service)
    }

    /// The services whose rules lead to `service`.
    pub fn referrers(&self, service: &ServiceKey) -> impl Iterator<Item = &ServiceKey> {
        self.referrers.get(service).into_iter().flatten()
    }

    /// The services of which rules, or parts that rules lead to, differ between two books.
    #[must_use]
    pub fn differences(&self, other: &Self) -> BTreeSet<ServiceKey> {
        let mut found = BTreeSet::new();
        for key in self.tables.keys().chain(other.tables.keys()) {
            if self.table(key) != other.table(key) {
                found.insert(key.clone());
            }
        }
        for key in self.wanted.keys().chain(other.wanted.keys()) {
            if self.wanted(key) != other.wanted(key) {
                found.insert(key.clone());
            }
        }
        found
    }

    /// What a backend leads to; `None`: there is no such share.
    #[must_use]
    pub fn target(&self, reference: &BackendRef) -> Option<Target> {
        match reference {
            BackendRef::Service { service, port } => {
                Some(Target { service: service.clone(), port: *port, share: Share::whole() })
            }
            BackendRef::Share { object, port } => {
                let known = self.shares.get(object)?;
                Some(Target { service: known.service.clone(), port: *port, share: known.share.clone() })
            }
            BackendRef::Subset { service, subset, port } => {
                let share = Share { cluster: None, subset: Arc::clone(self.subset(service, subset)?) };
                Some(Target { service: service.clone(), port: *port, share })
            }
        }
    }

    /// The labels that a DestinationRule of `service` calls `name`.
    #[must_use]
    pub fn subset(&self, service: &ServiceKey, name: &str) -> Option<&Arc<Subset>> {
        self.subsets.get(service)?.get(name)
    }

    fn resolve(&self, rule: &Rule) -> (Targets, Targets) {
        let targets = rule.backends.iter().map(|backend| self.target(&backend.reference)).collect();
        let mirrors = rule.filters.mirrors.iter().map(|mirror| self.target(&mirror.backend)).collect();
        (targets, mirrors)
    }
}

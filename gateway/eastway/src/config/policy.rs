//! Policies after all checks.

pub(super) mod sidecars;
mod visibility;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use eastway_model::rules::route::Origin;
use eastway_model::rules::{
    AccessPolicy, AccessRule, ClusterRef, Locality, MAX_WEIGHT, Match, RouteBook, ServicePattern, Split, TrafficPolicy,
    TrafficPolicyError, Visibility,
};
use eastway_model::{Label, ServiceKey, Subset};
use eastway_registry::diagnostic::{Code, Diagnostics, quoted};
use eastway_registry::yaml::{At, Context, Document, Field, List, NodeId, Place};

use super::file::{self, AccessAllow, LocalityWord, PolicyMetadata, SplitSection};
use super::istio::{self, CollectedIstio};
use super::route::{self, CollectedRoutes};

/// Most label pairs of a subset.
const MAX_LABELS: usize = 16;
/// Most bytes of a subset in a stream's header, whose other fields leave this much of its 1,024, and
/// what a pair costs beside its texts.
const MAX_SUBSET_BYTES: usize = 256;
const PAIR_OVERHEAD: usize = 8;

/// What a file of the folder may be.
const KINDS: &str = "TrafficPolicy, AccessPolicy, Visibility, HTTPRoute, GRPCRoute, TCPRoute, TLSRoute, ServiceShare, VirtualService or DestinationRule";

/// What an API server adds to an object, and `kubectl get -o yaml` prints. Nobody wrote it, and it says nothing here.
const OF_SERVER: [&[&str]; 6] = [
    &["status"],
    &["metadata", "uid"],
    &["metadata", "resourceVersion"],
    &["metadata", "creationTimestamp"],
    &["metadata", "generation"],
    &["metadata", "managedFields"],
];

/// All policies of a folder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policies {
    /// By service; one each.
    pub traffic: BTreeMap<ServiceKey, Arc<TrafficPolicy>>,
    /// Routes of the Gateway API.
    pub routes: Arc<RouteBook>,
    /// In the order of namespace and name.
    pub access: Vec<Arc<AccessPolicy>>,
    /// What workloads are told of.
    pub visibility: Arc<Visibility>,
}

/// Whose services a policy may be about. Who may write objects in one namespace has no say in others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// Those of its own namespace.
    Own,
    /// Those of any.
    Any,
}

/// Policies while their files are read.
#[derive(Clone, Debug, Default)]
pub(super) struct Collected {
    traffic: BTreeMap<ServiceKey, (Arc<TrafficPolicy>, Place)>,
    access: BTreeMap<(Label, Label), (Arc<AccessPolicy>, Place)>,
    traffic_names: BTreeMap<(Label, Label), Place>,
    visibility: BTreeMap<(Label, Label), (Vec<ServicePattern>, Place)>,
    /// Clusters that policies name, to be compared with the Peers.
    pub(super) clusters: Vec<(Label, Place)>,
    pub(super) routes: CollectedRoutes,
    pub(super) istio: CollectedIstio,
}

impl Collected {
    pub(super) fn finish(self) -> Policies {
        Policies {
            traffic: self.traffic.into_iter().map(|(key, (policy, _))| (key, policy)).collect(),
            routes: Arc::new(self.routes.finish(self.istio)),
            access: self.access.into_values().map(|(policy, _)| policy).collect(),
            visibility: Arc::new(visibility::by_namespace(self.visibility)),
        }
    }

    /// Takes in one document of a file in the policies folder.
    pub(super) fn document(&mut self, mut document: Arc<Document>, reach: Reach, sink: &mut Diagnostics) {
        // Nobody else has it yet.
        if let Some(document) = Arc::get_mut(&mut document) {
            OF_SERVER.iter().for_each(|keys| document.remove(keys));
        }
        let document = &document;
        let kind = document.text(&["kind"]).unwrap_or_default();
        match kind {
            "TrafficPolicy" => {
                if let Some(policy) = document.decode::<file::TrafficPolicy>(sink) {
                    self.traffic_policy(&policy, &mut Context::new(document, sink));
                }
            }
            "AccessPolicy" => {
                if let Some(policy) = document.decode::<file::AccessPolicy>(sink) {
                    self.access_policy(&policy, reach, &mut Context::new(document, sink));
                }
            }
            "Visibility" => {
                if let Some(policy) = document.decode::<file::Visibility>(sink) {
                    self.visibility(&policy, &mut Context::new(document, sink));
                }
            }
            _ if istio::KINDS.contains(&kind) => {
                let mut cx = Context::new(document, sink);
                if let Some(policy) = self.istio.document(kind, &mut cx) {
                    self.service_policy(policy, &mut cx);
                }
            }
            _ if route::KINDS.contains(&kind) => self.routes.document(kind, document, sink),
            _ => {
                let mut cx = Context::new(document, sink);
                let root = cx.root();
                match document.child(root, "kind") {
                    Some(at) => {
                        let message = format!("must be {KINDS}, not {}", quoted(kind));
                        cx.error(at, Code::Kind, message);
                    }
                    None => cx.error(root, Code::Missing, format!("kind is required ({KINDS})")),
                }
            }
        }
    }

    /// What a DestinationRule says of a service, as the TrafficPolicy that would say it.
    fn service_policy(&mut self, policy: istio::ServicePolicy, cx: &mut Context<'_>) {
        let istio::ServicePolicy { name, service, sidecars, at } = policy;
        if let Some((_, earlier)) = self.traffic.get(&service) {
            let message = format!("{service} already has a policy in {earlier}; move what trafficPolicy says there");
            cx.error(at, Code::Duplicate, message);
            return;
        }
        // It breaks no rule: it has neither splits nor a failover order.
        if let Ok(policy) = TrafficPolicy::new(&name, service.clone(), Vec::new(), Vec::new(), None) {
            let policy = TrafficPolicy { origin: Origin::Istio, ..policy.with_sidecars(sidecars) };
            self.traffic.insert(service, (Arc::new(policy), cx.place(at)));
        }
    }

    fn traffic_policy(&mut self, policy: &file::TrafficPolicy, cx: &mut Context<'_>) {
        let root = cx.root();
        cx.header(root, &policy.api_version, &policy.kind, "TrafficPolicy");
        let names = metadata(root, &policy.metadata, cx);
        let Some(section) = cx.required(root, "spec", &policy.spec, "at least spec.service") else { return };
        let spec = &section.value;
        let service = cx.required(section.at, "service", &spec.service, "the name of a service");
        let service = service.and_then(|text| Some(At { value: cx.parse(text, Label::parse_service)?, at: text.at }));
        let split: Vec<Split> = spec.split.items().filter_map(|section| self.split(section, cx)).collect();
        let failover: Vec<ClusterRef> =
            spec.failover.items().filter_map(|text| cluster_ref(text, &mut self.clusters, cx)).collect();
        let locality = spec.locality.value().map(|word| match word {
            LocalityWord::PreferLocal => Locality::PreferLocal,
            LocalityWord::Any => Locality::Any,
        });
        let sidecars = sidecars::sidecars(spec, cx);
        let (Some((namespace, name)), Some(service)) = (names, service) else { return };
        let place = cx.place(service.at);
        if let Some(earlier) = self.traffic_names.get(&(namespace.clone(), name.clone())) {
            let message = format!("TrafficPolicy {namespace}/{name} is already defined in {earlier}");
            cx.error(service.at, Code::Duplicate, message);
            return;
        }
        self.traffic_names.insert((namespace.clone(), name.clone()), place.clone());
        let key = ServiceKey { namespace, name: service.value };
        if let Some((_, earlier)) = self.traffic.get(&key) {
            cx.error(service.at, Code::Duplicate, format!("{key} already has a policy in {earlier}; merge the two"));
            return;
        }
        match TrafficPolicy::new(name.as_str(), key.clone(), split, failover, locality) {
            Ok(policy) => {
                self.traffic.insert(key, (Arc::new(policy.with_sidecars(sidecars)), place));
            }
            Err(error) => cx.error(at_of(&error, spec, section.at), Code::Value, error.to_string()),
        }
    }

    fn split(&mut self, section: &At<SplitSection>, cx: &mut Context<'_>) -> Option<Split> {
        let split = &section.value;
        let weight = cx.required(section.at, "weight", &split.weight, "a share, e.g. 50").and_then(|weight| {
            let number = u32::try_from(weight.value).ok().filter(|number| *number <= MAX_WEIGHT);
            if number.is_none() {
                cx.error(weight.at, Code::Value, format!("must be 0 to {MAX_WEIGHT}"));
            }
            number
        });
        let cluster = split.cluster.get().and_then(|text| cluster_ref(text, &mut self.clusters, cx));
        Some(Split { weight: weight?, cluster, subset: Arc::new(subset(&split.subset, cx)) })
    }

    fn access_policy(&mut self, policy: &file::AccessPolicy, reach: Reach, cx: &mut Context<'_>) {
        let root = cx.root();
        cx.header(root, &policy.api_version, &policy.kind, "AccessPolicy");
        let names = metadata(root, &policy.metadata, cx);
        let what = "spec.services and spec.allow";
        let Some(section) = cx.required(root, "spec", &policy.spec, what) else { return };
        let spec = &section.value;
        let namespaces = match spec.namespaces {
            Field::Absent => Vec::new(),
            Field::Invalid | Field::Set(_) => matches(section.at, "namespaces", &spec.namespaces, cx),
        };
        if let (Some(named), Reach::Own) = (spec.namespaces.get(), reach) {
            let message = "this object is about its own namespace alone; leave namespaces out, or create it in the namespace of Eastway itself";
            cx.error(named.at, Code::Value, message);
        }
        let services = matches(section.at, "services", &spec.services, cx);
        let what = "who may connect; [] for nobody";
        let allow = cx.required(section.at, "allow", &spec.allow, what);
        if let Some(empty) = allow.filter(|list| list.value.is_empty()) {
            cx.warn(empty.at, Code::Empty, "the list is empty: this policy allows nobody");
        }
        let allow: Vec<AccessRule> = spec.allow.items().filter_map(|section| self.access_rule(section, cx)).collect();
        let Some((namespace, name)) = names else { return };
        let key = (namespace.clone(), name.clone());
        if let Some((_, earlier)) = self.access.get(&key) {
            let message = format!("AccessPolicy {namespace}/{name} is already defined in {earlier}");
            cx.error(section.at, Code::Duplicate, message);
            return;
        }
        let dry_run = spec.dry_run.value().copied().unwrap_or(false);
        let policy = AccessPolicy { name: name.as_str().into(), namespace, namespaces, services, dry_run, allow };
        self.access.insert(key, (Arc::new(policy), cx.place(section.at)));
    }

    fn access_rule(&mut self, section: &At<AccessAllow>, cx: &mut Context<'_>) -> Option<AccessRule> {
        let rule = &section.value;
        let cluster = cx.required(section.at, "cluster", &rule.cluster, "a cluster's name, or \"*\" for every peer");
        let cluster = cluster.and_then(|text| {
            let found = cx.parse(text, exact_or_any)?;
            if let Match::Exact(name) = &found {
                self.clusters.push((name.clone(), cx.place(text.at)));
            }
            Some(found)
        });
        let namespace = rule.namespace.get().map_or(Some(Match::Any), |text| cx.parse(text, exact_or_any));
        let service_accounts = match rule.service_accounts {
            Field::Absent => vec![Match::Any],
            Field::Invalid | Field::Set(_) => matches(section.at, "serviceAccounts", &rule.service_accounts, cx),
        };
        Some(AccessRule { cluster: cluster?, namespace: namespace?, service_accounts })
    }
}

fn metadata(root: NodeId, field: &Field<PolicyMetadata>, cx: &mut Context<'_>) -> Option<(Label, Label)> {
    let metadata = cx.required(root, "metadata", field, "name and namespace of the policy")?;
    let (at, metadata) = (metadata.at, &metadata.value);
    let name = cx.required_parse(at, "name", &metadata.name, "a name of your choice", Label::parse);
    let what = "the namespace of the services";
    let namespace = cx.required_parse(at, "namespace", &metadata.namespace, what, Label::parse);
    Some((namespace?, name?))
}

/// A list of exact names or `*`; empty is an error.
fn matches(parent: NodeId, key: &str, list: &List<String>, cx: &mut Context<'_>) -> Vec<Match> {
    let Some(found) = cx.required(parent, key, list, "names, or [\"*\"] for all") else { return Vec::new() };
    if found.value.is_empty() {
        cx.error(found.at, Code::Empty, "the list is empty; write [\"*\"] for all");
    }
    cx.parse_items(list, exact_or_any).into_iter().map(|at| at.value).collect()
}

/// Access is decided by exact comparison alone (threat P14).
fn exact_or_any(text: &str) -> Result<Match, String> {
    match text {
        "*" => Ok(Match::Any),
        _ if text.contains('*') => Err("must be a whole name or * alone; access rules know no patterns".to_owned()),
        _ => Label::parse(text).map(Match::Exact).map_err(|error| error.to_string()),
    }
}

/// A cluster that is noted, to be compared with the Peers.
pub(super) fn cluster_ref(
    text: &At<String>,
    clusters: &mut Vec<(Label, Place)>,
    cx: &mut Context<'_>,
) -> Option<ClusterRef> {
    if text.value == "local" {
        return Some(ClusterRef::Local);
    }
    let name = cx.parse(text, Label::parse)?;
    clusters.push((name.clone(), cx.place(text.at)));
    Some(ClusterRef::Named(name))
}

pub(super) fn subset(field: &Field<BTreeMap<String, Field<String>>>, cx: &mut Context<'_>) -> Subset {
    let mut subset: BTreeMap<Arc<str>, Arc<str>> = BTreeMap::new();
    let Some(labels) = field.get() else { return Subset::new() };
    if labels.value.len() > MAX_LABELS {
        cx.error(
            labels.at,
            Code::Value,
            format!("has {} labels; at most {MAX_LABELS} are allowed", labels.value.len()),
        );
    }
    for (key, value) in &labels.value {
        let Some(value) = value.get() else { continue };
        if let Err(error) = eastway_registry::value::label_pair(key, &value.value) {
            cx.error(value.at, Code::Value, error.to_string());
        }
        subset.insert(key.as_str().into(), value.value.as_str().into());
    }
    if subset.iter().map(|(key, value)| key.len() + value.len() + PAIR_OVERHEAD).sum::<usize>() > MAX_SUBSET_BYTES {
        let message = format!("is too long for a stream's header: at most {MAX_SUBSET_BYTES} bytes are allowed");
        cx.error(labels.at, Code::Value, message);
    }
    subset.into()
}

/// The field that `error` is about.
fn at_of(error: &TrafficPolicyError, spec: &file::TrafficPolicySpec, spec_at: NodeId) -> NodeId {
    let split = |index: usize| spec.split.items().nth(index).map(|item| item.at);
    let list = || spec.split.get().map(|list| list.at);
    let at = match error {
        TrafficPolicyError::TooManySplits(_) | TrafficPolicyError::NoWeight => list(),
        TrafficPolicyError::WeightTooLarge(index, _) | TrafficPolicyError::DuplicateSplit(index, _) => split(*index),
        TrafficPolicyError::DuplicateFailover(index) => spec.failover.items().nth(*index).map(|item| item.at),
    };
    at.unwrap_or(spec_at)
}

/// Warns of clusters in policies that no Peer is named after.
pub(super) fn unknown_clusters(collected: &Collected, own: &Label, known: &BTreeSet<&Label>, sink: &mut Diagnostics) {
    for (name, place) in collected.clusters.iter().chain(&collected.routes.clusters) {
        if name != own && !known.contains(name) {
            let mut message = format!("no Peer is named {name}");
            let names = known.iter().map(|known| known.as_str());
            if let Some(meant) = eastway_registry::diagnostic::did_you_mean(name.as_str(), names) {
                message.push_str(&format!(" (did you mean {meant}?)"));
            }
            sink.push(place.warning(Code::Value, message));
        }
    }
}

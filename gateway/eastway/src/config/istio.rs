//! VirtualServices and DestinationRules of Istio, as far as they say what our own rules say: translated into those.
//!
//! Their shapes are large and not ours, so they are read by tables of fields ([`fields`]) and not into structs. A field
//! that is not carried out is refused by its name and line: an object of which a part is silently left out does something
//! else than its author reads in it.

mod fields;
mod parts;
mod rule;
mod service;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use eastway_model::rules::SidecarPolicy;
use eastway_model::rules::route::{ObjectName, Route, RouteKind, Subsets};
use eastway_model::{ServiceKey, Subset};
use eastway_registry::diagnostic::{Code, Diagnostics, did_you_mean, quoted};
use eastway_registry::yaml::{Context, Field, NodeId, Place};

use super::route::parts::{name_at, object_name};

/// The kinds that are read here.
pub(super) const KINDS: [&str; 2] = ["DestinationRule", "VirtualService"];

/// Versions of their API group.
const VERSIONS: [&str; 3] = ["networking.istio.io/v1", "networking.istio.io/v1beta1", "networking.istio.io/v1alpha3"];

/// Objects while their files are read.
#[derive(Clone, Debug, Default)]
pub(super) struct CollectedIstio {
    /// One for each section of a VirtualService.
    routes: BTreeMap<(RouteKind, ObjectName), (Arc<Route>, Place)>,
    /// By kind and name.
    names: BTreeMap<(&'static str, ObjectName), Place>,
    /// The DestinationRule of each service.
    rules: BTreeMap<ServiceKey, (Named, Place)>,
    /// Subsets that routes name, to be found when all files are read.
    named: Vec<(ServiceKey, Arc<str>, Place)>,
}

/// The labels of a service's subsets, by their names.
type Named = BTreeMap<Arc<str>, Arc<Subset>>;

/// What a DestinationRule says of all traffic to a service.
pub(super) struct ServicePolicy {
    pub(super) name: Arc<str>,
    pub(super) service: ServiceKey,
    pub(super) sidecars: SidecarPolicy,
    pub(super) at: NodeId,
}

impl CollectedIstio {
    /// Takes in a document of one of [`KINDS`].
    pub(super) fn document(&mut self, kind: &str, cx: &mut Context<'_>) -> Option<ServicePolicy> {
        if kind == "VirtualService" {
            service::take(self, cx);
            return None;
        }
        rule::take(self, cx)
    }

    /// Routes, with their places.
    pub(super) fn routes(&self) -> impl Iterator<Item = &(Arc<Route>, Place)> {
        self.routes.values()
    }

    pub(super) fn finish(self) -> (impl Iterator<Item = Arc<Route>>, Subsets) {
        let subsets = self.rules.into_iter().filter(|(_, (subsets, _))| !subsets.is_empty());
        let subsets = subsets.map(|(service, (subsets, _))| (service, subsets)).collect();
        (self.routes.into_values().map(|(route, _)| route), subsets)
    }

    /// What only shows when all files are read. A subset that is not there is no error: its DestinationRule may come later,
    /// or be taken away first. What is sent to it fails until then, and the status of the route says why.
    pub(super) fn check(&self, sink: &mut Diagnostics) {
        let mut told = BTreeSet::new();
        for (service, subset, place) in &self.named {
            let rule = self.rules.get(service);
            let is_there = rule.is_some_and(|(subsets, _)| subsets.contains_key(subset));
            if is_there || !told.insert((service, subset)) {
                continue;
            }
            let message = match rule {
                None => format!("there is no DestinationRule for {service}: what is sent to this subset fails"),
                Some((subsets, place)) => {
                    let meant = did_you_mean(subset, subsets.keys().map(AsRef::as_ref));
                    let meant = meant.map(|meant| format!(" (did you mean {meant}?)")).unwrap_or_default();
                    format!("the DestinationRule in {place} has no subset {subset}{meant}: what is sent to it fails")
                }
            };
            sink.push(place.warning(Code::Value, message));
        }
    }

    /// Checks what is around `spec`, and gives the object's name and `spec`.
    fn header(&mut self, kind: &'static str, cx: &mut Context<'_>) -> Option<(ObjectName, NodeId)> {
        let root = cx.root();
        if !cx.keys(root, fields::OBJECT) {
            return None;
        }
        let version: Field<String> = cx.field(root, "apiVersion");
        if let Some(text) = cx.required(root, "apiVersion", &version, "networking.istio.io/v1")
            && !VERSIONS.contains(&&*text.value)
        {
            let message = format!("must be networking.istio.io/v1, v1beta1 or v1alpha3, not {}", quoted(&text.value));
            cx.error(text.at, Code::Kind, message);
        }
        let metadata = cx.field(root, "metadata");
        let name = object_name(root, &metadata, cx);
        let Some(spec) = cx.child(root, "spec") else {
            cx.error(root, Code::Missing, "spec is required");
            return None;
        };
        let name = name?;
        let key = (kind, name.clone());
        let at = name_at(cx);
        if let Some(earlier) = self.names.get(&key) {
            cx.error(at, Code::Duplicate, format!("{kind} {name} is already defined in {earlier}"));
            return None;
        }
        self.names.insert(key, cx.place(at));
        Some((name, spec))
    }
}

#[cfg(test)]
mod tests;

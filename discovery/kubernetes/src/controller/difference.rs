//! From what is wanted and what is there to what has to be done.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::desired::Wanted;
use super::object::{Kind, Object, Observed, Seen};

/// One request to the API.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Make an object that does not exist as far as we know.
    Create(Object),
    /// Write the fields that are ours.
    Apply(Object),
    /// Write the status.
    Status(Object),
    /// Remove an object of ours.
    Delete {
        /// Its kind.
        kind: Kind,
        /// Its name.
        name: String,
        /// It and no other of this name.
        uid: String,
    },
}

impl Action {
    /// The object it is about.
    #[must_use]
    pub fn target(&self) -> (Kind, &str) {
        match self {
            Self::Create(object) | Self::Apply(object) | Self::Status(object) => (object.kind, &object.name),
            Self::Delete { kind, name, .. } => (*kind, name),
        }
    }

    /// The conditions of a status are about this generation of its object, if they say which at all.
    pub(super) fn observe(&mut self, generation: i64) {
        let Self::Status(object) = self else { return };
        let conditions = object.body.pointer_mut("/status/conditions").and_then(Value::as_array_mut);
        for condition in conditions.into_iter().flatten().filter_map(Value::as_object_mut) {
            if let Some(observed) = condition.get_mut("observedGeneration") {
                *observed = Value::from(generation);
            }
        }
    }
}

/// What turns `seen` into `wanted`, in the order in which clients never see half of it: addresses before the names
/// that lead to them, and names gone before the addresses.
#[must_use]
pub fn actions(seen: &Seen, wanted: &Wanted) -> Vec<Action> {
    let mut writes: Vec<Action> = Vec::new();
    for object in &wanted.objects {
        match seen.get(object.kind, &object.name) {
            None => writes.push(Action::Create(object.clone())),
            // It has to be gone before another can take its name.
            Some(observed) if observed.is_deleted() => {}
            Some(observed) if differs(observed, object) => writes.push(Action::Apply(object.clone())),
            Some(_) => {}
        }
    }
    writes.sort_by_key(|action| action.target().0);
    if wanted.only {
        writes.extend(removals(seen, wanted));
    }
    let statuses = wanted.statuses.iter().filter(|object| {
        seen.get(object.kind, &object.name)
            .is_some_and(|observed| !observed.is_deleted() && status_differs(observed, object))
    });
    writes.extend(statuses.cloned().map(Action::Status));
    writes
}

fn removals(seen: &Seen, wanted: &Wanted) -> Vec<Action> {
    let stays: BTreeSet<(Kind, &str)> = wanted
        .objects
        .iter()
        .map(|object| (object.kind, object.name.as_str()))
        .chain(wanted.kept.iter().map(|name| (Kind::Service, name.as_str())))
        .collect();
    let import = seen.own_import().map(|import| (Kind::ServiceImport, import.text("/metadata/name"), import));
    let slices = seen.slices.iter().map(|(name, slice)| (Kind::EndpointSlice, name.as_str(), slice));
    let services = seen.services.iter().map(|(name, service)| (Kind::Service, name.as_str(), service));
    let entries = seen.entries.iter().map(|((kind, name), entry)| (*kind, name.as_str(), entry));
    import
        .into_iter()
        .chain(entries)
        .chain(slices)
        .chain(services)
        .filter(|(kind, name, observed)| !stays.contains(&(*kind, *name)) && !observed.is_deleted())
        .map(|(kind, name, observed)| Action::Delete { kind, name: name.to_owned(), uid: observed.uid().to_owned() })
        .collect()
}

/// Whether fields that are ours are not as they should be.
#[must_use]
pub fn differs(observed: &Observed, wanted: &Object) -> bool {
    let at = |pointer: &str| wanted.body.pointer(pointer).unwrap_or(&Value::Null);
    let owners = observed.list("/metadata/ownerReferences");
    let owned = at("/metadata/ownerReferences").as_array().map(Vec::as_slice).unwrap_or_default();
    if !same(observed.at("/metadata/labels"), at("/metadata/labels"))
        || !same(observed.at("/metadata/annotations"), at("/metadata/annotations"))
        || !owned.iter().all(|wanted| owners.iter().any(|owner| same(owner, wanted)))
    {
        return true;
    }
    let fields = wanted.body.as_object().into_iter().flatten();
    fields.filter(|(key, _)| !matches!(key.as_str(), "apiVersion" | "kind" | "metadata")).any(|(key, wanted_field)| {
        let observed = observed.body().get(key).unwrap_or(&Value::Null);
        match (wanted.kind, wanted_field) {
            // The API server adds a lot to the spec of a Service.
            (Kind::Service, Value::Object(spec)) => !has(observed, spec),
            _ => !same(observed, wanted_field),
        }
    })
}

/// Whether the status is not as it should be.
#[must_use]
pub fn status_differs(observed: &Observed, wanted: &Object) -> bool {
    let status = wanted.body.get("status").and_then(Value::as_object);
    status.is_some_and(|status| !has(observed.at("/status"), status))
}

/// Whether `observed` has all of `wanted`, whatever else.
fn has(observed: &Value, wanted: &Map<String, Value>) -> bool {
    wanted.iter().all(|(key, wanted)| same(observed.get(key).unwrap_or(&Value::Null), wanted))
}

/// Whether both say the same. What is empty and what is not there are the same to the API, lists that are sets come
/// back in any order, and two fields of ports are filled in by the API server.
pub(super) fn same(observed: &Value, wanted: &Value) -> bool {
    match (observed, wanted) {
        (Value::Object(observed), Value::Object(wanted)) => {
            let filled_in = |key: &str| matches!(key, "targetPort" | "nodePort");
            wanted.iter().all(|(key, wanted)| same(observed.get(key).unwrap_or(&Value::Null), wanted))
                && observed.iter().all(|(key, value)| wanted.contains_key(key) || filled_in(key) || is_empty(value))
        }
        (Value::Array(observed), Value::Array(wanted)) => {
            observed.len() == wanted.len()
                && (observed.iter().zip(wanted).all(|(observed, wanted)| same(observed, wanted))
                    || wanted.iter().all(|wanted| observed.iter().any(|observed| same(observed, wanted))))
        }
        _ => observed == wanted || is_empty(observed) && is_empty(wanted),
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

//! Objects of the API as the controller handles them: a kind, a name and a body.
//!
//! What is written is exactly the fields that the controller owns (server-side apply), so bodies are JSON values: a
//! typed object would say nothing about which of its fields are meant.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::names;
use super::selection::Selection;

/// The kinds that the controller writes, in the order in which they are written: what others refer to first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub enum Kind {
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
    /// `multicluster.x-k8s.io/v1beta1` ServiceImport.
    ServiceImport,
    /// `multicluster.x-k8s.io/v1beta1` ServiceExport; only its status is ours.
    ServiceExport,
    /// `networking.istio.io/v1` WorkloadEntry.
    WorkloadEntry,
    /// `networking.istio.io/v1` ServiceEntry.
    ServiceEntry,
}

impl Kind {
    /// `apiVersion` and `kind`.
    #[must_use]
    pub fn type_meta(self) -> (&'static str, &'static str) {
        match self {
            Self::Service => ("v1", "Service"),
            Self::EndpointSlice => ("discovery.k8s.io/v1", "EndpointSlice"),
            Self::ServiceImport => ("multicluster.x-k8s.io/v1beta1", "ServiceImport"),
            Self::ServiceExport => ("multicluster.x-k8s.io/v1beta1", "ServiceExport"),
            Self::WorkloadEntry => ("networking.istio.io/v1", "WorkloadEntry"),
            Self::ServiceEntry => ("networking.istio.io/v1", "ServiceEntry"),
        }
    }
}

/// An object as it should be, in the namespace of its service.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Object {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// The fields that are ours, `apiVersion`, `kind` and `metadata.name` included.
    pub body: Value,
}

impl Object {
    /// An object with `metadata` and the further top-level `fields`.
    #[must_use]
    pub fn new(kind: Kind, namespace: &str, name: &str, metadata: Value, fields: Value) -> Self {
        let (api_version, kind_name) = kind.type_meta();
        let mut meta = json!({ "name": name, "namespace": namespace });
        merge(&mut meta, metadata);
        let mut body = json!({ "apiVersion": api_version, "kind": kind_name, "metadata": meta });
        merge(&mut body, fields);
        Self { kind, name: name.to_owned(), body }
    }
}

/// Adds the members of the object `more` to the object `base`.
fn merge(base: &mut Value, more: Value) {
    if let (Value::Object(base), Value::Object(more)) = (base, more) {
        base.extend(more);
    }
}

/// An object as the API has it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed(Value);

impl Observed {
    /// Takes an object as it was read.
    #[must_use]
    pub fn new(object: Value) -> Self {
        Self(object)
    }

    /// All of it.
    #[must_use]
    pub fn body(&self) -> &Value {
        &self.0
    }

    /// What is at this JSON pointer.
    #[must_use]
    pub fn at(&self, pointer: &str) -> &Value {
        self.0.pointer(pointer).unwrap_or(&Value::Null)
    }

    /// The text at this JSON pointer; empty if there is none.
    #[must_use]
    pub fn text(&self, pointer: &str) -> &str {
        self.at(pointer).as_str().unwrap_or_default()
    }

    /// The list at this JSON pointer; empty if there is none.
    #[must_use]
    pub fn list(&self, pointer: &str) -> &[Value] {
        self.at(pointer).as_array().map(Vec::as_slice).unwrap_or_default()
    }

    /// Tells it from others that had its name.
    #[must_use]
    pub fn uid(&self) -> &str {
        self.text("/metadata/uid")
    }

    /// The label `key`; empty if it has none.
    #[must_use]
    pub fn label(&self, key: &str) -> &str {
        self.at("/metadata/labels").get(key).and_then(Value::as_str).unwrap_or_default()
    }

    /// It is marked as ours. Whoever may write it may set the mark, so that this protects from mistakes and not from
    /// attacks; those who can write to a namespace can break its services anyway.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.label(names::MANAGED_BY) == names::EASTWAY
    }

    /// The ServiceImport `name` is its owner.
    #[must_use]
    pub fn is_of_import(&self, name: &str) -> bool {
        let is = |owner: &Value, key: &str, expected: &str| owner.get(key).is_some_and(|it| it == expected);
        let owners = self.list("/metadata/ownerReferences");
        self.is_ours() && owners.iter().any(|owner| is(owner, "kind", "ServiceImport") && is(owner, "name", name))
    }

    /// It is on its way out.
    #[must_use]
    pub fn is_deleted(&self) -> bool {
        !self.at("/metadata/deletionTimestamp").is_null()
    }

    /// The addresses of a Service, in order; none while it has none.
    #[must_use]
    pub fn cluster_ips(&self) -> Vec<IpAddr> {
        // "None" is what a headless Service has.
        self.list("/spec/clusterIPs").iter().filter_map(|ip| ip.as_str()?.parse().ok()).collect()
    }

    /// The condition of this type.
    #[must_use]
    pub fn condition(&self, kind: &str) -> Option<&Value> {
        self.list("/status/conditions").iter().find(|condition| condition.get("type").is_some_and(|it| it == kind))
    }
}

/// All objects that have to do with one multi-cluster service, as the API has them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    /// Its namespace exists and is not on its way out.
    pub namespace: bool,
    /// The ServiceImport, whoever made it.
    pub import: Option<Observed>,
    /// The ServiceExport.
    pub export: Option<Observed>,
    /// Derived Services, by name.
    pub services: BTreeMap<String, Observed>,
    /// Slices of ours, by name.
    pub slices: BTreeMap<String, Observed>,
    /// What Istio is told, by kind and name.
    pub entries: BTreeMap<(Kind, String), Observed>,
    /// What the Service of this name here selects, if Istio is there.
    pub selection: Option<Arc<Selection>>,
    /// What the Services of the namespace select, likewise.
    pub neighbours: Vec<(String, Arc<Selection>)>,
    /// Names of Services and slices that we want and somebody else has.
    pub foreign: BTreeSet<String>,
    /// What the API server said when it last took something not.
    pub refused: Option<String>,
    /// What was left out of the exported Service, and why.
    pub left_out: Option<String>,
}

impl Seen {
    /// The object of this kind and name.
    #[must_use]
    pub fn get(&self, kind: Kind, name: &str) -> Option<&Observed> {
        match kind {
            Kind::Service => self.services.get(name),
            Kind::EndpointSlice => self.slices.get(name),
            Kind::ServiceImport => self.import.as_ref(),
            Kind::ServiceExport => self.export.as_ref(),
            Kind::WorkloadEntry | Kind::ServiceEntry => self.entries.get(&(kind, name.to_owned())),
        }
    }

    /// The ServiceImport, if it is ours.
    #[must_use]
    pub fn own_import(&self) -> Option<&Observed> {
        self.import.as_ref().filter(|import| import.is_ours())
    }
}

/// A condition of the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Its type.
    pub kind: &'static str,
    /// `True`, `False` or, if nothing, `Unknown`.
    pub status: Option<bool>,
    /// A word for programs.
    pub reason: String,
    /// A sentence for people.
    pub message: String,
}

/// Longest message of a condition: far below what the API takes (32,768 bytes), and all that people read.
const MAX_MESSAGE: usize = 2_048;

impl Condition {
    /// A condition; its message is cut to what people read.
    #[must_use]
    pub fn new(kind: &'static str, status: bool, reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self { status: Some(status), ..Self::unknown(kind, reason, message) }
    }

    /// A condition of which it is not known whether it holds.
    #[must_use]
    pub fn unknown(kind: &'static str, reason: impl Into<String>, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if message.len() > MAX_MESSAGE {
            let end = (0..=MAX_MESSAGE).rev().find(|end| message.is_char_boundary(*end)).unwrap_or_default();
            message.truncate(end);
            message.push('…');
        }
        Self { kind, status: None, reason: reason.into(), message }
    }

    /// As the API has it. Its time is that of the last change of its status, which `before` tells.
    fn to_json(&self, before: Option<&Value>, generation: i64, now: &str) -> Value {
        let status = match self.status {
            Some(true) => "True",
            Some(false) => "False",
            None => "Unknown",
        };
        let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
        let same = before.filter(|before| text(before, "status").is_some_and(|it| it == status));
        let since = same.and_then(|before| text(before, "lastTransitionTime"));
        let mut condition = Map::new();
        condition.insert("type".to_owned(), json!(self.kind));
        condition.insert("status".to_owned(), json!(status));
        condition.insert("reason".to_owned(), json!(self.reason));
        condition.insert("message".to_owned(), json!(self.message));
        condition.insert("lastTransitionTime".to_owned(), json!(since.as_deref().unwrap_or(now)));
        if generation > 0 {
            condition.insert("observedGeneration".to_owned(), json!(generation));
        }
        Value::Object(condition)
    }

    /// `conditions` as the API has them, beside the object they are about.
    #[must_use]
    pub fn list(conditions: &[Self], about: &Observed, now: &str) -> Value {
        let generation = about.at("/metadata/generation").as_i64().unwrap_or_default();
        conditions.iter().map(|condition| condition.to_json(about.condition(condition.kind), generation, now)).collect()
    }
}

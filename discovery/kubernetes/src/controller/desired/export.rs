//! The status of a ServiceExport: Valid, Ready, Conflict (KEP-1645).

use std::collections::{BTreeMap, BTreeSet};

use eastway_model::rules::never_shared;
use eastway_model::{ClusterName, ConflictKind, Import, PortNumber, Protocol, ServiceKey};
use serde_json::{Value, json};

use crate::controller::object::{Condition, Kind, Object, Observed, Seen};

/// Whether a Service can be exported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verdict {
    /// It can be exported.
    #[default]
    Valid,
    /// There is no Service of its name.
    NoService,
    /// The Service is a name for something else (`type: ExternalName`).
    ExternalName,
}

/// The conditions of the export of a service. `own` is this cluster.
pub(super) fn conditions(import: Option<&Import>, own: &ClusterName, verdict: Verdict, seen: &Seen) -> Vec<Condition> {
    let namespace = seen.export.as_ref().map(|export| export.text("/metadata/namespace")).unwrap_or_default();
    let invalid = if never_shared(namespace) {
        Some(("NotAllowed", format!("services of the namespace {namespace} are never exported")))
    } else {
        match verdict {
            Verdict::Valid => None,
            Verdict::NoService => Some(("NoService", "there is no Service of this name in this namespace".to_owned())),
            Verdict::ExternalName => Some((
                "InvalidServiceType",
                "a Service of type ExternalName cannot be exported: it has no endpoints of its own".to_owned(),
            )),
        }
    };
    if let Some((reason, message)) = invalid {
        let ready = Condition::new("Ready", false, "Failed", "the export is not valid");
        return vec![Condition::new("Valid", false, reason, message), ready];
    }
    let valid = Condition::new("Valid", true, "Valid", "the Service can be exported");
    let Some(import) = import.filter(|import| import.part(None).is_some()) else {
        let ready = Condition::new("Ready", false, "Pending", "waits for the registry to take the Service in");
        return vec![valid, ready];
    };
    let foreign = seen.import.as_ref().is_some_and(|import| !import.is_ours());
    let mut message = if foreign {
        "offered to peers; the ServiceImport of this name is not Eastway's and is left alone".to_owned()
    } else {
        "offered to all peers whose export rules allow it".to_owned()
    };
    if let Some(left_out) = &seen.left_out {
        message.push_str("; ");
        message.push_str(left_out);
    }
    vec![valid, Condition::new("Ready", true, "Exported", message), conflict(import, own)]
}

/// What the exports disagree about. All of them are told, winner and losers.
fn conflict(import: &Import, own: &ClusterName) -> Condition {
    let mut reasons: BTreeSet<ConflictKind> = import.conflicts.iter().map(|conflict| conflict.kind).collect();
    let mut messages: Vec<String> = import.conflicts.iter().map(|conflict| conflict.message.clone()).collect();
    if let Some(message) = different_ports(import, own) {
        reasons.insert(ConflictKind::PortConflict);
        messages.push(message);
    }
    if reasons.is_empty() {
        return Condition::new("Conflict", false, "NoConflicts", "all exports of this service agree");
    }
    let reasons: Vec<String> = reasons.iter().map(ToString::to_string).collect();
    Condition::new("Conflict", true, reasons.join(","), messages.join(". "))
}

/// Ports that some exports do not have: no harm, as each connection goes where its port is, but KEP-1645 calls it a
/// conflict.
fn different_ports(import: &Import, own: &ClusterName) -> Option<String> {
    let mut having: BTreeMap<(Protocol, PortNumber), Vec<&str>> = BTreeMap::new();
    for part in &import.parts {
        let cluster = part.cluster.as_ref().unwrap_or(own).as_str();
        for port in &part.record.ports {
            having.entry((port.protocol, port.number)).or_default().push(cluster);
        }
    }
    let partial: Vec<String> = having
        .iter()
        .filter(|(_, clusters)| clusters.len() < import.parts.len())
        .map(|((protocol, number), clusters)| format!("{number}/{protocol} only in {}", clusters.join(", ")))
        .collect();
    (!partial.is_empty()).then(|| {
        format!(
            "ports: {}; the import has all of them, and each leads to the clusters that have it",
            partial.join("; ")
        )
    })
}

/// The status of the ServiceExport `export`.
pub(super) fn status(key: &ServiceKey, export: &Observed, conditions: &[Condition], now: &str) -> Object {
    let status = json!({ "status": { "conditions": Condition::list(conditions, export, now) } });
    Object::new(Kind::ServiceExport, key.namespace.as_str(), key.name.as_str(), Value::Null, status)
}

//! Objects of the group `eastway.dev` as the texts of files: Peers and policies. They are read here and judged by the
//! same strict reader as files, elsewhere.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::client::{self, Access, ClientError};
use crate::types::eastway::{AccessPolicy, GROUP, Peer, TrafficPolicy};
use crate::watch::{Difference, ObjectName, Selection, Watch};

/// Kinds of such objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// Another cluster; not in a namespace.
    Peer,
    /// Who may connect.
    AccessPolicy,
    /// How connections are shared out.
    TrafficPolicy,
}

/// Which object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace; empty for a Peer.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, namespace, name } = self;
        if namespace.is_empty() { write!(f, "{kind:?}/{name}") } else { write!(f, "{kind:?}/{namespace}/{name}") }
    }
}

/// All of them, as texts that say `apiVersion`, `kind`, name, namespace and `spec`.
pub type Objects = BTreeMap<ObjectKey, Arc<str>>;

/// Follows the API server behind `access` until `cancel`. `latest` is untouched until all three kinds have been listed
/// once, or are known not to be installed; what was told stays while the server is away (invariant I4). With
/// `expected` there have been objects before: then kinds that are not installed are waited for, because a server that
/// has just started knows none of them for a moment.
///
/// # Errors
/// There is no client.
pub async fn run(
    access: &Access,
    latest: watch::Sender<Option<Arc<Objects>>>,
    expected: bool,
    cancel: CancellationToken,
) -> Result<(), ClientError> {
    let client = client::connect(access).await?;
    let mut peers = Watch::<Value>::new(client.clone(), Selection::all::<Peer>());
    let mut access = Watch::<Value>::new(client.clone(), Selection::all::<AccessPolicy>());
    let mut traffic = Watch::<Value>::new(client, Selection::all::<TrafficPolicy>());
    let mut objects = Objects::new();
    loop {
        let (kind, differences) = tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            differences = peers.next() => (Kind::Peer, differences),
            differences = access.next() => (Kind::AccessPolicy, differences),
            differences = traffic.next() => (Kind::TrafficPolicy, differences),
        };
        for difference in differences {
            apply(&mut objects, kind, difference);
        }
        let settled = [&peers, &access, &traffic].iter().all(|watch| {
            let status = watch.status();
            if expected { status.listed } else { status.is_settled() }
        });
        if settled {
            latest.send_if_modified(|before| {
                let changed = before.as_deref() != Some(&objects);
                if changed {
                    *before = Some(Arc::new(objects.clone()));
                }
                changed
            });
        }
    }
}

fn apply(objects: &mut Objects, kind: Kind, difference: Difference<Value>) {
    let key =
        |ObjectName { namespace, name }| ObjectKey { kind, namespace: namespace.to_string(), name: name.to_string() };
    match difference {
        Difference::Set(name, object) => {
            let key = key(name);
            let text = text(&key, &object);
            objects.insert(key, text);
        }
        Difference::Gone(name) => drop(objects.remove(&key(name))),
    }
}

/// What a file with the same contents says; status and what servers add to the metadata are left out.
pub(crate) fn text(key: &ObjectKey, object: &Value) -> Arc<str> {
    let mut metadata = Map::new();
    metadata.insert("name".to_owned(), json!(key.name));
    if !key.namespace.is_empty() {
        metadata.insert("namespace".to_owned(), json!(key.namespace));
    }
    let mut file = Map::new();
    file.insert("apiVersion".to_owned(), json!(format!("{GROUP}/v1alpha1")));
    file.insert("kind".to_owned(), json!(format!("{:?}", key.kind)));
    file.insert("metadata".to_owned(), Value::Object(metadata));
    if let Some(spec) = object.get("spec") {
        file.insert("spec".to_owned(), spec.clone());
    }
    let file = Value::Object(file);
    format!("{file:#}\n").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_the_text_of_a_file_without_what_servers_add() {
        let mut objects = Objects::new();
        let object = json!({
            "apiVersion": "eastway.dev/v1alpha1", "kind": "Peer",
            "metadata": { "name": "gke", "uid": "u", "managedFields": [] },
            "spec": { "trustDomain": "gke.example" }, "status": { "conditions": [] },
        });
        apply(&mut objects, Kind::Peer, Difference::Set(ObjectName::new("", "gke"), Arc::new(object)));
        let (key, text) = objects.first_key_value().unwrap();
        assert_eq!(key.to_string(), "Peer/gke");
        let text: Value = serde_json::from_str(text).unwrap();
        let wanted = json!({
            "apiVersion": "eastway.dev/v1alpha1", "kind": "Peer", "metadata": { "name": "gke" },
            "spec": { "trustDomain": "gke.example" },
        });
        assert_eq!(text, wanted);
        apply(&mut objects, Kind::Peer, Difference::Gone(ObjectName::new("", "gke")));
        assert!(objects.is_empty());
    }
}

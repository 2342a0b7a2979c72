//! The status of policies: objects of the group `eastway.dev` that only gateways read. Here they are collected and
//! written; what there is to say is for whoever has the strict reader of files.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::time::timeout;
use tracing::debug;

use super::difference::same;
use super::names;
use super::object::{Condition, Observed};
use crate::lease::REQUEST;
use crate::objects::{Kind, ObjectKey, Objects, text};
use crate::types::eastway::{AccessPolicy, Peer, TrafficPolicy};
use crate::watch::{Difference, ObjectName, Selection, Watch};

/// Peers and policies as the API server has them.
pub struct Statuses {
    client: Client,
    peers: Watch<Value>,
    access: Watch<Value>,
    traffic: Watch<Value>,
    texts: Objects,
    /// Policies with their status, as they were seen or written last.
    policies: BTreeMap<ObjectKey, Arc<Value>>,
    /// What the API server did not take, until something changes about it.
    refused: BTreeSet<ObjectKey>,
}

impl Statuses {
    /// Nothing has been read.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self {
            peers: Watch::new(client.clone(), Selection::all::<Peer>()),
            access: Watch::new(client.clone(), Selection::all::<AccessPolicy>()),
            traffic: Watch::new(client.clone(), Selection::all::<TrafficPolicy>()),
            texts: Objects::new(),
            policies: BTreeMap::new(),
            refused: BTreeSet::new(),
            client,
        }
    }

    /// Waits for news, and says whether a text changed: a status that somebody writes is none. Nothing is lost if the
    /// future is dropped.
    pub async fn changed(&mut self) -> bool {
        let (kind, differences) = tokio::select! {
            differences = self.peers.next() => (Kind::Peer, differences),
            differences = self.access.next() => (Kind::AccessPolicy, differences),
            differences = self.traffic.next() => (Kind::TrafficPolicy, differences),
        };
        let mut changed = false;
        for difference in differences {
            changed |= self.apply(kind, difference);
        }
        changed
    }

    /// All kinds have been listed, or are not installed.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        [&self.peers, &self.access, &self.traffic].iter().all(|watch| watch.status().is_settled())
    }

    /// As files say them.
    #[must_use]
    pub fn texts(&self) -> &Objects {
        &self.texts
    }

    /// Writes the conditions of policies that do not have them. What is not in `wanted` keeps what it has.
    ///
    /// # Errors
    /// It has to be tried again; says why.
    pub async fn write(&mut self, wanted: &BTreeMap<ObjectKey, Vec<Condition>>) -> Result<(), String> {
        let now = Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default().to_string();
        let mut result = Ok(());
        for (key, conditions) in wanted {
            let Some(object) = self.policies.get(key).filter(|_| !self.refused.contains(key)) else { continue };
            let observed = Observed::new(Value::clone(object));
            let status = status(conditions, &observed, &now);
            if same(observed.at("/status"), &status) {
                continue;
            }
            match patch(&self.client, key, &status).await {
                // The watch tells the same; until it does this is not written again.
                Ok(Some(written)) => drop(self.policies.insert(key.clone(), Arc::new(written))),
                Ok(None) => {
                    debug!(object = %key, "its status cannot be written");
                    self.refused.insert(key.clone());
                }
                Err(error) => result = Err(error),
            }
        }
        result
    }

    /// Takes one difference in, and says whether a text changed.
    fn apply(&mut self, kind: Kind, difference: Difference<Value>) -> bool {
        let key = |ObjectName { namespace, name }| ObjectKey {
            kind,
            namespace: namespace.to_string(),
            name: name.to_string(),
        };
        match difference {
            Difference::Set(name, object) => {
                let key = key(name);
                let text = text(&key, &object);
                self.refused.remove(&key);
                if kind != Kind::Peer {
                    self.policies.insert(key.clone(), object);
                }
                self.texts.insert(key, text.clone()).is_none_or(|before| before != text)
            }
            Difference::Gone(name) => {
                let key = key(name);
                self.refused.remove(&key);
                self.policies.remove(&key);
                self.texts.remove(&key).is_some()
            }
        }
    }
}

/// The object after the write; `None` if there is no use in trying again.
async fn patch(client: &Client, key: &ObjectKey, status: &Value) -> Result<Option<Value>, String> {
    let resource = match key.kind {
        Kind::AccessPolicy => ApiResource::erase::<AccessPolicy>(&()),
        Kind::TrafficPolicy => ApiResource::erase::<TrafficPolicy>(&()),
        Kind::Peer => return Ok(None),
    };
    let body = json!({
        "apiVersion": resource.api_version, "kind": resource.kind,
        "metadata": { "namespace": key.namespace, "name": key.name }, "status": status,
    });
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &key.namespace, &resource);
    let params = PatchParams::apply(names::MANAGER).force();
    match timeout(REQUEST, api.patch_status(&key.name, &params, &Patch::Apply(&body))).await {
        Ok(Ok(written)) => serde_json::to_value(written).map(Some).map_err(|error| error.to_string()),
        Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 422) => Ok(None),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("no answer in time".to_owned()),
    }
}

fn status(conditions: &[Condition], observed: &Observed, now: &str) -> Value {
    let conditions = Condition::list(conditions, observed, now);
    match observed.at("/metadata/generation").as_i64() {
        Some(generation) => json!({ "observedGeneration": generation, "conditions": conditions }),
        None => json!({ "conditions": conditions }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Reply, client};

    fn key() -> ObjectKey {
        ObjectKey { kind: Kind::TrafficPolicy, namespace: "shop".to_owned(), name: "cart".to_owned() }
    }

    fn object(generation: i64, status: Option<Value>) -> Difference<Value> {
        let mut object = json!({
            "apiVersion": "eastway.dev/v1alpha1", "kind": "TrafficPolicy",
            "metadata": { "namespace": "shop", "name": "cart", "generation": generation },
            "spec": { "service": format!("cart-{generation}") },
        });
        object["status"] = status.unwrap_or_default();
        Difference::Set(ObjectName::new("shop", "cart"), Arc::new(object))
    }

    #[tokio::test]
    async fn a_status_is_written_once_and_is_no_change_of_the_policy() {
        let (client, requests) = client(|request| {
            assert_eq!(request.method(), "PATCH");
            let status = json!({ "observedGeneration": 1, "conditions": [{
                "type": "Accepted", "status": "True", "reason": "Accepted", "message": "fine",
                "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1,
            }] });
            let Difference::Set(_, object) = object(1, Some(status)) else { unreachable!() };
            Reply::Whole(200, Value::clone(&object))
        });
        let mut statuses = Statuses::new(client);
        assert!(statuses.apply(Kind::TrafficPolicy, object(1, None)));
        let wanted = BTreeMap::from([(key(), vec![Condition::new("Accepted", true, "Accepted", "fine")])]);
        for _ in 0..3 {
            statuses.write(&wanted).await.unwrap();
        }
        assert_eq!(requests.lock().unwrap().len(), 1);
        assert!(requests.lock().unwrap()[0].contains("/namespaces/shop/trafficpolicies/cart/status"));
        let written = statuses.policies[&key()].clone();
        assert!(!statuses.apply(Kind::TrafficPolicy, Difference::Set(ObjectName::new("shop", "cart"), written)));
        assert!(statuses.apply(Kind::TrafficPolicy, object(2, None)), "another text");
    }

    #[tokio::test]
    async fn what_the_server_does_not_take_is_tried_again_when_it_changed() {
        let (client, requests) = client(|_| Reply::status(404, "NotFound", "no such thing"));
        let mut statuses = Statuses::new(client);
        let wanted = BTreeMap::from([(key(), vec![Condition::new("Accepted", true, "Accepted", "fine")])]);
        statuses.write(&wanted).await.unwrap();
        assert!(requests.lock().unwrap().is_empty(), "there is no such policy");
        for generation in [1, 2] {
            statuses.apply(Kind::TrafficPolicy, object(generation, None));
            statuses.write(&wanted).await.unwrap();
            statuses.write(&wanted).await.unwrap();
        }
        assert_eq!(requests.lock().unwrap().len(), 2);
    }
}

//! The status of policies: objects of the group `eastway.dev` that only gateways read. Here they are collected and
//! written; what there is to say is for whoever has the strict reader of files.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use kube::api::{DynamicObject, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::time::timeout;
use tracing::debug;

use super::difference::same;
use super::names;
use super::object::{Condition, Observed};
use crate::lease::REQUEST;
use crate::objects::{Kind, ObjectKey, Objects, Watches, text};
use crate::watch::{Difference, ObjectName};

/// Most entries that a route's status may have.
const MAX_PARENTS: usize = 32;
/// Name by which routes tell whose word a status is.
const CONTROLLER: &str = "eastway.dev/controller";

/// What is to be said of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Of a policy.
    Policy(Vec<Condition>),
    /// Of a route, at all services that it is about.
    Everywhere(Vec<Condition>),
    /// Of a route, at each.
    Parents(Vec<(ParentKey, Vec<Condition>)>),
}

/// A service that a route is about, as the route says it: its name and, if it is about one alone, its port.
pub type ParentKey = (String, Option<u16>);

/// Peers, policies and routes as the API server has them.
pub struct Statuses {
    client: Client,
    watches: Watches,
    texts: Objects,
    /// Policies with their status, as they were seen or written last.
    policies: BTreeMap<ObjectKey, Arc<Value>>,
    /// What the API server did not take, until something changes about it.
    refused: BTreeSet<ObjectKey>,
}

impl Statuses {
    /// Nothing of these kinds has been read.
    #[must_use]
    pub fn new(client: Client, kinds: &[Kind]) -> Self {
        Self {
            watches: Watches::new(&client, kinds),
            texts: Objects::new(),
            policies: BTreeMap::new(),
            refused: BTreeSet::new(),
            client,
        }
    }

    /// Waits for news, and says whether a text changed: a status that somebody writes is none. Nothing is lost if the
    /// future is dropped.
    pub async fn changed(&mut self) -> bool {
        let (kind, differences) = self.watches.next().await;
        let mut changed = false;
        for difference in differences {
            changed |= self.apply(kind, difference);
        }
        changed
    }

    /// All kinds have been listed, or are not installed.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.watches.are_settled(false)
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
    pub async fn write(&mut self, wanted: &BTreeMap<ObjectKey, Verdict>) -> Result<(), String> {
        let now = Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default().to_string();
        let mut result = Ok(());
        for (key, verdict) in wanted {
            let Some(object) = self.policies.get(key).filter(|_| !self.refused.contains(key)) else { continue };
            let observed = Observed::new(Value::clone(object));
            let status = match verdict {
                Verdict::Policy(conditions) => status(conditions, &observed, &now),
                Verdict::Everywhere(_) | Verdict::Parents(_) => parents(verdict, &observed, &now),
            };
            if same(observed.at("/status"), &status) {
                continue;
            }
            let version = observed.text("/metadata/resourceVersion");
            match patch(&self.client, key, version, &status).await {
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
                self.refused.remove(&key);
                let Some(text) = text(&key, &object) else {
                    self.policies.remove(&key);
                    return self.texts.remove(&key).is_some();
                };
                if has_status(kind) {
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

/// Whether this writes the status of such objects: that of Peers is written elsewhere, and others have none yet.
#[must_use]
pub fn has_status(kind: Kind) -> bool {
    matches!(kind, Kind::AccessPolicy | Kind::TrafficPolicy) || kind.is_route()
}

/// The status of a route: a list of what each controller says of each parent, of which only our own is touched.
fn parents(verdict: &Verdict, observed: &Observed, now: &str) -> Value {
    let said = observed.list("/status/parents");
    let is_ours = |entry: &&Value| entry.get("controllerName").and_then(Value::as_str) == Some(CONTROLLER);
    let mut all: Vec<Value> = said.iter().filter(|entry| !is_ours(entry)).cloned().collect();
    for reference in observed.list("/spec/parentRefs") {
        let text = |key: &str| reference.get(key).and_then(Value::as_str).unwrap_or_default();
        if !matches!(text("kind"), "Service" | "ServiceImport") {
            continue;
        }
        let port = reference.get("port").and_then(Value::as_u64).and_then(|port| u16::try_from(port).ok());
        let conditions = match verdict {
            Verdict::Policy(conditions) | Verdict::Everywhere(conditions) => Some(conditions),
            Verdict::Parents(list) => {
                let found = list.iter().find(|((name, at), _)| name == text("name") && *at == port);
                found.map(|(_, conditions)| conditions)
            }
        };
        let Some(conditions) = conditions else { continue };
        let before = said.iter().filter(is_ours).find(|entry| entry.get("parentRef") == Some(reference));
        let before = before.and_then(|entry| entry.get("conditions")).cloned().unwrap_or_default();
        let generation = observed.at("/metadata/generation").clone();
        let about = Observed::new(json!({"metadata": {"generation": generation}, "status": {"conditions": before}}));
        all.push(json!({
            "parentRef": reference, "controllerName": CONTROLLER,
            "conditions": Condition::list(conditions, &about, now),
        }));
    }
    all.truncate(MAX_PARENTS);
    json!({ "parents": all })
}

/// The object after the write; `None` if there is no use in trying again.
async fn patch(client: &Client, key: &ObjectKey, version: &str, status: &Value) -> Result<Option<Value>, String> {
    if !has_status(key.kind) {
        return Ok(None);
    }
    let resource = key.kind.resource();
    let mut body = json!({
        "apiVersion": resource.api_version, "kind": resource.kind,
        "metadata": { "namespace": key.namespace, "name": key.name }, "status": status,
    });
    if key.kind.is_route()
        && let Some(metadata) = body.get_mut("metadata").and_then(Value::as_object_mut)
    {
        // Others write to the same list: what they wrote meanwhile must not be lost.
        metadata.insert("resourceVersion".to_owned(), version.into());
    }
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
        let mut statuses = Statuses::new(client, &Kind::OWN);
        assert!(statuses.apply(Kind::TrafficPolicy, object(1, None)));
        let wanted =
            BTreeMap::from([(key(), Verdict::Policy(vec![Condition::new("Accepted", true, "Accepted", "fine")]))]);
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
        let mut statuses = Statuses::new(client, &Kind::OWN);
        let wanted =
            BTreeMap::from([(key(), Verdict::Policy(vec![Condition::new("Accepted", true, "Accepted", "fine")]))]);
        statuses.write(&wanted).await.unwrap();
        assert!(requests.lock().unwrap().is_empty(), "there is no such policy");
        for generation in [1, 2] {
            statuses.apply(Kind::TrafficPolicy, object(generation, None));
            statuses.write(&wanted).await.unwrap();
            statuses.write(&wanted).await.unwrap();
        }
        assert_eq!(requests.lock().unwrap().len(), 2);
    }

    #[test]
    fn what_others_say_of_a_route_stays() {
        let reference = json!({"group": "", "kind": "Service", "name": "web"});
        let others = json!({"parentRef": {"name": "front"}, "controllerName": "example.com/gateway", "conditions": []});
        let route = |parents: Vec<Value>| {
            Observed::new(json!({
                "metadata": {"generation": 4},
                "spec": {"parentRefs": [{"kind": "Gateway", "name": "front"}, reference]},
                "status": {"parents": parents},
            }))
        };
        let accepted = |status| vec![Condition::new("Accepted", status, "Accepted", "port 80")];
        let verdict = |status| Verdict::Parents(vec![(("web".to_owned(), None), accepted(status))]);
        let first = parents(&verdict(true), &route(vec![others.clone()]), "2026-01-01T00:00:00Z");
        assert_eq!(first["parents"][0], others);
        assert_eq!(first["parents"][1]["parentRef"], reference);
        let ours = &first["parents"][1]["conditions"][0];
        assert_eq!((&ours["status"], &ours["observedGeneration"]), (&json!("True"), &json!(4)));
        // Later: no other time for what is still so, and one for what is not.
        let written = first["parents"].as_array().unwrap().clone();
        assert_eq!(parents(&verdict(true), &route(written.clone()), "2026-01-02T00:00:00Z"), first);
        let changed = parents(&Verdict::Everywhere(accepted(false)), &route(written), "2026-01-02T00:00:00Z");
        assert_eq!(changed["parents"][1]["conditions"][0]["lastTransitionTime"], "2026-01-02T00:00:00Z");
        assert_eq!(changed["parents"].as_array().unwrap().len(), 2);
    }
}

//! What gateways read of Istio's own objects: the labels that DestinationRules call by a name, since sidecars say that name to
//! the gateway of another network and not the labels.

use std::collections::BTreeMap;
use std::sync::Arc;

use eastway_model::name::check_label_pair;
use eastway_model::rules::route::Subsets;
use eastway_model::{ServiceKey, Subset};
use kube::api::ApiResource;
use serde::Deserialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::client::{self, Access, ClientError};
use crate::watch::{Difference, ObjectName, Selection, Watch};

/// Domains of services in names of hosts.
const DOMAINS: [&str; 2] = [".svc.cluster.local", ".svc.clusterset.local"];
/// Most subsets of a rule, and labels of one: what a stream's header has room for.
const MAX_SUBSETS: usize = 64;
const MAX_LABELS: usize = 16;

/// A DestinationRule, as far as it says what subsets are.
#[derive(Clone, Debug, Default, Deserialize)]
struct Rule {
    #[serde(default)]
    spec: Spec,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Spec {
    host: String,
    subsets: Option<Vec<Named>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Named {
    name: String,
    labels: Option<BTreeMap<String, String>>,
}

/// Follows the API server behind `access` until `cancel`. What was told stays while the server is away (invariant I4).
///
/// # Errors
/// There is no client.
pub async fn follow(
    access: &Access,
    latest: watch::Sender<Arc<Subsets>>,
    cancel: CancellationToken,
) -> Result<(), ClientError> {
    let client = client::connect(access).await?;
    let resource = ApiResource {
        group: "networking.istio.io".to_owned(),
        version: "v1".to_owned(),
        api_version: "networking.istio.io/v1".to_owned(),
        kind: "DestinationRule".to_owned(),
        plural: "destinationrules".to_owned(),
    };
    let selection = Selection { resources: vec![resource], namespace: None, labels: None, fields: None };
    let mut watch = Watch::<Rule>::new(client, selection);
    let mut rules = BTreeMap::new();
    while let Some(differences) = cancel.run_until_cancelled(watch.next()).await {
        for difference in differences {
            match difference {
                Difference::Set(name, rule) => _ = rules.insert(name, rule),
                Difference::Gone(name) => _ = rules.remove(&name),
            }
        }
        if watch.status().listed {
            let now = of(&rules);
            latest.send_if_modified(|before| {
                let changed = **before != now;
                *before = Arc::new(now);
                changed
            });
        }
    }
    Ok(())
}

/// The subsets of all rules. Of two rules for a service that have one name, that of the first rule by name counts.
fn of(rules: &BTreeMap<ObjectName, Arc<Rule>>) -> Subsets {
    let mut all = Subsets::new();
    for (object, rule) in rules {
        let Some(service) = service(&rule.spec.host, &object.namespace) else { continue };
        let known = all.entry(service).or_default();
        for named in rule.spec.subsets.iter().flatten().take(MAX_SUBSETS) {
            if let Some(labels) = named.labels.as_ref().and_then(labels) {
                known.entry(Arc::from(named.name.to_ascii_lowercase())).or_insert_with(|| Arc::new(labels));
            }
        }
    }
    all.retain(|_, subsets| !subsets.is_empty());
    all
}

fn labels(labels: &BTreeMap<String, String>) -> Option<Subset> {
    let good = !labels.is_empty() && labels.len() <= MAX_LABELS;
    let good = good && labels.iter().all(|(key, value)| check_label_pair(key, value).is_ok());
    good.then(|| labels.iter().map(|(key, value)| (Arc::from(key.as_str()), Arc::from(value.as_str()))).collect())
}

/// The service that a host is, for a rule of this namespace.
fn service(host: &str, namespace: &str) -> Option<ServiceKey> {
    if !host.contains('.') {
        return ServiceKey::parse(namespace, host).ok();
    }
    let short = DOMAINS.into_iter().find_map(|domain| host.strip_suffix(domain))?;
    let (name, namespace) = short.split_once('.')?;
    ServiceKey::parse(namespace, name).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn rule(name: &str, spec: &Value) -> (ObjectName, Arc<Rule>) {
        (ObjectName::new("bookinfo", name), Arc::new(serde_json::from_value(json!({"spec": spec})).unwrap()))
    }

    #[test]
    fn subsets_are_known_by_service_and_name() {
        let subset = |name: &str, labels: Value| json!({"name": name, "labels": labels});
        let canary = subset("Canary", json!({"version": "v3", "track": "canary"}));
        let bad = [subset("a", json!({})), json!({"name": "b"}), subset("c", json!({"not a key": "x"}))];
        let rules = BTreeMap::from([
            rule("a", &json!({"host": "reviews", "subsets": [canary, bad[0], bad[1], bad[2]]})),
            rule(
                "b",
                &json!({"host": "reviews.bookinfo.svc.cluster.local", "subsets": [
                    subset("canary", json!({"version": "v9"})), subset("v1", json!({"version": "v1"})),
                ]}),
            ),
            rule("c", &json!({"host": "api.example.com", "subsets": [subset("v1", json!({"version": "v1"}))]})),
            rule("d", &json!({"host": "ratings"})),
        ]);
        let known = of(&rules);
        assert_eq!(known.len(), 1);
        let reviews = &known[&ServiceKey::parse("bookinfo", "reviews").unwrap()];
        let shown =
            |name: &str| -> Vec<String> { reviews[name].iter().map(|(key, value)| format!("{key}={value}")).collect() };
        assert_eq!(reviews.len(), 2);
        assert_eq!(shown("canary"), ["track=canary", "version=v3"]);
        assert_eq!(shown("v1"), ["version=v1"]);
    }
}

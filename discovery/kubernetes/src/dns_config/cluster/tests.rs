use serde_json::{Value, json};

use super::*;
use crate::testing::{Reply, client, failure};

/// A cluster with these objects of `kube-system`, by their path after the namespace.
fn cluster(objects: &[(&'static str, Value)]) -> Client {
    let objects = objects.to_vec();
    client(move |request| {
        let path = request.uri().path();
        match objects.iter().find(|(end, _)| path.ends_with(&format!("/namespaces/kube-system/{end}"))) {
            Some((_, object)) => Reply::Whole(200, object.clone()),
            None => Reply::Whole(404, failure(404, "NotFound", "not found")),
        }
    })
    .0
}

fn config_map(name: &str, data: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "kube-system"}, "data": data})
}

fn deployment_of(name: &str, labels: &Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "labels": labels}})
}

/// Each target as one line.
async fn found(objects: &[(&'static str, Value)]) -> Vec<String> {
    let found = targets(&cluster(objects)).await.unwrap();
    let line = |target: &Target| {
        let advice = if target.advice.is_some() { " advice" } else { "" };
        format!("{:?} {} {}{advice}", target.kind, target.name(), if target.text.is_some() { "there" } else { "new" })
    };
    found.iter().map(line).collect()
}

#[tokio::test]
async fn platforms_are_told_apart() {
    let corefile = |text: &str| ("configmaps/coredns", config_map("coredns", &json!({"Corefile": text})));
    let plain = || corefile(".:53 {\n reload\n}\n");
    assert_eq!(found(&[plain()]).await, ["Corefile kube-system/coredns Corefile there"]);
    let eks = deployment_of("coredns", &json!({"eks.amazonaws.com/component": "coredns"}));
    assert_eq!(
        found(&[plain(), ("deployments/coredns", eks)]).await,
        ["Corefile kube-system/coredns Corefile there advice"]
    );
    let aks = || corefile(".:53 {\n import custom/*.override\n}\nimport custom/*.server\n");
    assert_eq!(found(&[aks()]).await, ["Custom kube-system/coredns-custom eastway.server new"]);
    let custom = ("configmaps/coredns-custom", config_map("coredns-custom", &json!({"eastway.server": "x"})));
    assert_eq!(found(&[aks(), custom]).await, ["Custom kube-system/coredns-custom eastway.server there"]);
    let gke = ("deployments/kube-dns", deployment_of("kube-dns", &json!({})));
    assert_eq!(found(&[gke]).await, ["StubDomains kube-system/kube-dns stubDomains new"]);
    let local = ("configmaps/node-local-dns", config_map("node-local-dns", &json!({"Corefile": ".:53 {\n}\n"})));
    assert_eq!(
        found(&[plain(), local]).await,
        ["Corefile kube-system/coredns Corefile there", "Corefile kube-system/node-local-dns Corefile there"]
    );
    assert!(matches!(targets(&cluster(&[])).await, Err(ClusterError::NoResolver)));
}

#[tokio::test]
async fn a_resolver_without_reload_is_known() {
    let corefile = |text: &str| ("configmaps/coredns", config_map("coredns", &json!({"Corefile": text})));
    let reloads = async |text: &str| targets(&cluster(&[corefile(text)])).await.unwrap()[0].reloads();
    assert!(reloads(".:53 {\n  reload 10s\n}\n").await);
    assert!(!reloads(".:53 {\n  # reload\n}\n").await);
}

#[tokio::test]
async fn addresses_come_from_services() {
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "kube-dns"}, "spec": {"clusterIP": "10.96.0.10"}});
    let client = cluster(&[("services/kube-dns", service)]);
    assert_eq!(resolver(&client).await.unwrap().to_string(), "10.96.0.10");
    let error = service_address(&client, "eastway-system", "eastway-dns").await.unwrap_err();
    assert!(error.to_string().contains("install the chart first"), "{error}");
}

#[test]
fn what_else_is_in_a_config_map_stays() {
    let object = |object: Value| -> DynamicObject { serde_json::from_value(object).unwrap() };
    let mut map = object(json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "coredns", "resourceVersion": "7"},
        "data": {"Corefile": "old", "hosts": "x"}, "binaryData": {"image": "AAAA"}, "future": {"field": true},
    }));
    assert!(!set(&mut map, "Corefile", Some("new".to_owned())));
    let written = serde_json::to_value(&map).unwrap();
    let expected = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "coredns", "resourceVersion": "7"},
        "data": {"Corefile": "new", "hosts": "x"}, "binaryData": {"image": "AAAA"}, "future": {"field": true},
    });
    assert_eq!(written, expected);
    assert!(!set(&mut map, "Corefile", None), "other keys");
    assert!(!set(&mut map, "hosts", None), "binary data");
    let mut only_ours = ours("coredns-custom");
    assert!(!set(&mut only_ours, CUSTOM_KEY, Some("x".to_owned())));
    assert!(set(&mut only_ours, CUSTOM_KEY, None));
}

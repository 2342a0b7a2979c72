use std::sync::Mutex;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::*;
use crate::testing::{Reply, client, event};

const NAMESPACE: &str = "eastway-clusters";

fn read<K: serde::de::DeserializeOwned>(object: Value) -> Arc<K> {
    Arc::new(serde_json::from_value(object).unwrap())
}

fn secret(key: &str, value: &str) -> Value {
    json!({"data": {key: BASE64.encode(value)}})
}

fn kubeconfig(server: &str, user: &Value) -> String {
    let file = json!({
        "current-context": "x", "clusters": [{"name": "x", "cluster": {"server": server}}],
        "users": [{"name": "x", "user": user}],
        "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
    });
    file.to_string()
}

fn cluster_of(secret: &str) -> Value {
    json!({"spec": {"authInfo": {"controller": {"kind": "Secret", "name": secret}}}})
}

fn objects(clusters: &[(&str, Value)], profiles: &[(&str, Value)], secrets: &[(&str, Value)]) -> Objects {
    fn table<K: serde::de::DeserializeOwned>(all: &[(&str, Value)]) -> Table<K> {
        all.iter().map(|(name, object)| (Arc::from(*name), read(object.clone()))).collect()
    }
    Objects {
        namespace: NAMESPACE.to_owned(),
        clusters: table(clusters),
        profiles: table(profiles),
        secrets: table(secrets),
        good: BTreeMap::new(),
    }
}

fn servers(listed: &Listed) -> Vec<(&str, &str)> {
    listed.clusters.iter().flatten().map(|(name, credentials)| (&**name, credentials.server())).collect()
}

#[test]
fn clusters_and_profiles_have_their_credentials_in_secrets() {
    let registered = json!({"spec": {
        "kubernetesApiEndpoints": {"serverEndpoints": [{"clientCIDR": "0.0.0.0/0", "serverAddress": "10.0.0.1:6443"}]},
        "authInfo": {"controller": {"kind": "Secret", "name": "asia", "namespace": NAMESPACE}},
    }});
    let provider = |server: &str| json!([{"name": "secretreader", "cluster": {"server": server}}]);
    let mut objects = objects(
        &[("eu", cluster_of("eu-credentials")), ("asia", registered)],
        &[
            ("us", json!({"status": {"accessProviders": provider("https://us.example")}})),
            ("old", json!({"status": {"credentialProviders": provider("https://old.example")}})),
            // Also a Cluster of this name: that one counts.
            ("eu", json!({"status": {"accessProviders": provider("https://other.example")}})),
        ],
        &[
            ("eu-credentials", secret("kubeconfig", &kubeconfig("https://eu.example", &json!({"token": "t"})))),
            ("asia", secret("token", "t")),
            ("us", secret("token", "t")),
            ("old", secret("token", "t")),
        ],
    );
    let listed = objects.resolve();
    assert_eq!(listed.errors, Vec::<String>::new());
    let expected = [
        ("asia", "https://10.0.0.1:6443"),
        ("eu", "https://eu.example"),
        ("old", "https://old.example"),
        ("us", "https://us.example"),
    ];
    assert_eq!(servers(&listed), expected);
}

#[test]
fn i11_an_object_that_becomes_wrong_is_told_and_stays_as_it_was() {
    let good = secret("kubeconfig", &kubeconfig("https://eu.example", &json!({"token": "t"})));
    let mut objects = objects(&[("eu", cluster_of("eu"))], &[], &[("eu", good)]);
    let before = objects.resolve();
    let program = json!({"exec": {"command": "/bin/sh", "apiVersion": "client.authentication.k8s.io/v1"}});
    objects.secrets.insert("eu".into(), read(secret("kubeconfig", &kubeconfig("https://evil.example", &program))));
    let after = objects.resolve();
    assert_eq!(after.clusters, before.clusters);
    let [error] = after.errors.as_slice() else { panic!("{:?}", after.errors) };
    let start = "Cluster eastway-clusters/eu: Secret eastway-clusters/eu: kubeconfig: exec: would start the program";
    assert!(error.starts_with(start), "{error}");
    objects.secrets.clear();
    assert_eq!(objects.resolve().clusters, before.clusters, "the Cluster is still there");
    objects.clusters.clear();
    assert_eq!(servers(&objects.resolve()), [], "only then it goes");
}

#[test]
fn each_mistake_says_what_to_do() {
    let reference = |reference: Value| json!({"spec": {"authInfo": {"controller": reference}}});
    let cases = [
        (json!({}), "spec.authInfo.controller is missing: write {kind: Secret, name: …}"),
        (
            reference(json!({"kind": "ConfigMap", "name": "x"})),
            "spec.authInfo.controller.kind \"ConfigMap\" is none that is read: write {kind: Secret, name: …}",
        ),
        (
            reference(json!({"kind": "Secret", "name": "cacerts", "namespace": "eastway-system"})),
            "spec.authInfo.controller.namespace must be eastway-clusters: no other Secrets are read",
        ),
        (cluster_of("none"), "there is no Secret eastway-clusters/none: make it, with a key kubeconfig or token"),
        (cluster_of("empty"), "Secret eastway-clusters/empty has neither a key kubeconfig nor token"),
        (cluster_of("odd"), "Secret eastway-clusters/odd: its key token is no base64"),
        (
            cluster_of("token"),
            "Secret eastway-clusters/token has a token, but spec.kubernetesApiEndpoints.serverEndpoints does not say \
             which server it is for",
        ),
    ];
    let odd = json!({"data": {"token": "?"}});
    let secrets = [("empty", json!({})), ("odd", odd), ("token", secret("token", "t"))];
    for (cluster, expected) in cases {
        let listed = objects(&[("eu", cluster)], &[], &secrets).resolve();
        assert_eq!(listed.errors, [format!("Cluster eastway-clusters/eu: {expected}")]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_namespace_that_cannot_be_read_is_told() {
    let (client, _) = client(|_| Reply::status(403, "Forbidden", "secrets is forbidden: no right to list"));
    let (latest, mut listed) = watch::channel(None);
    let task = tokio::spawn(async move { follow(client, NAMESPACE, latest, CancellationToken::new()).await });
    let told = listed.wait_for(|listed| listed.as_ref().is_some_and(|listed| listed.errors.len() == 3));
    let told = tokio::time::timeout(Duration::from_secs(30), told).await.unwrap().unwrap().clone().unwrap();
    assert_eq!(
        (told.clusters.is_none(), told.errors[2].as_str()),
        (true, "secrets: secrets is forbidden: no right to list (403)")
    );
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn i5_nothing_is_told_before_all_is_listed_and_either_kind_is_enough() {
    let streams = Arc::new(Mutex::new(Vec::new()));
    let opened = Arc::clone(&streams);
    let (client, requests) = client(move |request| {
        if request.uri().path().contains("clusterprofiles") {
            return Reply::status(404, "NotFound", "the server could not find the requested resource");
        }
        let (sender, receiver) = mpsc::unbounded_channel();
        let of_secrets = request.uri().path().ends_with("/secrets");
        let mut object = if of_secrets {
            secret("kubeconfig", &kubeconfig("https://eu.example", &json!({})))
        } else {
            cluster_of("eu")
        };
        object["metadata"] = json!({"namespace": NAMESPACE, "name": "eu", "uid": "1", "resourceVersion": "1"});
        sender.send(Ok(event("ADDED", &object))).unwrap();
        opened.lock().unwrap().push((of_secrets, sender));
        Reply::Lines(receiver)
    });
    let (latest, mut listed) = watch::channel(None);
    let task = tokio::spawn(async move { follow(client, NAMESPACE, latest, CancellationToken::new()).await });
    let known = |listed: &Option<Arc<Listed>>| listed.as_ref().is_some_and(|listed| listed.clusters.is_some());
    let early = tokio::time::timeout(Duration::from_secs(30), listed.wait_for(known)).await.is_ok();
    assert!(!early, "no list has come to its end");
    let annotations = json!({"k8s.io/initial-events-end": "true"});
    let end =
        json!({"apiVersion": "v1", "kind": "X", "metadata": {"resourceVersion": "1", "annotations": annotations}});
    for (_, stream) in streams.lock().unwrap().iter() {
        stream.send(Ok(event("BOOKMARK", &end))).unwrap();
    }
    let told = tokio::time::timeout(Duration::from_secs(30), listed.wait_for(known)).await;
    let told = told.unwrap().unwrap().clone().unwrap();
    assert_eq!(servers(&told), [("eu", "https://eu.example")]);
    assert_eq!(told.errors, Vec::<String>::new());
    let asked = requests.lock().unwrap().clone();
    let outside = asked.iter().find(|path| !path.contains("/namespaces/eastway-clusters/"));
    assert_eq!(outside, None, "nothing else is read");
    task.abort();
}

use eastway_kubernetes::controller::object::Observed;
use eastway_model::store::Writer;
use eastway_model::{Change, LocalChange, LocalService, PortNumber, Protocol, ServiceRecord, UnixMillis};
use serde_json::{Value, json};

use super::*;

fn label(text: &str) -> Label {
    Label::parse(text).unwrap()
}

/// A cluster `onprem` with the Peer `gke` and the service shop/cart, whose port says `spoken`.
fn world(spoken: &str, objects: &[(Kind, &str, Value)]) -> BTreeMap<String, String> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("gateway.yaml");
    let text =
        "apiVersion: eastway.dev/v1alpha1\nkind: GatewayConfig\ncluster: onprem\ntrust: {domain: onprem.example}\n";
    std::fs::write(&file, text).unwrap();
    let files = crate::config::load(&file).unwrap();
    let pin = format!("sha256:{}", "ab".repeat(32));
    let peer = ("", "gke", json!({"trustDomain": "gke.example", "pins": [pin]}));
    let mut all = Objects::new();
    let others = objects.iter().map(|(kind, name, spec)| (*kind, ("shop", *name, spec.clone())));
    for (kind, (namespace, name, spec)) in std::iter::once((Kind::Peer, peer)).chain(others) {
        let mut metadata = json!({ "name": name });
        if !namespace.is_empty() {
            metadata["namespace"] = namespace.into();
        }
        let of_gateway_api = kind.is_route();
        let api_version = if of_gateway_api { "gateway.networking.k8s.io/v1" } else { "eastway.dev/v1alpha1" };
        let text = json!({
            "apiVersion": api_version, "kind": kind.as_str(), "metadata": metadata, "spec": spec,
        });
        let key = ObjectKey { kind, namespace: namespace.to_owned(), name: name.to_owned() };
        all.insert(key, format!("{text:#}").into());
    }
    let loaded = Overlay::default().merge(&files, &all, true);

    let (mut writer, reader) = Writer::new(label("onprem"));
    writer.await_registries([label("cluster")]);
    let port = ServicePort {
        name: None,
        number: PortNumber::new(80).unwrap(),
        protocol: Protocol::Tcp,
        app_protocol: Some(spoken.into()),
    };
    let record = ServiceRecord::new(ServiceKey::parse("shop", "cart").unwrap(), vec![port]);
    let service = Arc::new(LocalService::new(record, true, []));
    writer.apply(
        [Change::Local { registry: label("cluster"), change: LocalChange::Replace(vec![service]) }],
        UnixMillis(1),
    );
    let world = World { loaded: &loaded, snapshot: &reader.load(), complete: true };
    let verdicts = world.verdicts(&all);
    let about = Observed::default();
    let said = |verdict: &Verdict| {
        let conditions: Vec<Condition> = match verdict {
            Verdict::Policy(conditions) | Verdict::Everywhere(conditions) => conditions.clone(),
            Verdict::Parents(parents) => parents.iter().flat_map(|(_, conditions)| conditions.clone()).collect(),
        };
        let Value::Array(conditions) = Condition::list(&conditions, &about, "now") else { unreachable!() };
        let text = |it: &Value, key: &str| it[key].as_str().unwrap().to_owned();
        let one = |it: &Value| {
            format!("{}={}/{}: {}", text(it, "type"), text(it, "status"), text(it, "reason"), text(it, "message"))
        };
        conditions.iter().map(one).collect::<Vec<_>>().join("\n")
    };
    verdicts.iter().map(|(key, conditions)| (key.name.clone(), said(conditions))).collect()
}

fn split(clusters: &[&str]) -> Value {
    clusters.iter().map(|cluster| json!({"cluster": cluster, "weight": 50})).collect()
}

#[test]
fn shares_of_a_service_that_speaks_http_say_that_they_are_of_connections() {
    let policy = [(Kind::TrafficPolicy, "cart", json!({"service": "cart", "split": split(&["local", "gke"])}))];
    for (spoken, expected) in
        [("kubernetes.io/h2c", "PerRequest=False/NeedsL7"), ("mysql", "PerRequest=True/NotNeeded")]
    {
        let said = &world(spoken, &policy)["cart"];
        assert!(
            said.contains("Accepted=True") && said.contains("ResolvedRefs=True") && said.contains(expected),
            "{said}"
        );
    }
    let alone = [(Kind::TrafficPolicy, "cart", json!({"service": "cart", "split": split(&["gke"])}))];
    assert!(world("http", &alone)["cart"].contains("PerRequest=True"));
}

#[test]
fn what_a_policy_names_has_to_be_there() {
    let said = world(
        "http",
        &[
            (Kind::TrafficPolicy, "a", json!({"service": "cart", "failover": ["mars"]})),
            (Kind::TrafficPolicy, "b", json!({"service": "card"})),
            (Kind::AccessPolicy, "c", json!({"services": ["cart", "card"], "allow": [{"cluster": "gke"}]})),
            (Kind::AccessPolicy, "d", json!({"services": ["*"], "allow": [{"cluster": "mars"}]})),
        ],
    );
    assert!(said["a"].contains("ResolvedRefs=False/NoSuchCluster: no Peer is called \"mars\""), "{}", said["a"]);
    for name in ["b", "c"] {
        let expected = "ResolvedRefs=False/NoSuchService: there is no service \"card\" in this namespace";
        assert!(said[name].contains(expected), "{}", said[name]);
    }
    assert!(said["d"].contains("NoSuchCluster"), "{}", said["d"]);
}

#[test]
fn an_access_policy_says_whether_anybody_is_refused() {
    let said = world(
        "http",
        &[
            (Kind::AccessPolicy, "a", json!({"services": ["cart"], "allow": [{"cluster": "gke"}]})),
            (Kind::AccessPolicy, "b", json!({"services": ["cart"], "allow": [{"cluster": "gke"}], "dryRun": true})),
            (Kind::AccessPolicy, "c", json!({"services": ["cart"], "allow": []})),
        ],
    );
    assert!(said["a"].ends_with("Enforced=True/Enforced: who is not allowed by a policy is refused"), "{}", said["a"]);
    assert!(said["b"].contains("Enforced=False/DryRun"), "{}", said["b"]);
    assert!(said["c"].contains("Enforced=True/AllowsNobody"), "{}", said["c"]);
}

#[test]
fn a_mistake_is_the_message_and_concerns_one_policy_alone() {
    let said = world(
        "http",
        &[
            (Kind::TrafficPolicy, "a", json!({"service": "cart"})),
            (Kind::TrafficPolicy, "b", json!({"service": "cart"})),
            (Kind::AccessPolicy, "c", json!({"services": ["ca*t"], "allow": []})),
        ],
    );
    assert!(said["a"].contains("Accepted=True"), "{}", said["a"]);
    assert!(said["b"].starts_with("Accepted=False/Invalid: TrafficPolicy/shop/b"), "{}", said["b"]);
    assert!(said["b"].contains("already has a policy") && said["b"].contains("PerRequest=Unknown/NotAccepted"));
    assert!(said["c"].starts_with("Accepted=False/Invalid: AccessPolicy/shop/c"), "{}", said["c"]);
}

#[test]
fn routes_say_what_became_of_them_at_each_service() {
    let parent = |name: &str| json!([{"group": "", "kind": "Service", "name": name}]);
    let to = |name: &str| json!([{"backendRefs": [{"group": "eastway.dev", "kind": "ServiceShare", "name": name}]}]);
    let objects = [
        (Kind::ServiceShare, "here", json!({"service": "cart", "cluster": "local"})),
        (Kind::HttpRoute, "good", json!({"parentRefs": parent("cart"), "rules": to("here")})),
        (Kind::HttpRoute, "later", json!({"parentRefs": parent("cart"), "rules": to("nowhere")})),
        (Kind::HttpRoute, "missing", json!({"parentRefs": parent("card"), "rules": to("here")})),
        (Kind::HttpRoute, "wrong", json!({"parentRefs": parent("cart"), "rules": [{"backends": []}]})),
        (Kind::TcpRoute, "bytes", json!({"parentRefs": parent("cart"), "rules": to("here")})),
    ];
    let said = world("http", &objects);
    let lines: Vec<_> = said.iter().map(|(name, said)| format!("{name}:\n{said}")).collect();
    insta::assert_snapshot!(lines.join("\n"));
}

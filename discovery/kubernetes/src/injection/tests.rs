//! Questions of API servers, and the answers that they get.

use proptest::prelude::*;

use super::*;

fn settings() -> Settings {
    Settings {
        image: "registry.example/eastway-sidecar:1".to_owned(),
        pull_policy: "IfNotPresent".to_owned(),
        system_namespace: Label::parse("eastway-system").unwrap(),
        trust_domain: "onprem.example".to_owned(),
        ca: "https://eastway-ca.eastway-system.svc:15012".to_owned(),
        gateway: "eastway-gateway-local.eastway-system.svc:15012".to_owned(),
        ranges: Vec::new(),
        resources: json!({"requests": {"cpu": "50m"}}),
        ipv6: false,
    }
}

/// A pod as a Deployment's controller makes it, when the API server's own plugins have seen it.
fn pod() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"generateName": "web-6b7c-", "labels": {"app": "web"}},
        "spec": {
            "containers": [{"name": "web", "image": "web:1", "volumeMounts": [{"name": "token", "mountPath": "/x"}]}],
            "volumes": [{"name": "token", "projected": {"sources": []}}],
            "serviceAccountName": "web", "dnsPolicy": "ClusterFirst",
        },
    })
}

fn question(namespace: &str, pod: &Value) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "namespace": namespace, "operation": "CREATE", "object": pod, "oldObject": null, "dryRun": false,
        },
    })
}

fn ask(namespace: &str, pod: &Value) -> Answer {
    review(question(namespace, pod).to_string().as_bytes(), &settings()).unwrap()
}

/// The patch of an answer.
fn patch(answer: &Answer) -> Vec<Value> {
    let text = answer.body["response"]["patch"].as_str().unwrap_or_else(|| panic!("no patch: {}", answer.body));
    assert_eq!(answer.body["response"]["patchType"], "JSONPatch");
    serde_json::from_slice(&STANDARD.decode(text).unwrap()).unwrap()
}

/// What an API server makes of a pod and a patch that only adds.
fn applied(pod: &Value, patch: &[Value]) -> Value {
    let mut pod = pod.clone();
    for operation in patch {
        assert_eq!(operation["op"], "add");
        let path = operation["path"].as_str().unwrap();
        let (parent, key) = path.rsplit_once('/').unwrap();
        let key = key.replace("~1", "/").replace("~0", "~");
        let value = operation["value"].clone();
        match pod.pointer_mut(parent).unwrap_or_else(|| panic!("{path}: there is no {parent}")) {
            Value::Object(fields) => drop(fields.insert(key, value)),
            Value::Array(items) if key == "-" => items.push(value),
            Value::Array(items) => items.insert(key.parse().unwrap(), value),
            other @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_)) => panic!("{path}: {other}"),
        }
    }
    pod
}

fn injected(pod: &Value) -> Value {
    let answer = ask("shop", pod);
    assert_eq!(answer.outcome, Outcome::Injected, "{}", answer.body);
    applied(pod, &patch(&answer))
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect()
}

#[test]
fn a_pod_gets_a_sidecar() {
    let answer = ask("shop", &pod());
    assert_eq!((answer.outcome, answer.pod.as_str()), (Outcome::Injected, "shop/web-6b7c-"));
    let response = &answer.body["response"];
    assert_eq!(answer.body["kind"], "AdmissionReview");
    assert_eq!(response["uid"], "705ab4f5-6393-11e8-b7cc-42010a800002");
    assert_eq!(response["allowed"], true);
    insta::assert_json_snapshot!(injected(&pod()));
}

#[test]
fn what_the_pod_has_stays_and_comes_after() {
    let (mut pod, mut bare) = (pod(), pod());
    pod["metadata"]["annotations"] = json!({"prometheus.io/scrape": "true"});
    pod["spec"]["initContainers"] = json!([{"name": "migrate", "image": "m"}, {"name": "wait", "image": "w"}]);
    pod["spec"]["dnsConfig"] = json!({"options": [{"name": "ndots", "value": "2"}], "searches": ["corp.example"]});
    let after = injected(&pod);
    let starts = names(&after["spec"]["initContainers"]);
    assert_eq!(starts, ["eastway-capture", "eastway-sidecar", "migrate", "wait"]);
    assert_eq!(names(&after["spec"]["volumes"])[0], "token");
    assert_eq!(after["metadata"]["annotations"]["prometheus.io/scrape"], "true");
    let searches = &after["spec"]["dnsConfig"]["searches"];
    assert_eq!(*searches, json!(["corp.example", "shop.svc.clusterset.local", "svc.clusterset.local"]));
    assert_eq!(after["spec"]["dnsConfig"]["options"][0]["value"], "2");
    // Lists that are there and null, as some clients write them.
    bare["spec"]["volumes"] = Value::Null;
    bare["spec"]["initContainers"] = Value::Null;
    bare["spec"]["dnsConfig"] = json!({"searches": null});
    bare["metadata"]["annotations"] = Value::Null;
    assert_eq!(names(&injected(&bare)["spec"]["volumes"]).len(), 3);
}

#[test]
fn asked_again_it_changes_nothing() {
    let once = injected(&pod());
    let again = ask("shop", &once);
    assert_eq!(again.outcome, Outcome::Already);
    assert_eq!(again.body["response"]["allowed"], true);
    assert!(again.body["response"].get("patch").is_none());
}

#[test]
fn who_gets_none_is_let_in_without() {
    let with = |path: &str, key: &str, value: Value| {
        let mut pod = pod();
        pod.pointer_mut(path).unwrap()[key] = value;
        pod
    };
    for (namespace, pod, outcome) in [
        ("kube-system", pod(), Outcome::SystemNamespace),
        ("eastway-system", pod(), Outcome::SystemNamespace),
        ("shop", with("/metadata", "annotations", json!({INJECT: "false"})), Outcome::OptedOut),
        ("shop", with("/spec", "hostNetwork", json!(true)), Outcome::HostNetwork),
        ("shop", with("/spec", "os", json!({"name": "windows"})), Outcome::OtherSystem),
        ("shop", with("/spec", "dnsPolicy", json!("Default")), Outcome::DnsPolicy),
        ("shop", with("/spec", "dnsPolicy", json!("None")), Outcome::DnsPolicy),
        ("shop", with("/metadata", "annotations", json!({"kubernetes.io/config.mirror": "x"})), Outcome::Static),
    ] {
        let answer = ask(namespace, &pod);
        assert_eq!(answer.outcome, outcome);
        let response = &answer.body["response"];
        assert!(response["allowed"] == true && response.get("patch").is_none(), "{response}");
        let is_surprise = matches!(outcome, Outcome::HostNetwork | Outcome::DnsPolicy);
        assert_eq!(response.get("warnings").is_some(), is_surprise, "{response}");
    }
    for (key, value) in [
        ("operation", json!("UPDATE")),
        ("kind", json!({"group": "apps", "version": "v1", "kind": "Deployment"})),
        ("subResource", json!("ephemeralcontainers")),
    ] {
        let mut other = question("shop", &pod());
        other["request"][key] = value;
        let answer = review(other.to_string().as_bytes(), &settings()).unwrap();
        assert_eq!(answer.outcome, Outcome::NotAPod, "{key}");
        assert_eq!(answer.body["response"]["allowed"], true);
    }
}

#[test]
fn what_cannot_be_is_refused_in_words() {
    let mut refusals = Vec::new();
    let mut refuse = |change: &dyn Fn(&mut Value)| {
        let mut pod = pod();
        change(&mut pod);
        let answer = ask("shop", &pod);
        let response = &answer.body["response"];
        assert_eq!((answer.outcome, &response["allowed"]), (Outcome::Refused, &json!(false)), "{response}");
        assert!(response.get("patch").is_none() && response["status"]["code"] == 422);
        assert!(answer.reason.is_some());
        refusals.push(response["status"]["message"].as_str().unwrap().to_owned());
    };
    refuse(&|pod| pod["metadata"]["annotations"] = json!({INJECT: "no"}));
    refuse(&|pod| pod["metadata"]["annotations"] = json!({RANGES: "10.96.0.0"}));
    refuse(&|pod| pod["metadata"]["annotations"] = json!({RANGES: " , "}));
    refuse(&|pod| pod["metadata"]["annotations"] = json!({LISTENERS: ","}));
    refuse(&|pod| pod["metadata"]["annotations"] = json!({LISTENERS: "80=shop/cart:80"}));
    refuse(&|pod| pod["spec"]["containers"][0]["name"] = json!("eastway-sidecar"));
    refuse(&|pod| pod["spec"]["initContainers"] = json!([{"name": "eastway-capture"}]));
    refuse(&|pod| pod["spec"]["volumes"][0]["name"] = json!("eastway-run"));
    refuse(&|pod| pod["spec"]["securityContext"] = json!({"runAsUser": 1337}));
    refuse(&|pod| pod["spec"]["containers"][0]["securityContext"] = json!({"runAsUser": 1337}));
    refuse(&|pod| pod["spec"]["serviceAccountName"] = json!("web.front"));
    insta::assert_snapshot!(refusals.join("\n"));
}

#[test]
fn ranges_of_a_pod_come_before_those_of_the_cluster() {
    let vips = |pod: &Value, settings: &Settings| {
        let answer = review(question("shop", pod).to_string().as_bytes(), settings).unwrap();
        let after = applied(pod, &patch(&answer));
        let config = after["spec"]["initContainers"][0]["env"][4]["value"].as_str().unwrap().to_owned();
        serde_json::from_str::<Value>(&config).unwrap()["vips"].clone()
    };
    let cluster = Settings { ranges: vec!["10.96.0.0/16".to_owned()], ..settings() };
    assert_eq!(vips(&pod(), &settings()), json!([]));
    assert_eq!(vips(&pod(), &cluster), json!(["10.96.0.0/16"]));
    let mut own = pod();
    own["metadata"]["annotations"] = json!({RANGES: "10.0.0.0/8, fd00:1::/64"});
    assert_eq!(vips(&own, &cluster), json!(["10.0.0.0/8", "fd00:1::/64"]));
}

#[test]
fn who_names_places_gets_no_rules_and_no_rights() {
    let mut own = pod();
    own["metadata"]["annotations"] = json!({LISTENERS: "9080=bookinfo/reviews:9080/http, 7000=pay/queue:70"});
    let after = injected(&own);
    assert_eq!(names(&after["spec"]["initContainers"]), ["eastway-sidecar"]);
    assert!(!after.to_string().contains("NET_ADMIN"));
    let config = after["spec"]["initContainers"][0]["env"][4]["value"].as_str().unwrap();
    let config: Value = serde_json::from_str(config).unwrap();
    assert!(config.get("capture").is_none() && config["outbound"] == false);
    assert_eq!(
        config["listeners"],
        json!([
            {"listen": "127.0.0.1:9080", "service": "bookinfo/reviews", "port": 9080, "protocol": "http"},
            {"listen": "127.0.0.1:7000", "service": "pay/queue", "port": 70, "protocol": "tcp"},
        ])
    );
    for bad in [
        "9080",
        "x=a/b:1",
        "15001=a/b:1",
        "15021=a/b:1",
        "9080=a:1",
        "9080=a/b",
        "9080=a/b:0",
        "9080=a/b:1/ftp",
        "1023=a/b:1",
    ] {
        own["metadata"]["annotations"] = json!({LISTENERS: bad});
        assert_eq!(ask("shop", &own).outcome, Outcome::Refused, "{bad}");
    }
}

#[test]
fn ports_of_a_pod_are_taken_by_its_sidecar() {
    let mut own = pod();
    own["metadata"]["annotations"] = json!({INBOUND: "9080/http, 7000"});
    let after = injected(&own);
    let config = after["spec"]["initContainers"][1]["env"][4]["value"].as_str().unwrap();
    let config: Value = serde_json::from_str(config).unwrap();
    let place = |listen: &str, app: &str, protocol: &str| json!({"listen": listen, "app": app, "protocol": protocol, "mode": "permissive"});
    let wanted =
        [place("0.0.0.0:15100", "127.0.0.1:9080", "http"), place("0.0.0.0:15101", "127.0.0.1:7000", "service")];
    assert_eq!(config["inbound"], json!(wanted));
    assert_eq!(config["workload"]["addresses"], "$(POD_IPS)", "where Services lead to it");
    let read = serde_json::from_value(after["metadata"].clone()).unwrap();
    let said = Inbound { ports: [9080, 7000].into(), strict: false };
    assert_eq!(inbound_of(&read), Some(said), "what others are told of the pod");
    for bad in ["", "x", "0", "9080/ftp", "9080/", "9080/service", "9080,9080/http", "15001", "65536"] {
        own["metadata"]["annotations"] = json!({INBOUND: bad});
        assert_eq!(ask("shop", &own).outcome, Outcome::Refused, "{bad}");
    }
    own["metadata"]["annotations"] = json!({INBOUND: "9080", LISTENERS: "9080=a/b:1"});
    assert_eq!(ask("shop", &own).outcome, Outcome::Refused, "without rules nothing is led in");
}

#[test]
fn where_pods_have_ipv6_it_comes_in_too() {
    let mut own = pod();
    own["metadata"]["annotations"] = json!({INBOUND: "9080", TLS: "strict"});
    let body = question("shop", &own).to_string();
    let answer = review(body.as_bytes(), &Settings { ipv6: true, ..settings() }).unwrap();
    let after = applied(&own, &patch(&answer));
    let config = after["spec"]["initContainers"][1]["env"][4]["value"].as_str().unwrap();
    let config: Value = serde_json::from_str(config).unwrap();
    let places = config["inbound"].as_array().unwrap();
    let shown: Vec<_> = places.iter().map(|one| (one["listen"].as_str(), one["app"].as_str())).collect();
    let wanted = [("0.0.0.0:15100", "127.0.0.1:9080"), ("[::]:15100", "[::1]:9080")];
    assert_eq!(shown, wanted.map(|(listen, app)| (Some(listen), Some(app))));
    assert!(places.iter().all(|one| one["mode"] == "strict" && one["protocol"] == "service"), "{places:?}");
}

#[test]
fn a_pod_may_take_mutual_tls_alone_unless_the_kubelet_asks_there_without() {
    let mut own = pod();
    own["metadata"]["annotations"] = json!({INBOUND: "9080/http", TLS: "strict"});
    let after = injected(&own);
    let config = after["spec"]["initContainers"][1]["env"][4]["value"].as_str().unwrap();
    assert!(config.contains("\"mode\":\"strict\""), "{config}");
    let read = serde_json::from_value(after["metadata"].clone()).unwrap();
    assert_eq!(inbound_of(&read), Some(Inbound { ports: [9080].into(), strict: true }));
    own["spec"]["containers"][0]["ports"] = json!([{"name": "web", "containerPort": 9080}]);
    for (probe, outcome) in [
        (json!({"httpGet": {"port": 9080}}), Outcome::Refused),
        (json!({"httpGet": {"port": "web"}}), Outcome::Refused),
        (json!({"grpc": {"port": 9080}}), Outcome::Refused),
        (json!({"httpGet": {"port": 8081}}), Outcome::Injected),
        (json!({"tcpSocket": {"port": 9080}}), Outcome::Injected),
        (json!({"exec": {"command": ["true"]}}), Outcome::Injected),
    ] {
        own["spec"]["containers"][0]["readinessProbe"] = probe.clone();
        assert_eq!(ask("shop", &own).outcome, outcome, "{probe}");
    }
    let refused = json!({"httpGet": {"port": "web"}});
    own["spec"]["containers"][0]["readinessProbe"] = refused;
    own["metadata"]["annotations"] = json!({INBOUND: "9080/http", TLS: "permissive"});
    assert_eq!(ask("shop", &own).outcome, Outcome::Injected);
    for bad in [json!({TLS: "strict"}), json!({INBOUND: "9080", TLS: "mutual"})] {
        own["metadata"]["annotations"] = bad.clone();
        assert_eq!(ask("shop", &own).outcome, Outcome::Refused, "{bad}");
    }
}

#[test]
fn a_pod_with_many_search_domains_gets_no_more_than_it_may_have() {
    for (count, wanted) in [(23, 25), (24, 26), (25, 25), (32, 32)] {
        let mut pod = pod();
        let searches: Vec<String> = (0..count).map(|n| format!("d{n}.example")).collect();
        pod["spec"]["dnsConfig"] = json!({"searches": searches});
        assert_eq!(injected(&pod)["spec"]["dnsConfig"]["searches"].as_array().unwrap().len(), wanted, "{count}");
    }
}

#[test]
fn what_is_no_question_is_told() {
    let ask = |text: &str| review(text.as_bytes(), &settings()).map(drop);
    let good = question("shop", &pod());
    let without = |pointer: &str, value: Value| {
        let mut bad = good.clone();
        *bad.pointer_mut(pointer).unwrap() = value;
        bad.to_string()
    };
    assert_eq!(ask(&good.to_string()), Ok(()));
    assert_eq!(ask(&without("/apiVersion", json!("admission.k8s.io/v1beta1"))), Err(ReviewError::Kind));
    assert_eq!(ask(&without("/kind", json!("Pod"))), Err(ReviewError::Kind));
    assert_eq!(ask(&without("/request/uid", json!(""))), Err(ReviewError::Uid));
    assert_eq!(ask(&without("/request/uid", json!("x".repeat(129)))), Err(ReviewError::Uid));
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let nested = good.to_string().replace("\"web:1\"", &deep);
    let many = [
        String::new(),
        "{".to_owned(),
        "null".to_owned(),
        without("/request", Value::Null),
        without("/request/object/spec/containers", json!({"a": 1})),
        without("/request/object/spec/containers/0/name", json!(7)),
        deep,
        nested,
    ];
    for bad in many {
        assert!(matches!(ask(&bad), Err(ReviewError::Malformed(_))), "{}", &bad[..bad.len().min(200)]);
    }
    assert!(review(&[0xff, 0xfe], &settings()).is_err());
}

/// Anything that has the shape of a pod.
fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[a-z/\"$(){}.~\u{0}-\u{20}]{0,12}".prop_map(Value::from),
    ];
    let keys = prop::sample::select(vec![
        "metadata",
        "spec",
        "name",
        "annotations",
        "containers",
        "initContainers",
        "volumes",
        "dnsConfig",
        "searches",
        "securityContext",
        "runAsUser",
        "hostNetwork",
        INJECT,
        RANGES,
        STATUS,
    ]);
    leaf.prop_recursive(5, 60, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((keys.clone(), inner), 0..6)
                .prop_map(|pairs| pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()),
        ]
    })
}

proptest! {
    /// Whatever stands for a pod, there is an answer or an error, and a patch fits what it is for.
    #[test]
    fn hostile_pods_get_answers(pod in any_value()) {
        if let Ok(answer) = review(question("shop", &pod).to_string().as_bytes(), &settings())
            && answer.outcome == Outcome::Injected
            && pod["spec"].is_object() && pod["metadata"].is_object()
        {
            let after = applied(&pod, &patch(&answer));
            let again = review(question("shop", &after).to_string().as_bytes(), &settings()).unwrap();
            prop_assert_eq!(again.outcome, Outcome::Already);
        }
    }

    #[test]
    fn hostile_bodies_get_errors(body in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(review(&body, &settings()).is_err());
    }
}

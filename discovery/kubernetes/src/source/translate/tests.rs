#![allow(clippy::needless_pass_by_value, reason = "json!(…) as an argument reads better than a reference to it")]

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::*;

fn decoded<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

fn name() -> ObjectName {
    ObjectName::new("shop", "cart")
}

/// A Service of these fields beside a port, exported.
fn exported(spec: Value) -> (Option<Translated>, Vec<Problem>) {
    let mut whole = json!({"ports": [{"port": 80}]});
    whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    let object = decoded(json!({"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": whole}));
    let export = decoded(json!({"metadata": {"creationTimestamp": "2026-02-01T00:00:00Z"}}));
    let mut problems = Vec::new();
    (service(&name(), &object, Some(&export), &Rules::default(), &mut problems), problems)
}

fn record(spec: Value) -> ServiceRecord {
    let (translated, problems) = exported(spec);
    assert_eq!(problems, []);
    translated.unwrap().record
}

fn marked(meta: Value, marks: &[ExportMark]) -> bool {
    let object = decoded(json!({"metadata": meta, "spec": {"ports": [{"port": 80}]}}));
    let rules = Rules { marks: marks.to_vec(), ..Rules::default() };
    service(&name(), &object, None, &rules, &mut Vec::new()).unwrap().exported
}

fn texts(problems: &[Problem]) -> Vec<String> {
    problems.iter().map(ToString::to_string).collect()
}

#[test]
fn who_is_told_the_clients_address() {
    let told = |annotation: &str| {
        let object = decoded(json!({
            "metadata": {"annotations": {"eastway.dev/proxy-protocol": annotation}},
            "spec": {"ports": [{"name": "web", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "tls", "port": 443}]},
        }));
        let mut problems = Vec::new();
        let translated = service(&name(), &object, None, &Rules::default(), &mut problems).unwrap();
        let ports: Vec<u16> = translated.record.proxy_protocol.iter().map(|port| port.get()).collect();
        (ports, texts(&problems).join("; "))
    };
    assert_eq!(told("v2"), (vec![80, 443], String::new()));
    assert_eq!(told("v2:tls"), (vec![443], String::new()));
    assert_eq!(told("v2: 80, tls"), (vec![80, 443], String::new()));
    assert_eq!(told("v2:dns").1, "annotation eastway.dev/proxy-protocol: there is no TCP port dns");
    assert_eq!(
        told("v1"),
        (vec![], "annotation eastway.dev/proxy-protocol: must be v2, or v2: and ports with commas between them".into())
    );
    assert_eq!(told("").0, Vec::<u16>::new());
}

#[test]
fn fields_of_a_service() {
    let plain = record(json!({}));
    assert_eq!((plain.kind, plain.session_affinity), (ServiceKind::ClusterSetIp, SessionAffinity::None));
    assert_eq!(plain.internal_traffic_policy, InternalTrafficPolicy::Cluster);
    assert_eq!(plain.exported_at, UnixMillis(1_769_904_000_000), "the ServiceExport's time, not the Service's");
    assert_eq!(record(json!({"clusterIP": "None"})).kind, ServiceKind::Headless);
    assert_eq!(record(json!({"clusterIP": "10.96.0.7"})).kind, ServiceKind::ClusterSetIp);
    let sticky = |config: Value| record(json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": config}));
    let timeout = |seconds| SessionAffinity::ClientIp { timeout: Duration::from_secs(seconds) };
    assert_eq!(sticky(json!(null)).session_affinity, timeout(10_800));
    assert_eq!(sticky(json!({"clientIP": {"timeoutSeconds": 10}})).session_affinity, timeout(10));
    assert_eq!(sticky(json!({"clientIP": {"timeoutSeconds": 9_999_999}})).session_affinity, timeout(86_400));
    assert_eq!(record(json!({"internalTrafficPolicy": "Local"})).internal_traffic_policy, InternalTrafficPolicy::Local);
    assert_eq!(
        record(json!({"trafficDistribution": "PreferClose"})).traffic_distribution.as_deref(),
        Some("PreferClose")
    );
    let families = record(json!({"ipFamilies": ["IPv6", "IPv4"]})).ip_families;
    assert_eq!(families, [IpFamily::Ipv6, IpFamily::Ipv4]);
}

#[test]
fn ports_of_a_service() {
    let ports = json!([
        {"name": "http", "port": 80, "appProtocol": "kubernetes.io/h2c"},
        {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
        {"name": "dns", "port": 53, "protocol": "UDP"},
        {"name": "sctp", "port": 53, "protocol": "SCTP"},
        {"name": "dccp", "port": 54, "protocol": "DCCP"},
        {"name": "zero", "port": 0},
        {"name": "Bad_", "port": 9},
    ]);
    let (translated, problems) = exported(json!({ "ports": ports }));
    let ports = translated.unwrap().record.ports;
    let shown: Vec<_> = ports.iter().map(|port| (port.number.get(), port.protocol)).collect();
    assert_eq!(shown, [(80, Protocol::Tcp), (53, Protocol::Tcp), (53, Protocol::Udp), (53, Protocol::Sctp)]);
    assert_eq!(ports[0].app_protocol.as_deref(), Some("kubernetes.io/h2c"));
    let texts = texts(&problems);
    assert_eq!(texts[0], "port dccp: DCCP does not cross");
    assert_eq!(texts[1], "port zero: not a port number");
    assert!(texts[2].starts_with("port Bad_: its name must consist of lower-case letters"), "{}", texts[2]);
    let many: Vec<_> = (1..=251).map(|port| json!({"name": format!("p{port}"), "port": port})).collect();
    let (translated, problems) = exported(json!({ "ports": many }));
    assert_eq!((translated.unwrap().record.ports.len(), problems.len()), (250, 1));
    assert!(record(json!({"clusterIP": "None", "ports": []})).ports.is_empty());
}

#[test]
fn an_external_name_is_never_exported() {
    let (translated, problems) = exported(json!({"type": "ExternalName", "externalName": "169.254.169.254"}));
    assert_eq!((translated, problems), (None, vec![Problem::ExternalName]));
}

#[test]
fn i3_what_we_derived_is_no_service_of_ours() {
    let meta = json!({"labels": {"app.kubernetes.io/managed-by": "eastway"}});
    let object = decoded(json!({"metadata": meta, "spec": {"ports": [{"port": 80}]}}));
    let export = ServiceExport::default();
    assert_eq!(service(&name(), &object, Some(&export), &Rules::default(), &mut Vec::new()), None);
    let slice = |labels: Value| {
        let slice: EndpointSlice = decoded(json!({"metadata": {"labels": labels}}));
        slice_service(&slice).map(ToOwned::to_owned)
    };
    let service = "kubernetes.io/service-name";
    assert_eq!(slice(json!({service: "cart"})).as_deref(), Some("cart"));
    assert_eq!(slice(json!({service: "cart", "endpointslice.kubernetes.io/managed-by": "eastway.dev"})), None);
    assert_eq!(slice(json!({service: "cart", "multicluster.kubernetes.io/source-cluster": "b"})), None);
    assert_eq!(slice(json!({})), None);
}

#[test]
fn services_of_the_system_stay_at_home() {
    let object = decoded(json!({"spec": {"ports": [{"port": 53}]}}));
    let mut problems = Vec::new();
    let name = ObjectName::new("kube-system", "kube-dns");
    let kept = service(&name, &object, Some(&ServiceExport::default()), &Rules::default(), &mut problems).unwrap();
    assert_eq!((kept.exported, texts(&problems)), (false, vec![Problem::NeverShared.to_string()]));
    let numbered = ObjectName::new("shop", "123");
    assert_eq!(service(&numbered, &object, Some(&ServiceExport::default()), &Rules::default(), &mut problems), None);
}

#[test]
fn marks_of_other_meshes_count_only_if_configured() {
    let all = [ExportMark::Istio, ExportMark::Linkerd, ExportMark::Cilium];
    let istio = json!({"labels": {"istio.io/global": "true"}});
    let linkerd = json!({"labels": {"mirror.linkerd.io/exported": "true"}});
    let cilium = json!({"annotations": {"service.cilium.io/global": "true"}});
    for (mark, meta) in all.into_iter().zip([&istio, &linkerd, &cilium]) {
        assert!(marked(meta.clone(), &[mark]) && marked(meta.clone(), &all), "{mark:?}");
        assert!(!marked(meta.clone(), &[]));
        let others: Vec<_> = all.into_iter().filter(|other| *other != mark).collect();
        assert!(!marked(meta.clone(), &others), "{mark:?}");
    }
    let unshared = json!({"service.cilium.io/global": "true", "service.cilium.io/shared": "false"});
    assert!(!marked(json!({"annotations": unshared}), &all));
    assert!(!marked(json!({"labels": {"istio.io/global": "false"}}), &all));
    assert!(!marked(json!({"labels": null, "annotations": null}), &all));
}

#[test]
fn only_exported_labels_and_annotations_cross() {
    let object = decoded(json!({"metadata": {"labels": {"secret": "1"}, "annotations": {"secret": "1"}},
                                "spec": {"ports": [{"port": 80}]}}));
    let many: BTreeMap<_, _> = (0..20).map(|number| (format!("a{number:02}"), "v")).collect();
    let export =
        decoded(json!({"spec": {"exportedLabels": {"team": "blue", "bad key": "x"}, "exportedAnnotations": many}}));
    let mut problems = Vec::new();
    let record = service(&name(), &object, Some(&export), &Rules::default(), &mut problems).unwrap().record;
    assert_eq!(record.labels, [("team".into(), "blue".into())].into());
    assert_eq!(record.annotations.len(), 16);
    assert_eq!(problems.len(), 5);
}

fn slice_of(endpoints: Value) -> Slice {
    slice("shop", &decoded(json!({"addressType": "IPv4", "endpoints": endpoints})), false, &mut Interner::default())
}

fn condition(conditions: Value) -> EndpointCondition {
    let read = slice_of(json!([{"addresses": ["10.0.0.1"], "conditions": conditions}]));
    read.entries.values().next().unwrap().condition
}

#[test]
fn conditions_as_kubernetes_defines_them() {
    assert_eq!(condition(json!(null)), EndpointCondition::READY);
    assert_eq!(condition(json!({})), EndpointCondition::READY);
    assert_eq!(condition(json!({"ready": false})), EndpointCondition::DOWN);
    let draining = condition(json!({"ready": false, "serving": true, "terminating": true}));
    assert_eq!(draining, EndpointCondition::DRAINING);
}

#[test]
fn p6_addresses_that_no_pod_has_are_refused() {
    let bad =
        ["127.0.0.1", "169.254.169.254", "224.0.0.1", "0.0.0.0", "::ffff:10.0.0.1", "www.example", "10.0.0.300", ""];
    for address in bad {
        let read = slice_of(json!([{"addresses": [address]}]));
        assert!(read.entries.is_empty(), "{address}");
        assert_eq!(read.refused.len(), 1, "{address}");
    }
    let names = json!({"addressType": "FQDN", "endpoints": [{"addresses": ["10.0.0.1"]}]});
    assert_eq!(
        slice("shop", &decoded(names), false, &mut Interner::default()).refused,
        [("10.0.0.1".into(), Refused::NotAnAddress)]
    );
    let local = json!({"addressType": "IPv4", "endpoints": [{"addresses": ["127.0.0.1"]}]});
    assert_eq!(slice("shop", &decoded(local), true, &mut Interner::default()).entries.len(), 1);
    assert!(slice_of(json!([{"addresses": []}, {"addresses": null}, {}])).entries.is_empty());
    assert!(slice_of(json!(null)).entries.is_empty());
}

#[test]
fn of_two_words_about_an_address_the_better_one_counts() {
    let read = slice_of(json!([
        {"addresses": ["10.0.0.1"], "conditions": {"ready": false}},
        {"addresses": ["10.0.0.1", "10.0.0.2"], "hostname": "cart-0", "zone": "eu-1a"},
        {"addresses": ["10.0.0.1"], "conditions": {"ready": false, "serving": true, "terminating": true}},
    ]));
    let entry = &read.entries[&"10.0.0.1".parse().unwrap()];
    assert_eq!((read.entries.len(), entry.condition.ready), (1, true));
    assert_eq!(entry.hostname.as_ref().map(Label::as_str), Some("cart-0"));
    assert_eq!(entry.zone.as_deref(), Some("eu-1a"));
}

#[test]
fn whose_address_a_slice_says_it_is() {
    let target = |target: Value| {
        let read = slice_of(json!([{"addresses": ["10.0.0.1"], "targetRef": target}]));
        read.entries.values().next().unwrap().target.clone()
    };
    assert_eq!(target(json!(null)), None);
    assert_eq!(target(json!({"kind": "Node", "name": "n"})), Some(Target::Other));
    assert_eq!(target(json!({"kind": "Pod", "namespace": "bank", "uid": "u"})), Some(Target::Other));
    let pod = |more: Value| {
        let mut whole = json!({"kind": "Pod", "namespace": "shop"});
        whole.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        target(whole)
    };
    assert_eq!(pod(json!({"uid": "u", "name": "n"})), Some(Target::Uid("u".into())));
    assert_eq!(pod(json!({"uid": "", "name": "n"})), Some(Target::Name("n".into())));
    assert_eq!(pod(json!({})), Some(Target::Unnamed));
}

fn view(spec: Value, status: Value) -> Option<PodView> {
    let labels = json!({"version": "v2", "pod-template-hash": "abc", "app": "cart"});
    let object = decoded(json!({"metadata": {"uid": "u", "labels": labels}, "spec": spec, "status": status}));
    pod(&ObjectName::new("shop", "cart-0"), &object, &Rules::default(), &mut Interner::default())
}

#[test]
fn what_is_kept_of_a_pod() {
    let status = json!({"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]});
    let kept = view(json!({"serviceAccountName": "cart"}), status.clone()).unwrap();
    assert_eq!(kept.addresses.as_slice(), ["10.0.0.1".parse::<IpAddr>().unwrap(), "fd00::1".parse().unwrap()]);
    assert_eq!(kept.service_account.as_ref().map(Label::as_str), Some("cart"));
    assert_eq!(kept.subset, [("version".into(), "v2".into())].into(), "no other label leaves the cluster");
    assert_eq!(view(json!({"hostNetwork": true}), status), None, "the address of a node is anybody's");
    assert_eq!(view(json!({}), json!({"phase": "Pending"})), None);
    assert_eq!(view(json!({}), json!({"phase": "Failed", "podIP": "10.0.0.1"})), None);
    assert_eq!(view(json!({"serviceAccountName": "a.b"}), json!({"podIP": "10.0.0.1"})).unwrap().service_account, None);
}

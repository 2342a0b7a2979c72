#![allow(clippy::needless_pass_by_value, reason = "json!(…) as an argument reads better than a reference to it")]

use eastway_model::{EndpointCondition, Label, TlsMode};
use proptest::prelude::*;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::*;
use crate::injection;

fn set<K: DeserializeOwned>(namespace: &str, name: &str, value: Value) -> Difference<K> {
    Difference::Set(ObjectName::new(namespace, name), Arc::new(serde_json::from_value(value).unwrap()))
}

fn gone<K>(name: &str) -> Difference<K> {
    Difference::Gone(ObjectName::new("shop", name))
}

fn service(name: &str, port: u16) -> Difference<Service> {
    set("shop", name, json!({"spec": {"ports": [{"name": "http", "port": port}]}}))
}

fn export(name: &str) -> Difference<ServiceExport> {
    set("shop", name, json!({"metadata": {"creationTimestamp": "2026-02-01T00:00:00Z"}}))
}

/// Endpoints: address, uid of the pod, ready.
fn slice(name: &str, service: &str, endpoints: &[(&str, &str, bool)]) -> Difference<EndpointSlice> {
    let endpoint = |(address, uid, ready): &(&str, &str, bool)| {
        json!({"addresses": [address], "conditions": {"ready": ready},
               "targetRef": {"kind": "Pod", "namespace": "shop", "name": uid, "uid": uid}})
    };
    let endpoints: Vec<_> = endpoints.iter().map(endpoint).collect();
    set(
        "shop",
        name,
        json!({"metadata": {"labels": {"kubernetes.io/service-name": service}}, "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080}], "endpoints": endpoints}),
    )
}

fn pod(name: &str, address: &str, version: &str) -> Difference<Pod> {
    pod_in("shop", name, address, version)
}

fn pod_in(namespace: &str, name: &str, address: &str, version: &str) -> Difference<Pod> {
    set(
        namespace,
        name,
        json!({"metadata": {"uid": name, "labels": {"version": version}},
        "spec": {"serviceAccountName": name.split('-').next()}, "status": {"podIP": address}}),
    )
}

/// What a reader of the changes knows.
#[derive(Debug, Default, PartialEq)]
struct Mirror {
    services: BTreeMap<ServiceKey, (Translated, BTreeMap<EndpointId, LocalEndpoint>)>,
    workloads: BTreeMap<IpAddr, Workload>,
}

impl Mirror {
    fn apply(&mut self, changes: Vec<LocalChange>) {
        for change in changes {
            self.change(change);
        }
    }

    fn change(&mut self, change: LocalChange) {
        match change {
            LocalChange::Upsert(service) => {
                let record = eastway_model::ServiceRecord { groups: Vec::new(), ..(*service.record).clone() };
                let translated = Translated { record, exported: service.exported };
                let endpoints = service.endpoints.iter();
                let endpoints = endpoints.map(|one| (one.endpoint.id.clone(), LocalEndpoint::clone(one))).collect();
                self.services.insert(service.key().clone(), (translated, endpoints));
            }
            LocalChange::Remove(key) => assert!(self.services.remove(&key).is_some(), "{key} was not there"),
            LocalChange::Endpoints { service, upsert, remove } => {
                let endpoints = &mut self.services.get_mut(&service).unwrap().1;
                for id in remove {
                    assert!(endpoints.remove(&id).is_some(), "{id} was not there");
                }
                endpoints.extend(upsert.into_iter().map(|one| (one.endpoint.id.clone(), one)));
            }
            LocalChange::Replace(services) => {
                self.services.clear();
                services.into_iter().for_each(|service| self.change(LocalChange::Upsert(service)));
            }
            LocalChange::Workloads(workloads) => {
                self.workloads = workloads.into_iter().map(|workload| (workload.address, workload)).collect();
            }
            LocalChange::WorkloadEdits { upsert, remove } => {
                self.workloads.extend(upsert.into_iter().map(|workload| (workload.address, workload)));
                self.workloads.retain(|address, _| !remove.contains(address));
            }
            LocalChange::Removed => panic!("a registry does not decide that"),
        }
    }
}

/// A service with two pods, told.
fn cart() -> (State, Mirror) {
    cart_of("")
}

/// The same in the API server with this salt.
fn cart_of(salt: &str) -> (State, Mirror) {
    let mut state = State::new(Rules { salt: salt.into(), ..Rules::default() });
    state.service(service("cart", 80));
    state.export(export("cart"));
    state.slice(slice("cart-1", "cart", &[("10.0.0.1", "cart-a", true), ("10.0.0.2", "cart-b", true)]));
    state.pod(pod("cart-a", "10.0.0.1", "v1"));
    state.pod(pod("cart-b", "10.0.0.2", "v2"));
    let mut mirror = Mirror::default();
    mirror.apply(state.all());
    (state, mirror)
}

fn endpoints(mirror: &Mirror) -> Vec<&LocalEndpoint> {
    let mut all: Vec<_> = mirror.services.values().flat_map(|(_, endpoints)| endpoints.values()).collect();
    all.sort_by_key(|endpoint| endpoint.address);
    all
}

fn addresses(mirror: &Mirror) -> Vec<String> {
    endpoints(mirror).iter().map(|endpoint| endpoint.address.to_string()).collect()
}

#[test]
fn copies_of_one_api_server_share_no_endpoint_id() {
    let ids = |salt: &str| -> BTreeSet<EndpointId> {
        endpoints(&cart_of(salt).1).iter().map(|one| one.endpoint.id.clone()).collect()
    };
    assert_eq!(ids("list-eu"), ids("list-eu"), "the same after a restart and in every replica");
    let all: BTreeSet<_> = ["", "list-eu", "list-us"].into_iter().flat_map(ids).collect();
    assert_eq!(all.len(), 6, "equal uids and addresses: only the API server differs");
}

#[test]
fn a_service_of_its_parts() {
    let (state, mirror) = cart();
    let (translated, _) = mirror.services.values().next().unwrap();
    assert!(translated.exported);
    let first = endpoints(&mirror)[0];
    assert_eq!(first.target_ports, [(eastway_model::PortNumber::new(80).unwrap().into(), 8080)].into());
    assert_eq!(first.service_account.as_ref().map(Label::as_str), Some("cart"));
    assert_eq!(first.endpoint.subset, [("version".into(), "v1".into())].into());
    assert_eq!(first.endpoint.condition, EndpointCondition::READY);
    assert!(!first.endpoint.id.as_str().contains("10"), "an id tells no address: {}", first.endpoint.id);
    assert_eq!(mirror.workloads.len(), 2);
    let counts = Counts { services: 1, exported: 1, endpoints: 2, workloads: 2 };
    assert_eq!((state.counts(), state.problems().count()), (counts, 0));
}

/// What a pod's sidecar takes is what peers are told, by whom the pod runs as; a pod without one proves nothing, whatever it says.
#[test]
fn a_pod_with_a_sidecar_takes_mutual_tls_at_the_ports_that_it_names() {
    let told = |trust_domain: Option<&str>, annotations: Value| {
        let sidecars = trust_domain.map(Arc::from);
        let mut state = State::new(Rules { sidecars, ..Rules::default() });
        state.service(service("cart", 80));
        state.export(export("cart"));
        state.slice(slice("cart-1", "cart", &[("10.0.0.1", "cart-a", true)]));
        state.pod(set(
            "shop",
            "cart-a",
            json!({"metadata": {"uid": "cart-a", "annotations": annotations},
            "spec": {"serviceAccountName": "cart"}, "status": {"podIP": "10.0.0.1"}}),
        ));
        let mut mirror = Mirror::default();
        mirror.apply(state.all());
        let endpoint = endpoints(&mirror)[0].endpoint.clone();
        (endpoint.tls, endpoint.identity.map(|identity| identity.to_string()))
    };
    let both = |inbound: &str| json!({injection::STATUS: "injected", injection::INBOUND: inbound});
    let id = Some("spiffe://a.example/ns/shop/sa/cart".to_owned());
    assert_eq!(told(Some("a.example"), both("8080/http, 9000")), (TlsMode::Mesh, id.clone()));
    let strict = json!({injection::STATUS: "injected", injection::INBOUND: "8080", injection::TLS: "strict"});
    assert_eq!(told(Some("a.example"), strict), (TlsMode::MeshStrict, id));
    let plain = (TlsMode::None, None);
    assert_eq!(told(Some("a.example"), both("9000")), plain, "not at the port of the service");
    assert_eq!(told(Some("a.example"), both("nonsense")), plain);
    assert_eq!(told(Some("a.example"), json!({injection::INBOUND: "8080"})), plain, "it has no sidecar");
    assert_eq!(told(None, both("8080")), plain, "of another API server");
}

/// A sidecar would take the header for what the client says: the export is told, and nobody is led there.
#[test]
fn a_pod_whose_sidecar_takes_a_port_that_is_told_the_clients_address_takes_no_part() {
    let (mut state, mut mirror) =
        (State::new(Rules { sidecars: Some("a.example".into()), ..Rules::default() }), Mirror::default());
    let told = |of: &str| {
        let annotations = json!({"eastway.dev/proxy-protocol": of});
        set(
            "shop",
            "cart",
            json!({"metadata": {"annotations": annotations}, "spec": {"ports": [{"name": "http", "port": 80}]}}),
        )
    };
    let pod_with = |inbound: &str| {
        let annotations = json!({injection::STATUS: "injected", injection::INBOUND: inbound});
        set(
            "shop",
            "cart-a",
            json!({"metadata": {"uid": "cart-a", "annotations": annotations}, "status": {"podIP": "10.0.0.1"}}),
        )
    };
    let problems = |state: &State| -> Vec<String> {
        state.problems().flat_map(|(_, all)| all).map(|problem| problem.to_string()).collect()
    };
    state.service(told("v2"));
    state.slice(slice("cart-1", "cart", &[("10.0.0.1", "cart-a", true)]));
    state.pod(pod_with("8080"));
    mirror.apply(state.all());
    assert_eq!(addresses(&mirror), ["10.0.0.1"], "it is not exported: nobody is told anything");
    state.export(export("cart"));
    mirror.apply(state.flush());
    assert!(addresses(&mirror).is_empty());
    let refused =
        "endpoint 10.0.0.1 refused: its sidecar takes connections at a port that eastway.dev/proxy-protocol names";
    assert_eq!(problems(&state), [refused]);
    // Either side mends it.
    for mend in [0, 1] {
        match mend {
            0 => state.pod(pod_with("9000")),
            _ => state.service(service("cart", 80)),
        }
        mirror.apply(state.flush());
        assert_eq!((addresses(&mirror).len(), problems(&state).len()), (1, 0), "{mend}");
        state.pod(pod_with("8080"));
        mirror.apply(state.flush());
    }
}

#[test]
fn one_endpoint_costs_one_endpoint() {
    let (mut state, mut mirror) = cart();
    state.slice(slice("cart-1", "cart", &[("10.0.0.1", "cart-a", true), ("10.0.0.2", "cart-b", false)]));
    let changes = state.flush();
    assert!(
        matches!(&*changes, [LocalChange::Endpoints { upsert, remove, .. }] if upsert.len() == 1 && remove.is_empty())
    );
    mirror.apply(changes);
    assert_eq!(endpoints(&mirror)[1].endpoint.condition, EndpointCondition::DOWN);
    state.slice(slice("cart-1", "cart", &[("10.0.0.1", "cart-a", true), ("10.0.0.2", "cart-b", false)]));
    state.pod(pod("cart-a", "10.0.0.1", "v1"));
    state.service(service("cart", 80));
    assert!(state.flush().is_empty(), "what says the same again is no news");
}

#[test]
fn i7_a_successor_at_the_same_address_is_another_endpoint() {
    let (mut state, mut mirror) = cart();
    let before = endpoints(&mirror)[0].endpoint.id.clone();
    state.pod(gone("cart-a"));
    mirror.apply(state.flush());
    assert_eq!(addresses(&mirror), ["10.0.0.2"], "no pod, no endpoint, whatever the slice says");
    state.pod(pod("cart-c", "10.0.0.1", "v1"));
    mirror.apply(state.flush());
    assert_eq!(addresses(&mirror), ["10.0.0.2"], "the slice still means the other pod");
    state.slice(slice("cart-1", "cart", &[("10.0.0.1", "cart-c", true)]));
    mirror.apply(state.flush());
    assert_eq!(addresses(&mirror), ["10.0.0.1"]);
    assert_ne!(endpoints(&mirror)[0].endpoint.id, before);
}

#[test]
fn p6_a_slice_made_by_hand_leads_only_to_pods_of_its_namespace() {
    let (mut state, mut mirror) = cart();
    state.pod(pod_in("bank", "vault-a", "10.0.0.9", "v1"));
    let metadata = json!({"labels": {"kubernetes.io/service-name": "cart"}});
    let by_hand = |endpoints: Value| {
        set(
            "shop",
            "by-hand",
            json!({"metadata": metadata, "addressType": "IPv4",
            "ports": [{"name": "http", "port": 443}], "endpoints": endpoints}),
        )
    };
    // Another namespace's pod, in three disguises; an address outside; a node.
    let mine = json!({"kind": "Pod", "namespace": "shop", "name": "cart-a", "uid": "cart-a"});
    let theirs = json!({"kind": "Pod", "namespace": "bank", "name": "vault-a", "uid": "vault-a"});
    for endpoint in [
        json!({"addresses": ["10.0.0.9"]}),
        json!({"addresses": ["10.0.0.9"], "targetRef": mine}),
        json!({"addresses": ["10.0.0.9"], "targetRef": theirs}),
        json!({"addresses": ["192.0.2.1"]}),
        json!({"addresses": ["10.0.0.1"], "targetRef": {"kind": "Node", "name": "n1"}}),
    ] {
        state.slice(by_hand(json!([endpoint])));
        mirror.apply(state.flush());
        let all = endpoints(&mirror);
        assert_eq!(addresses(&mirror), ["10.0.0.1", "10.0.0.2"], "{endpoint}");
        assert!(all.iter().all(|endpoint| endpoint.target_ports.values().all(|port| *port == 8080)), "{endpoint}");
    }
    state.slice(by_hand(json!([{"addresses": ["10.0.0.9"]}, {"addresses": ["169.254.169.254"]}])));
    mirror.apply(state.flush());
    let problems: Vec<_> = state.problems().flat_map(|(_, all)| all).map(|problem| problem.to_string()).collect();
    let refused = "endpoint 10.0.0.9 refused: not the address of a pod of this namespace";
    assert_eq!(problems, ["endpoint 169.254.169.254 refused: link-local", refused]);
    // Its own pods it may name by hand.
    state.pod(pod("other-a", "10.0.0.7", "v1"));
    state.slice(by_hand(json!([{"addresses": ["10.0.0.7"]}])));
    mirror.apply(state.flush());
    assert_eq!(addresses(&mirror), ["10.0.0.1", "10.0.0.2", "10.0.0.7"]);
    assert_eq!(state.problems().count(), 0);
}

#[test]
fn an_endpoint_of_two_slices_is_one() {
    let (mut state, mut mirror) = cart();
    state.slice(slice("cart-2", "cart", &[("10.0.0.2", "cart-b", false), ("10.0.0.1", "cart-a", false)]));
    assert!(matches!(&*state.flush(), [LocalChange::Endpoints { .. }]));
    assert_eq!(addresses(&mirror).len(), 2);
    state.slice(gone("cart-1"));
    mirror.apply(state.flush());
    assert!(endpoints(&mirror).iter().all(|endpoint| !endpoint.endpoint.condition.ready));
    state.slice(gone("cart-2"));
    mirror.apply(state.flush());
    assert!(addresses(&mirror).is_empty());
    assert_eq!(
        state.addresses.values().filter(|at| !at.services.as_slice().is_empty()).count(),
        0,
        "nothing is left behind"
    );
}

#[test]
fn unmarked_and_removed() {
    let (mut state, mut mirror) = cart();
    state.export(gone("cart"));
    mirror.apply(state.flush());
    assert!(!mirror.services.values().next().unwrap().0.exported);
    state.service(gone("cart"));
    mirror.apply(state.flush());
    assert!(mirror.services.is_empty());
    state.slice(gone("cart-1"));
    state.pod(gone("cart-a"));
    state.pod(gone("cart-b"));
    mirror.apply(state.flush());
    assert_eq!(mirror, Mirror::default());
    assert!(state.services.is_empty() && state.addresses.is_empty() && state.slices.is_empty());
}

#[test]
fn an_address_that_two_claim_is_nobodys() {
    let (mut state, mut mirror) = cart();
    let address = "10.0.0.1".parse().unwrap();
    state.pod(pod_in("bank", "vault-a", "10.0.0.1", "v1"));
    mirror.apply(state.flush());
    assert!(!mirror.workloads.contains_key(&address));
    state.pod(Difference::Gone(ObjectName::new("bank", "vault-a")));
    mirror.apply(state.flush());
    assert_eq!(mirror.workloads[&address].namespace.as_str(), "shop");
}

#[derive(Clone, Debug)]
enum Step {
    Service(u8, Option<u16>),
    Export(u8, bool),
    Slice { slice: u8, service: Option<u8>, endpoints: Vec<(u8, u8, bool)> },
    Pod(u8, Option<(u8, bool)>),
    Flush,
}

fn step() -> impl Strategy<Value = Step> {
    let endpoints = prop::collection::vec((0..6_u8, 0..6_u8, any::<bool>()), 0..4);
    prop_oneof![
        2 => (0..2_u8, prop::option::of(80..82_u16)).prop_map(|(name, port)| Step::Service(name, port)),
        1 => (0..2_u8, any::<bool>()).prop_map(|(name, there)| Step::Export(name, there)),
        4 => (0..3_u8, prop::option::weighted(0.8, 0..2_u8), endpoints)
            .prop_map(|(slice, service, endpoints)| Step::Slice { slice, service, endpoints }),
        4 => (0..6_u8, prop::option::weighted(0.8, (0..6_u8, any::<bool>()))).prop_map(|(pod, at)| Step::Pod(pod, at)),
        3 => Just(Step::Flush),
    ]
}

fn apply(state: &mut State, step: &Step) {
    match step {
        Step::Service(number, Some(port)) => state.service(service(&format!("s{number}"), *port)),
        Step::Service(number, None) => state.service(gone(&format!("s{number}"))),
        Step::Export(number, true) => state.export(export(&format!("s{number}"))),
        Step::Export(number, false) => state.export(gone(&format!("s{number}"))),
        Step::Slice { slice: number, service: None, .. } => state.slice(gone(&format!("e{number}"))),
        Step::Slice { slice: number, service: Some(service), endpoints } => {
            let texts: Vec<_> = endpoints
                .iter()
                .map(|(address, pod, ready)| (format!("10.0.0.{address}"), format!("p-{pod}"), *ready))
                .collect();
            let endpoints: Vec<_> = texts.iter().map(|(address, pod, ready)| (&**address, &**pod, *ready)).collect();
            state.slice(slice(&format!("e{number}"), &format!("s{service}"), &endpoints));
        }
        Step::Pod(number, None) => state.pod(gone(&format!("p-{number}"))),
        Step::Pod(number, Some((address, v1))) => {
            let version = if *v1 { "v1" } else { "v2" };
            state.pod(pod(&format!("p-{number}"), &format!("10.0.0.{address}"), version));
        }
        Step::Flush => {}
    }
}

/// Which object a step is about.
fn subject(step: &Step) -> Option<(u8, u8)> {
    match step {
        Step::Service(number, _) => Some((0, *number)),
        Step::Export(number, _) => Some((1, *number)),
        Step::Slice { slice, .. } => Some((2, *slice)),
        Step::Pod(number, _) => Some((3, *number)),
        Step::Flush => None,
    }
}

proptest! {
    /// Whatever came before, and in whatever order: the end is what one list of the last objects gives.
    #[test]
    fn any_history_ends_as_the_last_list(
        before in prop::collection::vec(step(), 0..20),
        steps in prop::collection::vec(step(), 0..60),
    ) {
        let mut state = State::new(Rules::default());
        before.iter().for_each(|step| apply(&mut state, step));
        let mut mirror = Mirror::default();
        mirror.apply(state.all());
        let mut last = BTreeMap::new();
        for step in before.iter().chain(&steps) {
            if let Some(subject) = subject(step) {
                last.insert(subject, step.clone());
            }
        }
        for step in &steps {
            apply(&mut state, step);
            if matches!(step, Step::Flush) {
                mirror.apply(state.flush());
            }
        }
        mirror.apply(state.flush());
        let mut fresh = State::new(Rules::default());
        last.values().for_each(|step| apply(&mut fresh, step));
        let mut expected = Mirror::default();
        expected.apply(fresh.all());
        prop_assert_eq!(&mirror, &expected);
        prop_assert_eq!(state.counts(), fresh.counts());
        let problems = |state: &State| {
            let mut all: Vec<_> = state.problems().map(|(name, all)| (name.clone(), all)).collect();
            all.sort_by(|a, b| a.0.cmp(&b.0));
            all
        };
        prop_assert_eq!(problems(&state), problems(&fresh));
    }
}

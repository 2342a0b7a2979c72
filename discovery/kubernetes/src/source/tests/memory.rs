//! What a cluster of 5,000 services and 50,000 endpoints costs the gateway that reads it: from the lists of an API
//! server to a published snapshot.

use eastway_model::store::Writer;

use super::*;

const SERVICES: usize = 5_000;
const PER_SERVICE: usize = 10;
/// Bytes that each endpoint with its pod may cost in the end: of 150 MB half, at 50,000.
const MOST: u64 = 1_500;

#[test]
fn fifty_thousand_endpoints_fit() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut kept = None;
    let measured = allocation_counter::measure(|| kept = Some(runtime.block_on(read())));
    let endpoints = u64::try_from(SERVICES * PER_SERVICE).unwrap();
    let stays = u64::try_from(measured.bytes_current).unwrap() / endpoints;
    let peak = measured.bytes_max / endpoints;
    println!("{stays} bytes for each endpoint and its pod; {peak} while the lists were read");
    drop(kept);
    assert!(stays <= MOST, "{stays} bytes for each endpoint");
}

/// A registry that has read all, and the store that has it.
async fn read() -> (Running, Writer) {
    let (client, _) = client(|request| Reply::Made(lines(kind_of(request.uri().path()))));
    let (registry, _status) = KubernetesRegistry::new(KubernetesRegistryConfig {
        name: Label::parse("cluster").unwrap(),
        access: Access::InCluster,
        rules: Rules::default(),
        copy: None,
        clock: Arc::new(|| UnixMillis(42)),
    });
    let (sender, mut changes) = mpsc::channel(16);
    let mut running = Running::new(registry, &client, sender);
    let (mut writer, _reader) = Writer::new(Label::parse("big").unwrap());
    writer.await_registries([Label::parse("cluster").unwrap()]);
    while !writer.snapshot().is_local_synced() {
        let told = tokio::select! {
            stepped = running.step() => { assert!(stepped.is_ok()); None }
            change = changes.recv() => change,
        };
        writer.apply(told, UnixMillis(42));
    }
    let snapshot = writer.snapshot();
    let known: usize = snapshot.locals().map(|service| service.endpoints.len()).sum();
    assert_eq!((known, running.state.counts().workloads), (SERVICES * PER_SERVICE, SERVICES * PER_SERVICE));
    (running, writer)
}

fn lines(kind: &'static str) -> Box<dyn Iterator<Item = String> + Send + Sync> {
    let all = SERVICES * PER_SERVICE;
    let objects: Box<dyn Iterator<Item = Value> + Send + Sync> = match kind {
        "services" => Box::new((0..SERVICES).map(service)),
        "serviceexports" => Box::new((0..SERVICES).map(|number| json!({"metadata": names(number, "")}))),
        "endpointslices" => Box::new((0..SERVICES).map(slice_of)),
        _ => Box::new((0..all).map(pod)),
    };
    Box::new(objects.map(|object| event("ADDED", &object)).chain([end_of_list()]))
}

/// Names and uids as long as they are in real clusters.
fn names(service: usize, suffix: &str) -> Value {
    let (namespace, name) = (format!("team-{:02}", service % 50), format!("service-{service:05}{suffix}"));
    let uid = uid(&name);
    json!({"namespace": namespace, "name": name, "uid": uid, "resourceVersion": "1234567",
           "creationTimestamp": "2026-02-01T00:00:00Z"})
}

fn uid(name: &str) -> String {
    let hash = name.bytes().fold(1_u64, |hash, byte| hash.wrapping_mul(1_099_511_628_211) ^ u64::from(byte));
    format!("{:08x}-7d9c-4b8f-9a64-{:012x}", hash >> 32, hash & 0xffff_ffff_ffff)
}

fn service(number: usize) -> Value {
    json!({"metadata": names(number, ""), "spec": {
        "type": "ClusterIP", "clusterIP": format!("10.96.{}.{}", number / 250, number % 250), "ipFamilies": ["IPv4"],
        "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080}], "sessionAffinity": "None",
        "internalTrafficPolicy": "Cluster", "selector": {"app": format!("service-{number:05}")},
    }})
}

fn address(service: usize, endpoint: usize) -> String {
    let number = service * PER_SERVICE + endpoint;
    format!("10.{}.{}.{}", 128 + number / 62_500, number / 250 % 250, number % 250 + 1)
}

fn pod_suffix(endpoint: usize) -> String {
    format!("-7d9c5b8f64-{endpoint:05}")
}

fn pod(number: usize) -> Value {
    let (service, endpoint) = (number / PER_SERVICE, number % PER_SERVICE);
    let mut metadata = names(service, &pod_suffix(endpoint));
    metadata["labels"] = json!({"app": format!("service-{service:05}"), "version": format!("v{}", endpoint % 3),
                                "pod-template-hash": "7d9c5b8f64"});
    let address = address(service, endpoint);
    json!({"metadata": metadata, "spec": {"serviceAccountName": "default", "nodeName": "node-1"},
           "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}})
}

fn slice_of(number: usize) -> Value {
    let mut metadata = names(number, "-x7k2p");
    let (service, namespace) = (format!("service-{number:05}"), metadata["namespace"].clone());
    metadata["labels"] = json!({"kubernetes.io/service-name": service});
    let endpoint = |endpoint: usize| {
        let name = format!("{service}{}", pod_suffix(endpoint));
        json!({"addresses": [address(number, endpoint)], "nodeName": "node-1", "zone": "zone-a",
               "conditions": {"ready": true, "serving": true, "terminating": false},
               "targetRef": {"kind": "Pod", "namespace": namespace, "name": name, "uid": uid(&name)}})
    };
    json!({"metadata": metadata, "addressType": "IPv4", "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
           "endpoints": (0..PER_SERVICE).map(endpoint).collect::<Vec<_>>()})
}

//! The objects of a large cluster, as an API server of today keeps them.

use eastway_tests::kube::bare::Stored;
use serde_json::{Value, json};

/// Services.
pub(super) const SERVICES: usize = 5_000;
/// Endpoints of each, a pod each.
pub(super) const PER_SERVICE: usize = 10;
/// Namespaces that they are in.
const NAMESPACES: usize = 50;

/// A pod as a Deployment makes it: one container, nothing mounted but its token.
const POD: &str = include_str!("pod.json");
const CREATED: &str = "2026-02-01T00:00:00Z";

/// Where an exported service is.
pub(super) fn namespace(service: usize) -> String {
    format!("e2e-size-{:02}", service % NAMESPACES)
}

pub(super) fn name(service: usize) -> String {
    format!("service-{service:05}")
}

/// Name of its only slice.
pub(super) fn slice_name(service: usize) -> String {
    format!("{}-x7k2p", name(service))
}

/// The namespaces, and what Eastway needs beside its own programs.
pub(super) fn frame(gateway: &str) -> Vec<Stored> {
    let namespaces = (0..NAMESPACES).map(namespace).chain(["eastway-system".to_owned()]);
    let mut objects: Vec<_> = namespaces
        .map(|name| {
            let meta = json!({"name": name, "uid": uid(&name), "creationTimestamp": CREATED,
                              "labels": {"kubernetes.io/metadata.name": name}});
            let value = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": meta,
                               "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}});
            stored(&format!("namespaces/{name}"), &value)
        })
        .collect();
    for account in ["eastway-gateway", "eastway-controller", "eastway-ca"] {
        let value = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta("eastway-system", account)});
        objects.push(stored(&format!("serviceaccounts/eastway-system/{account}"), &value));
    }
    // The controller leads imports to the gateways' pods; ours is a process of the node.
    let mut meta = meta("eastway-system", "eastway-gateway-0");
    meta["labels"] = json!({"app.kubernetes.io/name": "eastway", "app.kubernetes.io/component": "gateway"});
    let value = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": meta,
        "spec": {"containers": [{"name": "gateway", "image": "eastway"}], "serviceAccountName": "eastway-gateway"},
        "status": {"phase": "Running", "podIP": gateway, "podIPs": [{"ip": gateway}],
                   "conditions": [{"type": "Ready", "status": "True"}]},
    });
    objects.push(stored("pods/eastway-system/eastway-gateway-0", &value));
    objects
}

/// All services with their endpoints, every one exported.
pub(super) fn services() -> impl Iterator<Item = Stored> {
    (0..SERVICES).flat_map(|service| {
        let pods = (0..PER_SERVICE).map(move |endpoint| pod(service, endpoint));
        [self::service(service), address_of(service), export(service), slice(service)].into_iter().chain(pods)
    })
}

fn service(service: usize) -> Stored {
    let (namespace, name, address) = (namespace(service), name(service), cluster_ip(service));
    let value = json!({"apiVersion": "v1", "kind": "Service", "metadata": meta(&namespace, &name), "spec": {
        "type": "ClusterIP", "clusterIP": address, "clusterIPs": [address], "ipFamilies": ["IPv4"],
        "ipFamilyPolicy": "SingleStack", "internalTrafficPolicy": "Cluster", "sessionAffinity": "None",
        "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080}], "selector": {"app": name},
    }, "status": {"loadBalancer": {}}});
    stored(&format!("services/specs/{namespace}/{name}"), &value)
}

/// Who has a cluster IP; the API server would make 5,000 of these itself, in its first minutes.
fn address_of(service: usize) -> Stored {
    let address = cluster_ip(service);
    let value = json!({"apiVersion": "networking.k8s.io/v1", "kind": "IPAddress",
        "metadata": {"name": address, "uid": uid(&address), "creationTimestamp": CREATED, "labels": {
            "ipaddress.kubernetes.io/ip-family": "IPv4",
            "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io",
        }},
        "spec": {"parentRef": {"group": "", "resource": "services", "namespace": namespace(service), "name": name(service)}}});
    stored(&format!("ipaddresses/{address}"), &value)
}

fn export(service: usize) -> Stored {
    let (namespace, name) = (namespace(service), name(service));
    let value = json!({"apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceExport",
                       "metadata": meta(&namespace, &name)});
    stored(&format!("multicluster.x-k8s.io/serviceexports/{namespace}/{name}"), &value)
}

fn slice(service: usize) -> Stored {
    let value = slice_value(service, None);
    stored(&format!("endpointslices/{}/{}", namespace(service), slice_name(service)), &value)
}

/// The slice of a service; of one endpoint it may say that it is not ready.
pub(super) fn slice_value(service: usize, not_ready: Option<usize>) -> Value {
    let (namespace, name) = (namespace(service), name(service));
    let mut meta = meta(&namespace, &slice_name(service));
    meta["labels"] = json!({"kubernetes.io/service-name": name,
                            "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"});
    let endpoint = |endpoint: usize| {
        let (pod, ready) = (pod_name(service, endpoint), not_ready != Some(endpoint));
        json!({"addresses": [address(service, endpoint)], "nodeName": "node-1", "zone": "zone-a",
               "conditions": {"ready": ready, "serving": ready, "terminating": false},
               "targetRef": {"kind": "Pod", "namespace": namespace, "name": pod, "uid": uid(&pod)}})
    };
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": meta, "addressType": "IPv4",
           "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
           "endpoints": (0..PER_SERVICE).map(endpoint).collect::<Vec<_>>()})
}

fn pod(service: usize, endpoint: usize) -> Stored {
    let (namespace, name) = (namespace(service), pod_name(service, endpoint));
    let value = POD.replace("$POD", &name).replace("$UID", &uid(&name)).replace("$NAMESPACE", &namespace);
    let value = value.replace("$SERVICE", &self::name(service)).replace("$ADDRESS", &address(service, endpoint));
    Stored {
        key: format!("/registry/pods/{namespace}/{name}"),
        value: value.replace("$VERSION", &format!("v{}", endpoint % 3)),
    }
}

fn pod_name(service: usize, endpoint: usize) -> String {
    format!("{}-7d9c5b8f64-{endpoint:05}", name(service))
}

fn address(service: usize, endpoint: usize) -> String {
    let number = service * PER_SERVICE + endpoint;
    format!("10.{}.{}.{}", 128 + number / 62_500, number / 250 % 250, number % 250 + 1)
}

/// Far from those that the API server gives out first.
fn cluster_ip(service: usize) -> String {
    format!("10.96.{}.{}", 200 + service / 250, service % 250 + 1)
}

fn meta(namespace: &str, name: &str) -> Value {
    json!({"namespace": namespace, "name": name, "uid": uid(&format!("{namespace}/{name}")), "creationTimestamp": CREATED})
}

/// The same text always gets the same one.
fn uid(text: &str) -> String {
    let hash =
        |seed: u64| text.bytes().fold(seed, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let (high, low) = (hash(0xcbf2_9ce4_8422_2325), hash(0x8422_2325_cbf2_9ce4));
    format!("{:08x}-{:04x}-4b8f-9a64-{:012x}", high >> 32, high & 0xffff, low & 0xffff_ffff_ffff)
}

fn stored(key: &str, value: &Value) -> Stored {
    Stored { key: format!("/registry/{key}"), value: value.to_string() }
}

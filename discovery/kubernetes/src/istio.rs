//! What Istio's own installation in this cluster says of itself, as far as it has to fit what we do beside it. Read when
//! somebody asks for it, and never followed.

use std::collections::{BTreeMap, BTreeSet};

use eastway_model::ServiceKey;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use kube::api::{ApiResource, DynamicObject, ListParams, PartialObjectMeta};
use kube::{Api, Client, ResourceExt as _};
use serde_json::Value;
use tokio::time::timeout;

use crate::client::{self, Access};
use crate::controller::api::resource;
use crate::controller::desired::WITHHELD;
use crate::controller::object::Kind;
use crate::controller::{names, networks};
use crate::lease::REQUEST;

/// Where Istio is, and its ConfigMap there; that of a revision has the revision's name behind it.
const SYSTEM: &str = "istio-system";
const MESH: &str = "istio";
/// What pods of istiod have: a label, and one that says of which revision they are.
const ISTIOD: &str = "app=istiod";
const REVISION: &str = "istio.io/rev";
/// The revision of an istiod that was installed without.
const DEFAULT: &str = "default";
/// Most pods of istiod that are looked at.
const ISTIODS: u32 = 100;
/// What istiod writes into each namespace.
const ROOT: &str = "istio-ca-root-cert";
/// Label of namespaces and pods: the network that they are in.
const NETWORK: &str = "topology.istio.io/network";
/// Label that all endpoints have.
const TLS_MODE: &str = "security.istio.io/tlsMode=";
/// Most pods that are named.
const EXAMPLES: u32 = 5;

/// What was found. What is missing is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Installation {
    /// The network that istiod takes this cluster for.
    pub network: Option<String>,
    /// Its mesh configurations by the revisions that they are of, YAML, or why they cannot be read; that of Istio without revisions
    /// has an empty name.
    pub meshes: BTreeMap<String, Result<String, String>>,
    /// The root that it gives to workloads, PEM.
    pub root: Option<String>,
    /// Addresses of the gateways that it is told of, by the peer that they lead to.
    pub gateways: BTreeMap<String, Vec<String>>,
    /// Pods of this cluster that take themselves for ones of a peer, `namespace/name`; some of them.
    pub strangers: Vec<String>,
}

/// Looks at the cluster behind `access`, where Eastway is in `namespace` and `peers` are networks of these names.
///
/// # Errors
/// Something cannot be read; says what and why.
pub async fn read(access: &Access, namespace: &str, peers: &BTreeMap<String, String>) -> Result<Installation, String> {
    let client = client::connect(access).await.map_err(|error| error.to_string())?;
    read_by(&client, namespace, peers).await
}

async fn read_by(client: &Client, namespace: &str, peers: &BTreeMap<String, String>) -> Result<Installation, String> {
    let all = |kind: &ApiResource| Api::<DynamicObject>::all_with(client.clone(), kind);
    let namespaces = all(&ApiResource::erase::<Namespace>(&()));
    let system = within("namespace istio-system", namespaces.get_metadata_opt(SYSTEM)).await?;
    let network = system.and_then(|found| found.metadata.labels?.remove(NETWORK));
    let text = async |namespace: &str, name: &str, key: &str| {
        let kind = ApiResource::erase::<ConfigMap>(&());
        let maps = Api::<DynamicObject>::namespaced_with(client.clone(), namespace, &kind);
        let found = within(&format!("ConfigMap {namespace}/{name}"), maps.get_opt(name)).await?;
        Ok::<_, String>(found.and_then(|map| Some(map.data.get("data")?.get(key)?.as_str()?.to_owned())))
    };
    let mut meshes = BTreeMap::new();
    for revision in revisions(client).await? {
        // A revision that the chart was not told of may not be read, which is no reason to say nothing of the others.
        let found = text(SYSTEM, &mesh_of(&revision), "mesh").await.transpose();
        meshes.extend(found.map(|found| (revision, found)));
    }
    let root = text(namespace, ROOT, "root-cert.pem").await?;
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &networks::resource());
    let mut gateways = BTreeMap::new();
    for peer in peers.keys() {
        let found = within("Gateways", api.get_opt(&networks::name_of(peer))).await?;
        gateways.insert(peer.clone(), found.as_ref().map(addresses).unwrap_or_default());
    }
    let names: Vec<&str> = peers.values().map(String::as_str).collect();
    let theirs = ListParams::default().labels(&format!("{NETWORK} in ({})", names.join(","))).limit(EXAMPLES);
    let pods = all(&ApiResource::erase::<Pod>(&()));
    let name =
        |pod: PartialObjectMeta<DynamicObject>| format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
    let strangers = within("pods", pods.list_metadata(&theirs)).await?.items.into_iter().map(name).collect();
    Ok(Installation { network, meshes, root, gateways, strangers })
}

/// The ConfigMap with the mesh configuration of a revision.
#[must_use]
pub fn mesh_of(revision: &str) -> String {
    if revision.is_empty() { MESH.to_owned() } else { format!("{MESH}-{revision}") }
}

/// Those whose istiod runs here, and the one without a name.
async fn revisions(client: &Client) -> Result<BTreeSet<String>, String> {
    let kind = ApiResource::erase::<Pod>(&());
    let pods = Api::<DynamicObject>::namespaced_with(client.clone(), SYSTEM, &kind);
    let istiods = ListParams::default().labels(ISTIOD).limit(ISTIODS);
    let found = within("pods of istiod", pods.list_metadata(&istiods)).await?;
    let revision = |pod: PartialObjectMeta<DynamicObject>| pod.metadata.labels?.remove(REVISION);
    let named = found.items.into_iter().filter_map(revision).filter(|revision| revision != DEFAULT);
    Ok(named.chain([String::new()]).collect())
}

/// What istiod is told of one service, as it is in the API.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Endpoints of peers that its Service here has got: peer, labels and how many.
    pub stretched: Vec<(String, String, u64)>,
    /// Hosts that lead to it.
    pub hosts: Vec<String>,
    /// Endpoints of peers behind them that its Service does not have: network and how many.
    pub remote: Vec<(String, u64)>,
    /// Why there is less of it than could be, as its ServiceImport says.
    pub withheld: Option<String>,
}

/// Reads that from the API server behind `access`.
///
/// # Errors
/// Something cannot be read; says what and why.
pub async fn told(access: &Access, service: &ServiceKey) -> Result<Told, String> {
    let client = client::connect(access).await.map_err(|error| error.to_string())?;
    told_by(&client, service).await
}

async fn told_by(client: &Client, service: &ServiceKey) -> Result<Told, String> {
    let (namespace, name) = (service.namespace.as_str(), service.name.as_str());
    let api = |kind| Api::<DynamicObject>::namespaced_with(client.clone(), namespace, &resource(kind));
    let ours = format!("{}={},{}={name}", names::MANAGED_BY, names::EASTWAY, names::IMPORT);
    let ours = ListParams::default().labels(&ours);
    let entries = within("WorkloadEntries", api(Kind::WorkloadEntry).list(&ours)).await?;
    let services = within("ServiceEntries", api(Kind::ServiceEntry).list(&ours)).await?;
    let import = within("the ServiceImport", api(Kind::ServiceImport).get_opt(name)).await?;
    let mut told = Told { stretched: entries.items.iter().map(entry).collect(), ..Told::default() };
    told.stretched.sort();
    for DynamicObject { data, .. } in services.items {
        told.hosts.extend(list(&data, "/spec/hosts").filter_map(|host| host.as_str().map(str::to_owned)));
        let mut counts: BTreeMap<String, u64> = BTreeMap::new();
        for endpoint in list(&data, "/spec/endpoints") {
            *counts.entry(text(endpoint, "network").to_owned()).or_default() += weight(endpoint);
        }
        told.remote.extend(counts);
    }
    let conditions = import.iter().flat_map(|import| list(&import.data, "/status/conditions"));
    let messages = conditions.filter(|condition| text(condition, "type") == "Ready");
    let note = |condition: &Value| Some(text(condition, "message").split_once(WITHHELD)?.1.to_owned());
    told.withheld = messages.filter_map(note).next();
    Ok(told)
}

fn entry(object: &DynamicObject) -> (String, String, u64) {
    let labels = object.metadata.labels.as_ref();
    let cluster = labels.and_then(|labels| labels.get(names::SOURCE_CLUSTER)).cloned().unwrap_or_default();
    let own = object.data.pointer("/spec/labels").and_then(Value::as_object).into_iter().flatten();
    let shown = own.filter_map(|(key, value)| Some(format!("{key}={}", value.as_str()?)));
    let mut shown: Vec<String> = shown.filter(|pair| !pair.starts_with(TLS_MODE)).collect();
    shown.sort();
    (cluster, shown.join(","), object.data.get("spec").map_or(1, weight))
}

/// How many endpoints one of Istio's stands for.
fn weight(spec: &Value) -> u64 {
    spec.get("weight").and_then(Value::as_u64).unwrap_or(1)
}

fn list<'a>(value: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    value.pointer(pointer).and_then(Value::as_array).into_iter().flatten()
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// Addresses of a Gateway that are no names.
fn addresses(gateway: &DynamicObject) -> Vec<String> {
    let all = list(&gateway.data, "/spec/addresses").filter(|address| text(address, "type") == "IPAddress");
    all.map(|address| text(address, "value").to_owned()).collect()
}

/// A request, with a bound on how long it may take; an error says what was wanted.
pub(crate) async fn within<T>(what: &str, request: impl Future<Output = kube::Result<T>>) -> Result<T, String> {
    match timeout(REQUEST, request).await {
        Ok(result) => result.map_err(|error| format!("{what}: {error}")),
        Err(_) => Err(format!("{what}: no answer in time")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{Reply, client};

    #[tokio::test]
    async fn what_is_there_is_told_and_what_is_not_is_missing() {
        let peers = BTreeMap::from([("gke", "net-gke"), ("aws", "aws")].map(|(a, b)| (a.to_owned(), b.to_owned())));
        let (client, _requests) = client(|request| {
            let path = request.uri().path();
            let labels = json!({NETWORK: "net-here"});
            match path.rsplit('/').next().unwrap() {
                "istio-system" => Reply::Whole(200, json!({"metadata": {"labels": labels}})),
                "istio" => Reply::Whole(200, json!({"metadata": {}, "data": {"mesh": "trustDomain: x\n"}})),
                "istio-canary" => Reply::Whole(200, json!({"metadata": {}, "data": {"mesh": "trustDomain: y\n"}})),
                "istio-next" => Reply::status(403, "Forbidden", "not for you"),
                "pods" if path.contains("/istio-system/") => {
                    let pod = |revision: &str| json!({"metadata": {"labels": {REVISION: revision, "app": "istiod"}}});
                    let all = ["default", "canary", "canary", "next", "gone"].map(pod);
                    Reply::Whole(200, json!({"metadata": {}, "items": all}))
                }
                "eastway-gke" => {
                    let addresses = json!([
                        {"type": "IPAddress", "value": "10.96.0.9"}, {"type": "Hostname", "value": "gw.example"},
                    ]);
                    Reply::Whole(200, json!({"metadata": {}, "spec": {"addresses": addresses}}))
                }
                "pods" => {
                    let query = request.uri().query().unwrap();
                    assert!(query.contains("aws%2Cnet-gke"), "{query}");
                    let pod = json!({"metadata": {"namespace": "shop", "name": "web-0"}});
                    Reply::Whole(200, json!({"metadata": {}, "items": [pod]}))
                }
                _ => Reply::status(404, "NotFound", "no such thing"),
            }
        });
        let mut found = read_by(&client, "eastway-system", &peers).await.unwrap();
        let refused = found.meshes.remove("next").unwrap().unwrap_err();
        assert!(
            refused.starts_with("ConfigMap istio-system/istio-next: ") && refused.contains("not for you"),
            "{refused}"
        );
        let expected = Installation {
            network: Some("net-here".to_owned()),
            meshes: [("", "x"), ("canary", "y")]
                .map(|(revision, domain)| (revision.to_owned(), Ok(format!("trustDomain: {domain}\n"))))
                .into(),
            root: None,
            gateways: [("aws".to_owned(), vec![]), ("gke".to_owned(), vec!["10.96.0.9".to_owned()])].into(),
            strangers: vec!["shop/web-0".to_owned()],
        };
        assert_eq!(found, expected);
        let (client, _requests) = crate::testing::client(|_| Reply::status(403, "Forbidden", "not for you"));
        let error = read_by(&client, "eastway-system", &peers).await.unwrap_err();
        assert!(error.starts_with("namespace istio-system: "), "{error}");
    }

    #[tokio::test]
    async fn what_istiod_is_told_of_a_service_is_read_from_the_objects() {
        let (client, _requests) = client(|request| {
            let path = request.uri().path();
            let entry = |cluster: &str, version: &str, weight: u64| {
                let labels = json!({"version": version, "app": "reviews", "security.istio.io/tlsMode": "istio"});
                json!({
                    "metadata": {"labels": {names::SOURCE_CLUSTER: cluster}},
                    "spec": {"labels": labels, "weight": weight},
                })
            };
            let list = |items: Value| Reply::Whole(200, json!({"metadata": {}, "items": items}));
            match path.rsplit('/').next().unwrap() {
                "workloadentries" => {
                    assert!(request.uri().query().unwrap().contains("eastway.dev%2Fimport%3Dreviews"));
                    list(json!([entry("gke", "v3", 2), entry("gke", "v2", 1)]))
                }
                "serviceentries" => {
                    let endpoints = json!([{"network": "net-gke", "weight": 2}, {"network": "net-gke"}]);
                    list(json!([{"metadata": {}, "spec": {"hosts": ["x.example"], "endpoints": endpoints}}]))
                }
                _ => {
                    let message = format!("reachable at its addresses; {WITHHELD}a rival");
                    let ready = json!([{"type": "Ready", "message": message}]);
                    Reply::Whole(200, json!({"metadata": {}, "status": {"conditions": ready}}))
                }
            }
        });
        let expected = Told {
            stretched: [("v2", 1), ("v3", 2)]
                .map(|(version, count)| ("gke".to_owned(), format!("app=reviews,version={version}"), count))
                .to_vec(),
            hosts: vec!["x.example".to_owned()],
            remote: vec![("net-gke".to_owned(), 3)],
            withheld: Some("a rival".to_owned()),
        };
        assert_eq!(told_by(&client, &ServiceKey::parse("bookinfo", "reviews").unwrap()).await, Ok(expected));
    }
}

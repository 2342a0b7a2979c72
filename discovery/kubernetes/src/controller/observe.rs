//! What the controller watches: its own objects, exports, namespaces and the gateways.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::{mpsc, watch};

use super::api::resource;
use super::desired::Gateways;
use super::names;
use super::object::Kind;
use super::reconcile::{Change, Event, Service};
use super::selection::Selection as ServiceSelection;
use crate::source::objects::PodIp;
use crate::types::mcs::{ServiceExport, ServiceImport};
use crate::watch::{Difference, ObjectName, Selection, Watch, WatchStatus};

/// Where Eastway itself is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// Its namespace.
    pub namespace: String,
    /// Labels of the gateway pods, as `kubectl get -l` takes them.
    pub gateways: String,
    /// Istio is there.
    pub istio: bool,
}

/// How the watches are doing, by what they are for.
pub type WatchStatuses = BTreeMap<String, WatchStatus>;

/// Follows the API server and tells `events`. Ends when nobody listens any more; dropping the future ends it at once.
pub async fn observe(
    client: Client,
    scope: Scope,
    events: mpsc::Sender<Event>,
    statuses: watch::Sender<Arc<WatchStatuses>>,
) {
    let ours = format!("{}={}", names::MANAGED_BY, names::EASTWAY);
    let all = |kind| match kind {
        Kind::Service => Selection::all::<k8s_openapi::api::core::v1::Service>(),
        Kind::EndpointSlice => Selection::all::<EndpointSlice>(),
        Kind::ServiceImport => Selection::all::<ServiceImport>(),
        Kind::ServiceExport => Selection::all::<ServiceExport>(),
        Kind::WorkloadEntry | Kind::ServiceEntry => {
            Selection { resources: vec![resource(kind)], namespace: None, labels: None, fields: None }
        }
    };
    let objects = |kind, selection| {
        let watch = Watch::<Value>::new(client.clone(), selection);
        follow(kind_name(kind), watch, statuses.clone(), events.clone(), move |differences, first| {
            objects(kind, differences, first)
        })
    };
    let services = {
        let watch = Watch::<AnyService>::new(client.clone(), Selection::all::<k8s_openapi::api::core::v1::Service>());
        let istio = scope.istio;
        follow("services", watch, statuses.clone(), events.clone(), move |differences, first| {
            services(differences, first, istio)
        })
    };
    let entries = async |kind| {
        if scope.istio {
            objects(kind, all(kind).labelled(&ours)).await;
        }
    };
    let namespaces = {
        let watch = Watch::<Marked>::new(client.clone(), Selection::all::<Namespace>());
        let mut known = BTreeSet::new();
        follow("namespaces", watch, statuses.clone(), events.clone(), move |differences, _| {
            namespaces(&mut known, differences)
        })
    };
    let gateways = {
        let selection = Selection::all::<Pod>().in_namespace(&scope.namespace).labelled(&scope.gateways);
        let watch = Watch::<GatewayPod>::new(client.clone(), selection);
        let mut known = BTreeMap::new();
        follow("gateway pods", watch, statuses.clone(), events.clone(), move |differences, _| {
            gateways(&mut known, differences)
        })
    };
    tokio::join!(
        objects(Kind::ServiceImport, all(Kind::ServiceImport)),
        objects(Kind::ServiceExport, all(Kind::ServiceExport)),
        objects(Kind::Service, all(Kind::Service).labelled(&ours)),
        objects(Kind::EndpointSlice, all(Kind::EndpointSlice).labelled(&ours)),
        services,
        namespaces,
        gateways,
        entries(Kind::WorkloadEntry),
        entries(Kind::ServiceEntry),
    );
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Service => "derived services",
        Kind::EndpointSlice => "endpoint slices",
        Kind::ServiceImport => "service imports",
        Kind::ServiceExport => "service exports",
        Kind::WorkloadEntry => "workload entries",
        Kind::ServiceEntry => "service entries",
    }
}

/// Follows one watch until nobody listens. `convert` is told whether these are the first that it is told.
async fn follow<K: DeserializeOwned + Send + Sync + 'static>(
    name: &'static str,
    mut watch: Watch<K>,
    statuses: watch::Sender<Arc<WatchStatuses>>,
    events: mpsc::Sender<Event>,
    mut convert: impl FnMut(Vec<Difference<K>>, bool) -> Event,
) {
    let mut told = false;
    loop {
        let differences = tokio::select! {
            differences = watch.next() => differences,
            () = events.closed() => return,
        };
        let status = watch.status().clone();
        let first = status.listed && !told;
        statuses.send_modify(|all| _ = Arc::make_mut(all).insert(name.to_owned(), status));
        if differences.is_empty() && !first {
            continue;
        }
        told |= first;
        if events.send(convert(differences, first)).await.is_err() {
            return;
        }
    }
}

fn objects(kind: Kind, differences: Vec<Difference<Value>>, listed: bool) -> Event {
    let change = |difference| match difference {
        Difference::Set(_, object) => Change::Set(Arc::unwrap_or_clone(object)),
        Difference::Gone(ObjectName { namespace, name }) => Change::Gone(namespace.to_string(), name.to_string()),
    };
    Event::Objects { kind, changes: differences.into_iter().map(change).collect(), listed }
}

/// Of a Service, what matters to its export.
#[derive(Debug, Deserialize)]
struct AnyService {
    #[serde(default)]
    spec: AnyServiceSpec,
}

#[derive(Debug, Default, Deserialize)]
struct AnyServiceSpec {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(rename = "clusterIP", default)]
    cluster_ip: String,
    #[serde(default)]
    selector: BTreeMap<String, String>,
    #[serde(default)]
    ports: Vec<AnyPort>,
}

#[derive(Debug, Deserialize)]
struct AnyPort {
    port: u16,
    #[serde(rename = "targetPort", default)]
    target: Value,
}

impl AnyServiceSpec {
    /// What it selects; `None`: Istio gives it no endpoints by labels.
    fn selection(&self) -> Option<Arc<ServiceSelection>> {
        if self.selector.is_empty() || self.cluster_ip == "None" {
            return None;
        }
        let named = self.ports.iter().filter_map(|port| Some((port.target.as_str()?.to_owned(), port.port)));
        Some(Arc::new(ServiceSelection { labels: self.selector.clone(), target_names: named.collect() }))
    }
}

/// `selecting`: it matters what they select.
fn services(differences: Vec<Difference<AnyService>>, listed: bool, selecting: bool) -> Event {
    let change = |difference| match difference {
        Difference::Set(ObjectName { namespace, name }, service) => {
            let spec = &Arc::<AnyService>::as_ref(&service).spec;
            let kind = if spec.kind == "ExternalName" {
                Service::ExternalName
            } else {
                Service::Real(spec.selection().filter(|_| selecting))
            };
            (namespace.to_string(), name.to_string(), Some(kind))
        }
        Difference::Gone(ObjectName { namespace, name }) => (namespace.to_string(), name.to_string(), None),
    };
    Event::Services { changes: differences.into_iter().map(change).collect(), listed }
}

/// An object of which only the metadata matter.
#[derive(Debug, Deserialize)]
struct Marked {
    metadata: ObjectMeta,
}

fn namespaces(known: &mut BTreeSet<String>, differences: Vec<Difference<Marked>>) -> Event {
    for difference in differences {
        match difference {
            // Nothing can be made in one that is on its way out.
            Difference::Set(name, namespace) if namespace.metadata.deletion_timestamp.is_none() => {
                known.insert(name.name.to_string());
            }
            Difference::Set(name, _) | Difference::Gone(name) => _ = known.remove(&*name.name),
        }
    }
    Event::Namespaces(known.clone())
}

/// Of a pod, what tells whether it is a gateway that takes connections.
#[derive(Debug, Deserialize)]
struct GatewayPod {
    metadata: ObjectMeta,
    #[serde(default)]
    status: GatewayPodStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct GatewayPodStatus {
    conditions: Option<Vec<PodCondition>>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<PodIp>>,
    container_statuses: Option<Vec<ContainerStatus>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ContainerStatus {
    state: Option<ContainerState>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ContainerState {
    running: Option<serde::de::IgnoredAny>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PodCondition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

/// What a gateway pod does with connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// It takes them.
    Ready,
    /// It was told to end and still takes them. Not ready any more by its own word, which is for balancers.
    Draining,
    /// It runs, and Kubernetes does not call it ready: it starts, or its kubelet or the API server was away, and it
    /// serves all the while.
    Unready,
    /// It does not run.
    Away,
}

impl GatewayPod {
    fn phase(&self) -> Phase {
        let mut conditions = self.status.conditions.iter().flatten();
        let ready = conditions.any(|condition| condition.kind == "Ready" && condition.status == "True");
        let mut containers = self.status.container_statuses.iter().flatten().filter_map(|it| it.state.as_ref());
        let runs = containers.any(|state| state.running.is_some());
        match (self.metadata.deletion_timestamp.is_some(), ready) {
            (false, true) => Phase::Ready,
            (true, _) if runs => Phase::Draining,
            (false, false) if runs => Phase::Unready,
            (true | false, _) => Phase::Away,
        }
    }

    fn addresses(&self) -> Vec<IpAddr> {
        let all = self.status.pod_ips.iter().flatten().filter_map(|ip| ip.ip.as_deref());
        all.filter_map(|ip| ip.parse().ok()).collect()
    }
}

type Pods = BTreeMap<ObjectName, (Phase, Vec<IpAddr>)>;

fn gateways(known: &mut Pods, differences: Vec<Difference<GatewayPod>>) -> Event {
    for difference in differences {
        match difference {
            Difference::Set(name, pod) => _ = known.insert(name, (pod.phase(), pod.addresses())),
            Difference::Gone(name) => _ = known.remove(&name),
        }
    }
    let of = |wanted| known.values().filter(move |(phase, _)| *phase == wanted).flat_map(|(_, all)| all).copied();
    let none = Gateways::default();
    let ready: Gateways = of(Phase::Ready).collect();
    if ready != none {
        return Event::Gateways(ready);
    }
    let draining = of(Phase::Draining).collect::<Gateways>().draining();
    let unready: Gateways = of(Phase::Unready).collect();
    // Nobody at all is worse than one who may not answer.
    Event::Gateways(if draining == none.draining() { unready } else { draining })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(ready: &str, deleted: bool) -> GatewayPod {
        let mut metadata = json!({ "name": "gateway-0" });
        if deleted {
            metadata["deletionTimestamp"] = json!("2026-11-28T10:00:00Z");
        }
        let status = json!({
            "conditions": [{ "type": "Ready", "status": ready }],
            "containerStatuses": [{ "name": "gateway", "state": { "running": {} } }],
            "podIPs": [{ "ip": "10.244.0.7" }, { "ip": "fd00::7" }, { "ip": "nonsense" }],
        });
        serde_json::from_value(json!({ "metadata": metadata, "status": status })).unwrap()
    }

    fn told(known: &mut Pods, name: &str, pod: GatewayPod) -> Gateways {
        let difference = Difference::Set(ObjectName::new("eastway-system", name), Arc::new(pod));
        let Event::Gateways(gateways) = gateways(known, vec![difference]) else { panic!("another event") };
        gateways
    }

    #[test]
    fn a_gateway_that_drains_gets_new_connections_only_while_no_other_is_there() {
        let mut known = Pods::new();
        let addresses: Gateways = pod("True", false).addresses().into_iter().collect();
        assert_eq!(told(&mut known, "gateway-0", pod("False", false)), addresses, "there is no other");
        assert_eq!(told(&mut known, "gateway-0", pod("True", false)), addresses);
        // Its health port says so first, and last it is gone.
        assert_eq!(told(&mut known, "gateway-0", pod("True", true)), addresses.clone().draining());
        assert_eq!(told(&mut known, "gateway-0", pod("False", true)), addresses.clone().draining());
        let mut other = pod("True", false);
        other.status.pod_ips.as_mut().unwrap()[0].ip = Some("10.244.0.8".to_owned());
        let fresh: Gateways = other.addresses().into_iter().collect();
        assert_eq!(told(&mut known, "gateway-1", other), fresh);
        let mut ended = pod("False", true);
        ended.status.container_statuses = None;
        known.remove(&ObjectName::new("eastway-system", "gateway-1"));
        assert_eq!(told(&mut known, "gateway-0", ended), Gateways::default());
    }

    #[test]
    fn a_gateway_that_is_called_unready_is_the_last_resort() {
        let mut known = Pods::new();
        let addresses: Gateways = pod("False", false).addresses().into_iter().collect();
        let mut other = pod("True", true);
        other.status.pod_ips.as_mut().unwrap()[0].ip = Some("10.244.0.8".to_owned());
        let draining = other.addresses().into_iter().collect::<Gateways>().draining();
        assert_eq!(told(&mut known, "gateway-0", pod("False", false)), addresses);
        assert_eq!(told(&mut known, "gateway-1", other), draining);
        known.remove(&ObjectName::new("eastway-system", "gateway-1"));
        assert_eq!(told(&mut known, "gateway-0", pod("Unknown", false)), addresses);
    }

    #[test]
    fn a_namespace_that_goes_is_none() {
        let mut known = BTreeSet::new();
        let name = |name: &str| ObjectName::new("", name);
        let marked = |metadata| Arc::new(serde_json::from_value(json!({ "metadata": metadata })).unwrap());
        let set = |name, metadata| Difference::Set(name, marked(metadata));
        namespaces(&mut known, vec![set(name("a"), json!({})), set(name("b"), json!({}))]);
        let going = set(name("a"), json!({ "deletionTimestamp": "2026-11-28T10:00:00Z" }));
        let Event::Namespaces(left) = namespaces(&mut known, vec![going]) else { panic!("another event") };
        assert_eq!(left, BTreeSet::from(["b".to_owned()]));
    }
}

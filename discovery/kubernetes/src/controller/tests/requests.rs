//! The loop beside an API server: what it asks for, and how often.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use eastway_model::store::Writer;
use eastway_model::{Protocol, ServiceKey, ServiceRecord};
use hyper::Request;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::rig::{NOW, complete, label, port, rules};
use crate::controller::api::Requests;
use crate::controller::desired::Names;
use crate::controller::object::Kind;
use crate::controller::reconcile::{Event, Feed, Inputs, LeftOut, Reconciler, Status};
use crate::testing::{Reply, client};

/// What an API server does with server-side apply, as far as it matters here.
#[derive(Default)]
struct Server {
    objects: BTreeMap<String, Value>,
    version: u64,
}

impl Server {
    fn answer(&mut self, request: &Request<Bytes>) -> Reply {
        assert_eq!(request.method(), "PATCH", "{}", request.uri());
        let path = request.uri().path();
        let wanted: Value = serde_json::from_slice(request.body()).unwrap();
        self.version += 1;
        let version = json!((self.version + 100).to_string());
        if let Some(path) = path.strip_suffix("/status") {
            let object = self.objects.get_mut(path).unwrap();
            object["status"] = wanted["status"].clone();
            object["metadata"]["resourceVersion"] = version;
            return Reply::Whole(200, object.clone());
        }
        let before = self.objects.get(path);
        if before.is_some() && wanted["metadata"]["resourceVersion"].is_string() {
            return Reply::status(409, "Conflict", "the object has been modified");
        }
        let mut object = wanted;
        let at = |pointer: &str| before.and_then(|before| before.pointer(pointer)).cloned();
        let generation = at("/metadata/generation").and_then(|generation| generation.as_u64()).unwrap_or_default();
        object["metadata"]["generation"] = json!(generation + 1);
        object["metadata"]["uid"] = json!(format!("uid of {path}"));
        object["metadata"]["resourceVersion"] = version;
        object["status"] = at("/status").unwrap_or_default();
        if path.contains("/services/") {
            let address = format!("10.96.{}.{}", self.version / 256, self.version % 256);
            object["spec"]["clusterIPs"] = at("/spec/clusterIPs").unwrap_or(json!([address]));
        }
        self.objects.insert(path.to_owned(), object.clone());
        Reply::Whole(200, object)
    }
}

#[tokio::test]
async fn an_import_takes_five_requests_and_an_unchanged_one_none() {
    const IMPORTS: usize = 40;
    let server = Arc::new(Mutex::new(Server::default()));
    let answering = Arc::clone(&server);
    let (client, requests) = client(move |request| answering.lock().unwrap().answer(request));
    let (mut writer, reader) = Writer::new(label("eks"));
    writer.await_registries([]);
    writer.set_rules(Arc::new(rules(&["gke"])));
    let record = |number: usize| {
        let key = ServiceKey::parse("shop", &format!("web-{number}")).unwrap();
        ServiceRecord { exported_at: NOW, ..ServiceRecord::new(key, vec![port("http", 80, Protocol::Tcp)]) }
    };
    writer.apply([complete("gke", (0..IMPORTS).map(record).collect())], NOW);

    let (events, received) = mpsc::channel(16);
    let (_feed, feed) = watch::channel(Feed { connected: true, peers_known: true });
    let (_left_out, left_out) = watch::channel(LeftOut::default());
    let (_names, names) = watch::channel(Arc::new(Names::new()));
    let (_leading, leading) = watch::channel(true);
    let (istio, clock) = (None, Arc::new(|| NOW));
    let inputs = Inputs { reader, feed, events: received, left_out, names, istio, leading, clock };
    let (status, mut told) = watch::channel(Status::default());
    let stop = CancellationToken::new();
    let reconciler = tokio::spawn(Reconciler::new(Requests::new(client), inputs, status).run(stop.clone()));
    for kind in [Kind::Service, Kind::EndpointSlice, Kind::ServiceImport, Kind::ServiceExport] {
        events.send(Event::Objects { kind, changes: vec![], listed: true }).await.unwrap();
    }
    events.send(Event::Services { changes: vec![], listed: true }).await.unwrap();
    events.send(Event::Namespaces(["shop".to_owned()].into())).await.unwrap();
    let gateways = |address: &str| Event::Gateways([address.parse().unwrap()].into_iter().collect());
    events.send(gateways("10.244.0.7")).await.unwrap();
    let deadline = Duration::from_secs(30);
    let all = |status: &Status| status.leading && status.pending == 0 && status.ports == IMPORTS && status.writes > 0;
    drop(tokio::time::timeout(deadline, told.wait_for(all)).await.unwrap().unwrap());
    assert_eq!(requests.lock().unwrap().len(), 5 * IMPORTS);
    {
        let server = server.lock().unwrap();
        let import = &server.objects["/apis/multicluster.x-k8s.io/v1beta1/namespaces/shop/serviceimports/web-7"];
        assert_eq!(import["spec"]["ips"].as_array().unwrap().len(), 1);
        let condition = &import["status"]["conditions"][0];
        assert_eq!((condition["status"].as_str(), condition["observedGeneration"].as_i64()), (Some("True"), Some(2)));
    }

    // All are looked at again; only what leads to the gateways is written.
    requests.lock().unwrap().clear();
    events.send(gateways("10.244.0.8")).await.unwrap();
    let slices = |status: &Status| status.pending == 0 && status.writes == 6 * IMPORTS as u64;
    drop(tokio::time::timeout(deadline, told.wait_for(slices)).await.unwrap().unwrap());
    let requests = requests.lock().unwrap().clone();
    assert!(requests.len() == IMPORTS && requests.iter().all(|path| path.contains("/endpointslices/")), "{requests:?}");
    stop.cancel();
    reconciler.await.unwrap();
}

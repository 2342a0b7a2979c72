mod memory;

use std::collections::HashMap;
use std::sync::Mutex;

use serde_json::{Value, json};

use super::*;
use crate::testing::{Reply, client, event};

/// An API server with one object of each kind; streams that can be added to.
struct Server {
    changes: mpsc::Receiver<Change>,
    status: watch::Receiver<RegistryStatus>,
    streams: Arc<Mutex<HashMap<&'static str, Stream>>>,
    task: tokio::task::JoinHandle<()>,
}

type Stream = mpsc::UnboundedSender<Result<String, std::io::Error>>;

const KINDS: [&str; 4] = ["services", "endpointslices", "serviceexports", "pods"];

fn kind_of(path: &str) -> &'static str {
    KINDS.into_iter().find(|kind| path.ends_with(&format!("/{kind}"))).unwrap()
}

fn meta(name: &str, more: &Value) -> Value {
    let mut meta = json!({"namespace": "shop", "name": name, "uid": name, "resourceVersion": "1"});
    meta.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    meta
}

fn object(kind: &str) -> Value {
    match kind {
        "services" => json!({"metadata": meta("cart", &json!({})), "spec": {"ports": [{"port": 80}]}}),
        "serviceexports" => json!({"metadata": meta("cart", &json!({}))}),
        "endpointslices" => slice("1", true),
        _ => json!({"metadata": meta("cart-0", &json!({})), "status": {"podIP": "10.0.0.1"}}),
    }
}

fn slice(version: &str, ready: bool) -> Value {
    let labels = json!({"labels": {"kubernetes.io/service-name": "cart"}, "resourceVersion": version});
    json!({"metadata": meta("cart-1", &labels), "addressType": "IPv4", "ports": [{"port": 8080}],
           "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": ready}}]})
}

fn end_of_list() -> String {
    let annotations = json!({"k8s.io/initial-events-end": "true"});
    event(
        "BOOKMARK",
        &json!({"apiVersion": "v1", "kind": "X", "metadata": {"resourceVersion": "1", "annotations": annotations}}),
    )
}

impl Server {
    /// Lists of these kinds come to their end; of the others they do not, or there is no such kind.
    fn start(complete: &'static [&'static str], missing: &'static [&'static str]) -> Self {
        Self::start_with(complete, missing, None)
    }

    fn start_with(complete: &'static [&'static str], missing: &'static [&'static str], copy: Option<PathBuf>) -> Self {
        let streams = Arc::new(Mutex::new(HashMap::new()));
        let opened = Arc::clone(&streams);
        let (client, _) = client(move |request| {
            let kind = kind_of(request.uri().path());
            if missing.contains(&kind) {
                return Reply::status(404, "NotFound", "the server could not find the requested resource");
            }
            let (sender, receiver) = mpsc::unbounded_channel();
            sender.send(Ok(event("ADDED", &object(kind)))).unwrap();
            if complete.contains(&kind) {
                sender.send(Ok(end_of_list())).unwrap();
            }
            opened.lock().unwrap().insert(kind, sender);
            Reply::Lines(receiver)
        });
        let (registry, status) = KubernetesRegistry::new(KubernetesRegistryConfig {
            name: Label::parse("cluster").unwrap(),
            access: Access::InCluster,
            rules: Rules::default(),
            copy,
            clock: Arc::new(|| UnixMillis(42)),
        });
        let (sender, changes) = mpsc::channel(16);
        let task = tokio::spawn(async move { Running::new(registry, &client, sender).run().await });
        Self { changes, status, streams, task }
    }

    fn send(&self, kind: &str, line: String) {
        self.streams.lock().unwrap()[kind].send(Ok(line)).unwrap();
    }

    async fn next(&mut self) -> Option<LocalChange> {
        let change = tokio::time::timeout(Duration::from_secs(30), self.changes.recv()).await.ok()??;
        let Change::Local { registry, change } = change else { panic!("a registry knows no peers") };
        assert_eq!(registry.as_str(), "cluster");
        Some(change)
    }
}

#[tokio::test(start_paused = true)]
async fn i5_the_first_word_is_the_whole() {
    let mut server = Server::start(&KINDS, &[]);
    assert!(matches!(server.next().await, Some(LocalChange::Workloads(workloads)) if workloads.len() == 1));
    let Some(LocalChange::Replace(services)) = server.next().await else { panic!("not the whole") };
    assert_eq!((services.len(), services[0].exported, services[0].endpoints.len()), (1, true, 1));
    server.send("endpointslices", event("MODIFIED", &slice("2", false)));
    assert!(matches!(server.next().await, Some(LocalChange::Endpoints { upsert, .. }) if upsert.len() == 1));
    let status = server.status.wait_for(|status| status.synced).await.unwrap();
    assert_eq!((status.exported, status.endpoints, status.workloads), (1, 1, 1));
    assert_eq!(status.errors(), Vec::<String>::new());
    assert_eq!(status.last_success, Some(UnixMillis(42)));
}

#[tokio::test(start_paused = true)]
async fn f14_nothing_is_told_before_every_list_is_in() {
    for missing in KINDS {
        let complete: Vec<_> = KINDS.into_iter().filter(|kind| *kind != missing).collect();
        let mut server = Server::start(Vec::leak(complete), &[]);
        assert!(server.next().await.is_none(), "{missing} are not known");
        assert!(!server.status.borrow_and_update().synced);
        server.task.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn f16_a_restart_serves_what_the_server_said_before_until_it_says_more() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("registries/cluster.copy");
    let mut server = Server::start_with(&KINDS, &[], Some(file.clone()));
    server.next().await;
    server.next().await;
    server.send("endpointslices", event("MODIFIED", &slice("2", false)));
    server.next().await;
    // Nothing more comes: time passes until the copy is written.
    assert!(server.next().await.is_none() && file.exists());
    server.task.abort();

    // Its lists never end.
    let mut away = Server::start_with(&[], &[], Some(file.clone()));
    assert!(matches!(away.next().await, Some(LocalChange::Workloads(workloads)) if workloads.len() == 1));
    let Some(LocalChange::Replace(services)) = away.next().await else { panic!("not the whole") };
    assert_eq!((services.len(), services[0].exported), (1, true));
    assert!(!services[0].endpoints.iter().next().unwrap().endpoint.condition.ready, "as it was said last");
    let told = away.status.borrow_and_update().clone();
    assert!(told.synced && told.from_disk && told.errors()[0].contains("was not heard since the start"), "{told:?}");
    for kind in KINDS {
        away.send(kind, end_of_list());
    }
    away.next().await;
    let Some(LocalChange::Replace(services)) = away.next().await else { panic!("not the whole") };
    assert!(services[0].endpoints.iter().next().unwrap().endpoint.condition.ready, "as the server says");
    away.status.wait_for(|status| status.synced && !status.from_disk).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_server_that_answers_soon_is_heard_alone() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cluster.copy");
    std::fs::write(&file, "torn").unwrap();
    let mut server = Server::start_with(&KINDS, &[], Some(file.clone()));
    server.next().await;
    assert!(matches!(server.next().await, Some(LocalChange::Replace(_))));
    assert!(server.next().await.is_none(), "nothing else");
    assert!(std::fs::read_to_string(&file).unwrap().len() > 4, "what was torn is whole again");
}

#[tokio::test(start_paused = true)]
async fn without_the_definition_of_exports_nothing_is_exported_and_it_is_said() {
    let mut server = Server::start(&KINDS, &["serviceexports"]);
    server.next().await;
    let Some(LocalChange::Replace(services)) = server.next().await else { panic!("not the whole") };
    assert!(!services[0].exported);
    let status = server.status.wait_for(|status| status.synced).await.unwrap();
    assert_eq!(status.errors(), ["CRD serviceexports.multicluster.x-k8s.io not installed"]);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_cannot_be_made_is_told() {
    let (registry, mut status) = KubernetesRegistry::new(KubernetesRegistryConfig {
        name: Label::parse("cluster").unwrap(),
        access: Access::Kubeconfig { path: "/nowhere/kubeconfig".into(), context: None },
        rules: Rules::default(),
        copy: None,
        clock: Arc::new(|| UnixMillis(42)),
    });
    let cancel = CancellationToken::new();
    let task = tokio::spawn(registry.run(mpsc::channel(1).0, cancel.clone()));
    let problem = status.wait_for(|status| status.problem.is_some()).await.unwrap().errors();
    assert!(problem[0].starts_with("kubeconfig /nowhere/kubeconfig: "), "{}", problem[0]);
    cancel.cancel();
    task.await.unwrap();
}

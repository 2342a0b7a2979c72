use std::fs;
use std::path::Path;

use eastway_model::ClusterName;
use eastway_model::store::{Reader, Writer};
use serde_json::json;
use tokio_util::task::TaskTracker;

use super::*;
use crate::app::clock::Clock;
use crate::app::registries::{Registries, RegistryStatuses};
use crate::app::store;
use crate::config::{self, Loaded};

const DEADLINE: Duration = Duration::from_secs(90);

/// A process with a folder of Cluster files, whose API servers do not exist.
struct Rig {
    folder: tempfile::TempDir,
    reader: Reader,
    statuses: watch::Receiver<Arc<RegistryStatuses>>,
    configuration: watch::Sender<Arc<Loaded>>,
    end: CancellationToken,
}

impl Rig {
    fn start(clusters: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("clusters")).unwrap();
        for cluster in clusters {
            register(folder.path(), cluster, cluster);
        }
        let loaded = read(folder.path(), "istio");
        Self::run(folder, loaded, registries::Warm::No)
    }

    /// A process of this configuration.
    fn run(folder: tempfile::TempDir, loaded: Arc<Loaded>, warm: registries::Warm) -> Self {
        let (configuration, loaded) = watch::channel(loaded);
        let (writer, reader) = Writer::new(ClusterName::parse("onprem").unwrap());
        let (sender, inputs) = store::queue();
        let (end, tasks) = (CancellationToken::new(), TaskTracker::new());
        tasks.spawn(store::run(writer, inputs, Clock::start(), end.clone()));
        let (shown, statuses) = watch::channel(Arc::default());
        let settings = loaded.borrow().settings.clone();
        let registries = Registries::new(settings, warm, sender, tasks.clone(), end.clone(), shown);
        tasks.spawn(registries.run(loaded));
        Self { folder, reader, statuses, configuration, end }
    }

    async fn names(&mut self, expected: &[&str]) {
        let same = |all: &Arc<RegistryStatuses>| all.keys().map(Label::as_str).eq(expected.iter().copied());
        let waited = tokio::time::timeout(DEADLINE, self.statuses.wait_for(same)).await;
        assert!(waited.is_ok(), "{expected:?}");
    }

    async fn list(&mut self, is: impl FnMut(&ListStatus) -> bool) -> ListStatus {
        let mut list = match &self.statuses.borrow()[&Label::parse("list").unwrap()] {
            registries::RegistryStatus::Clusters(list) => list.clone(),
            other @ (registries::RegistryStatus::File(_) | registries::RegistryStatus::Kubernetes(_)) => {
                panic!("{other:?}")
            }
        };
        let waited = tokio::time::timeout(DEADLINE, list.wait_for(is)).await;
        waited.unwrap().unwrap().clone()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

fn read(folder: &Path, mark: &str) -> Arc<Loaded> {
    read_list(folder, &format!("{{folder: clusters, exportMarks: [{mark}]}}"))
}

fn read_list(folder: &Path, list: &str) -> Arc<Loaded> {
    let file = folder.join("gateway.yaml");
    let text = format!(
        "apiVersion: eastway.dev/v1alpha1\nkind: GatewayConfig\ncluster: onprem\ntrust: {{domain: onprem.example}}\n\
         registries: [{{name: list, clusterRegistry: {list}}}]\n"
    );
    fs::write(&file, text).unwrap();
    Arc::new(config::load(&file).unwrap())
}

/// A Cluster file, and a kubeconfig for a port of this machine where nobody listens.
fn register(folder: &Path, cluster: &str, server: &str) {
    let folder = folder.join("clusters");
    let kubeconfig = json!({
        "current-context": "x", "users": [{"name": "x", "user": {"token": "t"}}],
        "clusters": [{"name": "x", "cluster": {"server": format!("https://127.0.0.1:1/{server}")}}],
        "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
    });
    fs::write(folder.join(cluster), kubeconfig.to_string()).unwrap();
    let file = json!({
        "apiVersion": "clusterregistry.k8s.io/v1alpha1", "kind": "Cluster", "metadata": {"name": cluster},
        "spec": {"authInfo": {"controller": {"kind": "Kubeconfig", "name": cluster}}},
    });
    fs::write(folder.join(format!("{cluster}.yaml")), file.to_string()).unwrap();
}

#[tokio::test(start_paused = true)]
async fn i5_i12_a_server_that_never_answered_delays_the_start_for_a_bounded_time() {
    let mut rig = Rig::start(&["eu"]);
    let started = Instant::now();
    rig.names(&["list", "list-eu"]).await;
    assert!(!rig.reader.load().is_local_synced(), "it may have services");
    let list = rig.list(|list| list.synced).await;
    assert!(started.elapsed() >= PATIENCE);
    assert_eq!((list.servers, list.errors), (1, Vec::new()), "nothing is wrong with the list");
    while !rig.reader.load().is_local_synced() {
        rig.reader.changed().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn i12_a_list_that_was_empty_in_the_last_run_delays_the_start_for_a_moment() {
    for (kept, least) in [(Some("0"), SHORT_PATIENCE), (Some("1"), PATIENCE), (None, PATIENCE)] {
        let folder = tempfile::tempdir().unwrap();
        // Objects of an API server that cannot be asked: this process is in no pod.
        let loaded = read_list(folder.path(), "{namespace: eastway-clusters}");
        let state = loaded.settings.state.join("registries");
        fs::create_dir_all(&state).unwrap();
        if let Some(kept) = kept {
            fs::write(state.join("list.members"), kept).unwrap();
        }
        let mut rig = Rig::run(folder, loaded, registries::Warm::Yes);
        let started = Instant::now();
        rig.names(&["list"]).await;
        rig.list(|list| list.synced).await;
        let waited = started.elapsed();
        assert!(waited >= least && waited < least + Duration::from_secs(1), "{kept:?}: {waited:?}");
    }
}

#[tokio::test]
async fn how_many_servers_a_list_has_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("clusters")).unwrap();
    let loaded = read(folder.path(), "istio");
    let kept = loaded.settings.state.join("registries/list.members");
    let mut rig = Rig::run(folder, loaded, registries::Warm::Yes);
    rig.names(&["list"]).await;
    rig.list(|list| list.synced).await;
    assert_eq!(fs::read_to_string(&kept).unwrap(), "0");
    register(rig.folder.path(), "eu", "eu");
    rig.list(|list| list.servers == 1).await;
    assert_eq!(fs::read_to_string(&kept).unwrap(), "1");
}

#[tokio::test]
async fn servers_come_and_go_with_their_files() {
    let mut rig = Rig::start(&["eu", "us"]);
    rig.names(&["list", "list-eu", "list-us"]).await;
    let folder = rig.folder.path().to_owned();
    // The same one twice, and a name that no registry can have.
    register(&folder, "us2", "us");
    register(&folder, "long.name", "long");
    let list = rig.list(|list| list.servers == 3 && !list.errors.is_empty()).await;
    let expected = "us2 is https://127.0.0.1:1/us, as us is: its services would count twice; it is left out";
    assert_eq!(list.errors, [expected]);
    let hashed = member_name(&Label::parse("list").unwrap(), "long.name").unwrap();
    assert!(rig.statuses.borrow().contains_key(&hashed));
    // Other settings of the list: all are started anew under their names.
    rig.configuration.send_replace(read(&folder, "cilium"));
    for file in ["us2.yaml", "long.name.yaml", "eu.yaml"] {
        fs::remove_file(folder.join("clusters").join(file)).unwrap();
    }
    rig.names(&["list", "list-us"]).await;
}

#[test]
fn names_are_those_of_both_or_a_hash() {
    let list = Label::parse("list").unwrap();
    let name = |cluster: &str| member_name(&list, cluster).unwrap().to_string();
    assert_eq!(name("eu-1"), "list-eu-1");
    assert_ne!(name("eu.1"), name("eu.2"));
    assert_eq!(name(&"a".repeat(60)).len(), "list-".len() + 10);
    let long = Label::parse(&"l".repeat(63)).unwrap();
    assert_eq!(member_name(&long, "eu").unwrap().as_str().len(), 63);
}

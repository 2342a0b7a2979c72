use std::time::Instant;

use tokio::time::timeout;

use super::*;
use crate::config::load;
use crate::config::tests::{Folder, MINIMAL, PEER};

const SOON: Duration = Duration::from_secs(20);

struct Fixture {
    folder: Folder,
    loaded: watch::Receiver<Arc<Loaded>>,
    status: watch::Receiver<ReloadStatus>,
    task: tokio::task::JoinHandle<()>,
    cancel: CancellationToken,
}

impl Fixture {
    fn start(files: &[(&str, &str)]) -> Self {
        Self::start_in(Folder::new(files))
    }

    fn start_in(folder: Folder) -> Self {
        let path = folder.path("gateway.yaml");
        Self::start_by(&path, folder)
    }

    /// By a name of the file that may be relative.
    fn start_by(path: &Path, folder: Folder) -> Self {
        let cancel = CancellationToken::new();
        let (loaded, status, run) = watch(path, Arc::new(load(path).unwrap()), cancel.clone());
        Self { folder, loaded, status, task: tokio::spawn(run), cancel }
    }

    async fn until(&mut self, wanted: impl FnMut(&ReloadStatus) -> bool) -> ReloadStatus {
        timeout(SOON, self.status.wait_for(wanted)).await.expect("status never came").unwrap().clone()
    }

    fn peers(&self) -> Vec<String> {
        self.loaded.borrow().peers.keys().map(ToString::to_string).collect()
    }

    async fn stop(self) {
        self.cancel.cancel();
        timeout(SOON, self.task).await.expect("does not stop").unwrap();
    }
}

#[tokio::test]
async fn peers_come_and_go_with_their_files() {
    let mut fixture = Fixture::start(&[("gateway.yaml", MINIMAL)]);
    assert!(fixture.peers().is_empty());
    fixture.folder.write("peers/gke.yaml", PEER);
    fixture.until(|status| status.generation == 2).await;
    assert_eq!(fixture.peers(), ["gke"]);
    std::fs::remove_file(fixture.folder.path("peers/gke.yaml")).unwrap();
    fixture.until(|status| status.generation == 3).await;
    assert!(fixture.peers().is_empty());
    fixture.stop().await;
}

#[tokio::test]
async fn i11_f32_a_bad_version_changes_nothing_and_says_why() {
    let mut fixture = Fixture::start(&[("gateway.yaml", MINIMAL), ("peers/gke.yaml", PEER)]);
    fixture.loaded.mark_unchanged();
    fixture.folder.write("peers/gke.yaml", &PEER.replace("pins", "pin"));
    let status = fixture.until(|status| !status.errors.is_empty()).await;
    assert!(status.errors[0].contains("did you mean pins?"), "{status:?}");
    assert_eq!(status.generation, 1);
    assert!(status.failed_at.is_some());
    assert!(!fixture.loaded.has_changed().unwrap());
    assert_eq!(fixture.peers(), ["gke"]);
    // The same as runs: the mistake is gone, and nobody is woken.
    fixture.folder.write("peers/gke.yaml", PEER);
    let status = fixture.until(|status| status.errors.is_empty()).await;
    assert_eq!((status.generation, status.failed_at), (2, None));
    assert!(!fixture.loaded.has_changed().unwrap());
    fixture.stop().await;
}

#[tokio::test]
async fn i4_a_folder_that_is_gone_is_not_an_empty_one() {
    let mut fixture = Fixture::start(&[("gateway.yaml", MINIMAL), ("peers/gke.yaml", PEER)]);
    std::fs::rename(fixture.folder.path("peers"), fixture.folder.path("elsewhere")).unwrap();
    let status = fixture.until(|status| !status.errors.is_empty()).await;
    assert!(status.errors[0].contains("cannot read: no such file or folder"), "{status:?}");
    assert_eq!(fixture.peers(), ["gke"]);
    std::fs::rename(fixture.folder.path("elsewhere"), fixture.folder.path("peers")).unwrap();
    fixture.until(|status| status.errors.is_empty()).await;
    std::fs::remove_file(fixture.folder.path("gateway.yaml")).unwrap();
    fixture.until(|status| !status.errors.is_empty()).await;
    assert_eq!(fixture.peers(), ["gke"]);
    fixture.stop().await;
}

#[tokio::test]
async fn f31_a_storm_of_writes_ends_with_the_last_version() {
    let mut fixture = Fixture::start(&[("gateway.yaml", MINIMAL), ("peers/gke.yaml", PEER)]);
    let version = |seconds: u32| format!("{PEER}  withdrawAfter: {seconds}s\n");
    for seconds in 1..=1000 {
        fixture.folder.write("peers/gke.yaml", &version(seconds));
    }
    let written = Instant::now();
    let last =
        |loaded: &Arc<Loaded>| loaded.peers.values().any(|peer| peer.withdraw_after == Duration::from_secs(1000));
    timeout(SOON, fixture.loaded.wait_for(last)).await.expect("the last version never came").unwrap();
    // 1 s is the promise; the rest is for a machine that does other things as well.
    assert!(written.elapsed() < Duration::from_secs(5), "{:?}", written.elapsed());
    let generation = fixture.status.borrow().generation;
    assert!(generation < 200, "1000 writes became {generation} reloads");
    fixture.stop().await;
}

#[tokio::test]
async fn a_mounted_configmap_is_followed_through_its_swap() {
    let folder = Folder::new(&[("..v1/gateway.yaml", MINIMAL), ("..v2/gateway.yaml", MINIMAL)]);
    folder.write(
        "..v2/gateway.yaml",
        &MINIMAL.replace("{domain: onprem.example}", "{domain: onprem.example, crl: x.pem}"),
    );
    let link = std::os::unix::fs::symlink::<&str, PathBuf>;
    link("..v1", folder.path("..data")).unwrap();
    link("..data/gateway.yaml", folder.path("gateway.yaml")).unwrap();
    let mut fixture = Fixture::start_in(folder);
    link("..v2", fixture.folder.path("..data_tmp")).unwrap();
    std::fs::rename(fixture.folder.path("..data_tmp"), fixture.folder.path("..data")).unwrap();
    fixture.until(|status| status.generation == 2).await;
    assert!(fixture.loaded.borrow().settings.trust.crl.is_some());
    fixture.stop().await;
}

/// Well within the poll of 30 s.
#[tokio::test]
async fn by_a_relative_path_a_swapped_link_and_a_folder_that_returns_are_followed() {
    let later = format!("{PEER}  withdrawAfter: 7s\n");
    let folder = Folder::new(&[("gateway.yaml", MINIMAL), ("v1/gke.yaml", PEER), ("v2/gke.yaml", &later)]);
    let link = std::os::unix::fs::symlink::<&str, PathBuf>;
    link("v1", folder.path("peers")).unwrap();
    let root: PathBuf = std::env::current_dir().unwrap().iter().skip(1).map(|_| "..").collect();
    let path = root.join(folder.path("gateway.yaml").strip_prefix("/").unwrap());
    assert!(path.is_relative());
    let mut fixture = Fixture::start_by(&path, folder);
    link("v2", fixture.folder.path("new")).unwrap();
    std::fs::rename(fixture.folder.path("new"), fixture.folder.path("peers")).unwrap();
    let all = |wanted: u64| {
        move |loaded: &Arc<Loaded>| loaded.peers.values().all(|peer| peer.withdraw_after.as_secs() == wanted)
    };
    timeout(SOON, fixture.loaded.wait_for(all(7))).await.expect("the swapped link is not followed").unwrap();
    std::fs::rename(fixture.folder.path("v2"), fixture.folder.path("away")).unwrap();
    fixture.until(|status| !status.errors.is_empty()).await;
    std::fs::rename(fixture.folder.path("away"), fixture.folder.path("v2")).unwrap();
    fixture.until(|status| status.errors.is_empty()).await;
    fixture.folder.write("v2/gke.yaml", &later.replace("7s", "8s"));
    timeout(SOON, fixture.loaded.wait_for(all(8))).await.expect("the folder is not followed").unwrap();
    fixture.stop().await;
}

#[tokio::test]
async fn what_needs_a_restart_stays_and_is_named() {
    let mut fixture = Fixture::start(&[("gateway.yaml", MINIMAL)]);
    let changed = "\
apiVersion: eastway.dev/v1alpha1
kind: GatewayConfig
cluster: other
trust: {domain: onprem.example, ca: 'unix:ca.sock'}
listen: {link: '0.0.0.0:1', admin: '127.0.0.1:2'}
dns: {zones: [shop.example], names: [{name: a.shop.example, service: shop/a}]}
state: /elsewhere
log: {access: all}
";
    fixture.folder.write("gateway.yaml", changed);
    let status = fixture.until(|status| status.generation == 2).await;
    let loaded = fixture.loaded.borrow().clone();
    let settings = &loaded.settings;
    assert_eq!(settings.cluster.as_str(), "onprem");
    assert_eq!(settings.listen.link.port(), 15443);
    assert_eq!(settings.state, fixture.folder.path("state"));
    assert!(settings.dns.names.is_empty(), "a name in a zone that is not served yet");
    assert_eq!(settings.log.access, crate::telemetry::AccessMode::All);
    let lines: Vec<&str> = status.needs_restart.iter().filter_map(|line| line.split("warning: ").nth(1)).collect();
    let fixed = lines.iter().filter_map(|line| line.split(": ").nth(1)?.split(' ').next()).collect::<Vec<_>>();
    assert_eq!(fixed, ["cluster", "trust.ca", "listen.link", "listen.admin", "dns.zones", "state"], "{lines:?}");
    fixture.folder.write("gateway.yaml", &format!("{MINIMAL}log: {{access: all}}\n"));
    let status = fixture.until(|status| status.generation == 3).await;
    assert!(status.needs_restart.is_empty());
    fixture.stop().await;
}

#[tokio::test]
async fn siblings_come_and_go_while_where_they_are_heard_stays() {
    let replicas = |text: &str| format!("{MINIMAL}replicas: {{listen: {text}}}\n");
    let first = replicas("'127.0.0.1:1', siblings: ['10.0.0.5:1']");
    let mut fixture = Fixture::start(&[("gateway.yaml", &first)]);
    let second = replicas("'127.0.0.1:2', siblings: ['10.0.0.6:1', '10.0.0.7:1']");
    for (generation, text, siblings) in [(2, second.as_str(), 2), (3, MINIMAL, 2)] {
        fixture.folder.write("gateway.yaml", text);
        let status = fixture.until(|status| status.generation == generation).await;
        let replicas = fixture.loaded.borrow().settings.replicas.clone().unwrap();
        assert_eq!((replicas.listen.port(), replicas.siblings.len()), (1, siblings));
        assert!(status.needs_restart[0].contains("replicas.listen"), "{:?}", status.needs_restart);
    }
    fixture.stop().await;
}

#[tokio::test]
async fn a_peer_with_the_running_name_is_refused_even_if_the_file_renames_us() {
    let mut fixture = Fixture::start(&[("gateway.yaml", MINIMAL)]);
    fixture.folder.write("peers/onprem.yaml", &PEER.replace("name: gke", "name: onprem"));
    fixture.folder.write("gateway.yaml", &MINIMAL.replace("cluster: onprem", "cluster: other"));
    let status = fixture.until(|status| !status.errors.is_empty()).await;
    assert!(status.errors.iter().any(|line| line.contains("is this cluster's own name")), "{status:?}");
    fixture.stop().await;
}

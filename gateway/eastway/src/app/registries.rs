//! Follows the registries of the configuration: one task each, started and ended live.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use eastway_kubernetes::client::Access;
use eastway_kubernetes::source::{self, KubernetesRegistry, KubernetesRegistryConfig, Rules};
use eastway_model::{Change, Label, LocalChange};
use eastway_registry::file::{self, FileRegistry, FileRegistryConfig};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::info;

use crate::adapters;
use crate::app::clock;
use crate::app::clusters::{self, Clusters};
use crate::app::store::{Input, StoreSender};
use crate::config::settings::{ApiServerSettings, ReadSettings, RegistrySettings, RegistrySource};
use crate::config::{Loaded, Settings};

/// Changes of one registry that wait for the store.
const QUEUE: usize = 256;

/// The registries that run.
pub struct Registries {
    settings: Arc<Settings>,
    host: Host,
    running: BTreeMap<Label, (RegistrySource, Running)>,
    /// The configuration of the start has been taken over.
    started: bool,
}

/// Whether what API servers said in the last run counts while they are away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Warm {
    /// It does: who serves goes on serving.
    Yes,
    /// It does not: who writes must not write by it.
    No,
}

/// How each registry is doing.
pub type RegistryStatuses = BTreeMap<Label, RegistryStatus>;

/// How one registry is doing.
#[derive(Clone, Debug)]
pub enum RegistryStatus {
    /// A file.
    File(watch::Receiver<file::RegistryStatus>),
    /// An API server.
    Kubernetes(watch::Receiver<source::RegistryStatus>),
    /// A list of API servers; each has a status of its own.
    Clusters(watch::Receiver<clusters::ListStatus>),
}

impl Registries {
    /// None yet.
    #[must_use]
    pub fn new(
        settings: Arc<Settings>,
        warm: Warm,
        store: StoreSender,
        tasks: TaskTracker,
        end: CancellationToken,
        statuses: watch::Sender<Arc<RegistryStatuses>>,
    ) -> Self {
        let copies = (warm == Warm::Yes).then(|| Arc::from(settings.state.join("registries")));
        let host = Host { copies, store, tasks, end, statuses };
        Self { settings, host, running: BTreeMap::new(), started: false }
    }

    /// Follows the configuration until the process ends.
    pub async fn run(mut self, mut loaded: watch::Receiver<Arc<Loaded>>) {
        loop {
            let wanted = loaded.borrow_and_update().settings.registries.clone();
            self.apply(&wanted).await;
            self.started = true;
            tokio::select! {
                () = self.host.end.cancelled() => return,
                changed = loaded.changed() => if changed.is_err() { return },
            }
        }
    }

    async fn apply(&mut self, wanted: &[RegistrySettings]) {
        let names: Vec<_> = wanted.iter().map(|registry| registry.name.clone()).collect();
        let stays =
            |name: &Label, source: &RegistrySource| wanted.iter().any(|one| one.name == *name && one.source == *source);
        let gone = self.running.iter().filter(|(name, (source, _))| !stays(name, source));
        let gone: Vec<_> = gone.map(|(name, _)| name.clone()).collect();
        // What ran under a name whose source is another now.
        let mut inherited: BTreeMap<Label, clusters::Members> = BTreeMap::new();
        for name in gone {
            let Some((_, running)) = self.running.remove(&name) else { continue };
            let members = self.host.stop(&name, running).await;
            let follows = |one: &RegistrySettings| one.name == name && is_list(&one.source);
            if wanted.iter().any(follows) {
                inherited.insert(name.clone(), members);
            } else {
                for (member, running) in members.into_running() {
                    self.host.remove(&member, running).await;
                }
            }
            if !names.contains(&name) {
                self.host.tell_removed(&name).await;
            }
        }
        self.host.store.send(Input::Registries(names)).await;
        for registry in wanted {
            if !self.running.contains_key(&registry.name) {
                let members = inherited.remove(&registry.name).unwrap_or_default();
                self.start(registry, members);
            }
        }
    }

    fn start(&mut self, registry: &RegistrySettings, members: clusters::Members) {
        let name = registry.name.clone();
        let base = self.base();
        let running = match &registry.source {
            RegistrySource::File(path) => {
                let (file, status) = FileRegistry::new(FileRegistryConfig {
                    name: name.clone(),
                    path: path.clone(),
                    state: Some(self.settings.state.clone()),
                    allow_loopback: base.allow_loopback,
                    trust_domain: Arc::clone(&self.settings.trust.domain),
                    clock: Arc::new(clock::wall),
                });
                let run = |sender, stop| file.run(sender, stop);
                self.host.start(&name, RegistryStatus::File(status), run)
            }
            RegistrySource::Kubernetes(server) => {
                let config = kubernetes_config(name.clone(), server, &base, &self.settings.trust.domain);
                self.host.start_kubernetes(config).0
            }
            RegistrySource::Clusters { place, read } => {
                let own = adapters::kubernetes_access(self.settings.kubernetes.as_ref().map(|own| &own.access));
                let (list, status) = Clusters::new(name.clone(), place.clone(), read.clone(), self.host.clone());
                let list = list.with(own, base, members, !self.started);
                let stop = self.host.end.child_token();
                let task = self.host.tasks.spawn(list.run(stop.clone()));
                self.host.show(&name, RegistryStatus::Clusters(status));
                Running { stop, task }
            }
        };
        self.running.insert(name, (registry.source.clone(), running));
    }

    /// How all API servers are read.
    fn base(&self) -> Rules {
        Rules { allow_loopback: self.settings.allow_loopback, istio: self.settings.istio(), ..Rules::default() }
    }
}

fn is_list(source: &RegistrySource) -> bool {
    matches!(source, RegistrySource::Clusters { .. })
}

/// A registry that runs.
#[derive(Debug)]
pub(super) struct Running {
    stop: CancellationToken,
    /// The last of it: when it has ended, no change of the registry follows. Of a list: what it found, which runs on.
    task: JoinHandle<clusters::Members>,
}

/// What registries run in.
#[derive(Clone)]
pub(super) struct Host {
    /// Folder for what API servers said, over a restart; `None`: nothing is kept.
    copies: Option<Arc<Path>>,
    pub(super) store: StoreSender,
    tasks: TaskTracker,
    end: CancellationToken,
    statuses: watch::Sender<Arc<RegistryStatuses>>,
}

impl Host {
    /// Runs a registry, by `run`, and takes its changes to the store.
    fn start<R>(
        &self,
        name: &Label,
        status: RegistryStatus,
        run: impl FnOnce(mpsc::Sender<Change>, CancellationToken) -> R,
    ) -> Running
    where
        R: Future<Output = ()> + Send + 'static,
    {
        let stop = self.end.child_token();
        let (sender, receiver) = mpsc::channel(QUEUE);
        self.tasks.spawn(run(sender, stop.clone()));
        self.show(name, status);
        let task = self.tasks.spawn(forward(receiver, self.store.clone(), stop.clone()));
        Running { stop, task }
    }

    /// Runs a registry that reads an API server.
    pub(super) fn start_kubernetes(
        &self,
        config: KubernetesRegistryConfig,
    ) -> (Running, watch::Receiver<source::RegistryStatus>) {
        let name = config.name.clone();
        let config = KubernetesRegistryConfig { copy: self.copy_of(&name), ..config };
        let (server, status) = KubernetesRegistry::new(config);
        let shown = RegistryStatus::Kubernetes(status.clone());
        (self.start(&name, shown, |sender, stop| server.run(sender, stop)), status)
    }

    /// Ends a registry; what it told stays. Nothing of it follows.
    pub(super) async fn stop(&self, name: &Label, running: Running) -> clusters::Members {
        running.stop.cancel();
        let members = running.task.await.unwrap_or_default();
        self.statuses.send_modify(|all| drop(Arc::make_mut(all).remove(name)));
        members
    }

    /// Ends a registry and takes back what it told.
    pub(super) async fn remove(&self, name: &Label, running: Running) {
        self.stop(name, running).await;
        self.tell_removed(name).await;
    }

    /// Where what an API server said is kept.
    fn copy_of(&self, registry: &Label) -> Option<PathBuf> {
        self.copies.as_ref().map(|folder| folder.join(format!("{registry}.copy")))
    }

    /// Where it is kept how many API servers a list has.
    pub(super) fn members_of(&self, list: &Label) -> Option<PathBuf> {
        self.copies.as_ref().map(|folder| folder.join(format!("{list}.members")))
    }

    async fn tell_removed(&self, name: &Label) {
        info!(registry = %name, "registry removed");
        // Files have neither.
        for kept in self.copy_of(name).into_iter().chain(self.members_of(name)) {
            let _none = std::fs::remove_file(kept);
        }
        let change = Change::Local { registry: name.clone(), change: LocalChange::Removed };
        self.store.changes(vec![change]).await;
    }

    fn show(&self, name: &Label, status: RegistryStatus) {
        self.statuses.send_modify(|all| drop(Arc::make_mut(all).insert(name.clone(), status)));
    }

    /// Runs a task that belongs to a registry.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }
}

fn kubernetes_config(
    name: Label,
    server: &ApiServerSettings,
    base: &Rules,
    trust_domain: &Arc<str>,
) -> KubernetesRegistryConfig {
    let (access, salt) = match &server.kubeconfig {
        Some(path) => {
            (Access::Kubeconfig { path: path.clone(), context: server.context.clone() }, name.as_str().into())
        }
        None => (Access::InCluster, Arc::default()),
    };
    // Another server's accounts are not those that this cluster's CA certifies.
    let sidecars = server.kubeconfig.is_none().then(|| Arc::clone(trust_domain));
    let rules = Rules { sidecars, ..rules(&server.read, base, salt) };
    KubernetesRegistryConfig { name, access, rules, copy: None, clock: Arc::new(clock::wall) }
}

/// `base`: what holds for all registries.
pub(super) fn rules(read: &ReadSettings, base: &Rules, salt: Arc<str>) -> Rules {
    let ReadSettings { export_marks, subset_labels } = read.clone();
    Rules { marks: export_marks, subset_labels, salt, ..base.clone() }
}

async fn forward(
    mut changes: mpsc::Receiver<Change>,
    store: StoreSender,
    stop: CancellationToken,
) -> clusters::Members {
    let mut batch = Vec::new();
    while let Some(received) = stop.run_until_cancelled(changes.recv_many(&mut batch, QUEUE)).await {
        if received == 0 || !store.changes(std::mem::take(&mut batch)).await {
            break;
        }
    }
    clusters::Members::default()
}

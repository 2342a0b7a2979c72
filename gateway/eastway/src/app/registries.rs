//! Follows the registries of the configuration: one task each, started and ended live.

use std::collections::BTreeMap;
use std::sync::Arc;

use eastway_kubernetes::client::Access;
use eastway_kubernetes::source::{self, KubernetesRegistry, KubernetesRegistryConfig, Rules};
use eastway_model::{Change, Label, LocalChange};
use eastway_registry::file::{self, FileRegistry, FileRegistryConfig};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::info;

use crate::app::clock;
use crate::app::store::{Input, StoreSender};
use crate::config::settings::{ApiServerSettings, RegistrySettings, RegistrySource};
use crate::config::{Loaded, Settings};

/// Changes of one registry that wait for the store.
const QUEUE: usize = 256;

/// The registries that run.
pub struct Registries {
    settings: Arc<Settings>,
    store: StoreSender,
    tasks: TaskTracker,
    end: CancellationToken,
    running: BTreeMap<Label, (RegistrySource, CancellationToken)>,
    statuses: watch::Sender<Arc<RegistryStatuses>>,
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
}

impl Registries {
    /// None yet.
    #[must_use]
    pub fn new(
        settings: Arc<Settings>,
        store: StoreSender,
        tasks: TaskTracker,
        end: CancellationToken,
        statuses: watch::Sender<Arc<RegistryStatuses>>,
    ) -> Self {
        Self { settings, store, tasks, end, running: BTreeMap::new(), statuses }
    }

    /// Follows the configuration until the process ends.
    pub async fn run(mut self, mut loaded: watch::Receiver<Arc<Loaded>>) {
        loop {
            let wanted = loaded.borrow_and_update().settings.registries.clone();
            self.apply(&wanted).await;
            tokio::select! {
                () = self.end.cancelled() => return,
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
        for name in gone {
            if let Some((_, stop)) = self.running.remove(&name) {
                stop.cancel();
            }
            self.statuses.send_modify(|all| drop(Arc::make_mut(all).remove(&name)));
            if !names.contains(&name) {
                info!(registry = %name, "registry removed");
                let change = Change::Local { registry: name, change: LocalChange::Removed };
                self.store.changes(vec![change]).await;
            }
        }
        self.store.send(Input::Registries(names)).await;
        for registry in wanted {
            if !self.running.contains_key(&registry.name) {
                self.start(registry);
            }
        }
    }

    fn start(&mut self, registry: &RegistrySettings) {
        let stop = self.end.child_token();
        let (sender, receiver) = mpsc::channel(QUEUE);
        let name = registry.name.clone();
        let status = match &registry.source {
            RegistrySource::File(path) => {
                let (file, status) = FileRegistry::new(FileRegistryConfig {
                    name: name.clone(),
                    path: path.clone(),
                    state: Some(self.settings.state.clone()),
                    allow_loopback: self.settings.allow_loopback,
                    clock: Arc::new(clock::wall),
                });
                self.tasks.spawn(file.run(sender, stop.clone()));
                RegistryStatus::File(status)
            }
            RegistrySource::Kubernetes(server) => {
                let config = kubernetes_config(name.clone(), server, self.settings.allow_loopback);
                let (server, status) = KubernetesRegistry::new(config);
                self.tasks.spawn(server.run(sender, stop.clone()));
                RegistryStatus::Kubernetes(status)
            }
        };
        self.statuses.send_modify(|all| drop(Arc::make_mut(all).insert(name.clone(), status)));
        self.tasks.spawn(forward(receiver, self.store.clone(), stop.clone()));
        self.running.insert(name, (registry.source.clone(), stop));
    }
}

fn kubernetes_config(name: Label, server: &ApiServerSettings, allow_loopback: bool) -> KubernetesRegistryConfig {
    let access = match &server.kubeconfig {
        Some(path) => Access::Kubeconfig { path: path.clone(), context: server.context.clone() },
        None => Access::InCluster,
    };
    let rules =
        Rules { marks: server.export_marks.clone(), subset_labels: server.subset_labels.clone(), allow_loopback };
    KubernetesRegistryConfig { name, access, rules, clock: Arc::new(clock::wall) }
}

async fn forward(mut changes: mpsc::Receiver<Change>, store: StoreSender, stop: CancellationToken) {
    let mut batch = Vec::new();
    while let Some(received) = stop.run_until_cancelled(changes.recv_many(&mut batch, QUEUE)).await {
        if received == 0 || !store.changes(std::mem::take(&mut batch)).await {
            return;
        }
    }
}

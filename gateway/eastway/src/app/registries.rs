//! Follows the registries of the configuration: one task each, started and ended live.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use eastway_model::{Change, Label, LocalChange};
use eastway_registry::file::{FileRegistry, FileRegistryConfig, RegistryStatus};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::info;

use crate::app::clock;
use crate::app::store::{Input, StoreSender};
use crate::config::settings::RegistrySettings;
use crate::config::{Loaded, Settings};

/// Changes of one registry that wait for the store.
const QUEUE: usize = 256;

/// The registries that run.
pub struct Registries {
    settings: Arc<Settings>,
    store: StoreSender,
    tasks: TaskTracker,
    end: CancellationToken,
    running: BTreeMap<Label, (PathBuf, CancellationToken)>,
    statuses: watch::Sender<Arc<RegistryStatuses>>,
}

/// How each registry is doing.
pub type RegistryStatuses = BTreeMap<Label, watch::Receiver<RegistryStatus>>;

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
        let stays = |name: &Label, file: &PathBuf| wanted.iter().any(|one| one.name == *name && one.file == *file);
        let gone: Vec<_> =
            self.running.iter().filter(|(name, (file, _))| !stays(name, file)).map(|(name, _)| name.clone()).collect();
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
        let config = FileRegistryConfig {
            name: registry.name.clone(),
            path: registry.file.clone(),
            state: Some(self.settings.state.clone()),
            allow_loopback: self.settings.allow_loopback,
            clock: Arc::new(clock::wall),
        };
        let (file, status) = FileRegistry::new(config);
        self.statuses.send_modify(|all| drop(Arc::make_mut(all).insert(registry.name.clone(), status)));
        self.tasks.spawn(file.run(sender, stop.clone()));
        self.tasks.spawn(forward(receiver, self.store.clone(), stop.clone()));
        self.running.insert(registry.name.clone(), (registry.file.clone(), stop));
    }
}

async fn forward(mut changes: mpsc::Receiver<Change>, store: StoreSender, stop: CancellationToken) {
    let mut batch = Vec::new();
    while let Some(received) = stop.run_until_cancelled(changes.recv_many(&mut batch, QUEUE)).await {
        if received == 0 || !store.changes(std::mem::take(&mut batch)).await {
            return;
        }
    }
}

//! The Kubernetes registry: Services, EndpointSlices, export marks and pods of one API server as
//! changes of local truth. It only reads.
//!
//! The store hears `Replace` first, once every list is in (invariant I5), and differences from then on.
//! While the server cannot be reached, what was told stays, also over a restart of the process: a copy of it is on
//! disk.

mod authentications;
mod copy;
mod kept;
mod mesh;
pub(crate) mod objects;
mod state;
mod translate;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use eastway_model::{Change, Label, LocalChange, ServiceKey, UnixMillis};
use k8s_openapi::api::{core, discovery};
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::client::{self, Access};
use crate::types::mcs;
use crate::watch::{Difference, Selection, Watch, WatchStatus};
use state::State;
use translate::Problem;

/// Pause before a client that could not be made is tried again: files may appear or be mended.
const CLIENT_PAUSE: Duration = Duration::from_secs(5);

/// Least time between two versions of the status: counting costs more than a change.
const STATUS_PAUSE: Duration = Duration::from_millis(500);

/// How long the API server may take after a start before the store hears what it said in the last run.
const GRACE: Duration = Duration::from_secs(1);

/// Shortest time between two copies on disk; and the share of all time that writing them takes at most.
const COPY: (Duration, u32) = (Duration::from_millis(500), 50);

/// Problems that are shown; of further ones only the number.
const SHOWN: usize = 20;

/// Services that are told what was left out of them, and how much of it each.
const SHOWN_SERVICES: usize = 1000;
const SHOWN_EACH: usize = 3;

/// Labels of pods that tell versions apart, unless configured otherwise.
pub const SUBSET_LABELS: [&str; 2] = ["version", "app.kubernetes.io/version"];

/// Where the time comes from.
pub type Clock = Arc<dyn Fn() -> UnixMillis + Send + Sync>;

/// A mark of another mesh that counts as an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ExportMark {
    /// Label `istio.io/global: "true"` of the Service.
    Istio,
    /// Label `mirror.linkerd.io/exported: "true"` of the Service.
    Linkerd,
    /// Annotation `service.cilium.io/global: "true"` of the Service, unless
    /// `service.cilium.io/shared` says otherwise.
    Cilium,
}

/// How objects are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// What counts as an export beside a ServiceExport.
    pub marks: Vec<ExportMark>,
    /// Labels of pods that tell versions of a service apart; at most 16. Others do not leave the
    /// cluster.
    pub subset_labels: Vec<Arc<str>>,
    /// Accept endpoints on loopback addresses.
    pub allow_loopback: bool,
    /// What endpoint ids depend on beside the pod, so that several API servers never give one id twice. Empty for the
    /// one that the cluster runs on.
    pub salt: Arc<str>,
    /// The trust domain of workloads with a sidecar of ours, which prove who they are; `None`: theirs do not count.
    pub sidecars: Option<Arc<str>>,
    /// The trust domain of workloads with a sidecar of Istio, which prove who they are; `None`: there is no Istio.
    pub istio: Option<Arc<str>>,
}

impl Default for Rules {
    fn default() -> Self {
        let subset_labels = SUBSET_LABELS.map(Arc::from).to_vec();
        Self {
            marks: Vec::new(),
            subset_labels,
            allow_loopback: false,
            salt: Arc::default(),
            sidecars: None,
            istio: None,
        }
    }
}

/// Settings of a [`KubernetesRegistry`].
#[derive(Clone)]
pub struct KubernetesRegistryConfig {
    /// Its name, which its changes carry.
    pub name: Label,
    /// The API server.
    pub access: Access,
    /// How objects are read.
    pub rules: Rules,
    /// File for what was told last, so that a process that starts while the API server is away serves by it; `None`:
    /// nothing is kept.
    pub copy: Option<PathBuf>,
    /// Now, for the status.
    pub clock: Clock,
}

/// How a registry is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RegistryStatus {
    /// Whether the store has heard its contents.
    pub synced: bool,
    /// What it heard is that of the last run, from disk: the API server has not been heard yet.
    pub from_disk: bool,
    /// When anything was heard of the API server last.
    pub last_success: Option<UnixMillis>,
    /// Why there is no client; `None` once there is.
    pub problem: Option<String>,
    /// The watches.
    pub watches: Vec<WatchStatus>,
    /// Services.
    pub services: usize,
    /// Those offered to peers.
    pub exported: usize,
    /// Their endpoints.
    pub endpoints: usize,
    /// Pods that connections can be traced to.
    pub workloads: usize,
    /// Parts of services that were left out.
    pub left_out: usize,
    /// The first of them, by service, and why.
    pub problems: Vec<String>,
    /// Exported services with pods whose sidecars take connections at ports that are told the client's address; some of them.
    pub sidecars_in_the_way: Vec<ServiceKey>,
    /// What to tell the owner of each export about them, in one sentence.
    #[serde(skip)]
    pub left_out_of: Arc<BTreeMap<ServiceKey, String>>,
}

impl RegistryStatus {
    /// What is wrong now, in words, the worst first.
    #[must_use]
    pub fn errors(&self) -> Vec<String> {
        let mut errors: Vec<String> = self.problem.iter().cloned().collect();
        if self.from_disk {
            errors.push("the API server was not heard since the start: serving what it said before".to_owned());
        }
        for watch in &self.watches {
            let kind = &watch.kind;
            errors.extend(watch.problem.iter().map(|problem| format!("{kind}: {problem}")));
            if watch.not_installed {
                errors.push(format!("CRD {kind} not installed"));
            }
            errors.extend(watch.bad.iter().map(|bad| format!("{kind} {}: {}", bad.object, bad.error)));
            let more = watch.quarantined.saturating_sub(watch.bad.len());
            errors.extend((more > 0).then(|| format!("{kind}: {more} more cannot be read")));
        }
        errors.extend(self.problems.iter().cloned());
        let more = self.left_out.saturating_sub(self.problems.len());
        errors.extend((more > 0).then(|| format!("{more} more parts of services were left out")));
        errors
    }
}

/// A registry that reads an API server.
pub struct KubernetesRegistry {
    config: KubernetesRegistryConfig,
    status: watch::Sender<RegistryStatus>,
}

impl KubernetesRegistry {
    /// A registry that does nothing until [`KubernetesRegistry::run`].
    #[must_use]
    pub fn new(config: KubernetesRegistryConfig) -> (Self, watch::Receiver<RegistryStatus>) {
        let (status, receiver) = watch::channel(RegistryStatus::default());
        (Self { config, status }, receiver)
    }

    /// Lists and watches until `cancel` or until nobody listens to `changes`. It does not send
    /// [`LocalChange::Removed`]: whether its services go with it is its owner's decision.
    pub async fn run(self, changes: mpsc::Sender<Change>, cancel: CancellationToken) {
        let run = async {
            let client = self.client().await;
            Running::new(self, &client, changes).run().await;
        };
        cancel.run_until_cancelled(run).await;
    }

    async fn client(&self) -> kube::Client {
        loop {
            let problem = match client::connect(&self.config.access).await {
                Ok(client) => {
                    self.status.send_modify(|status| status.problem = None);
                    return client;
                }
                Err(error) => error.to_string(),
            };
            let changed = self.status.send_if_modified(|status| {
                let changed = status.problem.as_ref() != Some(&problem);
                status.problem = Some(problem.clone());
                changed
            });
            if changed {
                tracing::error!(registry = %self.config.name, "{problem}; trying again");
            }
            sleep(CLIENT_PAUSE).await;
        }
    }
}

struct Running {
    registry: KubernetesRegistry,
    changes: mpsc::Sender<Change>,
    state: State,
    services: Watch<objects::Service>,
    slices: Watch<objects::EndpointSlice>,
    exports: Watch<objects::ServiceExport>,
    pods: Watch<objects::Pod>,
    /// If Istio is there.
    authentications: Option<Watch<objects::PeerAuthentication>>,
    synced: bool,
    /// When the store is to hear the copy on disk, unless the lists are in before.
    restore_due: Option<Instant>,
    /// When the copy is to be written, and how long that took last.
    copy_due: Option<Instant>,
    copy_took: Duration,
    /// When the status is to be told.
    status_due: Option<Instant>,
    /// What was left out and is in the log already.
    logged: BTreeMap<String, String>,
}

/// Nobody listens any more.
struct Closed;

impl Running {
    fn new(registry: KubernetesRegistry, client: &kube::Client, changes: mpsc::Sender<Change>) -> Self {
        let not_ours = format!("{}!={}", translate::MANAGED_BY.0, translate::MANAGED_BY.1);
        let own_slices = format!("{},!{}", translate::SLICE_SERVICE, mcs::SOURCE_CLUSTER);
        let alive = "status.phase!=Succeeded,status.phase!=Failed";
        Self {
            state: State::new(registry.config.rules.clone()),
            services: watch_of(client, Selection::all::<core::v1::Service>().labelled(&not_ours)),
            slices: watch_of(client, Selection::all::<discovery::v1::EndpointSlice>().labelled(&own_slices)),
            exports: watch_of(client, Selection::all::<mcs::ServiceExport>().or_versions(&["v1alpha1"])),
            pods: watch_of(client, Selection::all::<core::v1::Pod>().with_fields(alive)),
            authentications: registry
                .config
                .rules
                .istio
                .as_ref()
                .map(|_| watch_of(client, authentications::selection())),
            restore_due: registry.config.copy.as_ref().map(|_| Instant::now() + GRACE),
            registry,
            changes,
            synced: false,
            copy_due: None,
            copy_took: Duration::ZERO,
            status_due: None,
            logged: BTreeMap::new(),
        }
    }

    async fn run(&mut self) {
        while self.step().await.is_ok() {}
    }

    async fn step(&mut self) -> Result<(), Closed> {
        let due = |at: Option<Instant>| async move {
            match at {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let (status_due, copy_due, restore_due) = (self.status_due, self.copy_due, self.restore_due);
        tokio::select! {
            differences = self.services.next() => take(differences, |one| self.state.service(one)),
            differences = self.slices.next() => take(differences, |one| self.state.slice(one)),
            differences = self.exports.next() => take(differences, |one| self.state.export(one)),
            differences = self.pods.next() => take(differences, |one| self.state.pod(one)),
            differences = next_if_any(&mut self.authentications) => {
                take(differences, |one| self.state.authentication(one));
            }
            () = due(status_due) => {
                self.tell_status();
                return Ok(());
            }
            () = due(copy_due) => {
                self.copy();
                return Ok(());
            }
            () = due(restore_due) => return self.restore().await,
        }
        if self.synced {
            let changes = self.state.flush();
            self.changed(!changes.is_empty());
            self.send(changes).await?;
        } else if self.is_settled() {
            (self.synced, self.restore_due) = (true, None);
            let changes = self.state.all();
            self.changed(true);
            self.send(changes).await?;
            self.tell_status();
        }
        self.status_due.get_or_insert_with(|| Instant::now() + STATUS_PAUSE);
        Ok(())
    }

    /// Notes that the copy on disk is old.
    fn changed(&mut self, changed: bool) {
        if changed && self.registry.config.copy.is_some() {
            let pause = COPY.0.max(self.copy_took * COPY.1);
            self.copy_due.get_or_insert_with(|| Instant::now() + pause);
        }
    }

    /// Writes the copy. A disk that does not take it costs the warm start and nothing else (fault F20).
    fn copy(&mut self) {
        self.copy_due = None;
        let Some(file) = &self.registry.config.copy else { return };
        let began = Instant::now();
        let (state, server) = (&mut self.state, &self.registry.config.access);
        let written = copy::blocking(|| {
            let workloads: Vec<_> = state.workloads().collect();
            copy::write(file, server, workloads.into_iter(), state.services())
        });
        self.copy_took = began.elapsed();
        if let Err(error) = written {
            tracing::warn!(%error, file = %file.display(), "what the API server says is not kept on disk: a restart waits for it");
        }
    }

    /// Tells the store what the API server said in the last run, since it says nothing now.
    async fn restore(&mut self) -> Result<(), Closed> {
        self.restore_due = None;
        let Some(file) = &self.registry.config.copy else { return Ok(()) };
        match copy::blocking(|| copy::read(file, &self.registry.config.access)) {
            Ok(None) => {}
            Ok(Some(copy::Contents { services, workloads })) => {
                let registry = &self.registry.config.name;
                tracing::info!(%registry, services = services.len(), workloads = workloads.len(), "the API server is not heard: serving what it said before the restart");
                self.registry.status.send_modify(|status| (status.synced, status.from_disk) = (true, true));
                // Workloads first, as always.
                self.send(vec![LocalChange::Workloads(workloads), LocalChange::Replace(services)]).await?;
            }
            Err(error) => {
                tracing::warn!(%error, file = %file.display(), "snapshot rejected; waiting for the API server");
            }
        }
        Ok(())
    }

    async fn send(&mut self, changes: Vec<LocalChange>) -> Result<(), Closed> {
        for change in changes {
            let change = Change::Local { registry: self.registry.config.name.clone(), change };
            self.changes.send(change).await.map_err(|_| Closed)?;
        }
        Ok(())
    }

    fn watches(&self) -> Vec<&WatchStatus> {
        let all = [self.services.status(), self.slices.status(), self.exports.status(), self.pods.status()];
        all.into_iter().chain(self.authentications.as_ref().map(Watch::status)).collect()
    }

    /// Whether everything was listed. Modes of Istio are not waited for where nobody may read them: sidecars carry them out.
    fn is_settled(&self) -> bool {
        let modes = self.authentications.as_ref().map(Watch::status);
        let others = self.watches().into_iter().filter(|watch| modes.is_none_or(|modes| !std::ptr::eq(modes, *watch)));
        others.into_iter().all(WatchStatus::is_settled)
            && modes.is_none_or(|modes| modes.is_settled() || modes.problem.is_some())
    }

    fn tell_status(&mut self) {
        self.status_due = None;
        let counts = self.state.counts();
        let mut all: BTreeMap<String, String> = BTreeMap::new();
        let (mut of, mut in_the_way) = (BTreeMap::new(), Vec::new());
        for (name, problems) in self.state.problems() {
            if let Ok(key) = ServiceKey::parse(&name.namespace, &name.name)
                && of.len() < SHOWN_SERVICES
            {
                let is_header = |problem: &Problem| matches!(problem, Problem::Endpoint(_, translate::Refused::Header));
                if problems.iter().any(is_header) {
                    in_the_way.push(key.clone());
                }
                of.insert(key, in_one_sentence(&problems));
            }
            for problem in problems {
                all.insert(format!("{name}: {problem}"), name.to_string());
            }
        }
        self.log(&all);
        let watches: Vec<_> = self.watches().into_iter().cloned().collect();
        for bad in [self.services.status(), self.exports.status()].into_iter().flat_map(|watch| &watch.bad) {
            if let Ok(key) = ServiceKey::parse(&bad.object.namespace, &bad.object.name) {
                of.insert(key, format!("cannot be read: {}; its last good version counts, if it had one", bad.error));
            }
        }
        let reached =
            watches.iter().all(|watch| watch.problem.is_none()) && watches.iter().any(WatchStatus::is_settled);
        let now = (self.registry.config.clock)();
        self.registry.status.send_modify(|status| {
            status.synced |= self.synced;
            status.from_disk &= !self.synced;
            status.last_success = if reached { Some(now) } else { status.last_success };
            status.watches = watches;
            status.services = counts.services;
            status.exported = counts.exported;
            status.endpoints = counts.endpoints;
            status.workloads = counts.workloads;
            status.left_out = all.len();
            status.sidecars_in_the_way = in_the_way;
            status.problems = all.keys().take(SHOWN).cloned().collect();
            if *status.left_out_of != of {
                status.left_out_of = Arc::new(of);
            }
        });
        self.logged = all;
    }

    /// One line for each service with something new to say.
    fn log(&self, all: &BTreeMap<String, String>) {
        let mut told = None;
        for (problem, service) in all.iter().filter(|(problem, _)| !self.logged.contains_key(*problem)) {
            if self.synced && told != Some(service) {
                tracing::warn!(registry = %self.registry.config.name, "left out: {problem}");
                told = Some(service);
            }
        }
    }
}

fn in_one_sentence(problems: &[Problem]) -> String {
    let shown: Vec<String> = problems.iter().take(SHOWN_EACH).map(ToString::to_string).collect();
    let more = problems.len() - shown.len();
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    format!("left out: {}{more}", shown.join("; "))
}

fn watch_of<K: DeserializeOwned + Send + Sync + 'static>(client: &kube::Client, selection: Selection) -> Watch<K> {
    // Nothing is told to the store before every list is in; what is kept of objects is less than they are.
    Watch::new(client.clone(), selection).eager()
}

async fn next_if_any<K: DeserializeOwned + Send + Sync + 'static>(watch: &mut Option<Watch<K>>) -> Vec<Difference<K>> {
    match watch {
        Some(watch) => watch.next().await,
        None => std::future::pending().await,
    }
}

fn take<K>(differences: Vec<Difference<K>>, into: impl FnMut(Difference<K>)) {
    differences.into_iter().for_each(into);
}

#[cfg(test)]
mod tests;

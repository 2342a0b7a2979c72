//! The file registry: services, endpoints and workloads from a `kind: ServiceList` file, with health
//! checks.
//!
//! The file is watched; a version with a mistake changes nothing, the last good one stays
//! (invariant I11). The store hears `Replace` first, once every endpoint has been checked or after a
//! second, and differences from then on.

mod contents;
mod health;
mod kept;
pub mod list;
mod parse;
mod state;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use eastway_model::{Change, Label, LocalChange, UnixMillis};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

pub use contents::{Contents, EndpointSpec, HealthPort, HealthSpec, Probe, ServiceSpec};
pub use parse::{MAX_BYTES, load, parse};

use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::watch::Watch;
use health::{Checker, Outcome};
use kept::Kept;
use state::State;

/// Longest wait for first health checks before the services are made known.
const FIRST_ROUND: Duration = Duration::from_secs(1);

/// Outcomes of health checks that may wait; they are applied in batches of this size.
const OUTCOMES: usize = 256;

/// Where the time comes from.
pub type Clock = Arc<dyn Fn() -> UnixMillis + Send + Sync>;

/// Settings of a [`FileRegistry`].
#[derive(Clone)]
pub struct FileRegistryConfig {
    /// Its name, which its changes carry.
    pub name: Label,
    /// The file.
    pub path: PathBuf,
    /// Folder to keep endpoint ids in; `None`: they are new after every start.
    pub state: Option<PathBuf>,
    /// Accept endpoints on loopback addresses.
    pub allow_loopback: bool,
    /// Trust domain of the identities of its workloads.
    pub trust_domain: Arc<str>,
    /// Now, for the time of export.
    pub clock: Clock,
}

/// How a registry is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RegistryStatus {
    /// Whether the store has heard its contents.
    pub synced: bool,
    /// Counts the versions of the file that were taken over.
    pub generation: u64,
    /// When the latest good version was read.
    pub last_success: Option<UnixMillis>,
    /// What is wrong with the version on disk, if it is not the one that runs.
    pub errors: Vec<Diagnostic>,
    /// Services in the file.
    pub services: usize,
    /// Endpoints in the file.
    pub endpoints: usize,
    /// Endpoints that fail their health check.
    pub unhealthy: usize,
}

/// A registry that reads a file.
pub struct FileRegistry {
    config: FileRegistryConfig,
    status: watch::Sender<RegistryStatus>,
}

impl FileRegistry {
    /// A registry that does nothing until [`FileRegistry::run`].
    #[must_use]
    pub fn new(config: FileRegistryConfig) -> (Self, watch::Receiver<RegistryStatus>) {
        let (status, receiver) = watch::channel(RegistryStatus::default());
        (Self { config, status }, receiver)
    }

    /// Reads, watches and checks until `cancel` or until nobody listens to `changes`. It does not
    /// send [`LocalChange::Removed`]: whether its services go with it is its owner's decision.
    pub async fn run(self, changes: mpsc::Sender<Change>, cancel: CancellationToken) {
        let run = async {
            let (outcomes, results) = mpsc::channel(OUTCOMES);
            let mut running = Running {
                state: State::new(self.read_kept(), Arc::clone(&self.config.trust_domain)),
                checker: Checker::new(outcomes),
                watch: Watch::new(),
                seen: None,
                first_round: None,
                saved: Kept::default(),
                registry: self,
                changes,
            };
            running.run(results).await;
        };
        cancel.run_until_cancelled(run).await;
    }

    fn kept_path(&self) -> Option<PathBuf> {
        self.config.state.as_ref().map(|folder| folder.join(format!("registry-{}", self.config.name)))
    }

    fn read_kept(&self) -> Kept {
        let Some(path) = self.kept_path() else { return Kept::default() };
        Kept::read(&path).unwrap_or_else(|error| {
            let registry = self.config.name.as_str();
            tracing::warn!(registry, file = %path.display(), "snapshot rejected: {error}; endpoint ids are new");
            Kept::default()
        })
    }
}

struct Running {
    registry: FileRegistry,
    state: State,
    checker: Checker,
    watch: Watch,
    changes: mpsc::Sender<Change>,
    /// The bytes read last, good or bad: the same again are no news.
    seen: Option<Result<Vec<u8>, String>>,
    /// Until when the first word to the store waits for health checks.
    first_round: Option<Instant>,
    saved: Kept,
}

/// Nobody listens any more.
struct Closed;

impl Running {
    async fn run(&mut self, mut results: mpsc::Receiver<Outcome>) {
        let mut batch: Vec<Outcome> = Vec::with_capacity(OUTCOMES);
        let mut step = self.reload().await;
        while step.is_ok() {
            let first_round = self.first_round;
            let first_round = async {
                match first_round {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.watch.changed() => step = self.reload().await,
                _ = results.recv_many(&mut batch, OUTCOMES) => {
                    let differences = self.state.set_health(batch.drain(..));
                    step = self.tell(differences).await;
                }
                () = first_round => {
                    self.first_round = Some(Instant::now());
                    step = self.tell(Vec::new()).await;
                }
            }
        }
    }

    async fn reload(&mut self) -> Result<(), Closed> {
        let path = self.registry.config.path.clone();
        self.watch.set([path.as_path()]);
        let read = read(&path).await;
        self.watch.hurry(read.is_err());
        if self.seen.as_ref() == Some(&read) {
            return Ok(());
        }
        let parsed = self.parse(&path, &read);
        self.seen = Some(read);
        match parsed {
            Ok((contents, warnings)) => {
                warnings.iter().for_each(|warning| tracing::warn!("{}", warning.headline()));
                self.take(contents).await
            }
            Err(errors) => {
                self.refuse(&errors);
                Ok(())
            }
        }
    }

    fn parse(&self, path: &Path, read: &Result<Vec<u8>, String>) -> Result<(Contents, Diagnostics), Diagnostics> {
        let one = |diagnostic: Diagnostic| {
            let mut sink = Diagnostics::new();
            sink.push(diagnostic);
            sink
        };
        let name = path.display().to_string();
        let bytes = read.clone().map_err(|reason| one(crate::yaml::unreadable(&name, &reason)))?;
        let source = crate::yaml::from_bytes(&name, bytes, MAX_BYTES).map_err(|diagnostic| one(*diagnostic))?;
        parse(&Arc::new(source), self.registry.config.allow_loopback)
    }

    async fn take(&mut self, contents: Contents) -> Result<(), Closed> {
        let now = (self.registry.config.clock)();
        let differences = self.state.set_contents(contents, now);
        self.checker.set(self.state.targets());
        self.save().await;
        self.registry.status.send_modify(|status| {
            status.generation += 1;
            status.last_success = Some(now);
            status.errors.clear();
        });
        if !self.is_synced() && self.first_round.is_none() {
            self.first_round = Some(Instant::now() + FIRST_ROUND);
        }
        self.tell(differences).await
    }

    fn refuse(&self, errors: &Diagnostics) {
        let registry = self.registry.config.name.as_str();
        let running = if self.registry.status.borrow().generation > 0 {
            "running with the previous version"
        } else {
            "no version runs yet"
        };
        for error in errors.iter().filter(|each| each.is_error()) {
            tracing::error!(registry, "{} ({running})", error.headline());
        }
        self.registry.status.send_modify(|status| status.errors = errors.iter().cloned().collect());
    }

    /// Sends `differences`, or everything if the store has heard nothing yet and it is time.
    async fn tell(&mut self, differences: Vec<LocalChange>) -> Result<(), Closed> {
        let mut to_send = differences;
        if !self.is_synced() {
            let Some(deadline) = self.first_round else { return Ok(()) };
            if !self.state.is_settled() && Instant::now() < deadline {
                return Ok(());
            }
            self.first_round = None;
            to_send = self.state.all();
        }
        for change in to_send {
            let change = Change::Local { registry: self.registry.config.name.clone(), change };
            self.changes.send(change).await.map_err(|_| Closed)?;
        }
        let (services, endpoints, unhealthy) = self.state.counts();
        self.registry.status.send_if_modified(|status| {
            let before = status.clone();
            (status.synced, status.services) = (true, services);
            (status.endpoints, status.unhealthy) = (endpoints, unhealthy);
            *status != before
        });
        Ok(())
    }

    fn is_synced(&self) -> bool {
        self.registry.status.borrow().synced
    }

    /// Keeps ids for the next start; without a disk everything goes on from memory (fault F20).
    async fn save(&mut self) {
        let Some(path) = self.registry.kept_path() else { return };
        if *self.state.kept() == self.saved {
            return;
        }
        self.saved = self.state.kept().clone();
        let kept = self.saved.clone();
        let shown = path.display().to_string();
        let written = tokio::task::spawn_blocking(move || kept.write(&path)).await;
        let problem = match written {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        let registry = self.registry.config.name.as_str();
        tracing::warn!(registry, file = shown, "cannot keep endpoint ids: {problem}; after a restart they will be new");
    }
}

/// The bytes, one more than the limit at most; or why there are none.
async fn read(path: &Path) -> Result<Vec<u8>, String> {
    let path = path.to_owned();
    let read = tokio::task::spawn_blocking(move || crate::yaml::read_bytes(&path, MAX_BYTES)).await;
    read.unwrap_or_else(|error| Err(error.to_string()))
}

#[cfg(test)]
mod tests;

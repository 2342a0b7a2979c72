//! Keeps the configuration up to date, and holds on to the last good one (invariant I11).

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use eastway_registry::diagnostic::{Code, Diagnostic, Diagnostics};
use eastway_registry::watch::Watch;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::load::{ConfigErrors, Digest, Loaded, reload};

/// How often a file that cannot be read is tried again before that counts as a mistake: whoever
/// replaces files one by one, or a mounted ConfigMap, is seen half done now and then.
const ATTEMPTS: u32 = 3;

/// Between two attempts.
const AGAIN: Duration = Duration::from_millis(100);

/// How the configuration is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReloadStatus {
    /// Counts the configurations that were taken over; the one of the start is 1.
    pub generation: u64,
    /// When the running one was read.
    pub loaded_at: Option<SystemTime>,
    /// When the files were last found to be wrong; `None` if what is on disk is what runs.
    pub failed_at: Option<SystemTime>,
    /// What is wrong with the files on disk, one line each; empty if they are what runs.
    pub errors: Vec<String>,
    /// Settings whose change waits for a restart, one line each.
    pub needs_restart: Vec<String>,
}

/// Follows the files behind `loaded`, which was read from `path`.
///
/// The future does the work until `cancel`; whoever spawns it owns it. A receiver has the newest
/// good configuration and is woken only if something in it changed.
pub fn watch(
    path: &Path,
    loaded: Arc<Loaded>,
    cancel: CancellationToken,
) -> (watch::Receiver<Arc<Loaded>>, watch::Receiver<ReloadStatus>, impl Future<Output = ()> + Send + 'static) {
    let status = ReloadStatus {
        generation: 1,
        loaded_at: Some(SystemTime::now()),
        failed_at: None,
        errors: Vec::new(),
        needs_restart: Vec::new(),
    };
    let seen = loaded.digest;
    let (loaded, loaded_receiver) = watch::channel(loaded);
    let (status, status_receiver) = watch::channel(status);
    let mut follower = Follower { path: path.to_owned(), loaded, status, seen, watch: Watch::new() };
    // From now on, not from the first poll of the future: what changes in between counts.
    follower.watch_files();
    let run = async move {
        // Something may have been written between the first reading and the watch.
        let follow = async {
            loop {
                follower.step().await;
                let failed = !follower.status.borrow().errors.is_empty();
                follower.watch.hurry(failed);
                follower.watch.changed().await;
            }
        };
        // Never ends by itself.
        let _cancelled: Option<()> = cancel.run_until_cancelled(follow).await;
    };
    (loaded_receiver, status_receiver, run)
}

struct Follower {
    path: PathBuf,
    loaded: watch::Sender<Arc<Loaded>>,
    status: watch::Sender<ReloadStatus>,
    /// What was read last, good or bad: the same again is no news.
    seen: Digest,
    watch: Watch,
}

impl Follower {
    async fn step(&mut self) {
        self.watch_files();
        let Some((digest, result)) = self.read().await else { return };
        if digest == self.seen {
            return;
        }
        self.seen = digest;
        match result {
            Ok(loaded) => self.take(loaded),
            Err(ConfigErrors(errors)) => self.refuse(&errors),
        }
    }

    fn watch_files(&mut self) {
        let loaded = Arc::clone(&self.loaded.borrow());
        let settings = &loaded.settings;
        self.watch.set([self.path.as_path(), &settings.peers.path, &settings.policies.path]);
    }

    /// Reads everything; once more if files could not be read. `None` if the reading itself failed,
    /// which is not the files' fault.
    async fn read(&self) -> Option<(Digest, Result<Loaded, ConfigErrors>)> {
        let mut attempt = 1;
        loop {
            let (path, running) = (self.path.clone(), Arc::clone(&self.loaded.borrow()));
            let read = tokio::task::spawn_blocking(move || reload(&path, &running)).await;
            let (digest, result) = read.map_err(|error| tracing::error!(%error, "configuration: not read")).ok()?;
            if attempt == ATTEMPTS || !result.as_ref().is_err_and(|errors| is_unreadable(&errors.0)) {
                return Some((digest, result));
            }
            attempt += 1;
            tokio::time::sleep(AGAIN).await;
        }
    }

    fn take(&self, loaded: Loaded) {
        let running = Arc::clone(&self.loaded.borrow());
        let changed =
            loaded.settings != running.settings || loaded.peers != running.peers || loaded.policies != running.policies;
        let needs_restart: Vec<String> = loaded
            .warnings
            .iter()
            .filter(|warning| warning.code == Code::NeedsRestart)
            .map(Diagnostic::headline)
            .collect();
        for warning in &loaded.warnings {
            tracing::warn!("{}", warning.headline());
        }
        let generation = self.status.borrow().generation + 1;
        if changed {
            tracing::info!(generation, peers = loaded.peers.len(), "configuration reloaded");
            self.loaded.send_replace(Arc::new(loaded));
        }
        // After the configuration, so that whoever waits for a generation finds it.
        self.status.send_replace(ReloadStatus {
            generation,
            loaded_at: Some(SystemTime::now()),
            failed_at: None,
            errors: Vec::new(),
            needs_restart,
        });
    }

    fn refuse(&self, errors: &Diagnostics) {
        let lines: Vec<String> = errors.iter().filter(|each| each.is_error()).map(Diagnostic::headline).collect();
        for line in &lines {
            tracing::error!("{line} (running with the previous configuration)");
        }
        self.status.send_modify(|status| {
            status.failed_at = Some(SystemTime::now());
            status.errors = lines;
        });
    }
}

fn is_unreadable(errors: &Diagnostics) -> bool {
    errors.iter().any(|error| error.code == Code::Unreadable)
}

#[cfg(test)]
mod tests;

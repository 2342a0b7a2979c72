//! A Unix socket for each workload outside Kubernetes: whoever its file lets in is that workload.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use eastway_registry::diagnostic::Diagnostic;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{Authority, CaSettings, Door, RELOAD_INTERVAL, serve_socket};
use crate::config::{self, ConfigErrors, settings::WorkloadSettings};
use crate::local::socket::{SocketError, UserSocket};

/// Those of the start, bound.
#[derive(Debug)]
pub(super) struct Workloads(Vec<(WorkloadSettings, UserSocket)>);

impl Workloads {
    /// Listens for all of them.
    pub(super) fn bind(settings: &CaSettings) -> Result<Self, SocketError> {
        let bind =
            |workload: &WorkloadSettings| Ok((workload.clone(), UserSocket::bind(&workload.socket, workload.uid)?));
        settings.workloads.iter().map(bind).collect::<Result<_, _>>().map(Self)
    }

    /// Serves them, and those that the configuration file names later, until `stop`.
    pub(super) async fn serve(self, authority: &Arc<Authority>, stop: CancellationToken) {
        let mut served = Served { authority, stop: stop.clone(), running: BTreeMap::new() };
        for (workload, socket) in self.0 {
            served.start(&workload, socket);
        }
        let mut list = List::of(&authority.settings);
        // Each failure is said once, and tried again until it is mended.
        let mut failed: BTreeMap<PathBuf, String> = BTreeMap::new();
        while stop.run_until_cancelled(sleep(RELOAD_INTERVAL)).await.is_some() {
            list.refresh();
            failed = served.reconcile(&list.wanted, failed).await;
        }
        for (_, running) in served.running {
            running.end().await;
        }
    }
}

/// What the configuration file says, as far as it is good.
struct List {
    file: Option<PathBuf>,
    seen: Option<(SystemTime, u64)>,
    trust_domain: Arc<str>,
    wanted: Vec<WorkloadSettings>,
}

impl List {
    fn of(settings: &CaSettings) -> Self {
        Self {
            file: settings.file.clone(),
            // It may have changed since it was read for the start.
            seen: None,
            trust_domain: settings.gateway.trust_domain().into(),
            wanted: settings.workloads.clone(),
        }
    }

    fn look(&self) -> Option<(SystemTime, u64)> {
        let meta = fs::metadata(self.file.as_ref()?).ok()?;
        Some((meta.modified().ok()?, meta.len()))
    }

    /// A file with mistakes, or none, changes nothing (invariant I11).
    fn refresh(&mut self) {
        let now = self.look();
        if now.is_none() || now == self.seen {
            return;
        }
        let Some(file) = &self.file else { return };
        match config::load_settings(file) {
            // A trust domain changes at the next start.
            Ok(settings) if settings.trust.domain == self.trust_domain => self.wanted = settings.trust.workloads,
            Ok(_) => {}
            Err(ConfigErrors(errors)) => {
                let first = errors.iter().find(|each| each.is_error()).map(Diagnostic::headline);
                warn!(reason = first, "the changed configuration is not usable, the workloads' sockets stay");
            }
        }
        self.seen = now;
    }
}

struct Served<'a> {
    authority: &'a Arc<Authority>,
    stop: CancellationToken,
    running: BTreeMap<PathBuf, Running>,
}

struct Running {
    workload: WorkloadSettings,
    end: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    /// Stops serving; its file is gone then.
    async fn end(self) {
        self.end.cancel();
        if let Err(error) = self.task.await {
            error!(%error, identity = %self.workload.identity, "serving a workload ended badly");
        }
    }
}

impl Served<'_> {
    fn start(&mut self, workload: &WorkloadSettings, socket: UserSocket) {
        let end = self.stop.child_token();
        let WorkloadSettings { identity, socket: path, .. } = workload.clone();
        info!(%identity, socket = %path.display(), "a workload can get certificates");
        let serve = serve_socket(Arc::clone(self.authority), Door::Workload(identity.clone()), socket, end.clone());
        let task = tokio::spawn(async move {
            if let Err(error) = serve.await {
                error!(%error, %identity, "a workload's socket is served no more");
            }
        });
        self.running.insert(path, Running { workload: workload.clone(), end, task });
    }

    /// Ends what is not wanted any more and begins what is new. Gives what did not succeed, and why.
    async fn reconcile(
        &mut self,
        wanted: &[WorkloadSettings],
        said: BTreeMap<PathBuf, String>,
    ) -> BTreeMap<PathBuf, String> {
        let over: Vec<PathBuf> = self
            .running
            .iter()
            .filter(|(_, running)| !wanted.contains(&running.workload) || running.task.is_finished())
            .map(|(path, _)| path.clone())
            .collect();
        for path in over {
            if let Some(running) = self.running.remove(&path) {
                info!(identity = %running.workload.identity, socket = %path.display(), "a workload gets no certificates any more");
                running.end().await;
            }
        }
        let mut failed = BTreeMap::new();
        for workload in wanted {
            if self.running.contains_key(&workload.socket) {
                continue;
            }
            match UserSocket::bind(&workload.socket, workload.uid) {
                Ok(socket) => self.start(workload, socket),
                Err(error) => {
                    let why = error.to_string();
                    if said.get(&workload.socket) != Some(&why) {
                        error!(identity = %workload.identity, %error, "a workload can get no certificates");
                    }
                    failed.insert(workload.socket.clone(), why);
                }
            }
        }
        failed
    }
}

#[cfg(test)]
mod tests;

//! Envoy's life: started, started again when it dies, and let go in order.

use std::io;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Child;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::admin::Admin;
use super::bootstrap::Files;
use super::health::Health;
use super::start::Start;
use super::{output, program};
use crate::admin::Guard;
use crate::config::SidecarSettings;

/// One that ends sooner at the first start would end again: it has said why.
const SERVED: Duration = Duration::from_secs(2);
/// Shortest and longest pause before one that had served is started again.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// One that lived so long has recovered: the next pause is the shortest.
const SETTLED: Duration = Duration::from_secs(30);
/// Between two looks at whether it still has connections.
const LOOK: Duration = Duration::from_millis(100);
/// How long it may take to end when told to at once.
const END: Duration = Duration::from_secs(5);

/// Why Envoy does not run.
#[derive(Debug, thiserror::Error)]
pub enum EnvoyError {
    /// The process cannot be made.
    #[error("Envoy cannot be started: {0}")]
    Start(#[source] io::Error),
    /// It ended right after its first start.
    #[error("Envoy ended right after its start ({0}); it said why above")]
    Ended(ExitStatus),
}

/// Runs Envoy until `stop`; `again` makes it ask the gateway once more for what it has not got. Its
/// connections may finish then, unless `now`. To be awaited on the main thread.
///
/// # Errors
/// [`EnvoyError`] if it cannot be started at all.
pub(super) async fn supervise(
    settings: &SidecarSettings,
    files: &Files,
    health: &Health,
    again: &Arc<Notify>,
    stop: &CancellationToken,
    now: &CancellationToken,
) -> Result<(), EnvoyError> {
    let admin = Admin::of(settings, files);
    let (mut served, mut pause) = (false, PAUSE.0);
    let mut pending = health.waits_for("Envoy");
    loop {
        // One that was killed leaves its socket, and the next one would not begin to listen.
        if let Err(error) = std::fs::remove_file(&files.admin)
            && error.kind() != io::ErrorKind::NotFound
        {
            debug!(%error, "the socket of Envoy's administration cannot be removed");
        }
        let mut envoy = match program::start(settings, files) {
            Ok(child) => {
                let start = Start::of(settings, admin.clone(), Arc::clone(again));
                Envoy::new(child, admin.clone(), start, pending)
            }
            Err(error) if !served => return Err(EnvoyError::Start(error)),
            Err(error) => {
                error!(%error, again_in = ?pause, "Envoy cannot be started");
                if stop.run_until_cancelled(sleep(pause)).await.is_none() {
                    return Ok(());
                }
                pause = (pause * 2).min(PAUSE.1);
                continue;
            }
        };
        let begun = Instant::now();
        let status = tokio::select! {
            status = envoy.until_end() => status,
            () = stop.cancelled() => {
                health.drains();
                envoy.finish(health.drain(), now).await;
                return Ok(());
            }
        };
        pending = health.waits_for("Envoy");
        let lived = begun.elapsed();
        served |= lived >= SERVED || envoy.was_ready;
        // One that was killed has not ended by its own will.
        if !served && status.code().is_some() {
            return Err(EnvoyError::Ended(status));
        }
        if lived >= SETTLED {
            pause = PAUSE.0;
        }
        let jittered = pause.mul_f64(1.0 + fastrand::f64() / 4.0);
        error!(%status, ?lived, again_in = ?jittered, "Envoy ended by itself");
        if stop.run_until_cancelled(sleep(jittered)).await.is_none() {
            return Ok(());
        }
        pause = (pause * 2).min(PAUSE.1);
    }
}

/// A running Envoy. Dropping it kills it.
struct Envoy {
    child: Child,
    admin: Admin,
    start: Start,
    was_ready: bool,
    /// Until it is ready.
    pending: Option<Guard>,
    /// Those that log what it writes.
    output: JoinSet<()>,
}

impl Envoy {
    fn new(mut child: Child, admin: Admin, start: Start, pending: Guard) -> Self {
        info!(pid = child.id(), "Envoy started");
        let mut output = JoinSet::new();
        if let Some(stdout) = child.stdout.take() {
            output.spawn(output::log(stdout));
        }
        if let Some(stderr) = child.stderr.take() {
            output.spawn(output::log(stderr));
        }
        Self { child, admin, start, was_ready: false, pending: Some(pending), output }
    }

    /// Waits until it has ended, and all it wrote is in the log. Says when it is ready.
    async fn until_end(&mut self) -> ExitStatus {
        loop {
            tokio::select! {
                Ok(status) = self.child.wait() => {
                    // Closed by its end, unless a child of its own holds them.
                    let _written = timeout(LOOK, async { while self.output.join_next().await.is_some() {} }).await;
                    return status;
                }
                after = self.start.ready(), if !self.was_ready => {
                    self.was_ready = true;
                    self.pending = None;
                    info!(?after, "Envoy is ready: it has its configuration and takes connections");
                }
            }
        }
    }

    /// Takes leave of clients for at most `drain`, then ends it.
    async fn finish(mut self, drain: Duration, now: &CancellationToken) {
        let admin = self.admin.clone();
        let leave = async {
            if let Err(error) = admin.drain().await {
                return debug!(%error, "Envoy cannot be told to drain");
            }
            info!(at_most = ?drain, "Envoy lets its connections finish");
            let gone = async {
                // One that no more answers has none either.
                while admin.connections().await.is_ok_and(|open| open > 0) {
                    sleep(LOOK).await;
                }
            };
            if timeout(drain, gone).await.is_err() {
                let open = admin.connections().await.unwrap_or_default();
                warn!(connections = open, "the drain time is over, connections are cut");
            }
        };
        tokio::select! {
            _ = self.child.wait() => return info!("Envoy ended while it drained"),
            () = leave => {}
            () = now.cancelled() => {}
        }
        let pid = self.child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        if let Some(pid) = pid
            && let Err(error) = kill_process(pid, Signal::TERM)
        {
            debug!(%error, "Envoy was gone already");
        }
        let ended = tokio::select! {
            ended = timeout(END, self.child.wait()) => ended.is_ok(),
            () = now.cancelled() => false,
        };
        if ended {
            info!("Envoy ended");
        } else {
            warn!("Envoy did not end in time, it is killed");
            if let Err(error) = self.child.kill().await {
                warn!(%error, "Envoy cannot be killed");
            }
        }
        let _written = timeout(LOOK, async { while self.output.join_next().await.is_some() {} }).await;
    }
}

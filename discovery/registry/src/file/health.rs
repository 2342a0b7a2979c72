//! Health checks of endpoints, over TCP or HTTP.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use eastway_model::{EndpointId, ServiceKey, proxy_protocol};
use http_body_util::Empty;
use hyper::Request;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

use super::contents::{HealthSpec, Probe};
use super::state::Target;

/// Checks in the air at once, over all services.
const MAX_AT_ONCE: usize = 256;

/// A change of an endpoint's health.
pub(super) type Outcome = (ServiceKey, EndpointId, bool);

/// Runs one task per endpoint and reports what changes.
pub(super) struct Checker {
    tasks: JoinSet<()>,
    running: BTreeMap<EndpointId, (Target, AbortHandle)>,
    permits: Arc<Semaphore>,
    outcomes: mpsc::Sender<Outcome>,
}

impl Checker {
    /// Outcomes go to `outcomes`; a full channel makes checks wait.
    pub(super) fn new(outcomes: mpsc::Sender<Outcome>) -> Self {
        Self {
            tasks: JoinSet::new(),
            running: BTreeMap::new(),
            permits: Arc::new(Semaphore::new(MAX_AT_ONCE)),
            outcomes,
        }
    }

    /// Checks `targets` and nothing else. A check that did not change goes on undisturbed.
    pub(super) fn set(&mut self, targets: BTreeMap<EndpointId, Target>) {
        self.running.retain(|id, (target, task)| {
            let stays = targets.get(id) == Some(target);
            if !stays {
                task.abort();
            }
            stays
        });
        for (id, target) in targets {
            if !self.running.contains_key(&id) {
                let check = check(id.clone(), target.clone(), Arc::clone(&self.permits), self.outcomes.clone());
                self.running.insert(id, (target, self.tasks.spawn(check)));
            }
        }
        // Aborted tasks leave their results behind until they are collected.
        while self.tasks.try_join_next().is_some() {}
    }
}

/// First pause after a check of an endpoint that was never healthy, doubled up to the interval: a
/// workload that starts together with the gateway should not wait a whole interval for its turn.
const EARLY: Duration = Duration::from_millis(100);

/// Checks one endpoint for ever; the first result is reported, and then each change.
async fn check(id: EndpointId, target: Target, permits: Arc<Semaphore>, outcomes: mpsc::Sender<Outcome>) {
    let spec = &target.spec;
    let mut streak = Streak::default();
    let mut early = EARLY;
    loop {
        // Closed never: the checker owns it as long as it owns this task.
        let Ok(permit) = permits.acquire().await else { return };
        let good = timeout(spec.timeout, probe(spec, target.address)).await.unwrap_or(false);
        drop(permit);
        if let Some(healthy) = streak.add(good, spec.unhealthy_after, spec.healthy_after)
            && outcomes.send((target.service.clone(), id.clone(), healthy)).await.is_err()
        {
            return;
        }
        let started = streak.healthy == Some(true);
        let pause = if started || early > spec.interval { spec.interval } else { early };
        early = if started { spec.interval } else { early.saturating_mul(2) };
        sleep(jittered(pause)).await;
    }
}

/// Results in a row, and what follows from them.
#[derive(Debug, Default)]
struct Streak {
    healthy: Option<bool>,
    against: u32,
}

impl Streak {
    /// `Some` if the endpoint's health is known for the first time or changed.
    fn add(&mut self, good: bool, unhealthy_after: u32, healthy_after: u32) -> Option<bool> {
        if self.healthy == Some(good) {
            self.against = 0;
            return None;
        }
        self.against += 1;
        let needed = if good { healthy_after } else { unhealthy_after };
        // Until anything is known, the first result counts: waiting would only delay the start.
        if self.healthy.is_some() && self.against < needed {
            return None;
        }
        self.against = 0;
        self.healthy = Some(good);
        self.healthy
    }
}

/// ± 10 %, so that checks of many endpoints do not fall into step.
fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(0.9 + 0.2 * fastrand::f64())
}

async fn probe(spec: &HealthSpec, address: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect(address).await else { return false };
    if spec.proxy_protocol && stream.write_all(&proxy_protocol::header(None, &[])).await.is_err() {
        return false;
    }
    match &spec.probe {
        Probe::Tcp => true,
        Probe::Http { path } => request(stream, address, path).await.unwrap_or(false),
    }
}

async fn request(stream: TcpStream, address: SocketAddr, path: &str) -> Result<bool, hyper::Error> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(path)
        .header("host", address.to_string())
        .header("user-agent", "eastway-health/1")
        .header("connection", "close")
        .body(Empty::<Bytes>::new());
    // The path was checked when the file was read.
    let Ok(request) = request else { return Ok(false) };
    let response = sender.send_request(request);
    tokio::pin!(connection, response);
    // The status is enough; the body is not read, and the connection ends here.
    let response = tokio::select! {
        response = &mut response => response?,
        _ended = &mut connection => response.await?,
    };
    Ok(response.status().is_success() || response.status().is_redirection())
}

#[cfg(test)]
mod tests;

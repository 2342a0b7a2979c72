//! How the sidecar is, for who asks at its health port, and how long connections may go on when it ends.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use eastway_identity::IdentityStore;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::{BindError, Guard, HealthPort, Readiness};
use crate::config::SidecarSettings;
use crate::telemetry::{AccessMode, Telemetry};

/// How often the certificate is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Clones are of one sidecar.
#[derive(Clone, Debug)]
pub(super) struct Health {
    readiness: Readiness,
    /// Held while there is no certificate that is good.
    certificate: Arc<Mutex<Option<Guard>>>,
    /// Milliseconds.
    drain: Arc<AtomicU64>,
}

impl Health {
    /// Waits for a certificate, and is told where the settings say.
    pub(super) async fn begin(
        settings: &SidecarSettings,
        tasks: &TaskTracker,
        end: &CancellationToken,
    ) -> Result<Self, BindError> {
        let readiness = Readiness::new();
        let certificate = Arc::new(Mutex::new(Some(readiness.register("certificate"))));
        let health = Self { readiness, certificate, drain: Arc::default() };
        health.set_drain(settings.drain);
        if let Some(address) = settings.health {
            let port = HealthPort::bind(address).await?;
            tasks.spawn(port.run(health.readiness.clone(), Telemetry::new(AccessMode::Off), end.clone()));
        }
        Ok(health)
    }

    /// Not ready until the guard is dropped.
    pub(super) fn waits_for(&self, what: &'static str) -> Guard {
        self.readiness.register(what)
    }

    /// Not ready any more.
    pub(super) fn drains(&self) {
        self.readiness.set_draining();
    }

    /// How long connections may go on at the end.
    pub(super) fn drain(&self) -> Duration {
        Duration::from_millis(self.drain.load(Ordering::Relaxed))
    }

    pub(super) fn set_drain(&self, drain: Duration) {
        self.drain.store(u64::try_from(drain.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Follows the certificate until `end`.
    pub(super) async fn follow(self, identity: Arc<IdentityStore>, end: CancellationToken) {
        loop {
            let is_good = identity.current().not_after() > SystemTime::now();
            {
                let mut guard = self.certificate.lock().unwrap_or_else(PoisonError::into_inner);
                match (is_good, guard.is_some()) {
                    (true, true) => *guard = None,
                    (false, false) => *guard = Some(self.readiness.register("certificate")),
                    (true, false) | (false, true) => {}
                }
            }
            if end.run_until_cancelled(sleep(LOOK)).await.is_none() {
                return;
            }
        }
    }
}

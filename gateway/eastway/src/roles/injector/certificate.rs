//! The webhook's certificate: that API servers trust it before it is shown, and a new one before it ends.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use eastway_identity::CertificateDer;
use eastway_identity::web::{self, WebCertificate, WebIdentity};
use eastway_kubernetes::injection::webhook::{PublishError, Webhook};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::admin::Guard;
use crate::telemetry::{Certificate, Metrics};

/// How long one is good.
pub(super) const LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600);
/// What is left of it when the next one is made.
const LEFT: Duration = Duration::from_secs(LIFETIME.as_secs() / 3);
/// From the moment that it is written until all API servers have read it: they watch the object. Within this time nobody shows
/// it.
const SETTLE: Duration = Duration::from_secs(3);
/// How often it is looked whether it is still written there: who installs the chart anew may write over it.
const LOOK: Duration = Duration::from_secs(15);
/// Shortest and longest pause after a failure.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));
/// Between two lines about failures.
const LINES: Duration = Duration::from_secs(30);
/// Most certificates that are written there: the replicas', twice while they renew, and those of replicas that are gone.
const MOST: usize = 32;
/// Longest time that is given to taking leave.
const LEAVE: Duration = Duration::from_secs(2);

/// Where it is written.
pub(super) trait Publish: Send + Sync + 'static {
    /// As [`Webhook::publish`].
    fn publish(
        &self,
        bundle: impl Fn(&[u8]) -> String + Send + Sync,
    ) -> impl Future<Output = Result<bool, PublishError>> + Send;
}

impl Publish for Webhook {
    async fn publish(&self, bundle: impl Fn(&[u8]) -> String + Send + Sync) -> Result<bool, PublishError> {
        Self::publish(self, bundle).await
    }
}

/// Keeps a certificate trusted and fresh.
pub(super) struct Keeper<P> {
    pub(super) publish: P,
    /// The DNS name that it is for.
    pub(super) name: String,
    pub(super) identity: Arc<WebIdentity>,
    pub(super) metrics: Arc<Metrics>,
}

impl<P: Publish> Keeper<P> {
    /// Runs until `end`. `unknown` is dropped once API servers trust the certificate; at the end they do no more.
    pub(super) async fn run(self, unknown: Guard, end: CancellationToken) {
        let _ended: Option<()> = end.run_until_cancelled(self.keep(unknown, SystemTime::now)).await;
        let current = self.identity.current();
        let leave = self.publish.publish(|before| {
            let text = web::bundle(before, &[], &[current.certificate()], SystemTime::now(), MOST);
            // Without any, API servers would trust whom they trust otherwise.
            if text.is_empty() { String::from_utf8_lossy(before).into_owned() } else { text }
        });
        if !matches!(tokio::time::timeout(LEAVE, leave).await, Ok(Ok(_))) {
            info!("the certificate of this replica stays published until it ends");
        }
    }

    async fn keep(&self, unknown: Guard, now: impl Fn() -> SystemTime) {
        let current = self.identity.current();
        self.metrics.set_certificate(&Certificate::Leaf, current.not_after());
        self.announce(&[current.certificate()], &[], now()).await;
        sleep(SETTLE).await;
        drop(unknown);
        info!(not_after = %humantime::format_rfc3339_seconds(current.not_after()), "API servers know the webhook's certificate");
        loop {
            sleep(LOOK).await;
            let current = self.identity.current();
            if current.not_after() <= now() + LEFT {
                self.renew(&current, &now).await;
            } else if self.announce(&[current.certificate()], &[], now()).await {
                warn!(
                    "somebody had removed the webhook's certificate from the MutatingWebhookConfiguration; pods that were made meanwhile may have no sidecar"
                );
            }
        }
    }

    /// Both are trusted while the one takes the other's place.
    async fn renew(&self, current: &WebCertificate, now: &impl Fn() -> SystemTime) {
        let next = match WebCertificate::generate(&self.name, now(), LIFETIME) {
            Ok(next) => next,
            Err(error) => return error!(%error, "the webhook's certificate cannot be renewed; trying again"),
        };
        self.announce(&[current.certificate(), next.certificate()], &[], now()).await;
        sleep(SETTLE).await;
        self.identity.replace(next.clone());
        self.metrics.set_certificate(&Certificate::Leaf, next.not_after());
        // Handshakes that were under way.
        sleep(SETTLE).await;
        self.announce(&[next.certificate()], &[current.certificate()], now()).await;
        info!(not_after = %humantime::format_rfc3339_seconds(next.not_after()), "the webhook's certificate is renewed");
    }

    /// Has API servers trust `ours` and not `gone`, however long it takes. Whether they did not before.
    async fn announce(&self, ours: &[&CertificateDer<'_>], gone: &[&CertificateDer<'_>], now: SystemTime) -> bool {
        let (mut pause, mut next_line) = (PAUSE.0, Instant::now());
        loop {
            let error = match self.publish.publish(|before| web::bundle(before, ours, gone, now, MOST)).await {
                Ok(changed) => return changed,
                Err(error) => error,
            };
            if error != PublishError::Conflict && Instant::now() >= next_line {
                next_line = Instant::now() + LINES;
                warn!(%error, "the webhook's certificate cannot be published; trying again");
            }
            sleep(pause.mul_f64(1.0 + fastrand::f64() / 4.0)).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};

    use eastway_identity::certificates_from_pem;

    use super::*;
    use crate::admin::Readiness;

    /// The object as API servers have it.
    #[derive(Clone, Default)]
    struct Object {
        bundle: Arc<Mutex<String>>,
        fails: Arc<AtomicBool>,
    }

    impl Publish for Object {
        async fn publish(&self, bundle: impl Fn(&[u8]) -> String + Send + Sync) -> Result<bool, PublishError> {
            if self.fails.load(Ordering::Relaxed) {
                return Err(PublishError::Request("no answer in time".to_owned()));
            }
            let mut before = self.bundle.lock().unwrap();
            let now = bundle(before.as_bytes());
            let changed = *before != now;
            *before = now;
            Ok(changed)
        }
    }

    impl Object {
        fn trusts(&self, certificate: &WebCertificate) -> bool {
            let trusted = certificates_from_pem(self.bundle.lock().unwrap().as_bytes()).unwrap_or_default();
            trusted.contains(certificate.certificate())
        }

        fn size(&self) -> usize {
            certificates_from_pem(self.bundle.lock().unwrap().as_bytes()).unwrap_or_default().len()
        }
    }

    fn keeper(object: &Object) -> Keeper<Object> {
        let made = WebCertificate::generate("x.svc", SystemTime::now(), LIFETIME).unwrap();
        Keeper {
            publish: object.clone(),
            name: "x.svc".to_owned(),
            identity: WebIdentity::new(made),
            metrics: Arc::new(Metrics::new()),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_ready_once_api_servers_had_time_to_hear_of_it_and_not_before() {
        let (object, readiness) = (Object::default(), Readiness::new());
        object.fails.store(true, Ordering::Relaxed);
        let keeper = keeper(&object);
        let (identity, end) = (Arc::clone(&keeper.identity), CancellationToken::new());
        let task = tokio::spawn(keeper.run(readiness.register("trust"), end.clone()));
        sleep(Duration::from_secs(120)).await;
        assert!(!readiness.is_ready(), "nobody knows it");
        object.fails.store(false, Ordering::Relaxed);
        while !object.trusts(&identity.current()) {
            sleep(Duration::from_millis(50)).await;
        }
        assert!(!readiness.is_ready(), "not all have heard of it");
        sleep(SETTLE + Duration::from_millis(100)).await;
        assert!(readiness.is_ready());
        // Somebody writes over it: it comes back. Another replica's stays when this one goes.
        let other = WebCertificate::generate("x.svc", SystemTime::now(), LIFETIME).unwrap();
        *object.bundle.lock().unwrap() = web::bundle(b"", &[other.certificate()], &[], SystemTime::now(), MOST);
        sleep(LOOK * 2).await;
        assert!(object.trusts(&identity.current()) && object.trusts(&other));
        end.cancel();
        task.await.unwrap();
        assert!(!object.trusts(&identity.current()) && object.trusts(&other));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_shown_is_trusted_at_every_moment_of_a_renewal() {
        let (object, readiness) = (Object::default(), Readiness::new());
        let keeper = keeper(&object);
        let identity = Arc::clone(&keeper.identity);
        let first = identity.current();
        let (begun, wall) = (Instant::now(), SystemTime::now());
        // Time of the test, two hours for each second: as the file's clock and the pauses must agree on nothing else.
        let now = move || wall + begun.elapsed() * 7200;
        let guard = readiness.register("trust");
        let task = tokio::spawn(async move { keeper.keep(guard, now).await });
        while !readiness.is_ready() {
            sleep(Duration::from_millis(100)).await;
        }
        let mut shown = vec![first.certificate().clone()];
        for _ in 0..3_000 {
            sleep(Duration::from_millis(50)).await;
            let current = identity.current();
            assert!(object.trusts(&current), "it shows what nobody trusts");
            assert!(object.size() <= 2);
            assert!(current.not_after() > now(), "it shows what has ended");
            if shown.last() != Some(current.certificate()) {
                shown.push(current.certificate().clone());
            }
        }
        assert!(shown.len() >= 3, "{} in 12 days", shown.len());
        task.abort();
    }
}

//! The controller: the only role that writes to the Kubernetes API.
//!
//! It has a store of its own, fed by the registries of this cluster and by a gateway, which tells what peers export
//! (`feed`). So merging and conflicts are the same code as in the gateway; and what the API says is made of one
//! snapshot. Of several replicas the one that holds the Lease writes.

mod feed;
mod issuers;
mod istio;
mod judge;
mod left_out;
mod pinned;

use std::sync::Arc;
use std::time::Duration;

use eastway_identity::{IdentityStore, SpiffeId, SpiffeIdError};
use eastway_kubernetes::client::{self, ClientError};
use eastway_kubernetes::controller::api::Requests;
use eastway_kubernetes::controller::networks;
use eastway_kubernetes::controller::observe::{Scope, observe};
use eastway_kubernetes::controller::peers::{self, AllLinks};
use eastway_kubernetes::controller::reconcile::{Feed, Inputs, LeftOut, Reconciler, Status};
use eastway_kubernetes::controller::statuses::Statuses;
use eastway_kubernetes::controller::trust;
use eastway_kubernetes::lease::Election;
use eastway_model::NameError;
use eastway_model::store::{Reader, Writer};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use crate::adapters;
use crate::admin::{self, Guard, HealthPort, MetricsPort, Readiness};
use crate::app::Configuration;
use crate::app::clock::Clock;
use crate::app::registries::{Registries, Warm};
use crate::app::store::{self, StoreSender};
use crate::config::settings::{KubernetesSettings, SYSTEM_NAMESPACE};
use crate::config::{Loaded, Settings};
use crate::local::client::FeedClient;
use crate::roles::enroll::{self, CaClient};
use crate::roles::{CONTROLLER_LEASE, GATEWAY_ACCOUNT, ca_client};
use crate::telemetry::{ControllerSample, LogHandle, Telemetry};

/// Events of the API server that wait for the loop.
const QUEUE: usize = 256;
/// How long tasks may take to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(8);

/// Why the controller cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    /// One of the HTTP ports.
    #[error(transparent)]
    Port(#[from] admin::BindError),
    /// There is no way to an API server.
    #[error("the controller role writes to a Kubernetes API: {0}")]
    Client(#[from] ClientError),
    /// The trust domain makes no SPIFFE id.
    #[error("trust.domain: {0}")]
    TrustDomain(#[from] SpiffeIdError),
    /// The namespace is none.
    #[error("kubernetes.namespace: {0}")]
    Namespace(#[from] NameError),
}

/// A controller that listens and does not work yet.
pub struct Bound {
    configuration: Configuration,
    kubernetes: KubernetesSettings,
    client: client::Client,
    ca: CaClient,
    feed: FeedSettings,
    health: HealthPort,
    metrics: MetricsPort,
    telemetry: Telemetry,
    log: LogHandle,
}

/// What the feed needs beside a certificate.
struct FeedSettings {
    gateway: SpiffeId,
    leaf_ttl: Duration,
}

/// Binds the ports and makes a client for the API server; nothing is sent yet.
///
/// # Errors
/// [`ControllerError`]
pub async fn bind(
    configuration: Configuration,
    telemetry: Telemetry,
    log: LogHandle,
) -> Result<Bound, ControllerError> {
    let settings = configuration.loaded.borrow().settings.clone();
    let kubernetes = match &settings.kubernetes {
        Some(kubernetes) => kubernetes.clone(),
        None => KubernetesSettings::in_namespace(SYSTEM_NAMESPACE)?,
    };
    let client = client::connect(&adapters::kubernetes_access(Some(&kubernetes.access))).await?;
    Ok(Bound {
        client,
        ca: ca_client(&settings)?,
        feed: FeedSettings { gateway: settings.service_account(GATEWAY_ACCOUNT)?, leaf_ttl: settings.trust.leaf_ttl },
        health: HealthPort::bind(settings.listen.health).await?,
        metrics: MetricsPort::bind(settings.listen.metrics).await?,
        configuration,
        kubernetes,
        telemetry,
        log,
    })
}

impl Bound {
    /// Works until `stop`, then gives the Lease up.
    pub async fn run(self, stop: CancellationToken) {
        let settings = self.configuration.loaded.borrow().settings.clone();
        let readiness = Readiness::new();
        let pending = (readiness.register("registries"), readiness.register("kubernetes api"));
        let (work, end) = (CancellationToken::new(), CancellationToken::new());
        let running = Running {
            tasks: TaskTracker::new(),
            work_tasks: TaskTracker::new(),
            work,
            end,
            stop,
            clock: Clock::start(),
        };
        let Self { configuration, kubernetes, client, ca, feed, health, metrics, telemetry, log } = self;
        running.spawn("health port", health.run(readiness.clone(), telemetry.clone(), running.end.clone()));
        let scrape = metrics.run_alone(readiness.clone(), telemetry.clone(), Some(log), running.end.clone());
        running.spawn("metrics port", scrape);

        let (reader, store, left_out) = running.keep_store(&settings, &configuration);
        let (told, feed_state) = watch::channel(Feed::default());
        let (links, latest) = watch::channel(AllLinks::default());
        let outputs = feed::Outputs { store, reader: reader.clone(), told, links };
        running.follow_gateway(&settings, &kubernetes, ca, feed, outputs, &telemetry);
        running.spawn("feed metrics", show_feed(feed_state.clone(), telemetry.clone(), running.end.clone()));
        let seen =
            Seen { reader: reader.clone(), feed: feed_state, links: latest, left_out, files: configuration.loaded };
        let status = running.write(&client, &kubernetes, seen);
        running.spawn("controller metrics", show(status.clone(), telemetry.clone(), running.end.clone()));
        running.tasks.spawn(until_ready(reader, status, pending, running.end.clone()));

        info!(cluster = %settings.cluster, "controller is up");
        running.stop.cancelled().await;
        readiness.set_draining();
        running.finish().await;
    }
}

struct Running {
    tasks: TaskTracker,
    /// Those that write; they end before the Lease is given up.
    work_tasks: TaskTracker,
    work: CancellationToken,
    end: CancellationToken,
    stop: CancellationToken,
    clock: Clock,
}

impl Running {
    /// Owns a task that must not end by itself (invariant I12).
    fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(self.watched(name, task));
    }

    fn watched<T: Future<Output = ()> + Send + 'static>(
        &self,
        name: &'static str,
        task: T,
    ) -> impl Future<Output = ()> + Send + use<T> {
        let (end, stop) = (self.end.clone(), self.stop.clone());
        async move {
            task.await;
            if !end.is_cancelled() && !stop.is_cancelled() {
                error!(task = name, "a task ended that must not: stopping");
                stop.cancel();
            }
        }
    }

    /// The store, and the registries that feed it.
    fn keep_store(
        &self,
        settings: &Arc<Settings>,
        configuration: &Configuration,
    ) -> (Reader, StoreSender, watch::Receiver<LeftOut>) {
        let (writer, reader) = Writer::new(settings.cluster.clone());
        let (sender, inputs) = store::queue();
        self.spawn("store", store::run(writer, inputs, self.clock, self.end.clone()));
        let (statuses, latest) = watch::channel(Arc::default());
        let (tasks, end) = (self.tasks.clone(), self.end.clone());
        let registries = Registries::new(settings.clone(), Warm::No, sender.clone(), tasks, end, statuses);
        self.spawn("registries", registries.run(configuration.loaded.clone()));
        let (told, left_out) = watch::channel(LeftOut::default());
        self.spawn("what registries leave out", left_out::follow(latest, told, self.end.clone()));
        (reader, sender, left_out)
    }

    /// Gets a certificate, and then follows a gateway.
    fn follow_gateway(
        &self,
        settings: &Settings,
        kubernetes: &KubernetesSettings,
        ca: CaClient,
        feed: FeedSettings,
        outputs: feed::Outputs,
        telemetry: &Telemetry,
    ) {
        let (end, clock, telemetry) = (self.end.clone(), self.clock, telemetry.clone());
        let (cluster, gateways) = (settings.cluster.clone(), kubernetes.gateways.clone());
        self.spawn("feed", async move {
            let enrolled = end.run_until_cancelled(enroll::until_certified(&ca, feed.leaf_ttl)).await;
            let Some(identity) = enrolled.map(|enrolled| IdentityStore::new(enrolled.identity)) else { return };
            let renewal = enroll::keep_fresh(ca, feed.leaf_ttl, identity.clone(), end.clone());
            let client = FeedClient { cluster, gateways, gateway: feed.gateway, identity, clock, telemetry };
            tokio::join!(renewal, feed::follow(client, outputs, end));
        });
    }

    /// Watches the API server and writes to it, while this replica leads.
    fn write(
        &self,
        client: &client::Client,
        kubernetes: &KubernetesSettings,
        Seen { reader, feed, links, left_out, files }: Seen,
    ) -> watch::Receiver<Status> {
        let namespace = kubernetes.namespace.to_string();
        let (events, received) = mpsc::channel(QUEUE);
        let (leading, leads) = watch::channel(false);
        let (status, statuses) = watch::channel(Status::default());
        let settings = files.borrow().settings.clone();
        let istio = istio::of(&settings);
        let gateways = kubernetes.gateway_labels.clone();
        let scope = Scope { namespace: namespace.clone(), gateways, istio: istio.is_some() };
        let election =
            Election { namespace: namespace.clone(), name: CONTROLLER_LEASE.to_owned(), identity: identity() };
        self.spawn("leader election", election.run(client.clone(), leading, self.end.clone()));
        self.spawn("watches", observe(client.clone(), scope, events, watch::Sender::default()));
        let clock = self.clock;
        let (told, names) = watch::channel(Arc::new(pinned::of(&files.borrow())));
        self.spawn("names", pinned::follow(files.clone(), told, self.end.clone()));
        let inputs = Inputs {
            reader: reader.clone(),
            feed: feed.clone(),
            events: received,
            left_out,
            names,
            istio,
            leading: leads.clone(),
            clock: Arc::new(move || clock.steady()),
        };
        self.tell_pods(client, &files.borrow().settings, leads.clone());
        let reconciler = Reconciler::new(Requests::new(client.clone()), inputs, status).run(self.work.clone());
        self.work_tasks.spawn(self.watched("reconciler", reconciler));
        if let Some((place, ports)) = istio::ports(&settings) {
            let told = networks::run(client.clone(), place, ports, leads.clone(), self.work.clone());
            self.work_tasks.spawn(self.watched("networks of Istio", told));
        }
        let (mistakes, told) = watch::channel(peers::Mistakes::default());
        let inputs = judge::Inputs { files, reader: reader.clone(), feed: feed.clone(), leading: leads.clone() };
        let judge = judge::run(Statuses::new(client.clone(), &kubernetes.kinds()), inputs, mistakes, self.work.clone());
        self.work_tasks.spawn(self.watched("policies", judge));
        let inputs = peers::Inputs { reader, feed, links, mistakes: told, leading: leads, namespace };
        self.work_tasks.spawn(self.watched("peers", peers::run(client.clone(), inputs, self.work.clone())));
        statuses
    }

    /// Writes what pods with a sidecar know the CA by, if there are any.
    fn tell_pods(&self, client: &client::Client, settings: &Settings, leading: watch::Receiver<bool>) {
        if settings.sidecars.as_ref().is_none_or(|sidecars| sidecars.injection.is_none()) {
            return;
        }
        let (told, issuers) = watch::channel(None);
        self.spawn("issuers", issuers::follow(settings.trust.cacerts.clone(), told, self.end.clone()));
        let write = trust::run(client.clone(), trust::Inputs { issuers, leading }, self.work.clone());
        self.work_tasks.spawn(self.watched("trust of pods", write));
    }

    /// Writes nothing more, then lets another replica write.
    async fn finish(self) {
        self.work.cancel();
        self.work_tasks.close();
        self.tasks.close();
        let ended = tokio::time::timeout(STOP_TIMEOUT, async {
            self.work_tasks.wait().await;
            self.end.cancel();
            self.tasks.wait().await;
        });
        if ended.await.is_err() {
            self.end.cancel();
            warn!("some tasks did not stop in time");
        }
        info!("stopped");
    }
}

/// What is written of.
struct Seen {
    reader: Reader,
    feed: watch::Receiver<Feed>,
    links: watch::Receiver<AllLinks>,
    left_out: watch::Receiver<LeftOut>,
    files: watch::Receiver<Arc<Loaded>>,
}

/// A name that no other replica has, now or later: the pod's, and a part by chance, as a container can be started again.
fn identity() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}-{:08x}", host.trim(), fastrand::u32(..))
}

/// Ready: all is known that a decision depends on. Whether this replica leads, and whether a gateway or a peer can be
/// reached, is no matter (invariant I12).
async fn until_ready(
    mut reader: Reader,
    mut status: watch::Receiver<Status>,
    (registries, api): (Guard, Guard),
    end: CancellationToken,
) {
    let wait = async {
        while !reader.load().is_local_synced() {
            if reader.changed().await.is_err() {
                return;
            }
        }
        drop(registries);
        if status.wait_for(|status| status.synced).await.is_ok() {
            drop(api);
        }
    };
    end.run_until_cancelled(wait).await;
}

async fn show(mut status: watch::Receiver<Status>, telemetry: Telemetry, end: CancellationToken) {
    loop {
        let Status { leading, synced: _, pending, failing, ports, writes, failures } = *status.borrow_and_update();
        telemetry.metrics.set_controller(&ControllerSample { leading, pending, failing, ports, writes, failures });
        // The sender ends with the loop that writes, before this does.
        if !matches!(end.run_until_cancelled(status.changed()).await, Some(Ok(()))) {
            return end.cancelled().await;
        }
    }
}

async fn show_feed(mut feed: watch::Receiver<Feed>, telemetry: Telemetry, end: CancellationToken) {
    loop {
        telemetry.metrics.set_controller_feed(feed.borrow_and_update().connected);
        if !matches!(end.run_until_cancelled(feed.changed()).await, Some(Ok(()))) {
            return end.cancelled().await;
        }
    }
}

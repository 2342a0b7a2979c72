//! The injector: what API servers ask about pods that are made in namespaces with injection.
//!
//! Each replica answers, and none leads: an answer depends on the question and the configuration alone. Each has a key and a
//! certificate of its own, in memory, which it makes itself, renews itself and has API servers trust by writing it into the one
//! object that tells them of the webhook (`certificate`): the only right that this role has. It is ready once they do.

mod certificate;
mod server;

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use eastway_identity::KeyError;
use eastway_identity::web::{self, WebCertificate, WebIdentity};
use eastway_kubernetes::client::{self, ClientError};
use eastway_kubernetes::injection;
use eastway_kubernetes::injection::webhook::Webhook;
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use self::certificate::Keeper;
use self::server::Server;
use crate::adapters;
use crate::admin::{self, HealthPort, MetricsPort, Readiness};
use crate::config::Settings;
use crate::config::settings::{CaAddress, InjectionSettings, KubernetesSettings, SYSTEM_NAMESPACE};
use crate::telemetry::{LogHandle, Telemetry};

/// Name of the webhook's object, and of its Service.
pub const NAME: &str = "eastway-injector";
/// How long this replica is still asked after it has said that it goes: who asks hears of that a moment later, and a question
/// without an answer is a pod without a sidecar.
const LEAVE: Duration = Duration::from_secs(5);
/// How long tasks may take to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the injector cannot start.
#[derive(Debug, thiserror::Error)]
pub enum InjectorError {
    /// There is nothing that it could do.
    #[error(
        "sidecars.injection is missing: the injector role needs to know the image of sidecars, e.g. {{image: ghcr.io/eastway-dev/eastway-sidecar:1}}"
    )]
    NotConfigured,
    /// Pods do not reach a socket of this host.
    #[error("trust.ca must be https:// with host and port for sidecars in pods")]
    Authority,
    /// One of the HTTP ports.
    #[error(transparent)]
    Port(#[from] admin::BindError),
    /// The webhook's port.
    #[error("listen.injection: cannot listen on {address}: {source}")]
    Listen {
        /// Its address.
        address: std::net::SocketAddr,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// There is no way to an API server.
    #[error("the injector role tells a Kubernetes API who it is: {0}")]
    Client(#[from] ClientError),
    /// The certificate cannot be made.
    #[error("the webhook's certificate: {0}")]
    Key(#[from] KeyError),
    /// TLS cannot be set up.
    #[error("the webhook's TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// An injector that listens and answers nobody yet.
pub struct Bound {
    listener: TcpListener,
    identity: Arc<WebIdentity>,
    server: Server,
    keeper: Keeper<Webhook>,
    health: HealthPort,
    metrics: MetricsPort,
    telemetry: Telemetry,
    log: LogHandle,
}

/// Binds the ports and makes key, certificate and a client for the API server; nothing is sent yet.
///
/// # Errors
/// [`InjectorError`]
pub async fn bind(settings: &Settings, telemetry: Telemetry, log: LogHandle) -> Result<Bound, InjectorError> {
    let kubernetes = settings.kubernetes.clone();
    let kubernetes = match kubernetes {
        Some(kubernetes) => kubernetes,
        None => KubernetesSettings::in_namespace(SYSTEM_NAMESPACE).map_err(|_| InjectorError::NotConfigured)?,
    };
    let wanted = sidecars(settings, &kubernetes)?;
    let client = client::connect(&adapters::kubernetes_access(Some(&kubernetes.access))).await?;
    let name = format!("{NAME}.{}.svc", kubernetes.namespace);
    let identity = WebIdentity::new(WebCertificate::generate(&name, SystemTime::now(), certificate::LIFETIME)?);
    let address = settings.listen.injection;
    let listener = TcpListener::bind(address).await.map_err(|source| InjectorError::Listen { address, source })?;
    let keeper = Keeper {
        publish: Webhook::new(&client, NAME),
        name,
        identity: Arc::clone(&identity),
        metrics: Arc::clone(&telemetry.metrics),
    };
    Ok(Bound {
        listener,
        server: Server::new(wanted, telemetry.clone()),
        identity,
        keeper,
        health: HealthPort::bind(settings.listen.health).await?,
        metrics: MetricsPort::bind(settings.listen.metrics).await?,
        telemetry,
        log,
    })
}

impl Bound {
    /// Answers until `stop`, and then as long as it may still be asked.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub async fn run(self, stop: CancellationToken) -> Result<(), InjectorError> {
        let Self { listener, identity, server, keeper, health, metrics, telemetry, log } = self;
        let tls = web::server_config(identity)?;
        let readiness = Readiness::new();
        let unknown = readiness.register("trust of the api server");
        let (leave, end) = (CancellationToken::new(), CancellationToken::new());
        let tasks = TaskTracker::new();
        let health = health.run(readiness.clone(), telemetry.clone(), end.clone());
        let metrics = metrics.run_alone(readiness.clone(), telemetry, Some(log), end.clone());
        let work = server.serve(listener, tls, leave.clone());
        let keep = keeper.run(unknown, leave.clone());
        let owned: [(&str, futures_util::future::BoxFuture<'static, ()>); 4] = [
            ("health port", Box::pin(health)),
            ("metrics port", Box::pin(metrics)),
            ("webhook", Box::pin(work)),
            ("certificate", Box::pin(keep)),
        ];
        for (name, task) in owned {
            let (stop, leave) = (stop.clone(), leave.clone());
            // A task that ended by itself would leave a process that looks alive (invariant I12).
            tasks.spawn(async move {
                task.await;
                if !leave.is_cancelled() {
                    error!(task = name, "a task ended that must not: stopping");
                    stop.cancel();
                }
            });
        }
        info!("injector is up");
        stop.cancelled().await;
        readiness.set_draining();
        sleep(LEAVE).await;
        leave.cancel();
        tasks.close();
        if tokio::time::timeout(STOP_TIMEOUT, async {
            // Health and metrics go last.
            while tasks.len() > 2 {
                sleep(Duration::from_millis(20)).await;
            }
            end.cancel();
            tasks.wait().await;
        })
        .await
        .is_err()
        {
            warn!("some tasks did not stop in time");
        }
        end.cancel();
        info!("stopped");
        Ok(())
    }
}

/// What sidecars of this configuration are.
fn sidecars(settings: &Settings, kubernetes: &KubernetesSettings) -> Result<injection::Settings, InjectorError> {
    let sidecars = settings.sidecars.as_ref().and_then(|sidecars| sidecars.injection.as_ref());
    let InjectionSettings { image, pull_policy, ranges, requests, limits } =
        sidecars.ok_or(InjectorError::NotConfigured)?;
    let CaAddress::Network(ca) = &settings.trust.ca else { return Err(InjectorError::Authority) };
    let mut resources = Map::new();
    for (key, quantities) in [("requests", requests), ("limits", limits)] {
        if !quantities.is_empty() {
            resources.insert(key.to_owned(), json!(quantities));
        }
    }
    Ok(injection::Settings {
        image: image.clone(),
        pull_policy: format!("{pull_policy:?}"),
        system_namespace: kubernetes.namespace.clone(),
        trust_domain: settings.trust.domain.to_string(),
        ca: format!("https://{ca}"),
        gateway: kubernetes.gateways.to_string(),
        ranges: ranges.iter().map(ToString::to_string).collect(),
        resources: Value::from(resources),
        ipv6: settings.listen.injection.is_ipv6(),
    })
}

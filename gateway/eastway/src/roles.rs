//! What a process does. Only the certificate authority ever reads the CA key, and only the gateway faces
//! the WAN: asked for both, a process runs the gateway and starts another for the authority.

pub mod authority;
pub mod ca;
pub mod controller;
pub mod enroll;
pub mod injector;
pub mod sidecar;

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use eastway_identity::SpiffeIdError;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, error, info, warn};

use crate::adapters;
use crate::admin::{HealthPort, MetricsPort, Readiness};
use crate::app::signals::Signals;
use crate::app::{self, BuildError, Configuration};
use crate::config::settings::CaAddress;
use crate::config::{self, ConfigErrors, Loaded, Settings};
use crate::proxy::copy::keep_freed;
use crate::roles::authority::Authority;
use crate::roles::ca::{CaRunError, CaSettings, CaStartError, NetworkSettings};
use crate::roles::controller::ControllerError;
use crate::roles::enroll::{CaClient, NetworkCa};
use crate::roles::injector::InjectorError;
use crate::telemetry::{LogError, LogHandle, LogSettings, Telemetry, log};

/// Service account of gateways.
pub const GATEWAY_ACCOUNT: &str = "eastway-gateway";
/// Service account of controllers.
pub const CONTROLLER_ACCOUNT: &str = "eastway-controller";
/// Lease of the controller that writes. No cluster is called like this, so that it is none of theirs.
pub const CONTROLLER_LEASE: &str = "controller.eastway.dev";
/// Service account of the certificate authority.
pub const CA_ACCOUNT: &str = "eastway-ca";
/// The most that a process which was told to end at once takes to tell its peers.
const FAREWELL: Duration = Duration::from_millis(500);

/// What a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum)]
pub enum Role {
    /// Links, federation, DNS, virtual addresses: the only role that faces the outside
    Gateway,
    /// The only role that writes to the Kubernetes API
    Controller,
    /// The only role that holds the CA key
    Ca,
    /// The webhook that puts sidecars into pods
    Injector,
}

impl Role {
    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Controller => "controller",
            Self::Ca => "ca",
            Self::Injector => "injector",
        }
    }
}

/// What a process was asked to run.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// The `kind: GatewayConfig` file.
    pub config: PathBuf,
    /// Sorted, not empty, without duplicates.
    pub roles: Vec<Role>,
    /// Overrides `log.level` of the file; its grammar is checked.
    pub log_level: Option<String>,
    /// Overrides `log.format` of the file.
    pub log_format: Option<crate::telemetry::LogFormat>,
    /// Ends when the process with this id does: its parent.
    pub end_with: Option<u32>,
}

/// Why a process could not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The files are not usable.
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    /// Logging could not be set up.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The runtime or signals.
    #[error("cannot start: {0}")]
    Runtime(#[from] io::Error),
    /// The CA role.
    #[error(transparent)]
    Ca(#[from] CaStartError),
    /// The ca role that runs beside this process.
    #[error("the certificate authority ended by itself ({0}); it said why above")]
    AuthorityEnded(ExitStatus),
    /// The trust domain makes no SPIFFE id.
    #[error("trust.domain: {0}")]
    TrustDomain(#[from] SpiffeIdError),
    /// The gateway role.
    #[error(transparent)]
    Gateway(#[from] BuildError),
    /// The second signal came before the drain was over.
    #[error("stopped at once by a second signal")]
    Interrupted,
    /// The controller role.
    #[error(transparent)]
    Controller(#[from] ControllerError),
    /// The injector role.
    #[error(transparent)]
    Injector(#[from] InjectorError),
    /// Roles that have the same ports, or rights that are kept apart.
    #[error("the injector role runs in a process of its own")]
    InjectorAlone,
}

/// Runs the process until it is told to stop.
///
/// # Errors
/// [`RunError`].
pub fn run(options: &RunOptions) -> Result<(), RunError> {
    let loaded = config::load(&options.config)?;
    if let Some(parent) = options.end_with {
        authority::end_with(parent)?;
    }
    let log = log::install(&log_settings(options, &loaded.settings))?;
    for warning in loaded.warnings.iter() {
        warn!("{warning}");
    }
    raise_file_limit();
    keep_freed();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("eastway").build()?;
    let result = runtime.block_on(serve(options, loaded, log.clone()));
    runtime.shutdown_background();
    log.flush();
    result
}

/// Allows this process as many open files as an unprivileged one may have: the usual limit of 1,024
/// is for programs that use `select`, which nothing here does.
pub(crate) fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        Ok(()) => debug!(?current, ?maximum, "limit on open files raised"),
        Err(error) => warn!(%error, ?current, ?maximum, "the limit on open files cannot be raised"),
    }
}

fn log_settings(options: &RunOptions, settings: &Settings) -> LogSettings {
    let level = options.log_level.clone().unwrap_or_else(|| settings.log.level.clone());
    let format = options.log_format.unwrap_or(settings.log.format);
    LogSettings { format, level }
}

async fn serve(options: &RunOptions, loaded: Loaded, log: LogHandle) -> Result<(), RunError> {
    let settings = loaded.settings.clone();
    if options.roles.contains(&Role::Injector) && options.roles.len() > 1 {
        return Err(RunError::InjectorAlone);
    }
    let names: Vec<_> = options.roles.iter().map(|role| role.as_str().to_owned()).collect();
    info!(version = env!("CARGO_PKG_VERSION"), roles = names.join(","), cluster = %settings.cluster, config = %options.config.display(), "starting");
    let stop = CancellationToken::new();
    let end = CancellationToken::new();
    let tasks = TaskTracker::new();
    let now = CancellationToken::new();
    let signals = tokio::spawn(on_signals(stop.clone(), now.clone()));
    let with_gateway = options.roles.contains(&Role::Gateway);
    let beside = options.roles.contains(&Role::Ca) && with_gateway;
    let authority = if beside { Some(Authority::start(options)?) } else { None };
    let authority = async {
        let Some(authority) = authority else { return Ok(()) };
        let ended = now.run_until_cancelled(authority.run(end.clone())).await.unwrap_or(Ok(()));
        stop.cancel();
        ended
    };
    if options.roles.contains(&Role::Ca) && !with_gateway {
        let ca = start_ca(&settings, options, &log, &end).await?;
        let stop = stop.clone();
        tasks.spawn(async move {
            if let Err(error) = ca.await {
                error!(%error, "the certificate authority ended");
                stop.cancel();
            }
        });
    }
    let work = async {
        let result = if with_gateway || options.roles.contains(&Role::Controller) {
            let configuration = follow_configuration(options, loaded, &tasks, &end);
            if with_gateway {
                gateway(configuration, log, names, &stop, &now).await
            } else {
                tokio::select! {
                    result = controller(configuration, log, &stop) => result,
                    () = now.cancelled() => Err(RunError::Interrupted),
                }
            }
        } else if options.roles.contains(&Role::Injector) {
            tokio::select! {
                result = injector(&settings, log, &stop) => result,
                () = now.cancelled() => Err(RunError::Interrupted),
            }
        } else {
            stop.cancelled().await;
            Ok(())
        };
        stop.cancel();
        end.cancel();
        result
    };
    let (result, authority) = tokio::join!(work, authority);
    tasks.close();
    let _at_once = now.run_until_cancelled(tasks.wait()).await;
    signals.abort();
    // What follows from the end of the ca role is not the cause.
    authority.map_err(RunError::AuthorityEnded).and(result)
}

/// The configuration as it changes: the files, and in Kubernetes the objects beside them.
fn follow_configuration(
    options: &RunOptions,
    loaded: Loaded,
    tasks: &TaskTracker,
    end: &CancellationToken,
) -> Configuration {
    let settings = loaded.settings.clone();
    let (loaded, status, follow) = config::watch(&options.config, Arc::new(loaded), end.clone());
    tasks.spawn(follow);
    let Some(kubernetes) = &settings.kubernetes else { return Configuration { loaded, status } };
    let (latest, objects) = watch::channel(None);
    let access = adapters::kubernetes_access(Some(&kubernetes.access));
    let (merged, follower) = app::objects::overlay(loaded, objects);
    tasks.spawn(app::objects::watch(access, kubernetes.kinds(), latest, follower.has_objects(), end.clone()));
    tasks.spawn(follower.run(end.clone()));
    Configuration { loaded: merged, status }
}

async fn gateway(
    configuration: Configuration,
    log: LogHandle,
    names: Vec<String>,
    stop: &CancellationToken,
    now: &CancellationToken,
) -> Result<(), RunError> {
    let settings = configuration.loaded.borrow().settings.clone();
    let client = ca_client(&settings)?.keeping(settings.trust.keep.clone());
    let telemetry = Telemetry::new(settings.log.access);
    let built = now.run_until_cancelled(app::build(configuration, names, telemetry, Some(log)));
    let bound = built.await.ok_or(RunError::Interrupted)??;
    let gateway = bound.gateway().clone();
    if let Some(result) = now.run_until_cancelled(bound.run(client, stop.clone())).await {
        return Ok(result?);
    }
    if let Some(tunnel) = gateway.tunnel.get() {
        // Peers would send into the dark until they miss its acknowledgements.
        let _late = tokio::time::timeout(FAREWELL, tunnel.cut()).await;
    }
    Err(RunError::Interrupted)
}

async fn controller(configuration: Configuration, log: LogHandle, stop: &CancellationToken) -> Result<(), RunError> {
    let telemetry = Telemetry::new(configuration.loaded.borrow().settings.log.access);
    let bound = controller::bind(configuration, telemetry, log).await?;
    bound.run(stop.clone()).await;
    Ok(())
}

/// It follows neither files nor objects: the chart replaces its pods when the configuration changes.
async fn injector(settings: &Settings, log: LogHandle, stop: &CancellationToken) -> Result<(), RunError> {
    let telemetry = Telemetry::new(settings.log.access);
    let bound = injector::bind(settings, telemetry, log).await?;
    Ok(bound.run(stop.clone()).await?)
}

/// The way to the ca role that the configuration names.
///
/// # Errors
/// The trust domain makes no SPIFFE id.
pub fn ca_client(settings: &Settings) -> Result<CaClient, SpiffeIdError> {
    Ok(match &settings.trust.ca {
        CaAddress::Unix(socket) => CaClient::new(socket.clone()),
        CaAddress::Network(address) => CaClient::network(NetworkCa {
            address: address.clone(),
            identity: settings.service_account(CA_ACCOUNT)?,
            anchors: settings.trust.cacerts.clone(),
            token: settings.trust.token.clone(),
        }),
    })
}

/// What the ca role of this configuration is.
///
/// # Errors
/// The trust domain makes no SPIFFE id.
pub(crate) fn ca_settings(settings: &Settings) -> Result<CaSettings, SpiffeIdError> {
    let network = match settings.listen.ca {
        Some(address) => Some(NetworkSettings {
            address,
            identity: settings.service_account(CA_ACCOUNT)?,
            access: adapters::kubernetes_access(settings.kubernetes.as_ref().map(|kubernetes| &kubernetes.access)),
        }),
        None => None,
    };
    Ok(CaSettings {
        folder: settings.trust.cacerts.clone(),
        socket: match &settings.trust.ca {
            CaAddress::Unix(socket) => Some(socket.clone()),
            CaAddress::Network(_) => None,
        },
        network,
        gateway: settings.service_account(GATEWAY_ACCOUNT)?,
        workloads: settings.trust.workloads.clone(),
        file: Some(settings.file.clone()),
        leaf_ttl: settings.trust.leaf_ttl,
    })
}

/// Binds the ca role. On the network it has health and metrics ports of its own; beside a gateway, which has them,
/// it does not serve the network.
async fn start_ca(
    settings: &Settings,
    options: &RunOptions,
    log: &LogHandle,
    end: &CancellationToken,
) -> Result<impl Future<Output = Result<(), CaRunError>> + Send + use<>, RunError> {
    let mut wanted = ca_settings(settings)?;
    if options.end_with.is_some() {
        wanted.network = None;
    }
    let ports = wanted.network.is_some();
    let telemetry = Telemetry::new(settings.log.access);
    let ca = ca::bind(wanted, telemetry.clone()).await?;
    let ports = match ports {
        true => Some((
            HealthPort::bind(settings.listen.health).await.map_err(BuildError::from)?,
            MetricsPort::bind(settings.listen.metrics).await.map_err(BuildError::from)?,
        )),
        false => None,
    };
    let (end, log) = (end.clone(), log.clone());
    Ok(async move {
        let Some((health, metrics)) = ports else { return ca.run(end).await };
        let readiness = Readiness::new();
        let health = health.run(readiness.clone(), telemetry.clone(), end.clone());
        let metrics = metrics.run_alone(readiness, telemetry, Some(log), end.clone());
        let ((), (), result) = tokio::join!(health, metrics, ca.run(end));
        result
    })
}

/// The first signal drains, the second ends the process at once.
pub(crate) async fn on_signals(stop: CancellationToken, now: CancellationToken) {
    let mut signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(error) => return error!(%error, "cannot listen for signals"),
    };
    for token in [stop, now] {
        let signal = signals.next().await;
        info!(signal, "stopping");
        token.cancel();
    }
}

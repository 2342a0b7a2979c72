//! The sidecar: beside one workload, outside Kubernetes or in it.
//!
//! It makes the workload's key and keeps a certificate for it fresh, hands both to Envoy as secrets ([`secrets`], `sds`),
//! carries Envoy's stream of configuration to the gateway (`ads`), and runs Envoy ([`program`], `process`), which it
//! starts with a configuration that leads back here ([`mod@bootstrap`]). All of that is on one Unix socket for this user.
//! With `mode: agent` there is no Envoy: gRPC libraries of the workload's own programs use the socket (`grpc`).

mod admin;
mod ads;
mod authority;
pub mod bootstrap;
mod capture;
mod grpc;
mod health;
mod listeners;
mod memory;
mod output;
mod process;
pub mod program;
mod reload;
mod sds;
pub mod secrets;
mod start;

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use eastway_identity::SpiffeIdError;
use eastway_proto::envoy::service::secret::v3::secret_discovery_service_server::SecretDiscoveryServiceServer;
use futures_util::StreamExt as _;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Server;
use tracing::{error, info};

use self::ads::AdsProxy;
use self::authority::Readable;
use self::bootstrap::{Files, bootstrap};
use self::capture::Capture;
pub use self::capture::CaptureError;
use self::health::Health;
pub use self::process::EnvoyError;
use self::program::ProgramError;
use self::reload::Follow;
use self::sds::SecretService;
use self::secrets::{SecretError, Secrets};
use crate::admin::BindError;
use crate::app::disk::write_secret;
use crate::config::file::SidecarMode;
use crate::config::settings::CaAddress;
use crate::config::{ConfigErrors, SidecarSettings, load_sidecar, read_sidecar};
use crate::local::socket::{SocketError, SocketFile, UserSocket};
use crate::roles::enroll::{CaClient, NetworkCa, keep_fresh, until_certified};
use crate::roles::{CA_ACCOUNT, GATEWAY_ACCOUNT, on_signals, raise_file_limit};
use crate::telemetry::{LogError, LogFormat, LogHandle, LogSettings, log};

/// Connections of the agent's socket. Envoy has one for all its streams, and for a moment the one of before; gRPC
/// libraries have one for each target, in each program.
const MAX_CONNECTIONS: usize = 256;
/// Streams of a connection: one of configuration, one for each secret.
const MAX_STREAMS: u32 = 256;
/// Largest request for secrets.
const MAX_REQUEST: usize = 64 << 10;

/// What says how a sidecar is to run.
#[derive(Clone, Debug)]
pub enum Described {
    /// A `kind: SidecarConfig` file, which is followed.
    File(PathBuf),
    /// The text of one, which stays as it is.
    Text(String),
}

impl Described {
    /// How people call it.
    #[must_use]
    pub fn name(&self) -> &Path {
        match self {
            Self::File(file) => file,
            Self::Text(_) => Path::new(program::CONFIG_VARIABLE),
        }
    }

    fn load(&self) -> Result<SidecarSettings, ConfigErrors> {
        match self {
            Self::File(file) => load_sidecar(file),
            Self::Text(text) => read_sidecar(program::CONFIG_VARIABLE, text),
        }
    }
}

/// What a sidecar was asked to run.
#[derive(Clone, Debug)]
pub struct SidecarOptions {
    /// How it is to run.
    pub config: Described,
    /// Overrides `log.level` of the file; its grammar is checked.
    pub log_level: Option<String>,
    /// Overrides `log.format` of the file.
    pub log_format: Option<LogFormat>,
}

/// Why a sidecar could not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum SidecarError {
    /// The file is not usable.
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    /// Logging could not be set up.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The runtime or signals.
    #[error("cannot start: {0}")]
    Runtime(#[from] io::Error),
    /// The trust domain makes no SPIFFE id.
    #[error("trust.domain: {0}")]
    TrustDomain(#[from] SpiffeIdError),
    /// Envoy's program.
    #[error("envoy.path: {0}")]
    Program(#[from] ProgramError),
    /// The state folder.
    #[error("state: cannot use {}: {source}", path.display())]
    State {
        /// The folder, or the file in it.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The agent's socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The first certificate is not ours.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// Envoy itself.
    #[error(transparent)]
    Envoy(#[from] EnvoyError),
    /// Connections cannot be led to Envoy.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// The health port.
    #[error(transparent)]
    Health(#[from] BindError),
}

/// Envoy's first configuration, as [`run`] writes it, for a person to read.
///
/// # Errors
/// The file is not usable.
pub fn print_bootstrap(config: &Described) -> Result<String, ConfigErrors> {
    let settings = config.load()?;
    Ok(first_configuration(&settings, &Files::of(&settings.state)))
}

/// What Envoy, or gRPC libraries, are started with.
fn first_configuration(settings: &SidecarSettings, files: &Files) -> String {
    let contents = match settings.mode {
        SidecarMode::Envoy => bootstrap(settings, files),
        SidecarMode::Agent => grpc::bootstrap(settings, files),
    };
    format!("{contents:#}\n")
}

/// Runs the sidecar until it is told to stop.
///
/// # Errors
/// [`SidecarError`]
pub fn run(options: &SidecarOptions) -> Result<(), SidecarError> {
    start(options, async |settings, log| {
        raise_file_limit();
        let fixed_level = options.log_level.is_some();
        let follow = match &options.config {
            Described::File(file) => Some(Follow { file: file.clone(), log: (!fixed_level).then_some(log) }),
            Described::Text(_) => None,
        };
        serve(settings, follow).await
    })
}

/// Leads connections of this network namespace to the sidecar that is to come, and ends.
///
/// # Errors
/// [`SidecarError`]
pub fn prepare_capture(options: &SidecarOptions) -> Result<(), SidecarError> {
    start(options, async |settings, _log| Ok(capture::prepare(settings).await?))
}

/// Runs what `work` does with the settings.
fn start(
    options: &SidecarOptions,
    work: impl AsyncFnOnce(&SidecarSettings, LogHandle) -> Result<(), SidecarError>,
) -> Result<(), SidecarError> {
    let settings = options.config.load()?;
    let level = options.log_level.clone().unwrap_or_else(|| settings.log_level.clone());
    let format = options.log_format.unwrap_or(settings.log_format);
    let log = log::install(&LogSettings { format, level })?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // Little happens here: Envoy has the traffic.
        .worker_threads(1)
        .enable_all()
        .thread_name("eastway")
        .build()?;
    let result = runtime.block_on(work(&settings, log.clone()));
    runtime.shutdown_background();
    log.flush();
    result
}

async fn serve(settings: &SidecarSettings, follow: Option<Follow>) -> Result<(), SidecarError> {
    let identity = settings.identity()?;
    let gateway = &settings.gateway;
    match settings.mode {
        SidecarMode::Envoy => {
            let envoy = program::version(&settings.envoy.path).await?;
            info!(version = env!("CARGO_PKG_VERSION"), %envoy, %identity, %gateway, "sidecar starts");
        }
        SidecarMode::Agent => {
            info!(version = env!("CARGO_PKG_VERSION"), %identity, %gateway, "sidecar starts, without Envoy");
        }
    }
    let files = prepare(settings)?;
    // Before Envoy: until it is there, nothing gets past it.
    let capture = Capture::begin(settings).await?;
    let socket = UserSocket::bind(&files.agent, None)?;
    let file = socket.file();
    let (stop, now, end) = (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
    let signals = tokio::spawn(on_signals(stop.clone(), now.clone()));
    let tasks = TaskTracker::new();
    let health = Health::begin(settings, &tasks, &end).await?;
    if let Some(follow) = follow {
        tasks.spawn(follow.run(settings.clone(), health.clone(), end.clone()));
    }
    let result = async {
        let client = ca_client(settings)?;
        let ttl = settings.trust.leaf_ttl;
        // There is nothing that Envoy could do without: it starts with the certificate.
        let Some(enrolled) = stop.run_until_cancelled(until_certified(&client, ttl)).await else { return Ok(()) };
        let secrets = Secrets::new(identity, enrolled)?;
        info!(not_after = %humantime::format_rfc3339_seconds(secrets.identity().current().not_after()), "certificate received");
        tasks.spawn(health.clone().follow(Arc::clone(secrets.identity()), end.clone()));
        tasks.spawn(keep_fresh(client, ttl, Arc::clone(&secrets), end.clone()));
        let again = Arc::new(Notify::new());
        tasks.spawn(serve_agent(settings, socket, &secrets, Arc::clone(&again), end.clone())?);
        match settings.mode {
            SidecarMode::Envoy => process::supervise(settings, &files, &health, &again, &stop, &now).await?,
            SidecarMode::Agent => {
                say_variable(&settings.state);
                stop.cancelled().await;
            }
        }
        Ok(())
    }
    .await;
    end.cancel();
    tasks.close();
    let _at_once = now.run_until_cancelled(tasks.wait()).await;
    if let Some(capture) = capture {
        capture.end().await;
    }
    clean_up(file, &files, &settings.state);
    signals.abort();
    result
}

/// Makes the state folder, for this user alone, and Envoy's file in it.
fn prepare(settings: &SidecarSettings) -> Result<Files, SidecarError> {
    let failed = |path: &Path, source| SidecarError::State { path: path.to_owned(), source };
    let state = &settings.state;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(state).map_err(|source| failed(state, source))?;
    // One that was there already may have been open to others.
    fs::set_permissions(state, fs::Permissions::from_mode(0o700)).map_err(|source| failed(state, source))?;
    if let Some(keep) = &settings.trust.keep {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(keep).map_err(|source| failed(keep, source))?;
    }
    let files = Files::of(state);
    let file = match settings.mode {
        SidecarMode::Envoy => files.bootstrap.clone(),
        SidecarMode::Agent => grpc::file(state),
    };
    let text = first_configuration(settings, &files);
    write_secret(&file, text.as_bytes()).map_err(|source| failed(&file, source))?;
    Ok(files)
}

/// Tells on standard output what programs are to be started with: once they would be served.
fn say_variable(state: &Path) {
    let line = format!("{}={}\n", grpc::VARIABLE, grpc::file(state).display());
    // Who has closed it does not want to know.
    let _said = io::stdout().lock().write_all(line.as_bytes());
    info!(file = %grpc::file(state).display(), "gRPC libraries are served: start programs with {} naming this file", grpc::VARIABLE);
}

fn ca_client(settings: &SidecarSettings) -> Result<CaClient, SpiffeIdError> {
    let client = match &settings.trust.ca {
        CaAddress::Unix(socket) => CaClient::new(socket.clone()),
        CaAddress::Network(address) => CaClient::network(NetworkCa {
            address: address.clone(),
            identity: settings.system_account(CA_ACCOUNT)?,
            anchors: settings.trust.cacerts.clone(),
            token: settings.trust.token.clone(),
        }),
    };
    Ok(match &settings.trust.keep {
        Some(folder) => client.keeping_of(settings.identity()?, folder),
        None => client,
    })
}

/// Serves Envoy on the agent's socket until `end`.
fn serve_agent(
    settings: &SidecarSettings,
    socket: UserSocket,
    secrets: &Arc<Secrets>,
    again: Arc<Notify>,
    end: CancellationToken,
) -> Result<impl Future<Output = ()> + Send + use<>, SpiffeIdError> {
    let gateway = settings.system_account(GATEWAY_ACCOUNT)?;
    let proxy = AdsProxy::new(settings.gateway.clone(), gateway, Arc::clone(secrets), again, end.clone());
    let service = SecretService { secrets: secrets.subscribe(), stop: end.clone() };
    let connections = socket.connections(MAX_CONNECTIONS).map(|connection| connection.map(Readable::new));
    let server = Server::builder()
        .max_concurrent_streams(Some(MAX_STREAMS))
        .http2_max_header_list_size(Some(16 << 10))
        .add_service(SecretDiscoveryServiceServer::new(service).max_decoding_message_size(MAX_REQUEST))
        .add_service(proxy)
        .serve_with_incoming_shutdown(connections, end.cancelled_owned());
    Ok(async move {
        if let Err(error) = server.await {
            error!(%error, "Envoy is served no more");
        }
    })
}

/// What the next start makes anew anyway.
fn clean_up(socket: SocketFile, files: &Files, state: &Path) {
    socket.remove();
    for file in [&files.admin, &files.bootstrap, &grpc::file(state)] {
        // Of a process that ends nobody wants to hear that a file was not there.
        let _gone = fs::remove_file(file);
    }
}

//! The certificate authority: the one role that holds the cluster's CA key.
//!
//! It listens on a Unix socket and takes who asks from the kernel (`SO_PEERCRED`): the user it
//! runs as itself, or root. A request contributes a public key and nothing else (design: identity).

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use eastway_identity::ca::{Ca, CaError};
use eastway_identity::{SpiffeId, crl};
use eastway_proto::ca::v1 as wire;
use eastway_proto::ca::v1::certificate_authority_server::{CertificateAuthority, CertificateAuthorityServer};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::UdsConnectInfo;
use tonic::{Request, Response, Status};
use tracing::{info, warn};

/// How often the CA folder is looked at for a rotation.
const RELOAD_INTERVAL: Duration = Duration::from_secs(2);
/// Concurrent requests; a gateway sends one at a time.
const MAX_CONCURRENT: usize = 16;

/// What the CA role needs to know.
#[derive(Clone, Debug)]
pub struct CaSettings {
    /// Folder in Istio's `cacerts` layout.
    pub folder: PathBuf,
    /// Where it listens.
    pub socket: PathBuf,
    /// The only identity it gives out.
    pub gateway: SpiffeId,
    /// Longest life of a leaf.
    pub leaf_ttl: Duration,
}

/// Why the CA role cannot start.
#[derive(Debug, thiserror::Error)]
pub enum CaStartError {
    /// The folder is not usable.
    #[error(transparent)]
    Load(#[from] CaError),
    /// The socket cannot be made.
    #[error("cannot listen on {0}: {1}")]
    Listen(PathBuf, #[source] io::Error),
    /// Somebody else serves there.
    #[error(
        "{0} is in use: another `eastway ca` or `eastway run` serves there, or drains; a second SIGTERM ends that one at once"
    )]
    InUse(PathBuf),
}

/// A certificate authority that listens, but does not serve yet.
pub struct BoundCa {
    service: Arc<Service>,
    listener: UnixListener,
}

/// Loads the CA and listens.
///
/// # Errors
/// [`CaStartError`]
pub fn bind(settings: CaSettings) -> Result<BoundCa, CaStartError> {
    let ca = Ca::load(&settings.folder)?;
    let listener = listen(&settings.socket)?;
    info!(folder = %settings.folder.display(), socket = %settings.socket.display(), pin = %ca.pin(), "certificate authority loaded");
    let uid = rustix::process::geteuid().as_raw();
    let seen = Mutex::new(fingerprint(&settings.folder));
    Ok(BoundCa { service: Arc::new(Service { ca: ArcSwap::from_pointee(ca), seen, settings, uid }), listener })
}

fn listen(path: &Path) -> Result<UnixListener, CaStartError> {
    let failed = |error| CaStartError::Listen(path.to_owned(), error);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    // A socket file outlives its process; one that answers belongs to a living one.
    if fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket()) {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(CaStartError::InUse(path.to_owned()));
        }
        fs::remove_file(path).map_err(failed)?;
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}

impl BoundCa {
    /// Serves until `stop`.
    ///
    /// # Errors
    /// Those of the gRPC server, which ends the role.
    pub async fn run(self, stop: CancellationToken) -> Result<(), tonic::transport::Error> {
        let path = self.service.settings.socket.clone();
        let reload = tokio::spawn(reload(self.service.clone(), stop.clone()));
        let result = Server::builder()
            .concurrency_limit_per_connection(MAX_CONCURRENT)
            .timeout(Duration::from_secs(10))
            .add_service(CertificateAuthorityServer::from_arc(self.service))
            .serve_with_incoming_shutdown(UnixListenerStream::new(self.listener), stop.cancelled_owned())
            .await;
        reload.abort();
        if let Err(error) = fs::remove_file(&path) {
            warn!(%error, socket = %path.display(), "cannot remove the socket");
        }
        result
    }
}

/// Takes over a rotated CA without being asked.
async fn reload(service: Arc<Service>, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(RELOAD_INTERVAL)).await.is_some() {
        service.refresh();
    }
}

/// The files of a CA folder: path, time and size of each.
type Fingerprint = Vec<(PathBuf, Option<SystemTime>, u64)>;

/// Changes whenever a file of the folder is replaced or rewritten.
fn fingerprint(folder: &Path) -> Fingerprint {
    let mut files: Vec<_> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let meta = fs::metadata(entry.path()).ok()?;
            Some((entry.path(), meta.modified().ok(), meta.len()))
        })
        .collect();
    files.sort();
    files
}

struct Service {
    ca: ArcSwap<Ca>,
    /// The folder as it was when it was read last.
    seen: Mutex<Fingerprint>,
    settings: CaSettings,
    uid: u32,
}

impl Service {
    /// Takes over a rotated CA; a folder in the middle of being written keeps the old one.
    fn refresh(&self) {
        let folder = &self.settings.folder;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let now = fingerprint(folder);
        if now == *seen {
            return;
        }
        match Ca::load(folder) {
            Ok(ca) => {
                info!(pin = %ca.pin(), "certificate authority reloaded");
                self.ca.store(Arc::new(ca));
            }
            Err(error) => warn!(%error, "the changed CA folder is not usable, the previous CA stays"),
        }
        *seen = now;
    }

    fn authenticate<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let caller = request
            .extensions()
            .get::<UdsConnectInfo>()
            .and_then(|info| info.peer_cred)
            .ok_or_else(|| Status::unauthenticated("the kernel does not say who is calling"))?;
        if caller.uid() == self.uid || caller.uid() == 0 {
            return Ok(());
        }
        warn!(uid = caller.uid(), "certificate refused: the caller runs as another user");
        Err(Status::permission_denied(format!("only user {} may ask for certificates here", self.uid)))
    }
}

#[tonic::async_trait]
impl CertificateAuthority for Service {
    async fn sign(&self, request: Request<wire::SignRequest>) -> Result<Response<wire::SignResponse>, Status> {
        self.authenticate(&request)?;
        let request = request.into_inner();
        let wanted = Duration::from_secs(request.ttl_seconds);
        let ttl = if wanted.is_zero() { self.settings.leaf_ttl } else { wanted.min(self.settings.leaf_ttl) };
        let ca = self.ca.load();
        let chain = ca
            .issue(&request.csr, &self.settings.gateway, ttl, SystemTime::now())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let keys = ca.link_keys();
        // Nothing else keeps it, and without it a certificate cannot be revoked.
        let serial = chain.first().and_then(crl::serial).unwrap_or_default();
        info!(identity = %self.settings.gateway, ttl = ?ttl, serial, "certificate issued");
        Ok(Response::new(wire::SignResponse {
            chain: chain.iter().map(|certificate| certificate.as_ref().to_vec().into()).collect(),
            link_keys: Some(wire::LinkKeys {
                reset: keys.reset.to_vec().into(),
                connection_id: keys.connection_id.to_vec().into(),
                token: keys.token.to_vec().into(),
            }),
        }))
    }

    async fn trust(&self, request: Request<wire::TrustRequest>) -> Result<Response<wire::TrustResponse>, Status> {
        self.authenticate(&request)?;
        // Who asks right after a step of a rotation must not hear of the time before.
        self.refresh();
        let ca = self.ca.load();
        Ok(Response::new(wire::TrustResponse {
            issuer: ca.chain().first().map(|issuer| issuer.as_ref().to_vec().into()).unwrap_or_default(),
            roots: ca.roots().iter().map(|root| root.as_ref().to_vec().into()).collect(),
            crl: Vec::new().into(),
            next: ca.next().iter().map(|certificate| certificate.as_ref().to_vec().into()).collect(),
        }))
    }
}

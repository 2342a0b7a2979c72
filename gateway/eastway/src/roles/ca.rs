//! The certificate authority: the one role that holds the cluster's CA key.
//!
//! It listens on a Unix socket, where it takes who asks from the kernel (`SO_PEERCRED`), and on the network, where a
//! service-account token or a live certificate says so. A request contributes a public key and nothing else (design:
//! identity).

mod caller;
mod rate;

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use eastway_identity::ca::{Ca, CaError, IssueError};
use eastway_identity::local::{ClientAuth, LocalTrust, Wanted, server_config};
use eastway_identity::{IdentityStore, SpiffeId, crl, renewal_time, system_clock};
use eastway_kubernetes::client::{Access, ClientError};
use eastway_kubernetes::tokens::Reviewer;
use eastway_proto::ca::v1 as wire;
use eastway_proto::ca::v1::certificate_authority_server::{CertificateAuthority, CertificateAuthorityServer};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::UdsConnectInfo;
use tonic::{Request, Response, Status};
use tracing::{info, warn};

use self::caller::{Asker, Denial, Doorkeeper, Proof};
use crate::local::listener::{BindError, Caller, LocalListener};
use crate::telemetry::{Refusal, Telemetry};

/// What tokens must be made for.
pub const AUDIENCE: &str = "eastway-ca";
/// How often the CA folder is looked at for a rotation.
const RELOAD_INTERVAL: Duration = Duration::from_secs(2);
/// Concurrent requests of a connection; a gateway sends one at a time.
const MAX_CONCURRENT: usize = 16;
/// Longest answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Largest request; one with an RSA key of 8192 bits has 2 KiB.
const MAX_REQUEST: usize = 32 << 10;
/// Longest life of a connection from the network: who needs one again makes a new one.
const MAX_AGE: Duration = Duration::from_secs(300);

/// What the CA role needs to know.
#[derive(Clone, Debug)]
pub struct CaSettings {
    /// Folder in Istio's `cacerts` layout.
    pub folder: PathBuf,
    /// Unix socket.
    pub socket: Option<PathBuf>,
    /// The network.
    pub network: Option<NetworkSettings>,
    /// The gateway's identity: the only one that is given out on the socket, and the only one that gets link keys.
    pub gateway: SpiffeId,
    /// Longest life of a leaf.
    pub leaf_ttl: Duration,
}

/// How the CA role serves the network.
#[derive(Clone, Debug)]
pub struct NetworkSettings {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its own identity, which callers know it by. All that it gives out is of the same trust domain.
    pub identity: SpiffeId,
    /// The API server that knows tokens.
    pub access: Access,
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
    /// Neither socket nor network.
    #[error("trust.ca is on the network, and listen.ca says not where to serve it")]
    Nowhere,
    /// The port cannot be listened on.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// There is no way to an API server.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The CA cannot certify itself.
    #[error("the CA cannot make a certificate of its own: {0}")]
    Own(#[from] IssueError),
}

/// Why the CA role ended.
#[derive(Debug, thiserror::Error)]
pub enum CaRunError {
    /// The provider lacks TLS 1.3.
    #[error("no TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The gRPC server.
    #[error(transparent)]
    Grpc(#[from] tonic::transport::Error),
}

/// A certificate authority that listens, but does not serve yet.
#[derive(Debug)]
pub struct BoundCa {
    authority: Arc<Authority>,
    socket: Option<(PathBuf, UnixListener)>,
    network: Option<Network>,
}

#[derive(Debug)]
struct Network {
    listener: LocalListener,
    identity: Arc<IdentityStore>,
    id: SpiffeId,
    doorkeeper: Arc<Doorkeeper>,
}

/// Loads the CA and listens.
///
/// # Errors
/// [`CaStartError`]
pub async fn bind(settings: CaSettings, telemetry: Telemetry) -> Result<BoundCa, CaStartError> {
    if settings.socket.is_none() && settings.network.is_none() {
        return Err(CaStartError::Nowhere);
    }
    let ca = Ca::load(&settings.folder)?;
    let network = match &settings.network {
        Some(network) => Some(Network::bind(network, &ca, settings.leaf_ttl).await?),
        None => None,
    };
    let socket = match &settings.socket {
        Some(path) => Some((path.clone(), listen(path)?)),
        None => None,
    };
    let sockets = settings.socket.as_ref().map(|path| path.display().to_string());
    let port = network.as_ref().map(|network| network.listener.local_addr().to_string());
    info!(folder = %settings.folder.display(), socket = sockets, network = port, pin = %ca.pin(), "certificate authority loaded");
    let uid = rustix::process::geteuid().as_raw();
    let seen = Mutex::new(fingerprint(&settings.folder));
    let authority = Arc::new(Authority { ca: ArcSwap::from_pointee(ca), seen, settings, uid, telemetry });
    Ok(BoundCa { authority, socket, network })
}

impl Network {
    async fn bind(settings: &NetworkSettings, ca: &Ca, ttl: Duration) -> Result<Self, CaStartError> {
        let listener = LocalListener::bind("listen.ca", settings.address).await?;
        let reviewer = Reviewer::connect(&settings.access, AUDIENCE).await?;
        let id = settings.identity.clone();
        let identity = IdentityStore::new(ca.issue_identity(&id, ttl, SystemTime::now())?);
        let doorkeeper = Arc::new(Doorkeeper::new(id.trust_domain().into(), reviewer));
        Ok(Self { listener, identity, id, doorkeeper })
    }
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
    /// The address on the network, with the port that was chosen.
    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.network.as_ref().map(|network| network.listener.local_addr())
    }

    /// Serves until `stop`.
    ///
    /// # Errors
    /// [`CaRunError`], which ends the role.
    pub async fn run(self, stop: CancellationToken) -> Result<(), CaRunError> {
        let Self { authority, socket, network } = self;
        let own = network.as_ref().map(|network| (network.id.clone(), Arc::clone(&network.identity)));
        // What ends one ends all.
        let end = stop.child_token();
        let on_socket = async {
            match socket {
                Some((path, listener)) => serve_socket(authority.clone(), &path, listener, end.clone()).await,
                None => Ok(()),
            }
        };
        let on_network = async {
            match network {
                Some(network) => serve_network(authority.clone(), network, end.clone()).await,
                None => Ok(()),
            }
        };
        let serve = async { tokio::try_join!(on_socket, on_network) };
        let result = tokio::select! {
            result = serve => result,
            () = keep_current(&authority, own) => Ok(((), ())),
        };
        end.cancel();
        result.map(|((), ())| ())
    }
}

async fn serve_socket(
    authority: Arc<Authority>,
    path: &Path,
    listener: UnixListener,
    stop: CancellationToken,
) -> Result<(), CaRunError> {
    let result = Server::builder()
        .concurrency_limit_per_connection(MAX_CONCURRENT)
        .timeout(TIMEOUT)
        .add_service(CertificateAuthorityServer::new(Service { authority, doorkeeper: None }))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop.cancelled_owned())
        .await;
    if let Err(error) = fs::remove_file(path) {
        warn!(%error, socket = %path.display(), "cannot remove the socket");
    }
    Ok(result?)
}

async fn serve_network(authority: Arc<Authority>, network: Network, stop: CancellationToken) -> Result<(), CaRunError> {
    let Network { listener, identity, id, doorkeeper } = network;
    let known = authority.clone();
    let wanted = Wanted::TrustDomain(id.trust_domain().into());
    let trust = LocalTrust::new(Arc::new(move || known.ca.load().issuers()), wanted);
    let tls = server_config(identity, trust.clone(), ClientAuth::Optional, system_clock())?;
    let refusals = authority.telemetry.refusals.clone();
    let (connections, accept) = listener.accept(tls, trust, refusals, stop.clone());
    let service = Service { authority, doorkeeper: Some(doorkeeper) };
    let serve = Server::builder()
        .concurrency_limit_per_connection(MAX_CONCURRENT)
        .max_concurrent_streams(Some(16))
        .max_connection_age(MAX_AGE)
        .max_connection_age_grace(TIMEOUT)
        .http2_keepalive_interval(Some(TIMEOUT))
        .http2_keepalive_timeout(Some(TIMEOUT))
        .http2_max_header_list_size(Some(32 << 10))
        .timeout(TIMEOUT)
        .add_service(CertificateAuthorityServer::new(service).max_decoding_message_size(MAX_REQUEST))
        .serve_with_incoming_shutdown(connections, stop.cancelled_owned());
    let ((), served) = tokio::join!(accept, serve);
    Ok(served?)
}

/// Takes over a rotated CA without being asked. Renews the CA's own leaf at two thirds of its life, and at once after a
/// rotation. Never ends.
async fn keep_current(authority: &Authority, own: Option<(SpiffeId, Arc<IdentityStore>)>) {
    let mut issuer = authority.ca.load_full();
    loop {
        tokio::time::sleep(RELOAD_INTERVAL).await;
        authority.refresh();
        let Some((id, store)) = &own else { continue };
        let current = authority.ca.load_full();
        if Arc::ptr_eq(&issuer, &current) && renewal_time(&store.current(), 0.0) > SystemTime::now() {
            continue;
        }
        match current.issue_identity(id, authority.settings.leaf_ttl, SystemTime::now()) {
            Ok(identity) => store.replace(identity),
            Err(error) => warn!(%error, "the CA's own certificate is not renewed"),
        }
        issuer = current;
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

/// What all listeners share.
#[derive(Debug)]
struct Authority {
    ca: ArcSwap<Ca>,
    /// The folder as it was when it was read last.
    seen: Mutex<Fingerprint>,
    settings: CaSettings,
    uid: u32,
    telemetry: Telemetry,
}

/// The API at one listener.
struct Service {
    authority: Arc<Authority>,
    /// `None`: a Unix socket, where the kernel knows who asks.
    doorkeeper: Option<Arc<Doorkeeper>>,
}

impl Service {
    /// Whom to certify.
    async fn asker<T>(&self, request: &Request<T>) -> Result<(SpiffeId, String), Status> {
        let Some(doorkeeper) = &self.doorkeeper else {
            self.authority.check_user(request)?;
            return Ok((self.authority.settings.gateway.clone(), "socket".to_owned()));
        };
        match doorkeeper.identify(request).await {
            Ok(Asker { id, address, proof }) => {
                if let Proof::CertificateAlone(why) = &proof {
                    warn!(identity = %id, %address, %why, "the token could not be checked; the live certificate counts");
                }
                Ok((id, format!("{proof} from {address}")))
            }
            Err(denial) => Err(self.authority.deny(request, &denial)),
        }
    }
}

impl Authority {
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

    fn check_user<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let caller = request
            .extensions()
            .get::<UdsConnectInfo>()
            .and_then(|info| info.peer_cred)
            .ok_or_else(|| Status::unauthenticated("the kernel does not say who is calling"))?;
        if caller.uid() == self.uid || caller.uid() == 0 {
            return Ok(());
        }
        let detail = format_args!("the caller runs as user {}", caller.uid());
        self.telemetry.refusals.refused(Refusal::Signing, None, detail);
        Err(Status::permission_denied(format!("only user {} may ask for certificates here", self.uid)))
    }

    fn deny<T>(&self, request: &Request<T>, denial: &Denial) -> Status {
        let address =
            request.extensions().get::<Caller>().map_or_else(String::new, |caller| caller.address.to_string());
        let kind = match denial {
            Denial::TooMany | Denial::Busy => Refusal::Overload,
            Denial::Nothing | Denial::Token(_) | Denial::Expired | Denial::TwoIdentities { .. } | Denial::Name(_) => {
                Refusal::Signing
            }
        };
        self.telemetry.refusals.refused(kind, None, format_args!("certificate for {address}: {denial}"));
        denial.status()
    }
}

#[tonic::async_trait]
impl CertificateAuthority for Service {
    async fn sign(&self, request: Request<wire::SignRequest>) -> Result<Response<wire::SignResponse>, Status> {
        let (id, proof) = self.asker(&request).await?;
        // A certificate of the CA before a rotation would be taken for one of after it until it is renewed.
        self.authority.refresh();
        let Authority { ca, settings, telemetry, .. } = &*self.authority;
        let request = request.into_inner();
        let wanted = Duration::from_secs(request.ttl_seconds);
        let ttl = if wanted.is_zero() { settings.leaf_ttl } else { wanted.min(settings.leaf_ttl) };
        let ca = ca.load();
        let chain = ca.issue(&request.csr, &id, ttl, SystemTime::now()).map_err(|error| {
            telemetry.refusals.refused(Refusal::Signing, None, format_args!("certificate for {id}: {error}"));
            Status::invalid_argument(error.to_string())
        })?;
        // Nothing else keeps it, and without it a certificate cannot be revoked.
        let serial = chain.first().and_then(crl::serial).unwrap_or_default();
        info!(identity = %id, ttl = ?ttl, %proof, serial, "certificate issued");
        let keys = (id == settings.gateway).then(|| ca.link_keys());
        Ok(Response::new(wire::SignResponse {
            chain: chain.iter().map(|certificate| certificate.as_ref().to_vec().into()).collect(),
            link_keys: keys.map(|keys| wire::LinkKeys {
                reset: keys.reset.to_vec().into(),
                connection_id: keys.connection_id.to_vec().into(),
                token: keys.token.to_vec().into(),
            }),
        }))
    }

    async fn trust(&self, request: Request<wire::TrustRequest>) -> Result<Response<wire::TrustResponse>, Status> {
        match (&self.doorkeeper, request.extensions().get::<Caller>()) {
            (None, _) => self.authority.check_user(&request)?,
            // All of it is public.
            (Some(doorkeeper), caller) => {
                let admitted = caller.ok_or(Denial::Nothing).and_then(|caller| doorkeeper.admit(caller.address.ip()));
                admitted.map_err(|denial| self.authority.deny(&request, &denial))?;
            }
        }
        // Who asks right after a step of a rotation must not hear of the time before.
        self.authority.refresh();
        let ca = self.authority.ca.load();
        Ok(Response::new(wire::TrustResponse {
            issuer: ca.chain().first().map(|issuer| issuer.as_ref().to_vec().into()).unwrap_or_default(),
            roots: ca.roots().iter().map(|root| root.as_ref().to_vec().into()).collect(),
            crl: Vec::new().into(),
            next: ca.next().iter().map(|certificate| certificate.as_ref().to_vec().into()).collect(),
        }))
    }
}
#[cfg(test)]
mod tests;

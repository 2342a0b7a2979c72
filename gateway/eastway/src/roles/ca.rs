//! The certificate authority: the one role that holds the cluster's CA key.
//!
//! It listens on a Unix socket for the gateway, where it takes who asks from the kernel (`SO_PEERCRED`), on one for each
//! workload outside Kubernetes, whose file says who may come, and on the network, where a service-account token or a
//! live certificate says who asks. A request contributes a public key and nothing else (design: identity).

mod caller;
mod folder;
mod published;
mod rate;
mod workloads;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use eastway_identity::ca::{Ca, CaError, IssueError};
use eastway_identity::local::{ClientAuth, LocalTrust, Wanted, server_config};
use eastway_identity::{IdentityStore, SpiffeId, crl, renewal_time, system_clock};
use eastway_kubernetes::client::{Access, ClientError};
use eastway_kubernetes::tokens::Reviewer;
use eastway_proto::ca::v1 as wire;
use eastway_proto::ca::v1::certificate_authority_server::{CertificateAuthority, CertificateAuthorityServer};
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::UdsConnectInfo;
use tonic::{Request, Response, Status};
use tracing::{info, warn};

use self::caller::{Asker, Denial, Doorkeeper, PER_ADDRESS, Proof};
use self::folder::{Fingerprint, fingerprint};
use self::published::Published;
use self::rate::Rate;
use self::workloads::Workloads;
use crate::config::settings::WorkloadSettings;
use crate::local::listener::{BindError, Caller, LocalListener};
use crate::local::socket::{SocketError, UserSocket};
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
/// Longest life of a connection from the network, or of a workload: who needs one again makes a new one.
const MAX_AGE: Duration = Duration::from_secs(300);
/// Connections of a Unix socket; who holds them all only shuts itself out.
const MAX_CONNECTIONS: usize = 16;
/// Most workloads whose rates are told apart.
const MAX_WORKLOADS: usize = 4096;
/// How long a connection may take to end when its socket is served no more.
const GRACE: Duration = Duration::from_secs(2);

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
    /// A socket for each workload outside Kubernetes; paths distinct.
    pub workloads: Vec<WorkloadSettings>,
    /// The configuration file whose list of workloads is followed; `None`: it stays as it is.
    pub file: Option<PathBuf>,
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
    /// A socket cannot be made.
    #[error(transparent)]
    Socket(#[from] SocketError),
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
    socket: Option<UserSocket>,
    workloads: Workloads,
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
    if settings.socket.is_none() && settings.network.is_none() && settings.workloads.is_empty() {
        return Err(CaStartError::Nowhere);
    }
    let ca = Ca::load(&settings.folder)?;
    let network = match &settings.network {
        Some(network) => Some(Network::bind(network, &ca, settings.leaf_ttl).await?),
        None => None,
    };
    let socket = match &settings.socket {
        Some(path) => Some(UserSocket::bind(path, None)?),
        None => None,
    };
    let workloads = Workloads::bind(&settings)?;
    let sockets = settings.socket.as_ref().map(|path| path.display().to_string());
    let port = network.as_ref().map(|network| network.listener.local_addr().to_string());
    info!(folder = %settings.folder.display(), socket = sockets, network = port, pin = %ca.pin(), "certificate authority loaded");
    let uid = rustix::process::geteuid().as_raw();
    let seen = Mutex::new(fingerprint(&settings.folder));
    let revoked = watch::Sender::new(Arc::new(ca.revoked().collect()));
    let rate = Rate::new(PER_ADDRESS.0, PER_ADDRESS.1, MAX_WORKLOADS, Instant::now());
    let authority = Arc::new(Authority {
        ca: ArcSwap::from_pointee(ca),
        seen,
        settings,
        uid,
        rate,
        telemetry,
        anchors: Published::default(),
        revoked,
    });
    Ok(BoundCa { authority, socket, workloads, network })
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
        let Self { authority, socket, workloads, network } = self;
        let own = network.as_ref().map(|network| (network.id.clone(), Arc::clone(&network.identity)));
        // What ends one ends all.
        let end = stop.child_token();
        let on_socket = async {
            match socket {
                Some(socket) => serve_socket(authority.clone(), Door::Gateway, socket, end.clone()).await,
                None => Ok(()),
            }
        };
        let on_network = async {
            match network {
                Some(network) => serve_network(authority.clone(), network, end.clone()).await,
                None => Ok(()),
            }
        };
        // Also where it serves nothing else, it serves until it is told to stop.
        let for_workloads = async {
            workloads.serve(&authority, end.clone()).await;
            Ok::<_, CaRunError>(())
        };
        let serve = async { tokio::try_join!(on_socket, on_network, for_workloads) };
        let result = tokio::select! {
            result = serve => result.map(|((), (), ())| ()),
            () = keep_current(&authority, own) => Ok(()),
        };
        end.cancel();
        result
    }
}

/// Serves a Unix socket until `stop`, and removes its file.
async fn serve_socket(
    authority: Arc<Authority>,
    door: Door,
    socket: UserSocket,
    stop: CancellationToken,
) -> Result<(), CaRunError> {
    let file = socket.file();
    let overdue = {
        let stop = stop.clone();
        async move {
            stop.cancelled().await;
            sleep(GRACE).await;
        }
    };
    let serve = Server::builder()
        .concurrency_limit_per_connection(MAX_CONCURRENT)
        .max_concurrent_streams(Some(16))
        .max_connection_age(MAX_AGE)
        .max_connection_age_grace(TIMEOUT)
        .http2_max_header_list_size(Some(32 << 10))
        .timeout(TIMEOUT)
        .add_service(
            CertificateAuthorityServer::new(Service { authority, door }).max_decoding_message_size(MAX_REQUEST),
        )
        .serve_with_incoming_shutdown(socket.connections(MAX_CONNECTIONS), stop.cancelled_owned());
    let result = tokio::select! {
        result = serve => result,
        () = overdue => Ok(()),
    };
    file.remove();
    Ok(result?)
}

async fn serve_network(authority: Arc<Authority>, network: Network, stop: CancellationToken) -> Result<(), CaRunError> {
    let Network { listener, identity, id, doorkeeper } = network;
    let known = authority.clone();
    let wanted = Wanted::TrustDomain(id.trust_domain().into());
    let trust = LocalTrust::new(Arc::new(move || known.ca.load().issuers()), wanted);
    let tls = server_config(identity, trust.clone(), ClientAuth::Optional, system_clock())?;
    let refusals = authority.telemetry.refusals.clone();
    let listener = listener.with_revoked(authority.revoked.subscribe());
    let (connections, accept) = listener.accept(tls, trust, refusals, stop.clone());
    let service = Service { authority, door: Door::Network(doorkeeper) };
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
        sleep(RELOAD_INTERVAL).await;
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

/// Who opened a socket, for the log.
fn user<T>(request: &Request<T>) -> String {
    let info = request.extensions().get::<UdsConnectInfo>();
    let caller = info.and_then(|info| info.peer_cred);
    caller.map_or_else(|| "an unknown user".to_owned(), |caller| format!("user {}", caller.uid()))
}

/// What all listeners share.
#[derive(Debug)]
struct Authority {
    ca: ArcSwap<Ca>,
    /// The folder as it was when it was read last.
    seen: Mutex<Fingerprint>,
    settings: CaSettings,
    uid: u32,
    /// How often each workload may ask on its socket.
    rate: Rate<SpiffeId>,
    telemetry: Telemetry,
    anchors: Published,
    /// Who shows one of these gets no other.
    revoked: watch::Sender<Arc<BTreeSet<String>>>,
}

/// The API at one listener.
struct Service {
    authority: Arc<Authority>,
    door: Door,
}

/// Where a request came in, which decides whom it is from.
#[derive(Clone, Debug)]
enum Door {
    /// The Unix socket of the gateway; the kernel knows who asks.
    Gateway,
    /// The Unix socket of one workload: whom the file lets in is this.
    Workload(SpiffeId),
    /// The network.
    Network(Arc<Doorkeeper>),
}

impl Service {
    /// Whom to certify.
    async fn asker<T>(&self, request: &Request<T>) -> Result<(SpiffeId, String), Status> {
        let doorkeeper = match &self.door {
            Door::Gateway => {
                self.authority.check_user(request)?;
                return Ok((self.authority.settings.gateway.clone(), "socket".to_owned()));
            }
            Door::Workload(id) => {
                self.authority.check_rate(id)?;
                return Ok((id.clone(), format!("its socket, opened by {}", user(request))));
            }
            Door::Network(doorkeeper) => doorkeeper,
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
                self.revoked.send_replace(Arc::new(ca.revoked().collect()));
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

    /// The connection may have been let in before it was known that what was shown is revoked.
    fn check_certificate<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let shown = request.extensions().get::<Caller>().and_then(|caller| caller.identity.as_ref());
        match shown {
            Some(shown) if self.revoked.borrow().contains(&*shown.serial) => Err(self.deny(request, &Denial::Revoked)),
            _ => Ok(()),
        }
    }

    /// One workload that asks without end must not keep the others from their certificates.
    fn check_rate(&self, id: &SpiffeId) -> Result<(), Status> {
        if self.rate.admit(id.clone(), Instant::now()) {
            return Ok(());
        }
        self.telemetry.refusals.refused(
            Refusal::Overload,
            None,
            format_args!("certificate for {id}: too many requests"),
        );
        Err(Denial::TooMany.status())
    }

    fn deny<T>(&self, request: &Request<T>, denial: &Denial) -> Status {
        let address =
            request.extensions().get::<Caller>().map_or_else(String::new, |caller| caller.address.to_string());
        let kind = match denial {
            Denial::TooMany | Denial::Busy => Refusal::Overload,
            Denial::Nothing
            | Denial::Token(_)
            | Denial::Expired
            | Denial::Revoked
            | Denial::TwoIdentities { .. }
            | Denial::Name(_) => Refusal::Signing,
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
        self.authority.check_certificate(&request)?;
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
        let keys = match &self.door {
            Door::Workload(_) => None,
            Door::Gateway | Door::Network(_) => (id == settings.gateway).then(|| ca.link_keys()),
        };
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
        match &self.door {
            Door::Gateway => self.authority.check_user(&request)?,
            Door::Workload(id) => self.authority.check_rate(id)?,
            // All of it is public.
            Door::Network(doorkeeper) => {
                let caller = request.extensions().get::<Caller>();
                let admitted = caller.ok_or(Denial::Nothing).and_then(|caller| doorkeeper.admit(caller.address.ip()));
                admitted.map_err(|denial| self.authority.deny(&request, &denial))?;
            }
        }
        // Who asks right after a step of a rotation must not hear of the time before.
        self.authority.refresh();
        let ca = self.authority.ca.load_full();
        Ok(Response::new(wire::TrustResponse {
            issuer: ca.chain().first().map(|issuer| issuer.as_ref().to_vec().into()).unwrap_or_default(),
            roots: ca.roots().iter().map(|root| root.as_ref().to_vec().into()).collect(),
            crl: Vec::new().into(),
            anchors: self.authority.anchors.of(&ca, self.authority.settings.gateway.trust_domain())?,
            next: ca.next().iter().map(|certificate| certificate.as_ref().to_vec().into()).collect(),
        }))
    }
}

#[cfg(test)]
mod tests;

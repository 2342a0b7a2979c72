//! How a role gets its certificate: from the CA role, over a Unix socket or over the network, with a key that never
//! leaves this process, unless it is to be kept over a restart.

mod kept;
mod wallet;

use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use eastway_identity::ca::{CaError, LinkKeys, public_issuers};
use eastway_identity::local::{LocalTrust, Wanted, client_config};
use eastway_identity::{
    AnchorDer, Identity, IdentityError, IdentityStore, KeyError, PrivateKey, SpiffeId, SpkiPin, csr, renewal_time,
    system_clock,
};
use eastway_proto::ca::v1 as wire;
use eastway_proto::ca::v1::certificate_authority_client::CertificateAuthorityClient;
use hyper_util::rt::TokioIo;
use rustls_pki_types::CertificateDer;
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;
use tracing::{info, warn};

use crate::config::value::HostPort;
use crate::local::dial::{DialError, dial};

pub use wallet::Wallet;

/// How long one request to the CA may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How often a CA on this machine is asked whether it was rotated, and one on the network.
const TRUST_INTERVAL: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(30));
/// How often a CA on this machine is asked what is revoked, and one on the network, where a Secret takes longer anyway.
const ANCHORS_INTERVAL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));
/// Shortest and longest pause after a failed request.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// For so long failures are not logged, and a CA on this machine is asked often: one that starts beside this takes a moment.
const QUICK: Duration = Duration::from_secs(1);
/// Between two lines about failures.
const LOGGED: Duration = Duration::from_secs(30);
/// Longest token file.
const MAX_TOKEN: u64 = 16 << 10;

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    /// The CA role does not listen there.
    #[error("cannot reach the certificate authority at {path}: {source}; {}", advice(.source))]
    Connect {
        /// Its socket.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// It takes the connection and says nothing.
    #[error("the certificate authority at {0} does not answer")]
    Silent(String),
    /// The CA role on the network cannot be reached, or is not the one.
    #[error("certificate authority: {0}")]
    Dial(#[from] DialError),
    /// Nothing says how the CA on the network is known.
    #[error("no CA certificate in {folder} to know the certificate authority by: {source}")]
    Anchors {
        /// The folder.
        folder: PathBuf,
        /// What is wrong with it.
        #[source]
        source: CaError,
    },
    /// The provider lacks TLS 1.3.
    #[error("no TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// There is no token.
    #[error("cannot read the service-account token {path}: {source}; is it projected with the audience eastway-ca?")]
    Token {
        /// Its file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: io::Error,
    },
    /// The CA role refused.
    #[error("the certificate authority refused ({}): {}", .0.code(), .0.message())]
    Refused(#[from] Box<tonic::Status>),
    /// What came back is not a certificate for our key.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// No key could be made.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The answer lacks the keys that replicas share.
    #[error("the certificate authority sent no link keys")]
    NoLinkKeys,
}

impl EnrollError {
    /// Whether there was no answer at all: TLS 1.3 tells a client only then that its certificate is refused.
    fn is_of_the_connection(&self) -> bool {
        use tonic::Code;
        match self {
            Self::Dial(_) | Self::Silent(_) => true,
            Self::Refused(status) => {
                matches!(status.code(), Code::Unknown | Code::Unavailable | Code::Internal | Code::Cancelled)
            }
            Self::Connect { .. }
            | Self::Anchors { .. }
            | Self::Tls(_)
            | Self::Token { .. }
            | Self::Identity(_)
            | Self::Key(_)
            | Self::NoLinkKeys => false,
        }
    }
}

/// What to do about a socket that cannot be opened.
fn advice(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::PermissionDenied {
        "this user may not open it"
    } else {
        "is `eastway ca` running?"
    }
}

/// A way to the CA role.
#[derive(Clone, Debug)]
pub struct CaClient {
    way: Way,
    keep: Option<Arc<kept::Keep>>,
}

#[derive(Clone, Debug)]
enum Way {
    Socket(PathBuf),
    Network(Arc<NetworkCa>),
}

/// A CA role on the network.
#[derive(Clone, Debug)]
pub struct NetworkCa {
    /// Where it is.
    pub address: HostPort,
    /// Its identity.
    pub identity: SpiffeId,
    /// Folder with the public half of the cluster's CA, read anew for each connection.
    pub anchors: PathBuf,
    /// File with our service-account token, read anew for each request.
    pub token: PathBuf,
}

/// A certificate with its key, and what came with it.
#[derive(Debug)]
pub struct Enrolled {
    /// Who we are.
    pub identity: Identity,
    /// The leaf's key, for who must hand it on.
    pub key: PrivateKey,
    /// Only for gateways: the keys that all replicas share.
    pub link_keys: Option<LinkKeys>,
}

impl CaClient {
    /// A client of the CA that listens on the Unix socket `path`.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { way: Way::Socket(path), keep: None }
    }

    /// A client of a CA on the network.
    #[must_use]
    pub fn network(ca: NetworkCa) -> Self {
        Self { way: Way::Network(Arc::new(ca)), keep: None }
    }

    /// Makes a key and has it signed. `current` is shown to a CA on the network beside the token: it counts if the
    /// token cannot be checked at the moment.
    ///
    /// # Errors
    /// [`EnrollError`]
    pub async fn enroll(&self, ttl: Duration, current: Option<&Arc<IdentityStore>>) -> Result<Enrolled, EnrollError> {
        let asked = self.enroll_as(ttl, current).await;
        match asked {
            Err(error) if self.may_be_forgotten(current, &error) => self.enroll_as(ttl, None).await.or(Err(error)),
            asked => asked,
        }
    }

    /// A CA that has forgotten the key which signed our certificate, because a rotation was finished before we renewed it,
    /// refuses the connection on which we show it. Who we are is known by the token as well.
    fn may_be_forgotten(&self, current: Option<&Arc<IdentityStore>>, error: &EnrollError) -> bool {
        matches!(self.way, Way::Network(_)) && current.is_some() && error.is_of_the_connection()
    }

    async fn enroll_as(&self, ttl: Duration, current: Option<&Arc<IdentityStore>>) -> Result<Enrolled, EnrollError> {
        let (key, csr) = csr::new_key_and_csr()?;
        let mut request = tonic::Request::new(wire::SignRequest { csr: csr.into(), ttl_seconds: ttl.as_secs() });
        if let Way::Network(ca) = &self.way {
            match token(&ca.token).await {
                Ok(header) => drop(request.metadata_mut().insert("authorization", header)),
                // The certificate alone is good too.
                Err(_) if current.is_some() => {}
                Err(source) => return Err(EnrollError::Token { path: ca.token.clone(), source }),
            }
        }
        request.set_timeout(2 * TIMEOUT);
        let mut client = self.connect(current).await?;
        let response = self.answer(client.sign(request)).await?;
        let chain = response.chain.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
        let identity = Identity::new(chain, &key)?;
        let link_keys = response.link_keys.as_ref().and_then(link_keys);
        let enrolled = Enrolled { identity, key, link_keys };
        if let Some(keep) = &self.keep {
            keep.save(&enrolled);
        }
        Ok(enrolled)
    }

    /// The certificate of the key that signs now.
    async fn issuer(&self, wallet: &impl Wallet) -> Result<Bytes, EnrollError> {
        let wire::TrustResponse { issuer, next, .. } = self.trust(Some(wallet.store())).await?;
        let certificate = |der: &Bytes| CertificateDer::from(der.to_vec());
        wallet.heard(&certificate(&issuer), &next.iter().map(certificate).collect::<Vec<_>>());
        Ok(issuer)
    }

    /// The CA that will sign next, while a rotation is announced. `current`: the caller's certificate, if it has one.
    ///
    /// # Errors
    /// [`EnrollError`]
    pub async fn next_ca(&self, current: Option<&Arc<IdentityStore>>) -> Result<Option<NextCa>, EnrollError> {
        Ok(next_ca(&self.trust(current).await?.next))
    }

    /// What this trust domain is known by to sidecars, as the CA says. `current`: the caller's certificate, if it has one.
    ///
    /// # Errors
    /// [`EnrollError`]
    pub async fn anchors(&self, current: Option<&Arc<IdentityStore>>) -> Result<Vec<AnchorDer>, EnrollError> {
        let der =
            |anchor: wire::Anchor| AnchorDer { certificate: anchor.certificate.to_vec(), crl: anchor.crl.to_vec() };
        Ok(self.trust(current).await?.anchors.into_iter().map(der).collect())
    }

    /// How often to ask for anchors: what is revoked must not be trusted for long.
    pub(crate) fn anchors_interval(&self) -> Duration {
        match &self.way {
            Way::Socket(_) => ANCHORS_INTERVAL.0,
            Way::Network(_) => ANCHORS_INTERVAL.1,
        }
    }

    async fn trust(&self, current: Option<&Arc<IdentityStore>>) -> Result<wire::TrustResponse, EnrollError> {
        let asked = self.trust_as(current).await;
        match asked {
            Err(error) if self.may_be_forgotten(current, &error) => self.trust_as(None).await.or(Err(error)),
            asked => asked,
        }
    }

    async fn trust_as(&self, current: Option<&Arc<IdentityStore>>) -> Result<wire::TrustResponse, EnrollError> {
        let mut request = tonic::Request::new(wire::TrustRequest {});
        request.set_timeout(2 * TIMEOUT);
        let mut client = self.connect(current).await?;
        self.answer(client.trust(request)).await
    }

    /// What is answered in time. The request's own time is longer: who is silent is told apart from who refuses.
    async fn answer<T>(
        &self,
        answer: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T, EnrollError> {
        match timeout(TIMEOUT, answer).await {
            Ok(answer) => Ok(answer.map_err(Box::new)?.into_inner()),
            Err(_) => Err(EnrollError::Silent(match &self.way {
                Way::Socket(path) => path.display().to_string(),
                Way::Network(ca) => ca.address.to_string(),
            })),
        }
    }

    async fn connect(
        &self,
        current: Option<&Arc<IdentityStore>>,
    ) -> Result<CertificateAuthorityClient<Channel>, EnrollError> {
        let channel = match &self.way {
            Way::Socket(path) => connect_socket(path).await?,
            Way::Network(ca) => connect_network(ca, current).await?,
        };
        Ok(CertificateAuthorityClient::new(channel))
    }

    fn trust_interval(&self) -> Duration {
        match &self.way {
            Way::Socket(_) => TRUST_INTERVAL.0,
            Way::Network(_) => TRUST_INTERVAL.1,
        }
    }
}

async fn connect_socket(path: &Path) -> Result<Channel, EnrollError> {
    let failed = |source| EnrollError::Connect { path: path.to_owned(), source };
    let stream = UnixStream::connect(path).await.map_err(|error| failed(no_socket(path).unwrap_or(error)))?;
    let stream = Mutex::new(Some(TokioIo::new(stream)));
    let connector = service_fn(move |_: Uri| {
        let stream = stream.lock().unwrap_or_else(PoisonError::into_inner).take();
        std::future::ready(stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)))
    });
    let channel = Endpoint::from_static("http://ca").connect_with_connector(connector).await;
    channel.map_err(|error| failed(io::Error::other(error)))
}

/// A file that is something else is said to refuse the connection.
fn no_socket(path: &Path) -> Option<io::Error> {
    let is_socket = std::fs::metadata(path).ok()?.file_type().is_socket();
    (!is_socket).then(|| io::Error::other("it is not a socket"))
}

async fn connect_network(ca: &NetworkCa, current: Option<&Arc<IdentityStore>>) -> Result<Channel, EnrollError> {
    let issuers =
        public_issuers(&ca.anchors).map_err(|source| EnrollError::Anchors { folder: ca.anchors.clone(), source })?;
    let trust = LocalTrust::new(Arc::new(move || issuers.clone()), Wanted::Identity(ca.identity.clone()));
    // One that has ended would make the CA refuse the connection.
    let live = current.filter(|store| store.current().not_after() > SystemTime::now());
    let tls = client_config(live.cloned(), trust, system_clock())?;
    Ok(dial(&ca.address, tls).await?)
}

/// The value of the `authorization` header.
async fn token(path: &Path) -> io::Result<MetadataValue<tonic::metadata::Ascii>> {
    // Opening a pipe would wait for its writer.
    if !tokio::fs::metadata(path).await?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let file = tokio::fs::File::open(path).await?;
    let mut text = String::new();
    file.take(MAX_TOKEN).read_to_string(&mut text).await?;
    let mut value = MetadataValue::try_from(format!("Bearer {}", text.trim()))
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is no token"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// The CA that a rotation announced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextCa {
    /// Its key, then those of its roots: who accepts one of them will accept what it issues.
    pins: Vec<SpkiPin>,
}

impl NextCa {
    /// Its own key.
    #[must_use]
    pub fn pin(&self) -> Option<SpkiPin> {
        self.pins.first().copied()
    }

    /// Whether who accepts `pins` accepts what this CA issues.
    #[must_use]
    pub fn is_accepted_by(&self, pins: &[SpkiPin]) -> bool {
        self.pins.iter().any(|pin| pins.contains(pin))
    }
}

fn next_ca(chain: &[Bytes]) -> Option<NextCa> {
    let pin = |der: &Bytes| SpkiPin::of_certificate(&CertificateDer::from(der.to_vec())).ok();
    let pins: Vec<_> = chain.iter().filter_map(pin).collect();
    (!pins.is_empty()).then_some(NextCa { pins })
}

fn link_keys(keys: &wire::LinkKeys) -> Option<LinkKeys> {
    Some(LinkKeys {
        reset: keys.reset.as_ref().try_into().ok()?,
        connection_id: keys.connection_id.as_ref().try_into().ok()?,
        token: keys.token.as_ref().try_into().ok()?,
    })
}

/// Asks until there is a certificate for a gateway, with the keys that its replicas share. What fails for a second is
/// logged, and then once in a while. One that was kept over a restart does while nobody answers.
pub async fn until_enrolled(client: &CaClient, ttl: Duration) -> (Identity, LinkKeys) {
    if let Some(Enrolled { identity, link_keys: Some(keys), .. }) = kept::enroll(client, ttl).await {
        return (identity, keys);
    }
    until(client, || async {
        let Enrolled { identity, link_keys, .. } = client.enroll(ttl, None).await?;
        Ok((identity, link_keys.ok_or(EnrollError::NoLinkKeys)?))
    })
    .await
}

/// Asks until there is a certificate, for a role that holds no links. One that was kept over a restart does while nobody
/// answers.
pub async fn until_certified(client: &CaClient, ttl: Duration) -> Enrolled {
    if let Some(kept) = kept::enroll(client, ttl).await {
        return kept;
    }
    until(client, || client.enroll(ttl, None)).await
}

async fn until<T, F: Future<Output = Result<T, EnrollError>>>(client: &CaClient, ask: impl Fn() -> F) -> T {
    let begun = Instant::now();
    let (mut attempt, mut next_line) = (0_u32, begun + QUICK);
    loop {
        match ask().await {
            Ok(enrolled) => return enrolled,
            Err(error) => {
                if next_line <= Instant::now() {
                    warn!(%error, "no certificate yet, asking again");
                    next_line = Instant::now() + LOGGED;
                }
                attempt = attempt.wrapping_add(1);
                let pause = match &client.way {
                    Way::Socket(_) if begun.elapsed() < QUICK => RETRY.0 / 4,
                    Way::Socket(_) => RETRY.0 * 5,
                    // Each attempt costs the API server a question.
                    Way::Network(_) => RETRY.0.saturating_mul(1 << attempt.min(8)).min(RETRY.1),
                };
                tokio::time::sleep(pause.mul_f64(1.0 + fastrand::f64() / 4.0)).await;
            }
        }
    }
}

/// Keeps the certificate fresh: at two thirds of its life, and at once when the CA was rotated.
/// Runs until `stop`; failures are retried while the old certificate lasts.
pub async fn keep_fresh(client: CaClient, ttl: Duration, wallet: impl Wallet, stop: CancellationToken) {
    // As a whole: who stops does not wait for a CA that says nothing.
    let _stopped = stop.run_until_cancelled(renew_in_time(client, ttl, wallet)).await;
}

async fn renew_in_time(client: CaClient, ttl: Duration, wallet: impl Wallet) {
    let store = Arc::clone(wallet.store());
    let interval = client.trust_interval();
    let jitter = fastrand::f64();
    let until_renewal = |store: &IdentityStore| until_renewal(store, jitter);
    let until_look = |store: &IdentityStore| interval.min(until_renewal(store)).max(RETRY.0);
    let mut issuer = client.issuer(&wallet).await.ok();
    let mut pause = until_look(&store);
    loop {
        tokio::time::sleep(pause).await;
        pause = until_look(&store);
        let now = client.issuer(&wallet).await.ok();
        let rotated = now.is_some() && issuer.is_some() && now != issuer;
        if issuer.is_none() {
            issuer.clone_from(&now);
        }
        if !rotated && !until_renewal(&store).is_zero() {
            continue;
        }
        match client.enroll(ttl, Some(&store)).await {
            Ok(enrolled) => {
                info!(rotated, identity = %enrolled.identity.id(), "certificate renewed");
                wallet.renewed(enrolled);
                // Only now: a renewal that failed is still due to the rotation.
                issuer = now.or(issuer);
                pause = until_look(&store);
            }
            Err(error) => {
                warn!(%error, "certificate not renewed, retrying");
                pause = RETRY.1.min(until_expiry(&store) / 4).max(RETRY.0);
            }
        }
    }
}

fn until_renewal(store: &IdentityStore, jitter: f64) -> Duration {
    renewal_time(&store.current(), jitter).duration_since(SystemTime::now()).unwrap_or_default()
}

fn until_expiry(store: &IdentityStore) -> Duration {
    store.current().not_after().duration_since(SystemTime::now()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use eastway_identity::SpiffeId;
    use eastway_identity::ca::{Ca, InitOptions};

    use super::*;
    use crate::local::socket::SocketError;
    use crate::roles::ca::{self, CaSettings, CaStartError};
    use crate::telemetry::{AccessMode, Telemetry};

    fn telemetry() -> Telemetry {
        Telemetry::new(AccessMode::Off)
    }

    fn settings(folder: &Path) -> CaSettings {
        CaSettings {
            folder: folder.join("cacerts"),
            socket: Some(folder.join("run/ca.sock")),
            network: None,
            gateway: SpiffeId::gateway("onprem.example").unwrap(),
            workloads: Vec::new(),
            file: None,
            leaf_ttl: Duration::from_secs(3600),
        }
    }

    #[tokio::test]
    async fn i10_a_gateway_gets_a_leaf_for_a_key_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let settings = settings(folder.path());
        Ca::init(&settings.folder, &InitOptions::new("onprem.example")).unwrap();
        let stop = CancellationToken::new();
        let server = tokio::spawn(ca::bind(settings.clone(), telemetry()).await.unwrap().run(stop.clone()));

        let socket = settings.socket.clone().unwrap();
        let client = CaClient::new(socket.clone());
        let (identity, keys) = until_enrolled(&client, Duration::from_secs(24 * 3600)).await;
        assert_eq!(*identity.id(), settings.gateway);
        let life = identity.not_after().duration_since(SystemTime::now()).unwrap();
        assert!(life <= settings.leaf_ttl, "the CA shortens what is too long: {life:?}");
        let (other, same) = until_enrolled(&client, settings.leaf_ttl).await;
        assert_eq!((keys.reset, keys.token), (same.reset, same.token), "replicas share these");
        assert_ne!(identity.leaf_sha256(), other.leaf_sha256());

        stop.cancel();
        server.await.unwrap().unwrap();
        assert!(!socket.exists(), "nothing is left behind");
        let gone = client.enroll(settings.leaf_ttl, None).await.unwrap_err();
        assert!(gone.to_string().contains("is `eastway ca` running?"), "{gone}");
    }

    #[tokio::test]
    async fn what_is_no_ca_is_told_in_words() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.sock");
        let said = async || CaClient::new(path.clone()).enroll(LOGGED, None).await.unwrap_err().to_string();
        let missing = said().await;
        assert!(missing.contains("No such file") && missing.ends_with("is `eastway ca` running?"), "{missing}");
        std::fs::write(&path, "").unwrap();
        let file = said().await;
        assert!(file.contains("ca.sock: it is not a socket"), "{file}");
        std::fs::remove_file(&path).unwrap();
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let dead = said().await;
        assert!(dead.contains("Connection refused") && dead.ends_with("is `eastway ca` running?"), "{dead}");
        let source = io::Error::from(io::ErrorKind::PermissionDenied);
        let forbidden = EnrollError::Connect { path, source }.to_string();
        assert!(forbidden.ends_with("permission denied; this user may not open it"), "{forbidden}");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_accepts_and_says_nothing_is_told_from_one_that_refuses() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.sock");
        let _listens = tokio::net::UnixListener::bind(&path).unwrap();
        let begun = Instant::now();
        let silent = CaClient::new(path).enroll(LOGGED, None).await.unwrap_err();
        assert!(silent.to_string().ends_with("ca.sock does not answer"), "{silent}");
        assert!(silent.is_of_the_connection() && begun.elapsed() < 2 * TIMEOUT, "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewal_that_stops_does_not_wait_for_an_authority_that_says_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let ca = Ca::init(&folder.path().join("cacerts"), &InitOptions::new("onprem.example")).unwrap();
        let gateway = SpiffeId::gateway("onprem.example").unwrap();
        let store = IdentityStore::new(ca.issue_identity(&gateway, LOGGED, SystemTime::now()).unwrap());
        let path = folder.path().join("ca.sock");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let stop = CancellationToken::new();
        let keeper = tokio::spawn(keep_fresh(CaClient::new(path), LOGGED, store, stop.clone()));
        let _asked = listener.accept().await.unwrap();
        stop.cancel();
        timeout(TIMEOUT / 10, keeper).await.expect("it ends at once").unwrap();
    }

    #[tokio::test]
    async fn a_second_authority_on_one_socket_is_refused_and_a_dead_ones_socket_is_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        let settings = settings(folder.path());
        Ca::init(&settings.folder, &InitOptions::new("onprem.example")).unwrap();
        let first = ca::bind(settings.clone(), telemetry()).await.unwrap();
        assert!(matches!(
            ca::bind(settings.clone(), telemetry()).await,
            Err(CaStartError::Socket(SocketError::InUse(_)))
        ));
        drop(first);
        assert!(settings.socket.as_ref().unwrap().exists(), "as after SIGKILL");
        ca::bind(settings, telemetry()).await.unwrap();
    }
}

//! How the gateway role gets its certificate: from the CA role over a Unix socket, with a key that
//! never leaves this process.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use eastway_identity::ca::LinkKeys;
use eastway_identity::{Identity, IdentityError, IdentityStore, KeyError, SpkiPin, csr, renewal_time};
use eastway_proto::ca::v1 as wire;
use eastway_proto::ca::v1::certificate_authority_client::CertificateAuthorityClient;
use hyper_util::rt::TokioIo;
use rustls_pki_types::CertificateDer;
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;
use tracing::{info, warn};

/// How long one request to the CA may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How often the CA is asked whether it was rotated.
const TRUST_INTERVAL: Duration = Duration::from_secs(5);
/// Shortest and longest pause after a failed renewal.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    /// The CA role does not listen there.
    #[error("cannot reach the certificate authority at {path}: {source}; is `eastway ca` running?")]
    Connect {
        /// Its socket.
        path: PathBuf,
        /// The transport's error.
        #[source]
        source: tonic::transport::Error,
    },
    /// The CA role refused.
    #[error("the certificate authority refused: {0}")]
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

/// A connection to the CA role.
#[derive(Clone, Debug)]
pub struct CaClient {
    path: PathBuf,
}

impl CaClient {
    /// A client of the CA that listens on `path`.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Makes a key, has it signed, and returns both with the keys that all replicas share.
    ///
    /// # Errors
    /// [`EnrollError`]
    pub async fn enroll(&self, ttl: Duration) -> Result<(Identity, LinkKeys), EnrollError> {
        let (key, csr) = csr::new_key_and_csr()?;
        let request = wire::SignRequest { csr: csr.into(), ttl_seconds: ttl.as_secs() };
        let mut client = self.connect().await?;
        let response = client.sign(request).await.map_err(Box::new)?.into_inner();
        let chain = response.chain.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
        let keys = response.link_keys.ok_or(EnrollError::NoLinkKeys)?;
        let identity = Identity::new(chain, &key)?;
        Ok((identity, link_keys(&keys).ok_or(EnrollError::NoLinkKeys)?))
    }

    /// The certificate of the key that signs now.
    async fn issuer(&self) -> Result<Bytes, EnrollError> {
        Ok(self.trust().await?.issuer)
    }

    /// The CA that will sign next, while a rotation is announced.
    ///
    /// # Errors
    /// [`EnrollError`]
    pub async fn next_ca(&self) -> Result<Option<NextCa>, EnrollError> {
        Ok(next_ca(&self.trust().await?.next))
    }

    async fn trust(&self) -> Result<wire::TrustResponse, EnrollError> {
        let mut client = self.connect().await?;
        Ok(client.trust(wire::TrustRequest {}).await.map_err(Box::new)?.into_inner())
    }

    async fn connect(&self) -> Result<CertificateAuthorityClient<Channel>, EnrollError> {
        let path = self.path.clone();
        let connector = service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        // The name is not looked at: the connector knows only the socket.
        let endpoint = Endpoint::from_static("http://ca").timeout(TIMEOUT).connect_timeout(TIMEOUT);
        let channel = endpoint.connect_with_connector(connector).await;
        let channel = channel.map_err(|source| EnrollError::Connect { path: self.path.clone(), source })?;
        Ok(CertificateAuthorityClient::new(channel))
    }
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

/// Attempts in quick succession: a ca role that starts beside this one takes a moment.
const QUICK: u32 = 20;

/// Asks until there is a certificate. What fails for a second is logged, and then once in a while.
pub async fn until_enrolled(client: &CaClient, ttl: Duration) -> (Identity, LinkKeys) {
    let mut attempt = 0_u32;
    loop {
        match client.enroll(ttl).await {
            Ok(enrolled) => return enrolled,
            Err(error) => {
                if attempt.checked_sub(QUICK).is_some_and(|late| late.is_multiple_of(50)) {
                    warn!(%error, "no certificate yet, asking again");
                }
                attempt = attempt.wrapping_add(1);
                tokio::time::sleep(if attempt < QUICK { RETRY.0 / 4 } else { RETRY.0 * 5 }).await;
            }
        }
    }
}

/// Keeps the certificate fresh: at two thirds of its life, and at once when the CA was rotated.
/// Runs until `stop`; failures are retried while the old certificate lasts.
pub async fn keep_fresh(client: CaClient, ttl: Duration, store: Arc<IdentityStore>, stop: CancellationToken) {
    let mut issuer = client.issuer().await.ok();
    let mut pause = TRUST_INTERVAL;
    while stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
        pause = TRUST_INTERVAL.min(until_renewal(&store));
        let now = client.issuer().await.ok();
        let rotated = now.is_some() && issuer.is_some() && now != issuer;
        if issuer.is_none() {
            issuer.clone_from(&now);
        }
        if !rotated && !until_renewal(&store).is_zero() {
            continue;
        }
        match client.enroll(ttl).await {
            Ok((identity, _keys)) => {
                info!(rotated, identity = %identity.id(), "certificate renewed");
                store.replace(identity);
                // Only now: a renewal that failed is still due to the rotation.
                issuer = now.or(issuer);
                pause = TRUST_INTERVAL.min(until_renewal(&store));
            }
            Err(error) => {
                warn!(%error, "certificate not renewed, retrying");
                pause = RETRY.1.min(until_expiry(&store) / 4).max(RETRY.0);
            }
        }
    }
}

fn until_renewal(store: &IdentityStore) -> Duration {
    renewal_time(&store.current(), 0.0).duration_since(SystemTime::now()).unwrap_or_default()
}

fn until_expiry(store: &IdentityStore) -> Duration {
    store.current().not_after().duration_since(SystemTime::now()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use eastway_identity::SpiffeId;
    use eastway_identity::ca::{Ca, InitOptions};

    use super::*;
    use crate::roles::ca::{self, CaSettings, CaStartError};

    fn settings(folder: &std::path::Path) -> CaSettings {
        CaSettings {
            folder: folder.join("cacerts"),
            socket: folder.join("run/ca.sock"),
            gateway: SpiffeId::gateway("onprem.example").unwrap(),
            leaf_ttl: Duration::from_secs(3600),
        }
    }

    #[tokio::test]
    async fn i10_a_gateway_gets_a_leaf_for_a_key_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let settings = settings(folder.path());
        Ca::init(&settings.folder, &InitOptions::new("onprem.example")).unwrap();
        let stop = CancellationToken::new();
        let server = tokio::spawn(ca::bind(settings.clone()).unwrap().run(stop.clone()));

        let client = CaClient::new(settings.socket.clone());
        let (identity, keys) = client.enroll(Duration::from_secs(24 * 3600)).await.unwrap();
        assert_eq!(*identity.id(), settings.gateway);
        let life = identity.not_after().duration_since(SystemTime::now()).unwrap();
        assert!(life <= settings.leaf_ttl, "the CA shortens what is too long: {life:?}");
        let (other, same) = client.enroll(settings.leaf_ttl).await.unwrap();
        assert_eq!((keys.reset, keys.token), (same.reset, same.token), "replicas share these");
        assert_ne!(identity.leaf_sha256(), other.leaf_sha256());

        stop.cancel();
        server.await.unwrap().unwrap();
        assert!(!settings.socket.exists(), "nothing is left behind");
        let gone = client.enroll(settings.leaf_ttl).await.unwrap_err();
        assert!(gone.to_string().contains("is `eastway ca` running?"), "{gone}");
    }

    #[tokio::test]
    async fn a_second_authority_on_one_socket_is_refused_and_a_dead_ones_socket_is_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        let settings = settings(folder.path());
        Ca::init(&settings.folder, &InitOptions::new("onprem.example")).unwrap();
        let first = ca::bind(settings.clone()).unwrap();
        assert!(matches!(ca::bind(settings.clone()), Err(CaStartError::InUse(_))));
        drop(first);
        assert!(settings.socket.exists(), "as after SIGKILL");
        ca::bind(settings).unwrap();
    }
}

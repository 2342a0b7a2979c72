//! Who asks the certificate authority: never taken from the request's body.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use eastway_identity::{SpiffeId, SpiffeIdError};
use eastway_kubernetes::tokens::{self, ReviewError, Reviewer};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tonic::{Request, Status};

use super::rate::Rate;
use crate::local::listener::Caller;

/// Questions to the API server at once, and the longest wait for a place.
const REVIEWS: usize = 8;
const WAIT: Duration = Duration::from_secs(2);
/// Requests of one address: a few processes behind it, each of which asks a few times in its life.
pub(super) const PER_ADDRESS: (f64, f64) = (5.0, 30.0);
/// Requests of one identity: many replicas may start together.
const PER_IDENTITY: (f64, f64) = (10.0, 200.0);
/// Most addresses, and most identities, that are told apart.
const MOST: usize = 16_384;

/// Who asks, and how that is known.
#[derive(Debug)]
pub(super) struct Asker {
    pub(super) id: SpiffeId,
    pub(super) address: SocketAddr,
    pub(super) proof: Proof,
}

/// What an identity was proved by.
#[derive(Debug)]
pub(super) enum Proof {
    /// A token, by the word of the API server.
    Token(tokens::Caller),
    /// A certificate of ours that has not ended.
    Certificate,
    /// Such a certificate, while the API server could not be asked about the token.
    CertificateAlone(String),
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Token(tokens::Caller { pod: Some((pod, _)), .. }) => write!(f, "token of pod {pod}"),
            Self::Token(_) => f.write_str("token"),
            Self::Certificate => f.write_str("certificate"),
            Self::CertificateAlone(why) => write!(f, "certificate ({why})"),
        }
    }
}

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum Denial {
    #[error("show a service-account token for the audience eastway-ca, or a certificate of this cluster's CA")]
    Nothing,
    #[error(transparent)]
    Token(ReviewError),
    #[error("the certificate has ended")]
    Expired,
    #[error("the certificate is revoked")]
    Revoked,
    #[error("the token is of {token}, the certificate of {certificate}")]
    TwoIdentities { token: SpiffeId, certificate: SpiffeId },
    #[error("the account makes no identity: {0}")]
    Name(#[from] SpiffeIdError),
    #[error("too many requests")]
    TooMany,
    #[error("too many tokens are being checked")]
    Busy,
}

impl Denial {
    pub(super) fn status(&self) -> Status {
        let text = self.to_string();
        match self {
            Self::Token(ReviewError::Unavailable(_)) => Status::unavailable(text),
            Self::Nothing | Self::Token(_) | Self::Expired | Self::Revoked => Status::unauthenticated(text),
            Self::TwoIdentities { .. } | Self::Name(_) => Status::permission_denied(text),
            Self::TooMany | Self::Busy => Status::resource_exhausted(text),
        }
    }
}

/// Tells callers from the network apart.
#[derive(Debug)]
pub(super) struct Doorkeeper {
    trust_domain: Arc<str>,
    reviewer: Reviewer,
    reviews: Semaphore,
    by_address: Rate<IpAddr>,
    by_identity: Rate<SpiffeId>,
}

impl Doorkeeper {
    pub(super) fn new(trust_domain: Arc<str>, reviewer: Reviewer) -> Self {
        let now = Instant::now();
        Self {
            trust_domain,
            reviewer,
            reviews: Semaphore::new(REVIEWS),
            by_address: Rate::new(PER_ADDRESS.0, PER_ADDRESS.1, MOST, now),
            by_identity: Rate::new(PER_IDENTITY.0, PER_IDENTITY.1, MOST, now),
        }
    }

    /// Whether an address may ask now. To be asked before anything is done for it.
    pub(super) fn admit(&self, address: IpAddr) -> Result<(), Denial> {
        if self.by_address.admit(address.to_canonical(), Instant::now()) { Ok(()) } else { Err(Denial::TooMany) }
    }

    /// Who sent a request. A token is always checked, and counts more than a certificate: so an account that was
    /// deleted gets nothing new. Only while the API server does not answer, a certificate is enough by itself.
    pub(super) async fn identify<T>(&self, request: &Request<T>) -> Result<Asker, Denial> {
        let caller = request.extensions().get::<Caller>().ok_or(Denial::Nothing)?;
        self.admit(caller.address.ip())?;
        let live = |caller: &eastway_identity::local::LocalCaller| caller.not_after > SystemTime::now();
        let certificate = match &caller.identity {
            Some(identity) if !live(identity) => return Err(Denial::Expired),
            identity => identity.as_ref().map(|identity| identity.id.clone()),
        };
        let header = request.metadata().get("authorization").map(|value| value.to_str().unwrap_or_default());
        let (id, proof) = match (header, certificate) {
            (None, None) => return Err(Denial::Nothing),
            (None, Some(id)) => (id, Proof::Certificate),
            (Some(header), certificate) => {
                let token = header.strip_prefix("Bearer ").ok_or(Denial::Token(ReviewError::NotAToken))?;
                self.by_token(token, certificate).await?
            }
        };
        if !self.by_identity.admit(id.clone(), Instant::now()) {
            return Err(Denial::TooMany);
        }
        Ok(Asker { id, address: caller.address, proof })
    }

    async fn by_token(&self, token: &str, certificate: Option<SpiffeId>) -> Result<(SpiffeId, Proof), Denial> {
        let Ok(Ok(_place)) = timeout(WAIT, self.reviews.acquire()).await else { return Err(Denial::Busy) };
        match (self.reviewer.review(token).await, certificate) {
            (Ok(account), certificate) => {
                let id = SpiffeId::workload(&self.trust_domain, &account.namespace, &account.service_account)?;
                match certificate.filter(|certificate| *certificate != id) {
                    Some(certificate) => Err(Denial::TwoIdentities { token: id, certificate }),
                    None => Ok((id, Proof::Token(account))),
                }
            }
            (Err(ReviewError::Unavailable(why)), Some(certificate)) => Ok((certificate, Proof::CertificateAlone(why))),
            (Err(error), _) => Err(Denial::Token(error)),
        }
    }
}

//! The leaf that this process presents, and the place where it is replaced while links live.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use crate::certificate;
use crate::key::PrivateKey;
use crate::spiffe::SpiffeId;
use crate::timestamp::Timestamp;
use crate::trust::{SanProblem, single_uri};

/// Why a chain and a key are no identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// No certificate at all.
    #[error("the chain holds no certificate")]
    Empty,
    /// The leaf cannot be read.
    #[error("the leaf cannot be read: {0}")]
    Malformed(String),
    /// Not exactly one URI SAN that is a SPIFFE id.
    #[error("the leaf names no single identity: {0}")]
    San(#[from] SanProblem),
    /// The key is of no supported kind.
    #[error("the private key cannot be used: {0}")]
    Key(#[from] crate::key::KeyError),
    /// The key is not the leaf's.
    #[error("the private key does not belong to the leaf")]
    KeyMismatch,
}

/// A leaf with its chain and its key: who this process is on links.
#[derive(Clone)]
pub struct Identity {
    id: SpiffeId,
    not_before: Timestamp,
    not_after: Timestamp,
    leaf_sha256: [u8; 32],
    certified: Arc<CertifiedKey>,
}

impl Identity {
    /// Checks that the key belongs to the leaf and that the leaf names one SPIFFE id.
    ///
    /// `chain` is leaf first, then its issuing CA and further intermediates.
    ///
    /// # Errors
    /// [`IdentityError`] says what does not fit.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: &PrivateKey) -> Result<Self, IdentityError> {
        let leaf = chain.first().ok_or(IdentityError::Empty)?;
        let parsed = certificate::parse(leaf).map_err(IdentityError::Malformed)?;
        let id = single_uri(&parsed)?;
        let (not_before, not_after) = (certificate::not_before(&parsed), certificate::not_after(&parsed));
        let leaf_sha256 = Sha256::digest(leaf).into();
        let certified = CertifiedKey::new(chain, key.signing_key()?);
        certified.keys_match().map_err(|_| IdentityError::KeyMismatch)?;
        Ok(Self { id, not_before, not_after, leaf_sha256, certified: Arc::new(certified) })
    }

    /// The SPIFFE id in the leaf.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// Leaf first, then its issuing CA and further intermediates.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }

    /// Signs with the leaf's key; the key itself cannot be read back.
    #[must_use]
    pub fn key(&self) -> &Arc<dyn rustls::sign::SigningKey> {
        &self.certified.key
    }

    /// Begin of the leaf's life.
    #[must_use]
    pub fn not_before(&self) -> SystemTime {
        self.not_before.to_system()
    }

    /// End of the leaf's life.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.not_after.to_system()
    }

    /// End of the issuing CA's life; `None` if the chain holds no CA, or one that cannot be read.
    #[must_use]
    pub fn issuer_not_after(&self) -> Option<SystemTime> {
        let issuer = certificate::parse(self.chain().get(1)?).ok()?;
        Some(certificate::not_after(&issuer).to_system())
    }

    /// SHA-256 of the leaf, as re-authentication binds it.
    #[must_use]
    pub fn leaf_sha256(&self) -> [u8; 32] {
        self.leaf_sha256
    }

    pub(crate) fn certified(&self) -> &Arc<CertifiedKey> {
        &self.certified
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("id", &self.id)
            .field("not_before", &format_args!("{}", self.not_before))
            .field("not_after", &format_args!("{}", self.not_after))
            .field("certificates", &self.certified.cert.len())
            .finish_non_exhaustive()
    }
}

/// When a leaf is to be renewed: after 2/3 of its life, less up to 1/12 of it.
///
/// `jitter` is drawn by the caller from 0.0 (latest) to 1.0 (earliest), so that replicas started together do not
/// ask the CA together. Values outside are clamped.
#[must_use]
pub fn renewal_time(identity: &Identity, jitter: f64) -> SystemTime {
    let life = identity.not_after.unix().saturating_sub(identity.not_before.unix());
    let life = Duration::from_secs(u64::try_from(life).unwrap_or(0));
    let jitter = if jitter.is_finite() { jitter.clamp(0.0, 1.0) } else { 0.0 };
    identity.not_before() + life * 2 / 3 - (life / 12).mul_f64(jitter)
}

/// Holds the current [`Identity`]; handshakes that begin after [`IdentityStore::replace`] present the new one.
pub struct IdentityStore {
    current: ArcSwap<Identity>,
    generation: watch::Sender<u64>,
}

impl IdentityStore {
    /// Starts with an identity: there is no store without one.
    #[must_use]
    pub fn new(identity: Identity) -> Arc<Self> {
        Arc::new(Self { current: ArcSwap::from_pointee(identity), generation: watch::Sender::new(0) })
    }

    /// The identity of now.
    #[must_use]
    pub fn current(&self) -> Arc<Identity> {
        self.current.load_full()
    }

    /// Puts a renewed identity in place and wakes the subscribers.
    pub fn replace(&self, identity: Identity) {
        self.current.store(Arc::new(identity));
        self.generation.send_modify(|generation| *generation += 1);
    }

    /// A counter that changes with every replacement; links re-authenticate then.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }
}

impl fmt::Debug for IdentityStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdentityStore").field("current", &self.current.load()).finish_non_exhaustive()
    }
}

//! What Envoy proves itself by and what it knows others by, as its secrets (SDS): the workload's certificate with its
//! key, and the certificates that its own trust domain is known by.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use eastway_identity::local::Anchors;
use eastway_identity::{CertificateDer, IdentityStore, SpiffeId, certificates_to_pem, key_to_pem};
use eastway_proto::envoy::config::core::v3::{DataSource, data_source::Specifier};
use eastway_proto::envoy::extensions::transport_sockets::tls::v3 as tls;
use eastway_proto::envoy::google::protobuf::Any;
use prost::{Message as _, Name as _};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tracing::error;

use crate::roles::enroll::{Enrolled, Wallet};

/// Name of the secret with the workload's certificate and key.
pub const WORKLOAD: &str = "workload";
/// How long the CA of before a rotation is known beside the new one: until gateways have renewed, which look every
/// 30 s.
const OVERLAP: Duration = Duration::from_secs(120);

/// Name of the secret with the certificates that a trust domain is known by.
#[must_use]
pub fn bundle_name(trust_domain: &str) -> String {
    format!("bundle:{trust_domain}")
}

/// All secrets at one time, by name.
pub type Snapshot = Arc<BTreeMap<String, Secret>>;

/// A secret as it goes to Envoy.
#[derive(Clone, PartialEq)]
pub struct Secret {
    /// Changes whenever the content does.
    pub version: String,
    /// The message, encoded.
    pub resource: Any,
}

/// Without the key.
impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secret").field("version", &self.version).finish_non_exhaustive()
    }
}

/// The secrets of a workload, renewed as its certificate is.
#[derive(Debug)]
pub struct Secrets {
    wanted: SpiffeId,
    store: Arc<IdentityStore>,
    anchors: Arc<Mutex<Known>>,
    published: watch::Sender<Snapshot>,
}

/// Issuing CAs that count.
#[derive(Debug)]
struct Known {
    current: CertificateDer<'static>,
    next: Option<CertificateDer<'static>>,
    /// That of before a rotation, and until when it counts.
    previous: Option<(CertificateDer<'static>, Instant)>,
}

impl Known {
    fn all(&self) -> Vec<CertificateDer<'static>> {
        let previous = self.previous.as_ref().map(|(certificate, _)| certificate);
        let mut all: Vec<CertificateDer<'static>> = Vec::new();
        for certificate in [Some(&self.current), self.next.as_ref(), previous].into_iter().flatten() {
            if !all.contains(certificate) {
                all.push(certificate.clone());
            }
        }
        all
    }

    /// The CA said who signs now and who will.
    fn hear(&mut self, issuer: &CertificateDer<'static>, next: Option<&CertificateDer<'static>>, now: Instant) {
        if *issuer != self.current {
            let before = std::mem::replace(&mut self.current, issuer.clone());
            self.previous = Some((before, now + OVERLAP));
        }
        self.next = next.cloned();
        if self.previous.as_ref().is_some_and(|(_, until)| *until <= now) {
            self.previous = None;
        }
    }
}

/// Why a certificate is not the workload's.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The CA certified somebody else.
    #[error(
        "the certificate authority certifies {given} here, the configuration says {wanted}; is trust.ca the socket of this workload?"
    )]
    OtherIdentity {
        /// Who the CA says it is.
        given: SpiffeId,
        /// Who the configuration says it is.
        wanted: SpiffeId,
    },
    /// The leaf came without its issuer.
    #[error("the certificate authority sent no certificate of its own")]
    NoIssuer,
}

impl Secrets {
    /// Begins with the first certificate, which must be that of `wanted`.
    ///
    /// # Errors
    /// [`SecretError`]
    pub fn new(wanted: SpiffeId, enrolled: Enrolled) -> Result<Arc<Self>, SecretError> {
        check(&wanted, &enrolled)?;
        let current = enrolled.identity.chain().get(1).cloned().ok_or(SecretError::NoIssuer)?;
        let secret = workload(&enrolled);
        let anchors = Known { current, next: None, previous: None };
        let secrets = Self {
            wanted,
            store: IdentityStore::new(enrolled.identity),
            anchors: Arc::new(Mutex::new(anchors)),
            published: watch::Sender::default(),
        };
        secrets.publish(Some(secret));
        Ok(Arc::new(secrets))
    }

    /// The newest secrets, and word of newer ones.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Snapshot> {
        self.published.subscribe()
    }

    /// The certificate that connections of this process show.
    #[must_use]
    pub fn identity(&self) -> &Arc<IdentityStore> {
        &self.store
    }

    /// The CA certificates that Envoy knows its own trust domain by, for connections of this process.
    #[must_use]
    pub fn anchors(&self) -> Anchors {
        let anchors = Arc::clone(&self.anchors);
        Arc::new(move || anchors.lock().unwrap_or_else(PoisonError::into_inner).all())
    }

    /// Puts the bundle beside `workload`, or beside the certificate of before; who listens wakes up if anything changed.
    fn publish(&self, workload: Option<Secret>) {
        let bundle = bundle(self.wanted.trust_domain(), &(self.anchors())());
        self.published.send_if_modified(|snapshot| {
            let mut secrets = BTreeMap::clone(snapshot);
            secrets.insert(bundle_name(self.wanted.trust_domain()), bundle);
            if let Some(workload) = workload {
                secrets.insert(WORKLOAD.to_owned(), workload);
            }
            let changed = secrets != **snapshot;
            *snapshot = Arc::new(secrets);
            changed
        });
    }
}

impl Wallet for Arc<Secrets> {
    fn store(&self) -> &Arc<IdentityStore> {
        &self.store
    }

    fn renewed(&self, enrolled: Enrolled) {
        if let Err(error) = check(&self.wanted, &enrolled) {
            // The old one lasts for a while, and the socket may be put right before it ends.
            return error!(%error, "the renewed certificate is not taken");
        }
        let secret = workload(&enrolled);
        self.store.replace(enrolled.identity);
        self.publish(Some(secret));
    }

    fn heard(&self, issuer: &CertificateDer<'static>, next: &[CertificateDer<'static>]) {
        self.anchors.lock().unwrap_or_else(PoisonError::into_inner).hear(issuer, next.first(), Instant::now());
        self.publish(None);
    }
}

fn check(wanted: &SpiffeId, enrolled: &Enrolled) -> Result<(), SecretError> {
    let given = enrolled.identity.id();
    if given == wanted {
        return Ok(());
    }
    Err(SecretError::OtherIdentity { given: given.clone(), wanted: wanted.clone() })
}

fn workload(enrolled: &Enrolled) -> Secret {
    let chain = certificates_to_pem(enrolled.identity.chain());
    let certificate = tls::TlsCertificate {
        certificate_chain: Some(inline(chain.as_bytes())),
        private_key: Some(inline(key_to_pem(&enrolled.key).as_bytes())),
        ..tls::TlsCertificate::default()
    };
    // Of the public half only: versions are logged.
    secret(WORKLOAD, tls::secret::Type::TlsCertificate(certificate), chain.as_bytes())
}

fn bundle(trust_domain: &str, anchors: &[CertificateDer<'_>]) -> Secret {
    let pem = certificates_to_pem(anchors);
    let context = tls::CertificateValidationContext {
        trusted_ca: Some(inline(pem.as_bytes())),
        ..tls::CertificateValidationContext::default()
    };
    secret(&bundle_name(trust_domain), tls::secret::Type::ValidationContext(context), pem.as_bytes())
}

fn secret(name: &str, content: tls::secret::Type, identifying: &[u8]) -> Secret {
    let message = tls::Secret { name: name.to_owned(), r#type: Some(content) };
    let digest: String = Sha256::digest(identifying).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    Secret { version: digest, resource: Any { type_url: tls::Secret::type_url(), value: message.encode_to_vec() } }
}

fn inline(bytes: &[u8]) -> DataSource {
    DataSource { specifier: Some(Specifier::InlineBytes(bytes.to_vec())), ..DataSource::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f27_the_ca_of_before_a_rotation_counts_for_a_while_and_the_announced_one_at_once() {
        let ca = |byte| CertificateDer::from(vec![byte]);
        let mut known = Known { current: ca(1), next: None, previous: None };
        let start = Instant::now();
        known.hear(&ca(1), Some(&ca(2)), start);
        assert_eq!(known.all(), [ca(1), ca(2)]);
        known.hear(&ca(2), None, start);
        assert_eq!(known.all(), [ca(2), ca(1)]);
        known.hear(&ca(2), None, start + OVERLAP);
        assert_eq!(known.all(), [ca(2)]);
    }
}

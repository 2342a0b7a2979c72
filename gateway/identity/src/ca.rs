//! The issuing CA of a cluster. Only the `ca` role opens it; a gateway never holds its key (invariant I10).
//!
//! A folder holds it in Istio's `cacerts` layout; see [`Ca::load`] for what else is read and [`rotate`] for the
//! sub-folders of a rotation.

use std::fmt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;

use crate::certificate::{self, Template, arc};
use crate::identity::Identity;
use crate::key::CaKey;
use crate::pem;
use crate::pin::SpkiPin;
use crate::spiffe::SpiffeId;
use crate::timestamp::Timestamp;
use crate::{crl, csr, der};

mod anchors;
mod check;
mod error;
mod files;
mod init;
mod link_keys;
mod request;
pub mod rotate;
mod trial;

pub use crate::key::KeyKind;
pub use anchors::{RevokeError, revoke};
pub use error::{CaError, CaWarning, ChainHint, IssueError};
pub use init::{InitError, InitOptions, NewFile, Root};
pub use link_keys::LinkKeys;

/// Longest life of a leaf.
pub const MAX_LEAF_TTL: Duration = Duration::from_secs(24 * 60 * 60);
/// A leaf begins this long before it is issued, for clocks that are a little behind.
pub const BACKDATE: Duration = Duration::from_secs(60);

/// How the files of a CA folder are named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `ca-cert.pem`, `ca-key.pem`, `cert-chain.pem`, `root-cert.pem`: Istio's `cacerts`, and what
    /// `eastway ca init` writes.
    IstioCacerts,
    /// `ca-cert.pem` and `ca-key.pem` of a self-signed CA without the other two: Istio's `istio-ca-secret`.
    IstioCaSecret,
    /// `tls.crt`, `tls.key` and `ca.crt`: a Kubernetes TLS secret, as cert-manager writes it.
    KubernetesTls,
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::IstioCacerts => "Istio cacerts (ca-cert.pem, ca-key.pem, cert-chain.pem, root-cert.pem)",
            Self::IstioCaSecret => "Istio istio-ca-secret (self-signed ca-cert.pem, ca-key.pem)",
            Self::KubernetesTls => "Kubernetes TLS (tls.crt, tls.key, ca.crt)",
        })
    }
}

/// An issuing CA, ready to sign.
pub struct Ca {
    key: CaKey,
    /// The issuing certificate, then further intermediates; the root only if it is the issuing certificate.
    chain: Vec<CertificateDer<'static>>,
    roots: Vec<CertificateDer<'static>>,
    issuer: Issuer,
    link_keys: LinkKeys,
    layout: Layout,
    warnings: Vec<CaWarning>,
    /// CA certificates on their way in or out; see [`rotate`].
    announced: Vec<CertificateDer<'static>>,
    /// Of them the one that will issue next, then its roots.
    next: Vec<CertificateDer<'static>>,
    /// Of them the keys, for their own anchors.
    others: Vec<anchors::Other>,
    revoked: anchors::Revoked,
}

/// What leaves repeat of the issuing certificate.
struct Issuer {
    pin: SpkiPin,
    /// DER Name, byte by byte.
    subject: Vec<u8>,
    key_id: Vec<u8>,
    not_before: Timestamp,
    not_after: Timestamp,
}

impl Ca {
    /// Makes a new CA in `dir`, which must not hold one yet.
    ///
    /// # Errors
    /// [`InitError`]: files exist, cannot be written, or the shared root cannot be used.
    pub fn init(dir: &Path, options: &InitOptions) -> Result<Self, InitError> {
        init::init(dir, options)
    }

    /// Reads and checks a CA folder; the layout is detected and can be asked for with [`Ca::layout`].
    ///
    /// # Errors
    /// [`CaError`] names the file, what is wrong with it and what to do.
    pub fn load(dir: &Path) -> Result<Self, CaError> {
        Self::load_at(dir, SystemTime::now())
    }

    /// [`Ca::load`] by another clock.
    ///
    /// # Errors
    /// As [`Ca::load`].
    pub fn load_at(dir: &Path, now: SystemTime) -> Result<Self, CaError> {
        let source = rotate::current(dir);
        let material = files::read(&source)?;
        let mut ca = check::check(material, Timestamp::from(now))?;
        if let Some(kept) = LinkKeys::kept(dir)? {
            ca.link_keys = kept;
        }
        ca.revoked = anchors::read(dir)?;
        for other in rotate::announced(dir, &source)? {
            if other.is_next {
                ca.next = std::iter::once(&other.certificate).chain(&other.roots).cloned().collect();
            }
            ca.others.extend(other.signer);
            ca.announced.push(other.certificate);
            for root in other.roots {
                if !ca.roots.contains(&root) {
                    ca.roots.push(root);
                }
            }
        }
        Ok(ca)
    }

    /// Signs a leaf for `id`. The request (PKCS#10, DER) contributes its public key, whose possession it proves, and
    /// nothing else; a life longer than [`MAX_LEAF_TTL`] or the CA's own is shortened.
    ///
    /// Gives the chain: leaf, issuing CA, further intermediates.
    ///
    /// # Errors
    /// [`IssueError`]: a bad request or key, a CA out of its time, no life asked for.
    pub fn issue(
        &self,
        csr_der: &[u8],
        id: &SpiffeId,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Vec<CertificateDer<'static>>, IssueError> {
        let spki = request::public_key(csr_der)?;
        let now = Timestamp::from(now);
        let Issuer { not_before, not_after, .. } = self.issuer;
        if now > not_after {
            return Err(IssueError::CaExpired { not_after, now });
        }
        if now < not_before {
            return Err(IssueError::CaNotYetValid { not_before, now });
        }
        if ttl.as_secs() == 0 {
            return Err(IssueError::NoLife);
        }
        let leaf = Template {
            issuer: &self.issuer.subject,
            subject: &der::name(id.trust_domain(), None),
            spki: &spki,
            not_before: now.minus(BACKDATE).max(not_before),
            not_after: now.plus(ttl.min(MAX_LEAF_TTL)).min(not_after),
            extensions: leaf_extensions(id, &self.issuer.key_id),
        };
        let mut chain = vec![leaf.sign_as(&self.key, &crl::serial_of(id)?)?];
        chain.extend(self.chain.iter().cloned());
        Ok(chain)
    }

    /// Makes a key and issues a leaf for it in one step, for a process that is the CA itself (tests, the demo).
    ///
    /// # Errors
    /// As [`Ca::issue`].
    pub fn issue_identity(&self, id: &SpiffeId, ttl: Duration, now: SystemTime) -> Result<Identity, IssueError> {
        let (key, request) = csr::new_key_and_csr()?;
        let chain = self.issue(&request, id, ttl, now)?;
        Identity::new(chain, &key).map_err(|error| IssueError::OwnLeaf { reason: error.to_string() })
    }

    /// The pin of the issuing key.
    #[must_use]
    pub fn pin(&self) -> SpkiPin {
        self.issuer.pin
    }

    /// All pins that peers should hold now: the issuing key's first, then those of a rotation.
    #[must_use]
    pub fn pins(&self) -> Vec<SpkiPin> {
        let mut pins = vec![self.issuer.pin];
        for pin in self.announced.iter().filter_map(|certificate| SpkiPin::of_certificate(certificate).ok()) {
            if !pins.contains(&pin) {
                pins.push(pin);
            }
        }
        pins
    }

    /// The CA that a rotation announced and that will issue next, then its roots; empty if there is none.
    #[must_use]
    pub fn next(&self) -> &[CertificateDer<'static>] {
        &self.next
    }

    /// The certificates whose keys [`Ca::pins`] names, in the same order: what this cluster's own processes accept.
    #[must_use]
    pub fn issuers(&self) -> Vec<CertificateDer<'static>> {
        self.chain.iter().take(1).chain(&self.announced).cloned().collect()
    }

    /// PEM of the CA certificates whose keys [`Ca::pins`] names, in the same order.
    #[must_use]
    pub fn bundle_pem(&self) -> String {
        pem::certificates_to_pem(&self.issuers())
    }

    /// Issuing certificate, then further intermediates; what follows a leaf.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The root certificates of the folder, and those of a rotation.
    #[must_use]
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// End of life of the issuing certificate.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.issuer.not_after.to_system()
    }

    /// How the files were named.
    #[must_use]
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// What an operator should know although it does not stop anything.
    #[must_use]
    pub fn warnings(&self) -> &[CaWarning] {
        &self.warnings
    }

    /// Keys that all gateway replicas share, derived from the issuing key and so the same after every restart. A rotation
    /// keeps them, so that replicas from before and after it know each other; one that is forced to its end, because the
    /// old key may be in other hands, does not.
    #[must_use]
    pub fn link_keys(&self) -> LinkKeys {
        self.link_keys.clone()
    }
}

/// The certificate that this cluster's leaves are issued by, from a folder that may hold only what is public:
/// `ca-cert.pem` or the first of `cert-chain.pem`; without both, those of `root-cert.pem`. While a rotation is under way
/// those of the next or the previous CA follow.
///
/// # Errors
/// [`CaError`] names the file and what is wrong with it.
pub fn public_issuers(dir: &Path) -> Result<Vec<CertificateDer<'static>>, CaError> {
    files::issuers(dir)
}

/// The files of a new CA in Istio's `cacerts` layout, by name, for who keeps them elsewhere than in a folder.
///
/// # Errors
/// [`InitError`]
pub fn generate(options: &InitOptions) -> Result<Vec<NewFile>, InitError> {
    init::generate(options)
}

fn leaf_extensions(id: &SpiffeId, issuer_key_id: &[u8]) -> Vec<Vec<u8>> {
    let uri = der::sequence(&[der::tlv(der::CONTEXT | 6, id.as_str().as_bytes())]);
    let purposes = der::sequence(&[der::tlv(der::OID, SERVER_AUTH), der::tlv(der::OID, CLIENT_AUTH)]);
    let authority = der::sequence(&[der::tlv(der::CONTEXT, issuer_key_id)]);
    vec![
        der::extension(arc::SUBJECT_ALT_NAME, false, &uri),
        // digitalSignature
        der::extension(arc::KEY_USAGE, true, &der::named_bits(&[0])),
        der::extension(arc::EXTENDED_KEY_USAGE, false, &purposes),
        // cA is FALSE by default, which DER leaves out.
        der::extension(arc::BASIC_CONSTRAINTS, true, &der::sequence::<&[u8]>(&[])),
        der::extension(arc::AUTHORITY_KEY_ID, false, &authority),
    ]
}

/// id-kp-serverAuth (RFC 5280 §4.2.1.12).
pub(crate) const SERVER_AUTH: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01];
/// id-kp-clientAuth.
const CLIENT_AUTH: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x02];

impl Issuer {
    fn of(certificate: &CertificateDer<'_>) -> Result<Self, String> {
        let parsed = certificate::parse(certificate)?;
        let key_id = certificate::subject_key_identifier(&parsed);
        Ok(Self {
            pin: SpkiPin::of_certificate(certificate).map_err(|error| error.to_string())?,
            subject: parsed.subject().as_raw().to_vec(),
            key_id: key_id.unwrap_or_else(|| certificate::key_identifier(parsed.public_key().raw)),
            not_before: certificate::not_before(&parsed),
            not_after: certificate::not_after(&parsed),
        })
    }
}

impl fmt::Debug for Ca {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ca")
            .field("pins", &self.pins())
            .field("layout", &self.layout)
            .field("not_after", &format_args!("{}", self.issuer.not_after))
            .finish_non_exhaustive()
    }
}

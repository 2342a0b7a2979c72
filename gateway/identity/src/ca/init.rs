//! `eastway ca init`: a new CA, its own root or under a shared one.

use std::fmt;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use zeroize::Zeroizing;

use super::error::CaError;
use super::files::{self, ISTIO};
use super::{BACKDATE, Ca, KeyKind};
use crate::certificate::{self, Template, arc};
use crate::key::{CaKey, KeyError};
use crate::pin::SpkiPin;
use crate::spiffe::{SpiffeIdError, check_trust_domain};
use crate::timestamp::Timestamp;
use crate::{der, pem};

/// Life of a new issuing CA unless the options say otherwise: five years.
const LIFETIME: Duration = Duration::from_secs(5 * 365 * 24 * 60 * 60);
/// A new CA begins this much before it is made, so that its first leaves can begin before it too.
const CA_BACKDATE: Duration = Duration::from_secs(10 * 60);

/// Whom a new CA's certificate is signed by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Root {
    /// By itself: the cluster has a root of its own.
    #[default]
    Own,
    /// By the CA in this folder: clusters share a root. The folder is any CA folder, or one with `root-cert.pem` and
    /// `root-key.pem` as Istio's `tools/certs` makes it.
    Shared(PathBuf),
}

/// What a new CA is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitOptions {
    /// Trust domain of the cluster; becomes the organization in the CA's name.
    pub trust_domain: String,
    /// Kind of the key.
    pub key: KeyKind,
    /// Who signs.
    pub root: Root,
    /// Life of the certificate; shortened to that of a shared root.
    pub lifetime: Duration,
    /// The present.
    pub now: SystemTime,
}

impl InitOptions {
    /// A P-256 CA of five years with a root of its own.
    #[must_use]
    pub fn new(trust_domain: &str) -> Self {
        Self {
            trust_domain: trust_domain.to_owned(),
            key: KeyKind::default(),
            root: Root::default(),
            lifetime: LIFETIME,
            now: SystemTime::now(),
        }
    }
}

/// Why no CA was made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InitError {
    /// The trust domain breaks the grammar.
    #[error("trust domain: {0}")]
    TrustDomain(#[from] SpiffeIdError),
    /// A CA is there already; it is never overwritten.
    #[error("{} exists already; a CA is never overwritten: choose another folder, or renew this one with `eastway ca rotate`", .file.display())]
    Exists {
        /// What is there.
        file: PathBuf,
    },
    /// A file cannot be written.
    #[error("{}: cannot write: {reason}", .file.display())]
    Write {
        /// Which one.
        file: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// The shared root cannot be used.
    #[error("shared root: {0}")]
    Root(#[source] CaError),
    /// The crypto provider failed.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The new folder does not pass its own checks.
    #[error("the new CA cannot be used: {0}")]
    Check(#[source] CaError),
}

pub(super) fn init(dir: &Path, options: &InitOptions) -> Result<Ca, InitError> {
    check_trust_domain(&options.trust_domain)?;
    refuse_existing(dir)?;
    let made = make(options)?;
    made.write(dir)?;
    Ca::load_at(dir, options.now).map_err(InitError::Check)
}

/// Nothing that could be a CA may be in the folder.
fn refuse_existing(dir: &Path) -> Result<(), InitError> {
    let names = [ISTIO.cert, ISTIO.key, ISTIO.chain, ISTIO.root, "root-key.pem", "tls.crt", "tls.key", "ca.crt"];
    match names.iter().map(|name| dir.join(name)).find(|file| file.symlink_metadata().is_ok()) {
        Some(file) => Err(InitError::Exists { file }),
        None => Ok(()),
    }
}

/// A CA not yet on disk.
pub(super) struct Made {
    key: CaKey,
    certificate: CertificateDer<'static>,
    /// Intermediates above it.
    chain: Vec<CertificateDer<'static>>,
    pub(super) roots: Vec<CertificateDer<'static>>,
}

/// Makes key and certificate. The common name holds part of the key's hash: two issuing CAs of one cluster never
/// share a name, so that chains and revocation lists tell them apart during a rotation.
pub(super) fn make(options: &InitOptions) -> Result<Made, InitError> {
    let key = CaKey::generate(options.key)?;
    let spki = key.spki();
    let mark: String = SpkiPin::of_spki(&spki).to_string().chars().skip("sha256:".len()).take(8).collect();
    let subject = der::name(&options.trust_domain, Some(&format!("Eastway issuing CA {mark}")));
    let now = Timestamp::from(options.now);
    let key_id = certificate::key_identifier(&spki);
    let (not_before, not_after) = (now.minus(CA_BACKDATE.max(BACKDATE)), now.plus(options.lifetime));
    match &options.root {
        Root::Own => {
            // No path length: the folder may serve as the shared root of others.
            let extensions = extensions(&key_id, None, None);
            let template =
                Template { issuer: &subject, subject: &subject, spki: &spki, not_before, not_after, extensions };
            let certificate = template.sign(&key)?;
            Ok(Made { key, certificate: certificate.clone(), chain: Vec::new(), roots: vec![certificate] })
        }
        Root::Shared(dir) => {
            let material = files::read_root(dir).map_err(InitError::Root)?;
            let above = super::check::check(material, now).map_err(InitError::Root)?;
            let extensions = extensions(&key_id, Some(&above.issuer.key_id), Some(0));
            let template = Template {
                issuer: &above.issuer.subject,
                subject: &subject,
                spki: &spki,
                not_before: not_before.max(above.issuer.not_before),
                not_after: not_after.min(above.issuer.not_after),
                extensions,
            };
            let certificate = template.sign(&above.key)?;
            let is_root = |der: &&CertificateDer<'_>| above.roots.contains(*der);
            let chain = above.chain.iter().filter(|der| !is_root(der)).cloned().collect();
            Ok(Made { key, certificate, chain, roots: above.roots.clone() })
        }
    }
}

fn extensions(key_id: &[u8], issuer_key_id: Option<&[u8]>, path_len: Option<u8>) -> Vec<Vec<u8>> {
    let mut extensions = vec![
        der::extension(arc::BASIC_CONSTRAINTS, true, &der::ca_constraints(path_len)),
        // digitalSignature is for OCSP and harmless; keyCertSign, cRLSign
        der::extension(arc::KEY_USAGE, true, &der::named_bits(&[5, 6])),
        der::extension(arc::SUBJECT_KEY_ID, false, &der::tlv(der::OCTET_STRING, key_id)),
    ];
    if let Some(issuer) = issuer_key_id {
        let authority = der::sequence(&[der::tlv(der::CONTEXT, issuer)]);
        extensions.push(der::extension(arc::AUTHORITY_KEY_ID, false, &authority));
    }
    extensions
}

impl Made {
    /// Writes the four files, each complete or not at all; the key first, and only for its owner to read.
    pub(super) fn write(&self, dir: &Path) -> Result<(), InitError> {
        fs::create_dir_all(dir).map_err(|error| write_error(dir, &error))?;
        for file in self.files() {
            write_file(&dir.join(file.name), file.text.as_bytes(), if file.secret { 0o600 } else { 0o644 })?;
        }
        Ok(())
    }

    fn files(&self) -> Vec<NewFile> {
        let mut chain = vec![self.certificate.clone()];
        chain.extend(self.chain.iter().cloned());
        let public = |name, text: String| NewFile { name, text: Zeroizing::new(text), secret: false };
        vec![
            NewFile { name: ISTIO.key, text: Zeroizing::new(self.key.secret_pem().to_string()), secret: true },
            public(ISTIO.chain, pem::certificates_to_pem(&chain)),
            public(ISTIO.root, pem::certificates_to_pem(&self.roots)),
            public(ISTIO.cert, pem::certificates_to_pem(std::slice::from_ref(&self.certificate))),
        ]
    }
}

/// One file of a new CA.
pub struct NewFile {
    /// Its name in Istio's `cacerts` layout.
    pub name: &'static str,
    /// PEM.
    pub text: Zeroizing<String>,
    /// It holds the key.
    pub secret: bool,
}

/// Names the file and nothing of its contents.
impl fmt::Debug for NewFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewFile").field("name", &self.name).finish_non_exhaustive()
    }
}

pub(super) fn generate(options: &InitOptions) -> Result<Vec<NewFile>, InitError> {
    check_trust_domain(&options.trust_domain)?;
    Ok(make(options)?.files())
}

/// Writes a file next to its place, flushes it and moves it there.
pub(super) fn write_file(path: &Path, bytes: &[u8], mode: u32) -> Result<(), InitError> {
    let mut name = path.file_name().map(ToOwned::to_owned).unwrap_or_default();
    name.push(".new");
    let temporary = path.with_file_name(name);
    let written = (|| {
        // A rest of an interrupted run; create_new below would trip over it.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let mut file = create(&temporary, mode)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    })();
    written.map_err(|error| {
        // It may hold a part of a key.
        fs::remove_file(&temporary).ok();
        write_error(path, &error)
    })
}

pub(super) fn write_error(path: &Path, error: &std::io::Error) -> InitError {
    InitError::Write { file: path.to_owned(), reason: error.to_string() }
}

#[cfg(unix)]
fn create(path: &Path, mode: u32) -> std::io::Result<fs::File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path)
}

#[cfg(not(unix))]
fn create(path: &Path, _mode: u32) -> std::io::Result<fs::File> {
    fs::OpenOptions::new().write(true).create_new(true).open(path)
}

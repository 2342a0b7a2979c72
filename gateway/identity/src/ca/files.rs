//! Finding and reading the files of a CA folder, in any of the layouts people have.

use std::io::Read as _;
use std::path::Path;

use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer};
use zeroize::Zeroizing;

use super::Layout;
use super::error::{CaError, CaWarning};
use super::rotate;
use crate::key::CaKey;
use crate::pem;

/// Largest file that is read.
const MAX_FILE: u64 = 1024 * 1024;
/// Most certificates that are read of one file.
const MAX_CERTIFICATES: usize = 100;

/// Names of a layout's files.
#[derive(Clone, Copy, Debug)]
pub(super) struct Names {
    pub(super) cert: &'static str,
    pub(super) key: &'static str,
    /// Where further intermediates are.
    pub(super) chain: &'static str,
    pub(super) root: &'static str,
}

/// Where the files of a layout are, for messages.
#[derive(Clone, Debug)]
pub(super) struct Paths {
    pub(super) cert: String,
    pub(super) key: String,
    pub(super) chain: String,
    pub(super) root: String,
}

impl Names {
    fn in_folder(self, dir: &Path) -> Paths {
        let Self { cert, key, chain, root } = self;
        Paths { cert: path(dir, cert), key: path(dir, key), chain: path(dir, chain), root: path(dir, root) }
    }
}

/// The whole path: people have several such folders.
pub(super) fn path(dir: &Path, file: &str) -> String {
    dir.join(file).display().to_string()
}

pub(super) const ISTIO: Names =
    Names { cert: "ca-cert.pem", key: "ca-key.pem", chain: "cert-chain.pem", root: "root-cert.pem" };
const KUBERNETES: Names = Names { cert: "tls.crt", key: "tls.key", chain: "tls.crt", root: "ca.crt" };
/// A folder of Istio's `tools/certs` that holds a root and its key.
const ISTIO_ROOT: Names =
    Names { cert: "root-cert.pem", key: "root-key.pem", chain: "root-cert.pem", root: "root-cert.pem" };

/// What the files hold, parsed but not judged.
pub(super) struct Material {
    pub(super) layout: Layout,
    pub(super) paths: Paths,
    pub(super) certificate: CertificateDer<'static>,
    pub(super) key: CaKey,
    /// Intermediates above the issuing certificate, as the file has them.
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) roots: Vec<CertificateDer<'static>>,
    pub(super) warnings: Vec<CaWarning>,
}

pub(super) fn read(dir: &Path) -> Result<Material, CaError> {
    let there = |name: &str| dir.join(name).exists();
    let istio = there(ISTIO.cert) || there(ISTIO.key);
    let kubernetes = there(KUBERNETES.cert) || there(KUBERNETES.key);
    match (istio, kubernetes) {
        (true, true) => Err(CaError::TwoSources { dir: dir.to_owned() }),
        (true, false) => read_istio(dir),
        (false, true) => read_kubernetes(dir),
        (false, false) => Err(CaError::NoSource { dir: dir.to_owned() }),
    }
}

/// Reads a folder whose CA signs other CAs: any CA folder, or one with `root-cert.pem` and `root-key.pem`.
pub(super) fn read_root(dir: &Path) -> Result<Material, CaError> {
    if dir.join(ISTIO.key).exists() || !dir.join(ISTIO_ROOT.key).exists() {
        return read(dir);
    }
    let roots = certificates(dir, ISTIO_ROOT.cert, ISTIO_ROOT.key)?;
    let (key, warnings) = key(dir, ISTIO_ROOT.key)?;
    let (certificate, _) = split_first(roots.clone(), dir, ISTIO_ROOT.cert)?;
    Ok(Material {
        layout: Layout::IstioCacerts,
        paths: ISTIO_ROOT.in_folder(dir),
        certificate,
        key,
        chain: Vec::new(),
        roots,
        warnings,
    })
}

/// See [`super::public_issuers`].
pub(super) fn issuers(dir: &Path) -> Result<Vec<CertificateDer<'static>>, CaError> {
    let mut all = issuers_of_one(dir)?;
    for other in rotate::OTHERS.map(|name| dir.join(name)).iter().filter(|folder| folder.is_dir()) {
        all.extend(issuers_of_one(other)?);
    }
    Ok(all)
}

fn issuers_of_one(dir: &Path) -> Result<Vec<CertificateDer<'static>>, CaError> {
    for file in [ISTIO.cert, ISTIO.chain] {
        if let Some(all) = optional(dir, file, ISTIO.key)? {
            return Ok(all.into_iter().take(1).collect());
        }
    }
    certificates(dir, ISTIO.root, ISTIO.key)
}

fn read_istio(dir: &Path) -> Result<Material, CaError> {
    let names = ISTIO;
    let (certificate, more) = split_first(certificates(dir, names.cert, names.key)?, dir, names.cert)?;
    let (key, warnings) = key(dir, names.key)?;
    // cert-chain.pem usually repeats ca-cert.pem first.
    let mut chain = optional(dir, names.chain, names.key)?.unwrap_or(more);
    if chain.first() == Some(&certificate) {
        chain.remove(0);
    }
    let (layout, roots) = match optional(dir, names.root, names.key)? {
        Some(roots) => (Layout::IstioCacerts, roots),
        None => (Layout::IstioCaSecret, vec![own_root(&certificate, dir, names)?]),
    };
    Ok(Material { layout, paths: names.in_folder(dir), certificate, key, chain, roots, warnings })
}

fn read_kubernetes(dir: &Path) -> Result<Material, CaError> {
    let names = KUBERNETES;
    let (certificate, chain) = split_first(certificates(dir, names.cert, names.key)?, dir, names.cert)?;
    let (key, warnings) = key(dir, names.key)?;
    let roots = match optional(dir, names.root, names.key)? {
        Some(roots) => roots,
        None => vec![own_root(&certificate, dir, names)?],
    };
    let (layout, paths) = (Layout::KubernetesTls, names.in_folder(dir));
    Ok(Material { layout, paths, certificate, key, chain, roots, warnings })
}

/// A folder without a root file is complete only if its CA is its own root.
fn own_root(
    certificate: &CertificateDer<'static>,
    dir: &Path,
    names: Names,
) -> Result<CertificateDer<'static>, CaError> {
    let parsed = crate::certificate::parse(certificate).map_err(|reason| CaError::Certificate {
        file: path(dir, names.cert),
        index: 1,
        reason,
    })?;
    if parsed.subject().as_raw() == parsed.issuer().as_raw() {
        return Ok(certificate.clone());
    }
    Err(CaError::Missing {
        file: path(dir, names.root),
        hint: "the CA is an intermediate, so its root must be there too",
    })
}

fn split_first(
    mut all: Vec<CertificateDer<'static>>,
    dir: &Path,
    file: &str,
) -> Result<(CertificateDer<'static>, Vec<CertificateDer<'static>>), CaError> {
    if all.is_empty() {
        return Err(CaError::Nothing { file: path(dir, file), wanted: "certificate" });
    }
    let first = all.remove(0);
    Ok((first, all))
}

/// `None`: the file is not there, or it is empty, as in Istio's self-signed secret.
fn optional(dir: &Path, file: &str, key_file: &str) -> Result<Option<Vec<CertificateDer<'static>>>, CaError> {
    match certificates(dir, file, key_file) {
        Ok(certificates) => Ok(Some(certificates)),
        Err(CaError::Missing { .. } | CaError::Empty { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn certificates(dir: &Path, file: &str, key_file: &str) -> Result<Vec<CertificateDer<'static>>, CaError> {
    let bytes = bytes(dir, file, "the CA's certificates belong there")?;
    let file = path(dir, file);
    let blocks = blocks(&bytes, &file, "x509")?;
    if blocks.iter().any(|block| block.label.ends_with("PRIVATE KEY")) {
        return Err(CaError::KeyInCertificateFile { file, key_file: path(dir, key_file) });
    }
    let certificates: Vec<_> = blocks
        .iter()
        .filter(|block| block.is_certificate())
        .map(|block| CertificateDer::from(block.der.to_vec()))
        .collect();
    match certificates.len() {
        0 => Err(CaError::Nothing { file, wanted: "certificate" }),
        count if count > MAX_CERTIFICATES => Err(CaError::TooMany { file, count }),
        _ => Ok(certificates),
    }
}

fn key(dir: &Path, file: &str) -> Result<(CaKey, Vec<CaWarning>), CaError> {
    let bytes = bytes(dir, file, "the CA's private key belongs there; a gateway needs none, only the ca role does")?;
    let warnings = readable_by_all(dir, file).into_iter().collect();
    let file = path(dir, file);
    let blocks = blocks(&bytes, &file, "pkey")?;
    let encrypted = |block: &&pem::Block| block.encrypted || block.label == "ENCRYPTED PRIVATE KEY";
    if blocks.iter().any(|block| encrypted(&block)) {
        return Err(CaError::EncryptedKey { file });
    }
    let keys: Vec<_> = blocks.iter().filter(|block| block.label.ends_with("PRIVATE KEY")).collect();
    let [block] = keys.as_slice() else {
        return Err(match keys.len() {
            0 => CaError::Nothing { file, wanted: "private key" },
            count => CaError::SeveralKeys { file, count },
        });
    };
    let secret = block.der.as_slice();
    let der = match block.label.as_str() {
        "RSA PRIVATE KEY" => PrivateKeyDer::Pkcs1(PrivatePkcs1KeyDer::from(secret)),
        "EC PRIVATE KEY" => PrivateKeyDer::Sec1(PrivateSec1KeyDer::from(secret)),
        _ => PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(secret)),
    };
    let key = CaKey::parse(&der).map_err(|error| CaError::Key { file, reason: error.to_string() })?;
    Ok((key, warnings))
}

fn blocks(bytes: &[u8], file: &str, command: &'static str) -> Result<Vec<pem::Block>, CaError> {
    // 0x30: a DER SEQUENCE, which every binary certificate and key is.
    if bytes.first() == Some(&0x30) && !bytes.starts_with(b"0-") {
        return Err(CaError::Der { file: file.to_owned(), command });
    }
    pem::blocks(bytes).map_err(|error| CaError::Pem { file: file.to_owned(), reason: error.to_string() })
}

pub(super) fn bytes(dir: &Path, file: &str, hint: &'static str) -> Result<Zeroizing<Vec<u8>>, CaError> {
    let place = dir.join(file);
    let file = || path(dir, file);
    let failed = |error: std::io::Error| {
        if error.kind() == std::io::ErrorKind::NotFound {
            CaError::Missing { file: file(), hint }
        } else {
            CaError::Read { file: place.clone(), reason: error.to_string() }
        }
    };
    // Opening a pipe would wait for its writer.
    if !std::fs::metadata(&place).map_err(failed)?.is_file() {
        return Err(CaError::Read { file: place.clone(), reason: "it is not a regular file".to_owned() });
    }
    let open = std::fs::File::open(&place).map_err(failed)?;
    let mut bytes = Zeroizing::new(Vec::new());
    open.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(CaError::TooLarge { file: file() });
    }
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(CaError::Empty { file: file() });
    }
    Ok(bytes)
}

#[cfg(unix)]
fn readable_by_all(dir: &Path, file: &str) -> Option<CaWarning> {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(dir.join(file)).ok()?.permissions().mode() & 0o777;
    (mode & 0o004 != 0).then(|| CaWarning::KeyReadable { file: path(dir, file), mode })
}

#[cfg(not(unix))]
fn readable_by_all(_dir: &Path, _file: &str) -> Option<CaWarning> {
    None
}

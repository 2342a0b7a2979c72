//! Certificate revocation lists (RFC 5280 §5), from local files only: parsing one from the network before its
//! signature is known to be good has been a way to crash verifiers (RUSTSEC-2026-0104).

use std::path::{Path, PathBuf};

use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use sha2::{Digest as _, Sha256};
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;

use crate::key::KeyError;
use crate::spiffe::SpiffeId;
use crate::timestamp::Timestamp;
use crate::{certificate, pem};

/// Largest file that is read: some hundred thousand entries.
const MAX_FILE: u64 = 16 * 1024 * 1024;

/// Why a revocation list file cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CrlError {
    /// The file cannot be read.
    #[error("crl: cannot read {}: {reason}", .file.display())]
    Read {
        /// Its path.
        file: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// Larger than 16 MiB.
    #[error("crl: {} is larger than 16 MiB", .file.display())]
    TooLarge {
        /// Its path.
        file: PathBuf,
    },
    /// Neither PEM blocks `X509 CRL` nor DER, or a list that cannot be parsed.
    #[error("crl: {}: {reason}", .file.display())]
    Format {
        /// Its path.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// Reads a file of one DER list or of any number of PEM ones, and checks that each can be parsed.
///
/// # Errors
/// [`CrlError`].
pub fn load(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, CrlError> {
    let file = || path.to_owned();
    let failed = |error: std::io::Error| CrlError::Read { file: file(), reason: error.to_string() };
    let metadata = std::fs::metadata(path).map_err(failed)?;
    // Opening a pipe would wait for its writer.
    if !metadata.is_file() {
        return Err(CrlError::Read { file: file(), reason: "it is not a regular file".to_owned() });
    }
    // One that grows meanwhile is cut by the parser.
    if metadata.len() > MAX_FILE {
        return Err(CrlError::TooLarge { file: file() });
    }
    let bytes = std::fs::read(path).map_err(failed)?;
    parse(&bytes).map_err(|reason| CrlError::Format { file: file(), reason })
}

/// [`load`] for bytes at hand.
///
/// # Errors
/// What is wrong with them.
pub fn parse(bytes: &[u8]) -> Result<Vec<CertificateRevocationListDer<'static>>, String> {
    let lists: Vec<_> = if bytes.first() == Some(&0x30) {
        vec![CertificateRevocationListDer::from(bytes.to_vec())]
    } else {
        let blocks = pem::blocks(bytes).map_err(|error| error.to_string())?;
        let lists = blocks.into_iter().filter(|block| block.label == "X509 CRL");
        lists.map(|block| CertificateRevocationListDer::from(block.der.to_vec())).collect()
    };
    if lists.is_empty() {
        return Err("holds no revocation list (PEM block X509 CRL, or DER)".to_owned());
    }
    for (index, list) in lists.iter().enumerate() {
        crate::trust::check_crl(list).map_err(|reason| format!("list {}: {reason}", index + 1))?;
    }
    Ok(lists)
}

/// What a list says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CrlInfo {
    /// Name of the CA that signed it.
    pub issuer: String,
    /// When it was made.
    pub this_update: Timestamp,
    /// When the next one is due; new peers are refused from then on.
    pub next_update: Timestamp,
    /// How many certificates it revokes.
    pub entries: usize,
}

/// Reads what a list says about itself, for status and alerts.
///
/// # Errors
/// What is wrong with it.
pub fn describe(list: &CertificateRevocationListDer<'_>) -> Result<CrlInfo, String> {
    let (_, parsed) = CertificateRevocationList::from_der(list).map_err(|error| error.to_string())?;
    let next_update = parsed.next_update().ok_or("it has no nextUpdate")?;
    Ok(CrlInfo {
        issuer: parsed.issuer().to_string(),
        this_update: Timestamp::from_unix(parsed.last_update().timestamp()),
        next_update: Timestamp::from_unix(next_update.timestamp()),
        entries: parsed.iter_revoked_certificates().count(),
    })
}

/// Serial number of a certificate as revocation lists name it: hexadecimal digits, two for each byte; `None` if it
/// cannot be parsed.
#[must_use]
pub fn serial(certificate: &CertificateDer<'_>) -> Option<String> {
    let parsed = certificate::parse(certificate).ok()?;
    Some(parsed.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Bytes of a serial number of ours that are random, and of those that name the identity.
const RANDOM: usize = 10;
const NAMED: usize = 8;

/// A fresh serial number for a certificate of `id`: 79 random bits, then the beginning of the SHA-256 of the identity. So who
/// reads a revocation list knows whom it is about.
pub(crate) fn serial_of(id: &SpiffeId) -> Result<[u8; RANDOM + NAMED], KeyError> {
    let mut serial = certificate::random_serial()?;
    let digest = Sha256::digest(id.as_str());
    for (byte, named) in serial.iter_mut().skip(RANDOM).zip(digest) {
        *byte = named;
    }
    Ok(serial)
}

/// Whether a certificate with this serial number, as [`serial`] spells it, may be one of the identity `id`. One that our CA
/// did not choose may be anybody's.
#[must_use]
pub fn may_be_of(serial: &str, id: &str) -> bool {
    let Some(named) = serial.get(2 * RANDOM..).filter(|named| named.len() == 2 * NAMED) else { return true };
    let digest: String = Sha256::digest(id).iter().take(NAMED).map(|byte| format!("{byte:02x}")).collect();
    named == digest
}

/// What is wrong with a list although it can be parsed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CrlProblem {
    /// The next list was due.
    #[error(
        "crl: nextUpdate passed; new peers refused (strict): the list of \"{issuer}\" ended {next_update}, our clock says {now}"
    )]
    Expired {
        /// Who signed it.
        issuer: String,
        /// When the next one was due.
        next_update: Timestamp,
        /// Our clock.
        now: Timestamp,
    },
    /// None of the CAs given has this name.
    #[error("crl: the list of \"{issuer}\" is of an unknown issuer; it revokes nothing")]
    UnknownIssuer {
        /// Who signed it.
        issuer: String,
    },
}

/// Looks for lists that are too old, or that no CA in `known` can have signed by its name.
///
/// A Peer given by pins alone has no CA certificate here; callers pass all they have and treat an unknown issuer as a
/// warning.
#[must_use]
pub fn problems(
    lists: &[CertificateRevocationListDer<'_>],
    known: &[CertificateDer<'_>],
    now: std::time::SystemTime,
) -> Vec<CrlProblem> {
    let now = Timestamp::from(now);
    let mut problems = Vec::new();
    for list in lists {
        let Ok(info) = describe(list) else { continue };
        if info.next_update <= now {
            let CrlInfo { issuer, next_update, .. } = info.clone();
            problems.push(CrlProblem::Expired { issuer, next_update, now });
        }
        let signs = |ca: &CertificateDer<'_>| {
            certificate::parse(ca).is_ok_and(|ca| Some(ca.subject().as_raw()) == raw_issuer(list).as_deref())
        };
        if !known.iter().any(signs) {
            problems.push(CrlProblem::UnknownIssuer { issuer: info.issuer });
        }
    }
    problems
}

fn raw_issuer(list: &CertificateRevocationListDer<'_>) -> Option<Vec<u8>> {
    let (_, parsed) = CertificateRevocationList::from_der(list).ok()?;
    Some(parsed.issuer().as_raw().to_vec())
}

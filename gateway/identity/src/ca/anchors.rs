//! Making what sidecars know this CA by (see [`crate::anchor`]), and keeping the list of what is revoked.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};

use super::error::CaError;
use super::init::{self, InitError};
use super::{BACKDATE, Ca, Issuer, MAX_LEAF_TTL, files};
use crate::anchor::AnchorDer;
use crate::certificate::{self as x509, RevocationTemplate, Template, arc};
use crate::der;
use crate::key::{CaKey, KeyError};
use crate::timestamp::Timestamp;

/// Serial numbers that are revoked, in the folder of the CA: one a line, in hexadecimal, and since when in seconds since
/// the Unix epoch.
pub(super) const FILE: &str = "revoked.txt";
/// How long a list is good. Who has lists refuses every certificate when one has ended, so this is long; it is made anew
/// long before.
const LIST_LIFE: Duration = Duration::from_secs(45 * 24 * 3600);
/// Most serial numbers of a list: what is revoked expires within a day, and is forgotten then.
const MAX_REVOKED: usize = 500;

/// Serial numbers that are revoked, and since when.
pub(super) type Revoked = BTreeMap<Vec<u8>, Timestamp>;

/// A CA beside the issuing one, which signs its own anchor and list.
pub(super) struct Other {
    pub(super) key: CaKey,
    pub(super) issuer: Issuer,
}

impl Ca {
    /// The anchors of `trust_domain`, each with its revocation list: that of the issuing key first, then those of a
    /// rotation. Their bytes differ each time; make them once in a while.
    ///
    /// # Errors
    /// A key cannot sign.
    pub fn anchors(&self, trust_domain: &str, now: SystemTime) -> Result<Vec<AnchorDer>, KeyError> {
        let now = Timestamp::from(now);
        let others = self.others.iter().map(|other| (&other.key, &other.issuer));
        let all = std::iter::once((&self.key, &self.issuer)).chain(others);
        all.map(|(key, issuer)| {
            Ok(AnchorDer {
                certificate: certificate(key, issuer, trust_domain)?.to_vec(),
                crl: list(key, issuer, &self.revoked, now)?.to_vec(),
            })
        })
        .collect()
    }

    /// Serial numbers that are revoked, as [`crate::crl::serial`] spells them.
    pub fn revoked(&self) -> impl Iterator<Item = String> {
        self.revoked.keys().map(|serial| hex(serial))
    }
}

fn certificate(key: &CaKey, issuer: &Issuer, trust_domain: &str) -> Result<CertificateDer<'static>, KeyError> {
    let permitted =
        der::tlv(der::CONTEXT_CONSTRUCTED, &der::sequence(&[der::tlv(der::CONTEXT | 6, trust_domain.as_bytes())]));
    let template = Template {
        issuer: &issuer.subject,
        subject: &issuer.subject,
        spki: &key.spki(),
        not_before: issuer.not_before,
        not_after: issuer.not_after,
        extensions: vec![
            der::extension(arc::BASIC_CONSTRAINTS, true, &der::ca_constraints(None)),
            // keyCertSign, cRLSign
            der::extension(arc::KEY_USAGE, true, &der::named_bits(&[5, 6])),
            der::extension(arc::SUBJECT_KEY_ID, false, &der::tlv(der::OCTET_STRING, &issuer.key_id)),
            der::extension(arc::NAME_CONSTRAINTS, true, &der::sequence(&[permitted])),
        ],
    };
    template.sign(key)
}

fn list(
    key: &CaKey,
    issuer: &Issuer,
    revoked: &Revoked,
    now: Timestamp,
) -> Result<CertificateRevocationListDer<'static>, KeyError> {
    let template = RevocationTemplate {
        issuer: &issuer.subject,
        key_id: &issuer.key_id,
        // For clocks that are a little behind.
        this_update: now.minus(BACKDATE),
        next_update: now.plus(LIST_LIFE),
        number: u64::try_from(now.unix()).unwrap_or_default(),
        revoked,
    };
    template.sign(key)
}

/// Adds serial numbers to what the CA in `dir` has revoked, and forgets those that have expired. Whoever makes anchors of
/// the folder afterwards publishes them.
///
/// # Errors
/// [`RevokeError`]; nothing has changed then.
pub fn revoke(dir: &Path, serials: &[&str], now: SystemTime) -> Result<usize, RevokeError> {
    let now = Timestamp::from(now);
    let mut revoked = read(dir)?;
    revoked.retain(|_, since| since.plus(MAX_LEAF_TTL + BACKDATE) > now);
    for text in serials {
        let serial = serial(text).ok_or_else(|| RevokeError::Serial((*text).to_owned()))?;
        revoked.entry(serial).or_insert(now);
    }
    if revoked.len() > MAX_REVOKED {
        return Err(RevokeError::TooMany);
    }
    let text: String = revoked.iter().map(|(serial, since)| format!("{} {}\n", hex(serial), since.unix())).collect();
    init::write_file(&dir.join(FILE), text.as_bytes(), 0o644)?;
    Ok(revoked.len())
}

/// Why nothing was revoked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RevokeError {
    /// Not a serial number.
    #[error("{0:?} is no serial number: 2 to 40 hexadecimal digits, as the ca role logs them")]
    Serial(String),
    /// More than a list can hold.
    #[error("more than {MAX_REVOKED} certificates of a day would be revoked: rotate the CA instead")]
    TooMany,
    /// The file cannot be read.
    #[error(transparent)]
    Read(#[from] CaError),
    /// The file cannot be written.
    #[error(transparent)]
    Write(#[from] InitError),
}

/// What the CA in `dir` has revoked.
pub(super) fn read(dir: &Path) -> Result<Revoked, CaError> {
    let bytes = match files::bytes(dir, FILE, "") {
        Ok(bytes) => bytes,
        Err(CaError::Missing { .. } | CaError::Empty { .. }) => return Ok(Revoked::new()),
        Err(error) => return Err(error),
    };
    let text = String::from_utf8_lossy(&bytes);
    let mut revoked = Revoked::new();
    for (number, line) in (1..).zip(text.lines()) {
        let wrong = || CaError::Revoked { file: files::path(dir, FILE), line: number };
        let (hex, since) = line.split_once(' ').ok_or_else(wrong)?;
        let since = since.trim().parse().map_err(|_| wrong())?;
        revoked.insert(serial(hex).ok_or_else(wrong)?, Timestamp::from_unix(since));
    }
    Ok(revoked)
}

fn hex(serial: &[u8]) -> String {
    serial.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn serial(text: &str) -> Option<Vec<u8>> {
    if text.len() > 40 || !text.len().is_multiple_of(2) || text.is_empty() || !text.is_ascii() {
        return None;
    }
    let byte = |at: usize| u8::from_str_radix(text.get(at..at + 2)?, 16).ok();
    (0..text.len()).step_by(2).map(byte).collect()
}

impl Other {
    pub(super) fn new(key: CaKey, certificate: &CertificateDer<'_>) -> Option<Self> {
        let own = x509::parse(certificate).ok()?.public_key().raw == key.spki();
        let issuer = Issuer::of(certificate).ok()?;
        own.then_some(Self { key, issuer })
    }
}

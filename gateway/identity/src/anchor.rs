//! What sidecars know a trust domain by: its anchors, each a self-signed certificate of an issuing CA's name and key with
//! a critical name constraint of that trust domain, and the revocation list of the same key.
//!
//! The constraint is what keeps trust domains apart where several anchors are in one list: whoever holds one CA key can
//! sign any name, and a verifier that enforces the constraint takes only names of that CA's own domain. So an anchor
//! without it is never given to anybody; nor one without a list, because a verifier that has lists refuses every CA
//! that has none. Links do not use anchors, they pin keys.

use std::collections::BTreeSet;
use std::time::SystemTime;

use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer as _;
use x509_parser::revocation_list::CertificateRevocationList;

use crate::certificate;
use crate::pin::SpkiPin;
use crate::timestamp::Timestamp;

/// Largest certificate of an anchor, bytes: one with an RSA key of 8192 bits has 2 KiB.
const MAX_CERTIFICATE: usize = 8 << 10;
/// Largest revocation list, bytes. Leaves live a day at most: some hundred entries.
const MAX_CRL: usize = 24 << 10;

/// A certificate and a list as they came, in DER, not checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AnchorDer {
    /// The certificate.
    pub certificate: Vec<u8>,
    /// The revocation list; empty if there is none.
    pub crl: Vec<u8>,
}

/// An anchor of one trust domain that passed all checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anchor {
    certificate: CertificateDer<'static>,
    crl: CertificateRevocationListDer<'static>,
    pin: SpkiPin,
    made: Timestamp,
    revoked: BTreeSet<Vec<u8>>,
}

/// Why an anchor is given to nobody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnchorError {
    /// Certificate or list cannot be read, or is too large.
    #[error("its {what} cannot be read: {reason}")]
    Malformed {
        /// Which of the two.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A key that is no CA's of this cluster.
    #[error("its key {presented} is not pinned")]
    NotPinned {
        /// The key.
        presented: SpkiPin,
    },
    /// It may not issue certificates, or sign lists.
    #[error("it is no certificate of a CA that signs certificates and revocation lists")]
    NotACa,
    /// Another key signed it: what the other key's certificate allows would count as well.
    #[error("it is not signed by its own key")]
    NotSelfSigned,
    /// It is out of its time.
    #[error("it is good from {not_before} to {not_after}, and our clock says {now}")]
    Time {
        /// Begin of its life.
        not_before: Timestamp,
        /// End of its life.
        not_after: Timestamp,
        /// Our clock.
        now: Timestamp,
    },
    /// It could speak for every trust domain.
    #[error("it has no critical name constraint of its trust domain")]
    Unconstrained,
    /// It could speak for another trust domain.
    #[error("its name constraint is {found}, and its trust domain is {wanted}")]
    OtherConstraint {
        /// What it permits or excludes, in short.
        found: String,
        /// The trust domain.
        wanted: String,
    },
    /// There is no revocation list with it.
    #[error("it comes without a revocation list")]
    NoCrl,
    /// The list is of another CA.
    #[error("its revocation list is not signed by the same name and key")]
    OtherCrl,
    /// The list does not say all.
    #[error("its revocation list is of a kind that is not taken: a critical extension {0}")]
    CrlKind(String),
    /// The next list was due.
    #[error("its revocation list ended {next_update}, and our clock says {now}")]
    CrlTime {
        /// When the next one was due.
        next_update: Timestamp,
        /// Our clock.
        now: Timestamp,
    },
}

impl Anchor {
    /// Checks an anchor that is to stand for `trust_domain` and for nothing else; `pins` are the keys of its CA.
    ///
    /// # Errors
    /// [`AnchorError`]: nobody may be given it.
    pub fn check(der: &AnchorDer, trust_domain: &str, pins: &[SpkiPin], now: SystemTime) -> Result<Self, AnchorError> {
        let now = Timestamp::from(now);
        let parsed = read_certificate(&der.certificate)?;
        let pin = SpkiPin::of_spki(parsed.public_key().raw);
        if !pins.contains(&pin) {
            return Err(AnchorError::NotPinned { presented: pin });
        }
        check_ca(&parsed, now)?;
        check_constraint(&parsed, trust_domain)?;
        let crl = read_crl(&der.crl)?;
        let made = check_crl(&crl, &parsed, now)?;
        let revoked = crl.iter_revoked_certificates().map(|entry| entry.raw_serial().to_vec()).collect();
        Ok(Self {
            certificate: CertificateDer::from(der.certificate.clone()),
            crl: CertificateRevocationListDer::from(der.crl.clone()),
            pin,
            made,
            revoked,
        })
    }

    /// The certificate.
    #[must_use]
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The revocation list.
    #[must_use]
    pub fn crl(&self) -> &CertificateRevocationListDer<'static> {
        &self.crl
    }

    /// The key.
    #[must_use]
    pub fn pin(&self) -> SpkiPin {
        self.pin
    }

    /// When its list was made: of two the later one counts.
    #[must_use]
    pub fn made(&self) -> Timestamp {
        self.made
    }

    /// Serial numbers that the list names.
    #[must_use]
    pub fn revoked(&self) -> &BTreeSet<Vec<u8>> {
        &self.revoked
    }

    /// As it goes over the wire.
    #[must_use]
    pub fn to_der(&self) -> AnchorDer {
        AnchorDer { certificate: self.certificate.to_vec(), crl: self.crl.to_vec() }
    }
}

fn malformed(what: &'static str, reason: impl Into<String>) -> AnchorError {
    AnchorError::Malformed { what, reason: reason.into() }
}

fn read_certificate(der: &[u8]) -> Result<X509Certificate<'_>, AnchorError> {
    if der.len() > MAX_CERTIFICATE {
        return Err(malformed("certificate", "it is too large"));
    }
    certificate::parse(der).map_err(|reason| malformed("certificate", reason))
}

fn read_crl(der: &[u8]) -> Result<CertificateRevocationList<'_>, AnchorError> {
    if der.is_empty() {
        return Err(AnchorError::NoCrl);
    }
    if der.len() > MAX_CRL {
        return Err(malformed("revocation list", "it is too large"));
    }
    match CertificateRevocationList::from_der(der) {
        Ok(([], list)) => Ok(list),
        Ok((rest, _)) => Err(malformed("revocation list", format!("{} bytes follow it", rest.len()))),
        Err(error) => Err(malformed("revocation list", error.to_string())),
    }
}

fn check_ca(parsed: &X509Certificate<'_>, now: Timestamp) -> Result<(), AnchorError> {
    certificate::may_issue(parsed).map_err(|_| AnchorError::NotACa)?;
    let signs_lists = parsed.key_usage().is_ok_and(|usage| usage.is_none_or(|usage| usage.value.crl_sign()));
    if !signs_lists {
        return Err(AnchorError::NotACa);
    }
    let named = parsed.subject().as_raw() == parsed.issuer().as_raw();
    if !named || parsed.verify_signature(Some(parsed.public_key())).is_err() {
        return Err(AnchorError::NotSelfSigned);
    }
    let (not_before, not_after) = (certificate::not_before(parsed), certificate::not_after(parsed));
    if now < not_before || now > not_after {
        return Err(AnchorError::Time { not_before, not_after, now });
    }
    Ok(())
}

/// Exactly one permitted subtree, the URIs of this domain, and nothing excluded. A host of a constraint is matched
/// whole, unless it begins with a dot (RFC 5280 §4.2.1.10).
fn check_constraint(parsed: &X509Certificate<'_>, trust_domain: &str) -> Result<(), AnchorError> {
    let mut constraints = None;
    for extension in parsed.extensions() {
        if let ParsedExtension::NameConstraints(found) = extension.parsed_extension() {
            if !extension.critical || constraints.is_some() {
                return Err(AnchorError::Unconstrained);
            }
            constraints = Some(found);
        }
    }
    let constraints = constraints.ok_or(AnchorError::Unconstrained)?;
    let other = |found: String| AnchorError::OtherConstraint { found, wanted: trust_domain.to_owned() };
    if constraints.excluded_subtrees.as_ref().is_some_and(|excluded| !excluded.is_empty()) {
        return Err(other("one that excludes names".to_owned()));
    }
    let permitted = constraints.permitted_subtrees.as_deref().unwrap_or_default();
    match permitted {
        [only] => {
            let GeneralName::URI(host) = only.base else { return Err(AnchorError::Unconstrained) };
            let shown = || host.chars().take(256).filter(|c| !c.is_control()).collect();
            if host == trust_domain { Ok(()) } else { Err(other(shown())) }
        }
        [] => Err(AnchorError::Unconstrained),
        several => Err(other(format!("one of {} parts", several.len()))),
    }
}

/// When the list was made.
fn check_crl(
    list: &CertificateRevocationList<'_>,
    anchor: &X509Certificate<'_>,
    now: Timestamp,
) -> Result<Timestamp, AnchorError> {
    let named = list.issuer().as_raw() == anchor.subject().as_raw();
    if !named || list.verify_signature(anchor.public_key()).is_err() {
        return Err(AnchorError::OtherCrl);
    }
    // A delta, or a list of some certificates only, would pass for one of all.
    if let Some(critical) = list.extensions().iter().find(|extension| extension.critical) {
        return Err(AnchorError::CrlKind(critical.oid.to_id_string()));
    }
    let next_update = list.next_update().ok_or_else(|| malformed("revocation list", "it has no nextUpdate"))?;
    let next_update = Timestamp::from_unix(next_update.timestamp());
    if next_update <= now {
        return Err(AnchorError::CrlTime { next_update, now });
    }
    Ok(Timestamp::from_unix(list.last_update().timestamp()))
}

#[cfg(test)]
mod tests;

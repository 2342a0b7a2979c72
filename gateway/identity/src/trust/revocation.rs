//! Revocation lists of one Peer, applied to a path that is otherwise accepted.
//!
//! A certificate whose issuer has no list is not judged; one whose issuer has a list is accepted only by a list that
//! verifies with the issuer's key. Lists come from local files only, never from the network.

use std::sync::Arc;

use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use webpki::{
    CertRevocationList, ExpirationPolicy, OwnedCertRevocationList, RevocationOptionsBuilder, UnknownStatusPolicy,
};
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;

use super::error::VerifyError;
use super::verify::Path;
use crate::certificate;
use crate::timestamp::Timestamp;

/// A parsed list.
pub(crate) struct Crl {
    list: CertRevocationList<'static>,
    /// DER Name.
    issuer: Vec<u8>,
}

impl Crl {
    pub(crate) fn parse(der: &CertificateRevocationListDer<'_>) -> Result<Self, String> {
        let list = OwnedCertRevocationList::from_der(der).map_err(|error| format!("{error:?}"))?;
        let (_, parsed) = CertificateRevocationList::from_der(der).map_err(|error| error.to_string())?;
        Ok(Self { list: CertRevocationList::from(list), issuer: parsed.issuer().as_raw().to_vec() })
    }
}

/// Why a certificate does not pass.
pub(super) enum Problem {
    Revoked,
    Expired { next_update: Timestamp },
    Unusable { reason: String },
}

impl Problem {
    pub(super) fn into_error(self, peer: &Arc<str>, what: &'static str, now: Timestamp) -> VerifyError {
        let peer = Arc::clone(peer);
        match self {
            Self::Revoked => VerifyError::Revoked { what, peer },
            Self::Expired { next_update } => VerifyError::CrlExpired { peer, next_update, now },
            Self::Unusable { reason } => VerifyError::CrlUnusable { peer, reason },
        }
    }
}

/// Checks one certificate of a path against every list of its issuer's name.
pub(super) fn check(
    crls: &[Arc<Crl>],
    path: &Path<'_>,
    der: &CertificateDer<'_>,
    now: Timestamp,
    enforce_expiry: bool,
) -> Result<(), Problem> {
    let Ok(certificate) = certificate::parse(der) else {
        return Ok(());
    };
    let mut covered = false;
    let mut problem = None;
    for crl in crls.iter().filter(|crl| crl.issuer == certificate.issuer().as_raw()) {
        let listed = !matches!(crl.list.find_serial(certificate.raw_serial()), Ok(None));
        match apply(crl, path, now, enforce_expiry) {
            // Signed by another key of the same name: a list from before a rotation, say.
            Err(webpki::Error::InvalidCrlSignatureForPublicKey) => {
                problem.get_or_insert(Problem::Unusable { reason: "it is signed by another key".to_owned() });
            }
            // Whatever scope the list claims for itself: what it lists is revoked.
            _ if listed => return Err(Problem::Revoked),
            Err(webpki::Error::CertRevoked) => return Err(Problem::Revoked),
            Ok(()) => covered = true,
            Err(webpki::Error::CrlExpired { next_update, .. }) => {
                let seconds = i64::try_from(next_update.as_secs()).unwrap_or(i64::MAX);
                problem = Some(Problem::Expired { next_update: Timestamp::from_unix(seconds) });
            }
            Err(error) => {
                let reason = super::verify::quoted(&format!("{error:?}"));
                problem.get_or_insert(Problem::Unusable { reason });
            }
        }
    }
    match problem {
        Some(problem) if !covered => Err(problem),
        _ => Ok(()),
    }
}

/// Lets webpki check the list's signature, its expiry and its entries along the path.
fn apply(crl: &Crl, path: &Path<'_>, now: Timestamp, enforce_expiry: bool) -> Result<(), webpki::Error> {
    let policy = if enforce_expiry { ExpirationPolicy::Enforce } else { ExpirationPolicy::Ignore };
    let lists = [&crl.list];
    let Ok(options) = RevocationOptionsBuilder::new(&lists) else {
        return Ok(());
    };
    let options = options.with_status_policy(UnknownStatusPolicy::Allow).with_expiration_policy(policy).build();
    path.walk(now, Some(options), |_| ())
}

/// Does any list of the certificate's issuer name it?
pub(super) fn lists(crls: &[Arc<Crl>], der: &CertificateDer<'_>) -> bool {
    certificate::parse(der).is_ok_and(|certificate| {
        crls.iter()
            .filter(|crl| crl.issuer == certificate.issuer().as_raw())
            .any(|crl| !matches!(crl.list.find_serial(certificate.raw_serial()), Ok(None)))
    })
}

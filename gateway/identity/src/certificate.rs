//! Reading the fields of a certificate that decisions need, and writing new certificates.

use std::collections::BTreeMap;
use std::time::SystemTime;

use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

use crate::der;
use crate::key::{CaKey, KeyError};
use crate::timestamp::Timestamp;

/// Parses exactly one certificate.
///
/// # Errors
/// A text that says what is wrong with the encoding.
pub(crate) fn parse(der: &[u8]) -> Result<X509Certificate<'_>, String> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok((rest, _)) => Err(format!("{} bytes follow the certificate", rest.len())),
        Err(error) => Err(error.to_string()),
    }
}

/// What a certificate says of itself, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFacts {
    /// Whose it is.
    pub subject: String,
    /// Its serial number, in hexadecimal.
    pub serial: String,
    /// When it ends.
    pub not_after: SystemTime,
}

/// What a certificate says of itself; `None` if it cannot be parsed.
#[must_use]
pub fn certificate_facts(certificate: &CertificateDer<'_>) -> Option<CertificateFacts> {
    let parsed = parse(certificate).ok()?;
    Some(CertificateFacts {
        subject: parsed.subject().to_string(),
        serial: crate::crl::serial(certificate)?,
        not_after: not_after(&parsed).to_system(),
    })
}

/// Whether a certificate is that of a CA, or says that this CA signed it: by name, and by key where both tell it. For people;
/// who trusts something verifies it.
#[must_use]
pub fn names_issuer(certificate: &CertificateDer<'_>, ca: &CertificateDer<'_>) -> bool {
    let (Ok(parsed), Ok(ca_parsed)) = (parse(certificate), parse(ca)) else { return false };
    let key = |found: &ParsedExtension<'_>| {
        let ParsedExtension::SubjectKeyIdentifier(key) = found else { return None };
        Some(key.0.to_vec())
    };
    let signer = |found: &ParsedExtension<'_>| {
        let ParsedExtension::AuthorityKeyIdentifier(key) = found else { return None };
        key.key_identifier.as_ref().map(|key| key.0.to_vec())
    };
    let of_ca = ca_parsed.extensions().iter().find_map(|extension| key(extension.parsed_extension()));
    let named = parsed.extensions().iter().find_map(|extension| signer(extension.parsed_extension()));
    let same_key = of_ca.zip(named).is_none_or(|(key, named)| key == named);
    certificate == ca || (parsed.issuer().as_raw() == ca_parsed.subject().as_raw() && same_key)
}

pub(crate) fn not_before(certificate: &X509Certificate<'_>) -> Timestamp {
    Timestamp::from_unix(certificate.validity().not_before.timestamp())
}

pub(crate) fn not_after(certificate: &X509Certificate<'_>) -> Timestamp {
    Timestamp::from_unix(certificate.validity().not_after.timestamp())
}

/// May this certificate issue others: basicConstraints says CA, keyUsage is absent or holds keyCertSign.
pub(crate) fn may_issue(certificate: &X509Certificate<'_>) -> Result<(), NotACa> {
    match certificate.basic_constraints() {
        Ok(Some(constraints)) if constraints.value.ca => {}
        Ok(_) | Err(_) => return Err(NotACa::BasicConstraints),
    }
    match certificate.key_usage() {
        Ok(Some(usage)) if !usage.value.key_cert_sign() => Err(NotACa::KeyCertSign),
        Ok(_) => Ok(()),
        Err(_) => Err(NotACa::KeyCertSign),
    }
}

/// Why a certificate may not issue others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotACa {
    BasicConstraints,
    KeyCertSign,
}

/// Number of CAs allowed below this one, if it is limited.
pub(crate) fn path_length(certificate: &X509Certificate<'_>) -> Option<u32> {
    certificate.basic_constraints().ok().flatten().and_then(|constraints| constraints.value.path_len_constraint)
}

/// Does the certificate carry a name constraint on URIs, permitted or excluded? webpki refuses every chain
/// with one (RUSTSEC-2026-0098).
pub(crate) fn constrains_uris(certificate: &X509Certificate<'_>) -> bool {
    certificate.extensions().iter().any(|extension| {
        let ParsedExtension::NameConstraints(constraints) = extension.parsed_extension() else {
            return false;
        };
        let mut subtrees =
            [&constraints.permitted_subtrees, &constraints.excluded_subtrees].into_iter().flatten().flatten();
        subtrees.any(|subtree| matches!(subtree.base, GeneralName::URI(_) | GeneralName::Invalid(..)))
    })
}

/// What a new certificate says.
pub(crate) struct Template<'a> {
    /// DER Name of the issuer, byte by byte its subject.
    pub(crate) issuer: &'a [u8],
    /// DER Name of the subject.
    pub(crate) subject: &'a [u8],
    /// DER SubjectPublicKeyInfo of the subject.
    pub(crate) spki: &'a [u8],
    pub(crate) not_before: Timestamp,
    pub(crate) not_after: Timestamp,
    /// DER extensions, in their order.
    pub(crate) extensions: Vec<Vec<u8>>,
}

impl Template<'_> {
    /// Signs with the issuer's key, under a fresh random serial number of 127 bits (RFC 5280 §4.1.2.2).
    pub(crate) fn sign(&self, key: &CaKey) -> Result<CertificateDer<'static>, KeyError> {
        self.sign_as(key, &random_serial::<16>()?)
    }

    /// Signs with the issuer's key, under this serial number.
    pub(crate) fn sign_as(&self, key: &CaKey, serial: &[u8]) -> Result<CertificateDer<'static>, KeyError> {
        let algorithm = key.signature_algorithm()?;
        let version_3 = der::tlv(der::CONTEXT_CONSTRUCTED, &der::unsigned(&[2]));
        let validity = der::sequence(&[der::time(self.not_before), der::time(self.not_after)]);
        let extensions = der::tlv(der::CONTEXT_CONSTRUCTED | 3, &der::sequence(&self.extensions));
        let serial = der::unsigned(serial);
        let body = der::sequence(&[
            version_3.as_slice(),
            &serial,
            algorithm,
            self.issuer,
            &validity,
            self.subject,
            self.spki,
            &extensions,
        ]);
        let signature = der::bit_string(&key.sign(&body)?);
        Ok(CertificateDer::from(der::sequence(&[body.as_slice(), algorithm, &signature])))
    }
}

/// Random, positive and of constant length.
pub(crate) fn random_serial<const N: usize>() -> Result<[u8; N], KeyError> {
    let mut serial = [0_u8; N];
    aws_lc_rs::rand::fill(&mut serial).map_err(|_| KeyError::Generate)?;
    if let Some(first) = serial.first_mut() {
        *first = *first & 0x7f | 0x40;
    }
    Ok(serial)
}

/// What a revocation list says (RFC 5280 §5).
pub(crate) struct RevocationTemplate<'a> {
    /// DER Name of the CA, byte by byte its subject.
    pub(crate) issuer: &'a [u8],
    /// Its key identifier.
    pub(crate) key_id: &'a [u8],
    pub(crate) this_update: Timestamp,
    pub(crate) next_update: Timestamp,
    /// Grows from list to list.
    pub(crate) number: u64,
    /// Serial numbers, and since when.
    pub(crate) revoked: &'a BTreeMap<Vec<u8>, Timestamp>,
}

impl RevocationTemplate<'_> {
    /// Signs with the CA's key.
    pub(crate) fn sign(&self, key: &CaKey) -> Result<CertificateRevocationListDer<'static>, KeyError> {
        let algorithm = key.signature_algorithm()?;
        let entry =
            |(serial, since): (&Vec<u8>, &Timestamp)| der::sequence(&[der::unsigned(serial), der::time(*since)]);
        let entries: Vec<_> = self.revoked.iter().map(entry).collect();
        // The list is left out when it would be empty.
        let entries = if entries.is_empty() { Vec::new() } else { der::sequence(&entries) };
        let authority = der::sequence(&[der::tlv(der::CONTEXT, self.key_id)]);
        let extensions = [
            der::extension(arc::AUTHORITY_KEY_ID, false, &authority),
            der::extension(arc::CRL_NUMBER, false, &der::unsigned(&self.number.to_be_bytes())),
        ];
        let body = der::sequence(&[
            // Version 2.
            der::unsigned(&[1]).as_slice(),
            algorithm,
            self.issuer,
            &der::time(self.this_update),
            &der::time(self.next_update),
            &entries,
            &der::tlv(der::CONTEXT_CONSTRUCTED, &der::sequence(&extensions)),
        ]);
        let signature = der::bit_string(&key.sign(&body)?);
        Ok(CertificateRevocationListDer::from(der::sequence(&[body.as_slice(), algorithm, &signature])))
    }
}

/// Extension numbers below id-ce, `2.5.29` (RFC 5280 §4.2.1).
pub(crate) mod arc {
    pub(crate) const SUBJECT_KEY_ID: u8 = 14;
    pub(crate) const KEY_USAGE: u8 = 15;
    pub(crate) const SUBJECT_ALT_NAME: u8 = 17;
    pub(crate) const BASIC_CONSTRAINTS: u8 = 19;
    pub(crate) const CRL_NUMBER: u8 = 20;
    pub(crate) const NAME_CONSTRAINTS: u8 = 30;
    pub(crate) const AUTHORITY_KEY_ID: u8 = 35;
    pub(crate) const EXTENDED_KEY_USAGE: u8 = 37;
}

/// Key identifier of a public key: the first 20 bytes of the SHA-256 of its SubjectPublicKeyInfo (RFC 7093 §2).
pub(crate) fn key_identifier(spki: &[u8]) -> Vec<u8> {
    crate::pin::SpkiPin::of_spki(spki).as_bytes().iter().copied().take(20).collect()
}

/// The subject key identifier of a CA certificate, as its leaves must repeat it; `None` if it has none.
pub(crate) fn subject_key_identifier(certificate: &X509Certificate<'_>) -> Option<Vec<u8>> {
    certificate.extensions().iter().find_map(|extension| {
        let ParsedExtension::SubjectKeyIdentifier(identifier) = extension.parsed_extension() else {
            return None;
        };
        Some(identifier.0.to_vec())
    })
}

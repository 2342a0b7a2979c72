//! Judging a CA folder before anything is issued from it, so that a mistake shows here and not at every peer.

use std::collections::BTreeMap;
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;

use super::error::{CaError, CaWarning, ChainHint};
use super::files::Material;
use super::{Ca, Issuer, LinkKeys, request};
use crate::certificate::{self, NotACa};
use crate::pin::SpkiPin;
use crate::timestamp::Timestamp;

/// Below this much remaining life a warning is given.
const SOON: Duration = Duration::from_secs(7 * 24 * 60 * 60);

pub(super) fn check(mut material: Material, now: Timestamp) -> Result<Ca, CaError> {
    drop_duplicates(&mut material);
    check_issuing(&material, now)?;
    let chain = check_chain(&material, now)?;
    let paths = material.paths;
    let unreadable = |reason| CaError::Certificate { file: paths.cert.clone(), index: 1, reason };
    let issuer = Issuer::of(&material.certificate).map_err(unreadable)?;
    if issuer.not_after.minus(SOON) < now {
        material.warnings.push(CaWarning::ExpiresSoon { file: paths.cert.clone(), not_after: issuer.not_after });
    }
    let link_keys = LinkKeys::derive(material.key.secret_der())
        .map_err(|error| CaError::Key { file: paths.key, reason: error.to_string() })?;
    let ca = Ca {
        key: material.key,
        chain,
        roots: material.roots,
        issuer,
        link_keys,
        layout: material.layout,
        warnings: material.warnings,
        announced: Vec::new(),
        next: Vec::new(),
        others: Vec::new(),
        revoked: BTreeMap::new(),
    };
    super::trial::sign_and_verify(&ca, now).map_err(|reason| CaError::Trial { file: paths.cert, reason })?;
    Ok(ca)
}

fn drop_duplicates(material: &mut Material) {
    let before = material.roots.len();
    let mut kept: Vec<CertificateDer<'static>> = Vec::new();
    for root in std::mem::take(&mut material.roots) {
        if !kept.contains(&root) {
            kept.push(root);
        }
    }
    material.roots = kept;
    let count = before - material.roots.len();
    if count > 0 {
        material.warnings.push(CaWarning::DuplicateRoots { file: material.paths.root.clone(), count });
    }
}

/// The issuing certificate by itself, and its key.
fn check_issuing(material: &Material, now: Timestamp) -> Result<(), CaError> {
    let paths = &material.paths;
    let file = &paths.cert;
    let issuing = parse(&material.certificate, file, 1)?;
    check_ca(&issuing, file)?;
    let key_pin = SpkiPin::of_spki(&material.key.spki());
    let cert_pin = SpkiPin::of_spki(issuing.public_key().raw);
    if key_pin != cert_pin {
        return Err(CaError::KeyMismatch { key_file: paths.key.clone(), cert_file: file.clone(), key_pin, cert_pin });
    }
    check_time(&issuing, file, now)
}

/// Walks from the issuing certificate to a root. Gives what is to be presented: the issuing certificate and the
/// intermediates above it, without the root unless it is the issuing certificate itself.
fn check_chain(material: &Material, now: Timestamp) -> Result<Vec<CertificateDer<'static>>, CaError> {
    let paths = &material.paths;
    for (index, root) in material.roots.iter().enumerate() {
        check_root(&parse(root, &paths.root, index + 1)?, &paths.root)?;
    }
    let mut presented = vec![material.certificate.clone()];
    let mut current = &material.certificate;
    let mut rest = material.chain.iter();
    while !material.roots.contains(current) {
        let child = parse(current, &paths.cert, 1)?;
        if let Some(root) = material.roots.iter().find(|root| issuer_fits(&child, root)) {
            check_above(root, &paths.root, presented.len(), now)?;
            break;
        }
        let next = rest.next().filter(|next| issuer_fits(&child, next));
        let next = next.ok_or_else(|| broken(&child, material))?;
        check_above(next, &paths.chain, presented.len(), now)?;
        presented.push(next.clone());
        current = next;
    }
    Ok(presented)
}

/// A CA above the issuing one, with `below` CAs under it.
fn check_above(der: &CertificateDer<'_>, file: &str, below: usize, now: Timestamp) -> Result<(), CaError> {
    let ca = parse(der, file, 1)?;
    check_ca(&ca, file)?;
    check_time(&ca, file, now)?;
    check_path_length(&ca, file, below)
}

fn check_root(root: &X509Certificate<'_>, file: &str) -> Result<(), CaError> {
    let named = root.subject().as_raw() == root.issuer().as_raw();
    // The signature of a root whose kind of key is not supported cannot be checked; if it is needed, that is an error
    // of its own.
    if named && (request::check_key(root.public_key()).is_err() || issued(root, root)) {
        return Ok(());
    }
    Err(CaError::RootNotSelfSigned {
        file: file.to_owned(),
        subject: root.subject().to_string(),
        issuer: root.issuer().to_string(),
    })
}

/// Why nobody continues the chain above `child`.
fn broken(child: &X509Certificate<'_>, material: &Material) -> CaError {
    let paths = &material.paths;
    let of_that_name = |der: &&CertificateDer<'_>| {
        certificate::parse(der).is_ok_and(|ca| ca.subject().as_raw() == child.issuer().as_raw())
    };
    let named: Vec<_> = material.roots.iter().chain(&material.chain).filter(of_that_name).collect();
    // A key too weak to verify with looks like a wrong key.
    for der in &named {
        let file = if material.roots.contains(*der) { &paths.root } else { &paths.chain };
        if let Some(error) = certificate::parse(der).ok().and_then(|ca| check_ca(&ca, file).err()) {
            return error;
        }
    }
    let hint = if named.iter().any(|der| issuer_fits(child, der)) {
        ChainHint::OutOfOrder
    } else if named.is_empty() {
        ChainHint::Missing
    } else {
        ChainHint::OtherKey
    };
    CaError::BrokenChain {
        chain_file: paths.chain.clone(),
        root_file: paths.root.clone(),
        issuer: child.issuer().to_string(),
        hint,
    }
}

fn parse<'a>(der: &'a CertificateDer<'_>, file: &str, index: usize) -> Result<X509Certificate<'a>, CaError> {
    certificate::parse(der).map_err(|reason| CaError::Certificate { file: file.to_owned(), index, reason })
}

fn check_ca(ca: &X509Certificate<'_>, file: &str) -> Result<(), CaError> {
    certificate::may_issue(ca).map_err(|problem| match problem {
        NotACa::BasicConstraints => CaError::NotACa { file: file.to_owned() },
        NotACa::KeyCertSign => CaError::NoKeyCertSign { file: file.to_owned() },
    })?;
    if certificate::constrains_uris(ca) {
        return Err(CaError::UriNameConstraints { file: file.to_owned() });
    }
    let weak = |reason: String| CaError::Weak { file: file.to_owned(), subject: ca.subject().to_string(), reason };
    request::check_key(ca.public_key()).map_err(|reason| weak(format!("its key is {reason}")))?;
    let self_signed = ca.subject().as_raw() == ca.issuer().as_raw();
    // Nobody verifies a root's signature on itself, so an old hash there does no harm.
    match (self_signed, weak_hash(ca)) {
        (false, Some(hash)) => Err(weak(format!("it is signed with {hash}; have it issued again with SHA-256"))),
        _ => Ok(()),
    }
}

/// SHA-1 and MD5 signatures by their OIDs (RFC 3279 §2.2).
fn weak_hash(certificate: &X509Certificate<'_>) -> Option<&'static str> {
    match certificate.signature_algorithm.algorithm.to_id_string().as_str() {
        "1.2.840.113549.1.1.5" | "1.2.840.10045.4.1" | "1.3.14.3.2.29" => Some("SHA-1"),
        "1.2.840.113549.1.1.4" => Some("MD5"),
        _ => None,
    }
}

fn check_time(ca: &X509Certificate<'_>, file: &str, now: Timestamp) -> Result<(), CaError> {
    let (not_before, not_after) = (certificate::not_before(ca), certificate::not_after(ca));
    if now > not_after {
        return Err(CaError::Expired { file: file.to_owned(), not_after, now });
    }
    if now < not_before {
        return Err(CaError::NotYetValid { file: file.to_owned(), not_before, now });
    }
    Ok(())
}

fn check_path_length(ca: &X509Certificate<'_>, file: &str, below: usize) -> Result<(), CaError> {
    match certificate::path_length(ca) {
        Some(allowed) if usize::try_from(allowed).is_ok_and(|allowed| below > allowed) => {
            Err(CaError::PathLength { file: file.to_owned(), subject: ca.subject().to_string(), allowed, below })
        }
        _ => Ok(()),
    }
}

fn issuer_fits(child: &X509Certificate<'_>, issuer: &CertificateDer<'_>) -> bool {
    certificate::parse(issuer).is_ok_and(|issuer| issued(child, &issuer))
}

/// Name and signature fit.
fn issued(child: &X509Certificate<'_>, issuer: &X509Certificate<'_>) -> bool {
    child.issuer().as_raw() == issuer.subject().as_raw() && child.verify_signature(Some(issuer.public_key())).is_ok()
}

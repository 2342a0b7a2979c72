//! Certificate requests: only the public key is taken, and only if its owner signed the request (threats C4, C6).

use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::error::IssueError;

/// Larger than any request with a sane key.
const MAX_REQUEST: usize = 16 * 1024;
const P256: &str = "1.2.840.10045.3.1.7";
const P384: &str = "1.3.132.0.34";
const ED25519: &str = "1.3.101.112";
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// DER SubjectPublicKeyInfo of a request whose signature fits.
pub(super) fn public_key(csr_der: &[u8]) -> Result<Vec<u8>, IssueError> {
    let bad = |reason: &str| IssueError::BadRequest { reason: reason.to_owned() };
    if csr_der.len() > MAX_REQUEST {
        return Err(bad("larger than 16 KiB"));
    }
    let (rest, request) = X509CertificationRequest::from_der(csr_der)
        .map_err(|error| IssueError::BadRequest { reason: error.to_string() })?;
    if !rest.is_empty() {
        return Err(bad("bytes follow the request"));
    }
    let key = &request.certification_request_info.subject_pki;
    check_key(key).map_err(|reason| IssueError::KeyNotAllowed { reason })?;
    request.verify_signature().map_err(|_| IssueError::NotProved)?;
    Ok(key.raw.to_vec())
}

/// Keys that every verifier and every Envoy can use: ECDSA on P-256 and P-384, RSA of 2048 to 8192 bits.
pub(super) fn check_key(key: &SubjectPublicKeyInfo<'_>) -> Result<(), String> {
    let algorithm = key.algorithm.algorithm.to_id_string();
    let problem = match key.parsed() {
        Ok(PublicKey::EC(_)) => {
            let curve = key.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
            match curve.map(|oid| oid.to_id_string()).as_deref() {
                Some(P256 | P384) => return Ok(()),
                Some("1.3.132.0.35") => "ECDSA on P-521".to_owned(),
                Some(other) => format!("ECDSA on curve {other}"),
                None => "ECDSA without a named curve".to_owned(),
            }
        }
        Ok(PublicKey::RSA(rsa)) if RSA_BITS.contains(&rsa.key_size()) => return Ok(()),
        Ok(PublicKey::RSA(rsa)) => format!("RSA of {} bits", rsa.key_size()),
        Ok(_) if algorithm == ED25519 => "Ed25519".to_owned(),
        Ok(_) => format!("algorithm {algorithm}"),
        Err(error) => format!("unreadable key: {error}"),
    };
    Err(format!("{problem}; use ECDSA P-256 or P-384, or RSA of 2048 to 8192 bits"))
}

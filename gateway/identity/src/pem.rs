//! PEM files as people really have them: BOM, CRLF, text before the blocks, several blocks, legacy headers.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use zeroize::Zeroizing;

use crate::certificate;

/// Why a text is not PEM.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PemError {
    /// `-----BEGIN` without its `-----END`.
    #[error("block {0} has no END line")]
    NoEnd(String),
    /// The body is not base64.
    #[error("block {0} is not base64")]
    Base64(String),
    /// Not UTF-8 and so not PEM.
    #[error("is not text")]
    NotText,
}

/// One block: its label and its decoded body.
pub(crate) struct Block {
    /// `CERTIFICATE`, `PRIVATE KEY`, …
    pub(crate) label: String,
    /// A legacy `Proc-Type: 4,ENCRYPTED` header was there; the body is not decoded then.
    pub(crate) encrypted: bool,
    pub(crate) der: Zeroizing<Vec<u8>>,
}

impl Block {
    pub(crate) fn is_certificate(&self) -> bool {
        matches!(self.label.as_str(), "CERTIFICATE" | "X509 CERTIFICATE")
    }
}

/// Splits a file into its blocks. Text outside blocks is ignored (RFC 7468 §2).
pub(crate) fn blocks(bytes: &[u8]) -> Result<Vec<Block>, PemError> {
    let text = std::str::from_utf8(bytes).map_err(|_| PemError::NotText)?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut blocks = Vec::new();
    let mut lines = text.lines().map(str::trim);
    while let Some(line) = lines.next() {
        let Some(label) = line.strip_prefix("-----BEGIN ").and_then(|rest| rest.strip_suffix("-----")) else {
            continue;
        };
        let end = format!("-----END {label}-----");
        let mut body = Zeroizing::new(String::new());
        let mut encrypted = false;
        let mut ended = false;
        for line in lines.by_ref() {
            if line == end {
                ended = true;
                break;
            }
            if line.contains(':') {
                // RFC 1421 header, written by old OpenSSL for encrypted keys.
                encrypted |= line.contains("ENCRYPTED");
            } else {
                body.push_str(line);
            }
        }
        if !ended {
            return Err(PemError::NoEnd(label.to_owned()));
        }
        let der = if encrypted {
            Vec::new()
        } else {
            STANDARD.decode(body.as_bytes()).map_err(|_| PemError::Base64(label.to_owned()))?
        };
        blocks.push(Block { label: label.to_owned(), encrypted, der: Zeroizing::new(der) });
    }
    Ok(blocks)
}

/// Writes one block, 64 characters a line.
pub(crate) fn encode(label: &str, der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    let mut rest = body.as_str();
    while let Some((line, tail)) = rest.split_at_checked(64) {
        text.push_str(line);
        text.push('\n');
        rest = tail;
    }
    if !rest.is_empty() {
        text.push_str(rest);
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

/// Why a text holds no usable certificates.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// Not PEM.
    #[error("not valid PEM: {0}")]
    Pem(String),
    /// PEM without a `CERTIFICATE` block.
    #[error("holds no certificate (PEM block CERTIFICATE)")]
    Nothing,
    /// A private key among certificates that are meant to be handed out.
    #[error("holds a private key; remove it here and treat it as disclosed")]
    PrivateKey,
    /// A certificate cannot be read.
    #[error("certificate {index} cannot be read: {reason}")]
    Certificate {
        /// Position, from 1.
        index: usize,
        /// What is wrong with it.
        reason: String,
    },
}

/// Reads all certificates of a PEM text, such as the bundle of a Peer file. Other blocks are ignored, except private
/// keys.
///
/// # Errors
/// [`BundleError`].
pub fn certificates_from_pem(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, BundleError> {
    let blocks = blocks(text).map_err(|error| BundleError::Pem(error.to_string()))?;
    if blocks.iter().any(|block| block.label.ends_with("PRIVATE KEY")) {
        return Err(BundleError::PrivateKey);
    }
    let ders = blocks.iter().filter(|block| block.is_certificate()).map(|block| block.der.to_vec());
    let certificates: Vec<_> = ders.map(CertificateDer::from).collect();
    if certificates.is_empty() {
        return Err(BundleError::Nothing);
    }
    for (index, certificate) in certificates.iter().enumerate() {
        certificate::parse(certificate).map_err(|reason| BundleError::Certificate { index: index + 1, reason })?;
    }
    Ok(certificates)
}

/// PEM of several certificates, in their order.
#[must_use]
pub fn certificates_to_pem(certificates: &[CertificateDer<'_>]) -> String {
    certificates.iter().map(|certificate| encode("CERTIFICATE", certificate)).collect()
}

/// PEM of revocation lists (RFC 7468 §7).
#[must_use]
pub fn crls_to_pem(lists: &[CertificateRevocationListDer<'_>]) -> String {
    lists.iter().map(|list| encode("X509 CRL", list)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_read_back_as_written() {
        for length in [0, 1, 47, 48, 49, 95, 96, 97, 1000] {
            let der: Vec<u8> = (0..length).map(|n| u8::try_from(n % 251).unwrap()).collect();
            let text = format!("before\n{}between\n{}", encode("A", &der), encode("B C", &[1]));
            assert!(text.lines().all(|line| line.len() <= 64));
            let read = blocks(text.as_bytes()).unwrap();
            let read: Vec<_> = read.iter().map(|block| (block.label.as_str(), block.der.as_slice())).collect();
            assert_eq!(read, [("A", der.as_slice()), ("B C", &[1])], "{length}");
        }
    }

    #[test]
    fn a_block_must_end_with_its_own_label() {
        let text = "-----BEGIN A-----\nAAAA\n-----END B-----\n";
        assert_eq!(blocks(text.as_bytes()).err(), Some(PemError::NoEnd("A".to_owned())));
    }

    #[test]
    fn legacy_encrypted_keys_are_marked_and_not_decoded() {
        let text = "-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nnot base64\n\
                    -----END EC PRIVATE KEY-----\n";
        let read = blocks(text.as_bytes()).unwrap();
        assert!(read.len() == 1 && read.iter().all(|block| block.encrypted && block.der.is_empty()));
    }
}

//! PEM files as people really have them: BOM, CRLF, text before the blocks, several blocks, legacy headers.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;
use zeroize::Zeroizing;

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

/// PEM of several certificates, in their order.
#[must_use]
pub fn certificates_to_pem(certificates: &[CertificateDer<'_>]) -> String {
    certificates.iter().map(|certificate| encode("CERTIFICATE", certificate)).collect()
}

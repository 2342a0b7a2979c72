//! Certificate revocation lists from local files.

use std::path::Path;

use rustls_pki_types::CertificateRevocationListDer;

use crate::pem;

/// Why a revocation list file cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CrlError {
    /// The file cannot be read.
    #[error("crl: cannot read {file}: {reason}")]
    Read {
        /// Its path.
        file: String,
        /// What the system says.
        reason: String,
    },
    /// Neither PEM blocks `X509 CRL` nor DER.
    #[error("crl: {file}: {reason}")]
    Format {
        /// Its path.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// Reads a file of one DER list or of any number of PEM ones, and checks that each can be parsed.
///
/// # Errors
/// [`CrlError`].
pub fn load(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, CrlError> {
    let file = path.display().to_string();
    let bytes =
        std::fs::read(path).map_err(|error| CrlError::Read { file: file.clone(), reason: error.to_string() })?;
    parse(&bytes).map_err(|reason| CrlError::Format { file, reason })
}

fn parse(bytes: &[u8]) -> Result<Vec<CertificateRevocationListDer<'static>>, String> {
    let lists: Vec<_> = if bytes.first() == Some(&0x30) {
        vec![CertificateRevocationListDer::from(bytes.to_vec())]
    } else {
        let blocks = pem::blocks(bytes).map_err(|error| error.to_string())?;
        let lists = blocks.into_iter().filter(|block| block.label == "X509 CRL");
        lists.map(|block| CertificateRevocationListDer::from(block.der.to_vec())).collect()
    };
    if lists.is_empty() {
        return Err("holds no X509 CRL block".to_owned());
    }
    for list in &lists {
        crate::trust::check_crl(list)?;
    }
    Ok(lists)
}

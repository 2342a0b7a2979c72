//! What a process keeps over a restart, as one text: its certificate, the certificate's key, and a gateway also the keys that
//! replicas share. It is meant for a place that nobody else sees, best a file system in memory.

use rustls_pki_types::CertificateDer;
use zeroize::Zeroizing;

use crate::ca::LinkKeys;
use crate::identity::{Identity, IdentityError};
use crate::key::PrivateKey;
use crate::pem;

/// Label of the block with the three link keys, one after the other.
const LINK_KEYS: &str = "EASTWAY LINK KEYS";
/// Label of the key of the leaf (RFC 5958).
const PRIVATE_KEY: &str = "PRIVATE KEY";

/// Why a kept text is of no use.
#[derive(Debug, thiserror::Error)]
pub enum KeptError {
    /// It is not what [`to_pem`] writes.
    #[error("{0}")]
    Pem(String),
    /// A block is not there or not of its length.
    #[error("the block {0} is missing or cut short")]
    Missing(&'static str),
    /// Certificate and key do not make an identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// All of it as PEM. Wiped from memory when dropped.
#[must_use]
pub fn to_pem(chain: &[CertificateDer<'_>], key: &PrivateKey, links: Option<&LinkKeys>) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::new());
    for certificate in chain {
        text.push_str(&pem::encode("CERTIFICATE", certificate));
    }
    text.push_str(&Zeroizing::new(pem::encode(PRIVATE_KEY, key.secret_pkcs8())));
    if let Some(links) = links {
        let links = Zeroizing::new([links.reset, links.connection_id, links.token].concat());
        text.push_str(&Zeroizing::new(pem::encode(LINK_KEYS, &links)));
    }
    text
}

/// What [`to_pem`] wrote.
///
/// # Errors
/// [`KeptError`]
pub fn from_pem(bytes: &[u8]) -> Result<(Identity, PrivateKey, Option<LinkKeys>), KeptError> {
    let blocks = pem::blocks(bytes).map_err(|error| KeptError::Pem(error.to_string()))?;
    let chain = blocks.iter().filter(|block| block.is_certificate());
    let chain = chain.map(|block| CertificateDer::from(block.der.to_vec())).collect();
    let body = |label| blocks.iter().find(|block| block.label == label).map(|block| &block.der);
    let key = body(PRIVATE_KEY).ok_or(KeptError::Missing(PRIVATE_KEY))?;
    let links = body(LINK_KEYS).map(|der| link_keys(der).ok_or(KeptError::Missing(LINK_KEYS))).transpose()?;
    let key = PrivateKey::from_pkcs8(key.to_vec());
    Ok((Identity::new(chain, &key)?, key, links))
}

fn link_keys(bytes: &[u8]) -> Option<LinkKeys> {
    let (reset, rest) = bytes.split_first_chunk()?;
    let (connection_id, rest) = rest.split_first_chunk()?;
    Some(LinkKeys { reset: *reset, connection_id: *connection_id, token: rest.try_into().ok()? })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::ca::{Ca, InitOptions};
    use crate::{SpiffeId, csr};

    #[test]
    fn f16_what_was_kept_is_the_same_identity_and_half_of_it_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("cacerts");
        Ca::init(&folder, &InitOptions::new("onprem.example")).unwrap();
        let ca = Ca::load(&folder).unwrap();
        let (key, csr) = csr::new_key_and_csr().unwrap();
        let id = SpiffeId::gateway("onprem.example").unwrap();
        let chain = ca.issue(&csr, &id, Duration::from_secs(3600), SystemTime::now()).unwrap();
        let text = to_pem(&chain, &key, Some(&ca.link_keys()));

        let (identity, _, links) = from_pem(text.as_bytes()).unwrap();
        assert_eq!((identity.id(), identity.chain()), (&id, chain.as_slice()));
        assert_eq!(links, Some(ca.link_keys()));
        let alone = to_pem(&chain, &key, None);
        assert!(matches!(from_pem(alone.as_bytes()), Ok((_, _, None))));
        for end in 0..text.len() - 1 {
            let half = from_pem(&text.as_bytes()[..end]);
            assert!(half.is_err() || end + 1 >= alone.len(), "{end} bytes");
            assert!(!matches!(half, Ok((_, _, Some(_)))), "{end} bytes");
        }
        let (other, _) = csr::new_key_and_csr().unwrap();
        let mixed = to_pem(&chain, &other, Some(&ca.link_keys()));
        assert!(matches!(from_pem(mixed.as_bytes()), Err(KeptError::Identity(IdentityError::KeyMismatch))));
    }
}

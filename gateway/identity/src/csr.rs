//! Certificate requests: a key is made where it is used and only its public half travels.

use rcgen::{CertificateParams, DistinguishedName, KeyPair};

use crate::key::{KeyError, PrivateKey};

/// Makes a fresh P-256 key and a PKCS#10 request (DER) that proves its possession.
///
/// The request names nobody: who asks is what the connection to the CA proves.
///
/// # Errors
/// [`KeyError`]: the crypto provider failed.
pub fn new_key_and_csr() -> Result<(PrivateKey, Vec<u8>), KeyError> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(|_| KeyError::Generate)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let request = params.serialize_request(&key).map_err(|_| KeyError::Sign)?;
    Ok((PrivateKey::from_pkcs8(key.serialize_der()), request.der().to_vec()))
}

//! Certificates for every tunnel but ours, which has a CA of its own: ECDSA P-256, one root, one leaf for each gateway.

use std::path::Path;

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

/// The two gateways' names, in their certificates and as names of files.
pub const NAMES: [&str; 2] = ["gw-a", "gw-b"];

/// Writes `root.pem`, and for each gateway `NAME.pem`, `NAME.key`, and both in one, `NAME.both.pem`, as haproxy wants it.
///
/// # Errors
/// A key cannot be made or a file not be written.
pub fn write(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // Unlike the name that the leaves have by default: they would count as signed by themselves.
    params.distinguished_name.push(DnType::CommonName, "root");
    std::fs::write(folder.join("root.pem"), params.self_signed(&key)?.pem())?;
    let root = Issuer::new(params, key);
    for name in NAMES {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![name.to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let (certificate, key) = (params.signed_by(&key, &root)?.pem(), key.serialize_pem());
        std::fs::write(folder.join(format!("{name}.pem")), &certificate)?;
        std::fs::write(folder.join(format!("{name}.key")), &key)?;
        std::fs::write(folder.join(format!("{name}.both.pem")), [certificate, key].concat())?;
    }
    Ok(())
}

//! Certificates made by rcgen, an implementation that shares nothing with the code under test, to any wish.

use std::path::Path;
use std::time::{Duration, SystemTime};

use eastway_identity::{CertificateDer, CertificateRevocationListDer, Identity, PrivateKey, SpkiPin};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CrlDistributionPoint,
    CrlIssuingDistributionPoint, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber, SignatureAlgorithm,
};

use crate::support::{DAY, noon};

/// How a test spoils a certificate before it is signed.
pub(crate) type Change = fn(&mut CertificateParams);

/// A CA with its key, to sign whatever a test needs.
pub(crate) struct Authority {
    params: CertificateParams,
    key: KeyPair,
    der: CertificateDer<'static>,
}

impl Authority {
    /// A self-signed CA; `change` may spoil it.
    pub(crate) fn root(name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        Self::root_with(name, &rcgen::PKCS_ECDSA_P256_SHA256, change)
    }

    pub(crate) fn root_with(
        name: &str,
        algorithm: &'static SignatureAlgorithm,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Self {
        let (mut params, key) = (ca_params(name), KeyPair::generate_for(algorithm).unwrap());
        change(&mut params);
        let der = CertificateDer::from(params.self_signed(&key).unwrap().der().to_vec());
        Self { params, key, der }
    }

    /// A CA signed by this one; `change` may spoil it.
    pub(crate) fn child(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        self.child_with_key(name, KeyPair::generate().unwrap(), change)
    }

    pub(crate) fn child_with_key(&self, name: &str, key: KeyPair, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = ca_params(name);
        params.use_authority_key_identifier_extension = true;
        change(&mut params);
        let der = CertificateDer::from(params.signed_by(&key, &self.issuer()).unwrap().der().to_vec());
        Self { params, key, der }
    }

    /// A leaf as this crate issues them, for `uri`; `change` may spoil it.
    pub(crate) fn leaf(&self, uri: &str, change: impl FnOnce(&mut CertificateParams)) -> Leaf {
        self.make_leaf(KeyPair::generate().unwrap(), uri, change)
    }

    /// A leaf of a given key.
    pub(crate) fn leaf_with(&self, key: KeyPair, uri: &str) -> Leaf {
        self.make_leaf(key, uri, |_| {})
    }

    fn make_leaf(&self, key: KeyPair, uri: &str, change: impl FnOnce(&mut CertificateParams)) -> Leaf {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![uri_san(uri)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = (noon() - DAY / 24).into();
        params.not_after = (noon() + DAY).into();
        change(&mut params);
        let der = CertificateDer::from(params.signed_by(&key, &self.issuer()).unwrap().der().to_vec());
        Leaf { der, key }
    }

    /// A revocation list of these serial numbers.
    pub(crate) fn crl(
        &self,
        serials: &[u64],
        made: SystemTime,
        life: Duration,
    ) -> CertificateRevocationListDer<'static> {
        self.make_crl(serials, made, life, None)
    }

    /// A revocation list that claims to be for certificates of one distribution point.
    pub(crate) fn scoped_crl(&self, serials: &[u64], uri: &str) -> CertificateRevocationListDer<'static> {
        let scope = CrlIssuingDistributionPoint {
            distribution_point: CrlDistributionPoint { uris: vec![uri.to_owned()] },
            scope: None,
        };
        self.make_crl(serials, noon() - DAY, 30 * DAY, Some(scope))
    }

    fn make_crl(
        &self,
        serials: &[u64],
        made: SystemTime,
        life: Duration,
        issuing_distribution_point: Option<CrlIssuingDistributionPoint>,
    ) -> CertificateRevocationListDer<'static> {
        let revoked = serials.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: made.into(),
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: made.into(),
            next_update: (made + life).into(),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer()).unwrap().der().clone()
    }

    pub(crate) fn der(&self) -> CertificateDer<'static> {
        self.der.clone()
    }

    pub(crate) fn pem(&self) -> String {
        eastway_identity::certificates_to_pem(&[self.der()])
    }

    pub(crate) fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    pub(crate) fn key(&self) -> KeyPair {
        KeyPair::try_from(self.key.serialize_der()).unwrap()
    }

    pub(crate) fn pin(&self) -> SpkiPin {
        SpkiPin::of_certificate(&self.der).unwrap()
    }

    fn issuer(&self) -> Issuer<'_, &KeyPair> {
        Issuer::from_params(&self.params, &self.key)
    }
}

/// A leaf with its key.
pub(crate) struct Leaf {
    pub(crate) der: CertificateDer<'static>,
    pub(crate) key: KeyPair,
}

impl Leaf {
    /// The chain as a gateway presents it.
    pub(crate) fn under(&self, authorities: &[&Authority]) -> Vec<CertificateDer<'static>> {
        std::iter::once(self.der.clone()).chain(authorities.iter().map(|authority| authority.der())).collect()
    }

    pub(crate) fn identity(&self, authorities: &[&Authority]) -> Identity {
        Identity::new(self.under(authorities), &PrivateKey::from_pkcs8(self.key.serialize_der())).unwrap()
    }
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Test");
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = (noon() - 30 * DAY).into();
    params.not_after = (noon() + 300 * DAY).into();
    params
}

pub(crate) fn uri_san(uri: &str) -> SanType {
    SanType::URI(uri.try_into().unwrap())
}

/// A SAN extension of raw `[6]` names, for what rcgen refuses to write.
pub(crate) fn raw_uris(uris: &[&[u8]]) -> CustomExtension {
    let names: Vec<u8> = uris
        .iter()
        .flat_map(|uri| [0x86, u8::try_from(uri.len()).unwrap()].into_iter().chain(uri.iter().copied()))
        .collect();
    let mut value = vec![0x30, u8::try_from(names.len()).unwrap()];
    value.extend(names);
    CustomExtension::from_oid_content(&[2, 5, 29, 17], value)
}

/// A critical name constraint that permits URIs of one host.
pub(crate) fn uri_constraint(host: &str) -> CustomExtension {
    let base: Vec<u8> = [&[0x86, u8::try_from(host.len()).unwrap()], host.as_bytes()].concat();
    let subtree = [&[0x30, u8::try_from(base.len()).unwrap()], base.as_slice()].concat();
    let permitted = [&[0xa0, u8::try_from(subtree.len()).unwrap()], subtree.as_slice()].concat();
    let value = [&[0x30, u8::try_from(permitted.len()).unwrap()], permitted.as_slice()].concat();
    let mut extension = CustomExtension::from_oid_content(&[2, 5, 29, 30], value);
    extension.set_criticality(true);
    extension
}

/// Writes the four files of Istio's layout.
pub(crate) fn write_cacerts(dir: &Path, issuing: &Authority, between: &[&Authority], root: &Authority) {
    let chain: String = std::iter::once(issuing).chain(between.iter().copied()).map(Authority::pem).collect();
    std::fs::write(dir.join("ca-cert.pem"), issuing.pem()).unwrap();
    write_key(&dir.join("ca-key.pem"), &issuing.key_pem());
    std::fs::write(dir.join("cert-chain.pem"), chain).unwrap();
    std::fs::write(dir.join("root-cert.pem"), root.pem()).unwrap();
}

pub(crate) fn write_key(path: &Path, pem: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::write(path, pem).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

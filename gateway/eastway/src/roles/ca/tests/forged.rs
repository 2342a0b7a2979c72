//! Certificates that are no proof of who asks: whoever has a CA's key can write into one what he likes.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use eastway_identity::ca::{Ca, InitOptions, public_issuers};
use eastway_identity::local::{LocalTrust, Wanted, client_config};
use eastway_identity::{CertificateDer, csr, system_clock};
use eastway_proto::ca::v1 as wire;
use eastway_proto::ca::v1::certificate_authority_client::CertificateAuthorityClient;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose, SanType};
use rustls::ClientConfig;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls_pki_types::PrivatePkcs8KeyDer;

use super::{Cluster, id};
use crate::local::dial::dial;

/// A certificate with these identities, signed by the CA in `folder`, and its key.
fn forge(folder: &Path, identities: &[&str]) -> (Vec<CertificateDer<'static>>, KeyPair) {
    let pem = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&pem("ca-cert.pem"), KeyPair::from_pem(&pem("ca-key.pem")).unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = identities.iter().map(|id| SanType::URI((*id).try_into().unwrap())).collect();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    let leaf = params.signed_by(&key, &issuer).unwrap();
    (vec![leaf.der().clone(), Ca::load(folder).unwrap().chain()[0].clone()], key)
}

/// Asks for a certificate with this one and nothing else.
async fn ask(cluster: &Cluster, chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> Result<(), String> {
    let issuers = public_issuers(&cluster.folder.path().join("public")).unwrap();
    let trust = LocalTrust::new(Arc::new(move || issuers.clone()), Wanted::Identity(id("eastway-ca")));
    let mut tls = ClientConfig::clone(&client_config(None, trust, system_clock()).unwrap());
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    let key = provider.key_provider.load_private_key(key.into()).unwrap();
    tls.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, key)));
    let channel = dial(&cluster.address, Arc::new(tls)).await.map_err(|error| error.to_string())?;
    let (_key, csr) = csr::new_key_and_csr().unwrap();
    let request = wire::SignRequest { csr: csr.into(), ttl_seconds: 0 };
    let signed = CertificateAuthorityClient::new(channel).sign(request).await;
    signed.map(drop).map_err(|status| status.to_string())
}

#[tokio::test]
async fn c4_c6_a_leaf_with_two_identities_or_of_another_domain_or_ca_proves_nothing() {
    let cluster = Cluster::start().await;
    let (own, other) = (cluster.folder.path().join("cacerts"), cluster.folder.path().join("other"));
    Ca::init(&other, &InitOptions::new("b.example")).unwrap();
    let (web, gateway) =
        ("spiffe://a.example/ns/shop/sa/web", "spiffe://a.example/ns/eastway-system/sa/eastway-gateway");
    let theirs = "spiffe://b.example/ns/shop/sa/web";
    let (chain, key) = forge(&own, &[web]);
    ask(&cluster, chain, &key).await.unwrap();

    let anchors = Ca::load(&own).unwrap().issuers();
    let trust = LocalTrust::new(Arc::new(move || anchors.clone()), Wanted::TrustDomain("a.example".into()));
    let cases: [(&Path, &[&str], &str); 8] = [
        (&own, &[web, gateway], "it has 2 URI SANs"),
        (&own, &[gateway, web], "it has 2 URI SANs"),
        (&own, &[web, theirs], "it has 2 URI SANs"),
        (&own, &[theirs, web], "it has 2 URI SANs"),
        (&own, &[], "no URI SAN"),
        (&own, &[theirs], "wanted is an identity of a.example"),
        (&other, &[theirs], "a certificate of another CA"),
        (&other, &[web], "a certificate of another CA"),
    ];
    for (folder, identities, words) in cases {
        let (chain, key) = forge(folder, identities);
        // What the log says of it.
        let said = trust.verify(&chain, SystemTime::now()).unwrap_err().to_string();
        assert!(said.contains(words), "{identities:?}: {said}");
        let before = cluster.refused("handshake");
        ask(&cluster, chain, &key).await.unwrap_err();
        assert!(cluster.refused("handshake") > before, "{identities:?}: not counted");
    }
}

//! `ca init` and the leaves a CA issues: a request contributes its key and nothing else (C4, C6).

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use eastway_identity::ca::{Ca, InitError, InitOptions, IssueError, KeyKind, Layout, MAX_LEAF_TTL, Root};
use eastway_identity::{SpiffeId, csr};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::pki::uri_san;
use crate::support::{Cloud, DAY, noon};

const MINUTE: Duration = Duration::from_secs(60);

fn gateway() -> SpiffeId {
    SpiffeId::gateway("onprem.example").unwrap()
}

fn options() -> InitOptions {
    InitOptions { now: noon() - DAY, ..InitOptions::new("onprem.example") }
}

fn seconds(time: std::time::SystemTime) -> i64 {
    i64::try_from(time.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()).unwrap()
}

#[test]
fn init_writes_istios_layout_with_a_key_for_its_owner_only() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("deep/cacerts");
    let made = Ca::init(&dir, &options()).unwrap();
    let mut names: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["ca-cert.pem", "ca-key.pem", "cert-chain.pem", "root-cert.pem"]);
    let mode = std::fs::metadata(dir.join("ca-key.pem")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let loaded = Ca::load_at(&dir, noon()).unwrap();
    assert_eq!(loaded.layout(), Layout::IstioCacerts);
    assert_eq!(loaded.pins(), made.pins());
    assert_eq!(loaded.chain(), loaded.roots(), "its own root, which is presented because peers pin its key");
    assert!(loaded.warnings().is_empty());
    assert!(loaded.bundle_pem().starts_with("-----BEGIN CERTIFICATE-----\n"));
    assert_eq!(loaded.bundle_pem().matches("BEGIN").count(), 1);
}

#[test]
fn init_never_overwrites() {
    for name in ["ca-cert.pem", "ca-key.pem", "cert-chain.pem", "root-cert.pem", "root-key.pem", "tls.key", "ca.crt"] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(name), "precious").unwrap();
        let error = Ca::init(dir.path(), &options()).unwrap_err();
        assert_eq!(error, InitError::Exists { file: dir.path().join(name) });
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left behind");
        assert_eq!(std::fs::read_to_string(dir.path().join(name)).unwrap(), "precious");
    }
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/nonexistent/key", dir.path().join("ca-key.pem")).unwrap();
    assert!(matches!(Ca::init(dir.path(), &options()), Err(InitError::Exists { .. })), "dangling links count");
}

#[test]
fn init_says_what_it_cannot_write() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = Ca::init(&file.join("cacerts"), &options()).unwrap_err().to_string();
    assert!(error.contains("file/cacerts: cannot write: "), "{error}");
    let error = Ca::init(dir.path(), &InitOptions::new("Not A Domain")).unwrap_err().to_string();
    assert_eq!(error, "trust domain: trust domain must be 1 to 255 characters of a-z, 0-9, '.', '-' and '_'");
}

#[test]
fn shared_roots_may_be_our_folders_istios_or_intermediates() {
    let root = Cloud::new("corp");
    let issuing = Cloud::under("onprem", root.dir.path());
    assert_eq!(issuing.ca.chain().len(), 1);
    assert_eq!(issuing.ca.roots(), root.ca.roots());

    // Istio's tools/certs keeps the root as root-cert.pem and root-key.pem.
    let istio = tempfile::tempdir().unwrap();
    for (from, to) in [("ca-cert.pem", "root-cert.pem"), ("ca-key.pem", "root-key.pem")] {
        std::fs::copy(root.dir.path().join(from), istio.path().join(to)).unwrap();
    }
    let issuing = Cloud::under("gke", istio.path());
    assert_eq!(issuing.ca.roots(), root.ca.roots());

    // A folder whose CA is pathlen:0 cannot be a root.
    let dir = tempfile::tempdir().unwrap();
    let below = InitOptions { root: Root::Shared(issuing.dir.path().to_owned()), ..options() };
    let error = Ca::init(dir.path(), &below).unwrap_err().to_string();
    assert!(error.contains("has pathlen:0 but 1 CAs stand below it"), "{error}");

    let missing = InitOptions { root: Root::Shared("/nonexistent".into()), ..options() };
    let error = Ca::init(&dir.path().join("x"), &missing).unwrap_err().to_string();
    assert!(error.starts_with("shared root: /nonexistent: no CA here"), "{error}");
    assert!(!dir.path().join("x").exists());
}

#[test]
fn a_new_ca_under_a_shared_root_does_not_outlive_it() {
    let root = tempfile::tempdir().unwrap();
    Ca::init(root.path(), &InitOptions { lifetime: 30 * DAY, ..options() }).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::init(dir.path(), &InitOptions { root: Root::Shared(root.path().to_owned()), ..options() }).unwrap();
    assert_eq!(ca.not_after(), noon() + 29 * DAY);
}

#[test]
fn p384_cas_issue_too() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::init(dir.path(), &InitOptions { key: KeyKind::P384, ..options() }).unwrap();
    ca.issue_identity(&gateway(), DAY, noon()).unwrap();
}

#[test]
fn a_leaf_says_what_the_ca_decides() {
    let cloud = Cloud::new("onprem");
    let (_, request) = csr::new_key_and_csr().unwrap();
    let chain = cloud.ca.issue(&request, &gateway(), DAY, noon()).unwrap();
    assert_eq!(&chain[1..], cloud.ca.chain());
    let (_, leaf) = X509Certificate::from_der(&chain[0]).unwrap();
    let san = leaf.subject_alternative_name().unwrap().unwrap();
    assert_eq!(san.value.general_names, [GeneralName::URI(gateway().as_str())]);
    let usage = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && usage.server_auth && !usage.any && usage.other.is_empty());
    assert!(leaf.key_usage().unwrap().unwrap().value.digital_signature());
    assert!(!leaf.key_usage().unwrap().unwrap().value.key_cert_sign());
    assert!(!leaf.is_ca());
    assert_eq!(leaf.validity().not_before.timestamp(), seconds(noon() - MINUTE), "backdated by 60 s");
    assert_eq!(leaf.validity().not_after.timestamp(), seconds(noon() + DAY));
    assert!(leaf.raw_serial().len() == 18, "a serial of 79 random bits, and of 64 that name the identity");
    let serial = eastway_identity::crl::serial(&chain[0]).unwrap();
    let may_be = |id: &str| eastway_identity::crl::may_be_of(&serial, id);
    assert!(may_be(gateway().as_str()) && !may_be("spiffe://onprem.example/ns/shop/sa/other"));
    let of_others = "40be0c2b26bfcb7b1fe38473c84d880d";
    assert!(eastway_identity::crl::may_be_of(of_others, gateway().as_str()), "another CA's may be anybody's");
    let again = cloud.ca.issue(&request, &gateway(), DAY, noon()).unwrap();
    assert_ne!(X509Certificate::from_der(&again[0]).unwrap().1.raw_serial(), leaf.raw_serial());
}

#[test]
fn c4_c6_a_request_contributes_its_key_and_nothing_else() {
    let cloud = Cloud::new("onprem");
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "spiffe://victim.example/admin");
    params.subject_alt_names = vec![
        uri_san("spiffe://victim.example/ns/eastway-system/sa/eastway-gateway"),
        uri_san("spiffe://onprem.example/second"),
        rcgen::SanType::DnsName("*.example".try_into().unwrap()),
    ];
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
    // An extension that no parser knows must not make the request fail either: it is not read.
    params.custom_extensions = vec![rcgen::CustomExtension::from_oid_content(&[1, 2, 3, 4, 5], vec![5, 0])];
    let request = params.serialize_request(&key).unwrap();
    let chain = cloud.ca.issue(request.der(), &gateway(), DAY, noon()).unwrap();
    let (_, leaf) = X509Certificate::from_der(&chain[0]).unwrap();
    let san = leaf.subject_alternative_name().unwrap().unwrap();
    assert_eq!(san.value.general_names, [GeneralName::URI(gateway().as_str())]);
    assert!(!leaf.is_ca());
    assert!(!leaf.key_usage().unwrap().unwrap().value.key_cert_sign());
    assert_eq!(leaf.extensions().len(), 5);
    assert_eq!(leaf.subject().to_string(), "O=onprem.example");
    assert_eq!(leaf.public_key().subject_public_key.data.as_ref(), key.public_key_raw());
}

#[test]
fn bad_requests_are_refused() {
    let cloud = Cloud::new("onprem");
    let issue = |request: &[u8]| cloud.ca.issue(request, &gateway(), DAY, noon()).unwrap_err();
    let (_, good) = csr::new_key_and_csr().unwrap();
    let mut unproved = good.clone();
    *unproved.last_mut().unwrap() ^= 1;
    assert_eq!(issue(&unproved), IssueError::NotProved);
    let mut trailing = good.clone();
    trailing.push(0);
    assert_eq!(issue(&trailing).to_string(), "the certificate request cannot be read: bytes follow the request");
    assert!(matches!(issue(&[]), IssueError::BadRequest { .. }));
    assert!(matches!(issue(&good[..good.len() / 2]), IssueError::BadRequest { .. }));
    assert!(matches!(issue(&vec![0x30; 17 * 1024]), IssueError::BadRequest { .. }));
    for (algorithm, expected) in [
        (&rcgen::PKCS_ED25519, "the request's key is not allowed: Ed25519; use ECDSA P-256"),
        (&rcgen::PKCS_ECDSA_P521_SHA512, "the request's key is not allowed: ECDSA on P-521; use ECDSA P-256"),
    ] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let request = CertificateParams::default().serialize_request(&key).unwrap();
        let error = issue(request.der()).to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn lives_are_cut_to_a_day_and_to_the_cas_own() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::init(dir.path(), &InitOptions { lifetime: 3 * DAY, ..options() }).unwrap();
    let end = ca.not_after();
    let until = |ttl, now| ca.issue_identity(&gateway(), ttl, now).unwrap().not_after();
    assert_eq!(until(400 * DAY, noon()), noon() + MAX_LEAF_TTL);
    assert_eq!(until(Duration::MAX, noon()), noon() + MAX_LEAF_TTL);
    assert_eq!(until(3 * MINUTE, noon()), noon() + 3 * MINUTE);
    assert_eq!(until(DAY, end - MINUTE), end);

    let issue = |ttl, now| ca.issue_identity(&gateway(), ttl, now).unwrap_err();
    assert_eq!(issue(Duration::from_millis(999), noon()), IssueError::NoLife);
    assert_eq!(
        issue(DAY, end + MINUTE).to_string(),
        "the CA expired 2030-03-19T17:46:40Z (clock says 2030-03-19T17:47:40Z)"
    );
    assert!(matches!(issue(DAY, noon() - 10 * DAY), IssueError::CaNotYetValid { .. }));
}

#[test]
fn link_keys_are_stable_over_restarts_and_differ_between_clusters_and_uses() {
    let (onprem, gke) = (Cloud::new("onprem"), Cloud::new("gke"));
    let keys = onprem.ca.link_keys();
    assert_eq!(Ca::load_at(onprem.dir.path(), noon()).unwrap().link_keys(), keys);
    let other = gke.ca.link_keys();
    let all = [keys.reset, keys.connection_id, keys.token, other.reset, other.connection_id, other.token];
    for (index, key) in all.iter().enumerate() {
        assert!(!all[..index].contains(key));
        assert_ne!(key, &[0; 64]);
    }
}

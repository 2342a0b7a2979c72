//! Revocation lists: revoked gateways are refused and cut (C1), stale lists refuse new peers only (C3).

use std::sync::Arc;
use std::time::Duration;

use eastway_identity::crl::{self, CrlProblem};
use eastway_identity::reauth;
use eastway_identity::{CertificateRevocationListDer, PeerTrust, SpiffeId, TrustStore, VerifyError, VerifyReason};
use rcgen::SerialNumber;

use crate::pki::Authority;
use crate::support::{DAY, noon};

const GATEWAY: &str = "spiffe://onprem.example/ns/eastway-system/sa/eastway-gateway";
const MONTH: Duration = Duration::from_secs(30 * 24 * 60 * 60);

fn trust(pinned: &Authority, crls: Vec<CertificateRevocationListDer<'static>>) -> Arc<TrustStore> {
    let peer = PeerTrust {
        name: Arc::from("onprem"),
        gateway: SpiffeId::parse(GATEWAY).unwrap(),
        pins: vec![pinned.pin()],
        bundle: Vec::new(),
        crls,
    };
    TrustStore::new(vec![peer]).unwrap()
}

fn leaf(ca: &Authority, serial: u64) -> Vec<eastway_identity::CertificateDer<'static>> {
    ca.leaf(GATEWAY, |p| p.serial_number = Some(SerialNumber::from(serial))).under(&[ca])
}

#[test]
fn c1_a_revoked_gateway_is_refused_anew_and_on_a_live_link() {
    let ca = Authority::root("onprem", |_| {});
    let chain = leaf(&ca, 7);
    let store = trust(&ca, Vec::new());
    let accepted = store.verify(&chain, noon(), Some("onprem")).unwrap();
    let watch = store.subscribe();

    let revoking = trust(&ca, vec![ca.crl(&[6, 7], noon() - DAY, MONTH)]);
    let expected = VerifyError::Revoked { what: "gateway certificate", peer: Arc::from("onprem") };
    assert_eq!(revoking.verify(&chain, noon(), None), Err(expected.clone()));
    assert_eq!(revoking.verify_live(&chain, noon(), "onprem"), Err(expected));
    assert_eq!(revoking.verify(&leaf(&ca, 8), noon(), None).unwrap().peer, accepted.peer);

    let peer = PeerTrust {
        name: Arc::from("onprem"),
        gateway: SpiffeId::parse(GATEWAY).unwrap(),
        pins: vec![ca.pin()],
        bundle: Vec::new(),
        crls: vec![ca.crl(&[7], noon() - DAY, MONTH)],
    };
    store.replace(vec![peer]).unwrap();
    assert!(watch.has_changed().unwrap(), "a new list alone wakes the links");
    assert_eq!(store.verify_live(&chain, noon(), "onprem").unwrap_err().reason(), VerifyReason::CertRevoked);
}

#[test]
fn the_first_list_to_end_is_told_and_of_one_ca_only_the_youngest_counts() {
    let (ca, other) = (Authority::root("onprem", |_| {}), Authority::root("other", |_| {}));
    assert_eq!(trust(&ca, Vec::new()).crl_next_update(), None);
    let lists = vec![ca.crl(&[], noon() - 2 * DAY, DAY), ca.crl(&[], noon(), 2 * MONTH), other.crl(&[], noon(), MONTH)];
    assert_eq!(trust(&ca, lists).crl_next_update(), Some(noon() + MONTH));
}

#[test]
fn c3_an_expired_list_refuses_new_peers_but_not_live_links() {
    let ca = Authority::root("onprem", |_| {});
    let store = trust(&ca, vec![ca.crl(&[7], noon() - 2 * DAY, DAY)]);
    let fine = leaf(&ca, 8);
    let error = store.verify(&fine, noon(), None).unwrap_err();
    assert_eq!(error.reason(), VerifyReason::CrlExpired);
    assert_eq!(
        error.to_string(),
        "crl: nextUpdate passed (2030-03-16T17:46:40Z, our clock says 2030-03-17T17:46:40Z); new peers refused (strict); \
         install a fresh list of peer onprem's CA"
    );
    store.verify_live(&fine, noon(), "onprem").unwrap();
    // A live link may renew its leaf, or a late list would cut every link within a day.
    let renewed = ca.leaf(GATEWAY, |p| p.serial_number = Some(SerialNumber::from(9))).identity(&[&ca]);
    let (link, role) = (reauth::Exporter([7; 32]), reauth::Role::Dialler);
    let proof = reauth::sign(&renewed, &link, role, [1; 32]).unwrap();
    reauth::verify(&store, &proof, &link, role, [1; 32], "onprem", noon()).unwrap();
    // What it lists stays revoked, for both.
    let revoked = leaf(&ca, 7);
    assert_eq!(store.verify(&revoked, noon(), None).unwrap_err().reason(), VerifyReason::CertRevoked);
    assert_eq!(store.verify_live(&revoked, noon(), "onprem").unwrap_err().reason(), VerifyReason::CertRevoked);
}

#[test]
fn a_fresh_list_beside_an_expired_one_counts() {
    let ca = Authority::root("onprem", |_| {});
    let (old, fresh) = (ca.crl(&[7], noon() - 2 * DAY, DAY), ca.crl(&[], noon() - DAY, MONTH));
    for crls in [vec![old.clone(), fresh.clone()], vec![fresh, old]] {
        let store = trust(&ca, crls);
        store.verify(&leaf(&ca, 8), noon(), None).unwrap();
        // Nothing is ever taken off a list by forgetting it.
        assert_eq!(store.verify(&leaf(&ca, 7), noon(), None).unwrap_err().reason(), VerifyReason::CertRevoked);
    }
}

#[test]
fn lists_of_other_issuers_do_no_harm() {
    let (ca, other) = (Authority::root("onprem", |_| {}), Authority::root("other", |_| {}));
    let store = trust(&ca, vec![other.crl(&[7], noon() - 2 * DAY, DAY)]);
    store.verify(&leaf(&ca, 7), noon(), None).unwrap();
}

#[test]
fn a_list_of_the_right_name_by_another_key_refuses_unless_a_right_one_is_there() {
    let (ca, impostor) = (Authority::root("onprem", |_| {}), Authority::root("onprem", |_| {}));
    let wrong = impostor.crl(&[], noon() - DAY, MONTH);
    let error = trust(&ca, vec![wrong.clone()]).verify(&leaf(&ca, 8), noon(), None).unwrap_err();
    assert_eq!(
        error.to_string(),
        "crl: the list of peer onprem's CA cannot be used: it is signed by another key; new peers refused (strict)"
    );
    // After a rotation that kept the CA's name, lists of both keys lie side by side.
    for crls in [vec![wrong.clone(), ca.crl(&[7], noon() - DAY, MONTH)], vec![ca.crl(&[7], noon() - DAY, MONTH), wrong]]
    {
        let store = trust(&ca, crls);
        store.verify(&leaf(&ca, 8), noon(), None).unwrap();
        assert_eq!(store.verify(&leaf(&ca, 7), noon(), None).unwrap_err().reason(), VerifyReason::CertRevoked);
    }
}

#[test]
fn a_revoked_intermediate_is_refused_above_and_at_the_pin() {
    let root = Authority::root("root", |_| {});
    let issuing = root.child("issuing", |p| p.serial_number = Some(SerialNumber::from(5)));
    let leaf = issuing.leaf(GATEWAY, |_| {});
    let list = root.crl(&[5], noon() - DAY, MONTH);
    let expected = VerifyError::Revoked { what: "CA certificate", peer: Arc::from("onprem") };
    let chain = leaf.under(&[&issuing, &root]);
    trust(&root, vec![root.crl(&[6], noon() - DAY, MONTH)]).verify(&chain, noon(), None).unwrap();
    assert_eq!(trust(&root, vec![list.clone()]).verify(&chain, noon(), None), Err(expected.clone()));
    assert_eq!(trust(&issuing, vec![list]).verify(&chain, noon(), None), Err(expected));
}

#[test]
fn a_ca_that_may_not_sign_lists_cannot_vouch_by_one() {
    let root = Authority::root("root", |_| {});
    let issuing = root.child("issuing", |p| p.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign]);
    // rcgen itself refuses to sign such a list, so it is made by the same name and key with the right.
    let with_right = root.child_with_key("issuing", issuing.key(), |_| {});
    let chain = issuing.leaf(GATEWAY, |_| {}).under(&[&issuing, &root]);
    let error = trust(&root, vec![with_right.crl(&[], noon() - DAY, MONTH)]).verify(&chain, noon(), None).unwrap_err();
    assert_eq!(error.reason(), VerifyReason::CrlExpired, "{error}");
    assert!(error.to_string().contains("IssuerNotCrlSigner"), "{error}");
}

#[test]
fn files_of_lists_are_read_as_pem_and_der() {
    let (a, b) = (Authority::root("a", |_| {}), Authority::root("b", |_| {}));
    let (one, two) = (a.crl(&[1, 2], noon() - DAY, MONTH), b.crl(&[], noon() - 2 * DAY, DAY));
    let pem = |list: &CertificateRevocationListDer<'_>| pem_crl(list);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("crl.pem");
    std::fs::write(&path, format!("\u{feff}# lists\r\n{}\r\n{}", pem(&one), pem(&two))).unwrap();
    assert_eq!(crl::load(&path).unwrap(), [one.clone(), two.clone()]);
    std::fs::write(&path, &one).unwrap();
    assert_eq!(crl::load(&path).unwrap(), std::slice::from_ref(&one));

    let info = crl::describe(&one).unwrap();
    assert_eq!((info.issuer.as_str(), info.entries), ("O=Test, CN=a", 2));
    assert_eq!(info.next_update.to_system(), noon() - DAY + MONTH);

    let problems = crl::problems(&[one, two], &[a.der()], noon());
    assert_eq!(problems.len(), 2);
    assert_eq!(
        problems[0].to_string(),
        "crl: nextUpdate passed; new peers refused (strict): the list of \"O=Test, CN=b\" ended 2030-03-16T17:46:40Z, our \
         clock says 2030-03-17T17:46:40Z"
    );
    assert_eq!(problems[1], CrlProblem::UnknownIssuer { issuer: "O=Test, CN=b".to_owned() });
}

fn pem_crl(list: &CertificateRevocationListDer<'_>) -> String {
    eastway_identity::certificates_to_pem(&[eastway_identity::CertificateDer::from(list.to_vec())])
        .replace("CERTIFICATE", "X509 CRL")
}

#[test]
fn unreadable_lists_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("crl.pem");
    let ca = Authority::root("onprem", |_| {});
    let good = pem_crl(&ca.crl(&[1], noon(), DAY));
    let file = path.display();
    for (bytes, expected) in [
        (b"".to_vec(), format!("crl: {file}: holds no revocation list (PEM block X509 CRL, or DER)")),
        (ca.pem().into_bytes(), format!("crl: {file}: holds no revocation list (PEM block X509 CRL, or DER)")),
        (good.as_bytes()[..120].to_vec(), format!("crl: {file}: block X509 CRL has no END line")),
        (vec![0x30, 3, 1, 2, 3], format!("crl: {file}: list 1: ")),
        (
            format!("{good}-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n").into_bytes(),
            format!("crl: {file}: list 2: "),
        ),
        (vec![b' '; 17 * 1024 * 1024], format!("crl: {file} is larger than 16 MiB")),
    ] {
        std::fs::write(&path, bytes).unwrap();
        let error = crl::load(&path).unwrap_err().to_string();
        assert!(error.starts_with(&expected), "expected: {expected}\n got:      {error}");
    }
    let error = crl::load(&dir.path().join("absent")).unwrap_err().to_string();
    assert!(error.starts_with("crl: cannot read "), "{error}");
}

#[test]
fn serial_numbers_are_compared_whatever_their_first_bit() {
    for serial in [1, 0x7f, 0x80, 0xff, 0x100, 0x8000, u64::MAX, u64::MAX >> 1] {
        let root = Authority::root("root", |_| {});
        let issuing = root.child("issuing", |p| p.serial_number = Some(SerialNumber::from(serial)));
        let revoked = issuing.leaf(GATEWAY, |p| p.serial_number = Some(SerialNumber::from(serial))).under(&[&issuing]);
        // By webpki's reading at the leaf, by ours for a list whose scope excludes it and for the pinned CA.
        let plain = issuing.crl(&[serial], noon() - DAY, MONTH);
        let scoped = issuing.scoped_crl(&[serial], "http://crl.example/other");
        let above = root.crl(&[serial], noon() - DAY, MONTH);
        for list in [plain, scoped, above] {
            let store = trust(&issuing, vec![list]);
            assert_eq!(
                store.verify(&revoked, noon(), None).unwrap_err().reason(),
                VerifyReason::CertRevoked,
                "{serial}"
            );
        }
    }
}

#[test]
fn a_list_for_another_distribution_point_still_revokes_what_it_names() {
    let ca = Authority::root("onprem", |_| {});
    let elsewhere = |serial: u64| {
        ca.leaf(GATEWAY, |p| {
            p.serial_number = Some(SerialNumber::from(serial));
            p.crl_distribution_points =
                vec![rcgen::CrlDistributionPoint { uris: vec!["http://crl.example/mine".to_owned()] }];
        })
        .under(&[&ca])
    };
    let store = trust(&ca, vec![ca.scoped_crl(&[0xc8], "http://crl.example/other")]);
    assert_eq!(store.verify(&elsewhere(0xc8), noon(), None).unwrap_err().reason(), VerifyReason::CertRevoked);
    store.verify(&elsewhere(9), noon(), None).unwrap();
}

use std::time::Duration;

use super::*;
use crate::ca::{self, Ca, InitOptions, KeyKind, rotate};
use crate::spiffe::SpiffeId;

const DOMAIN: &str = "gke.example";

struct Folder {
    dir: tempfile::TempDir,
    ca: Ca,
}

fn folder() -> Folder {
    let dir = tempfile::tempdir().unwrap();
    Ca::init(&dir.path().join("ca"), &InitOptions::new(DOMAIN)).unwrap();
    let ca = Ca::load(&dir.path().join("ca")).unwrap();
    Folder { dir, ca }
}

fn now() -> SystemTime {
    SystemTime::now()
}

fn made(ca: &Ca) -> AnchorDer {
    ca.anchors(DOMAIN, now()).unwrap().remove(0)
}

#[test]
fn what_a_ca_publishes_passes_for_its_own_domain_and_no_other() {
    let Folder { dir, ca } = folder();
    let der = made(&ca);
    let anchor = Anchor::check(&der, DOMAIN, &ca.pins(), now()).unwrap();
    assert_eq!(anchor.pin(), ca.pin());
    assert_eq!(anchor.to_der(), der);
    assert!(anchor.revoked().is_empty());
    let refused = |der: &AnchorDer, domain| Anchor::check(der, domain, &ca.pins(), now()).unwrap_err().to_string();
    assert_eq!(
        refused(&der, "onprem.example"),
        "its name constraint is gke.example, and its trust domain is onprem.example"
    );
    assert!(refused(&AnchorDer { crl: Vec::new(), ..der.clone() }, DOMAIN).contains("without a revocation list"));
    // The issuing certificate itself says nothing of trust domains.
    let bare = AnchorDer { certificate: ca.chain()[0].to_vec(), ..der.clone() };
    let error = Anchor::check(&bare, DOMAIN, &ca.pins(), now()).unwrap_err();
    assert!(matches!(error, AnchorError::Unconstrained | AnchorError::NotSelfSigned), "{error}");
    let other = folder();
    assert!(matches!(
        Anchor::check(&der, DOMAIN, &other.ca.pins(), now()),
        Err(AnchorError::NotPinned { presented }) if presented == ca.pin()
    ));
    let foreign_list = AnchorDer { crl: made(&other.ca).crl, ..der.clone() };
    assert_eq!(refused(&foreign_list, DOMAIN), AnchorError::OtherCrl.to_string());
    let late = now() + Duration::from_secs(60 * 24 * 3600);
    assert!(matches!(Anchor::check(&der, DOMAIN, &ca.pins(), late), Err(AnchorError::CrlTime { .. })));
    for garbage in [vec![], vec![0x30, 0x80], vec![7; MAX_CERTIFICATE + 1]] {
        let der = AnchorDer { certificate: garbage, ..der.clone() };
        assert!(matches!(Anchor::check(&der, DOMAIN, &ca.pins(), now()), Err(AnchorError::Malformed { .. })));
    }
    drop(dir);
}

#[test]
fn a_revoked_certificate_is_in_the_next_list_until_it_would_have_expired() {
    let Folder { dir, ca } = folder();
    let path = dir.path().join("ca");
    let id = SpiffeId::parse("spiffe://gke.example/ns/shop/sa/web").unwrap();
    let identity = ca.issue_identity(&id, Duration::from_secs(3600), now()).unwrap();
    let serial = crate::crl::serial(&identity.chain()[0]).unwrap();
    assert_eq!(ca::revoke(&path, &[&serial], now()), Ok(1));
    let later = Ca::load(&path).unwrap();
    let anchor = Anchor::check(&made(&later), DOMAIN, &ca.pins(), now()).unwrap();
    let bytes: Vec<u8> = anchor.revoked().iter().next().unwrap().clone();
    assert_eq!((later.revoked().collect::<Vec<_>>(), ca.revoked().count()), (vec![serial], 0));
    assert_eq!(bytes, certificate::parse(&identity.chain()[0]).unwrap().raw_serial());
    for bad in ["", "1", "zz", &"00".repeat(21)] {
        assert!(ca::revoke(&path, &[bad], now()).is_err(), "{bad}");
    }
    let tomorrow = now() + Duration::from_secs(25 * 3600);
    assert_eq!(ca::revoke(&path, &["01"], tomorrow), Ok(1), "the first one has expired");
    std::fs::write(path.join("revoked.txt"), "nonsense\n").unwrap();
    assert!(Ca::load(&path).unwrap_err().to_string().contains("line 1"));
}

#[test]
fn f27_both_cas_of_a_rotation_have_an_anchor() {
    let Folder { dir, ca } = folder();
    let path = dir.path().join("ca");
    let options = InitOptions { key: KeyKind::P384, ..InitOptions::new(DOMAIN) };
    for ca in [rotate::begin(&path, &options).unwrap(), rotate::activate(&path, now()).unwrap()] {
        let anchors = ca.anchors(DOMAIN, now()).unwrap();
        let checked = anchors.iter().map(|der| Anchor::check(der, DOMAIN, &ca.pins(), now()).unwrap().pin());
        assert_eq!(checked.collect::<Vec<_>>(), ca.pins());
    }
    drop(ca);
}

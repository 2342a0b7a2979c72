//! Certificates, keys, requests and lists from files and from peers.

use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use eastway_identity::ca::{Ca, InitOptions};
use eastway_identity::{
    Anchor, AnchorDer, CertificateDer, PeerTrust, SpiffeId, SpkiPin, TrustStore, certificates_from_pem,
    certificates_to_pem, crl, reauth as again,
};

/// A leaf and its issuers as they were issued once; the keys are gone.
const CHAIN: &str = include_str!("pki/chain.pem");
/// Of the key that issued [`CHAIN`].
const PIN: &str = include_str!("pki/pin");
/// A moment when [`CHAIN`] is valid, in seconds since the Unix epoch.
const VALID_AT: &str = include_str!("pki/valid-at");
const GATEWAY: &str = "spiffe://b.example/ns/eastway-system/sa/eastway-gateway";
/// A moment when `pki/anchor.der` and its list are valid, in seconds since the Unix epoch.
const ANCHOR_VALID_AT: &str = include_str!("pki/anchor-valid-at");
const HOUR: Duration = Duration::from_secs(3_600);
const FILES: [&str; 4] = ["ca-cert.pem", "ca-key.pem", "cert-chain.pem", "root-cert.pem"];

static GOOD: LazyLock<Vec<CertificateDer<'static>>> =
    LazyLock::new(|| certificates_from_pem(CHAIN.as_bytes()).unwrap());

/// Accepts gateways of the authority of [`CHAIN`].
static TRUST: LazyLock<Arc<TrustStore>> = LazyLock::new(|| TrustStore::new(vec![peer(vec![pin()])]).unwrap());

/// A certificate authority of this process.
static AUTHORITY: LazyLock<(tempfile::TempDir, Ca)> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let ca = Ca::init(&folder.path().join("ca"), &InitOptions::new("b.example")).unwrap();
    (folder, ca)
});

/// A bundle of certificates in a Peer file.
pub fn bundle(bytes: &[u8]) {
    let Ok(read) = certificates_from_pem(bytes) else { return };
    for certificate in &read {
        // Whether it has a key that can be pinned is another question; asking must be safe.
        let _pin = SpkiPin::of_certificate(certificate);
    }
    let written = certificates_to_pem(&read);
    assert_eq!(certificates_from_pem(written.as_bytes()).ok(), (!read.is_empty()).then_some(read));
}

/// The chain that a peer shows in its handshake, as PEM: only the one that was issued is accepted.
pub fn chain(bytes: &[u8]) {
    let Ok(shown) = certificates_from_pem(bytes) else { return };
    let verdict = TRUST.verify(&shown, valid_at(), None);
    assert!(verdict.is_ok() || shown != *GOOD, "the chain that was issued is refused: {verdict:?}");
    if let Ok(verified) = verdict {
        assert_eq!(shown.first(), GOOD.first(), "another leaf was accepted");
        assert_eq!((&*verified.peer, verified.id.as_str()), ("b", GATEWAY));
    }
    assert!(TRUST.verify(&shown, valid_at() + 400 * 24 * HOUR, None).is_err(), "accepted after its end");
    assert!(TRUST.verify(&shown, valid_at(), Some("c")).is_err(), "accepted as another peer");
}

/// One of the files of a CA folder, chosen by the first byte; the others are good.
pub fn ca_folder(bytes: &[u8]) {
    let Some((which, contents)) = bytes.split_first() else { return };
    let (good, ca) = (AUTHORITY.0.path().join("ca"), &AUTHORITY.1);
    let folder = tempfile::tempdir().unwrap();
    for name in FILES {
        std::fs::copy(good.join(name), folder.path().join(name)).unwrap();
    }
    std::fs::write(folder.path().join(FILES[usize::from(*which) % FILES.len()]), contents).unwrap();
    let Ok(loaded) = Ca::load(folder.path()) else { return };
    // What loads issues what those who pinned it accept.
    let id = SpiffeId::parse(GATEWAY).unwrap();
    let now = SystemTime::now();
    let issued = loaded.issue_identity(&id, HOUR, now).unwrap();
    let trust = TrustStore::new(vec![peer(loaded.pins())]).unwrap();
    assert!(trust.verify(issued.chain(), now, Some("b")).is_ok());
    assert_eq!(loaded.pin(), ca.pin(), "one file alone cannot bring another key");
}

/// An anchor of a peer: the length of the certificate in two bytes, the certificate, the list. What passes is of one
/// domain.
pub fn anchor(bytes: &[u8]) {
    let Some((length, rest)) = bytes.split_first_chunk::<2>() else { return };
    let (certificate, list) = rest.split_at(usize::from(u16::from_be_bytes(*length)).min(rest.len()));
    let der = AnchorDer { certificate: certificate.to_vec(), crl: list.to_vec() };
    // The key is right, whatever it is: the rest has to be.
    let pins: Vec<_> = SpkiPin::of_certificate(&CertificateDer::from(certificate)).into_iter().collect();
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(ANCHOR_VALID_AT.trim().parse().unwrap());
    let Ok(anchor) = Anchor::check(&der, "gke.example", &pins, at) else { return };
    assert_eq!(anchor.to_der(), der);
    assert!(Anchor::check(&der, "onprem.example", &pins, at).is_err(), "it stands for two domains");
    assert!(Anchor::check(&der, "gke.example", &[pin()], at).is_err(), "any key will do");
    assert!(Anchor::check(&der, "gke.example", &pins, at + 60 * 24 * HOUR).is_err(), "its list never ends");
}

/// A file of revocation lists.
pub fn revocation_list(bytes: &[u8]) {
    let Ok(lists) = crl::parse(bytes) else { return };
    for list in &lists {
        let _described = crl::describe(list);
    }
    let _problems = crl::problems(&lists, &GOOD, valid_at());
    // A list that was read revokes or not; it never lets somebody in who was out.
    let with = TrustStore::new(vec![PeerTrust { crls: lists, pins: vec![other_pin()], ..peer(Vec::new()) }]);
    assert!(with.is_err() || with.unwrap().verify(&GOOD, valid_at(), None).is_err());
}

/// A certificate signing request: whatever it asks for, the leaf says what the CA decided.
pub fn signing_request(bytes: &[u8]) {
    let ca = &AUTHORITY.1;
    let (id, now) = (SpiffeId::parse(GATEWAY).unwrap(), SystemTime::now());
    let Ok(chain) = ca.issue(bytes, &id, HOUR, now) else { return };
    let verified = TrustStore::new(vec![peer(ca.pins())]).unwrap().verify(&chain, now, Some("b")).unwrap();
    assert_eq!(verified.id, id);
    assert!(verified.not_after <= now + 25 * HOUR);
}

/// A re-authentication on a link: the chain of another session proves nothing here.
pub fn reauth(bytes: &[u8]) {
    let middle = bytes.first().map_or(0, |at| usize::from(*at) * bytes.len() / 256);
    let (chain, signature) = bytes.split_at(middle);
    let chain = match certificates_from_pem(chain) {
        Ok(chain) => chain,
        Err(_) => vec![GOOD[0].clone(), GOOD[1].clone()],
    };
    for scheme in [0x0403, 0x0503, 0x0804, 0x0807, u16::from(bytes.len() as u8)] {
        let forged = again::Reauth { chain: chain.clone(), scheme, signature: signature.to_vec() };
        let role = again::Role::Dialler;
        let verdict = again::verify(&TRUST, &forged, &again::Exporter([7; 32]), role, [7; 32], "b", valid_at());
        assert!(verdict.is_err(), "nobody has the key");
    }
}

/// An identity as text.
pub fn spiffe_id(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(id) = SpiffeId::parse(text) {
        assert_eq!(id.to_string(), text, "one identity has one spelling");
        assert!(text.is_ascii() && text.len() <= 2_048 && !text.contains(['?', '#', '%', '@']));
    }
}

fn peer(pins: Vec<SpkiPin>) -> PeerTrust {
    let gateway = SpiffeId::parse(GATEWAY).unwrap();
    PeerTrust { name: "b".into(), gateway, pins, bundle: Vec::new(), crls: Vec::new() }
}

fn pin() -> SpkiPin {
    SpkiPin::parse(PIN.trim()).unwrap()
}

fn other_pin() -> SpkiPin {
    SpkiPin::parse(&format!("sha256:{}", "5a".repeat(32))).unwrap()
}

fn valid_at() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(VALID_AT.trim().parse().unwrap())
}

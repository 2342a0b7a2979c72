//! U5: whatever arrives, every reader answers with a value. Random bytes, and good inputs spoilt at random.

use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

use eastway_identity::ca::{Ca, rotate};
use eastway_identity::{
    CertificateDer, CertificateRevocationListDer, Identity, PeerTrust, PrivateKey, SpiffeId, SpkiPin, TrustStore,
    VerifyReason, certificates_from_pem, crl, csr, reauth,
};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::pki::Authority;
use crate::support::{Cloud, DAY, noon};

const GATEWAY: &str = "spiffe://onprem.example/ns/eastway-system/sa/eastway-gateway";

/// Good inputs, made once.
struct Good {
    cloud: Cloud,
    trust: Arc<TrustStore>,
    chain: Vec<CertificateDer<'static>>,
    crl: CertificateRevocationListDer<'static>,
    request: Vec<u8>,
    key: PrivateKey,
    pem: String,
}

static GOOD: LazyLock<Good> = LazyLock::new(|| {
    let ca = Authority::root("onprem", |_| {});
    let chain = ca.leaf(GATEWAY, |_| {}).under(&[&ca]);
    let crl = ca.crl(&[3, 5, 8], noon() - DAY, 2 * DAY);
    let peer = PeerTrust {
        name: "onprem".into(),
        gateway: SpiffeId::parse(GATEWAY).unwrap(),
        pins: vec![ca.pin()],
        bundle: vec![ca.der()],
        crls: vec![crl.clone()],
    };
    let (key, request) = csr::new_key_and_csr().unwrap();
    let pem = ca.pem() + &ca.key_pem();
    Good { cloud: Cloud::new("onprem"), trust: TrustStore::new(vec![peer]).unwrap(), chain, crl, request, key, pem }
});

/// One edit of a byte string: at (fraction of its length), what, how long.
#[derive(Clone, Debug)]
enum Edit {
    Set(u16, u8),
    Cut(u16, u8),
    Insert(u16, Vec<u8>),
    Truncate(u16),
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let edit = prop_oneof![
        4 => (any::<u16>(), any::<u8>()).prop_map(|(at, byte)| Edit::Set(at, byte)),
        1 => (any::<u16>(), any::<u8>()).prop_map(|(at, length)| Edit::Cut(at, length)),
        1 => (any::<u16>(), vec(any::<u8>(), 0..8)).prop_map(|(at, bytes)| Edit::Insert(at, bytes)),
        1 => any::<u16>().prop_map(Edit::Truncate),
    ];
    vec(edit, 1..6)
}

fn spoil(good: &[u8], edits: &[Edit]) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for edit in edits {
        let place = |at: u16| usize::from(at) * bytes.len() / (usize::from(u16::MAX) + 1);
        match edit {
            Edit::Set(at, byte) if !bytes.is_empty() => {
                let at = place(*at);
                bytes[at] = *byte;
            }
            Edit::Set(..) => {}
            Edit::Cut(at, length) => {
                let at = place(*at);
                let end = (at + usize::from(*length)).min(bytes.len());
                bytes.drain(at..end);
            }
            Edit::Insert(at, new) => {
                let at = place(*at);
                bytes.splice(at..at, new.iter().copied());
            }
            Edit::Truncate(at) => bytes.truncate(place(*at)),
        }
    }
    bytes
}

/// Feeds bytes to everything that reads such bytes.
fn read_everything(bytes: &[u8]) {
    let certificate = CertificateDer::from(bytes.to_vec());
    let list = CertificateRevocationListDer::from(bytes.to_vec());
    let good = &*GOOD;
    drop(SpkiPin::of_certificate(&certificate));
    drop(certificates_from_pem(bytes));
    drop(crl::parse(bytes));
    drop(crl::describe(&list));
    drop(crl::problems(std::slice::from_ref(&list), std::slice::from_ref(&certificate), noon()));
    drop(good.cloud.ca.issue(bytes, &good.cloud.gateway, DAY, noon()));
    drop(Identity::new(vec![certificate.clone()], &good.key));
    drop(Identity::new(good.chain.clone(), &PrivateKey::from_pkcs8(bytes.to_vec())));
    for chain in [
        vec![certificate.clone()],
        vec![certificate.clone(), good.chain[1].clone()],
        vec![good.chain[0].clone(), certificate.clone()],
    ] {
        drop(good.trust.verify(&chain, noon(), None));
        let forged = reauth::Reauth { chain, scheme: 0x0403, signature: bytes.to_vec() };
        let link = reauth::Exporter([0; 32]);
        let role = reauth::Role::Dialler;
        drop(reauth::verify(&good.trust, &forged, &link, role, [0; 32], "onprem", noon()));
    }
    let peer = PeerTrust {
        name: "x".into(),
        gateway: good.cloud.gateway.clone(),
        pins: good.cloud.ca.pins(),
        bundle: vec![certificate],
        crls: vec![list],
    };
    drop(TrustStore::new(vec![peer]));
}

/// Puts bytes into each file of a CA folder in turn.
fn load_everywhere(bytes: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    for names in
        [["ca-cert.pem", "ca-key.pem", "cert-chain.pem", "root-cert.pem"], ["tls.crt", "tls.key", "ca.crt", "x"]]
    {
        let folder = dir.path().join(names[0]);
        for spoilt in names {
            std::fs::create_dir_all(&folder).unwrap();
            for (from, to) in ["ca-cert.pem", "ca-key.pem", "cert-chain.pem", "root-cert.pem"].iter().zip(names) {
                std::fs::copy(GOOD.cloud.dir.path().join(from), folder.join(to)).unwrap();
            }
            std::fs::write(folder.join(spoilt), bytes).unwrap();
            drop(Ca::load_at(&folder, noon()));
            drop(rotate::stage(&folder));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn u5_random_bytes_never_panic(bytes in vec(any::<u8>(), 0..600)) {
        read_everything(&bytes);
    }

    #[test]
    fn u5_spoilt_der_never_panics(which in 0..4, edits in edits()) {
        let good: &[u8] = match which {
            0 => &GOOD.chain[0],
            1 => &GOOD.chain[1],
            2 => &GOOD.crl,
            _ => &GOOD.request,
        };
        read_everything(&spoil(good, &edits));
    }

    #[test]
    fn u5_spoilt_keys_and_pem_never_panic(pem in any::<bool>(), edits in edits()) {
        let good = if pem { GOOD.pem.as_bytes() } else { GOOD.key.secret_pkcs8() };
        let bytes = spoil(good, &edits);
        read_everything(&bytes);
    }

    #[test]
    fn i2_a_spoilt_leaf_is_never_accepted(edits in edits()) {
        let good = &*GOOD;
        let leaf = spoil(&good.chain[0], &edits);
        prop_assume!(leaf != good.chain[0].as_ref());
        let verdict = good.trust.verify(&[CertificateDer::from(leaf), good.chain[1].clone()], noon(), None);
        prop_assert!(verdict.is_err());
    }

    #[test]
    fn spiffe_ids_and_pins_are_read_back_as_written(text in "\\PC{0,80}", hash in any::<[u8; 32]>()) {
        if let Ok(id) = SpiffeId::parse(&text) {
            prop_assert_eq!(id.to_string(), text);
        }
        let pin = format!("sha256:{}", hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
        prop_assert_eq!(SpkiPin::parse(&pin).unwrap().to_string(), pin);
    }

    #[test]
    fn no_time_makes_the_verifier_panic(seconds in any::<u32>(), shift in 0..16_u32) {
        let now = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(u64::from(seconds) << shift);
        drop(GOOD.trust.verify(&GOOD.chain, now, None));
        drop(GOOD.cloud.ca.issue_identity(&GOOD.cloud.gateway, DAY, now));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn u5_spoilt_ca_folders_never_panic(edits in edits(), raw in vec(any::<u8>(), 0..300), random in any::<bool>()) {
        let bytes = if random { raw } else { spoil(GOOD.pem.as_bytes(), &edits) };
        load_everywhere(&bytes);
    }
}

#[test]
fn u5_inputs_that_broke_others_are_answered() {
    // Shapes from advisories: empty sets and sequences, huge lengths, empty RDNs, nested tags, lone headers.
    let corpus: &[&[u8]] = &[
        b"",
        b"\x30",
        b"\x30\x80",
        b"\x30\x80\x00\x00",
        b"\x30\x84\xff\xff\xff\xff",
        b"\x30\x89\x01\x00\x00\x00\x00\x00\x00\x00\x00",
        b"\x30\x00",
        b"\x30\x02\x31\x00",
        &[0x30; 600],
        &[0xa0; 600],
        b"-----BEGIN -----\n-----END -----\n",
        b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n",
        b"-----BEGIN X509 CRL-----\n-----END X509 CRL-----\n",
        b"-----BEGIN CERTIFICATE-----",
        b"-----BEGIN - - - - -\n",
        b"-----BEGIN ----------END -----",
        "\u{feff}".as_bytes(),
        b"\xef\xbb\xbf\xef\xbb\xbf-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n",
        b"\0\0\0\0",
    ];
    for bytes in corpus {
        read_everything(bytes);
        load_everywhere(bytes);
    }
}

#[test]
fn the_corpus_is_good_before_it_is_spoilt() {
    let good = &*GOOD;
    good.trust.verify(&good.chain, noon(), Some("onprem")).unwrap();
    good.cloud.ca.issue(&good.request, &good.cloud.gateway, DAY, noon()).unwrap();
    crl::describe(&good.crl).unwrap();
    assert_eq!(good.trust.verify(&good.chain, noon() + 9 * DAY, None).unwrap_err().reason(), VerifyReason::CertExpired);
}

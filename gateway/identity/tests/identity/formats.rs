//! Texts that people and other programs write: SPIFFE ids, pins, bundles.

use eastway_identity::{BundleError, SpiffeId, SpiffeIdError, SpkiPin, certificates_from_pem};

use crate::pki::Authority;

#[test]
fn spiffe_ids_follow_the_standard() {
    let id = SpiffeId::parse("spiffe://gke.example/ns/bookinfo/sa/reviews").unwrap();
    assert_eq!((id.trust_domain(), id.path()), ("gke.example", "ns/bookinfo/sa/reviews"));
    assert_eq!(id.service_account(), Some(("bookinfo", "reviews")));
    assert_eq!(id, SpiffeId::workload("gke.example", "bookinfo", "reviews").unwrap());
    let gateway = SpiffeId::gateway("gke.example").unwrap();
    assert_eq!(gateway.as_str(), "spiffe://gke.example/ns/eastway-system/sa/eastway-gateway");
    for other in ["spiffe://x/ns/a/sa", "spiffe://x/ns/a/sa/b/c", "spiffe://x/sa/a/ns/b", "spiffe://x/gateway"] {
        assert_eq!(SpiffeId::parse(other).unwrap().service_account(), None, "{other}");
    }
    let long = format!("spiffe://{}/x", "a".repeat(256));
    let longer = format!("spiffe://a/{}", "x".repeat(2048));
    for (text, expected) in [
        ("", SpiffeIdError::Scheme),
        ("spiffe:/a/b", SpiffeIdError::Scheme),
        ("http://a/b", SpiffeIdError::Scheme),
        ("spiffe:///b", SpiffeIdError::TrustDomain),
        ("spiffe://A/b", SpiffeIdError::TrustDomain),
        ("spiffe://ä/b", SpiffeIdError::TrustDomain),
        (long.as_str(), SpiffeIdError::TrustDomain),
        (longer.as_str(), SpiffeIdError::TooLong(2059)),
        ("spiffe://a", SpiffeIdError::NoPath),
        ("spiffe://a/", SpiffeIdError::NoPath),
        ("spiffe://a/b/", SpiffeIdError::Path),
        ("spiffe://a//b", SpiffeIdError::Path),
        ("spiffe://a/./b", SpiffeIdError::Path),
        ("spiffe://a/../b", SpiffeIdError::Path),
        ("spiffe://a/b c", SpiffeIdError::Path),
        ("spiffe://a/b\0", SpiffeIdError::Path),
    ] {
        assert_eq!(SpiffeId::parse(text), Err(expected), "{text}");
    }
    for (namespace, account) in [("a/b", "c"), ("a", "b/c"), ("", "b"), ("a", ".."), ("a", "")] {
        assert!(SpiffeId::workload("x", namespace, account).is_err(), "{namespace} {account}");
    }
}

#[test]
fn pins_are_hashes_of_public_keys_as_openssl_prints_them() {
    // openssl x509 -in sec1/ca-cert.pem -pubkey -noout | openssl pkey -pubin -outform der | sha256sum
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/identity/fixtures");
    let pem = std::fs::read(format!("{dir}/sec1/ca-cert.pem")).unwrap();
    let certificate = certificates_from_pem(&pem).unwrap().remove(0);
    let expected = std::fs::read_to_string(format!("{dir}/sec1/pin")).unwrap();
    assert_eq!(SpkiPin::of_certificate(&certificate).unwrap().to_string(), format!("sha256:{}", expected.trim()));

    let upper = format!("sha256:{}", expected.trim().to_uppercase());
    assert_eq!(SpkiPin::parse(&upper).unwrap(), SpkiPin::of_certificate(&certificate).unwrap());
    for text in ["", "sha256:", "sha256:00", "sha1:00", &upper[7..], &upper.replace('A', "G"), &format!("{upper}0")] {
        let error = SpkiPin::parse(text).unwrap_err().to_string();
        assert!(error.contains("sha256:<64 hexadecimal digits>"), "{text}");
    }
}

#[test]
fn bundles_of_peer_files_are_read_and_never_hold_keys() {
    let (a, b) = (Authority::root("a", |_| {}), Authority::root("b", |_| {}));
    let text = format!("# issuing\n{}\n# root\n{}", a.pem(), b.pem());
    assert_eq!(certificates_from_pem(text.as_bytes()).unwrap(), [a.der(), b.der()]);
    assert_eq!(certificates_from_pem(b""), Err(BundleError::Nothing));
    assert_eq!(certificates_from_pem((text + &a.key_pem()).as_bytes()), Err(BundleError::PrivateKey));
    let broken = format!("{}-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n", a.pem());
    assert!(matches!(certificates_from_pem(broken.as_bytes()), Err(BundleError::Certificate { index: 2, .. })));
    assert!(matches!(certificates_from_pem(b"-----BEGIN CERTIFICATE-----\n"), Err(BundleError::Pem(_))));
}

//! Hostile leaves and chains (threats C1–C6, P and U): each is refused, for its own reason.

use std::sync::Arc;

use eastway_identity::{
    CertificateDer, IdentityStore, PeerTrust, SanProblem, SpiffeId, TrustProblem, TrustStore, VerifyError,
    VerifyReason, tls,
};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose};

use crate::pki::{Authority, Change, Leaf, raw_uris, uri_constraint, uri_san};
use crate::support::{Cloud, DAY, dial, noon, trusting};

const GATEWAY: &str = "spiffe://onprem.example/ns/eastway-system/sa/eastway-gateway";

fn peer(name: &str, gateway: &str, authorities: &[&Authority]) -> PeerTrust {
    PeerTrust {
        name: Arc::from(name),
        gateway: SpiffeId::parse(gateway).unwrap(),
        pins: authorities.iter().map(|authority| authority.pin()).collect(),
        bundle: Vec::new(),
        crls: Vec::new(),
    }
}

fn store(peers: Vec<PeerTrust>) -> Arc<TrustStore> {
    TrustStore::new(peers).unwrap()
}

fn reason(trust: &TrustStore, chain: &[CertificateDer<'_>]) -> VerifyReason {
    trust.verify(chain, noon(), Some("onprem")).unwrap_err().reason()
}

/// A leaf spoilt by `change`, under a CA that is pinned for the Peer it claims to be.
fn verdict(change: impl FnOnce(&mut CertificateParams)) -> Result<(), VerifyError> {
    let ca = Authority::root("onprem", |_| {});
    let leaf = ca.leaf(GATEWAY, change);
    store(vec![peer("onprem", GATEWAY, &[&ca])]).verify(&leaf.under(&[&ca]), noon(), Some("onprem")).map(drop)
}

#[test]
fn an_unspoilt_leaf_is_accepted() {
    verdict(|_| {}).unwrap();
    // Other kinds of names beside the URI are no identity and do no harm.
    verdict(|p| p.subject_alt_names.push(rcgen::SanType::DnsName("gw.example".try_into().unwrap()))).unwrap();
    // keyUsage may be absent.
    verdict(|p| p.key_usages.clear()).unwrap();
}

#[test]
fn c4_san_games_are_refused() {
    let cases: &[(&str, Change, SanProblem)] = &[
        ("none", |p| p.subject_alt_names.clear(), SanProblem::None),
        (
            "DNS only",
            |p| p.subject_alt_names = vec![rcgen::SanType::DnsName("onprem.example".try_into().unwrap())],
            SanProblem::None,
        ),
        ("two URIs", |p| p.subject_alt_names.push(uri_san("spiffe://onprem.example/x")), SanProblem::Several(2)),
        ("the same twice", |p| p.subject_alt_names.push(uri_san(GATEWAY)), SanProblem::Several(2)),
        (
            "a second one that is not text",
            |p| {
                p.subject_alt_names.clear();
                p.custom_extensions.push(raw_uris(&[GATEWAY.as_bytes(), b"\xff\xfe"]));
            },
            SanProblem::Malformed,
        ),
        (
            "not text",
            |p| {
                p.subject_alt_names.clear();
                p.custom_extensions.push(raw_uris(&[b"spiffe://onprem.example/\xff"]));
            },
            SanProblem::Malformed,
        ),
    ];
    for (name, spoil, expected) in cases {
        assert_eq!(verdict(spoil).unwrap_err(), VerifyError::San(expected.clone()), "{name}");
    }
}

#[test]
fn c4_uris_that_only_look_like_the_gateway_are_refused() {
    for uri in [
        "spiffe://onprem.example/ns/eastway-system/sa/eastway-gateway\0",
        "spiffe://onprem.example/ns/eastway-system/sa/eastway-gateway\0.evil.example",
        "spiffe://onprem.example/ns/eastway-system/sa/eastway-gateway/",
        "spiffe://onprem.example/ns/eastway-system/sa/./eastway-gateway",
        "spiffe://onprem.example/ns/eastway-system/sa/x/../eastway-gateway",
        "spiffe://onprem.example//ns/eastway-system/sa/eastway-gateway",
        "spiffe://onprem.example/ns/eastway-system/sa/*",
        "spiffe://*.example/ns/eastway-system/sa/eastway-gateway",
        "spiffe://ONPREM.example/ns/eastway-system/sa/eastway-gateway",
        "SPIFFE://onprem.example/ns/eastway-system/sa/eastway-gateway",
        "spiffe://user@onprem.example/ns/eastway-system/sa/eastway-gateway",
        "spiffe://onprem.example:443/ns/eastway-system/sa/eastway-gateway",
        "spiffe://onprem.example/ns/eastway-system/sa/eastway-gateway?x",
        "spiffe://onprem.example/ns/eastway-system/sa/eastway-gateway#x",
        "spiffe://onprem.example/ns/eastway-system/sa/eastway%2dgateway",
        "spiffe://onprem.example",
        "spiffe://onprem.example/",
        "https://onprem.example/ns/eastway-system/sa/eastway-gateway",
        " spiffe://onprem.example/ns/eastway-system/sa/eastway-gateway",
        "",
    ] {
        let error = verdict(|p| {
            p.subject_alt_names.clear();
            p.custom_extensions.push(raw_uris(&[uri.as_bytes()]));
        });
        assert!(matches!(error, Err(VerifyError::San(SanProblem::NotSpiffe { .. }))), "{uri:?}: {error:?}");
    }
    for uri in [
        "spiffe://onprem.example/ns/eastway-system/sa/eastway-gatewaY",
        "spiffe://onprem.example/ns/bookinfo/sa/productpage",
        "spiffe://onprem.example.evil/ns/eastway-system/sa/eastway-gateway",
    ] {
        let error = verdict(|p| p.subject_alt_names = vec![uri_san(uri)]);
        assert_eq!(error.unwrap_err().reason(), VerifyReason::NotTheGateway, "{uri}");
    }
}

#[test]
fn c4_leaves_for_another_purpose_are_refused() {
    let cases: &[(&str, Change)] = &[
        ("no extendedKeyUsage", |p| p.extended_key_usages.clear()),
        ("servers only", |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]),
        ("clients only", |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]),
        ("any", |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any]),
        ("code signing", |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning]),
        ("keyCertSign", |p| p.key_usages.push(KeyUsagePurpose::KeyCertSign)),
        ("no digitalSignature", |p| p.key_usages = vec![KeyUsagePurpose::KeyEncipherment]),
        ("a CA", |p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
    ];
    for (name, spoil) in cases {
        let error = verdict(spoil).unwrap_err();
        assert_eq!(error.reason(), VerifyReason::BadPurpose, "{name}: {error}");
    }
    assert_eq!(verdict(|p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0))).unwrap_err(), VerifyError::CaLeaf);
}

#[test]
fn leaves_out_of_their_time_are_refused_with_both_times() {
    let expired = verdict(|p| p.not_after = (noon() - DAY / 24).into()).unwrap_err();
    assert_eq!(expired.reason(), VerifyReason::CertExpired);
    assert_eq!(
        expired.to_string(),
        "presented an expired certificate (gateway certificate): it ended 2030-03-17T16:46:40Z, our clock says \
         2030-03-17T17:46:40Z; renew it, or set the clock"
    );
    let early = verdict(|p| p.not_before = (noon() + DAY / 24).into()).unwrap_err();
    assert_eq!(early.reason(), VerifyReason::CertNotYetValid);
    assert_eq!(
        early.to_string(),
        "presented a certificate that is not valid yet (gateway certificate): it begins 2030-03-17T18:46:40Z, our clock \
         says 2030-03-17T17:46:40Z; the clocks differ"
    );
}

#[test]
fn f25_a_clock_far_off_refuses_and_names_the_times() {
    let ca = Authority::root("onprem", |_| {});
    let leaf = ca.leaf(GATEWAY, |_| {}).under(&[&ca]);
    let trust = store(vec![peer("onprem", GATEWAY, &[&ca])]);
    let years = 3652 * DAY;
    for (now, expected) in
        [(noon() + years, VerifyReason::CertExpired), (noon() - years, VerifyReason::CertNotYetValid)]
    {
        assert_eq!(trust.verify(&leaf, now, None).unwrap_err().reason(), expected);
    }
    let epoch = std::time::SystemTime::UNIX_EPOCH - DAY;
    assert_eq!(trust.verify(&leaf, epoch, None).unwrap_err().reason(), VerifyReason::CertNotYetValid);
}

#[test]
fn unknown_extensions_marked_critical_are_refused() {
    let mut unknown = rcgen::CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]);
    unknown.set_criticality(true);
    let error = verdict(|p| p.custom_extensions.push(unknown)).unwrap_err();
    assert_eq!(error.reason(), VerifyReason::BadChain, "{error}");
}

#[test]
fn i2_a_strangers_chain_is_refused_with_the_key_to_compare() {
    let (ours, stranger) = (Authority::root("onprem", |_| {}), Authority::root("stranger", |_| {}));
    let trust = store(vec![peer("onprem", GATEWAY, &[&ours])]);
    let leaf = stranger.leaf("spiffe://stranger.example/gateway", |_| {});
    let error = trust.verify(&leaf.under(&[&stranger]), noon(), None).unwrap_err();
    assert_eq!(error.reason(), VerifyReason::NotPinned);
    assert_eq!(
        error.to_string(),
        format!("presented key {} (CA \"O=Test, CN=stranger\") which is not pinned for any peer", stranger.pin())
    );
}

#[test]
fn p11_names_of_strangers_cannot_forge_log_lines() {
    let evil = "ok\nERROR forged \u{1b}[31m\u{202e}\0".to_owned() + &"x".repeat(10_000);
    let stranger = Authority::root(&evil, |_| {});
    let trust = store(vec![peer("onprem", GATEWAY, &[&Authority::root("onprem", |_| {})])]);
    let uri = format!("spiffe://{}", evil.chars().filter(char::is_ascii).take(100).collect::<String>());
    for san in [GATEWAY, &uri] {
        let chain = stranger.leaf(GATEWAY, |p| {
            p.subject_alt_names.clear();
            p.custom_extensions.push(raw_uris(&[san.as_bytes()]));
        });
        let text = trust.verify(&chain.under(&[&stranger]), noon(), None).unwrap_err().to_string();
        assert!(text.len() < 1000 && !text.contains(['\n', '\u{1b}', '\u{202e}', '\0']), "{text:?}");
    }
    let ca = Authority::root("onprem", |_| {});
    let trust = store(vec![peer("onprem", GATEWAY, &[&ca])]);
    let leaf = ca.leaf(GATEWAY, |p| {
        p.subject_alt_names.clear();
        p.custom_extensions.push(raw_uris(&[uri.as_bytes()]));
    });
    let text = trust.verify(&leaf.under(&[&ca]), noon(), None).unwrap_err().to_string();
    assert!(text.contains("spiffe://ok") && !text.contains(['\n', '\u{1b}', '\0']), "{text:?}");
}

#[test]
fn f36_a_second_cluster_of_the_same_name_is_a_conflict_and_the_first_is_unaffected() {
    let (first, second) = (Authority::root("onprem", |_| {}), Authority::root("onprem", |_| {}));
    let trust = store(vec![peer("onprem", GATEWAY, &[&first])]);
    let error = trust.verify(&second.leaf(GATEWAY, |_| {}).under(&[&second]), noon(), None).unwrap_err();
    assert_eq!(error.reason(), VerifyReason::PeerIdentityConflict);
    assert!(error.to_string().ends_with("not pinned for any peer; it claims the identity of peer onprem"), "{error}");
    assert_eq!(error.reason().public(), "NOT_PINNED", "a stranger must not learn which identities are configured");
    trust.verify(&first.leaf(GATEWAY, |_| {}).under(&[&first]), noon(), None).unwrap();
}

#[test]
fn i2_a_pinned_key_must_have_signed_not_only_stand_in_the_chain() {
    let (ours, evil) = (Authority::root("onprem", |_| {}), Authority::root("onprem", |_| {}));
    let trust = store(vec![peer("onprem", GATEWAY, &[&ours])]);
    let leaf = evil.leaf(GATEWAY, |_| {});
    // The public CA certificate of the victim is no secret: appended, it must not help.
    assert_eq!(reason(&trust, &leaf.under(&[&ours])), VerifyReason::BadSignature);
    for chain in [leaf.under(&[&evil, &ours]), leaf.under(&[&ours, &evil])] {
        let got = reason(&trust, &chain);
        assert!(matches!(got, VerifyReason::BadSignature | VerifyReason::PeerIdentityConflict), "{got}");
    }
}

#[test]
fn i2_a_ca_certificate_forged_around_a_pinned_key_does_not_help() {
    let (ours, evil) = (Authority::root("onprem", |_| {}), Authority::root("evil", |_| {}));
    let trust = store(vec![peer("onprem", GATEWAY, &[&ours])]);
    // Another name and no limits around the victim's public key, signed by the attacker.
    let forged = evil.child_with_key("evil", ours.key(), |_| {});
    assert_eq!(forged.pin(), ours.pin());
    let chain = [evil.leaf(GATEWAY, |_| {}).der, forged.der()];
    let got = reason(&trust, &chain);
    assert_eq!(got, VerifyReason::BadSignature);
}

#[test]
fn p3_one_peers_ca_cannot_speak_for_another() {
    let (onprem, gke) = (Authority::root("onprem", |_| {}), Authority::root("gke", |_| {}));
    let gke_gateway = "spiffe://gke.example/ns/eastway-system/sa/eastway-gateway";
    let trust = store(vec![peer("onprem", GATEWAY, &[&onprem]), peer("gke", gke_gateway, &[&gke])]);
    let chain = gke.leaf(GATEWAY, |_| {}).under(&[&gke]);
    let error = trust.verify(&chain, noon(), None).unwrap_err();
    assert_eq!(error.reason(), VerifyReason::NotTheGateway, "as itself it may not use the other's identity");
    assert_eq!(reason(&trust, &chain), VerifyReason::WrongPeer, "where the other is expected its key does not fit");
    let own = gke.leaf(gke_gateway, |_| {}).under(&[&gke]);
    assert_eq!(reason(&trust, &own), VerifyReason::WrongPeer);
    assert_eq!(&*trust.verify(&own, noon(), None).unwrap().peer, "gke");
}

#[test]
fn p3_below_one_peers_ca_nothing_reaches_the_root_pinned_for_another() {
    // onprem is pinned by the shared root (unwise, but allowed), gke by its intermediate under that root.
    let root = Authority::root("root", |_| {});
    let gke = root.child("gke", |_| {});
    let gke_gateway = "spiffe://gke.example/ns/eastway-system/sa/eastway-gateway";
    let mut onprem = peer("onprem", GATEWAY, &[&root]);
    onprem.bundle = vec![root.der()];
    let trust = store(vec![onprem, peer("gke", gke_gateway, &[&gke])]);
    let leaf = gke.leaf(GATEWAY, |_| {});
    for chain in [leaf.under(&[&gke]), leaf.under(&[&gke, &root])] {
        assert_eq!(reason(&trust, &chain), VerifyReason::WrongPeer);
        assert_eq!(trust.verify(&chain, noon(), None).unwrap_err().reason(), VerifyReason::NotTheGateway);
    }
    // A CA of gke's making below its own does not help it either.
    let below = gke.child("below", |_| {});
    let leaf = below.leaf(GATEWAY, |_| {});
    assert_eq!(reason(&trust, &leaf.under(&[&below, &gke, &root])), VerifyReason::WrongPeer);
}

#[test]
fn a_root_may_be_pinned_when_its_certificate_is_at_hand() {
    let root = Authority::root("root", |_| {});
    let issuing = root.child("issuing", |_| {});
    let leaf = issuing.leaf(GATEWAY, |_| {});
    let pinned = peer("onprem", GATEWAY, &[&root]);
    let bundled = PeerTrust { bundle: vec![root.der()], ..pinned.clone() };
    let accepted = store(vec![bundled]).verify(&leaf.under(&[&issuing]), noon(), Some("onprem")).unwrap();
    assert_eq!(accepted.pin, root.pin());
    store(vec![pinned.clone()]).verify(&leaf.under(&[&issuing, &root]), noon(), Some("onprem")).unwrap();
    assert_eq!(reason(&store(vec![pinned]), &leaf.under(&[&issuing])), VerifyReason::PeerIdentityConflict);
}

#[test]
fn anchors_count_only_if_their_key_is_pinned() {
    let (pinned, bundled) = (Authority::root("pinned", |_| {}), Authority::root("bundled", |_| {}));
    let peer = PeerTrust { bundle: vec![bundled.der()], ..peer("onprem", GATEWAY, &[&pinned]) };
    let leaf = bundled.leaf(GATEWAY, |_| {});
    assert_eq!(reason(&store(vec![peer]), &leaf.under(&[&bundled])), VerifyReason::PeerIdentityConflict);
}

#[test]
fn pinning_the_gateways_own_key_opens_nothing() {
    let ca = Authority::root("onprem", |_| {});
    let leaf = ca.leaf(GATEWAY, |_| {});
    let pin = eastway_identity::SpkiPin::of_certificate(&leaf.der).unwrap();
    let trust = store(vec![PeerTrust { pins: vec![pin], ..peer("onprem", GATEWAY, &[]) }]);
    for chain in [leaf.under(&[]), leaf.under(&[&ca]), vec![leaf.der.clone(), leaf.der.clone()]] {
        assert!(trust.verify(&chain, noon(), None).is_err());
    }
}

#[test]
fn the_ca_certificate_itself_is_no_leaf() {
    let ca = Authority::root("onprem", |p| p.subject_alt_names = vec![uri_san(GATEWAY)]);
    let trust = store(vec![peer("onprem", GATEWAY, &[&ca])]);
    for chain in [vec![ca.der()], vec![ca.der(), ca.der()]] {
        assert!(trust.verify(&chain, noon(), None).is_err());
    }
}

#[test]
fn limits_of_the_pinned_ca_are_kept() {
    let cases: &[(&str, Change, VerifyReason)] = &[
        ("path length", |p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)), VerifyReason::BadChain),
        ("expired", |p| p.not_after = (noon() - DAY).into(), VerifyReason::CertExpired),
        ("not yet valid", |p| p.not_before = (noon() + DAY).into(), VerifyReason::CertNotYetValid),
        ("no CA", |p| p.is_ca = IsCa::ExplicitNoCa, VerifyReason::BadChain),
        ("no keyCertSign", |p| p.key_usages = vec![KeyUsagePurpose::CrlSign], VerifyReason::BadChain),
    ];
    for (name, spoil, expected) in cases {
        let pinned = Authority::root("pinned", spoil);
        let below = pinned.child("below", |_| {});
        let leaf = below.leaf(GATEWAY, |_| {});
        let trust = store(vec![peer("onprem", GATEWAY, &[&pinned])]);
        assert_eq!(reason(&trust, &leaf.under(&[&below, &pinned])), *expected, "{name}");
    }
}

#[test]
fn cas_between_the_pin_and_the_leaf_are_checked() {
    let root = Authority::root("root", |_| {});
    let cases: &[(&str, Change, VerifyReason)] = &[
        ("no CA", |p| p.is_ca = IsCa::ExplicitNoCa, VerifyReason::BadChain),
        ("expired", |p| p.not_after = (noon() - DAY).into(), VerifyReason::CertExpired),
        ("URI constraint", |p| p.custom_extensions.push(uri_constraint("onprem.example")), VerifyReason::BadChain),
        (
            "other purpose",
            |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning],
            VerifyReason::BadPurpose,
        ),
    ];
    for (name, spoil, expected) in cases {
        let between = root.child("between", spoil);
        let leaf = between.leaf(GATEWAY, |_| {});
        let trust = store(vec![peer("onprem", GATEWAY, &[&root])]);
        let error = trust.verify(&leaf.under(&[&between, &root]), noon(), None).unwrap_err();
        assert_eq!(error.reason(), *expected, "{name}: {error}");
    }
}

#[test]
fn an_anchor_with_a_uri_constraint_is_fine_because_it_is_pinned() {
    // What sidecars get as anchor: the issuing CA's name and key, self-signed, constrained to its trust domain.
    let issuing = Authority::root("issuing", |_| {});
    let leaf = issuing.leaf(GATEWAY, |_| {});
    let der = {
        let constrained = |p: &mut CertificateParams| p.custom_extensions.push(uri_constraint("onprem.example"));
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "Test");
        params.distinguished_name.push(rcgen::DnType::CommonName, "issuing");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_after = (noon() + DAY).into();
        constrained(&mut params);
        CertificateDer::from(params.self_signed(&issuing.key()).unwrap().der().to_vec())
    };
    let peer = PeerTrust { bundle: vec![der], ..peer("onprem", GATEWAY, &[&issuing]) };
    store(vec![peer]).verify(&leaf.under(&[]), noon(), Some("onprem")).unwrap();
}

#[test]
fn the_deadline_is_the_earliest_end_on_the_path() {
    let root = Authority::root("root", |p| p.not_after = (noon() + 3 * DAY).into());
    let between = root.child("between", |p| p.not_after = (noon() + 2 * DAY).into());
    let trust = store(vec![peer("onprem", GATEWAY, &[&root])]);
    let until = |leaf: &Leaf| trust.verify(&leaf.under(&[&between, &root]), noon(), None).unwrap().not_after;
    assert_eq!(until(&between.leaf(GATEWAY, |p| p.not_after = (noon() + DAY).into())), noon() + DAY);
    assert_eq!(until(&between.leaf(GATEWAY, |p| p.not_after = (noon() + 9 * DAY).into())), noon() + 2 * DAY);
    let short = Authority::root("short", |p| p.not_after = (noon() + DAY / 2).into());
    let leaf = short.leaf(GATEWAY, |_| {});
    let trust = store(vec![peer("onprem", GATEWAY, &[&short])]);
    assert_eq!(trust.verify(&leaf.under(&[&short]), noon(), None).unwrap().not_after, noon() + DAY / 2);
}

#[test]
fn u5_missing_long_and_garbage_chains_are_refused() {
    let ca = Authority::root("onprem", |_| {});
    let leaf = ca.leaf(GATEWAY, |_| {});
    let trust = store(vec![peer("onprem", GATEWAY, &[&ca])]);
    assert_eq!(trust.verify(&[], noon(), None), Err(VerifyError::NoCertificate));
    let long = leaf.under(&[&ca; 8]);
    assert_eq!(trust.verify(&long, noon(), None), Err(VerifyError::ChainTooLong { length: 9 }));
    let garbage = CertificateDer::from(vec![0x30, 0x03, 1, 2, 3]);
    assert_eq!(reason(&trust, std::slice::from_ref(&garbage)), VerifyReason::BadChain);
    assert_eq!(reason(&trust, &[leaf.der.clone(), garbage]), VerifyReason::BadChain);
    let mut trailing = leaf.der.to_vec();
    trailing.push(0);
    assert_eq!(reason(&trust, &[CertificateDer::from(trailing), ca.der()]), VerifyReason::BadChain);
}

#[test]
fn c5_a_peer_without_pins_and_two_peers_with_one_pin_are_no_configuration() {
    let (a, b) = (Authority::root("a", |_| {}), Authority::root("b", |_| {}));
    let peers = vec![
        peer("onprem", GATEWAY, &[&a]),
        peer("gke", GATEWAY, &[&b, &a]),
        peer("edge", GATEWAY, &[]),
        PeerTrust { bundle: vec![CertificateDer::from(vec![1, 2, 3])], ..peer("onprem", GATEWAY, &[&b]) },
        PeerTrust { crls: vec![vec![1, 2, 3].into()], bundle: vec![a.der(); 65], ..peer("x", GATEWAY, &[&b]) },
    ];
    let problems = TrustStore::new(peers).unwrap_err().0;
    let texts: Vec<String> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [
            format!(
                "peer gke: pin {} is already used by peer onprem; each cluster needs an issuing CA of its own",
                a.pin()
            ),
            "peer edge: pins is required (sha256 of the key of the peer's issuing CA, as `eastway peer export` prints it \
             there)"
                .to_owned(),
            "peer onprem: the name is used twice; cluster names must differ".to_owned(),
            format!(
                "peer onprem: pin {} is already used by peer gke; each cluster needs an issuing CA of its own",
                b.pin()
            ),
            "peer onprem: bundle: certificate 1: not a certificate that can be read: TrailingData(SignedData)".to_owned(),
            format!("peer x: pin {} is already used by peer gke; each cluster needs an issuing CA of its own", b.pin()),
            "peer x: bundle holds 65 certificates; at most 64 are allowed".to_owned(),
            "peer x: crl: list 1 cannot be read: TrailingData(CertRevocationList)".to_owned(),
        ]
    );
    assert!(matches!(problems.first(), Some(TrustProblem::SharedPin { .. })));
}

#[test]
fn one_peer_may_list_a_pin_twice_and_an_empty_store_accepts_nobody() {
    let ca = Authority::root("onprem", |_| {});
    let chain = ca.leaf(GATEWAY, |_| {}).under(&[&ca]);
    store(vec![peer("onprem", GATEWAY, &[&ca, &ca])]).verify(&chain, noon(), None).unwrap();
    let nobody = store(Vec::new());
    assert_eq!(nobody.verify(&chain, noon(), None).unwrap_err().reason(), VerifyReason::NotPinned);
    assert_eq!(reason(&nobody, &chain), VerifyReason::UnknownPeer);
}

#[test]
fn i11_a_bad_replacement_changes_nothing_and_wakes_nobody() {
    let ca = Authority::root("onprem", |_| {});
    let chain = ca.leaf(GATEWAY, |_| {}).under(&[&ca]);
    let good = peer("onprem", GATEWAY, &[&ca]);
    let trust = store(vec![good.clone()]);
    let watch = trust.subscribe();
    trust.replace(vec![good.clone(), good.clone()]).unwrap_err();
    trust.replace(vec![good]).unwrap();
    assert!(!watch.has_changed().unwrap());
    trust.verify(&chain, noon(), Some("onprem")).unwrap();
    trust.replace(Vec::new()).unwrap();
    assert!(watch.has_changed().unwrap());
    assert_eq!(reason(&trust, &chain), VerifyReason::UnknownPeer);
}

#[test]
fn c1_removing_a_pin_refuses_the_live_chain() {
    let (old, new) = (Authority::root("old", |_| {}), Authority::root("new", |_| {}));
    let chain = old.leaf(GATEWAY, |_| {}).under(&[&old]);
    let trust = store(vec![peer("onprem", GATEWAY, &[&old, &new])]);
    trust.verify_live(&chain, noon(), "onprem").unwrap();
    trust.replace(vec![peer("onprem", GATEWAY, &[&new])]).unwrap();
    let error = trust.verify_live(&chain, noon(), "onprem").unwrap_err();
    assert_eq!(error.reason(), VerifyReason::PeerIdentityConflict);
}

#[test]
fn refusals_are_counted_found_again_and_bounded() {
    let (onprem, gke, stranger) = (Cloud::new("onprem"), Cloud::new("gke"), Cloud::new("stranger"));
    let trust = trusting(&[&onprem]);
    let refused = dial((&stranger.store(), &trusting(&[&gke])), (&gke.store(), &trust), "gke");
    let text = refused.server_error.unwrap().to_string();
    let refusal = trust.refusal_in(&format!("the cryptographic handshake failed: error 46: {text}")).unwrap();
    assert!(matches!(&refusal.error, VerifyError::NotPinned { presented, .. } if *presented == stranger.ca.pin()));
    assert_eq!(refusal.at, noon());
    assert!(!text.contains("sha256") && !text.contains("onprem"), "the text goes to a stranger: {text}");
    assert_eq!(VerifyReason::told_in(&text), Some(VerifyReason::NotPinned));
    assert_eq!(VerifyReason::told_in("timed out"), None);

    let dialled = trusting(&[&onprem]);
    let refused = dial((&onprem.store(), &dialled), (&stranger.store(), &trusting(&[&onprem])), "onprem");
    assert!(refused.client_error.is_some());
    let refusal = dialled.last_refusal_of("onprem").expect("who was dialled is who it is about");
    assert!(matches!(&refusal.error, VerifyError::NotPinned { presented, .. } if *presented == stranger.ca.pin()));
    assert!(trust.last_refusal_of("onprem").is_none(), "the stranger did not claim to be onprem");

    for _ in 0..256 {
        let pod = dial((&stranger.store(), &trusting(&[&gke])), (&gke.store(), &trust), "gke");
        assert!(pod.server_error.is_some());
    }
    assert!(trust.refusal_in(&text).is_none(), "256 refusals are kept");
    assert_eq!(trust.refused(), [(VerifyReason::NotPinned, 257)]);
}

#[test]
fn i2_a_dialler_refuses_whoever_answers_at_the_peers_address() {
    let (onprem, gke, other) = (Cloud::new("onprem"), Cloud::new("gke"), Cloud::new("other"));
    let trust = trusting(&[&gke, &other]);
    let outcome = dial((&onprem.store(), &trust), (&other.store(), &trusting(&[&onprem])), "gke");
    let error = outcome.client_error.unwrap();
    let verdict = tls::verdict(&error).unwrap();
    assert_eq!(verdict.reason(), VerifyReason::WrongPeer);
    assert_eq!(
        verdict.to_string(),
        format!("is peer other (key {}), but gke was expected at this address", other.ca.pin())
    );
}

#[test]
fn a_chain_without_its_key_opens_nothing() {
    // The chain of a gateway is public; its key is not.
    let (onprem, gke) = (Cloud::new("onprem"), Cloud::new("gke"));
    let chain = onprem.identity().chain().to_vec();
    let key = eastway_identity::PrivateKey::from_pkcs8(KeyPair::generate().unwrap().serialize_der());
    let error = eastway_identity::Identity::new(chain.clone(), &key).unwrap_err();
    assert_eq!(error.to_string(), "the private key does not belong to the leaf");

    // Past that check, as an attacker would: the handshake signature fails.
    #[derive(Debug)]
    struct Thief(Arc<rustls::sign::CertifiedKey>);
    impl rustls::client::ResolvesClientCert for Thief {
        fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<rustls::sign::CertifiedKey>> {
            Some(Arc::clone(&self.0))
        }
        fn has_certs(&self) -> bool {
            true
        }
    }
    let der = rustls_pki_types::PrivateKeyDer::try_from(key.secret_pkcs8()).unwrap();
    let signer = rustls::crypto::aws_lc_rs::sign::any_supported_type(&der).unwrap();
    let stolen = Thief(Arc::new(rustls::sign::CertifiedKey::new(chain, signer)));
    let config = tls::client_config(onprem.store(), trusting(&[&gke]), crate::support::at(noon()), Arc::from("gke"));
    let mut config = Arc::unwrap_or_clone(config.unwrap());
    config.client_auth_cert_resolver = Arc::new(stolen);
    let server = tls::server_config(gke.store(), trusting(&[&onprem]), crate::support::at(noon())).unwrap();
    let outcome = crate::support::handshake(Arc::new(config), server);
    assert!(matches!(
        outcome.server_error,
        Some(rustls::Error::InvalidCertificate(rustls::CertificateError::BadSignature))
    ));
}

#[test]
fn a_self_signed_leaf_is_nobody() {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![uri_san(GATEWAY)];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let der = CertificateDer::from(params.self_signed(&key).unwrap().der().to_vec());
    let identity =
        eastway_identity::Identity::new(vec![der], &eastway_identity::PrivateKey::from_pkcs8(key.serialize_der()));
    let (onprem, gke) = (Cloud::new("onprem"), Cloud::new("gke"));
    let outcome = dial(
        (&IdentityStore::new(identity.unwrap()), &trusting(&[&gke])),
        (&gke.store(), &trusting(&[&onprem])),
        "gke",
    );
    let verdict = tls::verdict(outcome.server_error.as_ref().unwrap()).unwrap().clone();
    assert_eq!(verdict.reason(), VerifyReason::PeerIdentityConflict);
}

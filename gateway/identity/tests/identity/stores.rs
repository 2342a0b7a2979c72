//! Identities in memory: renewal, replacement, and nothing secret in any text (I10).

use std::time::Duration;

use eastway_identity::reauth::Exporter;
use eastway_identity::{IdentityStore, csr, renewal_time, tls};

use crate::pki::Authority;
use crate::support::{Cloud, DAY, at, dial, noon, trusting};

#[test]
fn a_leaf_is_renewed_after_two_thirds_of_its_life_earlier_by_jitter() {
    let cloud = Cloud::new("onprem");
    // An hour and the 60 seconds it is backdated by: 3660 s of life.
    let identity = cloud.ca.issue_identity(&cloud.gateway, DAY / 24, noon()).unwrap();
    let begin = identity.not_before();
    assert_eq!(begin, noon() - Duration::from_secs(60));
    assert_eq!(renewal_time(&identity, 0.0), begin + Duration::from_secs(2440));
    assert_eq!(renewal_time(&identity, 1.0), begin + Duration::from_secs(2440 - 305));
    for (odd, like) in [(-1.0, 0.0), (7.0, 1.0), (f64::NAN, 0.0), (f64::INFINITY, 0.0)] {
        assert_eq!(renewal_time(&identity, odd), renewal_time(&identity, like));
    }
    // Three-minute leaves: there is still time to fail and try again.
    let short = cloud.ca.issue_identity(&cloud.gateway, Duration::from_secs(180), noon()).unwrap();
    assert!(renewal_time(&short, 0.0) + Duration::from_secs(60) <= short.not_after());
    assert!(renewal_time(&short, 1.0) > noon());
}

#[test]
fn handshakes_present_the_identity_of_the_moment() {
    let (onprem, gke) = (Cloud::new("onprem"), Cloud::new("gke"));
    let (store, trust) = (onprem.store(), trusting(&[&gke]));
    let (server, server_trust) = (gke.store(), trusting(&[&onprem]));
    let mut watch = store.subscribe();
    watch.mark_unchanged();
    let first = store.current().leaf_sha256();
    let presented = |outcome: &crate::support::Outcome| {
        let chain = crate::support::owned(outcome.server.peer_certificates().unwrap());
        server_trust.verify(&chain, noon(), None).unwrap().leaf_sha256
    };
    let client = tls::client_config(store.clone(), trust, at(noon()), "gke".into()).unwrap();
    let acceptor = tls::server_config(server, server_trust.clone(), at(noon())).unwrap();
    assert_eq!(presented(&crate::support::handshake(client.clone(), acceptor.clone())), first);

    store.replace(onprem.identity());
    assert!(watch.has_changed().unwrap());
    let second = store.current().leaf_sha256();
    assert_ne!(first, second);
    assert_eq!(presented(&crate::support::handshake(client, acceptor)), second);
}

#[test]
fn i10_no_key_appears_in_any_debug_text() {
    let cloud = Cloud::new("onprem");
    let (key, request) = csr::new_key_and_csr().unwrap();
    let chain = cloud.ca.issue(&request, &cloud.gateway, DAY, noon()).unwrap();
    let identity = eastway_identity::Identity::new(chain, &key).unwrap();
    let link_keys = cloud.ca.link_keys();
    let store = IdentityStore::new(identity.clone());
    let trust = trusting(&[&cloud]);
    let ca_key = std::fs::read_to_string(cloud.dir.path().join("ca-key.pem")).unwrap();
    let texts = [
        format!("{key:?} {key:#?}"),
        format!("{:?} {:#?}", cloud.ca, cloud.ca),
        format!("{link_keys:?} {link_keys:#?}"),
        format!("{identity:?} {identity:#?} {store:?} {store:#?} {trust:?}"),
        format!("{:?}", Exporter([0xab; 32])),
        format!("{:?}", tls::server_config(store.clone(), trust.clone(), at(noon())).unwrap()),
        format!("{:?}", tls::client_config(store, trust, at(noon()), "x".into()).unwrap()),
    ];
    let secrets: [&[u8]; 4] = [key.secret_pkcs8(), &link_keys.reset, &link_keys.token, &[0xab; 32]];
    for text in texts {
        for secret in secrets {
            // As a list of numbers, as hexadecimal of either case, each by a run in the secret's middle.
            let run = &secret[secret.len() / 2..secret.len() / 2 + 8];
            let list = format!("{run:?}");
            let hex: String = run.iter().map(|byte| format!("{byte:02x}")).collect();
            assert!(!text.contains(list.trim_matches(['[', ']'])), "{text}");
            assert!(!text.to_lowercase().contains(&hex), "{text}");
        }
        assert!(!text.contains("PRIVATE KEY"), "{text}");
        assert!(ca_key.lines().filter(|line| line.len() > 40).all(|line| !text.contains(line)), "{text}");
    }
}

#[test]
fn i9_nothing_is_ever_resumed_and_no_early_data_is_sent() {
    let (onprem, gke) = (Cloud::new("onprem"), Cloud::new("gke"));
    let server = tls::server_config(gke.store(), trusting(&[&onprem]), at(noon())).unwrap();
    let client = tls::client_config(onprem.store(), trusting(&[&gke]), at(noon()), "gke".into()).unwrap();
    assert_eq!((server.send_tls13_tickets, server.max_tls13_tickets, server.max_early_data_size), (0, 0, 0));
    assert!(!client.enable_early_data && !client.enable_sni);
    for _ in 0..3 {
        let outcome = crate::support::handshake(client.clone(), server.clone());
        assert!(outcome.is_up());
        assert_eq!(outcome.client.handshake_kind(), Some(rustls::HandshakeKind::Full));
        assert_eq!(outcome.client.tls13_tickets_received(), 0);
        assert!(!outcome.client.is_early_data_accepted());
    }

    // A client that would like to resume and to send early data gets nothing to do so with.
    let mut eager = std::sync::Arc::unwrap_or_clone(client);
    eager.resumption = rustls::client::Resumption::in_memory_sessions(16);
    eager.enable_early_data = true;
    let eager = std::sync::Arc::new(eager);
    for _ in 0..2 {
        let mut outcome = crate::support::handshake(eager.clone(), server.clone());
        assert!(outcome.is_up());
        assert_eq!(outcome.client.handshake_kind(), Some(rustls::HandshakeKind::Full));
        assert!(outcome.client.early_data().is_none());
    }
}

#[test]
fn the_wanted_algorithms_are_negotiated() {
    let (onprem, gke) = (Cloud::new("onprem"), Cloud::new("gke"));
    let outcome = dial((&onprem.store(), &trusting(&[&gke])), (&gke.store(), &trusting(&[&onprem])), "gke");
    let suite = outcome.server.negotiated_cipher_suite().unwrap().suite();
    assert_eq!(suite, rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
    let group = outcome.server.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
}

type Change = fn(&mut rustls::ClientConfig);

#[test]
fn u9_other_protocols_versions_and_nameless_clients_fail() {
    let (onprem, gke) = (Cloud::new("onprem"), Cloud::new("gke"));
    let server = tls::server_config(gke.store(), trusting(&[&onprem]), at(noon())).unwrap();
    let client = |change: fn(&mut rustls::ClientConfig)| {
        let config = tls::client_config(onprem.store(), trusting(&[&gke]), at(noon()), "gke".into()).unwrap();
        let mut config = std::sync::Arc::unwrap_or_clone(config);
        change(&mut config);
        std::sync::Arc::new(config)
    };
    let cases: [(&str, Change); 3] = [
        ("no ALPN", |config| config.alpn_protocols.clear()),
        ("another ALPN", |config| config.alpn_protocols = vec![b"h2".to_vec()]),
        ("another version of ours", |config| config.alpn_protocols = vec![b"eastway/2".to_vec()]),
    ];
    for (name, change) in cases {
        let outcome = crate::support::handshake(client(change), server.clone());
        assert!(outcome.server_error.is_some() && !outcome.is_up(), "{name}");
    }

    // TLS 1.2 and no client certificate, with a verifier that would accept us.
    let old = rustls::ClientConfig::builder_with_provider(rustls::crypto::aws_lc_rs::default_provider().into())
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let outcome = crate::support::handshake(old.into(), server.clone());
    assert!(matches!(outcome.server_error, Some(rustls::Error::PeerIncompatible(_))), "{:?}", outcome.server_error);

    let mut anonymous = std::sync::Arc::unwrap_or_clone(client(|_| {}));
    anonymous.client_auth_cert_resolver = std::sync::Arc::new(Nobody);
    let outcome = crate::support::handshake(anonymous.into(), server);
    assert!(matches!(outcome.server_error, Some(rustls::Error::NoCertificatesPresented)), "{:?}", outcome.server_error);
}

#[derive(Debug)]
struct Nobody;

impl rustls::client::ResolvesClientCert for Nobody {
    fn resolve(
        &self,
        _: &[&[u8]],
        _: &[rustls::SignatureScheme],
    ) -> Option<std::sync::Arc<rustls::sign::CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

#[test]
fn p384_and_ed25519_cas_of_others_are_accepted() {
    for algorithm in [&rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        let ca = Authority::root_with("other", algorithm, |_| {});
        let gke = Cloud::new("gke");
        let leaf = ca.leaf("spiffe://other.example/ns/eastway-system/sa/eastway-gateway", |_| {});
        let peer = eastway_identity::PeerTrust {
            name: "other".into(),
            gateway: eastway_identity::SpiffeId::gateway("other.example").unwrap(),
            pins: vec![ca.pin()],
            bundle: Vec::new(),
            crls: Vec::new(),
        };
        let trust = eastway_identity::TrustStore::new(vec![peer]).unwrap();
        let other = IdentityStore::new(leaf.identity(&[&ca]));
        let outcome = dial((&other, &trusting(&[&gke])), (&gke.store(), &trust), "gke");
        assert!(outcome.is_up(), "{:?}", outcome.server_error);
    }
}

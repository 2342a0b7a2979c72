//! Certificates that change under a live link (invariant I9, threats C1 and C2).

use std::time::Duration;

use bytes::Bytes;
use eastway_identity::CertificateRevocationListDer;
use tokio::time::Instant;

use crate::over::tests_over;
use crate::support::{Cloud, Gateway, Over, header, pair, read_all, soon, until};

/// A cut is due within a second; the rest is for a machine that has other work.
const CUT: Duration = Duration::from_secs(3);

async fn expect_cut(a: &Gateway, b: &Gateway, what: &str, reason: &str) {
    let start = Instant::now();
    until(what, || (a.links_to("b").is_empty() && b.links_to("a").is_empty()).then_some(())).await;
    println!("{what}: cut after {:?}", start.elapsed());
    assert!(start.elapsed() < CUT, "{what}: {:?}", start.elapsed());
    until(what, || a.tunnel.counters().links_closed.contains_key(reason).then_some(())).await;
}

async fn i9_c1_a_live_link_is_cut_when_its_pin_is_removed(over: Over) {
    let (a, b) = pair();
    let (left, right) = over.linked(&a, &b).await;
    let mut other = b.as_peer();
    other.pins = vec![Cloud::new("b").ca.pin()];
    a.trust.replace(vec![other]).unwrap();
    expect_cut(&left, &right, "pin removed", "PEER_IDENTITY_CONFLICT").await;
    // And does not come back, until the pin does.
    until("a redial is refused", || left.tunnel.status()[0].last_error.as_ref()?.contains("not pinned").then_some(()))
        .await;
    a.trusts(&[&b]);
    left.link_to("b").await;
}

async fn i9_a_live_link_is_cut_when_its_peer_is_removed(over: Over) {
    let (a, b) = pair();
    let (left, right) = over.linked(&a, &b).await;
    left.knows(&[]);
    a.trusts(&[]);
    expect_cut(&left, &right, "peer removed", "REVOKED").await;
    until("nothing is left of it", || left.tunnel.status().is_empty().then_some(())).await;
}

async fn i9_c1_a_live_link_is_cut_when_its_certificate_is_revoked(over: Over) {
    let (a, b) = pair();
    let (left, right) = over.linked(&a, &b).await;
    let mut peer = b.as_peer();
    peer.crls = vec![revocation_list(&b, &right.identity.current().chain()[0])];
    a.trust.replace(vec![peer]).unwrap();
    expect_cut(&left, &right, "revoked", "REVOKED").await;
}

/// A list by the CA of `cloud` with one certificate on it.
fn revocation_list(cloud: &Cloud, leaf: &[u8]) -> CertificateRevocationListDer<'static> {
    let read = |file: &str| std::fs::read_to_string(cloud.folder.path().join("ca").join(file)).unwrap();
    let key = rcgen::KeyPair::from_pem(&read("ca-key.pem")).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_pem(&read("ca-cert.pem"), key).unwrap();
    let (_, parsed) = x509_parser::parse_x509_certificate(leaf).unwrap();
    let now = time::OffsetDateTime::now_utc();
    let revoked = rcgen::RevokedCertParams {
        serial_number: rcgen::SerialNumber::from_slice(parsed.raw_serial()),
        revocation_time: now,
        reason_code: Some(rcgen::RevocationReason::KeyCompromise),
        invalidity_date: None,
    };
    let params = rcgen::CertificateRevocationListParams {
        this_update: now - time::Duration::minutes(1),
        next_update: now + time::Duration::days(1),
        crl_number: rcgen::SerialNumber::from(1_u64),
        issuing_distribution_point: None,
        revoked_certs: vec![revoked],
        key_identifier_method: rcgen::KeyIdMethod::Sha256,
    };
    params.signed_by(&issuer).unwrap().der().clone()
}

async fn i9_c2_a_link_ends_with_its_certificate_unless_it_is_renewed(over: Over) {
    let (a, mut b) = pair();
    b.leaf_ttl = Duration::from_secs(3);
    let (left, right) = over.linked(&a, &b).await;
    let end = right.identity.current().not_after();
    left.no_link_to("b").await;
    let late = std::time::SystemTime::now().duration_since(end);
    println!("cut {late:?} after the certificate's end");
    assert!(late.is_ok_and(|late| late < CUT), "neither early nor late");
    until("the reason is counted", || left.tunnel.counters().links_closed.contains_key("CERT_EXPIRED").then_some(()))
        .await;
}

async fn i9_renewed_certificates_disturb_nothing(over: Over) {
    let (mut a, mut b) = pair();
    (a.leaf_ttl, b.leaf_ttl) = (Duration::from_secs(3), Duration::from_secs(3));
    let (left, right) = over.linked(&a, &b).await;
    let link = left.link_to("b").await;
    let mut stream = link.open(&header("echo")).await.unwrap();
    // Leaves of three seconds on each side, renewed each second and a half, under one stream.
    let start = Instant::now();
    let mut renewals = 0;
    while start.elapsed() < Duration::from_secs(7) {
        if start.elapsed() > Duration::from_millis(1_500) * (renewals + 1) {
            left.identity.replace(a.identity());
            right.identity.replace(b.identity());
            renewals += 1;
        }
        stream.send.write(Bytes::from_static(b"tick")).await.unwrap();
        assert_eq!(soon("echo", stream.recv.read()).await.unwrap().as_deref(), Some(&b"tick"[..]));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(renewals >= 3, "{renewals}");
    stream.send.finish();
    assert_eq!(soon("end", read_all(&mut stream.recv)).await.unwrap(), b"");
    assert_eq!(left.tunnel.counters().links, 1, "one link all the time");
    let shown = left.tunnel.status()[0].links[0].cert_not_after;
    assert!(shown > std::time::SystemTime::now(), "status shows the renewed end");
}

async fn a_link_whose_identity_was_replaced_right_after_the_handshake_catches_up(over: Over) {
    let (a, mut b) = pair();
    b.leaf_ttl = Duration::from_secs(3);
    let (left, right) = over.linked(&a, &b).await;
    b.leaf_ttl = Duration::from_secs(600);
    right.identity.replace(b.identity());
    let far = std::time::SystemTime::now() + Duration::from_secs(300);
    until("the new end is known", || (left.tunnel.status()[0].links.first()?.cert_not_after > far).then_some(())).await;
}

tests_over! {
    Quic in quic: i9_c1_a_live_link_is_cut_when_its_pin_is_removed, i9_a_live_link_is_cut_when_its_peer_is_removed, i9_c1_a_live_link_is_cut_when_its_certificate_is_revoked, i9_c2_a_link_ends_with_its_certificate_unless_it_is_renewed, i9_renewed_certificates_disturb_nothing, a_link_whose_identity_was_replaced_right_after_the_handshake_catches_up;
    Tcp in tcp: i9_c1_a_live_link_is_cut_when_its_pin_is_removed, i9_a_live_link_is_cut_when_its_peer_is_removed, i9_c1_a_live_link_is_cut_when_its_certificate_is_revoked, i9_c2_a_link_ends_with_its_certificate_unless_it_is_renewed, i9_renewed_certificates_disturb_nothing, a_link_whose_identity_was_replaced_right_after_the_handshake_catches_up;
    Shared in shared: i9_c1_a_live_link_is_cut_when_its_pin_is_removed, i9_a_live_link_is_cut_when_its_peer_is_removed, i9_c1_a_live_link_is_cut_when_its_certificate_is_revoked, i9_c2_a_link_ends_with_its_certificate_unless_it_is_renewed, i9_renewed_certificates_disturb_nothing, a_link_whose_identity_was_replaced_right_after_the_handshake_catches_up;
}

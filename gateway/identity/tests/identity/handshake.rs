//! Handshakes between gateways, in memory: who gets in, who does not, and what both sides learn.

use crate::support::{Cloud, DAY, dial, noon, trusting};
use eastway_identity::{SpiffeId, tls};

#[test]
fn i2_two_clouds_accept_each_other_by_pin_and_gateway_identity() {
    let (onprem, gke) = (Cloud::new("onprem"), Cloud::new("gke"));
    let server_trust = trusting(&[&onprem]);
    let outcome = dial((&onprem.store(), &trusting(&[&gke])), (&gke.store(), &server_trust), "gke");
    assert!(outcome.is_up(), "client: {:?}, server: {:?}", outcome.client_error, outcome.server_error);
    assert_eq!(outcome.client.alpn_protocol(), Some(tls::ALPN));
    assert_eq!(outcome.server.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));

    let chain = crate::support::owned(outcome.server.peer_certificates().unwrap());
    let peer = server_trust.verify(&chain, noon(), None).unwrap();
    assert_eq!(&*peer.peer, "onprem");
    assert_eq!(peer.id, onprem.gateway);
    assert_eq!(peer.pin, onprem.ca.pin());
    assert_eq!(peer.not_after, noon() + DAY);
}

#[test]
fn i2_a_pods_leaf_of_the_peers_own_ca_opens_no_link() {
    let (onprem, gke) = (Cloud::new("onprem"), Cloud::new("gke"));
    let pod = SpiffeId::workload("onprem.example", "bookinfo", "productpage").unwrap();
    let pod = onprem.ca.issue_identity(&pod, DAY, noon()).unwrap();
    let store = eastway_identity::IdentityStore::new(pod);
    let trust = trusting(&[&onprem]);
    let outcome = dial((&store, &trusting(&[&gke])), (&gke.store(), &trust), "gke");
    let error = outcome.server_error.unwrap();
    let verdict = tls::verdict(&error).unwrap();
    assert_eq!(verdict.reason().as_str(), "NOT_THE_GATEWAY");
    assert_eq!(trust.refusal_in(&error.to_string()).unwrap().error, *verdict);
    assert!(!outcome.client.is_handshaking() || outcome.client_error.is_some());
}

#[test]
fn clouds_under_a_shared_root_accept_each_other_by_the_pin_of_their_own_ca() {
    let root = Cloud::new("corp");
    let (onprem, gke) = (Cloud::under("onprem", root.dir.path()), Cloud::under("gke", root.dir.path()));
    assert_eq!(onprem.ca.roots(), root.ca.roots());
    let outcome = dial((&onprem.store(), &trusting(&[&gke])), (&gke.store(), &trusting(&[&onprem])), "gke");
    assert!(outcome.is_up(), "client: {:?}, server: {:?}", outcome.client_error, outcome.server_error);
}

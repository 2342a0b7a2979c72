//! Renewed leaves on running links (C2, I9): accepted from the peer itself, over this link, in this direction only.

use eastway_identity::reauth::{self, Exporter, Reauth, Role};
use eastway_identity::{Identity, SpiffeId, VerifiedPeer, VerifyError, VerifyReason};

use crate::pki::Authority;
use crate::support::{Cloud, DAY, dial, noon, trusting};

const LINK: Exporter = Exporter([7; 32]);

struct Link {
    onprem: Cloud,
    gke: Cloud,
    first: Identity,
    renewed: Identity,
}

impl Link {
    fn new() -> Self {
        let (onprem, gke) = (Cloud::new("onprem"), Cloud::new("gke"));
        let (first, renewed) = (onprem.identity(), onprem.ca.issue_identity(&onprem.gateway, DAY, noon() + DAY / 2));
        Self { first, renewed: renewed.unwrap(), onprem, gke }
    }

    fn sign(&self, identity: &Identity) -> Reauth {
        reauth::sign(identity, &LINK, Role::Dialler, self.first.leaf_sha256()).unwrap()
    }

    fn verify(&self, proof: &Reauth, link: &Exporter, role: Role, leaf: [u8; 32]) -> Result<VerifiedPeer, VerifyError> {
        let trust = trusting(&[&self.onprem, &self.gke]);
        reauth::verify(&trust, proof, link, role, leaf, "onprem", noon() + DAY / 2)
    }

    fn judge(&self, proof: &Reauth) -> Result<VerifiedPeer, VerifyError> {
        self.verify(proof, &LINK, Role::Dialler, self.first.leaf_sha256())
    }
}

#[test]
fn c2_a_renewed_leaf_moves_the_deadline_of_a_running_link() {
    let link = Link::new();
    let peer = link.judge(&link.sign(&link.renewed)).unwrap();
    assert_eq!(peer.not_after, link.renewed.not_after());
    assert!(peer.not_after > link.first.not_after());
    assert_eq!(peer.leaf_sha256, link.renewed.leaf_sha256());
}

#[test]
fn an_earlier_end_is_fine_and_becomes_the_deadline() {
    let link = Link::new();
    let shorter = link.onprem.ca.issue_identity(&link.onprem.gateway, DAY / 24, noon() + DAY / 2).unwrap();
    let peer = link.judge(&link.sign(&shorter)).unwrap();
    assert_eq!(peer.not_after, noon() + DAY / 2 + DAY / 24);
}

#[test]
fn i9_a_proof_for_another_link_direction_or_leaf_is_refused() {
    let link = Link::new();
    let proof = link.sign(&link.renewed);
    let first = link.first.leaf_sha256();
    let refused =
        |result: Result<VerifiedPeer, VerifyError>| assert_eq!(result.unwrap_err().reason(), VerifyReason::BadReauth);
    refused(link.verify(&proof, &Exporter([8; 32]), Role::Dialler, first));
    refused(link.verify(&proof, &LINK, Role::Acceptor, first));
    refused(link.verify(&proof, &LINK, Role::Dialler, [0; 32]));

    let mut tampered = proof.clone();
    *tampered.signature.last_mut().unwrap() ^= 1;
    refused(link.judge(&tampered));
    refused(link.judge(&Reauth { signature: Vec::new(), ..proof.clone() }));
    // Someone else's chain under this signature.
    refused(link.judge(&Reauth { chain: link.first.chain().to_vec(), ..proof.clone() }));
    for scheme in [0, 0x0401, 0x0201, 0x0503, 0xffff] {
        refused(link.judge(&Reauth { scheme, ..proof.clone() }));
    }
}

#[test]
fn only_the_peer_itself_may_renew_its_link() {
    let link = Link::new();
    let reason = |identity: &Identity| link.judge(&link.sign(identity)).unwrap_err().reason();
    let gke = link.gke.ca.issue_identity(&link.gke.gateway, DAY, noon() + DAY / 2).unwrap();
    assert_eq!(reason(&gke), VerifyReason::WrongPeer);
    let pod = SpiffeId::workload("onprem.example", "bookinfo", "productpage").unwrap();
    let pod = link.onprem.ca.issue_identity(&pod, DAY, noon() + DAY / 2).unwrap();
    assert_eq!(reason(&pod), VerifyReason::NotTheGateway);
    let stranger = Authority::root("onprem", |_| {});
    let stranger = stranger.leaf(link.onprem.gateway.as_str(), |_| {}).identity(&[&stranger]);
    assert_eq!(reason(&stranger), VerifyReason::PeerIdentityConflict);
    let expired = link.onprem.ca.issue_identity(&link.onprem.gateway, DAY / 24, noon()).unwrap();
    assert_eq!(reason(&expired), VerifyReason::CertExpired);
    assert_eq!(
        link.judge(&Reauth { chain: Vec::new(), scheme: 0x0403, signature: Vec::new() }),
        Err(VerifyError::NoCertificate)
    );
}

#[test]
fn p256_p384_and_ed25519_leaves_can_sign() {
    for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        let ca = Authority::root("onprem", |_| {});
        let gateway = SpiffeId::gateway("onprem.example").unwrap();
        let identity =
            ca.leaf_with(rcgen::KeyPair::generate_for(algorithm).unwrap(), gateway.as_str()).identity(&[&ca]);
        let peer = eastway_identity::PeerTrust {
            name: "onprem".into(),
            gateway,
            pins: vec![ca.pin()],
            bundle: Vec::new(),
            crls: Vec::new(),
        };
        let trust = eastway_identity::TrustStore::new(vec![peer]).unwrap();
        let proof = reauth::sign(&identity, &LINK, Role::Acceptor, [1; 32]).unwrap();
        reauth::verify(&trust, &proof, &LINK, Role::Acceptor, [1; 32], "onprem", noon()).unwrap();
    }
}

#[test]
fn both_ends_of_a_tls_session_export_the_same_binding() {
    let link = Link::new();
    let (trust_gke, trust_onprem) = (trusting(&[&link.gke]), trusting(&[&link.onprem]));
    let up = dial((&link.onprem.store(), &trust_gke), (&link.gke.store(), &trust_onprem), "gke");
    let client = up.client.export_keying_material([0; 32], reauth::EXPORTER_LABEL, None).unwrap();
    let server = up.server.export_keying_material([0; 32], reauth::EXPORTER_LABEL, None).unwrap();
    assert_eq!(client, server);
    let other = dial((&link.onprem.store(), &trust_gke), (&link.gke.store(), &trust_onprem), "gke");
    assert_ne!(client, other.client.export_keying_material([0; 32], reauth::EXPORTER_LABEL, None).unwrap());
}

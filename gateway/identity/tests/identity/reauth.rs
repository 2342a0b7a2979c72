//! Renewed leaves on running links.

use eastway_identity::reauth::{self, Exporter, Role};

use crate::support::{Cloud, DAY, noon, trusting};

#[test]
fn c2_a_renewed_leaf_moves_the_deadline_of_a_running_link() {
    let onprem = Cloud::new("onprem");
    let trust = trusting(&[&onprem]);
    let first = onprem.identity();
    let renewed = onprem.ca.issue_identity(&onprem.gateway, DAY, noon() + DAY / 2).unwrap();
    let exporter = Exporter([7; 32]);
    let proof = reauth::sign(&renewed, &exporter, Role::Dialler, first.leaf_sha256()).unwrap();
    let now = noon() + DAY / 2;
    let peer = reauth::verify(&trust, &proof, &exporter, Role::Dialler, first.leaf_sha256(), "onprem", now).unwrap();
    assert_eq!(peer.not_after, renewed.not_after());
    assert!(peer.not_after > first.not_after());
}

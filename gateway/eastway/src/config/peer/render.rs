//! Writes the Peer file that this cluster hands to another one.

use eastway_identity::{CertificateDer, SpiffeId, SpkiPin, certificates_to_pem};
use eastway_model::ClusterName;

use crate::config::value::HostPort;

/// What the other side has to know about this cluster.
#[derive(Clone, Debug)]
pub struct PeerFile<'a> {
    /// This cluster's name.
    pub name: &'a ClusterName,
    /// Where its gateway can be dialled; empty: nowhere.
    pub addresses: &'a [HostPort],
    /// Its trust domain.
    pub trust_domain: &'a str,
    /// Its gateway's identity.
    pub gateway: &'a SpiffeId,
    /// Keys of its CA.
    pub pins: &'a [SpkiPin],
    /// Certificates of its CA that are not part of handshakes; usually empty.
    pub bundle: &'a [CertificateDer<'a>],
    /// The other side is in the same trust domain.
    pub shared_trust_domain: bool,
}

/// A commented, valid file. What crosses is left to whoever receives it: nothing.
#[must_use]
pub fn render(peer: &PeerFile<'_>) -> String {
    let mut text = format!(
        "\
# The cluster {name}, as other clusters need it. Put this file into the folder that `peers` of their
# configuration names, or `kubectl apply` it there; say below what may cross, and give {name} their file in return.
apiVersion: {version}
kind: Peer
metadata:
  name: {quoted_name}
spec:
",
        name = peer.name,
        version = crate::config::file::API_VERSION,
        quoted_name = quoted(peer.name.as_str()),
    );
    if peer.addresses.is_empty() {
        text.push_str("  # It has no address that can be dialled: it dials.\n  addresses: []\n");
    } else {
        text.push_str("  # Where its gateway takes links (UDP, and TCP where that does not pass).\n  addresses:\n");
        items(&mut text, peer.addresses);
    }
    text.push_str(&format!("  trustDomain: {}\n", quoted(peer.trust_domain)));
    text.push_str(&format!("  gateway: {}\n", quoted(peer.gateway.as_str())));
    text.push_str(
        "  # SHA-256 of its CA's public key. Compare it over a second channel: whoever has that key is this peer.\n  \
         pins:\n",
    );
    items(&mut text, peer.pins);
    if !peer.bundle.is_empty() {
        text.push_str("  bundle: |\n");
        for line in certificates_to_pem(peer.bundle).lines() {
            text.push_str(&format!("    {line}\n"));
        }
    }
    if peer.shared_trust_domain {
        text.push_str("  # Both clusters are in one trust domain: their workloads are not isolated from each other.\n");
        text.push_str("  sharedTrustDomain: true\n");
    }
    text.push_str(
        "  \
  # What you offer to it. Nothing by default. For example:
  #   - {namespace: bookinfo, services: [\"*\"]}
  export: []
  # What you take from it. Nothing by default. For example:
  #   - {namespace: bookinfo}
  import: []
",
    );
    text
}

fn items<T: ToString>(text: &mut String, items: &[T]) {
    for item in items {
        text.push_str(&format!("    - {}\n", quoted(&item.to_string())));
    }
}

/// Everything that is written is of plain ASCII without quotes; in quotes it is text even where YAML
/// would see a number.
fn quoted(text: &str) -> String {
    format!("\"{text}\"")
}

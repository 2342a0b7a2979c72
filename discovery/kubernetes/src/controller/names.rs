//! Names, labels and annotations of the objects that the controller writes.

use eastway_model::{ClusterName, Label, PortNumber, Protocol};
use sha2::{Digest, Sha256};

/// Field manager of everything that is written.
pub const MANAGER: &str = "eastway-controller";
/// Label by which people and other controllers see whose an object is.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Its value.
pub const EASTWAY: &str = "eastway";
/// Label of a slice: who looks after it.
pub const SLICE_MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// Its value; anything but Kubernetes' own controller (KEP-1645).
pub const SLICE_MANAGER: &str = "eastway.dev";
/// Label of a slice: the Service whose endpoints it holds, what kube-proxy goes by.
pub const SLICE_SERVICE: &str = "kubernetes.io/service-name";
/// Label: the multi-cluster service that an object belongs to (KEP-1645).
pub const SERVICE: &str = "multicluster.kubernetes.io/service-name";
/// Label: the cluster that endpoints are in (KEP-1645).
pub const SOURCE_CLUSTER: &str = "multicluster.kubernetes.io/source-cluster";
/// Label: the multi-cluster service that a slice is written for. Slices that lead to one endpoint of a headless
/// service have no [`SERVICE`], because DNS servers would answer their addresses for the whole service.
pub const IMPORT: &str = "eastway.dev/import";
/// Annotation of a ServiceImport: its derived Service (what Cilium calls it too).
pub const DERIVED_SERVICE: &str = "multicluster.kubernetes.io/derived-service";
/// Annotation of the derived Service of one endpoint of a headless service: the id of that endpoint in its cluster.
pub const ENDPOINT: &str = "eastway.dev/endpoint";

/// Annotation of the derived Service of an endpoint with a hostname: that hostname.
pub const HOSTNAME: &str = "eastway.dev/hostname";
/// Annotation of the derived Service of a name of one's own: that name.
pub const NAME: &str = "eastway.dev/name";

/// Characters of the hash in a derived name: 50 bits, so that a namespace of 5,000 services has a collision with a
/// chance of one in 10^8, and one is told in a condition.
const HASH_LENGTH: usize = 10;

/// The name of the derived Service of the import `name`: a DNS label, which `derived-<name>` might not be.
#[must_use]
pub fn derived(name: &Label) -> String {
    hashed(&[name.as_str()])
}

/// The name of the derived Service of one endpoint of a headless import. `endpoint` is its hostname, so that its
/// address outlives the endpoint as the hostname does, or else its id. Between two endpoints of one hostname the Service
/// stays, see [`super::desired::headless`].
#[must_use]
pub fn derived_endpoint(name: &Label, cluster: &ClusterName, endpoint: &str) -> String {
    hashed(&[name.as_str(), cluster.as_str(), endpoint])
}

/// The name of the derived Service of `fqdn`, a name of one's own that leads to one cluster of the import `name`. Which
/// cluster that is does not matter, so that the address stays when it is changed.
#[must_use]
pub fn derived_name(name: &Label, fqdn: &str) -> String {
    // No cluster is called like this.
    hashed(&[name.as_str(), "", fqdn])
}

/// The parts are labels, ids or domain names: none has a `/`.
fn hashed(parts: &[&str]) -> String {
    format!("derived-{}", hash(parts))
}

/// The name of what istiod is told of endpoints of an import in `cluster`; `parts` tell them from others there, and may be any
/// text without a `/`.
#[must_use]
pub fn entry<'a>(name: &Label, cluster: &ClusterName, parts: impl Iterator<Item = &'a str>) -> String {
    format!("{name}-{cluster}-{}", hash(&parts.collect::<Vec<_>>()))
}

fn hash(parts: &[&str]) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let digest = Sha256::digest(parts.join("/"));
    let bits = digest.iter().take(8).fold(0_u64, |bits, byte| bits << 8 | u64::from(*byte));
    let character = |index: usize| {
        let five = usize::try_from(bits >> (59 - 5 * index) & 31).unwrap_or_default();
        ALPHABET.get(five).map_or('a', |byte| char::from(*byte))
    };
    (0..HASH_LENGTH).map(character).collect()
}

/// The name of a slice of the Service or import `of` with endpoints in `cluster`. Neither has a dot.
#[must_use]
pub fn slice(of: &str, cluster: &ClusterName, ipv6: bool) -> String {
    format!("{of}.{cluster}{}", if ipv6 { ".ipv6" } else { "" })
}

/// The name of the lease that says that `cluster` can be reached.
#[must_use]
pub fn cluster_lease(cluster: &ClusterName) -> String {
    format!("eastway-{cluster}")
}

/// A name for a port that has none, or has lost its own to another cluster's port.
#[must_use]
pub fn unnamed_port(protocol: Protocol, number: PortNumber) -> String {
    match protocol {
        Protocol::Tcp => format!("tcp-{number}"),
        Protocol::Udp => format!("udp-{number}"),
        Protocol::Sctp => format!("sctp-{number}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_names_are_labels_and_stable() {
        let label = |text: &str| Label::parse(text).unwrap();
        let long = label(&"a".repeat(63));
        let of_name = derived_name(&long, "reviews.shop.example");
        for name in [derived(&label("reviews")), derived(&long), derived_endpoint(&long, &long, "web-0"), of_name] {
            assert!(Label::parse(&name).is_ok(), "{name}");
        }
        // They are in people's clusters: a change would replace every address.
        assert_eq!(derived(&label("reviews")), "derived-krsbaujaha");
        assert_ne!(derived(&label("reviews")), derived(&label("ratings")));
    }

    #[test]
    fn slices_of_two_clusters_have_two_names() {
        let label = |text: &str| Label::parse(text).unwrap();
        let names =
            [slice("a", &label("b"), false), slice("a", &label("b"), true), slice("a", &label("b-ipv6"), false)];
        assert_eq!(names, ["a.b", "a.b.ipv6", "a.b-ipv6"]);
    }
}

//! The Peer file that is handed to another cluster.

use eastway_identity::{SpiffeId, SpkiPin};
use eastway_model::ClusterName;

use super::{Folder, MINIMAL};
use crate::config::peer::{PeerFile, render};
use crate::config::value::HostPort;
use crate::config::{check_peer, load};

fn file(name: &str, addresses: &[&str], shared: bool) -> String {
    let name = ClusterName::parse(name).unwrap();
    let addresses: Vec<HostPort> = addresses.iter().map(|text| HostPort::parse(text).unwrap()).collect();
    let pins: Vec<SpkiPin> = [b"one".as_slice(), b"two"].map(SpkiPin::of_spki).into();
    render(&PeerFile {
        name: &name,
        addresses: &addresses,
        trust_domain: "gke.example",
        gateway: &SpiffeId::gateway("gke.example").unwrap(),
        pins: &pins,
        bundle: &[],
        shared_trust_domain: shared,
    })
}

#[test]
fn it_is_commented() {
    insta::assert_snapshot!(file("gke", &["gw.gke.example:15443", "[2001:db8::1]:15443"], false));
    insta::assert_snapshot!(file("edge", &[], true));
}

#[test]
fn it_is_read_back_as_it_was() {
    // A name that YAML would take for a number if it were not in quotes.
    for name in ["gke", "7", "1e3", "0x1f", "true", "null"] {
        let text = file(name, &["gw.gke.example:15443", "[2001:db8::1]:15443"], false);
        let folder = Folder::new(&[("gateway.yaml", MINIMAL), ("peers/p.yaml", &text)]);
        let loaded = load(&folder.path("gateway.yaml")).unwrap_or_else(|errors| panic!("{errors}"));
        let peer = loaded.peers.values().next().unwrap();
        assert_eq!(peer.name.as_str(), name);
        assert_eq!(peer.addresses.len(), 2);
        assert_eq!(peer.pins, [b"one".as_slice(), b"two"].map(SpkiPin::of_spki));
        assert_eq!(peer.gateway, SpiffeId::gateway("gke.example").unwrap());
        assert!(peer.export.is_empty() && peer.import.is_empty(), "nothing crosses by default");
        let (alone, _) = check_peer(&folder.path("peers/p.yaml")).unwrap_or_else(|errors| panic!("{errors}"));
        assert_eq!(alone, **peer);
    }
}

//! `eastway config check`.

use super::{Folder, MINIMAL, PEER, POLICIES};
use crate::config::{check, check_text};

const SERVICES: &str = "\
apiVersion: eastway.dev/v1alpha1
kind: ServiceList
services:
- {namespace: shop, name: cart, ports: [{port: 80}], endpoints: [{address: 10.0.0.1}]}
";

fn said(folder: &Folder, file: &str) -> String {
    folder.relative(&check(&folder.path(file)).to_string())
}

fn whole(services: &str) -> Folder {
    let gateway = format!("{MINIMAL}registries: [{{name: hosts, file: services.yaml}}]\n");
    let files = [
        ("gateway.yaml", &*gateway),
        ("peers/gke.yaml", PEER),
        ("policies/a.yaml", POLICIES),
        ("services.yaml", services),
    ];
    Folder::new(&files)
}

#[test]
fn a_good_configuration() {
    let folder = whole(SERVICES);
    assert_eq!(
        said(&folder, "gateway.yaml"),
        "gateway.yaml: cluster onprem, 1 peer, 2 policies, 1 service; 0 warnings"
    );
    assert_eq!(said(&folder, "peers/gke.yaml"), "peers/gke.yaml: a good Peer; 0 warnings");
    assert_eq!(said(&folder, "policies/a.yaml"), "policies/a.yaml: a good TrafficPolicy; 0 warnings");
    assert_eq!(said(&folder, "services.yaml"), "services.yaml: a good ServiceList; 0 warnings");
}

#[test]
fn service_files_are_checked_too() {
    insta::assert_snapshot!(said(&whole(&SERVICES.replace("10.0.0.1", "127.0.0.1")), "gateway.yaml"));
}

#[test]
fn a_revocation_list_that_is_not_there() {
    let folder = whole(SERVICES);
    folder.write("gateway.yaml", &MINIMAL.replace("onprem.example}", "onprem.example, crl: gone.pem}"));
    insta::assert_snapshot!(said(&folder, "gateway.yaml"));
}

#[test]
fn programs_get_json() {
    let report = check_text("peer.yaml", &PEER.replace("pins", "pin"));
    insta::assert_json_snapshot!(report);
}

#[test]
fn a_peer_that_is_too_large() {
    let folder = Folder::new(&[("p.yaml", &format!("{PEER}#{}\n", "x".repeat(1 << 20)))]);
    assert_eq!(said(&folder, "p.yaml"), "p.yaml: larger than 1 MiB\n\np.yaml: cannot be used: 1 error, 0 warnings");
}

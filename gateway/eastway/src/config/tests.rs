//! Files with every mistake we could think of, and the words each gets: they are part of the
//! contract with users. New words: `INSTA_UPDATE=always cargo test -p eastway --lib config`, and read
//! the difference.

use std::path::PathBuf;

use super::load;

mod examples;
mod folders;
mod gateway_file;
mod injection_file;
mod objects;
mod peer_file;
mod policy_file;
mod render;
mod reports;
mod route_file;
mod sidecar_file;

pub(super) const MINIMAL: &str = "\
apiVersion: eastway.dev/v1alpha1
kind: GatewayConfig
cluster: onprem
trust: {domain: onprem.example}
";

/// A configuration in a folder of its own; `gateway.yaml` is its file.
pub(super) struct Folder(tempfile::TempDir);

impl Folder {
    pub(super) fn new(files: &[(&str, &str)]) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        files.iter().for_each(|(name, text)| folder.write(name, text));
        folder
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(super) fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    /// What `load` says, with the folder's own name taken out.
    pub(super) fn errors(&self) -> String {
        self.relative(&load(&self.path("gateway.yaml")).unwrap_err().to_string())
    }

    /// What `load` warns of.
    pub(super) fn warnings(&self) -> String {
        self.relative(&load(&self.path("gateway.yaml")).unwrap().warnings.to_string())
    }

    pub(super) fn relative(&self, said: &str) -> String {
        said.replace(&format!("{}/", self.0.path().display()), "")
    }
}

#[test]
fn two_settings_are_enough() {
    let folder = Folder::new(&[("gateway.yaml", MINIMAL)]);
    let loaded = load(&folder.path("gateway.yaml")).unwrap();
    assert_eq!(loaded.settings.cluster.as_str(), "onprem");
    assert_eq!(loaded.settings.state, folder.path("state"));
    assert_eq!(loaded.settings.listen.link.to_string(), "0.0.0.0:15443");
}

#[test]
fn all_mistakes_of_a_file_are_reported_at_once() {
    let folder = Folder::new(&[(
        "gateway.yaml",
        "apiVersion: eastway.dev/v1\nkind: GatewayConfig\ncluster: On_Prem\ntrust:\n  domian: onprem.example\n  leafTtl: 5\n\
         listen:\n  link: 0.0.0.0\n  admin: 0.0.0.0:15000\n  dns: [127.0.0.1:53, 127.0.0.1:53]\nlog: {format: xml}\n\
         vip: {ranges: [242.0.0.1/16], owner: yes}\nlink: {keepAlive: 2s}\n",
    )]);
    insta::assert_snapshot!(folder.errors());
}

pub(super) const PEER: &str = "\
apiVersion: eastway.dev/v1alpha1
kind: Peer
metadata: {name: gke}
spec:
  addresses: ['198.51.100.12:15443']
  trustDomain: gke.example
  pins: ['sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa']
  export: [{namespace: bookinfo, services: ['*']}]
  import: [{namespace: bookinfo}]
";

pub(super) const POLICIES: &str = "\
apiVersion: eastway.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: reviews, namespace: bookinfo}
spec:
  service: reviews
  split:
  - {weight: 50, subset: {version: v1}}
  - {weight: 30, subset: {version: v2}}
  - {weight: 20, cluster: gke, subset: {version: v3}}
  failover: [local, gke]
---
apiVersion: eastway.dev/v1alpha1
kind: AccessPolicy
metadata: {name: ratings, namespace: bookinfo}
spec:
  services: [ratings]
  allow: [{cluster: gke, namespace: bookinfo, serviceAccounts: ['*']}]
";

#[test]
fn peers_and_policies_become_rules() {
    let files = [("gateway.yaml", MINIMAL), ("peers/gke.yaml", PEER), ("policies/bookinfo.yaml", POLICIES)];
    let folder = Folder::new(&files);
    let loaded = load(&folder.path("gateway.yaml")).unwrap();
    assert_eq!(loaded.warnings.iter().count(), 0, "{}", loaded.warnings);
    let rules = loaded.rules(|_| eastway_model::UnixMillis(7));
    assert!(rules.may_import("gke", &"bookinfo/reviews".parse().unwrap()));
    assert!(!rules.may_import("gke", &"shop/cart".parse().unwrap()));
    assert_eq!(rules.traffic.len(), 1);
    assert_eq!(rules.access.len(), 1);
    let peer = loaded.peers.values().next().unwrap();
    assert_eq!(peer.gateway.as_str(), "spiffe://gke.example/ns/eastway-system/sa/eastway-gateway");
    assert_eq!(peer.withdraw_after, std::time::Duration::from_secs(86_400));
}

#[test]
fn i8_quotas_of_the_file_are_those_of_the_sessions() {
    let limits = "limits: {servicesPerPeer: 7, endpointsPerPeer: 70, updatesPerSecondPerPeer: 3}\n";
    let folder = Folder::new(&[("gateway.yaml", &format!("{MINIMAL}{limits}"))]);
    let loaded = load(&folder.path("gateway.yaml")).unwrap();
    let quotas = crate::adapters::federation_limits(&loaded.settings);
    assert_eq!((quotas.services, quotas.endpoints), (7, 70));
    assert_eq!((quotas.records_per_second, quotas.record_burst), (3, 77));
    // What is not in the file is what the sessions were tried with.
    let folder = Folder::new(&[("gateway.yaml", MINIMAL)]);
    let loaded = load(&folder.path("gateway.yaml")).unwrap();
    assert_eq!(crate::adapters::federation_limits(&loaded.settings), eastway_federation::Limits::default());
}

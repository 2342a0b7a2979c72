//! What `eastway check` looks at where Istio is beside Eastway.

mod mesh;
mod told;

use std::collections::BTreeMap;

use eastway_identity::{CertificateDer, certificates_from_pem};
use eastway_kubernetes::istio::{self, Installation};
use eastway_model::store::Snapshot;
use eastway_model::{ClusterName, EndpointGroup, TlsMode};
use eastway_tunnel::PeerStatus;
use serde_json::Value;

use crate::adapters;
use crate::admin::check::{IstioFacts, MeshChange, MeshFacts};
use crate::app::Gateway;
use crate::config::{Loaded, Settings};

pub(super) use told::told;

/// What Istio's trust domain is unless its mesh configuration has one.
const DEFAULT_DOMAIN: &str = "cluster.local";

/// `None`: it is not there, or knows of no other network.
pub(super) async fn facts(
    gateway: &Gateway,
    loaded: &Loaded,
    snapshot: &Snapshot,
    status: &[PeerStatus],
) -> Option<IstioFacts> {
    let settings = &loaded.settings;
    let domain = settings.istio().filter(|_| !settings.listen.sni.is_empty())?;
    let named = |port: &crate::config::settings::SniSettings| (port.cluster.to_string(), port.network.to_string());
    let networks: BTreeMap<String, String> = settings.listen.sni.iter().map(named).collect();
    let mut facts = IstioFacts { nobody: nobody(loaded), plain: without_sidecar(snapshot), ..IstioFacts::default() };
    let access = adapters::kubernetes_access(settings.kubernetes.as_ref().map(|kubernetes| &kubernetes.access));
    let found = match istio::read(&access, settings.system_namespace(), &networks).await {
        Ok(found) => found,
        Err(error) => {
            facts.unreadable = Some(error);
            return Some(facts);
        }
    };
    facts.network = wrong_network(&found, &networks);
    let without = |peer: &&String| found.gateways.get(*peer).is_none_or(Vec::is_empty);
    facts.untold = networks.keys().filter(without).cloned().collect();
    let roots = certificates_from_pem(found.root.as_deref().unwrap_or_default().as_bytes()).unwrap_or_default();
    let identity = gateway.identity.get().map(|store| store.current());
    facts.other_root = identity.is_some_and(|identity| has_other_root(identity.chain(), &roots));
    let mut unreadable = Vec::new();
    for (revision, text) in &found.meshes {
        match text.clone().and_then(|text| mesh_from(revision, &text)) {
            Ok(mesh) => {
                let domains = wrong_domain(&mesh, &domain);
                let change = mesh_change(gateway, loaded, status, &mesh, &roots);
                if domains.is_some() || change.is_some() {
                    facts.meshes.push(MeshFacts { revision: revision.clone(), domains, change });
                }
            }
            Err(error) => unreadable.push(error),
        }
    }
    if found.meshes.is_empty() {
        // Istio goes by its defaults then.
        let change = mesh_change(gateway, loaded, status, &Value::Null, &roots);
        facts.meshes.extend(change.map(|change| MeshFacts { change: Some(change), ..MeshFacts::default() }));
    }
    facts.unreadable = Some(unreadable.join("; ")).filter(|text| !text.is_empty());
    facts.strangers = found.strangers;
    Some(facts)
}

/// The mesh configuration of a revision.
fn mesh_from(revision: &str, text: &str) -> Result<Value, String> {
    let parsed = serde_saphyr::from_str::<Value>(text);
    parsed.map_err(|error| format!("ConfigMap istio-system/{}: {error}", istio::mesh_of(revision)))
}

/// Its trust domain and ours, if they are not the same.
fn wrong_domain(mesh: &Value, ours: &str) -> Option<(String, String)> {
    let its = mesh.is_object().then(|| mesh.get("trustDomain").and_then(Value::as_str).unwrap_or(DEFAULT_DOMAIN))?;
    (its != ours).then(|| (its.to_owned(), ours.to_owned()))
}

/// Clusters that ports for Istio's sidecars are for, and that are no peers.
fn nobody(loaded: &Loaded) -> Vec<String> {
    let clusters = loaded.settings.listen.sni.iter().map(|port| &port.cluster);
    clusters.filter(|cluster| !loaded.peers.contains_key(*cluster)).map(ToString::to_string).collect()
}

fn wrong_network(found: &Installation, networks: &BTreeMap<String, String>) -> Option<String> {
    let Some(own) = &found.network else { return Some("istiod knows no network of this cluster".to_owned()) };
    let (peer, _) = networks.iter().find(|(_, network)| *network == own)?;
    Some(format!("istiod takes this cluster for the network {own}, which is that of {peer}"))
}

/// Whether Istio has roots, and none of them is above this chain.
fn has_other_root(chain: &[CertificateDer<'static>], roots: &[CertificateDer<'static>]) -> bool {
    let signs = |root| chain.iter().any(|own| eastway_identity::names_issuer(own, root));
    !roots.is_empty() && !roots.iter().any(signs)
}

fn mesh_change(
    gateway: &Gateway,
    loaded: &Loaded,
    status: &[PeerStatus],
    mesh: &Value,
    roots: &[CertificateDer<'static>],
) -> Option<MeshChange> {
    let (settings, trust) = (&loaded.settings, gateway.anchors.borrow().clone());
    let clusters = settings.listen.sni.iter().filter_map(|port| loaded.peers.get(&port.cluster));
    let peers = clusters.map(|peer| {
        let status = status.iter().find(|status| *status.name == *peer.name.as_str());
        let bundle = trust.as_ref().and_then(|trust| trust.bundles.get(&peer.trust_domain));
        mesh::Peer {
            name: peer.name.as_str(),
            domain: &peer.trust_domain,
            issuer: status.and_then(|status| status.links.iter().find_map(|link| link.issuer.as_deref())),
            anchors: bundle.map_or("", |bundle| &bundle.anchors),
        }
    });
    mesh::lacks(mesh, &settings.trust.domain, roots, &peers.collect::<Vec<_>>())
}

/// Exported services with endpoints that do not speak Istio's TLS.
fn without_sidecar(snapshot: &Snapshot) -> Vec<String> {
    let exported = snapshot.locals().filter(|local| local.exported);
    let plain = exported.filter(|local| local.record.groups.iter().any(|group| group.ready > 0 && !speaks(group)));
    plain.map(|local| local.key().to_string()).collect()
}

/// Services of a peer that is a network of Istio's, with endpoints that istiod is not told of.
pub(super) fn plain(settings: &Settings, snapshot: &Snapshot, peer: &ClusterName) -> Vec<String> {
    if settings.istio().is_none() || !settings.listen.sni.iter().any(|port| port.cluster == *peer) {
        return Vec::new();
    }
    let parts = snapshot.imports().filter_map(|import| Some((&import.key, import.part(Some(peer))?)));
    let untold = parts.filter(|(_, part)| part.record.groups.iter().any(is_untold));
    untold.map(|(key, _)| key.to_string()).collect()
}

fn is_untold(group: &EndpointGroup) -> bool {
    group.ready > 0 && (!speaks(group) || group.identities.is_empty())
}

fn speaks(group: &EndpointGroup) -> bool {
    matches!(group.tls, TlsMode::Istio | TlsMode::IstioStrict)
}

#[cfg(test)]
mod tests {
    use eastway_identity::Ca;
    use eastway_identity::ca::{InitOptions, Root};

    use super::*;

    #[test]
    fn istios_root_is_looked_for_above_our_own_certificate() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let root = Ca::init(&at("root"), &InitOptions::new("a.example")).unwrap();
        let shared = InitOptions { root: Root::Shared(at("root")), ..InitOptions::new("a.example") };
        let (own, other) =
            (Ca::init(&at("own"), &shared).unwrap(), Ca::init(&at("other"), &InitOptions::new("a.example")).unwrap());
        let differs = |roots: &[CertificateDer<'static>]| has_other_root(own.chain(), roots);
        assert!(!differs(root.roots()));
        assert!(differs(other.roots()), "of the same name, with another key");
        assert!(!differs(&[other.roots(), root.roots()].concat()), "one is enough");
        assert!(!differs(&[]), "it tells none");
    }

    #[test]
    fn the_trust_domain_of_istio_is_compared_with_ours() {
        let differs = |text: &str, ours: &str| wrong_domain(&mesh_from("", text).unwrap(), ours);
        let both = |its: &str, ours: &str| Some((its.to_owned(), ours.to_owned()));
        assert_eq!(differs("trustDomain: a.example", "a.example"), None);
        assert_eq!(differs("trustDomain: b.example", "a.example"), both("b.example", "a.example"));
        // A mesh configuration without one has Istio's own.
        assert_eq!(differs("accessLogFile: /dev/stdout", "cluster.local"), None);
        assert_eq!(differs("accessLogFile: /dev/stdout", "a.example"), both("cluster.local", "a.example"));
        assert_eq!(wrong_domain(&Value::Null, "a.example"), None, "there is none");
        let error = mesh_from("canary", "trustDomain: [").unwrap_err();
        assert!(error.starts_with("ConfigMap istio-system/istio-canary: "), "{error}");
    }

    #[test]
    fn the_network_of_this_cluster_is_one_and_no_peers() {
        let networks = BTreeMap::from([("gke".to_owned(), "net-gke".to_owned())]);
        let wrong = |network: Option<&str>| {
            let found = Installation { network: network.map(str::to_owned), ..Installation::default() };
            wrong_network(&found, &networks)
        };
        assert_eq!(wrong(Some("net-here")), None);
        assert!(wrong(None).unwrap().contains("no network"));
        assert!(wrong(Some("net-gke")).unwrap().ends_with("network net-gke, which is that of gke"));
    }
}

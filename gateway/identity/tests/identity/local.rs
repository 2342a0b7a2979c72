//! Handshakes between the processes of one cluster.

use std::sync::Arc;

use crate::support::{Cloud, DAY, at, handshake, noon};
use eastway_identity::local::{
    self, Anchors, ClientAuth, LocalError, LocalTrust, Wanted, anchors_of, client_config, server_config,
};
use eastway_identity::{IdentityStore, SpiffeId};

fn workload(cloud: &Cloud, account: &str) -> Arc<IdentityStore> {
    let id = SpiffeId::workload("onprem.example", "eastway-system", account).unwrap();
    IdentityStore::new(cloud.ca.issue_identity(&id, DAY, noon()).unwrap())
}

fn id(account: &str) -> SpiffeId {
    SpiffeId::workload("onprem.example", "eastway-system", account).unwrap()
}

fn anchors(cloud: &Cloud) -> Anchors {
    let issuer = cloud.ca.chain()[0].clone();
    Arc::new(move || vec![issuer.clone()])
}

/// What the server says of a client with `identity`, and the client of the server.
fn meet(
    server: (&Arc<IdentityStore>, LocalTrust, ClientAuth),
    client: (Option<&Arc<IdentityStore>>, LocalTrust),
) -> (Option<LocalError>, Option<LocalError>, bool) {
    let config = server_config(Arc::clone(server.0), server.1, server.2, at(noon())).unwrap();
    let outcome = handshake(client_config(client.0.cloned(), client.1, at(noon())).unwrap(), config);
    let verdict = |error: &Option<rustls::Error>| error.as_ref().and_then(local::verdict).cloned();
    (verdict(&outcome.server_error), verdict(&outcome.client_error), outcome.is_up())
}

#[test]
fn processes_of_one_cluster_know_each_other_by_ca_and_identity() {
    let onprem = Cloud::new("onprem");
    let (gateway, controller) = (onprem.store(), workload(&onprem, "eastway-controller"));
    let server = || LocalTrust::new(anchors_of(gateway.clone()), Wanted::Identity(id("eastway-controller")));
    let client = || LocalTrust::new(anchors_of(controller.clone()), Wanted::Identity(id("eastway-gateway")));
    let (refused, _, up) = meet((&gateway, server(), ClientAuth::Required), (Some(&controller), client()));
    assert!(up, "{refused:?}");

    let pod = workload(&onprem, "default");
    let (refused, _, up) = meet((&gateway, server(), ClientAuth::Required), (Some(&pod), client()));
    assert!(!up);
    let text = refused.unwrap().to_string();
    assert!(text.contains("sa/default; wanted is spiffe://onprem.example/ns/eastway-system/sa/eastway-controller"));

    let (_, _, up) = meet((&gateway, server(), ClientAuth::Required), (None, client()));
    assert!(!up, "nobody comes in without a certificate");
    let any = LocalTrust::new(anchors(&onprem), Wanted::TrustDomain("onprem.example".into()));
    let (_, _, up) = meet((&gateway, any, ClientAuth::Optional), (None, client()));
    assert!(up, "but where tokens are taken");

    let (_, refused, up) = meet((&pod, server(), ClientAuth::Required), (Some(&controller), client()));
    assert!(!up, "a pod is not the gateway");
    assert!(matches!(refused, Some(LocalError::NotWanted { .. })), "{refused:?}");
}

#[test]
fn x1_what_runs_the_mesh_is_no_workload_of_it() {
    let onprem = Cloud::new("onprem");
    let workloads = Wanted::Workloads { trust_domain: "onprem.example".into(), but: "eastway-system".into() };
    let trust = LocalTrust::new(anchors(&onprem), workloads);
    let accepts = |id: &str| {
        let id = SpiffeId::parse(id).unwrap();
        let identity = onprem.ca.issue_identity(&id, DAY, noon()).unwrap();
        trust.verify(identity.chain(), noon()).map(|caller| caller.id == id)
    };
    assert_eq!(accepts("spiffe://onprem.example/ns/shop/sa/web"), Ok(true));
    for (id, why) in [
        ("spiffe://onprem.example/ns/eastway-system/sa/eastway-gateway", "a gateway"),
        ("spiffe://onprem.example/ns/eastway-system/sa/eastway-controller", "a controller"),
        ("spiffe://onprem.example/shop/web", "no service account"),
    ] {
        assert!(matches!(accepts(id), Err(LocalError::NotWanted { .. })), "{why}: {:?}", accepts(id));
    }
}

#[test]
fn another_clusters_ca_under_the_same_root_speaks_for_nobody_here() {
    let root = Cloud::new("corp");
    let (onprem, gke) = (Cloud::under("onprem", root.dir.path()), Cloud::under("gke", root.dir.path()));
    // gke's CA certifies an identity of onprem's trust domain.
    let forged = workload(&gke, "eastway-controller");
    let gateway = onprem.store();
    let trust = LocalTrust::new(anchors_of(gateway.clone()), Wanted::Identity(id("eastway-controller")));
    let client = LocalTrust::new(anchors(&onprem), Wanted::Identity(id("eastway-gateway")));
    let (refused, _, up) = meet((&gateway, trust, ClientAuth::Required), (Some(&forged), client));
    assert!(!up);
    assert!(matches!(refused, Some(LocalError::OtherCa { .. })), "{refused:?}");
}

#[test]
fn without_a_ca_certificate_nobody_is_accepted() {
    let onprem = Cloud::new("onprem");
    let trust = LocalTrust::new(Arc::new(Vec::new), Wanted::TrustDomain("onprem.example".into()));
    assert_eq!(trust.verify(onprem.identity().chain(), noon()), Err(LocalError::NoAnchor));
    let trust = LocalTrust::new(anchors(&onprem), Wanted::TrustDomain("onprem.example".into()));
    assert_eq!(trust.verify(onprem.identity().chain(), noon()).unwrap().not_after, noon() + DAY);
    let late = trust.verify(onprem.identity().chain(), noon() + DAY + DAY).unwrap_err();
    assert!(late.to_string().contains("expired"), "{late}");
}

//! What others made: names that are taken, namespaces that are missing, quotas.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use eastway_tests::kube::pods::list;
use eastway_tests::kube::{Bed, eastway as installed};
use eastway_tests::within;
use serde_json::json;

use super::{MISSING, PATIENCE, SPACE, by_hand, clear, export, export_in, namespace, service, told};

pub(super) async fn foreign(bed: &Bed) -> Result<()> {
    installed::ready(bed).await?;
    let (a, b) = (bed.cluster("a"), bed.cluster("b"));
    // Theirs: an import and a Service of names that we would take.
    b.apply(&list(&[namespace(SPACE), namespace(MISSING), by_hand("derived"), export("derived")])).await?;
    a.apply(&namespace(SPACE).to_string()).await?;
    installed::imported(a, SPACE, "derived").await?;
    let import = a.get(&["serviceimport", "derived", "-n", SPACE]).await?;
    let derived = import["metadata"]["annotations"]["multicluster.kubernetes.io/derived-service"]
        .as_str()
        .context("a name")?
        .to_owned();
    b.kubectl(&["delete", "serviceexport", "derived", "-n", SPACE]).await?;
    let gone = async || Ok(a.get(&["service", &derived, "-n", SPACE]).await.is_err());
    within(PATIENCE, "what was derived is gone", gone).await?;
    let mut theirs = service(&derived, json!({"selector": {"app": "mine"}, "ports": [{"name": "mine", "port": 7}]}));
    theirs["metadata"]["labels"] = json!({"multicluster.kubernetes.io/service-name": "derived"});
    let import = json!({
        "apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceImport",
        "metadata": {"name": "mine", "namespace": SPACE},
        "spec": {"type": "ClusterSetIP", "ports": [{"name": "mine", "port": 7, "protocol": "TCP"}], "ips": ["10.96.7.7"]},
    });
    let same_name = service("mine", json!({"ports": [{"name": "own", "port": 9}]}));
    a.apply(&list(&[theirs, import, same_name])).await?;
    let state = async || {
        let mut all = Vec::new();
        for what in [["service", &derived], ["serviceimport", "mine"], ["service", "mine"]] {
            let object = a.get(&[what[0], what[1], "-n", SPACE]).await?;
            all.push((object["metadata"]["uid"].clone(), object["spec"].clone(), object["metadata"]["labels"].clone()));
        }
        anyhow::Ok(all)
    };
    let before = state().await?;
    b.apply(&list(&[export("derived"), by_hand("mine"), export("mine")])).await?;
    let what = ["serviceimport", "derived", "-n", SPACE];
    told(a, &what, "Ready=False/Pending", &derived).await?;
    b.apply(&list(&[by_hand("other"), export("other")])).await?;
    installed::imported(a, SPACE, "other").await?;
    ensure!(state().await? == before, "what others made was changed: {:?}", state().await?);
    // They go, and ours comes.
    a.kubectl(&["delete", "service", &derived, "-n", SPACE]).await?;
    within(Duration::from_secs(60), "the name is free", async || {
        Ok(installed::imported(a, SPACE, "derived").await.is_ok())
    })
    .await?;

    // A namespace that is not there, and comes.
    let elsewhere = |name: &str| {
        let mut service = by_hand(name);
        service["metadata"]["namespace"] = json!(MISSING);
        [service, export_in(MISSING, name)]
    };
    b.apply(&list(&elsewhere("one"))).await?;
    ensure!(a.get(&["namespace", MISSING]).await.is_err(), "nobody makes namespaces");
    a.apply(&namespace(MISSING).to_string()).await?;
    installed::imported(a, MISSING, "one").await?;

    // A quota that leaves no room for a Service, and then for two.
    let used = async || {
        let quota = a.get(&["resourcequota", "few", "-n", MISSING]).await?;
        anyhow::Ok(quota["status"]["used"]["services"].as_str().map(str::to_owned))
    };
    let quota = |services: u32| {
        json!({
            "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "few", "namespace": MISSING},
            "spec": {"hard": {"services": services.to_string()}},
        })
    };
    a.apply(&quota(1).to_string()).await?;
    within(PATIENCE, "the quota counts the one", async || Ok(used().await?.as_deref() == Some("1"))).await?;
    b.apply(&list(&[elsewhere("two"), elsewhere("three")].concat())).await?;
    for name in ["two", "three"] {
        told(a, &["serviceimport", name, "-n", MISSING], "Ready=False/Pending", "exceeded quota: few").await?;
    }
    a.apply(&quota(3).to_string()).await?;
    for name in ["two", "three"] {
        installed::imported(a, MISSING, name).await?;
    }
    clear(bed, &[SPACE, MISSING]).await
}

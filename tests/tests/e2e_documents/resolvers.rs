//! Resolvers as platforms lay them out: `eastway dns install` finds each in a real API server, shows what it changes
//! before it does, and `uninstall` leaves every byte as it was.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use eastway_tests::bed_tests;
use eastway_tests::kube::Cluster;
use eastway_tests::kube::eastway::eastway;
use serde_json::{Value, json};

const EKS: &str = include_str!("resolvers/eks.corefile");
const AKS: &str = include_str!("resolvers/aks.corefile");
const NODE_LOCAL: &str = include_str!("resolvers/node-local.corefile");
/// Where our zones are to lead; Eastway itself need not be there.
const SERVER: &str = "10.96.0.53";
/// What users of these platforms have written themselves.
const OWN_ZONE: &str = "corp.example:53 {\n    forward . 10.0.0.10\n}\n";
const OWN_STUBS: &str = "{\"corp.example\": [\"10.0.0.10\"]}";

/// A platform: what is in `kube-system`, and what of it changes.
struct Platform {
    name: &'static str,
    maps: Vec<(&'static str, Vec<(&'static str, &'static str)>)>,
    /// Deployments, with labels.
    deployments: Vec<(&'static str, Value)>,
    /// ConfigMaps and keys that are told.
    told: &'static [&'static str],
    /// A line of the change.
    line: &'static str,
    /// Part of what a person has to know beside.
    advice: Option<&'static str>,
}

fn platforms() -> [Platform; 4] {
    let eks = json!({"k8s-app": "kube-dns", "eks.amazonaws.com/component": "coredns"});
    [
        Platform {
            name: "EKS add-on",
            maps: vec![("coredns", vec![("Corefile", EKS)])],
            deployments: vec![("coredns", eks)],
            told: &["kube-system/coredns Corefile"],
            line: "+clusterset.local:53 {",
            advice: Some("add-on"),
        },
        Platform {
            name: "AKS",
            maps: vec![("coredns", vec![("Corefile", AKS)]), ("coredns-custom", vec![("corp.server", OWN_ZONE)])],
            deployments: Vec::new(),
            told: &["kube-system/coredns-custom eastway.server"],
            line: "+clusterset.local:53 {",
            advice: None,
        },
        Platform {
            name: "kube-dns",
            maps: vec![("kube-dns", vec![("stubDomains", OWN_STUBS), ("upstreamNameservers", "[\"1.1.1.1\"]")])],
            deployments: vec![("kube-dns", json!({"k8s-app": "kube-dns"}))],
            told: &["kube-system/kube-dns stubDomains"],
            line: "\"clusterset.local\"",
            advice: None,
        },
        Platform {
            name: "NodeLocal DNS",
            maps: vec![("coredns", vec![("Corefile", EKS)]), ("node-local-dns", vec![("Corefile", NODE_LOCAL)])],
            deployments: Vec::new(),
            told: &["kube-system/coredns Corefile", "kube-system/node-local-dns Corefile"],
            line: "+clusterset.local:53 {",
            advice: None,
        },
    ]
}

/// Everything that can be told, by ConfigMap and key, with the version of its ConfigMap.
async fn texts(cluster: &Cluster) -> Result<BTreeMap<(String, String), (String, String)>> {
    let maps = cluster.get(&["configmaps", "-n", "kube-system"]).await?;
    let mut texts = BTreeMap::new();
    for map in maps["items"].as_array().context("a list")? {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        for (key, value) in map["data"].as_object().into_iter().flatten() {
            let place = (text(&map["metadata"]["name"]), key.clone());
            texts.insert(place, (text(value), text(&map["metadata"]["resourceVersion"])));
        }
    }
    Ok(texts)
}

/// The texts without their versions.
fn plain(texts: &BTreeMap<(String, String), (String, String)>) -> Vec<(&(String, String), &String)> {
    texts.iter().map(|(place, (text, _))| (place, text)).collect()
}

/// Makes `kube-system` that of the platform, as far as it is looked at.
async fn become_platform(cluster: &Cluster, platform: &Platform) -> Result<()> {
    let known = ["coredns", "coredns-custom", "kube-dns", "node-local-dns"];
    for kind in ["configmap", "deployment"] {
        let delete = [&["delete", kind, "-n", "kube-system", "--ignore-not-found"], &known[..]].concat();
        cluster.kubectl(&delete).await?;
    }
    let mut items = Vec::new();
    for (name, data) in &platform.maps {
        let data: serde_json::Map<String, Value> =
            data.iter().map(|(key, text)| ((*key).to_owned(), json!(text))).collect();
        let metadata = json!({"name": name, "namespace": "kube-system"});
        items.push(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}));
    }
    for (name, labels) in &platform.deployments {
        let metadata = json!({"name": name, "namespace": "kube-system", "labels": labels});
        let pod =
            json!({"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "dns", "image": "dns"}]}});
        let spec = json!({"replicas": 0, "selector": {"matchLabels": {"app": name}}, "template": pod});
        items.push(json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec}));
    }
    cluster.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()).await.map(drop)
}

async fn try_out(cluster: &Cluster, platform: &Platform) -> Result<()> {
    become_platform(cluster, platform).await?;
    let before = texts(cluster).await?;
    let dns = async |arguments: &[&str]| eastway(cluster, &[&["dns"], arguments, &["--server", SERVER]].concat()).await;

    let told = dns(&["status", "--cluster"]).await;
    ensure!(told.is_err(), "all is well before anything was done: {told:?}");
    let shown = dns(&["install", "--dry-run"]).await?;
    ensure!(shown.contains(platform.line) && shown.contains(SERVER), "{shown}");
    ensure!(platform.told.iter().all(|name| shown.contains(name)), "{shown}");
    ensure!(texts(cluster).await? == before, "a dry run wrote");

    let written = dns(&["install", "--timeout", "0s"]).await?;
    ensure!(platform.advice.is_none_or(|advice| written.contains(advice)), "{written}");
    let after = texts(cluster).await?;
    for name in platform.told {
        let (map, key) = name.trim_start_matches("kube-system/").split_once(' ').context("a name")?;
        let (text, _) = after.get(&(map.to_owned(), key.to_owned())).with_context(|| format!("{name} is not there"))?;
        ensure!(text.contains(SERVER), "{name}: {text}");
    }
    let changed = after.iter().filter(|(place, (text, _))| before.get(*place).is_none_or(|(old, _)| old != text));
    ensure!(changed.count() == platform.told.len(), "more was changed than was told of: {after:?}");
    let told = dns(&["status", "--cluster"]).await?;
    ensure!(told.matches("forwards").count() == platform.told.len(), "{told}");
    ensure!(dns(&["install", "--timeout", "0s"]).await?.contains("nothing to do"), "installed twice");
    ensure!(texts(cluster).await? == after, "installing again wrote");

    dns(&["uninstall", "--dry-run"]).await?;
    ensure!(texts(cluster).await? == after, "a dry run wrote");
    dns(&["uninstall"]).await?;
    let left = texts(cluster).await?;
    ensure!(plain(&left) == plain(&before), "not as it was: {left:?}");
    Ok(())
}

bed_tests! {
    /// EKS, AKS, kube-dns and NodeLocal DNS. It takes the cluster's own resolver away: the last test of this bed.
    async fn resolvers_of_other_platforms_are_told_and_left_as_they_were(bed) {
        for platform in platforms() {
            try_out(bed.cluster("gke"), &platform).await.with_context(|| platform.name)?;
        }
        Ok(())
    }
}

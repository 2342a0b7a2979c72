//! What the current conformance suite of the Multi-Cluster Services API asks beyond the one that can be had as a Go
//! module: the same claims, on both clusters. The other one is in `conformance`; docs/conformance.md tells them apart.
//! Its claims about DNS of headless services are in `services`.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use eastway_tests::kube::{Bed, Cluster, eastway as installed, image, seconds};
use eastway_tests::{bed_tests, within};
use serde_json::{Value, json};

use crate::client::{self, addresses, hostnames};

const NAMESPACE: &str = "e2e-mcs";
const PATIENCE: Duration = Duration::from_secs(30);
/// Connections per port and cluster, as many as the suite makes.
const REPEATED: usize = 10;
/// Exported by both clusters, with something that differs.
const DIFFERENT: [&str; 4] = ["labels", "union", "number", "headless"];

fn port(name: &str, number: u16, protocol: &str) -> Value {
    json!({"name": name, "port": number, "protocol": protocol, "targetPort": 8080})
}

/// A Service with labels of its own, which nobody asked to export.
fn service(name: &str, spec: &Value) -> Value {
    let mut whole = json!({"selector": {"app": "back"}});
    let fields = spec.as_object().into_iter().flatten();
    whole.as_object_mut().expect("an object").extend(fields.map(|(key, value)| (key.clone(), value.clone())));
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": name, "namespace": NAMESPACE,
            "labels": {"of-service": "true"}, "annotations": {"of-service": "true"},
        },
        "spec": whole,
    })
}

/// Its export, with labels of its own, which are not exported either, and such as are.
fn export(name: &str, exported: &str) -> Value {
    json!({
        "apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceExport",
        "metadata": {
            "name": name, "namespace": NAMESPACE,
            "labels": {"of-export": "true"}, "annotations": {"of-export": "true"},
        },
        "spec": {"exportedLabels": {exported: "true"}, "exportedAnnotations": {exported: "true"}},
    })
}

/// A server that says which cluster's pod it is, and the policy that lets the other cluster in.
fn server(cluster: &str) -> [Value; 2] {
    let labels = json!({"app": "back"});
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": format!("back-{cluster}"), "namespace": NAMESPACE},
        "spec": {"selector": {"matchLabels": labels}, "template": {
            "metadata": {"labels": labels},
            "spec": {"terminationGracePeriodSeconds": 0, "containers": [{
                "name": "http", "image": image::AGNHOST, "args": ["netexec", "--http-port=8080", "--udp-port=8081"],
                "readinessProbe": {"httpGet": {"port": 8080, "path": "/healthz"}, "periodSeconds": 1},
            }]},
        }},
    });
    let policy = json!({
        "apiVersion": "eastway.dev/v1alpha1", "kind": "AccessPolicy",
        "metadata": {"name": "all", "namespace": NAMESPACE},
        "spec": {"services": ["*"], "allow": [{"cluster": "*"}]},
    });
    [deployment, policy]
}

/// What the cluster that exports first has.
fn first() -> Vec<Value> {
    let tcp = port("tcp", 42, "TCP");
    let settings = json!({
        "ports": [tcp], "internalTrafficPolicy": "Cluster", "trafficDistribution": "PreferClose",
        "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10}},
    });
    let services = [
        ("settings", settings),
        ("external", json!({"type": "ExternalName", "externalName": "www.outside.test", "selector": null})),
        ("labels", json!({"ports": [tcp]})),
        ("union", json!({"ports": [tcp, port("udp", 42, "UDP")]})),
        ("number", json!({"ports": [tcp]})),
        ("split", json!({"ports": [tcp]})),
        ("headless", json!({"ports": [tcp]})),
    ];
    let pair = |(name, spec): &(&str, Value)| [service(name, spec), export(name, "of-first")];
    services.iter().flat_map(pair).chain(server("a")).collect()
}

/// What the other one has.
fn second() -> Vec<Value> {
    let tcp = port("tcp", 42, "TCP");
    let services = [
        ("labels", json!({"ports": [tcp]}), "of-second"),
        ("union", json!({"ports": [tcp, port("stcp", 142, "SCTP")]}), "of-first"),
        ("number", json!({"ports": [port("tcp", 4242, "TCP")]}), "of-first"),
        ("split", json!({"ports": [port("tcp2", 4242, "TCP")]}), "of-first"),
        ("headless", json!({"ports": [tcp], "clusterIP": "None"}), "of-first"),
    ];
    let pair = |(name, spec, exported): &(&str, Value, &str)| [service(name, spec), export(name, exported)];
    services.iter().flat_map(pair).chain(server("b")).collect()
}

async fn start(bed: &Bed) -> Result<()> {
    for (cluster, objects) in bed.clusters().iter().zip([first(), second()]) {
        client::start(cluster, NAMESPACE, &[]).await?;
        cluster.apply(&json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string()).await?;
    }
    for cluster in bed.clusters() {
        cluster.rollout(&format!("deploy/back-{}", cluster.name()), NAMESPACE, PATIENCE).await?;
    }
    Ok(())
}

/// The status of a condition of the export.
async fn condition(cluster: &Cluster, name: &str, kind: &str) -> Result<Option<String>> {
    let export = cluster.get(&["serviceexports.v1beta1.multicluster.x-k8s.io", name, "-n", NAMESPACE]).await?;
    let conditions = export.pointer("/status/conditions").and_then(Value::as_array);
    let found = conditions.into_iter().flatten().find(|condition| condition["type"] == kind);
    Ok(found.and_then(|condition| condition["status"].as_str()).map(str::to_owned))
}

async fn has_condition(cluster: &Cluster, name: &str, kind: &str, status: &str) -> Result<()> {
    let what = format!("{kind} of the export {name} is {status} in {}", cluster.name());
    within(PATIENCE, what, async || Ok(condition(cluster, name, kind).await?.as_deref() == Some(status)))
        .await
        .map(drop)
}

/// Waits until the import is as `right` says, which tells why if it is not.
async fn import_is(cluster: &Cluster, name: &str, right: impl Fn(&Value) -> Result<()>) -> Result<()> {
    let what = format!("the import {name} is right in {}", cluster.name());
    let is_right = async || {
        let import = cluster.get(&["serviceimports.v1beta1.multicluster.x-k8s.io", name, "-n", NAMESPACE]).await?;
        right(&import).with_context(|| import.to_string())?;
        Ok(true)
    };
    within(PATIENCE, what, is_right).await.map(drop)
}

/// Labels and annotations that the first exporter names are there, and no others of anybody.
fn exported_alone(import: &Value) -> Result<()> {
    for map in ["labels", "annotations"] {
        let pairs = &import["metadata"][map];
        ensure!(pairs["of-first"] == "true", "exported {map} are missing");
        for other in ["of-service", "of-export", "of-second"] {
            ensure!(pairs.get(other).is_none(), "{other} is among the {map}");
        }
    }
    Ok(())
}

fn has_ports(import: &Value, expected: &[(&str, u16, &str)]) -> Result<()> {
    let ports = import["spec"]["ports"].as_array().context("no ports")?;
    let found: BTreeSet<_> =
        ports.iter().map(|port| (port["name"].as_str(), port["port"].as_u64(), port["protocol"].as_str())).collect();
    let expected =
        expected.iter().map(|&(name, number, protocol)| (Some(name), Some(u64::from(number)), Some(protocol)));
    ensure!(found == expected.collect(), "ports are {found:?}");
    Ok(())
}

/// As many addresses as families, in their order, and DNS answers them.
async fn addresses_are_right(cluster: &Cluster) -> Result<()> {
    import_is(cluster, "settings", |import| {
        let (ips, families) = (import["spec"]["ips"].as_array(), import["spec"]["ipFamilies"].as_array());
        let (ips, families) = (ips.context("no ips")?, families.context("no families")?);
        ensure!(!ips.is_empty() && ips.len() == families.len());
        for (ip, family) in ips.iter().zip(families) {
            let ip: IpAddr = ip.as_str().context("a text")?.parse()?;
            ensure!(family == if ip.is_ipv6() { "IPv6" } else { "IPv4" });
        }
        Ok(())
    })
    .await?;
    let import: IpAddr = installed::imported(cluster, NAMESPACE, "settings").await?.parse()?;
    let found = addresses(cluster, NAMESPACE, "settings.e2e-mcs.svc.clusterset.local").await?;
    ensure!(found == BTreeSet::from([import]), "{}: DNS says {found:?}, the import {import}", cluster.name());
    Ok(())
}

/// Every connection to the port is answered by pods of `owner`.
async fn leads_to(cluster: &Cluster, name: &str, number: u16, owner: &str) -> Result<()> {
    let host = format!("{name}.{NAMESPACE}.svc.clusterset.local");
    let first = async || {
        Ok(hostnames(cluster, NAMESPACE, &host, number, 1).await?.iter().all(|host| host.starts_with("back-")))
    };
    within(PATIENCE, format!("{host}:{number} answers in {}", cluster.name()), first).await?;
    let said = hostnames(cluster, NAMESPACE, &host, number, REPEATED).await?;
    let wanted = format!("back-{owner}-");
    ensure!(said.len() == REPEATED && said.iter().all(|host| host.starts_with(&wanted)), "{host}:{number}: {said:?}");
    Ok(())
}

bed_tests! {
    /// What one cluster exports is imported in both with all its settings, and only with labels that it names.
    async fn imports_are_as_exported_and_conflicts_are_told(bed) {
        installed::ready(bed).await?;
        start(bed).await?;
        let begun = Instant::now();
        let a = bed.cluster("a");
        has_condition(a, "settings", "Valid", "True").await?;
        has_condition(a, "external", "Valid", "False").await?;
        for cluster in bed.clusters() {
            import_is(cluster, "settings", |import| {
                let spec = &import["spec"];
                ensure!(spec["type"] == "ClusterSetIP");
                ensure!(spec["sessionAffinity"] == "ClientIP");
                ensure!(spec["sessionAffinityConfig"] == json!({"clientIP": {"timeoutSeconds": 10}}));
                ensure!(spec["internalTrafficPolicy"] == "Cluster");
                ensure!(spec["trafficDistribution"] == "PreferClose");
                exported_alone(import)
            })
            .await?;
            addresses_are_right(cluster).await?;

            for name in DIFFERENT {
                has_condition(cluster, name, "Conflict", "True").await?;
            }
            import_is(cluster, "labels", exported_alone).await?;
            import_is(cluster, "union", |import| {
                has_ports(import, &[("tcp", 42, "TCP"), ("udp", 42, "UDP"), ("stcp", 142, "SCTP")])
            })
            .await?;
            import_is(cluster, "number", |import| has_ports(import, &[("tcp", 42, "TCP")])).await?;
            import_is(cluster, "headless", |import| {
                ensure!(import["spec"]["type"] == "ClusterSetIP");
                Ok(())
            })
            .await?;

            leads_to(cluster, "number", 42, "a").await?;
            leads_to(cluster, "split", 42, "a").await?;
            leads_to(cluster, "split", 4242, "b").await?;
            let external = cluster.get(&["serviceimport", "external", "-n", NAMESPACE]).await;
            ensure!(external.is_err(), "a Service of type ExternalName was imported: {external:?}");
        }
        bed.record("mcs.current_claims_s", seconds(begun.elapsed()));
        for cluster in bed.clusters() {
            client::end(cluster, NAMESPACE).await?;
        }
        Ok(())
    }
}

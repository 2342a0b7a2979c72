//! Services of the other cluster by name, from plain pods: TCP, HTTP, gRPC, headless and StatefulSet names.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use eastway_tests::kube::{Bed, Cluster, eastway as installed, lookup, seconds};
use eastway_tests::{bed_tests, within};

use crate::client::{self, addresses, hostnames};

const NAMESPACE: &str = "e2e-services";
/// What the exporting cluster runs.
const SERVICES: &str = include_str!("services.yaml");
/// A resolver that knows `clusterset.local` by CoreDNS's own plugin.
const MULTICLUSTER: &str = include_str!("multicluster.yaml");
const PATIENCE: Duration = Duration::from_secs(60);

const ECHO: &str = "echo.e2e-services.svc.clusterset.local";
const WEB: &str = "web.e2e-services.svc.clusterset.local";

/// Starts the services in b, exported, and a client in both.
async fn start(bed: &Bed) -> Result<()> {
    for cluster in bed.clusters() {
        client::start(cluster, NAMESPACE, &[]).await?;
    }
    let b = bed.cluster("b");
    b.apply(SERVICES).await?;
    for workload in ["deploy/echo", "sts/web"] {
        b.rollout(workload, NAMESPACE, PATIENCE).await?;
    }
    let ready = Instant::now();
    for cluster in bed.clusters() {
        installed::imported(cluster, NAMESPACE, "echo").await?;
        let what = format!("both pods of the StatefulSet have a name in {}", cluster.name());
        within(PATIENCE, what, async || Ok(addresses(cluster, NAMESPACE, WEB).await?.len() == 2)).await?;
    }
    bed.record("services.known_in_both_s", seconds(ready.elapsed()));
    Ok(())
}

/// What TCP, HTTP and gRPC say to each other by way of the Service with a cluster IP.
async fn ask_echo(bed: &Bed, cluster: &Cluster) -> Result<()> {
    let name = cluster.name();
    let import = installed::imported(cluster, NAMESPACE, "echo").await?.parse::<IpAddr>()?;
    let found = addresses(cluster, NAMESPACE, ECHO).await?;
    ensure!(found == BTreeSet::from([import]), "{name}: {ECHO} is {found:?}, the import {import}");

    let echo = format!("printf 'one\\ntwo\\n' | nc -w 10 {ECHO} 7000");
    let said = cluster.exec(NAMESPACE, client::POD, &["sh", "-c", &echo]).await?;
    ensure!(said == "one\ntwo\n", "{name}: TCP came back as {said:?}");

    let said = hostnames(cluster, NAMESPACE, ECHO, 80, 20).await?;
    ensure!(said.iter().all(|host| host.starts_with("echo-")), "{name}: HTTP said {said:?}");
    let pods: BTreeSet<&String> = said.iter().collect();
    ensure!(pods.len() == 2, "{name}: HTTP reached {pods:?}");

    let target = format!("{ECHO}:5000");
    let said = cluster.exec(NAMESPACE, client::POD, &["grpc-health", &target, "20"]).await?;
    ensure!(said.trim() == "SERVING after 20 calls", "{name}: gRPC said {said:?}");
    bed.record(&format!("services.{name}.answers"), serde_json::json!({"tcp": 1, "http": 20, "grpc": 20}));
    Ok(())
}

/// The names of single pods: what the service's name answers are addresses of this cluster, each of one pod.
async fn ask_pods(cluster: &Cluster, exporter: bool) -> Result<()> {
    let name = cluster.name();
    let all = addresses(cluster, NAMESPACE, WEB).await?;
    let mut single = BTreeSet::new();
    for pod in ["web-0", "web-1"] {
        let host = format!("{pod}.b.{WEB}");
        let found = addresses(cluster, NAMESPACE, &host).await?;
        ensure!(found.len() == 1, "{name}: {host} is {found:?}");
        let said = hostnames(cluster, NAMESPACE, &host, 8080, 5).await?;
        ensure!(said == vec![pod; 5], "{name}: {host} reached {said:?}");
        single.extend(found);
    }
    ensure!(single == all && all.len() == 2, "{name}: the pods are {single:?}, the service {all:?}");
    // I1: those of pods only at home.
    let are_pods =
        all.iter().all(|address| matches!(address, IpAddr::V4(address) if address.octets()[..2] == [10, 244]));
    ensure!(are_pods == exporter, "{name}: {all:?}");
    let mut reached = BTreeSet::new();
    for address in &all {
        reached.extend(hostnames(cluster, NAMESPACE, &address.to_string(), 8080, 1).await?);
    }
    ensure!(reached == BTreeSet::from(["web-0".to_owned(), "web-1".to_owned()]), "{name}: {reached:?}");
    Ok(())
}

/// Records by the DNS schema of the MCS API, and none that it forbids.
async fn ask_records(cluster: &Cluster) -> Result<()> {
    let name = cluster.name();
    let ask = async |kind: &str, name: &str| client::lookup(cluster, NAMESPACE, kind, name).await;
    let pods = BTreeSet::from(["web-0", "web-1"].map(|pod| (8080, format!("{pod}.b.{WEB}"))));
    for owner in [WEB.to_owned(), format!("_http._tcp.{WEB}")] {
        let found = ask("srv", &owner).await?;
        ensure!(found.targets == pods, "{name}: SRV of {owner}: {found:?}");
    }
    for (port, number) in [("_http._tcp", 80), ("_grpc._tcp", 5000), ("_tcp._tcp", 7000)] {
        let found = ask("srv", &format!("{port}.{ECHO}")).await?;
        ensure!(found.targets == BTreeSet::from([(number, ECHO.to_owned())]), "{name}: {port}: {found:?}");
    }
    let version = ask("txt", "dns-version.clusterset.local").await?;
    ensure!(version.texts == BTreeSet::from(["1.1.0".to_owned()]), "{name}: {version:?}");
    for none in [format!("b.{WEB}"), format!("web-2.b.{WEB}"), format!("web-0.a.{WEB}"), format!("b.{ECHO}")] {
        let found = ask("a", &none).await?;
        ensure!(found.code == "NXDOMAIN" && found.addresses.is_empty(), "{name}: {none}: {found:?}");
    }
    Ok(())
}

/// `cluster.local` is what it would be without us: the services at home, and nothing elsewhere.
async fn ask_local(a: &Cluster, b: &Cluster) -> Result<()> {
    let (echo, web) = ("echo.e2e-services.svc.cluster.local", "web-0.web.e2e-services.svc.cluster.local");
    for name in [echo, web] {
        let found = client::lookup(a, NAMESPACE, "a", name).await?;
        ensure!(found.code == "NXDOMAIN", "a: {name}: {found:?}");
    }
    let service = b.get(&["service", "echo", "-n", NAMESPACE]).await?;
    let own: IpAddr = service["spec"]["clusterIP"].as_str().context("an address")?.parse()?;
    ensure!(addresses(b, NAMESPACE, echo).await? == BTreeSet::from([own]));
    let pod = b.get(&["pod", "web-0", "-n", NAMESPACE]).await?;
    let own: IpAddr = pod["status"]["podIP"].as_str().context("an address")?.parse()?;
    ensure!(addresses(b, NAMESPACE, web).await? == BTreeSet::from([own]));
    Ok(())
}

/// CoreDNS's own plugin answers from what the controller wrote as our DNS does.
async fn compare_with_coredns(cluster: &Cluster) -> Result<usize> {
    cluster.apply(MULTICLUSTER).await?;
    cluster.wait("condition=Ready", &["pod/coredns", "-n", NAMESPACE], PATIENCE).await?;
    let pod = cluster.get(&["pod", "coredns", "-n", NAMESPACE]).await?;
    let server: IpAddr = pod["status"]["podIP"].as_str().context("an address")?.parse()?;
    let from = (NAMESPACE, client::POD);
    let questions = [
        ("a", ECHO.to_owned()),
        ("aaaa", ECHO.to_owned()),
        ("srv", ECHO.to_owned()),
        ("srv", format!("_http._tcp.{ECHO}")),
        ("srv", format!("_grpc._tcp.{ECHO}")),
        ("a", WEB.to_owned()),
        ("srv", WEB.to_owned()),
        ("srv", format!("_http._tcp.{WEB}")),
        ("a", format!("web-0.b.{WEB}")),
        ("a", format!("web-1.b.{WEB}")),
        ("a", format!("web-2.b.{WEB}")),
        ("a", format!("b.{WEB}")),
        ("a", "nobody.e2e-services.svc.clusterset.local".to_owned()),
        ("txt", "dns-version.clusterset.local".to_owned()),
    ];
    for (kind, name) in &questions {
        let ours = lookup::lookup(cluster, from, kind, name, None).await?;
        let theirs = lookup::lookup(cluster, from, kind, name, Some(server)).await?;
        ensure!(ours == theirs, "{kind} of {name}: our DNS {ours:?}, CoreDNS's plugin {theirs:?}");
    }
    Ok(questions.len())
}

bed_tests! {
    /// What b exports is used by name from pods of both, as the MCS API says, and nothing else changes for them.
    async fn names_lead_to_services_of_the_other_cluster(bed) {
        installed::ready(bed).await?;
        start(bed).await?;
        let (a, b) = (bed.cluster("a"), bed.cluster("b"));
        for (cluster, exporter) in [(a, false), (b, true)] {
            ask_echo(bed, cluster).await?;
            ask_pods(cluster, exporter).await?;
            ask_records(cluster).await?;
        }
        ask_local(a, b).await?;
        let compared = compare_with_coredns(a).await?;
        bed.record("services.answers_as_coredns", compared);

        // A pod that is replaced has its name again, as soon as resolvers ask anew.
        b.kubectl(&["delete", "pod", "web-0", "-n", NAMESPACE, "--grace-period=1"]).await?;
        b.rollout("sts/web", NAMESPACE, PATIENCE).await?;
        let host = format!("web-0.b.{WEB}");
        let again = within(PATIENCE, "the new pod answers in a", async || {
            Ok(hostnames(a, NAMESPACE, &host, 8080, 1).await? == ["web-0"])
        });
        bed.record("services.pod_replaced_s", seconds(again.await?));

        a.delete(MULTICLUSTER).await?;
        for cluster in bed.clusters() {
            client::end(cluster, NAMESPACE).await?;
        }
        Ok(())
    }
}

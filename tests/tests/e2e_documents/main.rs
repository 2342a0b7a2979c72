//! The documents for clusters of Kubernetes, run as they stand: two clusters from nothing to an answer across clouds, and
//! out again.
//!
//! A block's host says whose shell it is for: `kube-onprem` and `kube-gke`. `kube-each` is written for onprem and is for
//! every cluster, with the names exchanged; a reader has both shells open, and so have these. What other pages name
//! between backquotes is run too.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test fails by panicking, and prints what it measured"
)]

mod people;
mod resolvers;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use eastway_tests::documents::blocks::{self, Block};
use eastway_tests::documents::{IN_CLUSTERS, KUBERNETES, read, root};
use eastway_tests::kube::eastway::{SYSTEM, outside};
use eastway_tests::kube::{Bed, Cluster, image, stage, suite, tools};
use eastway_tests::{bed_tests, oci, within};
use people::People;
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(180);
/// Largest image, uncompressed.
const MAX_IMAGE: u64 = 40_000_000;
/// Pages whose inline commands are run.
const PAGES: [&str; 4] = ["docs/install.md", "docs/concepts.md", "docs/operations.md", "docs/troubleshooting.md"];
/// Inline commands that are not run, and why.
const NOT_RUN: [(&str, &str); 2] = [
    ("kubectl -n eastway-system logs", "it goes on with the name of a pod"),
    ("kubectl -n eastway-system logs job/eastway-ca-init", "the job is gone when it has succeeded"),
];

fn main() -> ExitCode {
    suite::main_called("documents", &["onprem", "gke"], &[TESTS, resolvers::TESTS].concat())
}

bed_tests! {
    /// Every block and every inline command, in the order of a reader.
    async fn commands_for_clusters_work_as_they_stand(bed) limit 600 {
        prepare(bed).await?;
        let before = corefiles(bed).await?;
        let mut people = People::come(bed)?;
        // The cloud gives addresses while Helm waits for them.
        tokio::select! {
            done = follow(bed, &mut people) => done?,
            failed = cloud(bed) => failed?,
        }
        ensure!(corefiles(bed).await? == before, "a Corefile is not what it was");
        for cluster in bed.clusters() {
            // Pods finish what they carry.
            within(PATIENCE, format!("nothing is left in {}", cluster.name()), async || {
                let left = left_in(cluster).await?;
                ensure!(left.is_empty(), "{left:?}");
                Ok(true)
            })
            .await?;
            cluster.get(&["secret", "cacerts", "-n", SYSTEM]).await.context("the CA stays")?;
        }
        Ok(())
    }
}

/// What Eastway's uninstallation should have taken away.
async fn left_in(cluster: &Cluster) -> Result<Vec<String>> {
    let own = cluster.kubectl(&["get", "all,leases,configmaps", "-n", SYSTEM, "-o", "name"]).await?;
    let kinds = "serviceimports,services,endpointslices";
    let label = "app.kubernetes.io/managed-by=eastway";
    let derived = cluster.kubectl(&["get", kinds, "-A", "-l", label, "-o", "name"]).await?;
    let names = own.lines().chain(derived.lines()).filter(|name| *name != "configmap/kube-root-ca.crt");
    Ok(names.map(str::to_owned).collect())
}

/// What a reader has: images that can be pulled, Eastway's as `make image` makes it, and an application that is in one of the clusters.
async fn prepare(bed: &Bed) -> Result<()> {
    let folder = stage::folder()?.join("images");
    let [eastway, sidecar, curl] = ["eastway.tar", "sidecar.tar", "curl.tar"].map(|name| folder.join(name));
    let binary = eastway_tests::binary();
    let bytes = oci::write(&binary, &eastway, &released("eastway")?)?;
    bed.record("image.oci_bytes", bytes);
    let is_release = binary.components().any(|part| part.as_os_str() == "release");
    ensure!(!is_release || bytes <= MAX_IMAGE, "the image has {bytes} bytes");
    image::sidecar_image(&released("eastway-sidecar")?, &binary, &sidecar).await?;
    image::curl_image(&tools::system("curl")?, &curl).await?;
    for cluster in bed.clusters() {
        cluster.load_images(&[eastway.clone(), sidecar.clone(), curl.clone()]).await?;
        cluster.kubectl(&["create", "namespace", "bookinfo"]).await?;
    }
    let labels = json!({"app": "reviews"});
    let container = json!({"name": "reviews", "image": image::AGNHOST, "args": ["netexec", "--http-port=9080"]});
    let pods = json!({"metadata": {"labels": labels}, "spec": {"containers": [container]}});
    let application = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "reviews", "namespace": "bookinfo"},
         "spec": {"selector": {"matchLabels": labels}, "template": pods}},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "reviews", "namespace": "bookinfo"},
         "spec": {"selector": labels, "ports": [{"name": "http", "port": 9080}]}},
    ]});
    bed.cluster("gke").apply(&application.to_string()).await.map(drop)
}

/// The image of that name as the chart has it.
fn released(name: &str) -> Result<String> {
    let values = |file: &str, key: &str| -> Vec<String> {
        let text = read(&format!("helm/eastway/{file}"));
        let found = text.lines().filter_map(|line| line.trim().strip_prefix(key));
        found.map(|value| value.trim().to_owned()).collect()
    };
    let repositories = values("values.yaml", "repository:");
    let repository = repositories.iter().find(|one| one.rsplit('/').next() == Some(name));
    let versions = values("Chart.yaml", "appVersion:");
    let version = versions.first().context("Chart.yaml has no appVersion")?;
    Ok(format!("{}:{version}", repository.with_context(|| format!("values.yaml has no image {name}"))?))
}

/// What a cloud does for the Services of type LoadBalancer.
async fn cloud(bed: &Bed) -> Result<()> {
    for cluster in bed.clusters() {
        let there = async || Ok(cluster.get(&["service", "eastway-gateway", "-n", SYSTEM]).await.is_ok());
        within(PATIENCE, format!("{} wants a load balancer", cluster.name()), there).await?;
        cluster.load_balancer(SYSTEM, "eastway-gateway", outside(bed, cluster)?).await?;
    }
    std::future::pending().await
}

async fn corefiles(bed: &Bed) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for cluster in bed.clusters() {
        let map = cluster.get(&["configmap", "coredns", "-n", "kube-system"]).await?;
        all.push(map["data"]["Corefile"].as_str().context("a Corefile")?.to_owned());
    }
    Ok(all)
}

/// Follows the documents: the way in, all that is named for later, the way out.
async fn follow(bed: &Bed, people: &mut People) -> Result<()> {
    let [install, others @ ..] = IN_CLUSTERS;
    let mut way = of(install)?;
    let out = way.pop().context("the way out")?;
    let started = Instant::now();
    let mut printed = String::new();
    for block in &way {
        printed = people.run(install, block).await?;
    }
    bed.record("documents.install_to_answer_s", started.elapsed().as_secs_f64());
    // What agnhost says to who asks for `/`.
    ensure!(printed.contains("NOW:"), "no answer across the clouds:\n{printed}");
    for document in others {
        for block in of(document)? {
            people.run(document, &block).await?;
        }
    }
    for page in PAGES {
        for command in inline(&read(page)) {
            if let Some((_, reason)) = NOT_RUN.iter().find(|(not_run, _)| *not_run == command) {
                println!("{page}: `{command}` is not run: {reason}");
                continue;
            }
            // It warns that onprem offers nothing.
            let may_warn = if command.ends_with("eastway check") { " || test $? = 3" } else { "" };
            people.say("kube-onprem", &format!("{command}{may_warn}")).await.with_context(|| page)?;
        }
    }
    let started = Instant::now();
    people.run(install, &out).await?;
    bed.record("documents.uninstall_s", started.elapsed().as_secs_f64());
    Ok(())
}

/// The blocks of a document for clusters.
fn of(document: &str) -> Result<Vec<Block>> {
    let mut blocks = blocks::of(&read(document)).map_err(anyhow::Error::msg)?;
    blocks.retain(|block| block.host().starts_with(KUBERNETES));
    ensure!(!blocks.is_empty(), "{document} has no block for clusters");
    Ok(blocks)
}

/// Commands between backquotes that are whole: others are spoken of.
fn inline(text: &str) -> Vec<String> {
    let mut commands = Vec::new();
    for span in text.lines().filter(|line| !line.starts_with("```")).flat_map(|line| line.split('`').skip(1).step_by(2))
    {
        let words = span.split(' ').count();
        let is_whole = words > 2 && ["kubectl ", "helm "].iter().any(|program| span.starts_with(program))
            || span.starts_with("eastway dns status ");
        if is_whole && !commands.iter().any(|command| command == span) {
            commands.push(span.to_owned());
        }
    }
    commands
}

/// The chart and all else that a reader has checked out.
fn checkout() -> Result<std::path::PathBuf> {
    root().canonicalize().context("the repository")
}

/// Its administrator's credentials, for use on the WAN.
fn credentials(cluster: &Cluster) -> std::path::PathBuf {
    cluster.pki().admin()
}

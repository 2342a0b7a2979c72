//! Resolvers as pods have them: glibc and musl, with the cluster's search path.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use eastway_tests::bed_tests;
use eastway_tests::kube::{Cluster, image, stage, wan};
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(60);
/// A resolver that lost an answer asks again after 5 s (glibc) or 2.5 s (musl).
const STALLED_MS: f64 = 2_000.0;
const RESOLVERS: [&str; 2] = ["resolve-glibc", "resolve-musl"];

/// Starts a pod with the resolvers in a cluster.
async fn start_resolvers(cluster: &Cluster) -> Result<()> {
    let tar = stage::folder()?.join("images/resolve.tar");
    if !tar.exists() {
        image::resolve_image(&tar).await?;
    }
    cluster.load_images(&[tar]).await?;
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "resolvers", "namespace": "default"},
        "spec": {"containers": [{"name": "resolvers", "image": image::RESOLVE}], "terminationGracePeriodSeconds": 0},
    });
    cluster.apply(&pod.to_string()).await?;
    cluster.wait("condition=Ready", &["pod/resolvers", "-n", "default"], PATIENCE).await
}

/// What a resolver in the pod says of a name: its addresses, and the milliseconds it took.
async fn resolve(cluster: &Cluster, resolver: &str, name: &str) -> Result<(Vec<String>, f64)> {
    let said = cluster.exec("default", "pod/resolvers", &[resolver, name]).await?;
    let words: Vec<&str> = said.split_ascii_whitespace().collect();
    let [_name, addresses @ .., took] = words.as_slice() else { anyhow::bail!("{resolver} says {said:?}") };
    let took = took.parse().with_context(|| said.clone())?;
    Ok((addresses.iter().map(|&address| address.to_owned()).collect(), took))
}

bed_tests! {
    /// Names of the world outside and of the cluster, through the search path, without a lost answer.
    async fn both_c_libraries_resolve_through_the_search_path(bed) {
        let (outside, address) = wan::OUTSIDE;
        for cluster in bed.clusters() {
            start_resolvers(cluster).await?;
            for resolver in RESOLVERS {
                let (found, took) = resolve(cluster, resolver, outside).await?;
                ensure!(found == [address.to_string()], "{resolver}: {outside} is {found:?}");
                ensure!(took < STALLED_MS, "{resolver}: {outside} took {took} ms");
                bed.record(&format!("names.{}.{resolver}.outside_ms", cluster.name()), took);
                for name in ["kubernetes", "kubernetes.default.svc.cluster.local"] {
                    let (found, took) = resolve(cluster, resolver, name).await?;
                    ensure!(found == ["10.96.0.1"], "{resolver}: {name} is {found:?}");
                    ensure!(took < STALLED_MS, "{resolver}: {name} took {took} ms");
                }
            }
        }
        Ok(())
    }
}

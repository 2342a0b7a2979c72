//! Bookinfo by the binary under test, as pods.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use eastway::demo::bookinfo::{NAMESPACE, Service, Version};
use eastway_tests::bed_tests;
use eastway_tests::kube::{self, Bed, bookinfo};

const PATIENCE: Duration = Duration::from_secs(60);

/// Loads the image of the binary under test and starts each cluster's share.
pub(crate) async fn start(bed: &Bed) -> Result<()> {
    let tar = kube::eastway::image_of_binary().await?;
    let [a, b] = bed.clusters() else { anyhow::bail!("two clusters") };
    let shares: [(_, &[(Service, Version)]); 2] = [(a, &bookinfo::FIRST), (b, &bookinfo::SECOND)];
    for (cluster, share) in shares {
        cluster.load_images(std::slice::from_ref(&tar)).await?;
        cluster.apply(&bookinfo::manifests(cluster.name(), share)).await?;
    }
    for (cluster, share) in shares {
        for (service, version) in share {
            cluster.rollout(&format!("deploy/{}-{version}", service.name()), NAMESPACE, PATIENCE).await?;
        }
    }
    Ok(())
}

bed_tests! {
    /// Every part starts, and answers in its own cluster with its version and cluster.
    async fn every_part_answers_at_home(bed) {
        start(bed).await?;
        for (cluster, service, versions) in [
            ("a", Service::Details, &["v1"][..]),
            ("a", Service::Reviews, &["v1"]),
            ("b", Service::Ratings, &["v1"]),
        ] {
            let from = if cluster == "a" { "deploy/productpage-v1" } else { "deploy/kiosk-v1" };
            // Not wget: that of a static busybox crashes in the resolver. The input stays open, since a server may
            // take its end for that of the client.
            let (path, name) = (service.path(), service.name());
            let ask = format!("(printf 'GET {path} HTTP/1.0\\r\\n\\r\\n'; sleep 1) | nc -w 10 {name} 9080");
            let said = bed.cluster(cluster).exec(NAMESPACE, from, &["sh", "-c", &ask]).await?;
            let body = said.rsplit("\r\n\r\n").next().unwrap_or_default();
            let answer: serde_json::Value = serde_json::from_str(body).with_context(|| said.clone())?;
            ensure!(answer["cloud"] == cluster, "{said}");
            ensure!(versions.iter().any(|version| answer["version"] == *version), "{said}");
        }
        Ok(())
    }
}

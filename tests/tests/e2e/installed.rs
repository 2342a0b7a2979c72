//! The whole: the chart in two clusters, a Peer each way, exports, and Bookinfo over both by name. No VPN, no shared
//! pod network (both are 10.244.0.0/16), no credentials of one cluster in the other.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use eastway::demo::bookinfo::{Answer, NAMESPACE, Service};
use eastway_tests::kube::{Bed, Cluster, bookinfo, eastway as installed};
use eastway_tests::{bed_tests, within};
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(60);
/// Pages asked for; enough that each of three versions is met with certainty for practical purposes.
const PAGES: usize = 40;

/// What a pod of `from` is told by a service at `host`.
pub(crate) async fn ask(cluster: &Cluster, from: &str, host: &str, path: &str) -> Result<Answer> {
    let script = format!(
        "(printf 'GET {path} HTTP/1.0\\r\\nAccept: application/json\\r\\n\\r\\n'; sleep 1) | nc -w 10 {host} 9080"
    );
    let said = cluster.exec(NAMESPACE, from, &["sh", "-c", &script]).await?;
    let body = said.rsplit("\r\n\r\n").next().unwrap_or_default();
    serde_json::from_str(body).with_context(|| said.clone())
}

/// As in the talk: the page's cluster shares its reviews out over three versions in two clusters.
async fn share_out(cluster: &Cluster) -> Result<()> {
    let share = |cluster: &str, version: &str, weight: u32| json!({"cluster": cluster, "subset": {"version": version}, "weight": weight});
    let policy = json!({
        "apiVersion": "eastway.dev/v1alpha1", "kind": "TrafficPolicy",
        "metadata": {"name": "reviews", "namespace": NAMESPACE},
        "spec": {"service": "reviews", "split": [share("a", "v1", 34), share("b", "v2", 33), share("b", "v3", 33)]},
    });
    cluster.apply(&policy.to_string()).await.map(drop)
}

/// Who may use what: each cluster's services are for Bookinfo's workloads of the other.
pub(crate) async fn allow(cluster: &Cluster, other: &str, services: &[&str]) -> Result<()> {
    let policy = json!({
        "apiVersion": "eastway.dev/v1alpha1", "kind": "AccessPolicy",
        "metadata": {"name": "bookinfo", "namespace": NAMESPACE},
        "spec": {
            "services": services,
            "allow": [{"cluster": other, "namespace": NAMESPACE, "serviceAccounts": ["*"]}],
        },
    });
    cluster.apply(&policy.to_string()).await.map(drop)
}

/// Both clusters offer their parts to each other.
pub(crate) async fn export_all(bed: &Bed) -> Result<()> {
    let (a, b) = (bed.cluster("a"), bed.cluster("b"));
    a.apply(&bookinfo::exports(&bookinfo::FIRST, "v1beta1")).await?;
    // An older client's version of the same kind.
    b.apply(&bookinfo::exports(&bookinfo::SECOND, "v1alpha1")).await?;
    share_out(a).await?;
    allow(a, "b", &["productpage", "details", "reviews"]).await?;
    allow(b, "a", &["reviews", "ratings"]).await
}

bed_tests! {
    /// Installed by Helm, joined by one object each way, exported by ServiceExport: pages cross both ways, by name.
    async fn bookinfo_is_one_application_over_two_clusters(bed) limit 420 {
        installed::ready(bed).await?;
        crate::bookinfo::start(bed).await?;
        export_all(bed).await?;
        let (a, b) = (bed.cluster("a"), bed.cluster("b"));
        for (cluster, name) in [(a, "reviews"), (a, "ratings"), (b, "productpage"), (b, "details")] {
            installed::imported(cluster, NAMESPACE, name).await?;
        }

        let page = Service::Productpage;
        let whole = async || Ok(ask(a, "deploy/productpage-v1", page.name(), page.path()).await?.first_error().is_none());
        let first = within(PATIENCE, "a page with all its parts", whole).await?;
        bed.record("installed.first_page_s", first.as_secs_f64());
        let mut versions = BTreeSet::new();
        for _ in 0..PAGES {
            let answer = ask(a, "deploy/productpage-v1", page.name(), page.path()).await?;
            ensure!(answer.first_error().is_none(), "{:?}", answer.first_error());
            let reviews = answer.find(Service::Reviews).context("no reviews")?;
            versions.insert((reviews.by.cloud.clone(), reviews.by.version.to_string()));
            if versions.len() == 3 {
                break;
            }
        }
        let expected = [("a", "v1"), ("b", "v2"), ("b", "v3")].map(|(cloud, version)| (cloud.to_owned(), version.to_owned()));
        ensure!(versions == BTreeSet::from(expected), "reviews came from {versions:?}");

        // The other way: a pod of b reads the page of a, which asks for reviews in both.
        let host = page.fqdn();
        let answer = ask(b, "deploy/kiosk-v1", &host, page.path()).await?;
        ensure!(answer.by.cloud == "a" && answer.first_error().is_none(), "{answer:?}");
        unexport(a, b, bed).await
    }
}

/// Unexported is gone, by the API and with all that was derived; what others export stays.
async fn unexport(a: &Cluster, b: &Cluster, bed: &Bed) -> Result<()> {
    let taken = Instant::now();
    b.kubectl(&["delete", "serviceexport", "ratings", "-n", NAMESPACE]).await?;
    let gone = async || Ok(a.get(&["serviceimport", "ratings", "-n", NAMESPACE]).await.is_err());
    within(PATIENCE, "the import of ratings is gone", gone).await?;
    bed.record("installed.unexport_s", taken.elapsed().as_secs_f64());
    let label = "multicluster.kubernetes.io/service-name=ratings";
    let none = async || {
        let derived = a.get(&["services", "-n", NAMESPACE, "-l", label]).await?;
        Ok(derived["items"].as_array().is_some_and(Vec::is_empty))
    };
    within(PATIENCE, "the derived Service of ratings is gone", none).await?;
    a.get(&["serviceimport", "reviews", "-n", NAMESPACE]).await.map(drop)
}

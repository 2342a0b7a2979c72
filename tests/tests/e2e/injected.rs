//! Pods with sidecars, which the webhook puts there: what goes through them, what does not, and what a rolling restart of
//! everything costs.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use eastway::demo::bookinfo::{Answer, NAMESPACE, Service, Version};
use eastway_tests::kube::traffic::{self, Client};
use eastway_tests::kube::{Bed, Cluster, bookinfo, eastway as installed, image, tools};
use eastway_tests::{bed_tests, within};
use serde_json::{Value, json};

use crate::injected_rules::{by_reader, by_weight_and_with_copies};
use crate::injected_table::each_asks_each;
use crate::installed::{ask, export_all};
use crate::open_ports::x1_pods_of_each_role_have_open_what_is_listed;

/// Who the page is to those that it asks.
pub(crate) const CALLER: &str = "spiffe://a.example/ns/bookinfo/sa/bookinfo-productpage";
/// The page's pod.
pub(crate) const PAGE: &str = "deploy/productpage-v1";
/// What pods with a sidecar begin with.
const WITH_SIDECAR: [&str; 2] = ["eastway-capture", "eastway-sidecar"];
const LOADED: &str = "e2e-injected-load";
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);
/// Requests per second, as many as the definition of "0 failed" asks for.
const RATE: u32 = 500;
/// How often each reader asks.
const TIMES: usize = 10;

/// Installs injection in both clusters.
async fn enable(bed: &Bed) -> Result<()> {
    installed::ready(bed).await?;
    let tar = installed::image_of_sidecars().await?;
    let values = json!({
        "sidecars": {
            "injection": {"enabled": true},
            "image": {"repository": "eastway-sidecar", "tag": "e2e"},
        },
    });
    let all = bed.clusters().iter().map(|cluster| enable_in(cluster, &tar, &values));
    futures_util::future::try_join_all(all).await.map(drop)
}

async fn enable_in(cluster: &Cluster, tar: &Path, values: &Value) -> Result<()> {
    cluster.load_images(&[tar.to_owned()]).await?;
    cluster.gateway_api(tools::GATEWAY_API).await?;
    installed::set_values(cluster, values).await?;
    cluster.rollout("deploy/eastway-injector", installed::SYSTEM, PATIENCE).await
}

/// Everything as it was for other tests.
async fn disable(bed: &Bed) -> Result<()> {
    let all = bed.clusters().iter().map(|cluster| installed::set(cluster, &[]));
    futures_util::future::try_join_all(all).await.map(drop)
}

/// A namespace whose pods get sidecars, and may start: it has its account, and what they know the CA by.
async fn labelled(cluster: &Cluster, namespace: &str) -> Result<()> {
    let space = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
    cluster.apply(&space.to_string()).await?;
    // Not applied: manifests that name the namespace without it would take it away.
    cluster.kubectl(&["label", "namespace", namespace, "eastway.dev/injection=enabled", "--overwrite"]).await?;
    let there = async || {
        let account = cluster.get(&["serviceaccount", "default", "-n", namespace]).await;
        let trust = cluster.get(&["configmap", "eastway-trust", "-n", namespace]).await;
        Ok(account.is_ok() && trust.is_ok_and(|map| map["data"]["root-cert.pem"].is_string()))
    };
    within(PATIENCE, format!("{namespace} of {} is told the CA", cluster.name()), there).await.map(drop)
}

fn pod(name: &str, annotations: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "annotations": annotations},
        "spec": {
            "containers": [{"name": name, "image": image::BUSYBOX, "command": ["sleep", "infinity"]}],
            "terminationGracePeriodSeconds": 1,
        },
    })
}

/// Names of the containers that a pod begins with.
fn begins_with(pod: &Value) -> Vec<&str> {
    let containers = pod["spec"]["initContainers"].as_array().into_iter().flatten();
    containers.filter_map(|container| container["name"].as_str()).collect()
}

async fn sidecar_of(cluster: &Cluster, name: &str) -> Result<bool> {
    let pod = cluster.get(&["pod", name, "-n", NAMESPACE]).await?;
    let begins = begins_with(&pod);
    ensure!(begins.is_empty() || begins == WITH_SIDECAR, "{name} begins with {begins:?}");
    Ok(!begins.is_empty())
}

/// A running pod with these labels that is not on its way out.
pub(crate) async fn one_of(cluster: &Cluster, namespace: &str, labels: &str) -> Result<Value> {
    let pods = cluster.get(&["pods", "-n", namespace, "-l", labels, "--field-selector=status.phase=Running"]).await?;
    let mut pods = pods["items"].as_array().into_iter().flatten();
    let staying = pods.find(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    staying.cloned().with_context(|| format!("no pod {labels} runs in {}", cluster.name()))
}

/// Every pod of Bookinfo is made anew, and has a sidecar that is ready.
async fn make_anew(cluster: &Cluster, share: &[(Service, Version)]) -> Result<()> {
    for (service, version) in share {
        let what = format!("deploy/{}-{version}", service.name());
        cluster.kubectl(&["rollout", "restart", &what, "-n", NAMESPACE]).await?;
    }
    for (service, version) in share {
        cluster.rollout(&format!("deploy/{}-{version}", service.name()), NAMESPACE, PATIENCE).await?;
    }
    let pods = cluster.get(&["pods", "-n", NAMESPACE, "-l", "app"]).await?;
    let staying = pods["items"].as_array().into_iter().flatten();
    for pod in staying.filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()) {
        ensure!(begins_with(pod) == WITH_SIDECAR, "{} begins with {:?}", pod["metadata"]["name"], begins_with(pod));
    }
    Ok(())
}

/// What an HTTP server at `host:port` says to the pod of the page.
async fn get(cluster: &Cluster, host: &str, port: u16, path: &str) -> Result<String> {
    get_from(cluster, PAGE, host, port, path).await
}

pub(crate) async fn get_from(cluster: &Cluster, pod: &str, host: &str, port: u16, path: &str) -> Result<String> {
    let request = format!("GET {path} HTTP/1.1\\r\\nHost: {host}\\r\\nConnection: close\\r\\n\\r\\n");
    // The input stays open: a server may take its end for that of the client.
    let ask = format!("(printf '{request}'; sleep 1) | nc -w 5 {host} {port}");
    cluster.exec(NAMESPACE, pod, &["sh", "-c", &ask]).await
}

/// The page, as `reader` sees it.
async fn page(cluster: &Cluster, reader: &str) -> Result<Answer> {
    let page = Service::Productpage;
    let answer = ask(cluster, PAGE, page.name(), &format!("{}?user={reader}", page.path())).await?;
    ensure!(answer.first_error().is_none(), "{:?}", answer.first_error());
    Ok(answer)
}

/// Where the reviews of a page come from.
fn reviews(page: &Answer) -> Result<(String, String)> {
    let reviews = page.find(Service::Reviews).context("no reviews")?;
    Ok((reviews.by.cloud.clone(), reviews.by.version.to_string()))
}

async fn sidecars_carry_what_pods_ask(bed: &Bed) -> Result<()> {
    let (a, b) = (bed.cluster("a"), bed.cluster("b"));
    enable(bed).await?;
    crate::bookinfo::start(bed).await?;
    export_all(bed).await?;
    for cluster in bed.clusters() {
        labelled(cluster, NAMESPACE).await?;
        by_reader(cluster).await?;
    }
    let taken = json!({"spec": {"template": {"metadata": {"annotations": {"sidecar.eastway.dev/inbound": "9080"}}}}});
    for version in ["v2", "v3"] {
        let what = format!("deploy/reviews-{version}");
        b.kubectl(&["patch", &what, "-n", NAMESPACE, "--type=merge", "-p", &taken.to_string()]).await?;
    }
    let begun = Instant::now();
    make_anew(a, &bookinfo::FIRST).await?;
    make_anew(b, &bookinfo::SECOND).await?;
    bed.record("injected.bookinfo_made_anew_s", begun.elapsed().as_secs_f64());
    let out = json!({"sidecar.eastway.dev/inject": "false"});
    let named = json!({"sidecar.eastway.dev/listeners": "9080=bookinfo/reviews:9080/http"});
    for pod in [pod("without", &out), pod("named", &named)] {
        a.apply(&pod.to_string()).await?;
    }
    ensure!(!sidecar_of(a, "without").await?);

    // Which version a page is made with is decided by its reader, as no address could. Both are in b, and so are the ratings
    // that they ask for; the page and the details are in a.
    let (jason, others) = (("b".to_owned(), "v2".to_owned()), ("b".to_owned(), "v3".to_owned()));
    let first = async || Ok(page(a, "jason").await.is_ok_and(|page| reviews(&page).is_ok_and(|found| found == jason)));
    within(PATIENCE, "the page's sidecar knows the rule", first).await?;
    for (reader, wanted) in [("jason", &jason), ("alice", &others)] {
        for _ in 0..TIMES {
            let page = page(a, reader).await?;
            let found = reviews(&page)?;
            ensure!(found == *wanted, "{reader} gets reviews of {found:?}");
            // Mutual TLS from the one sidecar to the other: no gateway could say that.
            let caller = page.find(Service::Reviews).and_then(|reviews| reviews.caller.clone());
            ensure!(caller.as_deref() == Some(CALLER), "{reader}'s reviews were asked for by {caller:?}");
        }
    }
    // Who has no sidecar gets plain text from the same pods.
    let said = get_from(a, "pod/without", &Service::Reviews.fqdn(), 9080, Service::Reviews.path()).await?;
    ensure!(said.starts_with("HTTP/1.1 200") && !said.contains("\"caller\""), "{said}");
    // The other way: b reads the page of a.
    let kiosk = Service::Kiosk;
    let answer = ask(b, "deploy/kiosk-v1", kiosk.name(), kiosk.path()).await?;
    ensure!(answer.first_error().is_none() && answer.chain().iter().any(|hop| hop.cloud == "a"), "{answer:?}");

    // A bare name that a has no Service of: that of b. One that it has: its own.
    let said = get(a, "ratings", 9080, Service::Ratings.path()).await?;
    ensure!(said.starts_with("HTTP/1.1 200") && said.contains("\"cloud\":\"b\""), "{said}");
    let said = get(a, "details", 9080, Service::Details.path()).await?;
    ensure!(said.starts_with("HTTP/1.1 200") && said.contains("\"cloud\":\"a\""), "{said}");
    // Who names a place of its own needs no rules, and no right.
    a.wait("condition=Ready", &["pod", "named", "-n", NAMESPACE], PATIENCE).await?;
    let named = a.get(&["pod", "named", "-n", NAMESPACE]).await?;
    ensure!(begins_with(&named) == ["eastway-sidecar"] && !named.to_string().contains("NET_ADMIN"), "{named}");
    let said = get_from(a, "pod/named", "127.0.0.1", 9080, Service::Reviews.path()).await?;
    ensure!(said.starts_with("HTTP/1.1 200") && said.contains("\"version\":\"v3\""), "{said}");
    // What is no import goes where it went: a pod of the cluster by its address.
    let resolver = a.get(&["pods", "-n", "kube-system", "-l", "k8s-app=kube-dns"]).await?;
    let address = resolver["items"][0]["status"]["podIP"].as_str().context("CoreDNS has an address")?.to_owned();
    let said = get(a, &address, 8080, "/health").await?;
    ensure!(said.contains("200 OK"), "{said}");
    Ok(())
}

/// Nobody answers the API server: pods are made as if there were no webhook, and in time.
async fn without_an_injector_pods_are_made_all_the_same(bed: &Bed) -> Result<()> {
    let a = bed.cluster("a");
    a.kubectl(&["scale", "deploy/eastway-injector", "-n", installed::SYSTEM, "--replicas=0"]).await?;
    let gone = async || {
        let label = "app.kubernetes.io/component=injector";
        let pods = a.get(&["pods", "-n", installed::SYSTEM, "-l", label]).await?;
        Ok(pods["items"].as_array().is_some_and(Vec::is_empty))
    };
    within(PATIENCE, "no injector is there", gone).await?;
    let begun = Instant::now();
    a.apply(&pod("alone", &json!({})).to_string()).await?;
    ensure!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    ensure!(!sidecar_of(a, "alone").await?);
    a.wait("condition=Ready", &["pod", "alone", "-n", NAMESPACE], PATIENCE).await?;
    let check =
        ["exec", "-n", installed::SYSTEM, "deploy/eastway-gateway", "--", "/usr/bin/eastway", "check", "--quiet"];
    // It ends with another code than 0, as there is something to say.
    let said = format!("{:?}", a.kubectl_command(&check)?.output().await?);
    ensure!(said.contains("EW122") && said.contains(&format!("{NAMESPACE}/alone")), "{said}");
    ensure!(!said.contains(&format!("{NAMESPACE}/without")), "who wants none lacks none: {said}");
    a.kubectl(&["scale", "deploy/eastway-injector", "-n", installed::SYSTEM, "--replicas=2"]).await?;
    a.rollout("deploy/eastway-injector", installed::SYSTEM, PATIENCE).await?;
    // Ready means that API servers know it.
    a.apply(&pod("again", &json!({})).to_string()).await?;
    ensure!(sidecar_of(a, "again").await?);
    Ok(())
}

bed_tests! {
    /// Bookinfo over two clusters, each pod with a sidecar: the reader of the page decides which version it is made with, or
    /// weights do. Bare names lead home first and then across; what is no import is as before; each pod has open what is
    /// listed; without an injector pods are made all the same.
    async fn bookinfo_with_sidecars_is_led_by_who_reads_it(bed) limit 900 {
        sidecars_carry_what_pods_ask(bed).await?;
        by_weight_and_with_copies(bed).await?;
        each_asks_each(bed).await?;
        x1_pods_of_each_role_have_open_what_is_listed(bed.cluster("b")).await?;
        without_an_injector_pods_are_made_all_the_same(bed).await?;
        for cluster in bed.clusters() {
            cluster.kubectl(&["delete", "namespace", NAMESPACE, "--wait=false"]).await?;
        }
        Ok(())
    }

    /// Gateways, CAs, controllers, injectors and the servers are replaced one by one: no request of an injected pod fails.
    /// The last of these tests: it takes injection out again.
    async fn a_rolling_restart_of_everything_fails_no_request_of_an_injected_pod(bed) limit 600 {
        enable(bed).await?;
        let (a, b) = (bed.cluster("a"), bed.cluster("b"));
        for cluster in bed.clusters() {
            labelled(cluster, LOADED).await?;
        }
        let client = Client::start(bed, LOADED, 3).await?;
        let pod = a.get(&["pod", "client", "-n", LOADED]).await?;
        ensure!(pod["spec"]["initContainers"][1]["name"] == "eastway-sidecar", "the client has no sidecar");
        let begun = Instant::now();
        let load = client.load(RATE);
        for cluster in [a, b] {
            for role in ["injector", "ca", "controller", "gateway"] {
                let what = format!("deploy/eastway-{role}");
                cluster.kubectl(&["rollout", "restart", &what, "-n", installed::SYSTEM]).await?;
                cluster.rollout(&what, installed::SYSTEM, 2 * PATIENCE).await?;
            }
        }
        b.kubectl(&["rollout", "restart", "deploy/echo", "-n", LOADED]).await?;
        b.rollout("deploy/echo", LOADED, PATIENCE).await?;
        let result = load.stop().await?;
        traffic::record(bed, "injected.rolling", &result, begun.elapsed());
        client.end(bed, LOADED).await?;
        disable(bed).await?;
        result.failed_only(|_| false)
    }
}

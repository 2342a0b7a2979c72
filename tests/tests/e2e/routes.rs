//! Routes beside the Gateway API's own definitions: a real API server takes what docs/routing.md says can be written, and
//! what the controller says of it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use eastway_tests::documents;
use eastway_tests::kube::{Cluster, eastway as installed, tools};
use eastway_tests::{bed_tests, within};
use serde_json::{Value, json};

const NAMESPACE: &str = "e2e-routes";
const ROUTES: &str = include_str!("routes.yaml");
/// Who says it.
const CONTROLLER: &str = "eastway.dev/controller";
/// A kind that was not there is looked for each 10 s.
const PATIENCE: Duration = Duration::from_secs(60);
/// Most parents that a route has, and its status tells of.
const PARENTS: usize = 32;
/// Place of a further API server on the WAN, behind those of the other tests.
const NUMBER: u8 = 9;

/// The entries of a route's status, by the parent's name and who wrote it.
async fn said(cluster: &Cluster, kind: &str, name: &str) -> Result<Vec<Value>> {
    let route = cluster.get(&[kind, name, "-n", NAMESPACE]).await?;
    let generation = &route["metadata"]["generation"];
    let all = route["status"]["parents"].as_array().context("no status")?;
    for entry in all.iter().filter(|entry| entry["controllerName"] == CONTROLLER) {
        let conditions = entry["conditions"].as_array().context("conditions")?;
        ensure!(
            !conditions.is_empty() && conditions.iter().all(|one| one["observedGeneration"] == *generation),
            "{entry:#}"
        );
    }
    Ok(all.clone())
}

/// Whether an entry has a condition of this type and status.
fn holds(entry: &Value, kind: &str, status: &str) -> bool {
    let conditions = entry["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().any(|one| one["type"] == kind && one["status"] == status)
}

/// Waits until our one entry of a route says all this.
async fn expect(cluster: &Cluster, kind: &str, name: &str, wanted: &[(&str, &str)]) -> Result<Value> {
    within(PATIENCE, format!("{kind} {name} says {wanted:?}"), async || {
        let all = said(cluster, kind, name).await?;
        let ours = all.iter().find(|entry| entry["controllerName"] == CONTROLLER).context("nothing of ours")?;
        ensure!(wanted.iter().all(|(kind, status)| holds(ours, kind, status)), "{ours:#}");
        Ok(true)
    })
    .await?;
    Ok(said(cluster, kind, name).await?.swap_remove(0))
}

/// A route about so many services, which are not there, and perhaps a gateway of somebody's.
fn of_many(services: usize, gateway: bool) -> String {
    let service = |place: usize| json!({"group": "", "kind": "Service", "name": format!("missing-{place}")});
    let mut parents: Vec<Value> = (0..services).map(service).collect();
    parents.extend(gateway.then(|| json!({"name": "front"})));
    let spec = json!({"parentRefs": parents, "rules": [{"backendRefs": [{"name": "web", "port": 80}]}]});
    let metadata = json!({"name": "many", "namespace": NAMESPACE});
    json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": metadata, "spec": spec})
        .to_string()
}

/// Says something as the controller of a gateway would, beside what is there.
async fn say_as_another(cluster: &Cluster) -> Result<()> {
    let condition = json!({
        "type": "Accepted", "status": "True", "reason": "Accepted", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    });
    let entry =
        json!({"parentRef": {"name": "front"}, "controllerName": "example.com/gateway", "conditions": [condition]});
    let patch = json!([{"op": "add", "path": "/status/parents/-", "value": entry}]).to_string();
    let what = ["patch", "httproute", "many", "-n", NAMESPACE, "--subresource=status", "--type=json", "-p", &patch];
    cluster.kubectl(&what).await.map(drop)
}

/// Names of parents of which the status of `many` tells, and the writers' names.
async fn told(cluster: &Cluster) -> Result<BTreeSet<(String, String)>> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let all = said(cluster, "httproute", "many").await?;
    Ok(all.iter().map(|entry| (text(&entry["controllerName"]), text(&entry["parentRef"]["name"]))).collect())
}

/// As many parents as there can be, and somebody else's word among ours: all of it, or what there is room for.
async fn full(cluster: &Cluster) -> Result<()> {
    cluster.apply(&of_many(PARENTS, false)).await?;
    within(PATIENCE, "all parents are told of", async || {
        let entries = said(cluster, "httproute", "many").await?;
        Ok(entries.len() == PARENTS && entries.iter().all(|entry| holds(entry, "Accepted", "False")))
    })
    .await?;
    cluster.apply(&of_many(PARENTS - 1, true)).await?;
    within(PATIENCE, "there is room for another", async || Ok(told(cluster).await?.len() == PARENTS - 1)).await?;
    say_as_another(cluster).await?;
    // A parent more than the status has room for.
    cluster.apply(&of_many(PARENTS, false)).await?;
    within(PATIENCE, "what another said is still there, and ours is of what is written now", async || {
        let told = told(cluster).await?;
        let others = told.iter().filter(|(who, _)| who != CONTROLLER).count();
        Ok(told.len() == PARENTS && others == 1)
    })
    .await
    .map(drop)
}

/// The example of docs/routing.md.
fn example() -> Result<String> {
    let text = documents::read("docs/routing.md");
    let from = text.split_once("routing/policies/reviews.yaml <<'EOF'\n").context("an example")?.1;
    Ok(from.split_once("\nEOF\n").context("its end")?.0.to_owned())
}

/// What only the experimental channel has words for: retries and sessions.
fn experimental() -> String {
    let parents = |port: u16| json!([{"group": "", "kind": "Service", "name": "web", "port": port}]);
    let backends = |port: u16| json!([{"name": "web", "port": port}]);
    let cookie = json!({"sessionName": "shop", "type": "Cookie", "absoluteTimeout": "1h", "cookieConfig": {"lifetimeType": "Permanent"}});
    let header = json!({"sessionName": "x-shop", "type": "Header"});
    let route = |kind: &str, name: &str, port: u16, more: &Value| {
        let mut rule = json!({"backendRefs": backends(port)});
        eastway_tests::lab::files::merge(&mut rule, more);
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": kind, "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {"parentRefs": parents(port), "rules": [rule]},
        })
    };
    let retry = json!({"retry": {"codes": [503], "attempts": 2, "backoff": "100ms"}, "sessionPersistence": cookie});
    let items = json!([
        route("HTTPRoute", "again", 80, &retry),
        route("GRPCRoute", "kept", 81, &json!({"sessionPersistence": header})),
    ]);
    json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
}

bed_tests! {
    /// The kinds are installed under a running controller. Routes of each are taken, with what the API server adds to them,
    /// and so is their status, at an import as at a Service; what the API allows and we do not do says so.
    async fn every_kind_is_taken_and_says_what_became_of_it(bed) {
        installed::ready(bed).await?;
        let a = bed.cluster("a");
        a.gateway_api(tools::GATEWAY_API).await?;
        a.apply(ROUTES).await?;
        let fine = [("Accepted", "True"), ("ResolvedRefs", "True")];
        for kind in ["http", "grpc", "tcp", "tls"] {
            expect(a, &format!("{kind}route"), kind, &fine).await?;
        }
        installed::imported(a, NAMESPACE, "web").await?;
        let said = expect(a, "httproute", "imported", &fine).await?;
        let parent = json!({"group": "multicluster.x-k8s.io", "kind": "ServiceImport", "name": "web", "port": 84});
        ensure!(said["parentRef"] == parent, "{said:#}");
        let change = json!([{"op": "add", "path": "/spec/rules/0/filters/-", "value": {"type": "CORS", "cors": {"allowOrigins": ["*"]}}}]);
        a.kubectl(&["patch", "httproute", "http", "-n", NAMESPACE, "--type=json", "-p", &change.to_string()]).await?;
        let said = expect(a, "httproute", "http", &[("Accepted", "False")]).await?;
        ensure!(said.to_string().contains("filters[3].cors"), "{said:#}");
        full(a).await?;
        let refused = a.apply(&experimental()).await.err().context("the standard channel has no retries")?;
        ensure!(format!("{refused:#}").contains("retry"), "{refused:#}");
        a.kubectl(&["delete", "namespace", NAMESPACE, "--wait=false"]).await.map(drop)
    }

    /// Of the experimental channel: what it has beside, and the example of docs/routing.md as it stands.
    async fn what_is_documented_can_be_written(bed) {
        let cluster = bed.api_server("channel", NUMBER).await?;
        let crds = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../helm/eastway/files/crds");
        cluster.kubectl(&["apply", "--server-side", "-f", &crds.display().to_string()]).await?;
        cluster.gateway_api(tools::GATEWAY_API_EXPERIMENTAL).await?;
        cluster.apply(ROUTES).await?;
        cluster.apply(&experimental()).await?;
        cluster.apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "bookinfo"}}).to_string()).await?;
        cluster.apply(&example()?).await?;
        bed.end(cluster).await
    }
}

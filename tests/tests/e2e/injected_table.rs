//! Pods with and without sidecars in two clusters: who speaks what to whom, what a pod with one has open, and what of it its
//! workload has.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use eastway::demo::bookinfo::{NAMESPACE, Service};
use eastway_tests::kube::{Bed, Cluster, eastway as installed, image};
use eastway_tests::within;
use serde_json::{Value, json};

use crate::injected::{CALLER, PAGE, PATIENCE, get_from};
use crate::installed::allow;
use crate::open_ports::open;

/// What the servers take, by their names.
const SERVERS: [&str; 3] = ["plain", "permissive", "strict"];
/// Who a pod of b is to them.
const NEIGHBOUR: &str = "spiffe://b.example/ns/bookinfo/sa/bookinfo-kiosk";
/// The port of each.
const PORT: u16 = 9080;
/// The sidecar's own ports that others reach, of a pod that names one of its workload's; as `docs/operations/ports.md` says.
const HEALTH: u16 = 15021;
const INBOUND: u16 = 15100;

/// A pod that answers as the ratings do, with its Service and its export. What it speaks the Service says: by `appProtocol`, or the
/// name of its port.
fn server(name: &str) -> [Value; 3] {
    let port = match name {
        "permissive" => json!({"name": "http-ratings", "port": PORT}),
        _ => json!({"name": "ratings", "port": PORT, "appProtocol": "http"}),
    };
    let annotations = match name {
        "plain" => json!({"sidecar.eastway.dev/inject": "false"}),
        "strict" => json!({"sidecar.eastway.dev/inbound": "9080", "sidecar.eastway.dev/tls": "strict"}),
        _ => json!({"sidecar.eastway.dev/inbound": "9080"}),
    };
    let meta = json!({"name": name, "namespace": NAMESPACE});
    let args = [
        "demo-app",
        "--service",
        "ratings",
        "--version",
        "v1",
        "--cloud",
        "b",
        "--listen",
        "0.0.0.0:9080",
        "--dns",
        "10.96.0.10:53",
    ];
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"server": name}, "annotations": annotations},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "server", "image": image::EASTWAY, "imagePullPolicy": "IfNotPresent", "args": args}],
        },
    });
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": meta,
        "spec": {"selector": {"server": name}, "ports": [port]},
    });
    let export = json!({"apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceExport", "metadata": meta});
    [pod, service, export]
}

/// What the ratings of this name in b say to a pod of a; nothing if it is cut off.
async fn asked(a: &Cluster, pod: &str, name: &str) -> String {
    let host = format!("{name}.{NAMESPACE}.svc.clusterset.local");
    get_from(a, pod, &host, PORT, Service::Ratings.path()).await.unwrap_or_default()
}

/// Each kind of client in a asks each kind of server in b.
pub(crate) async fn each_asks_each(bed: &Bed) -> Result<()> {
    let (a, b) = (bed.cluster("a"), bed.cluster("b"));
    let items: Vec<Value> = SERVERS.iter().flat_map(|name| server(name)).collect();
    b.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()).await?;
    allow(b, "a", &["plain", "permissive", "strict", "reviews", "ratings"]).await?;
    for name in SERVERS {
        b.wait("condition=Ready", &["pod", name, "-n", NAMESPACE], PATIENCE).await?;
        installed::imported(a, NAMESPACE, name).await?;
        // Who the client is to the server, by what the server was told.
        let by_sidecar = format!("\"caller\":\"{CALLER}\"");
        within(PATIENCE, format!("a pod with a sidecar gets an answer of {name}"), async || {
            let said = asked(a, PAGE, name).await;
            Ok(said.starts_with("HTTP/1.1 200") && said.contains(&by_sidecar) == (name != "plain"))
        })
        .await?;
        within(PATIENCE, format!("a pod without a sidecar is judged by {name}"), async || {
            let said = asked(a, "pod/without", name).await;
            Ok(match name {
                "strict" => said.is_empty(),
                _ => said.starts_with("HTTP/1.1 200") && !said.contains("\"caller\""),
            })
        })
        .await?;
    }
    let describe = ["/usr/bin/eastway", "describe", "bookinfo/strict"];
    let said = a.exec(installed::SYSTEM, "deploy/eastway-gateway", &describe).await?;
    ensure!(said.contains("TLS_REQUIRED"), "{said}");
    in_one_cluster_too(b).await?;
    what_is_spoken_follows_the_service(a, b).await?;
    x1_what_is_open_is_what_the_page_of_ports_says(b).await?;
    x3_the_workload_has_nothing_of_its_sidecars(b).await
}

/// By the name for all clusters, a pod of the same cluster speaks mutual TLS as well; what goes to the Service's own address is
/// bytes, which a strict one refuses.
async fn in_one_cluster_too(b: &Cluster) -> Result<()> {
    let (kiosk, path) = ("deploy/kiosk-v1", Service::Ratings.path());
    let by_sidecar = format!("\"caller\":\"{NEIGHBOUR}\"");
    for name in SERVERS {
        let everywhere = format!("{name}.{NAMESPACE}.svc.clusterset.local");
        within(PATIENCE, format!("{name} knows its neighbour"), async || {
            let said = get_from(b, kiosk, &everywhere, PORT, path).await.unwrap_or_default();
            Ok(said.starts_with("HTTP/1.1 200") && said.contains(&by_sidecar) == (name != "plain"))
        })
        .await?;
        let said = get_from(b, kiosk, &format!("{name}.{NAMESPACE}.svc.cluster.local"), PORT, path).await;
        let is_served = said.as_ref().is_ok_and(|said| said.starts_with("HTTP/1.1 200"));
        ensure!(is_served == (name != "strict"), "{name} at its own address: {said:?}");
    }
    Ok(())
}

/// A Service that says something else later: both ends of a connection follow it, and the pods stay what they are.
async fn what_is_spoken_follows_the_service(a: &Cluster, b: &Cluster) -> Result<()> {
    let by_sidecar = format!("\"caller\":\"{CALLER}\"");
    for (protocol, is_known) in [("tcp", false), ("http", true)] {
        let patch = json!([{"op": "add", "path": "/spec/ports/0/appProtocol", "value": protocol}]).to_string();
        b.kubectl(&["patch", "service", "permissive", "-n", NAMESPACE, "--type=json", "-p", &patch]).await?;
        within(PATIENCE, format!("permissive speaks {protocol}"), async || {
            let said = asked(a, PAGE, "permissive").await;
            // Who is there only HTTP tells; that it is mutual TLS the strict one shows.
            Ok(said.starts_with("HTTP/1.1 200") && said.contains(&by_sidecar) == is_known)
        })
        .await?;
    }
    Ok(())
}

/// All ports of TCP of each server are tried.
async fn x1_what_is_open_is_what_the_page_of_ports_says(b: &Cluster) -> Result<()> {
    for name in SERVERS {
        let pod = b.get(&["pod", name, "-n", NAMESPACE]).await?;
        let open = open(b, &pod, (1..=u16::MAX).collect()).await?;
        let wanted: &[u16] = if name == "plain" { &[PORT] } else { &[PORT, HEALTH, INBOUND] };
        ensure!(open == wanted.iter().copied().collect(), "{name} has open {open:?}");
    }
    Ok(())
}

/// The sidecar's key is in its own memory alone: no container of the pod's maker sees its files, nor may do what it may.
async fn x3_the_workload_has_nothing_of_its_sidecars(b: &Cluster) -> Result<()> {
    let pod = b.get(&["pod", "permissive", "-n", NAMESPACE]).await?;
    let spec = &pod["spec"];
    let names = |list: &Value| -> BTreeSet<String> {
        list.as_array().into_iter().flatten().filter_map(|one| Some(one["name"].as_str()?.to_owned())).collect()
    };
    let sidecar = &spec["initContainers"][1];
    ensure!(sidecar["name"] == "eastway-sidecar" && spec["shareProcessNamespace"] != true, "{spec}");
    let server = names(&spec["containers"][0]["volumeMounts"]);
    let shared: Vec<_> = names(&sidecar["volumeMounts"]).into_iter().filter(|name| server.contains(name)).collect();
    // What Kubernetes itself gives to every container.
    ensure!(shared.iter().all(|name| name.starts_with("kube-api-access")), "both have {shared:?}");
    Ok(())
}

//! Exports that cannot be, or only in part.

use anyhow::{Context, Result, ensure};
use eastway_tests::kube::pods::list;
use eastway_tests::kube::{Bed, Cluster, eastway as installed};
use eastway_tests::within;
use serde_json::json;

use super::{PATIENCE, SPACE, clear, export, export_in, namespace, refused, service, told};

pub(super) async fn exports(bed: &Bed) -> Result<()> {
    installed::ready(bed).await?;
    let (a, b) = (bed.cluster("a"), bed.cluster("b"));
    a.apply(&namespace(SPACE).to_string()).await?;
    let port = |name: &str, port: u16, protocol: &str| json!({"name": name, "port": port, "protocol": protocol});
    let old = |name: &str| {
        let mut export = export(name);
        export["apiVersion"] = json!("multicluster.x-k8s.io/v1alpha1");
        export
    };
    let mut marked = export("marked");
    marked["spec"] = json!({
        "exportedLabels": {"team": "shop", "bad key!": "x"},
        "exportedAnnotations": {"note": "x".repeat(200_000), "fine": "yes"},
    });
    b.apply(&list(&[
        namespace(SPACE),
        export("nothing"),
        service("outside", json!({"type": "ExternalName", "externalName": "www.outside.test"})),
        old("outside"),
        export_in("kube-system", "kube-dns"),
        service("twice", json!({"ports": [port("tcp", 53, "TCP"), port("udp", 53, "UDP")]})),
        export("twice"),
        service(
            "lost",
            json!({
                "selector": {"app": "lost"}, "ports": [{"name": "http", "port": 80, "targetPort": "nowhere"}],
            }),
        ),
        export("lost"),
        service("bare", json!({"clusterIP": "None", "selector": {"app": "bare"}})),
        export("bare"),
        service("marked", json!({"ports": [port("http", 80, "TCP")]})),
        marked,
    ]))
    .await?;
    let of = |name: &'static str| ["serviceexport", name, "-n", SPACE];
    told(b, &of("nothing"), "Valid=False/NoService", "there is no Service of this name").await?;
    told(b, &of("outside"), "Valid=False/InvalidServiceType", "ExternalName cannot be exported").await?;
    let system = ["serviceexport", "kube-dns", "-n", "kube-system"];
    told(b, &system, "Valid=False/NotAllowed", "kube-system are never exported").await?;
    b.kubectl(&["delete", "serviceexport", "kube-dns", "-n", "kube-system"]).await?;
    for name in ["twice", "lost", "bare"] {
        told(b, &of(name), "Ready=True/Exported", "offered to all peers").await?;
    }
    told(b, &of("marked"), "Ready=True/Exported", "left out: exported").await?;
    let ports = async || {
        let import = a.get(&["serviceimport", "twice", "-n", SPACE]).await?;
        Ok(import["spec"]["ports"].as_array().is_some_and(|ports| ports.len() == 2))
    };
    within(PATIENCE, "both transports of a port are imported", ports).await?;
    let imports = a.get(&["serviceimports", "-n", SPACE]).await?;
    let imported: Vec<_> =
        imports["items"].as_array().context("a list")?.iter().map(|it| &it["metadata"]["name"]).collect();
    ensure!(!imported.iter().any(|name| *name == "nothing" || *name == "outside"), "{imported:?}");
    // A mistake that is mended is none any more.
    b.apply(&service("nothing", json!({"ports": [port("http", 80, "TCP")]})).to_string()).await?;
    told(b, &of("nothing"), "Valid=True/Valid", "can be exported").await?;
    installed::imported(a, SPACE, "nothing").await?;

    // The same service in both clusters, and they do not agree: both are told, and who wins.
    b.apply(&list(&[service("shared", json!({"ports": [port("http", 80, "TCP")]})), export("shared")])).await?;
    installed::imported(a, SPACE, "shared").await?;
    let sticky = json!({"sessionAffinity": "ClientIP", "ports": [port("http", 80, "TCP"), port("more", 81, "TCP")]});
    a.apply(&list(&[service("shared", sticky), export("shared")])).await?;
    for cluster in [a, b] {
        within(PATIENCE, format!("{} says that the exports conflict", cluster.name()), async || {
            let export = cluster.get(&of("shared")).await?;
            let conditions = export["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let conflict = conditions.iter().find(|it| it["type"] == "Conflict").context("no condition")?;
            let (reason, message) =
                (conflict["reason"].as_str().unwrap_or_default(), conflict["message"].as_str().unwrap_or_default());
            ensure!(conflict["status"] == "True", "{conflict}");
            let all = ["SessionAffinityConflict", "PortConflict"].iter().all(|one| reason.contains(one));
            ensure!(all && message.contains("81/TCP only in a") && message.contains('b'), "{conflict}");
            Ok(true)
        })
        .await?;
    }
    too_large(b).await?;
    clear(bed, &[SPACE]).await
}

/// What the API server refuses by itself never reaches us; kubectl says why.
async fn too_large(b: &Cluster) -> Result<()> {
    let mut large = export("large");
    large["metadata"]["annotations"] = json!({"note": "x".repeat(1 << 20)});
    refused(b, &large, "may not be more than 262144 bytes").await?;
    let mut unknown = export("unknown");
    unknown["spec"] = json!({"exportLabels": {}});
    refused(b, &unknown, ".spec.exportLabels: field not declared in schema").await?;
    let mut wrong = export("wrong");
    wrong["spec"] = json!({"exportedLabels": 7});
    refused(b, &wrong, "exportedLabels").await
}

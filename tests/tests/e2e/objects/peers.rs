//! F36: bad Peers.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use eastway_tests::kube::pods::{list, sleeper};
use eastway_tests::kube::{Bed, eastway as installed};
use eastway_tests::load::{Load, Plan};
use eastway_tests::servers::{Habit, Server};
use eastway_tests::within;
use serde_json::{Value, json};

use super::{PATIENCE, PORT, SPACE, access, clear, export, namespace, refused, service};

#[expect(clippy::needless_pass_by_value, reason = "it is written where it is given")]
fn peer(name: &str, spec: Value) -> Value {
    let mut object = json!({
        "apiVersion": "eastway.dev/v1alpha1", "kind": "Peer", "metadata": {"name": name},
        "spec": {"trustDomain": "x.example", "pins": [format!("sha256:{}", "0".repeat(64))]},
    });
    for (key, value) in spec.as_object().into_iter().flatten() {
        object["spec"][key] = value.clone();
    }
    // What is null is left out.
    object["spec"].as_object_mut().into_iter().for_each(|spec| spec.retain(|_, value| !value.is_null()));
    object
}

pub(super) async fn peers(bed: &Bed) -> Result<()> {
    installed::ready(bed).await?;
    let (a, b) = (bed.cluster("a"), bed.cluster("b"));
    // Traffic over the one link there is, the whole time.
    a.apply(&list(&[namespace(SPACE), sleeper(SPACE, "client", "client")])).await?;
    let spec = json!({"selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "targetPort": PORT}]});
    b.apply(&list(&[namespace(SPACE), sleeper(SPACE, "web", "web"), service("web", spec), export("web"), access("a")]))
        .await?;
    let (client, web) = (a.pod(SPACE, "client").await?, b.pod(SPACE, "web").await?);
    let _server = Server::start(&web.place, SocketAddr::new(web.address, PORT), "web", Habit::Http).await?;
    let target = SocketAddr::new(installed::imported(a, SPACE, "web").await?.parse()?, 80);
    within(PATIENCE, "web answers", async || client.ask(target).await.map(|_| true)).await?;
    let load = Load::start(&client.place, Plan { source: client.address, target, rate: 50, size: 1000 });

    for (name, spec, words) in [
        ("x", json!({"trustDomain": null}), "spec.trustDomain: Required value"),
        ("x", json!({"pins": []}), "should have at least 1 items"),
        ("x", json!({"pins": ["abc"]}), "a pin is sha256: and 64 hexadecimal digits"),
        ("x", json!({"adress": ["h:1"]}), ".spec.adress: field not declared in schema"),
        ("x", json!({"addresses": ["h"]}), "an address is host:port"),
        ("x", json!({"import": [{"namespace": "kube-system"}]}), "kube-*, istio-system and eastway-system never cross"),
        ("x", json!({"gateway": "spiffe://y.example/ns/a/sa/b"}), "gateway must be in the trust domain of the peer"),
        ("x", json!({"withdrawAfter": "5"}), "a duration has units"),
        ("x", json!({"bundle": "-----BEGIN PRIVATE KEY-----"}), "take the private key out and replace it"),
        ("a.b", json!({}), "a Peer is named like its cluster"),
    ] {
        refused(a, &peer(name, spec), words).await.with_context(|| name.to_owned())?;
    }
    let good = a.get(&["peers.eastway.dev", "b"]).await?;
    refused(a, &peer("b", json!({"trustDomain": "y.example"})), "trust domain does not change").await?;
    // What only the gateway can tell; the first two by name come before the one that works.
    let (pins, domain) = (good["spec"]["pins"].clone(), good["spec"]["trustDomain"].clone());
    let wrong = [
        peer("aa-clone", json!({"pins": pins})),
        peer("ab-shared", json!({"trustDomain": domain})),
        peer("port", json!({"addresses": ["h:70000"]})),
        peer("bundle", json!({"bundle": "nonsense"})),
        peer("a", json!({})),
    ];
    a.apply(&list(&wrong)).await?;
    for object in &wrong {
        let name = object["metadata"]["name"].as_str().context("a name")?;
        within(PATIENCE, format!("Peer {name} is said not to be accepted"), async || {
            let object = a.get(&["peers.eastway.dev", name]).await?;
            let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
            Ok(conditions.iter().any(|it| it["type"] == "Accepted" && it["status"] == "False" && it["message"] != ""))
        })
        .await?;
    }
    a.wait("condition=Ready", &["peers.eastway.dev", "b"], PATIENCE).await?;
    a.delete(&list(&wrong)).await?;
    let record = load.stop().await?;
    bed.record("objects.peers.sent", record.sent);
    bed.record("objects.peers.failed", record.failures.len());
    record.none_failed()?;
    let now = a.get(&["peers.eastway.dev", "b"]).await?;
    let ready = |object: &Value| {
        let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.into_iter().find(|it| it["type"] == "Ready").map(|it| it["lastTransitionTime"].clone())
    };
    ensure!(ready(&now) == ready(&good), "the good Peer was not ready for a while");
    clear(bed, &[SPACE]).await
}

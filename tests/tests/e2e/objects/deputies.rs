//! P6: the confused deputy.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use eastway_tests::kube::node::API_PORT;
use eastway_tests::kube::pods::{list, sleeper};
use eastway_tests::kube::{Bed, eastway as installed};
use eastway_tests::servers::{Habit, Server};
use eastway_tests::within;
use serde_json::json;

use super::{
    ELSEWHERE, PATIENCE, PORT, SPACE, access, by_hand, clear, export, namespace, refused, service, slice, told,
};

pub(super) async fn deputies(bed: &Bed) -> Result<()> {
    installed::ready(bed).await?;
    let (a, b) = (bed.cluster("a"), bed.cluster("b"));
    a.apply(&list(&[namespace(SPACE), sleeper(SPACE, "client", "client")])).await?;
    let mut hosted = sleeper(SPACE, "hosted", "hosted");
    hosted["spec"]["hostNetwork"] = json!(true);
    let mut alien = sleeper(ELSEWHERE, "alien", "alien");
    alien["metadata"]["labels"]["app"] = json!("own");
    b.apply(&list(&[namespace(SPACE), namespace(ELSEWHERE), sleeper(SPACE, "own", "own"), alien, hosted, access("a")]))
        .await?;
    let (own, alien, client) =
        (b.pod(SPACE, "own").await?, b.pod(ELSEWHERE, "alien").await?, a.pod(SPACE, "client").await?);
    let node = IpAddr::V4(b.address());
    let serve =
        async |place, address, name| Server::start(place, SocketAddr::new(address, PORT), name, Habit::Http).await;
    let good = serve(&own.place, own.address, "own").await?;
    let never = [serve(&alien.place, alien.address, "alien").await?, serve(b.place(), node, "node").await?];

    // What the API server itself does not take.
    for (kind, address, words) in [
        ("IPv4", "127.0.0.1", "may not be in the loopback range"),
        ("IPv4", "169.254.169.254", "may not be in the link-local range"),
        ("IPv6", "::1", "may not be in the loopback range"),
        ("IPv6", "fe80::1", "may not be in the link-local range"),
        ("IPv6", "::ffff:10.244.0.9", "must not be an IPv4-mapped IPv6 address"),
        ("IPv4", "0.0.0.0", "may not be unspecified"),
    ] {
        refused(b, &slice("refused", "deputy", kind, PORT, &json!([{"addresses": [address]}])), words).await?;
    }
    // What it takes: the pod of another namespace, said to be that, said to be ours, and without a word; the node, the
    // API server by both its addresses, nobody, and a name.
    let pod = |name: &str, namespace: &str| json!({"kind": "Pod", "name": name, "namespace": namespace});
    let lies = json!([
        {"addresses": [alien.address]},
        {"addresses": [node]},
        {"addresses": ["10.96.0.1"]},
        {"addresses": ["10.244.255.250"]},
    ]);
    let more_lies = json!([
        {"addresses": [alien.address], "targetRef": pod("alien", ELSEWHERE)},
        {"addresses": [node], "targetRef": pod("hosted", SPACE)},
    ]);
    let worst = json!([{"addresses": [alien.address], "targetRef": pod("own", SPACE)}]);
    b.apply(&list(&[
        by_hand("deputy"),
        export("deputy"),
        slice("deputy-1", "deputy", "IPv4", PORT, &lies),
        slice("deputy-2", "deputy", "IPv4", PORT, &more_lies),
        slice("deputy-3", "deputy", "IPv4", PORT, &worst),
        slice("deputy-4", "deputy", "IPv4", API_PORT, &json!([{"addresses": [node]}])),
        slice("deputy-5", "deputy", "FQDN", PORT, &json!([{"addresses": ["www.outside.test"]}])),
        service(
            "hosted",
            json!({"selector": {"app": "hosted"}, "ports": [{"name": "http", "port": 80, "targetPort": PORT}]}),
        ),
        export("hosted"),
    ]))
    .await?;
    let deputy = ["serviceexport", "deputy", "-n", SPACE];
    told(b, &deputy, "Ready=True/Exported", "refused: not the address of a pod of this namespace").await?;
    told(b, &deputy, "Ready=True/Exported", "and ").await?;
    told(b, &["serviceexport", "hosted", "-n", SPACE], "Ready=True/Exported", "refused: not the address of a pod")
        .await?;
    let mut targets = BTreeMap::new();
    for name in ["deputy", "hosted"] {
        targets.insert(name, SocketAddr::new(installed::imported(a, SPACE, name).await?.parse()?, 80));
    }
    let mut refusals = 0;
    for target in targets.values() {
        for _ in 0..25 {
            ensure!(client.ask(*target).await.is_err(), "an address that is nobody's was dialled");
            refusals += 1;
        }
    }
    // The one good endpoint among them is found at once, and it alone.
    let true_word = json!([{"addresses": [own.address], "targetRef": pod("own", SPACE)}]);
    b.apply(&slice("deputy-6", "deputy", "IPv4", PORT, &true_word).to_string()).await?;
    let deputy = targets["deputy"];
    within(PATIENCE, "the pod of the namespace answers by every gateway", async || {
        for _ in 0..12 {
            if client.ask(deputy).await? != "own" {
                return Ok(false);
            }
        }
        Ok(true)
    })
    .await?;
    for _ in 0..25 {
        ensure!(client.ask(deputy).await? == "own", "somebody else answers");
    }
    let dialled: u64 = never.iter().map(Server::accepted).sum();
    bed.record("objects.p6.refused", refusals);
    bed.record("objects.p6.dialled", dialled);
    ensure!(dialled == 0 && good.accepted() > 25, "{dialled} connections came to those who must get none");
    clear(bed, &[SPACE, ELSEWHERE]).await
}

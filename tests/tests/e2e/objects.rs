//! What people write into the API by mistake or to do harm: each is refused or left out with words that the one who
//! wrote it sees, and nothing else is disturbed (reliability: bad inputs; threats P6 and S1; faults F19 and F36).

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use eastway_tests::kube::node::API_PORT;
use eastway_tests::kube::pods::{list, sleeper};
use eastway_tests::kube::{Bed, Cluster, eastway as installed, seconds};
use eastway_tests::load::{Load, Plan};
use eastway_tests::servers::{Habit, Server};
use eastway_tests::{bed_tests, within};
use serde_json::{Value, json};

const SPACE: &str = "e2e-objects";
/// A namespace of somebody else in the same cluster.
const ELSEWHERE: &str = "e2e-elsewhere";
/// One that is not there in the importing cluster at first.
const MISSING: &str = "e2e-missing";
const PATIENCE: Duration = Duration::from_secs(30);
/// A good object has to be seen on the other side as soon as ever, whatever else there is.
const UNDISTURBED: Duration = Duration::from_secs(1);
const PORT: u16 = 8080;

bed_tests! {
    /// P6: whatever an EndpointSlice says, only pods of its own namespace are dialled.
    async fn p6_an_export_leads_to_pods_of_its_namespace_alone(bed) {
        deputies(bed).await
    }

    /// Exports that cannot be, and such that can in part, say so in their status.
    async fn exports_say_what_is_wrong_with_them(bed) {
        exports(bed).await
    }

    /// F19: an object that cannot be read costs nobody anything but its owner, who is told.
    async fn f19_an_object_that_cannot_be_read_is_left_out(bed) {
        unreadable(bed).await
    }

    /// Names that are taken, namespaces that are missing and quotas that are used up.
    async fn what_others_made_is_left_alone(bed) {
        foreign(bed).await
    }

    /// F36 and a Peer's bad inputs: refused at once in words, or by a condition; the good one keeps its links.
    async fn f36_bad_peers_are_told_and_harm_no_other(bed) {
        peers(bed).await
    }

    /// S1: asked of the API server itself, no role may do more than its task.
    async fn s1_no_role_may_do_more_than_its_task(bed) {
        rights(bed).await
    }
}

fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
}

/// A Service without a selector: whoever may write slices decides where it leads.
fn by_hand(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": SPACE},
        "spec": {"ports": [{"name": "http", "port": 80, "targetPort": PORT}]},
    })
}

#[expect(clippy::needless_pass_by_value, reason = "it is written where it is given")]
fn service(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": SPACE}, "spec": spec})
}

fn export(name: &str) -> Value {
    export_in(SPACE, name)
}

fn export_in(namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceExport",
        "metadata": {"name": name, "namespace": namespace},
    })
}

fn slice(name: &str, service: &str, kind: &str, port: u16, endpoints: &Value) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": SPACE, "labels": {"kubernetes.io/service-name": service}},
        "addressType": kind, "ports": [{"name": "http", "port": port, "protocol": "TCP"}], "endpoints": endpoints,
    })
}

fn access(other: &str) -> Value {
    json!({
        "apiVersion": "eastway.dev/v1alpha1", "kind": "AccessPolicy", "metadata": {"name": "all", "namespace": SPACE},
        "spec": {
            "services": ["*"], "allow": [{"cluster": other, "namespace": SPACE, "serviceAccounts": ["*"]}],
        },
    })
}

/// Applies, and expects a refusal with these words.
async fn refused(cluster: &Cluster, object: &Value, words: &str) -> Result<()> {
    match cluster.apply(&object.to_string()).await {
        Ok(_) => bail!("taken, instead of refused with {words:?}: {object}"),
        Err(error) => {
            let said = format!("{error:#}");
            ensure!(said.contains(words), "refused without {words:?}: {said}");
            Ok(())
        }
    }
}

/// Waits until a condition of an object is like this: `Valid=False/NoService`, and its message has these words.
async fn told(cluster: &Cluster, what: &[&str], condition: &str, words: &str) -> Result<()> {
    within(PATIENCE, format!("{what:?} says {condition} with {words:?}"), async || {
        let object = cluster.get(what).await?;
        let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let text = |it: &Value, key: &str| it[key].as_str().unwrap_or_default().to_owned();
        let shown = |it: &Value| format!("{}={}/{}", text(it, "type"), text(it, "status"), text(it, "reason"));
        let fits = |it: &Value| shown(it) == condition && text(it, "message").contains(words);
        ensure!(conditions.iter().any(fits), "it says {conditions:?}");
        Ok(true)
    })
    .await
    .map(drop)
}

async fn clear(bed: &Bed, namespaces: &[&str]) -> Result<()> {
    for cluster in bed.clusters() {
        for namespace in namespaces {
            cluster.kubectl(&["delete", "namespace", namespace, "--ignore-not-found"]).await?;
        }
    }
    Ok(())
}

async fn deputies(bed: &Bed) -> Result<()> {
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
    within(PATIENCE, "the pod of the namespace answers", async || Ok(client.ask(deputy).await? == "own")).await?;
    for _ in 0..25 {
        ensure!(client.ask(deputy).await? == "own", "somebody else answers");
    }
    let dialled: u64 = never.iter().map(Server::accepted).sum();
    bed.record("objects.p6.refused", refusals);
    bed.record("objects.p6.dialled", dialled);
    ensure!(dialled == 0 && good.accepted() > 25, "{dialled} connections came to those who must get none");
    clear(bed, &[SPACE, ELSEWHERE]).await
}

async fn exports(bed: &Bed) -> Result<()> {
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

async fn unreadable(bed: &Bed) -> Result<()> {
    installed::ready(bed).await?;
    let (a, b) = (bed.cluster("a"), bed.cluster("b"));
    a.apply(&namespace(SPACE).to_string()).await?;
    let names = ["good", "bad"];
    let mut items = vec![namespace(SPACE)];
    items.extend(names.iter().flat_map(|name| [by_hand(name), export(name)]));
    b.apply(&list(&items)).await?;
    for name in names {
        installed::imported(a, SPACE, name).await?;
    }
    let key = format!("/registry/multicluster.x-k8s.io/serviceexports/{SPACE}/bad");
    b.rewrite_in_etcd(&key, |object| object["spec"] = json!({"exportedLabels": 7})).await?;
    let bad = ["serviceexport", "bad", "-n", SPACE];
    let began = Instant::now();
    told(b, &bad, "Ready=True/Exported", "cannot be read: invalid type: integer `7`").await?;
    bed.record("objects.unreadable_told_s", seconds(began.elapsed()));
    // Others go on as if nothing were.
    b.apply(&list(&[by_hand("next"), export("next")])).await?;
    let seen = within(UNDISTURBED, "a sees the next export", async || {
        a.get(&["serviceimport", "next", "-n", SPACE]).await.map(|_| true)
    });
    bed.record("objects.next_export_s", seconds(seen.await?));
    a.get(&["serviceimport", "bad", "-n", SPACE]).await.context("its last good version counts")?;
    let said =
        b.kubectl(&["logs", "-n", installed::SYSTEM, "-l", "app.kubernetes.io/component=gateway", "--tail=-1"]).await?;
    let lines =
        said.lines().filter(|line| line.contains("cannot be read") && line.contains(&format!("{SPACE}/bad"))).count();
    let gateways = b.containers(installed::SYSTEM, "gateway").await?.len();
    ensure!(lines == gateways, "{lines} lines in the logs of {gateways} gateways");
    // Mended, it counts again. As it got there: the server itself can make no change to what it cannot read.
    b.rewrite_in_etcd(&key, |object| object["spec"] = json!({})).await?;
    told(b, &bad, "Ready=True/Exported", "offered to all peers whose export rules allow it").await?;
    clear(bed, &[SPACE]).await
}

async fn foreign(bed: &Bed) -> Result<()> {
    installed::ready(bed).await?;
    let (a, b) = (bed.cluster("a"), bed.cluster("b"));
    // Theirs: an import and a Service of names that we would take.
    b.apply(&list(&[namespace(SPACE), namespace(MISSING), by_hand("derived"), export("derived")])).await?;
    a.apply(&namespace(SPACE).to_string()).await?;
    installed::imported(a, SPACE, "derived").await?;
    let import = a.get(&["serviceimport", "derived", "-n", SPACE]).await?;
    let derived = import["metadata"]["annotations"]["multicluster.kubernetes.io/derived-service"]
        .as_str()
        .context("a name")?
        .to_owned();
    b.kubectl(&["delete", "serviceexport", "derived", "-n", SPACE]).await?;
    let gone = async || Ok(a.get(&["service", &derived, "-n", SPACE]).await.is_err());
    within(PATIENCE, "what was derived is gone", gone).await?;
    let mut theirs = service(&derived, json!({"selector": {"app": "mine"}, "ports": [{"name": "mine", "port": 7}]}));
    theirs["metadata"]["labels"] = json!({"multicluster.kubernetes.io/service-name": "derived"});
    let import = json!({
        "apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceImport",
        "metadata": {"name": "mine", "namespace": SPACE},
        "spec": {"type": "ClusterSetIP", "ports": [{"name": "mine", "port": 7, "protocol": "TCP"}], "ips": ["10.96.7.7"]},
    });
    let same_name = service("mine", json!({"ports": [{"name": "own", "port": 9}]}));
    a.apply(&list(&[theirs, import, same_name])).await?;
    let state = async || {
        let mut all = Vec::new();
        for what in [["service", &derived], ["serviceimport", "mine"], ["service", "mine"]] {
            let object = a.get(&[what[0], what[1], "-n", SPACE]).await?;
            all.push((object["metadata"]["uid"].clone(), object["spec"].clone(), object["metadata"]["labels"].clone()));
        }
        anyhow::Ok(all)
    };
    let before = state().await?;
    b.apply(&list(&[export("derived"), by_hand("mine"), export("mine")])).await?;
    let what = ["serviceimport", "derived", "-n", SPACE];
    told(a, &what, "Ready=False/Pending", &derived).await?;
    b.apply(&list(&[by_hand("other"), export("other")])).await?;
    installed::imported(a, SPACE, "other").await?;
    ensure!(state().await? == before, "what others made was changed: {:?}", state().await?);
    // They go, and ours comes.
    a.kubectl(&["delete", "service", &derived, "-n", SPACE]).await?;
    within(Duration::from_secs(60), "the name is free", async || {
        Ok(installed::imported(a, SPACE, "derived").await.is_ok())
    })
    .await?;

    // A namespace that is not there, and comes.
    let elsewhere = |name: &str| {
        let mut service = by_hand(name);
        service["metadata"]["namespace"] = json!(MISSING);
        [service, export_in(MISSING, name)]
    };
    b.apply(&list(&[elsewhere("one"), elsewhere("two")].concat())).await?;
    ensure!(a.get(&["namespace", MISSING]).await.is_err(), "nobody makes namespaces");
    // With a quota that leaves room for one Service.
    let quota = |services: u32| {
        json!({
            "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "few", "namespace": MISSING},
            "spec": {"hard": {"services": services.to_string()}},
        })
    };
    a.apply(&list(&[namespace(MISSING), quota(0)])).await?;
    for name in ["one", "two"] {
        told(a, &["serviceimport", name, "-n", MISSING], "Ready=False/Pending", "exceeded quota: few").await?;
    }
    a.apply(&quota(2).to_string()).await?;
    for name in ["one", "two"] {
        installed::imported(a, MISSING, name).await?;
    }
    clear(bed, &[SPACE, MISSING]).await
}

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

async fn peers(bed: &Bed) -> Result<()> {
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

async fn rights(bed: &Bed) -> Result<()> {
    installed::ready(bed).await?;
    let a = bed.cluster("a");
    let can = async |role: &str, question: &[&str]| -> Result<bool> {
        let account = format!("system:serviceaccount:{}:eastway-{role}", installed::SYSTEM);
        let question = question.iter().flat_map(|words| words.split_ascii_whitespace());
        let arguments: Vec<&str> = ["auth", "can-i", "--quiet", "--as", &account].into_iter().chain(question).collect();
        // It says no by its exit code.
        Ok(a.kubectl(&arguments).await.is_ok())
    };
    let everywhere = "--all-namespaces";
    for role in ["gateway", "controller", "ca"] {
        for (verb, resource) in [
            ("get", "secrets"),
            ("list", "secrets"),
            ("create", "pods"),
            ("create", "pods --subresource=exec"),
            ("update", "configmaps"),
            ("create", "clusterrolebindings.rbac.authorization.k8s.io"),
            ("escalate", "clusterroles.rbac.authorization.k8s.io"),
            ("impersonate", "users"),
            ("create", "serviceaccounts --subresource=token"),
            ("create", "peers.eastway.dev"),
            ("update", "serviceexports.multicluster.x-k8s.io"),
            ("delete", "namespaces"),
            ("get", "nodes --subresource=proxy"),
            ("*", "*"),
        ] {
            ensure!(!can(role, &[verb, resource, everywhere]).await?, "{role} may {verb} {resource} everywhere");
        }
        ensure!(
            !can(role, &["get", "secret/cacerts", "-n", installed::SYSTEM]).await?,
            "{role} may read the CA's Secret"
        );
    }
    // The one that faces the WAN writes nothing.
    for verb in ["create", "update", "patch", "delete"] {
        for resource in [
            "services",
            "endpointslices.discovery.k8s.io",
            "serviceimports.multicluster.x-k8s.io",
            "peers.eastway.dev --subresource=status",
        ] {
            ensure!(!can("gateway", &[verb, resource, everywhere]).await?, "the gateway may {verb} {resource}");
        }
    }
    ensure!(can("gateway", &["watch", "services", everywhere]).await?, "the gateway reads services");
    ensure!(
        can("controller", &["patch", "serviceimports.multicluster.x-k8s.io", everywhere]).await?,
        "the controller writes imports"
    );
    ensure!(can("ca", &["create", "tokenreviews.authentication.k8s.io", everywhere]).await?, "the CA asks who calls");
    for role in ["gateway", "controller"] {
        ensure!(
            !can(role, &["create", "tokenreviews.authentication.k8s.io", everywhere]).await?,
            "{role} may review tokens"
        );
    }
    Ok(())
}

//! Clusters without an API server: what is served goes on, what peers change still arrives, a gateway that is
//! restarted serves from its disk, and nothing is withdrawn, then or when the API server comes back.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use eastway_dns::client::{self, QueryType};
use eastway_tests::kube::cluster::Program;
use eastway_tests::kube::containers::Container;
use eastway_tests::kube::pods::{Pod, list, sleeper};
use eastway_tests::kube::{Bed, Cluster, eastway as installed, seconds};
use eastway_tests::lab::place::Place;
use eastway_tests::load::{Load, Plan, Record};
use eastway_tests::servers::{Habit, Server};
use eastway_tests::{bed_tests, within};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

const SPACE: &str = "e2e-outage";
const PATIENCE: Duration = Duration::from_secs(60);
/// Within this a change of one side has to be seen on the other (F16).
const PROPAGATION: Duration = Duration::from_secs(5);
/// A gateway that has what it needs on disk: a few seconds for an API server that is only slow, and for links.
const READY: Duration = Duration::from_secs(10);
/// How long the API server is away in CI.
const MINUTE: Duration = Duration::from_secs(60);
/// And in a soak.
const HALF_AN_HOUR: Duration = Duration::from_secs(1800);
/// Requests per second in each direction: enough to hit any gap of 50 ms.
const RATE: u32 = 25;
const PORT: u16 = 8080;
/// Where a gateway keeps what its API server said.
const COPY: &str = "/var/lib/eastway/registries/cluster.copy";
/// Where a cluster's gateways answer DNS.
const DNS: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(10, 96, 0, 53)), 53);

bed_tests! {
    /// F16, for a minute.
    async fn f16_a_cluster_goes_on_without_its_api_server(bed) limit 400 {
        restored(bed, away(bed, MINUTE).await).await
    }

    /// F16 as it is written.
    async fn f16_a_cluster_goes_on_without_its_api_server_for_half_an_hour(bed)
        limit 2400 ignored "takes half an hour: make soak" {
        restored(bed, away(bed, HALF_AN_HOUR).await).await
    }

    /// F14: a gateway that knows nothing of its own cluster tells peers nothing, rather than that there is nothing.
    /// F18: after that its API server comes back with another history, and every watch starts anew.
    async fn f14_f18_who_knows_nothing_withdraws_nothing(bed) limit 300 {
        restored(bed, unsynced(bed).await).await
    }
}

/// Whatever came out: other tests need their API servers.
async fn restored(bed: &Bed, result: Result<()>) -> Result<()> {
    for cluster in bed.clusters() {
        // One that runs says so.
        let _runs = cluster.start_program(Program::ApiServer).await;
    }
    result
}

/// One version of an object.
#[derive(Clone, Debug, PartialEq)]
struct Written {
    uid: Value,
    version: Value,
    /// What it says, for whoever wants to know what changed.
    contents: Value,
}

impl Written {
    fn of(object: &Value) -> Self {
        let metadata = &object["metadata"];
        let contents = ["spec", "status", "endpoints", "ports"].map(|field| object[field].clone());
        Self { uid: metadata["uid"].clone(), version: metadata["resourceVersion"].clone(), contents: json!(contents) }
    }
}

/// Fails if any object is another, or another version.
fn untouched(what: &str, before: &BTreeMap<String, Written>, now: &BTreeMap<String, Written>) -> Result<()> {
    for (name, before) in before {
        let now = now.get(name).with_context(|| format!("{what}: {name} is gone"))?;
        ensure!(before == now, "{what}: {name} was written anew:\n{before:#?}\n{now:#?}");
    }
    ensure!(before.len() == now.len(), "{what}: there are {} now", now.len());
    Ok(())
}

/// Fails unless all objects are there and say what they said, in whatever version; gives the number of new ones.
fn kept(what: &str, before: &BTreeMap<String, Written>, now: &BTreeMap<String, Written>) -> Result<usize> {
    let mut newer = 0;
    for (name, before) in before {
        let now = now.get(name).with_context(|| format!("{what}: {name} is gone"))?;
        let same = before.uid == now.uid && before.contents == now.contents;
        ensure!(same, "{what}: {name} is another:\n{before:#?}\n{now:#?}");
        newer += usize::from(before.version != now.version);
    }
    Ok(newer)
}

/// Both clusters with a client each; a serves `page`, b serves `echo`, each to the other.
struct Scene<'a> {
    a: &'a Cluster,
    b: &'a Cluster,
    client_a: Pod,
    client_b: Pod,
    /// Where the other's service is.
    echo: SocketAddr,
    page: SocketAddr,
    /// Those behind them; they serve until they are dropped.
    servers: Vec<(Pod, Server)>,
}

impl<'a> Scene<'a> {
    async fn set(bed: &'a Bed) -> Result<Self> {
        installed::ready(bed).await?;
        let (a, b) = (bed.cluster("a"), bed.cluster("b"));
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SPACE}});
        for (cluster, other, serves, pods) in
            [(a, "b", "page", &["page-1"][..]), (b, "a", "echo", &["echo-1", "echo-2"])]
        {
            let mut items = vec![namespace.clone(), sleeper(SPACE, "client", "client"), access(other)];
            items.extend(pods.iter().map(|name| sleeper(SPACE, name, name)));
            items.extend(exported(serves, pods[0]));
            cluster.apply(&list(&items)).await?;
        }
        b.apply(&list(&exported("extra", "echo-1"))).await?;
        let mut servers = Vec::new();
        for (cluster, name) in [(a, "page-1"), (b, "echo-1"), (b, "echo-2")] {
            let pod = cluster.pod(SPACE, name).await?;
            let server = Server::start(&pod.place, SocketAddr::new(pod.address, PORT), name, Habit::Http).await?;
            servers.push((pod, server));
        }
        let (client_a, client_b) = (a.pod(SPACE, "client").await?, b.pod(SPACE, "client").await?);
        let at = async |cluster, name| {
            anyhow::Ok(SocketAddr::new(installed::imported(cluster, SPACE, name).await?.parse()?, 80))
        };
        let (echo, page) = (at(a, "echo").await?, at(b, "page").await?);
        installed::imported(a, SPACE, "extra").await?;
        let scene = Self { a, b, client_a, client_b, echo, page, servers };
        scene.answers(PATIENCE).await?;
        scene.kept_on_disk().await?;
        Ok(scene)
    }

    /// Waits until all gateways have written down where their own service is: what changed in the last half second
    /// before an API server goes is not on disk.
    async fn kept_on_disk(&self) -> Result<()> {
        for (cluster, service, pod) in [(self.a, "page", 0), (self.b, "echo", 1)] {
            let address = format!("\"{}\"", self.servers[pod].0.address);
            let begin = format!("{{\"service\":{{\"namespace\":\"{SPACE}\",\"name\":\"{service}\"");
            for gateway in cluster.containers(installed::SYSTEM, "gateway").await? {
                within(PATIENCE, format!("{} keeps {service} on disk", gateway.pod), async || {
                    let copy = std::fs::read_to_string(gateway.file(COPY))?;
                    Ok(copy.lines().any(|line| line.starts_with(&begin) && line.contains(&address)))
                })
                .await?;
            }
        }
        Ok(())
    }

    /// Waits until both directions work, and tells how long that took.
    async fn answers(&self, patience: Duration) -> Result<Duration> {
        let started = Instant::now();
        for (client, target) in [(&self.client_a, self.echo), (&self.client_b, self.page)] {
            let what = format!("{target} answers {}", client.place.name());
            within(patience, what, async || client.ask(target).await.map(|_| true)).await?;
        }
        Ok(started.elapsed())
    }

    fn load(&self) -> [Load; 2] {
        [(&self.client_a, self.echo), (&self.client_b, self.page)].map(|(client, target)| {
            Load::start(&client.place, Plan { source: client.address, target, rate: RATE, size: 3000 })
        })
    }

    /// Everything that Eastway wrote for these imports, by its version: whoever touches it is seen.
    async fn written(&self, cluster: &Cluster, services: &[&str]) -> Result<BTreeMap<String, Written>> {
        let mut versions = BTreeMap::new();
        for kind in ["serviceimports", "services", "endpointslices"] {
            let label = "app.kubernetes.io/managed-by=eastway";
            let found = cluster.get(&[kind, "-n", SPACE, "-l", label]).await?;
            for object in found["items"].as_array().context("a list")? {
                let metadata = &object["metadata"];
                let of = match kind {
                    "serviceimports" => &metadata["name"],
                    _ => &metadata["labels"]["multicluster.kubernetes.io/service-name"],
                };
                if services.iter().any(|service| of == service) {
                    let name = format!("{kind} of {of}: {}", metadata["name"]);
                    versions.insert(name, Written::of(object));
                }
            }
        }
        ensure!(versions.len() == 3 * services.len(), "{}: {versions:?}", cluster.name());
        Ok(versions)
    }

    async fn clear(self) -> Result<()> {
        for cluster in [self.a, self.b] {
            cluster.kubectl(&["delete", "namespace", SPACE]).await?;
        }
        Ok(())
    }
}

/// What a gateway says of a service's name: code and addresses.
async fn resolve(place: &Place, service: &str) -> Result<(String, Vec<IpAddr>)> {
    let name = format!("{service}.{SPACE}.svc.clusterset.local");
    let asked = async move { Ok(client::query(DNS, &name, QueryType::A, Duration::from_millis(900)).await?) };
    let answer = place.run(asked).await?;
    Ok((answer.rcode.clone(), answer.addresses().collect()))
}

/// A Service towards one pod, and its export.
fn exported(name: &str, app: &str) -> [Value; 2] {
    [
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": SPACE},
            "spec": {"selector": {"app": app}, "ports": [{"name": "http", "port": 80, "targetPort": PORT}]},
        }),
        json!({
            "apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceExport",
            "metadata": {"name": name, "namespace": SPACE},
        }),
    ]
}

fn access(other: &str) -> Value {
    json!({
        "apiVersion": "eastway.dev/v1alpha1", "kind": "AccessPolicy",
        "metadata": {"name": "outage", "namespace": SPACE},
        "spec": {
            "services": ["*"],
            "allow": [{"cluster": other, "namespace": SPACE, "serviceAccounts": ["*"]}],
        },
    })
}

/// Whether a gateway says that it is ready.
async fn is_ready(gateway: &Container) -> Result<bool> {
    Ok(gateway.get(15021, "/healthz/ready").await?.is_some())
}

async fn status(gateway: &Container) -> Result<Value> {
    let said = gateway.get(15000, "/status").await?.context("no status")?;
    Ok(serde_json::from_str(&said)?)
}

fn none_failed(bed: &Bed, name: &str, records: [Record; 2]) -> Result<()> {
    for (direction, record) in ["a_to_b", "b_to_a"].into_iter().zip(records) {
        bed.record(&format!("outage.{name}.{direction}.sent"), record.sent);
        bed.record(&format!("outage.{name}.{direction}.failed"), record.failures.len());
        record.none_failed().with_context(|| format!("{name}, {direction}"))?;
    }
    Ok(())
}

async fn stopped([one, other]: [Load; 2]) -> Result<[Record; 2]> {
    Ok([one.stop().await?, other.stop().await?])
}

async fn away(bed: &Bed, duration: Duration) -> Result<()> {
    let scene = Scene::set(bed).await?;
    let Scene { a, b, client_a, .. } = &scene;
    let (in_a, in_b) = (scene.written(a, &["echo"]).await?, scene.written(b, &["page"]).await?);
    let load = scene.load();

    a.kill_program(Program::ApiServer).await?;
    let gone = Instant::now();
    // Another pod takes over in b.
    b.kubectl(&["patch", "service", "echo", "-n", SPACE, "-p", r#"{"spec":{"selector":{"app":"echo-2"}}}"#]).await?;
    let moved =
        within(
            PROPAGATION,
            "a's pods reach the new pod of b",
            async || Ok(client_a.ask(scene.echo).await? == "echo-2"),
        );
    bed.record("outage.endpoint_change_s", seconds(moved.await?));
    // What b exports no more is no name in a any more. What it exports newly is known there, and has no address before
    // somebody can write one down.
    b.kubectl(&["delete", "serviceexport", "extra", "-n", SPACE]).await?;
    let taken = within(PROPAGATION, "the name of extra is gone in a", async || {
        Ok(resolve(&client_a.place, "extra").await?.0 == "NXDOMAIN")
    });
    bed.record("outage.unexport_s", seconds(taken.await?));
    b.apply(&list(&exported("late", "echo-2"))).await?;
    let gateways = a.containers(installed::SYSTEM, "gateway").await?;
    let known = within(PROPAGATION, "the gateways of a know the new service", async || {
        let known = gateways.iter().map(|gateway| gateway.get(15000, "/describe?service=e2e-outage/late"));
        Ok(futures_util::future::try_join_all(known).await?.iter().all(Option::is_some))
    });
    bed.record("outage.export_s", seconds(known.await?));
    none_failed(bed, "before_restart", stopped(load).await?)?;

    // All gateways of a, so that none can stand in for another.
    let restarted = Instant::now();
    let gateways = a.restart_gateways().await?;
    // The kubelet's own: it waits ever longer with a container that ended before.
    bed.record("outage.gateway_started_s", seconds(restarted.elapsed()));
    let started = Instant::now();
    for gateway in &gateways {
        within(PATIENCE, "a restarted gateway is ready", async || is_ready(gateway).await).await?;
    }
    bed.record("outage.gateway_ready_s", seconds(restarted.elapsed()));
    ensure!(started.elapsed() < READY, "ready from disk only after {:?}", started.elapsed());
    scene.answers(PATIENCE).await?;
    bed.record("outage.gateway_serves_s", seconds(restarted.elapsed()));
    ensure!(resolve(&client_a.place, "echo").await?.1 == [scene.echo.ip()], "its name leads to the same address");
    for cluster in [a, b] {
        for gateway in cluster.containers(installed::SYSTEM, "gateway").await? {
            let linked = async || Ok(status(&gateway).await?["peers"]["up"] == 1);
            within(PATIENCE, "every gateway has a link", linked).await?;
        }
    }
    let load = scene.load();
    tokio::time::sleep(duration.saturating_sub(gone.elapsed())).await;
    untouched("b, while a's API server is away", &in_b, &scene.written(b, &["page"]).await?)?;
    a.start_program(Program::ApiServer).await?;
    let back = Instant::now();
    bed.record("outage.api_away_s", seconds(gone.elapsed()));

    // All converges: what is new gets its address, what went is gone, and what was stays untouched.
    installed::imported(a, SPACE, "late").await?;
    let tidy = async || {
        let label = "multicluster.kubernetes.io/service-name=extra";
        let derived = a.get(&["services", "-n", SPACE, "-l", label]).await?;
        let import = a.get(&["serviceimport", "extra", "-n", SPACE]).await;
        Ok(import.is_err() && derived["items"].as_array().is_some_and(Vec::is_empty))
    };
    within(PATIENCE, "the import of extra is gone in a", tidy).await?;
    bed.record("outage.converged_s", seconds(back.elapsed()));
    a.wait("condition=Ready", &["peers.eastway.dev", "--all"], PATIENCE).await?;
    none_failed(bed, "after_restart", stopped(load).await?)?;
    let newer = kept("a, when its API server is back", &in_a, &scene.written(a, &["echo"]).await?)?;
    bed.record("outage.rewritten", newer);
    let said = a.kubectl(&["logs", "-n", installed::SYSTEM, "deploy/eastway-gateway"]).await?;
    ensure!(said.contains("serving what it said before the restart"), "not from disk:\n{said}");
    scene.clear().await
}

/// Asks a hundred times a second what a name leads to, until stopped; whatever is not the one address is told.
fn sample(
    place: &Place,
    service: &'static str,
    expected: IpAddr,
) -> (oneshot::Sender<()>, JoinHandle<(u64, Vec<String>)>) {
    let (stop, mut stopped) = oneshot::channel::<()>();
    let name = format!("{service}.{SPACE}.svc.clusterset.local");
    let task = place.spawn(async move {
        let (mut asked, mut wrong) = (0, Vec::new());
        let mut clock = tokio::time::interval(Duration::from_millis(10));
        while stopped.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Empty) {
            clock.tick().await;
            asked += 1;
            match client::query(DNS, &name, QueryType::A, Duration::from_secs(2)).await {
                Ok(answer) if answer.addresses().eq([expected]) => {}
                Ok(answer) => wrong.push(format!("{} {:?}", answer.rcode, answer.records)),
                Err(error) => wrong.push(error.to_string()),
            }
        }
        (asked, wrong)
    });
    (stop, task)
}

async fn unsynced(bed: &Bed) -> Result<()> {
    let scene = Scene::set(bed).await?;
    let Scene { a, b, client_a, .. } = &scene;
    let (in_a, in_b) = (scene.written(a, &["echo"]).await?, scene.written(b, &["page"]).await?);
    let (stop, sampling) = sample(&client_a.place, "echo", scene.echo.ip());

    b.kill_program(Program::ApiServer).await?;
    for gateway in b.containers(installed::SYSTEM, "gateway").await? {
        // As if it had never heard of its cluster.
        std::fs::remove_file(gateway.file(COPY))?;
    }
    let gateways = b.restart_gateways().await?;
    // They have links, and nothing to say.
    for gateway in &gateways {
        let linked = async || {
            let status = status(gateway).await?;
            Ok(status["peers"]["up"] == 1 && status["snapshot"]["localSynced"] == false)
        };
        within(PATIENCE, "a gateway of b is linked, and knows nothing", linked).await?;
    }
    let since = Instant::now();
    // Far longer than a snapshot takes to cross.
    within(PATIENCE, "nothing happens for 5 s", async || Ok(since.elapsed() > Duration::from_secs(5))).await?;
    for gateway in &gateways {
        ensure!(!is_ready(gateway).await?, "a gateway that knows nothing says that it is ready");
    }
    untouched("a, while b knows nothing", &in_a, &scene.written(a, &["echo"]).await?)?;

    b.compact_etcd().await?;
    b.start_program(Program::ApiServer).await?;
    let back = Instant::now();
    scene.answers(PATIENCE).await?;
    bed.record("unsynced.serves_again_s", seconds(back.elapsed()));
    for gateway in &gateways {
        within(PATIENCE, "a gateway of b knows its cluster", async || is_ready(gateway).await).await?;
    }
    let load = scene.load();
    b.wait("condition=Ready", &["peers.eastway.dev", "--all"], PATIENCE).await?;

    // Once more in the other cluster, with nothing restarted but the API server.
    a.compact_etcd().await?;
    a.kill_program(Program::ApiServer).await?;
    a.start_program(Program::ApiServer).await?;
    let port = |name: &str, port: u16| json!({"name": name, "port": port, "targetPort": PORT});
    let changed = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "page", "namespace": SPACE},
        "spec": {"ports": [port("http", 80), port("more", 81)]},
    });
    within(PATIENCE, "the API server of a takes a change", async || a.apply(&changed.to_string()).await.map(|_| true))
        .await?;
    let seen = within(PATIENCE, "b sees the change", async || {
        let import = b.get(&["serviceimport", "page", "-n", SPACE]).await?;
        Ok(import["spec"]["ports"].as_array().is_some_and(|ports| ports.len() == 2))
    });
    bed.record("unsynced.change_after_relist_s", seconds(seen.await?));
    none_failed(bed, "unsynced", stopped(load).await?)?;
    ensure!(stop.send(()).is_ok(), "the sampler ended");
    let (asked, wrong) = sampling.await?;
    bed.record("unsynced.samples", asked);
    ensure!(asked > 500 && wrong.is_empty(), "{} of {asked} answers were wrong: {:?}", wrong.len(), wrong.first());
    let newer = kept("a, when all watches began anew", &in_a, &scene.written(a, &["echo"]).await?)?;
    bed.record("unsynced.rewritten", newer);
    let uids = |of: BTreeMap<String, Written>| of.into_values().map(|written| written.uid).collect::<Vec<_>>();
    ensure!(uids(scene.written(b, &["page"]).await?) == uids(in_b), "b's imports came and went");
    scene.clear().await
}

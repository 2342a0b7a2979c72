//! A large cluster: 5,000 exported services with 50,000 endpoints in a real API server, and a peer that imports all.
//!
//! Both are API servers without nodes, and Eastway's roles run against them as processes of the node: what is measured is
//! theirs. The first one's objects are there before anything starts.

mod objects;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use eastway_dns::client::{self, QueryType};
use eastway_tests::kube::bare::request;
use eastway_tests::kube::cluster::Options;
use eastway_tests::kube::process::Daemon;
use eastway_tests::kube::{Bed, Cluster, process, seconds};
use eastway_tests::lab::http;
use eastway_tests::{bed_tests, within};
use hyper::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};

use objects::{PER_SERVICE, SERVICES};

/// Longest wait for what has no limit of its own here.
const PATIENCE: Duration = Duration::from_secs(60);
/// Until a gateway has read everything and is ready.
const READY: Duration = Duration::from_secs(10);
/// Resident memory of the gateway that has all the endpoints.
const RESIDENT: u64 = 150_000_000;
/// Until a change of one endpoint is seen by the peer: 99 of 100.
const SEEN: Duration = Duration::from_millis(500);
/// Changes of one endpoint.
const CHANGES: usize = 100;
/// Imports that the controller of the peer is timed for: all of them.
const ADDRESSED: usize = 5_000;
/// Ports of metrics and health.
const GATEWAY: (u16, u16) = (15020, 15021);
const CONTROLLER: (u16, u16) = (15022, 15023);
/// Pause between two looks at the peer.
const LOOK: Duration = Duration::from_millis(2);

/// A cluster with Eastway beside it.
struct Side {
    cluster: Cluster,
    folder: PathBuf,
    daemons: Vec<Daemon>,
}

impl Side {
    /// Keys, configuration and the ca role.
    async fn prepare(cluster: Cluster) -> Result<Self> {
        let (name, folder) = (cluster.name().to_owned(), cluster.folder().join("eastway"));
        std::fs::create_dir_all(folder.join("peers"))?;
        for role in ["ca", "gateway", "controller"] {
            // Each role of its own process has ports of its own.
            let ports = match role {
                "gateway" => GATEWAY,
                "controller" => CONTROLLER,
                _ => (0, 0),
            };
            let kubeconfig = cluster.pki().admin();
            let config = json!({
                "apiVersion": "eastway.dev/v1alpha1", "kind": "GatewayConfig", "cluster": name,
                "kubernetes": {"kubeconfig": kubeconfig, "gateways": "127.0.0.1:15012"},
                "trust": {"domain": format!("{name}.example"), "ca": "https://127.0.0.1:15112",
                          "token": format!("token-{role}")},
                "listen": {
                    "link": "0.0.0.0:15443", "advertise": [format!("{}:15443", cluster.address())],
                    "local": "127.0.0.1:15012", "ca": "127.0.0.1:15112",
                    "metrics": format!("127.0.0.1:{}", ports.0), "health": format!("127.0.0.1:{}", ports.1),
                },
                "registries": [{"name": "cluster", "kubernetes": {"kubeconfig": kubeconfig}}],
                "peers": "peers",
            });
            std::fs::write(folder.join(format!("{role}.yaml")), config.to_string())?;
        }
        let mut side = Self { cluster, folder, daemons: Vec::new() };
        side.eastway(&["ca", "init", "--config", &side.config("ca")]).await?;
        for role in ["gateway", "controller"] {
            let account = format!("eastway-{role}");
            let arguments = ["create", "token", &account, "-n", "eastway-system", "--audience=eastway-ca"];
            std::fs::write(side.folder.join(format!("token-{role}")), side.cluster.kubectl(&arguments).await?)?;
        }
        side.start("ca")?;
        Ok(side)
    }

    fn config(&self, role: &str) -> String {
        self.folder.join(format!("{role}.yaml")).display().to_string()
    }

    /// Starts a role; returns its place among the processes.
    fn start(&mut self, role: &str) -> Result<usize> {
        let binary = eastway_tests::binary().display().to_string();
        self.daemons.push(self.cluster.daemon(role, &binary, &[role, "--config", &self.config(role)])?);
        Ok(self.daemons.len() - 1)
    }

    async fn eastway(&self, arguments: &[&str]) -> Result<String> {
        let binary = eastway_tests::binary().display().to_string();
        process::output(&mut self.cluster.command(&binary, arguments)?).await
    }

    /// What the gateway says about something, as `eastway … -o json` gets it.
    async fn ask(&self, path: &str) -> Result<Value> {
        let answer = http::get(self.cluster.place(), local(15000), path).await?;
        ensure!(answer.status == 200, "{path}: {} {}", answer.status, answer.body);
        Ok(serde_json::from_str(&answer.body)?)
    }

    async fn until_ready(&self) -> Result<Duration> {
        let place = self.cluster.place().clone();
        within(PATIENCE, format!("the gateway of {} is ready", self.cluster.name()), async || {
            Ok(http::get(&place, local(GATEWAY.1), "/healthz/ready").await?.status == 200)
        })
        .await
    }

    /// Resident memory now and at most, bytes.
    fn memory(&self, daemon: usize) -> Result<(u64, u64)> {
        let pid = self.daemons.get(daemon).and_then(Daemon::pid).context("it has ended")?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let field = |name: &str| -> Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).context("no such field")?;
            Ok(line.trim_start_matches(':').trim().trim_end_matches("kB").trim().parse::<u64>()? * 1024)
        };
        Ok((field("VmRSS")?, field("VmHWM")?))
    }

    async fn end(mut self) -> Result<()> {
        for daemon in &mut self.daemons {
            daemon.kill().await?;
        }
        self.cluster.stop().await
    }

    fn ensure_running(&mut self) -> Result<()> {
        self.daemons.iter_mut().try_for_each(Daemon::ensure_running)
    }
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

fn megabytes(bytes: u64) -> f64 {
    (bytes as f64 / 1e5).round() / 10.0
}

/// The definitions that the chart installs, and an API server that knows them.
async fn define(cluster: &Cluster) -> Result<()> {
    let crds = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../helm/eastway/files/crds");
    cluster.kubectl(&["apply", "--server-side", "-f", &crds.display().to_string()]).await?;
    cluster.wait("condition=Established", &["crd", "--all"], PATIENCE).await
}

/// Each the other's peer; everything crosses from the large one to the small one.
async fn join(big: &Side, far: &Side) -> Result<()> {
    let all = "[{namespace: 'e2e-*'}]";
    for (giver, taker) in [(big, far), (far, big)] {
        let printed = giver.eastway(&["peer", "export", "--config", &giver.config("gateway")]).await?;
        let peer = printed.replace("export: []", &format!("export: {all}"));
        let peer = peer.replace("import: []", &format!("import: {all}"));
        ensure!(peer != printed, "what to exchange has no place in\n{printed}");
        std::fs::write(taker.folder.join("peers/peer.yaml"), peer)?;
    }
    Ok(())
}

/// Endpoints of a service in the large cluster that take connections, as the peer sees it.
async fn ready_there(far: &Side, service: usize) -> Result<u64> {
    let target = format!("/describe?service={}/{}", objects::namespace(service), objects::name(service));
    let description = far.ask(&target).await?;
    let counts = description["candidates"].as_array().into_iter().flatten().map(|one| one["ready"].as_u64());
    Ok(counts.map(Option::unwrap_or_default).sum())
}

/// How long the API server takes to give out all pods to somebody who does nothing with them: no gateway is faster.
async fn given_out(cluster: &Cluster) -> Result<Duration> {
    let all = "/api/v1/pods?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan\
               &allowWatchBookmarks=true&timeoutSeconds=60";
    let started = Instant::now();
    let mut kubectl =
        cluster.kubectl_command(&["get", "--raw", all])?.stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
    let mut read = BufReader::new(kubectl.stdout.take().context("no output")?);
    let mut event = Vec::new();
    loop {
        event.clear();
        ensure!(read.read_until(b'\n', &mut event).await? > 0, "the API server ends its list early");
        // The bookmark is the last of them, and short.
        if event.len() < 1_000 && event.windows(18).any(|word| word == b"initial-events-end") {
            return Ok(started.elapsed());
        }
    }
}

/// Changes one endpoint of one service after the other through the API, and waits until the peer sees it.
async fn changes(big: &Side, far: &Side) -> Result<Vec<Duration>> {
    let _proxy = big.cluster.daemon(
        "kubectl-proxy",
        &proxy()?,
        &["proxy", "--port=8001", "--kubeconfig", &big.cluster.pki().admin().display().to_string()],
    )?;
    let place = big.cluster.place();
    within(PATIENCE, "kubectl proxy listens", async || {
        Ok(http::get(place, local(8001), "/readyz").await?.status == 200)
    })
    .await?;
    let mut took = Vec::new();
    for number in 0..CHANGES {
        let service = number * 97 % SERVICES;
        let (namespace, name) = (objects::namespace(service), objects::slice_name(service));
        let path = format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices/{name}");
        let patch =
            json!({"endpoints": objects::slice_value(service, Some(number % PER_SERVICE))["endpoints"]}).to_string();
        let started = Instant::now();
        let answer = place.run(async move {
            request(local(8001), Method::PATCH, &path, "application/merge-patch+json", patch).await
        });
        ensure!(answer.await?.contains("\"kind\":\"EndpointSlice\""), "the API server refuses the change");
        while ready_there(far, service).await? != PER_SERVICE as u64 - 1 {
            ensure!(started.elapsed() < PATIENCE, "a change is not seen after {PATIENCE:?}");
            tokio::time::sleep(LOOK).await;
        }
        took.push(started.elapsed());
    }
    took.sort_unstable();
    Ok(took)
}

fn proxy() -> Result<String> {
    Ok(eastway_tests::kube::tools::built("kubectl")?.display().to_string())
}

/// What a role's metric says.
async fn metric(side: &Side, port: u16, name: &str) -> Result<f64> {
    let answer = http::get(side.cluster.place(), local(port), "/metrics").await?;
    let value = answer.body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.with_context(|| format!("no {name}"))?.parse().with_context(|| name.to_owned())
}

/// Waits until the controller has written Services and slices of that many imports, and the gateway answers by their
/// names. Imports themselves and their conditions follow.
async fn until_addressed(side: &Side) -> Result<Duration> {
    // Some 20,000 writes, which the API server takes as fast as its machine is.
    within(4 * PATIENCE, format!("{ADDRESSED} imports have an address in {}", side.cluster.name()), async || {
        let addresses = side.ask("/status").await?["services"]["vips"].as_u64().context("no number")?;
        ensure!(addresses >= ADDRESSED as u64, "{addresses} addresses");
        // The first in the order of names, which is that of the controller.
        let name = format!("{}.{}.svc.clusterset.local", objects::name(0), objects::namespace(0));
        let asked = side
            .cluster
            .place()
            .run(async move { Ok(client::query(local(15053), &name, QueryType::A, Duration::from_secs(1)).await?) });
        Ok(!asked.await?.records.is_empty())
    })
    .await
}

/// Starts the cluster and its peer, and has both ready for the gateways.
async fn start(bed: &Bed) -> Result<(Side, Side)> {
    let started = Instant::now();
    let (big, far) = (Options::new("big", 3), Options::new("far", 4));
    let frame = |options: &Options| objects::frame(&options.address.to_string());
    let (of_big, of_far) = (frame(&big), frame(&far));
    let (big, far) = tokio::try_join!(
        bed.bare_cluster(big, of_big.into_iter().chain(objects::services())),
        bed.bare_cluster(far, of_far.into_iter()),
    )?;
    tokio::try_join!(define(&big), define(&far))?;
    let sides = tokio::try_join!(Side::prepare(big), Side::prepare(far))?;
    bed.record("size.prepared_s", seconds(started.elapsed()));
    Ok(sides)
}

bed_tests! {
    /// Ready within 10 s, at most 150 MB, and a change of one endpoint at the other side within 500 ms.
    async fn a_large_cluster_fits(bed) limit 450 {
        let (mut big, mut far) = start(bed).await?;
        let begun = Instant::now();
        let gateway = big.start("gateway")?;
        big.until_ready().await?;
        let ready = begun.elapsed();
        bed.record("size.ready_s", seconds(ready));
        bed.record("size.ready_rss_mb", megabytes(big.memory(gateway)?.0));

        let given_out = given_out(&big.cluster).await?;
        bed.record("size.pods_given_out_s", seconds(given_out));

        let far_gateway = far.start("gateway")?;
        far.until_ready().await?;
        let joining = Instant::now();
        join(&big, &far).await?;
        within(PATIENCE, "the last service crosses", async || Ok(ready_there(&far, SERVICES - 1).await? > 0)).await?;
        bed.record("size.crossed_s", seconds(joining.elapsed()));

        let took = changes(&big, &far).await?;
        let (p50, p99) = (took[CHANGES / 2 - 1], took[CHANGES * 99 / 100 - 1]);
        bed.record("size.change_p50_s", seconds(p50));
        bed.record("size.change_p99_s", seconds(p99));
        let far_controller = far.start("controller")?;
        bed.record("size.addressed_s", seconds(until_addressed(&far).await?));
        bed.record("size.addressed_writes", metric(&far, CONTROLLER.0, "eastway_controller_writes_total").await?);

        let (rss, most) = big.memory(gateway)?;
        for (name, bytes) in [
            ("gateway_rss_mb", rss),
            ("gateway_rss_most_mb", most),
            ("far.gateway_rss_mb", far.memory(far_gateway)?.0),
            ("far.controller_rss_mb", far.memory(far_controller)?.0),
        ] {
            bed.record(&format!("size.{name}"), megabytes(bytes));
        }
        for side in [&mut big, &mut far] {
            side.ensure_running()?;
        }
        let figures: Vec<_> = bed.figures().into_iter().filter(|(name, _)| name.starts_with("size.")).collect();
        println!("{figures:?}");
        ensure!(ready <= READY.max(2 * given_out), "ready after {ready:?}; the API server gives out the pods in {given_out:?}");
        ensure!(most <= RESIDENT, "{} MB resident", megabytes(most));
        ensure!(p99 <= SEEN, "p99 of a change is {p99:?}");
        big.end().await?;
        far.end().await
    }
}

//! The whole path: a workload with an Envoy beside it, its cloud's gateway, a link, the other cloud's gateway, and single
//! pods there. All of it is configured by us alone.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use eastway_tests::lab::files::{self, ServiceSpec};
use eastway_tests::load::{Load, Plan, Record};
use eastway_tests::mesh::{Mesh, MeshBuilder, NAMESPACE, PORT};
use eastway_tests::servers::{Habit, Server};
use eastway_tests::{envoy, lab_test, within};
use serde_json::json;
use tokio::process::Command;

/// Longest wait for what takes a second or two.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// What asks, requests per second.
const RATE: u32 = 200;
/// Requests of one look.
const REQUESTS: u64 = 600;

/// Clouds a and b, where b lets nobody but the workload of [`envoy::ACCOUNT`] in, and pods 11 to 13 of b serve `web`.
pub(crate) async fn mesh() -> Result<Mesh> {
    let mut mesh = MeshBuilder::of(&["a", "b"]).settings("a", &envoy::gateway_settings()).prepare().await?;
    let policy = files::access_policy(NAMESPACE, "everyone", &["*"], &[("a", envoy::ACCOUNT)]);
    mesh.cloud("b").write_policy("everyone", &policy)?;
    mesh.start_gateways().await?;
    mesh.wait_up("a", "b", PATIENCE).await?;
    for pod in [11, 12, 13] {
        mesh.serve("b", "web", pod, Habit::Http).await?;
    }
    Ok(mesh)
}

/// Starts the sidecar among a's pods; the import's address is on its own host from then on.
pub(crate) async fn sidecar(mesh: &mut Mesh, version: &str) -> Result<Plan> {
    let target = envoy::start_sidecar(mesh, "web", version).await?;
    let (_, source) = mesh.client("a");
    let answered = async || mesh.ask("a", target).await.map(|server| server.starts_with("b-1"));
    within(PATIENCE, "an answer through Envoy", answered).await?;
    Ok(Plan { source, target, rate: RATE, size: 1_000 })
}

/// Asks through Envoy; no request may fail.
async fn asked(mesh: &Mesh, plan: Plan) -> Result<Record> {
    let (place, _) = mesh.client("a");
    let load = Load::start(&place, plan);
    within(PATIENCE, "all requests are sent", async || Ok(load.sent() >= REQUESTS)).await?;
    let record = load.stop().await?;
    record.none_failed()?;
    Ok(record)
}

/// The lines of Envoy's hosts of `web`: name, figure and value of each.
async fn hosts(mesh: &Mesh) -> Result<Vec<String>> {
    let socket = mesh.cloud("a").folder().join("shopper/envoy-admin.sock");
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--fail", "--max-time", "2", "--unix-socket"]).arg(socket).arg("http://envoy/clusters");
    let output = curl.output().await?;
    ensure!(output.status.success(), "Envoy's administration does not answer");
    let lines = String::from_utf8(output.stdout)?;
    Ok(lines
        .lines()
        .filter(|line| line.contains("||web.shop.") && line.contains("envoy://"))
        .map(str::to_owned)
        .collect())
}

/// Endpoints that Envoy has taken out.
async fn ejected(mesh: &Mesh) -> Result<usize> {
    Ok(hosts(mesh).await?.iter().filter(|line| line.contains("failed_outlier_check")).count())
}

async fn one_bad_pod(version: &str) -> Result<()> {
    let mut mesh = mesh().await?;
    let plan = sidecar(&mut mesh, version).await?;
    let is_host = |line: &String| line.contains("::health_flags::");
    let three = async || Ok(hosts(&mesh).await?.iter().filter(|line| is_host(line)).count() == 3);
    within(PATIENCE, "Envoy has a host for each pod of b", three).await?;
    let calm = asked(&mesh, plan).await?;
    for pod in ["b-11", "b-12", "b-13"] {
        let share = calm.by_server.get(pod).copied().unwrap_or_default();
        ensure!(share * 6 > calm.ok, "{pod} answered {share} of {}: {:?}", calm.ok, calm.by_server);
    }
    // A pod that answers, and always with an error: nobody but who sees the answers can tell, and it alone goes.
    let broken = mesh.serve("b", "web", 14, Habit::Broken).await?;
    within(PATIENCE, "the bad pod was tried", async || {
        mesh.ask("a", plan.target).await?;
        Ok(broken.accepted() > 0)
    })
    .await?;
    let record = asked(&mesh, plan).await?;
    println!("Envoy {version}: {} requests with a bad pod, by {:?}", record.sent, record.by_server);
    ensure!(record.by_server.len() == 3, "{:?}", record.by_server);
    ensure!(ejected(&mesh).await? == 1, "{:#?}", hosts(&mesh).await?);
    mesh.stop().await
}

/// A pod that is on the list and does not listen.
async fn one_dead_pod(version: &str, protocol: &str) -> Result<()> {
    let mut mesh = mesh().await?;
    let ports = json!({"ports": [{"name": "web", "port": PORT, "appProtocol": protocol}]});
    let dead = mesh.cloud("b").net().pod(14);
    mesh.change_services("b", |services| {
        for spec in services {
            spec.more = ports.clone();
        }
    })?;
    let plan = sidecar(&mut mesh, version).await?;
    mesh.change_services("b", |services| {
        let listed = services.drain(..).map(|spec| spec.endpoint(dead, "v1")).collect();
        *services = listed;
    })?;
    let is_host = |line: &String| line.contains("::health_flags::");
    let four = async || Ok(hosts(&mesh).await?.iter().filter(|line| is_host(line)).count() == 4);
    within(PATIENCE, "Envoy has a host for each pod of b", four).await?;
    let record = asked(&mesh, plan).await?;
    println!("Envoy {version}: {} requests by {protocol} with a dead pod, by {:?}", record.sent, record.by_server);
    ensure!(record.by_server.len() == 3, "{:?}", record.by_server);
    mesh.stop().await
}

/// The only pod there is starts a while after it was put on the list.
async fn one_late_pod(version: &str) -> Result<()> {
    let mut mesh = mesh().await?;
    let plan = sidecar(&mut mesh, version).await?;
    let late = mesh.cloud("b").net().pod(14);
    mesh.change_services("b", |services| {
        let alone = services.drain(..).map(|spec| ServiceSpec::new(NAMESPACE, &spec.name, PORT).endpoint(late, "v1"));
        *services = alone.collect();
    })?;
    within(PATIENCE, "it is ejected", async || {
        let _refused = mesh.ask("a", plan.target).await;
        Ok(ejected(&mesh).await? == 1)
    })
    .await?;
    let pods = mesh.cloud("b").net().pods();
    Server::start(pods, SocketAddr::new(late, PORT), "b-14", Habit::Http).await?;
    // Its ejection takes 30 s.
    let answered = async || Ok(mesh.ask("a", plan.target).await? == "b-14");
    let took = within(Duration::from_secs(10), "it answers", answered).await?;
    println!("Envoy {version}: the only pod answers {took:.1?} after it has started");
    mesh.stop().await
}

lab_test! {
    /// What a gateway cannot reach costs no request and no connection, though Envoy, whose first hop is the gateway, cannot
    /// tell why one ended.
    async fn a_dead_pod_costs_nothing_with_envoy_1_40_0() { one_dead_pod("1.40.0", "http").await }
    async fn a_dead_pod_costs_nothing_with_envoy_1_36_2() { one_dead_pod("1.36.2", "http").await }
    async fn a_dead_pod_costs_no_connection_of_bytes() { one_dead_pod("1.40.0", "tcp").await }

    /// An ejection must not last where it leaves nobody.
    async fn the_only_pod_is_tried_again_with_envoy_1_40_0() { one_late_pod("1.40.0").await }
    async fn the_only_pod_is_tried_again_with_envoy_1_36_2() { one_late_pod("1.36.2").await }

    /// Each pod of the other cloud is a host of its own, and a bad one is ejected while its siblings behind the same
    /// gateway keep serving.
    async fn a_bad_pod_is_ejected_alone_with_envoy_1_40_0() { one_bad_pod("1.40.0").await }
    async fn a_bad_pod_is_ejected_alone_with_envoy_1_36_2() { one_bad_pod("1.36.2").await }

    /// The source is whom the certificate names, wherever its connection comes from.
    async fn who_has_no_sidecar_is_not_let_in() {
        let mut mesh = mesh().await?;
        let target = mesh.target("a", "web").await?;
        // The same host, by the virtual address at the gateway: another account.
        let denied = async || {
            ensure!(mesh.ask("a", target).await.is_err(), "it was let in");
            let page = mesh.cloud("b").metrics(0).await?;
            let counts = page.lines().filter(|line| line.starts_with("eastway_access_denied_total{"));
            Ok(counts.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum::<u64>() > 0)
        };
        within(PATIENCE, "b denies it for who it is", denied).await?;
        sidecar(&mut mesh, "1.40.0").await?;
        mesh.stop().await
    }
}

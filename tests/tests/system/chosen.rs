//! On short clean paths a link may carry what moves much by TLS on TCP, beside QUIC, where that is measured to be faster
//! (ADR 0025): what a user sees of it, and that nothing breaks when the path loses packets.

use std::net::IpAddr;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use eastway::admin::views::{BulkView, LinkView};
use eastway_tests::lab::files::ServiceSpec;
use eastway_tests::mesh::{Mesh, MeshBuilder, NAMESPACE};
use eastway_tests::{lab_test, within};
use serde_json::json;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

/// Longest wait for a decision, which is made once a second, and for a link by TCP.
const SOON: Duration = Duration::from_secs(20);

/// iperf3 in cloud b, known in cloud a.
async fn iperf(mesh: &mut Mesh) -> Result<(Child, IpAddr)> {
    let (place, address) = {
        let net = mesh.cloud("b").net();
        (net.pods().clone(), net.pod(12))
    };
    let mut command = Command::new("iperf3");
    command.args(["-s", "-p", "5201", "-B", &address.to_string()]).stdout(Stdio::null()).kill_on_drop(true);
    let server = place.run(async move { command.spawn().context("start iperf3") }).await?;
    mesh.change_services("b", |services| {
        let ports = json!([{"name": "iperf", "port": 5201}]);
        let spec = ServiceSpec { more: json!({ "ports": ports }), ..ServiceSpec::new(NAMESPACE, "iperf", 1) };
        services.push(spec.endpoint(address, "v1"));
    })?;
    let target = mesh.target("a", "iperf").await?.ip();
    Ok((server, target))
}

/// Moves all it can from cloud a to it for so long; fails if a connection breaks.
fn bulk(mesh: &Mesh, target: IpAddr, seconds: u32) -> JoinHandle<Result<()>> {
    let (place, client) = mesh.client("a");
    let (target, client, seconds) = (target.to_string(), client.to_string(), seconds.to_string());
    place.spawn(async move {
        let mut command = Command::new("iperf3");
        command.args(["-c", &target, "-B", &client, "-p", "5201", "-t", &seconds]).kill_on_drop(true);
        let output = command.output().await.context("run iperf3")?;
        let said = [&output.stdout, &output.stderr].map(|said| String::from_utf8_lossy(said).into_owned()).concat();
        ensure!(output.status.success(), "iperf3: {said}");
        Ok(())
    })
}

/// Streams that the gateway of cloud a opened by `transport`.
async fn opened(mesh: &Mesh, transport: &str) -> Result<u64> {
    let metrics = mesh.cloud("a").metrics(0).await?;
    let name = format!("eastway_link_streams_opened_total{{transport=\"{transport}\"}} ");
    let count = metrics.lines().find_map(|line| line.strip_prefix(&name));
    count.map_or(Ok(0), |count| Ok(count.parse()?))
}

/// The link of a to b by `transport` that takes new streams.
async fn link(mesh: &Mesh, transport: &str) -> Result<Option<LinkView>> {
    let links = mesh.peer("a", "b").await?.links;
    ensure!(links.iter().all(|link| !link.degraded), "nothing is wrong with the path: {links:?}");
    Ok(links.into_iter().find(|link| link.transport == transport && !link.draining))
}

/// What is counted of attempts to open links.
async fn dials(mesh: &Mesh) -> Result<Vec<String>> {
    let metrics = mesh.cloud("a").metrics(0).await?;
    Ok(metrics.lines().filter(|line| line.starts_with("eastway_link_dials_total")).map(str::to_owned).collect())
}

/// What is said of how streams that move much go.
async fn choice(mesh: &Mesh) -> Result<Option<BulkView>> {
    Ok(link(mesh, "quic").await?.and_then(|link| link.bulk))
}

/// Packets of links by TCP that come in are dropped, all or some, in all gateways.
async fn spoil(mesh: &Mesh, some: &str) -> Result<()> {
    for gateway in ["a", "b"].iter().flat_map(|name| mesh.cloud(name).net().gateways()) {
        let script = format!(
            "add table inet spoilt; add chain inet spoilt in {{ type filter hook input priority -10; }}; \
             add rule inet spoilt in tcp dport 15443 {some} drop; add rule inet spoilt in tcp sport 15443 {some} drop"
        );
        let filtering = async move { Command::new("nft").arg(script).output().await.context("run nft") };
        let output = gateway.place.run(filtering).await?;
        ensure!(output.status.success(), "nft: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

lab_test! {
    /// What moves much goes by TCP as soon as a link by TCP is there to measure it by. When packets are lost, new streams
    /// go by QUIC, and what is under way by TCP ends whole. Nothing of it is called degraded.
    async fn what_moves_much_goes_by_tcp_until_packets_are_lost() {
        // Only one side dials: where both do, one of two links goes, and what went by that one says nothing of the other.
        let mut mesh = MeshBuilder::of(&["a", "b"]).private("a").start().await?;
        let (_server, target) = iperf(&mut mesh).await?;
        mesh.settled("a", "b").await?;
        // TCP may have been quicker at the start.
        let at_first = opened(&mesh, "tcp").await?;
        bulk(&mesh, target, 3).await??;
        ensure!(opened(&mesh, "tcp").await? == at_first, "nobody knew that much would move");
        within(SOON, "TCP is there for what moves much", async || {
            Ok(link(&mesh, "tcp").await?.is_some_and(|link| link.role == "bulk"))
        })
        .await?;
        println!("{:?}", choice(&mesh).await?);
        let (before, by_quic) = (opened(&mesh, "tcp").await?, opened(&mesh, "quic").await?);
        let under_way = bulk(&mesh, target, 8);
        within(SOON, "it goes by TCP", async || Ok(opened(&mesh, "tcp").await? >= before + 2)).await?;
        ensure!(opened(&mesh, "quic").await? == by_quic, "some of it went by QUIC");
        within(SOON, "TCP is measured", async || {
            Ok(choice(&mesh).await?.is_some_and(|choice| choice.tcp_bytes_per_second.is_some()))
        })
        .await?;
        println!("{:?}", choice(&mesh).await?);
        spoil(&mesh, "numgen random mod 100 < 2").await?;
        let took = within(SOON, "the loss is seen", async || {
            Ok(choice(&mesh).await?.is_some_and(|choice| choice.transport == "quic" && choice.why.contains("loses packets")))
        })
        .await?;
        println!("seen {took:?} after the first packet was lost");
        let (by_tcp, by_quic) = (opened(&mesh, "tcp").await?, opened(&mesh, "quic").await?);
        under_way.await?.context("what was under way by TCP broke")?;
        bulk(&mesh, target, 1).await??;
        ensure!(opened(&mesh, "tcp").await? == by_tcp && opened(&mesh, "quic").await? >= by_quic + 2, "by TCP again");
        mesh.stop().await
    }

    /// Where TCP does not pass nothing changes, and nothing is said of it but why.
    async fn a_peer_that_tcp_does_not_reach_stays_with_quic() {
        let mut mesh = MeshBuilder::of(&["a", "b"]).private("a").start().await?;
        mesh.settled("a", "b").await?;
        spoil(&mesh, "").await?;
        let (before, at_first) = (dials(&mesh).await?, opened(&mesh, "tcp").await?);
        let (_server, target) = iperf(&mut mesh).await?;
        for _ in 0..2 {
            mesh.settled("a", "b").await?;
        bulk(&mesh, target, 3).await??;
        }
        within(SOON, "it is said why", async || {
            Ok(choice(&mesh).await?.is_some_and(|choice| choice.why == "no connection by TCP"))
        })
        .await?;
        ensure!(opened(&mesh, "tcp").await? == at_first && link(&mesh, "tcp").await?.is_none());
        let peer = mesh.peer("a", "b").await?;
        ensure!(peer.last_error.is_none() && peer.links.len() == 1, "{peer:?}");
        ensure!(dials(&mesh).await? == before, "what nobody depends on was counted");
        mesh.stop().await
    }

    /// Who does not want it says so in the Peer file.
    async fn who_wants_tcp_as_a_fallback_only_gets_no_more() {
        let fallback = json!({"spec": {"transport": "fallback"}});
        let builder = MeshBuilder::of(&["a", "b"]).private("a").peer("a", "b", &fallback).peer("b", "a", &fallback);
        let mut mesh = builder.start().await?;
        let (_server, target) = iperf(&mut mesh).await?;
        for _ in 0..2 {
            mesh.settled("a", "b").await?;
        bulk(&mesh, target, 3).await??;
        }
        ensure!(choice(&mesh).await?.is_none() && mesh.peer("a", "b").await?.links.len() == 1);
        mesh.stop().await
    }
}

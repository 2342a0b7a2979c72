//! Clouds that work: names, bytes, and who may not have them.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use eastway_tests::lab::files;
use eastway_tests::mesh::{Mesh, MeshBuilder, NAMESPACE};
use eastway_tests::servers::{Habit, body};
use eastway_tests::{lab_test, load, within};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

/// Talks to a service from a cloud's client.
async fn talk<T, F>(
    mesh: &Mesh,
    service: &str,
    conversation: impl FnOnce(tokio::net::TcpStream) -> F + Send + 'static,
) -> Result<T>
where
    F: Future<Output = Result<T>> + Send,
    T: Send + 'static,
{
    let target = mesh.target("a", service).await?;
    let (place, source) = mesh.client("a");
    place
        .run(async move {
            let talk = async { conversation(load::connect(source, target).await?).await };
            tokio::time::timeout(Duration::from_secs(10), talk).await.context("no end within 10 s")?
        })
        .await
}

lab_test! {
    /// The main job: a name of another cloud resolves, and bytes arrive unchanged.
    async fn two_clouds_carry_tcp_by_name() {
        let mut mesh = MeshBuilder::of(&["a", "b"]).start().await?;
        mesh.serve("b", "web", 11, Habit::Http).await?;
        let target = mesh.target("a", "web").await?;
        mesh.wait_answer("a", target, "b-11", Duration::from_secs(5)).await?;
        let load = mesh.load("a", target, 200);
        within(Duration::from_secs(10), "400 answers", async || Ok(load.so_far().ok >= 400)).await?;
        load.stop().await?.none_failed()?;
        // In its own cloud the same name leads to the same service.
        let target = mesh.target("b", "web").await?;
        ensure!(mesh.ask("b", target).await? == "b-11");
        mesh.stop().await
    }

    /// Optimistic opening must not change who speaks first, and a silent client is a client too.
    async fn servers_that_speak_first_and_silent_clients_work() {
        let mut mesh = MeshBuilder::of(&["a", "b"]).start().await?;
        mesh.serve("b", "greeter", 11, Habit::Greeter).await?;
        let greeting = talk(&mesh, "greeter", |stream| async move {
            let mut stream = BufReader::new(stream);
            let mut line = String::new();
            stream.read_line(&mut line).await?;
            stream.write_all(b"hello").await?;
            let mut echo = [0; 5];
            stream.read_exact(&mut echo).await?;
            ensure!(&echo == b"hello");
            Ok(line)
        }).await?;
        ensure!(greeting == "b-11\n", "{greeting:?}");
        mesh.stop().await
    }

    /// A client that has finished still gets its answer, and learns when the server has finished.
    async fn half_close_is_kept_both_ways() {
        let mut mesh = MeshBuilder::of(&["a", "b"]).start().await?;
        mesh.serve("b", "collector", 11, Habit::HalfClose).await?;
        talk(&mesh, "collector", |mut stream| async move {
            let sent = body(7, 3_000_000);
            stream.write_all(&sent).await?;
            stream.shutdown().await?;
            let mut came = Vec::new();
            stream.read_to_end(&mut came).await?;
            ensure!(came == sent, "{} of {} bytes came back", came.len(), sent.len());
            Ok(())
        }).await?;
        mesh.stop().await
    }

    /// One stalled stream must not hold others up.
    async fn a_client_that_stops_reading_stalls_nobody_else() {
        let mut mesh = MeshBuilder::of(&["a", "b"]).start().await?;
        mesh.serve("b", "flood", 11, Habit::Flood).await?;
        mesh.serve("b", "web", 12, Habit::Http).await?;
        let target = mesh.target("a", "web").await?;
        mesh.wait_answer("a", target, "b-12", Duration::from_secs(5)).await?;
        let flood = mesh.target("a", "flood").await?;
        let (place, source) = mesh.client("a");
        let stalled = place.run(async move {
            let mut streams = Vec::new();
            for _ in 0..20 {
                let mut stream = load::connect(source, flood).await?;
                stream.read_exact(&mut [0; 1000]).await?;
                streams.push(stream);
            }
            Ok(streams)
        }).await?;
        let load = mesh.load("a", target, 100);
        within(Duration::from_secs(10), "200 answers", async || Ok(load.so_far().ok >= 200)).await?;
        load.stop().await?.none_failed()?;
        drop(stalled);
        mesh.stop().await
    }

    /// P5, I7: what is not exported cannot be named from outside, and looks like what does not exist.
    async fn p5_what_is_not_exported_does_not_exist_for_peers() {
        let mut mesh = MeshBuilder::of(&["a", "b"]).start().await?;
        mesh.serve("b", "web", 11, Habit::Http).await?;
        mesh.serve("b", "secret", 12, Habit::Http).await?;
        mesh.change_services("b", |services| {
            services.iter_mut().filter(|spec| spec.name == "secret").for_each(|spec| spec.export = false);
        })?;
        mesh.target("a", "web").await?;
        within(Duration::from_secs(5), "secret is unknown", async || {
            let error = mesh.resolve("a", "secret").await.err().context("it has an address")?;
            Ok(format!("{error:#}").contains("NXDOMAIN"))
        }).await?;
        ensure!(mesh.imports("a", "b").await? == ["web"]);
        mesh.stop().await
    }

    /// Deny by default: without a rule at the owner nobody from another cluster gets in, and with it at once.
    async fn access_is_denied_until_the_owner_allows_it() {
        let mut mesh = MeshBuilder::of(&["a", "b"]).start().await?;
        mesh.serve("b", "web", 11, Habit::Http).await?;
        let target = mesh.target("a", "web").await?;
        mesh.wait_answer("a", target, "b-11", Duration::from_secs(5)).await?;
        let somebody = files::access_policy(NAMESPACE, "everyone", &["*"], &[("a", "somebody-else")]);
        mesh.cloud("b").write_policy("everyone", &somebody)?;
        within(Duration::from_secs(5), "a is denied", async || Ok(mesh.ask("a", target).await.is_err())).await?;
        let metrics = mesh.cloud("b").metrics(0).await?;
        ensure!(metrics.contains("denied"), "no denial is counted:\n{metrics}");
        // Local clients are not asked.
        let local = mesh.target("b", "web").await?;
        ensure!(mesh.ask("b", local).await? == "b-11");
        let client = files::access_policy(NAMESPACE, "everyone", &["*"], &[("a", "client")]);
        mesh.cloud("b").write_policy("everyone", &client)?;
        mesh.wait_answer("a", target, "b-11", Duration::from_secs(5)).await?;
        mesh.stop().await
    }

    /// A cluster that nothing can be opened towards takes part both ways, over the links that it dials.
    async fn a_private_cluster_exports_and_imports() {
        let mut mesh = MeshBuilder::of(&["a", "b", "c"]).private("c").start().await?;
        mesh.cloud("c").net().forbid_inbound().await?;
        mesh.serve("a", "in-a", 11, Habit::Http).await?;
        mesh.serve("c", "in-c", 11, Habit::Http).await?;
        for other in ["a", "b"] {
            let target = mesh.target(other, "in-c").await?;
            mesh.wait_answer(other, target, "c-11", Duration::from_secs(5)).await?;
            ensure!(mesh.peer(other, "c").await?.links.iter().all(|link| !link.dialled), "{other} dialled c");
        }
        let target = mesh.target("c", "in-a").await?;
        mesh.wait_answer("c", target, "a-11", Duration::from_secs(5)).await?;
        mesh.stop().await
    }

    /// The same service in both clouds: local first, the other when nothing local is left, and back.
    async fn local_endpoints_come_first_and_remote_ones_take_over() {
        let mut mesh = MeshBuilder::of(&["a", "b"]).start().await?;
        mesh.serve("a", "web", 11, Habit::Http).await?;
        mesh.serve("b", "web", 12, Habit::Http).await?;
        let target = mesh.target("a", "web").await?;
        mesh.wait_answer("a", target, "a-11", Duration::from_secs(5)).await?;
        within(Duration::from_secs(5), "b's part is imported", async || Ok(mesh.imports("a", "b").await? == ["web"])).await?;
        let load = mesh.load("a", target, 200);
        let drain = json!({"draining": true});
        mesh.change_services("a", |services| services[0].endpoints[0].more = drain)?;
        within(Duration::from_secs(5), "b takes over", async || Ok(load.so_far().by_server.contains_key("b-12"))).await?;
        mesh.change_services("a", |services| services[0].endpoints[0].more = serde_json::Value::Null)?;
        mesh.wait_answer("a", target, "a-11", Duration::from_secs(5)).await?;
        load.stop().await?.none_failed()?;
        mesh.stop().await
    }
}

//! Who may connect: rules that are tried before they are enforced, and dials that nobody waits for any more.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use eastway_tests::lab::files;
use eastway_tests::mesh::{Mesh, MeshBuilder, NAMESPACE, PORT};
use eastway_tests::servers::Habit;
use eastway_tests::{lab_test, load, within};
use serde_json::json;
use socket2::SockRef;

/// Sum of the series of a metric whose labels are all of `labels`.
async fn total(mesh: &Mesh, cloud: &str, name: &str, labels: &[&str]) -> Result<f64> {
    let metrics = mesh.cloud(cloud).metrics(0).await?;
    let lines = metrics.lines().filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{')));
    let lines = lines.filter(|line| labels.iter().all(|label| line.contains(label)));
    Ok(lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum())
}

lab_test! {
    /// A rule in dry-run mode, of one policy or of the whole cluster, stops nobody, and says whom it would stop.
    async fn a_dry_run_lets_through_and_tells_what_it_would_refuse() {
        let mut mesh = MeshBuilder::of(&["a", "b"]).start().await?;
        mesh.serve("a", "in-a", 12, Habit::Http).await?;
        mesh.serve("b", "web", 11, Habit::Http).await?;
        let target = mesh.target("a", "web").await?;
        mesh.target("b", "in-a").await?;
        mesh.wait_answer("a", target, "b-11", Duration::from_secs(5)).await?;
        let denied = async |dry_run: &str| {
            let labels = [r#"source_cluster="a""#, r#"destination_service="web""#, &format!("dry_run=\"{dry_run}\"")];
            total(&mesh, "b", "eastway_access_denied_total", &labels).await
        };
        ensure!(denied("true").await? + denied("false").await? == 0.0, "nobody was denied yet");

        let mut rule = files::access_policy(NAMESPACE, "everyone", &["*"], &[("a", "somebody-else")]);
        files::merge(&mut rule, &json!({"spec": {"dryRun": true}}));
        mesh.cloud("b").write_policy("everyone", &rule)?;
        within(Duration::from_secs(5), "the rule is tried", async || {
            ensure!(mesh.ask("a", target).await? == "b-11", "a dry run must stop nobody");
            Ok(denied("true").await? > 0.0)
        }).await?;
        let log = mesh.cloud("b").logs();
        let line = log.lines().find(|line| line.contains("dry run, let through"));
        ensure!(line.is_some_and(|line| line.contains("shop/web") && line.contains("a/shop/client")), "{line:?} {log}");
        let (_, said) = mesh.cloud("b").command(0, &["check"]).await?;
        ensure!(!said.contains("EW601"), "nobody was denied: {said}");

        files::merge(&mut rule, &json!({"spec": {"dryRun": null}}));
        mesh.cloud("b").write_policy("everyone", &rule)?;
        within(Duration::from_secs(15), "the rule is enforced, and that is counted", async || {
            Ok(mesh.ask("a", target).await.is_err() && denied("false").await? > 0.0)
        }).await?;

        // The whole cluster on trial, whatever its policies say.
        let main = mesh.cloud("b").main_file(0);
        let mut value = mesh.cloud("b").main_value(0)?;
        files::merge(&mut value, &json!({"authorization": "dryRun"}));
        files::write(&main, &value)?;
        mesh.wait_answer("a", target, "b-11", Duration::from_secs(5)).await?;
        mesh.stop().await
    }

    /// A client that gives up while its endpoint is being dialled leaves no dial behind.
    async fn a_dial_that_nobody_waits_for_is_given_up() {
        let mut mesh = MeshBuilder::of(&["a", "b"]).start().await?;
        mesh.serve("a", "in-a", 12, Habit::Http).await?;
        // Nobody has this address: SYN after SYN goes unanswered, for as long as somebody waits.
        let nobody = mesh.cloud("b").net().pod(99);
        mesh.change_services("b", |services| {
            services.push(files::ServiceSpec::new(NAMESPACE, "lost", PORT).endpoint(nobody, "v1"));
        })?;
        let target = mesh.target("a", "lost").await?;
        let in_flight = async || {
            let (_, said) = mesh.cloud("b").command(0, &["endpoints", "-o", "json"]).await?;
            let view: serde_json::Value = serde_json::from_str(&said)?;
            let lost = view["items"].as_array().and_then(|all| all.iter().find(|one| one["service"] == "lost"));
            lost.and_then(|lost| lost["inFlight"].as_u64()).context("no such endpoint")
        };
        let (place, source) = mesh.client("a");
        let given_up = async || total(&mesh, "b", "eastway_stream_requests_total", &[r#"reason="CANCELLED""#]).await;
        // On a busy machine a dial may time out before the client is gone: then with another client.
        within(Duration::from_secs(40), "a dial is given up", async || {
            let client = place.run(async move { Ok(load::connect(source, target).await?) }).await?;
            within(Duration::from_secs(5), "the endpoint is dialled", async || Ok(in_flight().await? == 1)).await?;
            SockRef::from(&client).set_linger(Some(Duration::ZERO))?;
            drop(client);
            within(Duration::from_secs(5), "nobody dials it any more", async || Ok(in_flight().await? == 0)).await?;
            Ok(given_up().await? > 0.0)
        }).await?;
        mesh.stop().await
    }
}

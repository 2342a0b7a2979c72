//! Clouds that do not accept each other, and what their operators see.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use eastway_tests::mesh::{Mesh, MeshBuilder};
use eastway_tests::{eventually, lab_test, within};
use serde_json::{Value, json};

/// The value of a counter whose labels are all of `labels`.
async fn count(mesh: &Mesh, cloud: &str, name: &str, labels: &[&str]) -> Result<f64> {
    let metrics = mesh.cloud(cloud).metrics(0).await?;
    let lines = metrics.lines().filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{')));
    let line = lines.filter(|line| labels.iter().all(|label| line.contains(label))).find_map(|line| {
        let (_, value) = line.rsplit_once(' ')?;
        value.parse().ok()
    });
    Ok(line.unwrap_or(0.0))
}

/// What `eastway check` says at `cloud`, by code.
async fn finding(mesh: &Mesh, cloud: &str, code: &str) -> Result<Option<Value>> {
    let (_, output) = mesh.cloud(cloud).command(0, &["check", "-o", "json"]).await?;
    let report: Value = serde_json::from_str(&output).with_context(|| output.clone())?;
    let findings = report["findings"].as_array().cloned().unwrap_or_default();
    Ok(findings.into_iter().find(|finding| finding["code"] == code))
}

lab_test! {
    /// A wrong pin is counted, logged and named at both sides: who refuses, and who is refused.
    async fn a_wrong_pin_is_told_apart_at_both_sides() {
        let wrong = json!({"spec": {"pins": [format!("sha256:{}", "0".repeat(64))]}});
        let mut mesh = MeshBuilder::of(&["a", "b"]).peer("a", "b", &wrong).prepare().await?;
        mesh.start_gateways().await?;
        // a refuses b, whoever dials.
        for (cloud, name, labels) in [
            ("a", "eastway_link_dials_total", &["peer=\"b\"", "reason=\"rejected\""][..]),
            ("a", "eastway_handshakes_refused_total", &["reason=\"PEER_IDENTITY_CONFLICT\""][..]),
            ("b", "eastway_link_dials_total", &["peer=\"a\"", "reason=\"refused\""][..]),
            ("b", "eastway_handshakes_refused_total", &["reason=\"REFUSED_US\""][..]),
        ] {
            eventually(format!("{cloud} counts {name} {labels:?}"), async || {
                Ok(count(&mesh, cloud, name, labels).await? > 0.0)
            }).await?;
        }
        // b's operator learns that it is a that refuses, and what b shows of itself.
        // Each redial is told anew, and one may fail in another way: the close of a refusal can be lost.
        let pin = mesh.cloud("b").pin().to_string();
        eventually("b is told that a refuses what it shows", async || {
            let found = finding(&mesh, "b", "EW407").await?;
            let message = found.as_ref().and_then(|found| found["message"].as_str()).unwrap_or_default();
            Ok(message.contains(&pin) && message.contains("spiffe://b"))
        }).await?;
        // a's operator learns which key b has.
        let found = finding(&mesh, "a", "EW401").await?;
        let message = found.as_ref().and_then(|found| found["message"].as_str()).unwrap_or_default().to_owned();
        ensure!(message.contains(&pin), "{found:?}");
        // The log tells it once, not with each redial.
        let log = mesh.cloud("b").logs();
        let lines = log.lines().filter(|line| line.contains("no link to the peer")).count();
        ensure!((1..=4).contains(&lines), "{lines} lines about dials:\n{log}");
        ensure!(mesh.cloud("a").logs().contains("refused a link"), "{}", mesh.cloud("a").logs());
        mesh.stop().await
    }

    /// A link that ends is counted by its reason at both sides.
    async fn links_that_end_are_counted_by_reason() {
        let mesh = MeshBuilder::of(&["a", "b"]).start().await?;
        ensure!(count(&mesh, "a", "eastway_link_dials_total", &["peer=\"b\"", "reason=\"connected\""]).await?
            + count(&mesh, "b", "eastway_link_dials_total", &["peer=\"a\"", "reason=\"connected\""]).await? > 0.0);
        let wrong = json!({"spec": {"pins": [format!("sha256:{}", "0".repeat(64))]}});
        let mut file = eastway_tests::lab::files::peer("b", &mesh.cloud("b").advertised(), mesh.cloud("b").pin(), &[]);
        eastway_tests::lab::files::merge(&mut file, &wrong);
        mesh.cloud("a").write_peer("b", &file)?;
        let closed = "eastway_links_closed_total";
        within(Duration::from_secs(5), "both count the end", async || {
            let a = count(&mesh, "a", closed, &["peer=\"b\"", "reason=\"PEER_IDENTITY_CONFLICT\""]).await?;
            let b = count(&mesh, "b", closed, &["peer=\"a\"", "reason=\"PEER_IDENTITY_CONFLICT\""]).await?;
            Ok(a > 0.0 && b > 0.0)
        }).await?;
        within(Duration::from_secs(5), "b's log tells it", async || Ok(mesh.cloud("b").logs().contains("link lost"))).await?;
        mesh.stop().await
    }
}

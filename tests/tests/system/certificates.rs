//! Certificates that end and CA keys that are replaced while streams are open.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use eastway::admin::views::LinkView;
use eastway_tests::lab::files;
use eastway_tests::mesh::{Mesh, MeshBuilder, NAMESPACE};
use eastway_tests::servers::Habit;
use eastway_tests::{lab_test, within};
use serde_json::json;

use crate::restart::Conversation;

/// Until certificates of a minute have been replaced, which happens at two thirds of their life.
const RENEWED: Duration = Duration::from_secs(75);

/// The one link that `from` has to `to`.
async fn link(mesh: &Mesh, from: &str, to: &str) -> Result<LinkView> {
    let mut links = mesh.peer(from, to).await?.links;
    ensure!(links.len() == 1, "{} links", links.len());
    links.pop().context("no link")
}

/// A step of `eastway ca rotate` in a cloud.
pub(crate) async fn rotate(mesh: &Mesh, cloud: &str, step: &[&str]) -> Result<()> {
    let (code, said) = mesh.cloud(cloud).command(0, &[&["ca", "rotate"], step].concat()).await?;
    ensure!(code == Some(0), "ca rotate {step:?}: {said}");
    Ok(())
}

/// What `eastway peer export` says peers have to pin.
pub(crate) async fn pins(mesh: &Mesh, cloud: &str) -> Result<Vec<String>> {
    let (code, said) = mesh.cloud(cloud).command(0, &["peer", "export"]).await?;
    ensure!(code == Some(0), "peer export: {said}");
    let pins = said.lines().filter_map(|line| line.trim().strip_prefix("- \"sha256:"));
    Ok(pins.map(|rest| format!("sha256:{}", rest.trim_end_matches('"'))).collect())
}

/// Writes the Peer file that `at` has for `of`, with these pins.
pub(crate) fn pin(mesh: &Mesh, at: &str, of: &str, pins: &[String]) -> Result<()> {
    let target = mesh.cloud(of);
    let mut file = files::peer(of, &target.advertised(), target.pin(), &[NAMESPACE]);
    files::merge(&mut file, &json!({"spec": {"pins": pins}}));
    mesh.cloud(at).write_peer(of, &file)
}

/// Waits until the running gateway's certificate is of the CA with this key.
async fn wait_issued_by(mesh: &Mesh, cloud: &str, pin: &str) -> Result<Duration> {
    within(Duration::from_secs(20), format!("{cloud} has a certificate of {pin}"), async || {
        let identity = mesh.cloud(cloud).status(0).await?.identity.context("no certificate")?;
        Ok(identity.pin == pin)
    })
    .await
}

fn now_ms() -> Result<u64> {
    Ok(u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?)
}

lab_test! {
    /// A replica that starts after a rotation still knows those from before it, and packets that come to it are handed
    /// over: a NAT that rebinds to it costs nothing.
    async fn f27_replicas_from_before_and_after_a_rotation_hand_packets_over() {
        let siblings = json!({"replicas": {"siblings": ["10.244.0.1:15442", "10.244.0.2:15442"]}});
        let mesh = MeshBuilder::of(&["a", "b"]).replicas("b", 2).settings("b", &siblings).relay("a", "b", 27);
        let mut mesh = mesh.prepare().await?;
        mesh.cloud_mut("a").start_gateway(0).await?;
        mesh.cloud_mut("b").start_gateway(0).await?;
        mesh.serve("b", "web", 11, Habit::Http).await?;
        let target = mesh.target("a", "web").await?;
        mesh.wait_answer("a", target, "b-11", Duration::from_secs(10)).await?;

        rotate(&mesh, "b", &["begin"]).await?;
        let mut file = files::peer("b", &[mesh.relay("a", "b").address().to_string()], mesh.cloud("b").pin(), &[NAMESPACE]);
        files::merge(&mut file, &json!({"spec": {"pins": pins(&mesh, "b").await?}}));
        mesh.cloud("a").write_peer("b", &file)?;
        rotate(&mesh, "b", &["activate"]).await?;
        let new = pins(&mesh, "b").await?.first().context("no pin")?.clone();
        mesh.cloud_mut("b").start_gateway(1).await?;
        mesh.cloud_mut("b").wait_ready(1).await?;
        within(Duration::from_secs(10), "it has a certificate of the new CA", async || {
            Ok(mesh.cloud("b").status(1).await?.identity.context("no certificate")?.pin == new)
        }).await?;
        within(Duration::from_secs(5), "the replicas know each other", async || {
            Ok(mesh.cloud("b").status(0).await?.replicas.len() == 1 && mesh.cloud("b").status(1).await?.replicas.len() == 1)
        }).await?;

        let since = async |mesh: &Mesh| -> Result<Vec<u64>> {
            let first = mesh.cloud("b").status(1).await?.replicas;
            let first = &first.first().context("no other replica")?.replica;
            let links = mesh.peer("a", "b").await?.links;
            Ok(links.iter().filter(|link| link.replica == *first && !link.draining).map(|link| link.since).collect())
        };
        // Both sides dial: a link that is too many goes after a while.
        within(Duration::from_secs(60), "one link is left", async || Ok(since(&mesh).await?.len() == 1)).await?;
        let before = since(&mesh).await?;
        let load = mesh.load("a", target, 100);
        let wan = mesh.lab().wan().clone();
        for round in 1..=2_u64 {
            let net = mesh.cloud("b").net();
            mesh.relay("a", "b").set_target((net.gateways()[usize::try_from(round % 2)?].wan, files::LINK_PORT).into());
            ensure!(mesh.relay("a", "b").rebind(&wan).await? >= 1);
            let until = Duration::from_secs(3 * round);
            within(Duration::from_secs(10), "3 s of load", async || Ok(load.elapsed() > until)).await?;
        }
        load.stop().await?.none_failed()?;
        ensure!(since(&mesh).await? == before, "the link was replaced");
        mesh.stop().await
    }

    /// F27: certificates of a minute are renewed on both sides, and one side's CA gets another key, under one
    /// TCP stream that loses nothing and one link that stays the same.
    async fn f27_a_stream_outlives_its_certificates_and_the_key_of_their_ca() {
        let short = json!({"trust": {"leafTtl": "1m"}});
        // Only one side dials: where both do, a stream may be on the link that is given up, which then lives as long.
        let mesh = MeshBuilder::of(&["a", "b"]).private("a").settings("a", &short).settings("b", &short);
        let mut mesh = mesh.start().await?;
        mesh.serve("b", "echo", 11, Habit::Echo).await?;
        within(Duration::from_secs(60), "one link is left", async || {
            Ok(link(&mesh, "a", "b").await.is_ok() && link(&mesh, "b", "a").await.is_ok())
        }).await?;
        mesh.settled("a", "b").await?;
        let conversation = Conversation::start(&mesh, "a", "echo").await?;
        let first = link(&mesh, "a", "b").await?;
        let first_end = first.certificate_not_after.context("no certificate")?;

        rotate(&mesh, "a", &["begin"]).await?;
        let both = pins(&mesh, "a").await?;
        ensure!(both.len() == 2, "{both:?}");
        pin(&mesh, "b", "a", &both)?;
        rotate(&mesh, "a", &["activate"]).await?;
        let activated = pins(&mesh, "a").await?;
        let new = activated.first().context("no pin")?;
        ensure!(both.first() != Some(new), "{both:?} {activated:?}");
        wait_issued_by(&mesh, "a", new).await?;
        rotate(&mesh, "a", &["finish", "--force"]).await?;
        pin(&mesh, "b", "a", &pins(&mesh, "a").await?)?;

        within(RENEWED, "the certificate of b that the link began with has ended", async || {
            Ok(now_ms()? > first_end && link(&mesh, "a", "b").await?.certificate_not_after > Some(first_end))
        }).await?;
        let last = link(&mesh, "a", "b").await?;
        ensure!((last.since, &last.replica) == (first.since, &first.replica), "another link: {first:?} {last:?}");
        let rounds = conversation.stop().await?;
        ensure!(rounds > 800, "{rounds} rounds");
        mesh.stop().await
    }
}

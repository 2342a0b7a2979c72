//! Two clouds that nothing can be opened towards, and a third that relays for them.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use eastway_tests::lab::files;
use eastway_tests::mesh::{Mesh, MeshBuilder, NAMESPACE};
use eastway_tests::servers::Habit;
use eastway_tests::{lab_test, load, within};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const SOON: Duration = Duration::from_secs(10);
/// Services of a and b, by names that are nowhere else.
const IN_A: &str = "quiet-orders";
const IN_B: &str = "silent-ledger";

fn allow(more: &Value) -> Value {
    let mut pair = json!({"between": ["a", "b"]});
    files::merge(&mut pair, more);
    json!({"relay": {"allow": [pair]}})
}

/// a and b, shut off, and c, which they dial and which learns nothing of their services. `relay`: what c's file says of it.
async fn shut_off(relay: &Value, b_via: bool) -> Result<Mesh> {
    started(MeshBuilder::of(&["a", "b", "c"]).private("a").private("b"), relay, b_via).await
}

async fn started(clouds: MeshBuilder, relay: &Value, b_via: bool) -> Result<Mesh> {
    let nothing = json!({"spec": {"export": [], "import": []}});
    let via = |is: bool| if is { json!({"spec": {"addresses": [], "via": "c"}}) } else { json!({}) };
    let lines = json!({"log": {"access": "all"}});
    let mut mesh = clouds
        .settings("a", &lines)
        .settings("b", &lines)
        .settings("c", relay)
        .peer("a", "b", &via(true))
        .peer("b", "a", &via(b_via))
        .peer("a", "c", &nothing)
        .peer("b", "c", &nothing)
        .prepare()
        .await?;
    for cloud in ["a", "b"] {
        mesh.cloud(cloud).net().forbid_inbound().await?;
    }
    mesh.serve("a", IN_A, 11, Habit::Http).await?;
    mesh.serve("b", IN_B, 12, Habit::Http).await?;
    mesh.start_gateways().await?;
    for cloud in ["a", "b"] {
        mesh.wait_up(cloud, "c", SOON).await?;
    }
    Ok(mesh)
}

/// Waits until the links of `from` to `to` that take streams are carried by `transport` alone.
async fn carried_by(mesh: &Mesh, from: &str, to: &str, transport: &str) -> Result<Duration> {
    within(Duration::from_secs(20), format!("{from} reaches {to} by {transport} alone"), async || {
        let links = mesh.peer(from, to).await?.links;
        let mut links = links.iter().filter(|link| !link.draining).peekable();
        Ok(links.peek().is_some() && links.all(|link| link.transport == transport))
    })
    .await
}

/// Both reach each other.
async fn both_ways(mesh: &Mesh) -> Result<()> {
    for (from, service, server) in [("a", IN_B, "b-12"), ("b", IN_A, "a-11")] {
        let target = mesh.target(from, service).await?;
        mesh.wait_answer(from, target, server, SOON).await?;
    }
    Ok(())
}

/// Whether `words` are anywhere in the memory of a process.
fn in_memory(pid: u32, words: &[&str]) -> Result<BTreeMap<String, bool>> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    let mut found: BTreeMap<String, bool> = words.iter().map(|word| ((*word).to_owned(), false)).collect();
    let mut looked_at = 0;
    for line in maps.lines() {
        let mut fields = line.split_whitespace();
        let (range, rights) = (fields.next().context("no range")?, fields.next().context("no rights")?);
        if !rights.starts_with("rw") {
            continue;
        }
        let (from, to) = range.split_once('-').context("no range")?;
        let (from, to) = (u64::from_str_radix(from, 16)?, u64::from_str_radix(to, 16)?);
        let mut part = vec![0; usize::try_from(to - from)?];
        // What cannot be read is none of its own memory: a device, or gone by now.
        if memory.read_exact_at(&mut part, from).is_err() {
            continue;
        }
        looked_at += part.len();
        for (word, is_there) in &mut found {
            *is_there = *is_there || part.windows(word.len()).any(|window| window == word.as_bytes());
        }
    }
    ensure!(looked_at > 4 << 20, "only {looked_at} bytes could be read");
    Ok(found)
}

async fn findings(mesh: &Mesh, cloud: &str) -> Result<BTreeMap<String, String>> {
    let (_, output) = mesh.cloud(cloud).command(0, &["check", "-o", "json"]).await?;
    let report: Value = serde_json::from_str(&output).with_context(|| format!("check prints {output}"))?;
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap_or_default().to_owned();
    let findings = report["findings"].as_array().context("no findings")?;
    Ok(findings.iter().map(|finding| (text(finding, "code"), text(finding, "message"))).collect())
}

lab_test! {
    /// Requests cross both ways, and who relays knows two names and a number of bytes; it may be started again.
    async fn two_shut_off_clouds_meet_at_a_third_that_learns_nothing() {
        let mut mesh = shut_off(&allow(&json!({})), true).await?;
        both_ways(&mesh).await?;
        for (from, to, service) in [("a", "b", IN_B), ("b", "a", IN_A)] {
            carried_by(&mesh, from, to, "relay").await?;
            ensure!(mesh.peer(from, to).await?.links.iter().all(|link| link.via.as_deref() == Some("c")));
            let load = mesh.load(from, mesh.target(from, service).await?, 100);
            within(SOON, "2 s of load", async || Ok(load.elapsed() > Duration::from_secs(2))).await?;
            let record = load.stop().await?;
            println!("{from} to {to}: p99 {:?}", record.p99());
            record.none_failed()?;
        }
        for (cloud, direction) in [("a", "outbound"), ("b", "inbound")] {
            let log = mesh.cloud(cloud).gateway(0)?.log_tail(1 << 22);
            let lines: Vec<&str> = log.lines().filter(|line| line.contains(&format!("direction=\"{direction}\""))).collect();
            ensure!(!lines.is_empty() && lines.iter().all(|line| line.contains("path=\"relay\"")), "{cloud}: {lines:#?}");
        }
        let codes = findings(&mesh, "a").await?;
        ensure!(codes.get("EW313").is_some_and(|text| text == "linked by way of c only"), "{codes:#?}");
        let (_, peers) = mesh.cloud("a").command(0, &["peers"]).await?;
        ensure!(peers.contains("relay via c"), "{peers}");

        let status = mesh.cloud("c").status(0).await?.relay.into_iter().next().context("c relays for nobody")?;
        ensure!(status.between == ["a", "b"] && status.streams > 0 && status.bytes.iter().all(|bytes| *bytes > 100_000), "{status:?}");
        let (_, shown) = mesh.cloud("c").command(0, &["status"]).await?;
        ensure!(shown.contains("a and b: "), "{shown}");
        let metrics = mesh.cloud("c").metrics(0).await?;
        let series = "eastway_relayed_bytes_total{source_cluster=\"a\",destination_cluster=\"b\"}";
        ensure!(metrics.contains(series), "no {series} in:\n{metrics}");

        // a knows both services, so this finds what is there; c knows the clusters and neither service.
        let words = [IN_A, IN_B, "between"];
        let in_a = in_memory(mesh.cloud("a").gateway(0)?.pid(), &words)?;
        ensure!(in_a[IN_A] && in_a[IN_B], "{in_a:?}");
        let in_c = in_memory(mesh.cloud("c").gateway(0)?.pid(), &words)?;
        ensure!(!in_c[IN_A] && !in_c[IN_B] && in_c["between"], "{in_c:?}");
        let log = mesh.cloud("c").gateway(0)?.log_tail(1 << 22);
        ensure!(!log.contains(IN_A) && !log.contains(IN_B), "{log}");

        mesh.cloud_mut("c").kill_gateway(0).await?;
        mesh.wait_down("a", "b", SOON).await?;
        mesh.cloud_mut("c").start_gateway(0).await?;
        let begun = Instant::now();
        both_ways(&mesh).await?;
        println!("back {:?} after c was started again", begun.elapsed());
        mesh.stop().await
    }

    /// A direct way takes over as soon as there is one, and the relay when it is gone: no stream breaks when it gets better.
    async fn a_direct_way_replaces_the_relay_and_the_relay_it() {
        // Gateway b listens, and nobody may come; a knows no address of it.
        let clouds = MeshBuilder::of(&["a", "b", "c"]).private("a");
        let mut mesh = started(clouds, &allow(&json!({})), true).await?;
        mesh.serve("b", "echo", 13, Habit::Echo).await?;
        both_ways(&mesh).await?;
        carried_by(&mesh, "a", "b", "relay").await?;
        let echo = mesh.target("a", "echo").await?;
        let (place, source) = mesh.client("a");
        let mut held = place.run(async move { Ok(load::connect(source, echo).await?) }).await?;
        let mut says = async |text: &[u8]| {
            held.write_all(text).await?;
            let mut back = vec![0; text.len()];
            tokio::time::timeout(SOON, held.read_exact(&mut back)).await.context("no echo")??;
            ensure!(back == text);
            Ok(())
        };
        says(b"by way of c").await?;
        let load = mesh.load("a", mesh.target("a", IN_B).await?, 100);

        mesh.cloud("b").net().allow_inbound().await?;
        let b = mesh.cloud("b");
        let address = format!("{}:{}", b.net().gateways()[0].wan, files::LINK_PORT);
        let mut file = files::peer("b", &[address], b.pin(), &[NAMESPACE]);
        files::merge(&mut file, &json!({"spec": {"via": "c"}}));
        mesh.cloud("a").write_peer("b", &file)?;
        let took = carried_by(&mesh, "a", "b", "quic").await?;
        println!("direct {took:?} after b's address was known");
        carried_by(&mesh, "b", "a", "quic").await?;
        says(b"still there").await?;
        let moved = load.so_far().ok;
        within(SOON, "more answers", async || Ok(load.so_far().ok > moved + 100)).await?;
        load.stop().await?.none_failed()?;
        says(b"and now").await?;
        drop(held);
        within(SOON, "c relays nothing", async || {
            Ok(mesh.cloud("c").status(0).await?.relay.iter().all(|pair| pair.streams == 0))
        })
        .await?;

        mesh.cloud("b").net().block_from(mesh.cloud("a").net()).await?;
        mesh.cloud("a").net().block_from(mesh.cloud("b").net()).await?;
        let begun = Instant::now();
        carried_by(&mesh, "a", "b", "relay").await?;
        both_ways(&mesh).await?;
        println!("relayed again {:?} after the direct way was cut", begun.elapsed());
        mesh.stop().await
    }

    /// Whoever has not agreed is named, at the end that asks and at the end that is asked.
    async fn who_does_not_agree_is_named() {
        let mesh = shut_off(&json!({}), false).await?;
        let says = async |mesh: &Mesh, cloud: &str, expected: &str| {
            within(SOON, format!("check in {cloud} says {expected:?}"), async || {
                Ok(findings(mesh, cloud).await?.get("EW314").is_some_and(|text| text.contains(expected)))
            })
            .await
        };
        says(&mesh, "a", "c does not relay to b: its relay.allow does not name this pair").await?;
        let mut c = mesh.cloud("c").main_value(0)?;
        files::merge(&mut c, &allow(&json!({"streams": 24, "bytesPerSecond": "1MiB"})));
        files::write(&mesh.cloud("c").main_file(0), &c)?;
        says(&mesh, "a", "b takes no links by way of c: its Peer file for this cluster needs `via: c`").await?;
        says(&mesh, "b", "c brings a link of a, whose Peer file here does not say `via: c`").await?;
        let metrics = mesh.cloud("b").metrics(0).await?;
        ensure!(metrics.contains("eastway_refused_total{peer=\"c\",reason=\"relay\"}"), "{metrics}");
        ensure!(!mesh.cloud("a").is_up(0, "b").await?);

        let mut file = files::peer("a", &[], mesh.cloud("a").pin(), &[NAMESPACE]);
        files::merge(&mut file, &json!({"spec": {"via": "c"}}));
        mesh.cloud("b").write_peer("a", &file)?;
        both_ways(&mesh).await?;
        // The pair has 24 pipes: more streams than that wait or fail, and those that are there go on.
        let target = mesh.target("a", IN_B).await?;
        let (place, source) = mesh.client("a");
        let many = place.run(async move {
            let mut streams = Vec::new();
            for _ in 0..40 {
                streams.push(load::connect(source, target).await?);
            }
            Ok(streams)
        });
        let many = many.await?;
        within(SOON, "c refuses some", async || {
            Ok(mesh.cloud("c").status(0).await?.relay.iter().any(|pair| pair.refused > 0 && pair.streams <= 24))
        })
        .await?;
        ensure!(mesh.cloud("a").is_up(0, "b").await?);
        drop(many);
        mesh.wait_answer("a", target, "b-12", SOON).await?;
        mesh.stop().await
    }
}

//! A long time under mixed load, with faults now and then: nothing may grow.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use eastway_tests::lab_test;
use eastway_tests::mesh::{Mesh, MeshBuilder};
use eastway_tests::relay::Conditions;
use eastway_tests::run::soak;
use eastway_tests::servers::Habit;
use eastway_tests::transfer::{Progress, connect_small, download, there_and_back};
use eastway_tests::within;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;

use crate::restart::Conversation;

/// What every run of the tests has time for.
const SHORT: Duration = Duration::from_secs(60);
/// If set: the JSON file that figures are added to.
const FIGURES: &str = "EASTWAY_TEST_SOAK_FIGURES";
/// Between two samples.
const SAMPLE: Duration = Duration::from_millis(500);
/// The first of so many parts of a soak is for caches, pools and buffers to get as large as they will be.
const PARTS: usize = 3;

/// What is sampled of a gateway, and how much it may be more in the last part of a soak than in the one before, beyond a
/// twentieth: what is random in a moment's load.
const KINDS: [(&str, f64); 3] = [("rss_bytes", 2_097_152.0), ("fds", 8.0), ("tasks", 16.0)];

/// A soak that is shorter has few moments to take the middle of, and clients that never read hold windows of 4 MiB each in
/// some of them: memory may then be more by so many bytes.
const LONG: Duration = Duration::from_secs(600);
const SHORT_RSS: f64 = 16.0 * 1_048_576.0;

/// One kind of sample of one gateway, in the order of time.
type Series = Vec<f64>;

async fn sample(mesh: &Mesh, cloud: &str) -> Result<[f64; 3]> {
    let page = mesh.cloud(cloud).metrics(0).await?;
    let value = |name: &str| {
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.with_context(|| format!("{cloud} has no metric {name}"))?.parse::<f64>().context("a number")
    };
    Ok([value("process_resident_memory_bytes")?, value("process_open_fds")?, value("eastway_tasks")?])
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

/// What changed from the second to the third part of a soak, as medians, and per hour by the straight line through all samples
/// after the first part.
fn growth(series: &Series) -> (f64, f64, f64) {
    let warm = &series[series.len() / PARTS..];
    let (before, after) = warm.split_at(warm.len() / 2);
    let count = warm.len() as f64;
    let (mean_x, mean_y) = ((count - 1.0) / 2.0, warm.iter().sum::<f64>() / count);
    let (mut over, mut under) = (0.0, 0.0);
    for (x, y) in warm.iter().enumerate() {
        over += (x as f64 - mean_x) * (y - mean_y);
        under += (x as f64 - mean_x).powi(2);
    }
    let per_hour = over / f64::max(under, 1.0) * 3_600.0 / SAMPLE.as_secs_f64();
    (median(before), median(after), per_hour)
}

/// Goes on until it is aborted: transfers of all kinds, one after the other, of clients that behave and of such that do not.
async fn mix(mesh: &Mesh) -> Result<JoinSet<()>> {
    let (place, source) = mesh.client("a");
    let [web, half, flood, resets] = ["web", "half", "flood", "resets"];
    let targets = (mesh.target("a", web).await?, mesh.target("a", half).await?);
    let rude = (mesh.target("a", flood).await?, mesh.target("a", resets).await?);
    let mut tasks = JoinSet::new();
    // Good ones, whose every byte counts: what is wrong shows as the end of the task.
    tasks.spawn(owned(place.spawn(async move {
        loop {
            download(source, targets.0, 1 << 20, Progress::default()).await.expect("a download");
            there_and_back(source, targets.1, 256 << 10).await.expect("a transfer both ways");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    })));
    // Clients that go in the middle, or before they have said anything, or never read.
    tasks.spawn(owned(place.spawn(async move {
        let mut held = std::collections::VecDeque::new();
        for round in 0_u64.. {
            // Of those that are flooded few, or they would be all that the link carries.
            let flooded = round.is_multiple_of(10).then_some(rude.0);
            for target in [rude.1, targets.0].into_iter().chain(flooded) {
                if let Ok(mut stream) = connect_small(source, target).await {
                    let _sent = stream.write_all(b"GET /1/100000 HTTP/1.1\r\n\r\n").await;
                    held.push_back(stream);
                }
            }
            while held.len() > 30 {
                held.pop_front();
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })));
    Ok(tasks)
}

/// Ends the task at a place with this one.
async fn owned(task: tokio::task::JoinHandle<()>) {
    struct Abort(tokio::task::AbortHandle);
    impl Drop for Abort {
        fn drop(&mut self) {
            self.0.abort();
        }
    }
    let _abort = Abort(task.abort_handle());
    task.await.expect("a client of the mix");
}

/// The fault of this second of a soak.
async fn fault(mesh: &Mesh, second: u64) -> Result<()> {
    let path = Conditions { delay: Duration::from_millis(2), ..Conditions::default() };
    let relay = mesh.relay("a", "b");
    match second % 20 {
        2 => relay.set_both(&Conditions { loss: 0.02, ..path }),
        7 => relay.set_both(&path),
        12 => {
            relay.rebind(mesh.lab().wan()).await?;
        }
        _ => {}
    }
    // A link that is lost, a conversation that has lasted, come about once a minute.
    if second % 60 == 35 {
        relay.set_both(&Conditions { cut: true, ..path.clone() });
        within(Duration::from_secs(6), "the link is lost", async || Ok(!mesh.cloud("a").is_up(0, "b").await?)).await?;
        relay.set_both(&path);
        mesh.wait_up("a", "b", Duration::from_secs(6)).await?;
    }
    Ok(())
}

/// Adds figures to those that are in a file of them.
fn keep(path: &Path, figures: &[(String, f64)], seconds: f64) -> Result<()> {
    let mut file: Value = match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| format!("{}", path.display()))?,
        Err(_) => json!({"figures": {}, "tests": {}}),
    };
    for (name, value) in figures {
        file["figures"][name] = json!((value * 1_000.0).round() / 1_000.0);
    }
    file["tests"]["soak::nothing_grows_under_load_and_faults"] = json!({"passed": true, "seconds": seconds.round()});
    std::fs::write(path, serde_json::to_string_pretty(&file)? + "\n")
        .with_context(|| format!("write {}", path.display()))
}

lab_test! {
    /// A minute, or as long as one is asked to wait: memory, file descriptors and tasks of both gateways stay what they are
    /// while connections of all kinds come and go, packets are lost, a NAT forgets, and links are lost and made anew.
    async fn nothing_grows_under_load_and_faults() {
        let how_long = soak().unwrap_or(SHORT);
        let mut mesh = MeshBuilder::of(&["a", "b"]).relay("a", "b", 1).start().await?;
        for (service, pod, habit) in [
            ("web", 11, Habit::Http), ("half", 12, Habit::HalfClose), ("flood", 13, Habit::Flood), ("resets", 14, Habit::Resets),
            ("echo", 15, Habit::Echo),
        ] {
            mesh.serve("b", service, pod, habit).await?;
        }
        let target = mesh.target("a", "web").await?;
        mesh.wait_answer("a", target, "b-11", Duration::from_secs(5)).await?;
        let begun = Instant::now();
        let (mut series, mut sent, mut conversed, mut lost) = ([(); 6].map(|()| Series::new()), 0, 0, 0_u64);
        // From one cut to the next; those that a cut breaks are begun anew.
        let (mut second, mut clock) = (0, tokio::time::interval(SAMPLE));
        clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        while begun.elapsed() < how_long {
            let load = mesh.load("a", target, 100);
            let mut tasks = mix(&mesh).await?;
            let mut conversations = Vec::new();
            for _ in 0..10 {
                conversations.push(Conversation::start(&mesh, "a", "echo").await?);
            }
            let part = Instant::now();
            while begun.elapsed() < how_long && (second % 60 != 35 || part.elapsed() < Duration::from_secs(2)) {
                for (cloud, series) in ["a", "b"].into_iter().zip(series.chunks_mut(3)) {
                    for (series, value) in series.iter_mut().zip(sample(&mesh, cloud).await?) {
                        series.push(value);
                    }
                }
                ensure!(tasks.try_join_next().is_none(), "a client of the mix ended in second {second}");
                let broken = conversations.iter().position(Conversation::has_ended);
                if let Some(broken) = broken {
                    let why = conversations.remove(broken).stop().await;
                    why.with_context(|| format!("a conversation broke in second {second}"))?;
                }
                if begun.elapsed().as_secs() > second {
                    second += 1;
                    if second % 60 != 35 {
                        fault(&mesh, second).await?;
                    }
                }
                clock.tick().await;
            }
            for conversation in conversations {
                conversed += conversation.stop().await.context("a conversation under loss and rebinds")?;
            }
            tasks.shutdown().await;
            let record = load.stop().await?;
            record.none_failed()?;
            sent += record.sent;
            if begun.elapsed() < how_long {
                fault(&mesh, second).await?;
                (second, lost) = (second + 1, lost + 1);
            }
        }
        let minutes = begun.elapsed().as_secs_f64() / 60.0;
        let mut figures = vec![
            ("soak.minutes".to_owned(), minutes), ("soak.requests.sent".to_owned(), sent as f64), ("soak.requests.failed".to_owned(), 0.0),
            ("soak.conversation_rounds".to_owned(), f64::from(conversed)), ("soak.links_lost".to_owned(), lost as f64),
        ];
        let mut grown = Vec::new();
        for (cloud, series) in ["a", "b"].into_iter().zip(series.chunks(3)) {
            for ((kind, slack), series) in KINDS.into_iter().zip(series) {
                let (before, after, per_hour) = growth(series);
                println!("{cloud} {kind}: {before:.0} before, {after:.0} after, {per_hour:.1} more per hour");
                figures.extend([(format!("soak.{cloud}.{kind}"), after), (format!("soak.{cloud}.{kind}_per_hour"), per_hour)]);
                let slack = if kind == "rss_bytes" && how_long < LONG { SHORT_RSS } else { slack };
                if after > before * 1.05 + slack {
                    grown.push(format!("{cloud} {kind}: {before:.0}, then {after:.0}"));
                }
            }
        }
        println!("{minutes:.1} minutes, {sent} requests, none failed; {conversed} rounds of conversations; {lost} links lost on purpose");
        ensure!(grown.is_empty(), "{grown:?}");
        if let Some(path) = std::env::var_os(FIGURES) {
            keep(Path::new(&path), &figures, begun.elapsed().as_secs_f64())?;
        }
        mesh.stop().await
    }
}

//! The steps that cut the link to gke and heal it, under load: of a client without a sidecar, and of one with.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::bookinfo::{Call, Service};
use super::lab::Isolation;
use super::routing;
use super::script::{PAUSE, Script};
use super::story::{GKE, ONPREM};

/// Requests per second while the link is cut.
const RATE: u32 = 50;
/// Longest time until a cut link has to be seen (design §10: 4 s of silence, and what detection itself takes).
const DETECTION_LIMIT: Duration = Duration::from_secs(6);
/// Longest time until a healed link has to be up again.
const HEAL_LIMIT: Duration = Duration::from_secs(15);
/// For how long requests go on after the detection.
const AFTERWARDS: Duration = Duration::from_secs(2);

/// Who asks for reviews meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asker {
    /// The demo's own client, which has no sidecar: the gateway decides for each connection.
    Visitor,
    /// The page, beside which an Envoy decides for each request.
    Page,
}

impl Asker {
    async fn ask(self, script: &Script<'_>, step: &'static str) -> Result<Call> {
        match self {
            Self::Visitor => script.call(step, ONPREM, Service::Reviews).await,
            Self::Page => script.page(step, None).await,
        }
    }
}

/// Which cloud the reviews came from.
fn cloud_of(call: &Call) -> Option<&str> {
    Some(call.answer()?.find(Service::Reviews)?.by.cloud.as_str())
}

/// One request of the load.
struct Sample {
    sent: Instant,
    call: Call,
}

/// Cuts the link, and heals it whatever happened in between.
pub(super) async fn failover(script: &Script<'_>, step: &'static str, asker: Asker) -> Result<Value> {
    let over = AtomicBool::new(false);
    let (samples, mut taken) = mpsc::channel(8192);
    let (watched, ()) = tokio::join!(
        async {
            let watched = watch_cut(script).await;
            over.store(true, Ordering::Relaxed);
            watched
        },
        load(script, (step, asker), &over, samples),
    );
    let (cut, detected) = watched?;
    taken.close();
    let mut all = Vec::new();
    while let Some(sample) = taken.recv().await {
        all.push(sample);
    }
    judge(&all, cut, detected, script)
}

/// Cuts and waits until on-prem's gateway says that gke is down; gives both moments.
async fn watch_cut(script: &Script<'_>) -> Result<(Instant, Instant)> {
    let onprem = script.story.cloud(ONPREM)?;
    ensure!(onprem.is_up(0, GKE).await?, "gke is not up before the cut");
    tokio::time::sleep(Duration::from_millis(500)).await;
    set_link(script, false).await?;
    let cut = Instant::now();
    while onprem.is_up(0, GKE).await? {
        ensure!(cut.elapsed() < DETECTION_LIMIT, "on-prem still calls gke up {DETECTION_LIMIT:?} after the cut");
        tokio::time::sleep(PAUSE).await;
    }
    let detected = Instant::now();
    tokio::time::sleep(AFTERWARDS).await;
    Ok((cut, detected))
}

/// Sends requests at a fixed rate until `over`, whatever becomes of earlier ones.
async fn load(
    script: &Script<'_>,
    (step, asker): (&'static str, Asker),
    over: &AtomicBool,
    samples: mpsc::Sender<Sample>,
) {
    use futures_util::stream::{FuturesUnordered, StreamExt};
    let mut clock = tokio::time::interval(Duration::from_secs(1) / RATE);
    let mut open = FuturesUnordered::new();
    while !over.load(Ordering::Relaxed) {
        tokio::select! {
            _ = clock.tick() => open.push(one(script, (step, asker), samples.clone())),
            Some(()) = open.next() => {}
        }
    }
    while open.next().await.is_some() {}
}

async fn one(script: &Script<'_>, (step, asker): (&'static str, Asker), samples: mpsc::Sender<Sample>) {
    let sent = Instant::now();
    // A place that is gone ends the whole step in watch_cut.
    if let Ok(call) = asker.ask(script, step).await {
        let _full = samples.try_send(Sample { sent, call });
    }
}

fn judge(samples: &[Sample], cut: Instant, detected: Instant, script: &Script<'_>) -> Result<Value> {
    let before: Vec<&Sample> = samples.iter().filter(|sample| sample.sent < cut).collect();
    let between = samples.iter().filter(|sample| sample.sent >= cut && sample.sent < detected);
    let between_failed = between.clone().filter(|sample| sample.call.answer().is_none()).count();
    let after: Vec<&Sample> = samples.iter().filter(|sample| sample.sent >= detected).collect();
    let from = |sample: &&Sample, cloud: &str| cloud_of(&sample.call) == Some(cloud);
    ensure!(before.iter().any(|sample| from(sample, GKE)), "gke answered nothing before the cut");
    ensure!(after.len() > 20, "only {} requests were sent after the detection", after.len());
    let failed: Vec<&str> = after.iter().filter_map(|sample| sample.call.error()).collect();
    ensure!(failed.is_empty(), "{} of {} requests failed after the detection: {failed:?}", failed.len(), after.len());
    let elsewhere = after.iter().filter(|sample| !from(sample, ONPREM)).count();
    ensure!(elsewhere == 0, "{elsewhere} requests were not answered on-prem after the detection");
    let how = match script.story.lab.isolation() {
        Isolation::Namespaces => "gke's WAN cable pulled (ip link set … down)",
        Isolation::Loopback => "gke's gateway stopped (SIGSTOP)",
    };
    Ok(json!({
        "cut_by": how,
        "detection_ms": (detected - cut).as_millis(),
        "requests_before_cut": before.len(),
        "requests_until_detection": between.count(),
        "failed_until_detection": between_failed,
        "requests_after_detection": after.len(),
        "failed_after_detection": failed.len(),
        "answered_by_after_detection": ONPREM,
    }))
}

/// Heals the link and waits until gke serves again: its share of the weights, or all that the page's rule gives it.
pub(super) async fn failback(script: &Script<'_>, step: &'static str, asker: Asker) -> Result<Value> {
    set_link(script, true).await?;
    let healed = Instant::now();
    let onprem = script.story.cloud(ONPREM)?;
    let (mut up, mut failed) = (None, 0);
    let first_answer = loop {
        ensure!(healed.elapsed() < HEAL_LIMIT, "gke does not serve {HEAL_LIMIT:?} after the link was healed");
        if up.is_none() && onprem.is_up(0, GKE).await? {
            up = Some(healed.elapsed());
        }
        let call = asker.ask(script, step).await?;
        match cloud_of(&call) {
            Some(GKE) => break healed.elapsed(),
            Some(_) => {}
            // Reviews in gke need ratings from edge, and that link comes back by itself.
            None => failed += 1,
        }
        tokio::time::sleep(PAUSE).await;
    };
    while !script.story.cloud(GKE)?.is_up(0, super::story::EDGE).await? {
        ensure!(healed.elapsed() < HEAL_LIMIT, "gke has no link to edge {HEAL_LIMIT:?} after the link was healed");
        tokio::time::sleep(PAUSE).await;
    }
    let afterwards = match asker {
        Asker::Visitor => json!({"weights": script.weights(step, 4).await?}),
        Asker::Page => json!({"afterwards": routing::all_from(script, step, GKE).await?}),
    };
    let up = up.map(|up| up.as_millis());
    let mut seen = json!({"link_up_ms": up, "first_answer_ms": first_answer.as_millis(), "failed_until_then": failed});
    super::lab::files::merge(&mut seen, &afterwards);
    Ok(seen)
}

/// Cuts the link to gke, or heals it.
pub(super) async fn set_link(script: &Script<'_>, whole: bool) -> Result<()> {
    let gke = script.story.cloud(GKE)?;
    match script.story.lab.isolation() {
        Isolation::Namespaces => gke.net().set_cable(&script.story.lab, whole).await,
        Isolation::Loopback => {
            gke.gateway(0)?.signal(if whole { Signal::SIGCONT } else { Signal::SIGSTOP }).context("cut the link")
        }
    }
}

//! The steps in which something goes wrong on purpose: delays, aborts, and a bad pod.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::bookinfo::{MISBEHAVE, PORT, Service, Version};
use super::lab::http;
use super::routing::{apply, asked, look, set_policy};
use super::script::{PATIENCE, PAUSE, Script};
use super::story::GKE;
use super::story::rules::{limited, milliseconds, to_version, tried_again, tried_once};

/// How long each request is held up.
pub(super) const DELAY: Duration = Duration::from_secs(2);
/// How long the page's Envoy waits for reviews.
pub(super) const TIMEOUT: Duration = Duration::from_millis(300);
/// Requests that run into it.
const HELD_UP: u32 = 20;
/// Requests of which half are aborted.
const ABORTED: u32 = 200;
/// Tries after the first: of 2^13 requests one fails all of them.
pub(super) const RETRIES: u32 = 12;
/// So many of [`ABORTED`] may fail with retries, and be off from the half without: more are one run in a million by chance.
const FEW: u32 = 2;
const HALF: std::ops::RangeInclusive<u32> = 60..=140;
/// Requests while one pod is bad, and before.
const REQUESTS: u32 = 300;
/// Requests in a row without a failure after which a pod counts as ejected.
const CALM: u32 = 30;

/// A delay that a timeout ends, and aborts that retries make up for.
pub(super) async fn timeout_retry(script: &Script<'_>) -> Result<Value> {
    let result = on_purpose(script).await;
    set_policy(script, &json!({}))?;
    apply(script, &[to_version(1)]).await?;
    let afterwards = look(script, "timeout-retry", HELD_UP, None).await?;
    ensure!(afterwards.failed == 0, "{afterwards:?}");
    result
}

async fn on_purpose(script: &Script<'_>) -> Result<Value> {
    set_policy(script, &held_up(DELAY))?;
    apply(script, &[limited(TIMEOUT)]).await?;
    let (mut timed_out, mut slowest) = (0, 0.0_f64);
    for _ in 0..HELD_UP {
        let page = script.page("timeout-retry", None).await?;
        ensure!(page.ms >= TIMEOUT.as_secs_f64() * 900.0, "not held up: {page:?}");
        ensure!(page.ms < DELAY.as_secs_f64() * 1000.0, "not ended by the timeout: {page:?}");
        ensure!(page.error().is_some_and(|error| error.contains("status 504")), "not timed out: {page:?}");
        timed_out += 1;
        slowest = slowest.max(page.ms);
    }
    set_policy(script, &half_aborted())?;
    apply(script, &[tried_once(1)]).await?;
    let without = look(script, "timeout-retry", ABORTED, None).await?;
    ensure!(HALF.contains(&without.failed), "half of them are to fail: {without:?}");
    apply(script, &[tried_again(RETRIES)]).await?;
    let with = look(script, "timeout-retry", ABORTED, None).await?;
    ensure!(with.failed <= FEW, "retries are to make up for nearly all: {with:?}");
    Ok(json!({
        "timeout": {
            "delay": milliseconds(DELAY), "limit": milliseconds(TIMEOUT),
            "requests": HELD_UP, "timed_out": timed_out, "slowest_ms": slowest.round(),
        },
        "retry": {"aborted_percent": 50, "without_retries": without, "with_retries": with},
    }))
}

/// A TrafficPolicy: each request waits for so long.
pub(super) fn held_up(delay: Duration) -> Value {
    on_nobody(&json!({"delay": {"duration": milliseconds(delay)}}))
}

/// A TrafficPolicy: half of all tries are answered with 503.
pub(super) fn half_aborted() -> Value {
    on_nobody(&json!({"abort": {"status": 503, "percent": 50}}))
}

/// Nobody is to be ejected for what others make fail.
fn on_nobody(fault: &Value) -> Value {
    json!({"fault": fault, "outlierDetection": {"consecutiveErrors": 0}})
}

/// A TrafficPolicy: a pod that fails three times in a row is left alone for long.
pub(super) fn ejecting() -> Value {
    json!({"outlierDetection": {"consecutiveErrors": 3, "ejectionTime": "60s", "interval": "1s"}})
}

/// One of the pods of gke's reviews v2 answers with errors: it alone is ejected.
pub(super) async fn outlier(script: &Script<'_>) -> Result<Value> {
    let pods: Vec<u8> = script.story.pods(GKE, Service::Reviews, Version(2)).collect();
    let bad = *pods.last().context("no pods")?;
    ensure!(pods.len() >= 3, "{} pods of reviews v2", pods.len());
    set_policy(script, &ejecting())?;
    apply(script, &[tried_once(2)]).await?;
    let result = one_bad_pod(script, &pods, bad).await;
    answer_with(script, bad, 200).await?;
    set_policy(script, &json!({}))?;
    result
}

async fn one_bad_pod(script: &Script<'_>, pods: &[u8], bad: u8) -> Result<Value> {
    until_all_are_asked(script, pods).await?;
    let (healthy, shares) = shares(script, pods).await?;
    ensure!(healthy.failed == 0, "{healthy:?}");
    ensure!(shares.values().all(|share| *share >= u64::from(REQUESTS) / 6), "not shared between pods: {shares:?}");

    answer_with(script, bad, 500).await?;
    let (begun, mut failed, mut in_a_row) = (Instant::now(), 0, 0);
    while failed == 0 || in_a_row < CALM {
        ensure!(begun.elapsed() < PATIENCE, "pod {bad} is not ejected after {PATIENCE:?}: {failed} requests failed");
        let is_ok = script.page("outlier", None).await?.answer().is_some();
        failed += u32::from(!is_ok);
        in_a_row = if is_ok { in_a_row + 1 } else { 0 };
    }
    let (ejected, afterwards) = self::shares(script, pods).await?;
    ensure!(ejected.failed == 0, "{ejected:?}");
    for (pod, share) in &afterwards {
        let is_bad = *pod == pod_name(bad);
        ensure!(is_bad == (*share == 0), "{pod} was asked {share} times of {REQUESTS}: {afterwards:?}");
        ensure!(is_bad || *share >= u64::from(REQUESTS) / 6, "a sibling serves less: {afterwards:?}");
    }
    Ok(json!({
        "bad_pod": pod_name(bad),
        "answers_with": 500,
        "requests_each": REQUESTS,
        "counted_by_pods_before": shares,
        "failed_until_ejected": failed,
        "counted_by_pods_after": afterwards,
        "failed_after": ejected.failed,
    }))
}

fn pod_name(pod: u8) -> String {
    format!("pod-{pod}")
}

/// Each pod must be a host of its own for the page's Envoy first.
async fn until_all_are_asked(script: &Script<'_>, pods: &[u8]) -> Result<()> {
    let begun = Instant::now();
    loop {
        let before = counts(script, pods).await?;
        let seen = look(script, "outlier", CALM, None).await?;
        let after = counts(script, pods).await?;
        if seen.failed == 0 && pods.iter().all(|pod| after.get(pod) > before.get(pod)) {
            return Ok(());
        }
        ensure!(begun.elapsed() < PATIENCE, "not all pods are asked: {before:?}, {after:?}, {seen:?}");
        tokio::time::sleep(PAUSE).await;
    }
}

/// Reads the page, and how often each pod was asked for it.
async fn shares(script: &Script<'_>, pods: &[u8]) -> Result<(super::routing::Seen, BTreeMap<String, u64>)> {
    let before = counts(script, pods).await?;
    let seen = look(script, "outlier", REQUESTS, None).await?;
    let after = counts(script, pods).await?;
    let share = |(pod, count): (u8, u64)| (pod_name(pod), count - before.get(&pod).copied().unwrap_or(0));
    Ok((seen, after.into_iter().map(share).collect()))
}

async fn counts(script: &Script<'_>, pods: &[u8]) -> Result<BTreeMap<u8, u64>> {
    let mut counts = BTreeMap::new();
    for pod in pods {
        counts.insert(*pod, asked(script, GKE, *pod).await?);
    }
    Ok(counts)
}

/// Has a pod of gke answer everything with this status from now on; it still says that it is healthy.
pub(super) async fn answer_with(script: &Script<'_>, pod: u8, status: u16) -> Result<()> {
    let net = script.story.cloud(GKE)?.net();
    let answer = http::get(net.pods(), SocketAddr::new(net.pod(pod), PORT), &format!("{MISBEHAVE}{status}")).await?;
    ensure!(answer.status == 200, "pod {pod}: {}", answer.status);
    Ok(())
}

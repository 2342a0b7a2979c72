//! The steps that need an Envoy beside each workload: what rules do to the requests of the page.
//!
//! The demo's client reads the page; the page's own call for reviews goes through the Envoy beside it, by the rules in
//! on-prem's policies folder.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::StreamExt;
use serde_json::{Value, json};

use super::bookinfo::{Answer, CALLER, COUNTER, Call, PORT, Service, Version};
use super::failover::{self, Asker};
use super::lab::{files, http};
use super::script::{AT_ONCE, PATIENCE, PAUSE, Script};
use super::story::rules::{self, of_user, to_version};
use super::story::{GKE, ONPREM, sidecars};

/// Requests of a look that is to find one thing only.
const LOOK: u32 = 100;
/// Requests that weights are counted on.
const SPLIT: u32 = 1000;
/// How far a count of these may be off: nearly 5 standard deviations at 80 %.
const TOLERANCE: u32 = 60;
/// Of so many copies all but this many must come: nobody sends one again.
const LOST_COPIES: u64 = 3;
/// How long the last copies are waited for.
const LATE_COPIES: Duration = Duration::from_secs(2);
/// Who reads the page in the talk.
pub(super) const USER: &str = "jason";

/// What became of some requests for the page.
#[derive(Debug, Default, serde::Serialize)]
pub(super) struct Seen {
    requests: u32,
    /// By the version of reviews in the page.
    answered_by: BTreeMap<String, u32>,
    pub(super) failed: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) first_error: Option<String>,
}

impl Seen {
    pub(super) fn add(&mut self, call: &Call) {
        self.requests += 1;
        match call.answer().and_then(|answer| answer.find(Service::Reviews)) {
            Some(reviews) => *self.answered_by.entry(reviews.by.version.to_string()).or_default() += 1,
            None => {
                self.failed += 1;
                self.first_error.get_or_insert_with(|| call.error().unwrap_or("no reviews").to_owned());
            }
        }
    }

    fn count(&self, version: u8) -> u32 {
        self.answered_by.get(&Version(version).to_string()).copied().unwrap_or(0)
    }

    pub(super) fn extend(&mut self, more: Self) {
        self.requests += more.requests;
        self.failed += more.failed;
        for (version, count) in more.answered_by {
            *self.answered_by.entry(version).or_default() += count;
        }
        self.first_error = self.first_error.take().or(more.first_error);
    }

    /// All of them answered, by this version.
    fn all_by(self, version: u8) -> Result<Self> {
        ensure!(self.count(version) == self.requests, "not all by v{version}: {self:?}");
        Ok(self)
    }
}

impl std::fmt::Display for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} requests: ", self.requests)?;
        for (version, count) in &self.answered_by {
            write!(f, "{count} by {version}, ")?;
        }
        write!(f, "{} failed", self.failed)
    }
}

/// Reads the page so many times.
pub(super) async fn look(script: &Script<'_>, step: &'static str, requests: u32, user: Option<&str>) -> Result<Seen> {
    let calls = futures_util::stream::iter(0..requests).map(|_| script.page(step, user)).buffer_unordered(AT_ONCE);
    let mut calls = std::pin::pin!(calls);
    let mut seen = Seen::default();
    while let Some(call) = calls.next().await {
        seen.add(&call?);
    }
    Ok(seen)
}

/// Writes the rules for reviews, and waits until the page's Envoy goes by them.
pub(super) async fn apply(script: &Script<'_>, rules: &[Value]) -> Result<()> {
    // A rule that shows: each time another.
    let path = format!("/rules-{:x}", fastrand::u64(..));
    let redirect = json!({"type": "RequestRedirect", "requestRedirect": {"hostname": "applied.example"}});
    let marker = json!({"matches": [{"path": {"type": "Exact", "value": path}}], "filters": [redirect]});
    let onprem = script.story.cloud(ONPREM)?;
    onprem.write_policy("route-reviews", &rules::http_route(&[rules, &[marker]].concat()))?;
    let page = script.story.pods(ONPREM, Service::Productpage, Version(1)).next().context("no page")?;
    let reviews = SocketAddr::new(script.until_resolved(onprem, &Service::Reviews.fqdn()).await?, PORT);
    let written = Instant::now();
    loop {
        let status = http::status(onprem.net().place_of(page), reviews, &path).await;
        match status {
            Ok(302) => return Ok(()),
            _ if written.elapsed() < PATIENCE => tokio::time::sleep(PAUSE).await,
            _ => anyhow::bail!("the page's Envoy does not have the rules {PATIENCE:?} after: {status:?}"),
        }
    }
}

/// How often the program of a pod was asked, as it says itself.
pub(super) async fn asked(script: &Script<'_>, cloud: &str, pod: u8) -> Result<u64> {
    let net = script.story.cloud(cloud)?.net();
    let answer = http::get(net.pods(), SocketAddr::new(net.pod(pod), PORT), COUNTER).await?;
    answer.body.parse().with_context(|| format!("{COUNTER} answers {:?}", answer.body))
}

/// All to v1; then requests of one user to v2, by a header that the page hands on.
pub(super) async fn header(script: &Script<'_>) -> Result<Value> {
    apply(script, &[to_version(1)]).await?;
    let all = look(script, "header", LOOK, Some(USER)).await?.all_by(1)?;
    apply(script, &[of_user(USER, 2), to_version(1)]).await?;
    let his = look(script, "header", LOOK, Some(USER)).await?.all_by(2)?;
    let others = look(script, "header", LOOK, Some("mary")).await?.all_by(1)?;
    let nobody = look(script, "header", LOOK, None).await?.all_by(1)?;
    Ok(json!({"all_to_v1": all, "jason": his, "mary": others, "nobody": nobody}))
}

/// 80 of 100 requests to v1 on-prem, 20 to v3 in gke.
pub(super) async fn split(script: &Script<'_>) -> Result<Value> {
    apply(script, &[rules::split(80, 20)]).await?;
    let seen = look(script, "split", SPLIT, None).await?;
    let wanted = SPLIT * 80 / 100;
    ensure!(seen.failed == 0 && seen.count(1) + seen.count(3) == SPLIT, "{seen:?}");
    ensure!(seen.count(1).abs_diff(wanted) <= TOLERANCE, "v1 is not at {wanted} ± {TOLERANCE}: {seen:?}");
    Ok(json!({"weights": {"v1": 80, "v3": 20}, "counted": seen, "tolerance": TOLERANCE}))
}

/// A copy of each request goes to v3, which nobody waits for.
pub(super) async fn mirror(script: &Script<'_>) -> Result<Value> {
    apply(script, &[rules::copied(3)]).await?;
    let pod = script.story.pods(GKE, Service::Reviews, Version(3)).next().context("no v3")?;
    let before = asked(script, GKE, pod).await?;
    let seen = look(script, "mirror", LOOK, None).await?.all_by(1)?;
    let (sent, looked) = (u64::from(LOOK), Instant::now());
    let copies = loop {
        let copies = asked(script, GKE, pod).await? - before;
        if copies >= sent || (copies + LOST_COPIES >= sent && looked.elapsed() > LATE_COPIES) {
            break copies;
        }
        ensure!(looked.elapsed() < PATIENCE, "{copies} copies of {LOOK} requests came to v3");
        tokio::time::sleep(PAUSE).await;
    };
    ensure!(copies <= sent, "{copies} copies of {LOOK} requests");
    Ok(json!({"answers": seen, "requests_counted_by_v3": copies}))
}

/// Whom each service was called by, as the sidecar beside it found in the certificate.
pub(super) async fn mtls(script: &Script<'_>) -> Result<Value> {
    apply(script, &[to_version(2)]).await?;
    let mut seen: BTreeMap<String, BTreeMap<String, u32>> = BTreeMap::new();
    for _ in 0..LOOK {
        let page = script.page("mtls", None).await?;
        let answer = page.answer().with_context(|| page.error().unwrap_or_default().to_owned())?;
        callers(answer, &mut seen)?;
    }
    // One without a sidecar, which says that it is the page.
    let claim = format!("URI={}", identity(ONPREM, Service::Productpage));
    let mut unproven = 0;
    for _ in 0..LOOK {
        let claim = Some((CALLER, claim.clone()));
        let call = script.call_saying("mtls", ONPREM, (&Service::Reviews.fqdn(), Service::Reviews), claim).await?;
        let answer = call.answer().with_context(|| call.error().unwrap_or_default().to_owned())?;
        ensure!(answer.caller.is_none(), "a claim was believed: {:?}", answer.caller);
        unproven += 1;
    }
    Ok(json!({
        "requests": LOOK,
        "caller_seen_by": seen,
        "without_sidecar": {"requests": unproven, "claimed": claim, "identities_seen": 0},
    }))
}

/// Adds who was called by whom below an answer; it must be what the caller's certificate is for.
fn callers(answer: &Answer, seen: &mut BTreeMap<String, BTreeMap<String, u32>>) -> Result<()> {
    for called in answer.calls.iter().filter_map(Call::answer) {
        let by = &called.by;
        let place = format!("{} {} ({})", by.service.name(), by.version, by.cloud);
        let expected = identity(&answer.by.cloud, answer.by.service);
        let caller = called.caller.clone().unwrap_or_default();
        ensure!(caller == expected, "{place} was called by {caller:?}, not by {expected}");
        *seen.entry(place).or_default().entry(caller).or_default() += 1;
        callers(called, seen)?;
    }
    Ok(())
}

fn identity(cloud: &str, service: Service) -> String {
    let (domain, account) = (files::trust_domain(cloud), sidecars::account(service));
    format!("spiffe://{domain}/ns/{}/sa/{account}", super::bookinfo::NAMESPACE)
}

/// All to gke; gke lost, on-prem serves; gke back, all to gke.
pub(super) async fn sidecar_failover(script: &Script<'_>) -> Result<Value> {
    const STEP: &str = "sidecar-failover";
    set_policy(script, &soon_back())?;
    apply(script, &[rules::to_gke()]).await?;
    let before = all_from(script, STEP, GKE).await?;
    let over = failover::failover(script, STEP, Asker::Page).await;
    // Healed in any case.
    let back = failover::failback(script, STEP, Asker::Page).await;
    Ok(json!({"before": before, "failover": over?, "failback": back?}))
}

/// Reviews in gke fail until their own link to the ratings is back, and are to be tried again soon then.
pub(super) fn soon_back() -> Value {
    json!({"outlierDetection": {"ejectionTime": "500ms", "interval": "500ms"}})
}

/// Reads the page; the reviews in it must all be from this cloud.
pub(super) async fn all_from(script: &Script<'_>, step: &'static str, cloud: &str) -> Result<Value> {
    let calls = futures_util::stream::iter(0..LOOK).map(|_| script.page(step, None)).buffer_unordered(AT_ONCE);
    let mut calls = std::pin::pin!(calls);
    while let Some(call) = calls.next().await {
        let call = call?;
        let reviews = call.answer().and_then(|answer| answer.find(Service::Reviews));
        let from = reviews.map(|reviews| reviews.by.cloud.as_str());
        ensure!(from == Some(cloud), "not from {cloud}: {from:?}, {:?}", call.error());
    }
    Ok(json!({"requests": LOOK, "answered_by": cloud}))
}

/// The TrafficPolicy of reviews, with this beside the weights. [`apply`] is to follow, which waits for both.
pub(super) fn set_policy(script: &Script<'_>, more: &Value) -> Result<()> {
    script.story.cloud(ONPREM)?.write_policy("reviews", &rules::policy(more))
}

#[cfg(test)]
mod tests {
    use super::super::bookinfo::{Hop, Outcome};
    use super::*;

    fn answer(service: Service, cloud: &str, caller: Option<&str>, calls: Vec<Answer>) -> Answer {
        let by = Hop { service, version: Version(1), cloud: cloud.to_owned() };
        let call = |answer: Answer| Call {
            name: answer.by.service.fqdn(),
            address: None,
            ms: 1.0,
            outcome: Outcome::Answer(Box::new(answer)),
        };
        let calls = calls.into_iter().map(call).collect();
        Answer { by, caller: caller.map(str::to_owned), content: json!({}), calls }
    }

    /// All of a chain are judged, each by the one above it.
    #[test]
    fn callers_must_be_who_called() {
        let page = "spiffe://onprem.example/ns/bookinfo/sa/bookinfo-productpage";
        let reviews = "spiffe://gke.example/ns/bookinfo/sa/bookinfo-reviews";
        let chain = |by: Option<&str>| {
            let ratings = answer(Service::Ratings, "edge", by, Vec::new());
            let reviews = answer(Service::Reviews, "gke", Some(page), vec![ratings]);
            answer(Service::Productpage, "onprem", None, vec![reviews])
        };
        let mut seen = BTreeMap::new();
        callers(&chain(Some(reviews)), &mut seen).unwrap();
        assert_eq!(seen["reviews v1 (gke)"], BTreeMap::from([(page.to_owned(), 1)]));
        assert_eq!(seen["ratings v1 (edge)"], BTreeMap::from([(reviews.to_owned(), 1)]));
        for wrong in [None, Some(page)] {
            assert!(callers(&chain(wrong), &mut BTreeMap::new()).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_look_counts_who_answered_and_what_failed() {
        let reviews = answer(Service::Reviews, "gke", None, Vec::new());
        let page = answer(Service::Productpage, "onprem", None, vec![reviews]);
        let call = |outcome| Call { name: "page".to_owned(), address: None, ms: 1.0, outcome };
        let mut seen = Seen::default();
        seen.add(&call(Outcome::Answer(Box::new(page))));
        seen.add(&call(Outcome::Error("status 502".to_owned())));
        let mut twice = Seen::default();
        twice.extend(seen);
        assert_eq!(twice.to_string(), "2 requests: 1 by v1, 1 failed");
        assert_eq!(twice.first_error.as_deref(), Some("status 502"));
        assert!(twice.all_by(1).is_err());
    }
}

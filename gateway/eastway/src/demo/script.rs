//! The fixed script of `--once`: what it checks, and nothing that it has not measured.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::net::UdpSocket;

use super::bookinfo::{Call, Client, END_USER, Header, Service, Version};
use super::failover::{self, Asker};
use super::lab::Isolation;
use super::lab::cloud::Cloud;
use super::report::{Request, Step};
use super::story::{EDGE, GKE, ONPREM, OWN_NAMES, Story, WEIGHTS, Workload};
use super::{faults, names, routing};

/// Longest wait for the first answer, and for names to be there.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// Connections that the weights are measured on.
const CONNECTIONS: u32 = 1000;
/// Of these, at once.
pub(super) const AT_ONCE: usize = 16;
/// Calls that have to succeed in a row before the script begins.
const SETTLED_CALLS: u32 = 20;
/// Pause between two looks at something that has to come.
pub(super) const PAUSE: Duration = Duration::from_millis(10);

/// A run of the script.
#[derive(Debug)]
pub(super) struct Script<'a> {
    pub(super) story: &'a Story,
    started: Instant,
    requests: Mutex<Vec<Request>>,
}

impl<'a> Script<'a> {
    pub(super) fn new(story: &'a Story) -> Self {
        Self { story, started: Instant::now(), requests: Mutex::default() }
    }

    /// Waits until every version of every service has answered and nothing failed for a while: until
    /// then endpoints are still being found healthy, and a failure would say nothing.
    pub(super) async fn settled(&self) -> Result<()> {
        let asked = Instant::now();
        let (mut seen, mut in_a_row) = (BTreeSet::new(), 0);
        while seen.len() < WEIGHTS.len() || in_a_row < SETTLED_CALLS {
            let reviews = self.call("start", ONPREM, Service::Reviews).await?;
            let kiosk = self.call_beside("start", EDGE, Service::Kiosk, None).await?;
            let known = self.story.envoy.is_none() || self.is_page_known().await?;
            match (reviews.answer(), kiosk.answer()) {
                (Some(answer), Some(_)) if known => {
                    seen.insert(answer.by.version);
                    in_a_row += 1;
                }
                _ if asked.elapsed() > PATIENCE => {
                    bail!("not all services answer after {PATIENCE:?}: {reviews:?}, {kiosk:?}, the page known: {known}")
                }
                _ => {
                    in_a_row = 0;
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        Ok(())
    }

    /// Whether the page's Envoy proves to the sidecars of others who asks.
    async fn is_page_known(&self) -> Result<bool> {
        let page = self.page("start", None).await?;
        let is_known = |call: &Call| call.answer().is_some_and(|answer| answer.caller.is_some());
        Ok(page.answer().is_some_and(|answer| answer.calls.iter().all(is_known)))
    }

    /// All steps in order. A step that fails does not keep later ones from running.
    pub(super) async fn run(&self, tell: impl Fn(&Step)) -> Vec<Step> {
        let mut steps = Vec::new();
        let mut done = |name, result: Result<Value>| {
            let (ok, detail) = match result {
                Ok(detail) => (true, detail),
                Err(error) => (false, json!({"error": format!("{error:#}")})),
            };
            let step = Step { name, ok, detail };
            tell(&step);
            steps.push(step);
        };
        done("resolve", self.resolve().await);
        done("weights", self.weights("weights", 3).await);
        done("private-cluster", self.private_cluster().await);
        done("failover", failover::failover(self, "failover", Asker::Visitor).await);
        done("failback", failover::failback(self, "failback", Asker::Visitor).await);
        if self.story.envoy.is_some() {
            done("header", routing::header(self).await);
            done("split", routing::split(self).await);
            done("mirror", routing::mirror(self).await);
            done("timeout-retry", faults::timeout_retry(self).await);
            done("outlier", faults::outlier(self).await);
            done("mtls", routing::mtls(self).await);
            done("sidecar-failover", routing::sidecar_failover(self).await);
        }
        steps
    }

    /// Every request so far, in the order in which they were sent.
    pub(super) fn requests(&self) -> Vec<Request> {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone();
        requests.sort_by(|a, b| a.at_ms.total_cmp(&b.at_ms));
        requests
    }

    /// Drops them: a live demo may run for days.
    pub(super) fn forget_requests(&self) {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// What runs on each pod of a cloud, as it says when it is asked at its address.
    pub(super) async fn pods_of(&self, cloud: &Cloud) -> Result<BTreeMap<IpAddr, String>> {
        let mut pods = BTreeMap::new();
        for Workload { pod, service, .. } in self.story.workloads(cloud.name()) {
            let (client, address) = (Self::client(cloud)?, cloud.net().pod(pod));
            let call = cloud
                .net()
                .pods()
                .run(async move { Ok(client.call_at(SocketAddr::new(address, super::bookinfo::PORT), service).await) });
            let call = call.await?;
            let by = call.answer().map(|answer| format!("{} {}", answer.by.service.name(), answer.by.version));
            pods.insert(address, by.unwrap_or_else(|| call.error().unwrap_or_default().to_owned()));
        }
        Ok(pods)
    }

    fn client(cloud: &Cloud) -> Result<Client> {
        Ok(Client::new(cloud.dns(0)?, Story::visitor(cloud)))
    }

    /// The demo's client in `from` calls `service` by its name.
    pub(super) async fn call(&self, step: &'static str, from: &str, service: Service) -> Result<Call> {
        self.call_as(step, from, &service.fqdn(), service).await
    }

    async fn call_as(&self, step: &'static str, from: &str, name: &str, service: Service) -> Result<Call> {
        self.call_saying(step, from, (name, service), None).await
    }

    /// As [`Script::call`], by a name that leads to the service, with a header.
    pub(super) async fn call_saying(
        &self,
        step: &'static str,
        from: &str,
        (name, service): (&str, Service),
        header: Option<Header>,
    ) -> Result<Call> {
        let cloud = self.story.cloud(from)?;
        let (client, name) = (Self::client(cloud)?.saying(header), name.to_owned());
        self.record(step, from, cloud, async move { client.call_as(&name, service).await }).await
    }

    /// The demo's client calls a service that runs beside it, for `user`.
    pub(super) async fn call_beside(
        &self,
        step: &'static str,
        from: &str,
        service: Service,
        user: Option<&str>,
    ) -> Result<Call> {
        let (cloud, user) = (self.story.cloud(from)?, user.map(|user| (END_USER, user.to_owned())));
        let (client, address) = (Self::client(cloud)?.saying(user), self.story.local_address(from, service)?);
        self.record(step, from, cloud, async move { client.call_at(address, service).await }).await
    }

    /// Somebody reads on-prem's page.
    pub(super) async fn page(&self, step: &'static str, user: Option<&str>) -> Result<Call> {
        self.call_beside(step, ONPREM, Service::Productpage, user).await
    }

    async fn record<F>(&self, step: &'static str, from: &str, cloud: &Cloud, call: F) -> Result<Call>
    where
        F: Future<Output = Call> + Send + 'static,
    {
        let at = self.started.elapsed().as_secs_f64() * 1000.0;
        let call = cloud.net().pods().run(async move { Ok(call.await) }).await?;
        let request = Request::new(at, step, from, &call);
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).push(request);
        Ok(call)
    }

    /// Asks from two clouds until an answer came from another one; when that was, since `start`.
    pub(super) async fn first_answer(&self, start: std::time::SystemTime) -> Result<Duration> {
        let crossed = tokio::select! {
            crossed = self.until_crossed(ONPREM, Service::Reviews) => crossed,
            crossed = self.until_crossed(EDGE, Service::Details) => crossed,
        };
        crossed?;
        start.elapsed().context("the clock went back")
    }

    async fn until_crossed(&self, from: &str, service: Service) -> Result<()> {
        let asked = Instant::now();
        loop {
            let call = self.call("start", from, service).await?;
            if call.answer().is_some_and(|answer| answer.by.cloud != from) {
                return Ok(());
            }
            if asked.elapsed() > PATIENCE {
                bail!("no answer from another cloud within {PATIENCE:?}; the last one: {call:?}");
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Every name, in every cloud, by that cloud's DNS, to an address of its own range.
    async fn resolve(&self) -> Result<Value> {
        let mut resolved = BTreeMap::new();
        for cloud in &self.story.clouds {
            let services = [Service::Productpage, Service::Details, Service::Reviews, Service::Ratings];
            let mut wanted: Vec<String> = services.map(Service::fqdn).to_vec();
            if cloud.name() == ONPREM {
                wanted.extend(OWN_NAMES.map(|(name, _)| name.to_owned()));
            }
            for name in wanted {
                let address = self.until_resolved(cloud, &name).await?;
                ensure!(cloud.net().is_vip(address), "{name} is {address} in {}, not a virtual address", cloud.name());
                resolved.entry(cloud.name()).or_insert_with(BTreeMap::new).insert(name, address);
            }
        }
        let mut own = BTreeMap::new();
        for (name, owner) in OWN_NAMES {
            let Some(owner) = owner else { continue };
            let call = self.call_as("resolve", ONPREM, name, Service::Reviews).await?;
            let answer = call.answer().with_context(|| format!("{name}: {}", call.error().unwrap_or_default()))?;
            ensure!(answer.by.cloud == owner, "{name} was answered from {}, not {owner}", answer.by.cloud);
            own.insert(name, answer.by.clone());
        }
        Ok(json!({"names": resolved, "own_names_answered_by": own}))
    }

    pub(super) async fn until_resolved(&self, cloud: &Cloud, name: &str) -> Result<IpAddr> {
        let (server, asked) = (cloud.dns(0)?, Instant::now());
        loop {
            let owned = name.to_owned();
            let found = cloud.net().pods().run(async move { names::address_of(server, &owned).await }).await;
            match found {
                Err(_) if asked.elapsed() < PATIENCE => tokio::time::sleep(PAUSE).await,
                found => return found,
            }
        }
    }

    /// 1,000 connections from on-prem to reviews, shared between versions as the policy says, within `sigmas` standard
    /// deviations. Further off than 3 by chance is one run in 150, than 4 one in 7,000.
    pub(super) async fn weights(&self, step: &'static str, sigmas: u32) -> Result<Value> {
        let (counts, failed) = self.count_versions(step).await?;
        let counted = json!({"connections": CONNECTIONS, "counts": named(&counts), "failed": failed});
        ensure!(failed == 0, "{failed} of {CONNECTIONS} requests failed: {counted}");
        let off = off_by_more_than(sigmas, &counts);
        ensure!(off.is_empty(), "further than {sigmas} sigma from the weights: {counted}");
        let weights: BTreeMap<String, u32> = WEIGHTS.iter().map(|(v, weight)| (v.to_string(), *weight)).collect();
        Ok(json!({"weights": weights, "counted": counted, "tolerance": format!("{sigmas} sigma")}))
    }

    async fn count_versions(&self, step: &'static str) -> Result<(BTreeMap<Version, u32>, u32)> {
        let calls = futures_util::stream::iter(0..CONNECTIONS)
            .map(|_| self.call(step, ONPREM, Service::Reviews))
            .buffer_unordered(AT_ONCE);
        let mut calls = std::pin::pin!(calls);
        let (mut counts, mut failed) = (BTreeMap::new(), 0);
        while let Some(call) = calls.next().await {
            match call?.answer() {
                Some(answer) => *counts.entry(answer.by.version).or_default() += 1,
                None => failed += 1,
            }
        }
        Ok((counts, failed))
    }

    /// Edge takes part both ways although nothing can be opened towards it.
    async fn private_cluster(&self) -> Result<Value> {
        let imports = self.call_beside("private-cluster", EDGE, Service::Kiosk, None).await?;
        let answer = imports.answer().with_context(|| format!("kiosk: {}", imports.error().unwrap_or_default()))?;
        let page = answer.find(Service::Productpage).context("the kiosk shows no page")?;
        ensure!(page.by.cloud == ONPREM, "the kiosk's page came from {}", page.by.cloud);

        let exports = self.call("private-cluster", ONPREM, Service::Ratings).await?;
        let ratings = exports.answer().with_context(|| format!("ratings: {}", exports.error().unwrap_or_default()))?;
        ensure!(ratings.by.cloud == EDGE, "ratings came from {}", ratings.by.cloud);

        let edge = self.story.cloud(EDGE)?;
        let mut dialled = BTreeMap::new();
        for peer in edge.peers(0).await? {
            let others = self.story.cloud(&peer.name)?.peer(0, EDGE).await?;
            ensure!(others.addresses.is_empty(), "{} knows an address of edge: {:?}", peer.name, others.addresses);
            ensure!(!peer.links.is_empty(), "edge has no link to {}", peer.name);
            ensure!(peer.links.iter().all(|link| link.dialled), "edge accepted a link from {}", peer.name);
            dialled.insert(peer.name, peer.links.len());
        }
        let probe = match self.story.lab.isolation() {
            Isolation::Namespaces => self.probe_inbound().await?,
            Isolation::Loopback => json!("not possible on loopback"),
        };
        Ok(json!({
            "imports": format!("{} to {}: {} ms", EDGE, page.by.cloud, imports.ms.round()),
            "exports": format!("{} to {}: {} ms", ONPREM, ratings.by.cloud, exports.ms.round()),
            "links_dialled_by_edge": dialled,
            "guard": self.story.edge_guard,
            "probe_from_wan": probe,
        }))
    }

    /// A QUIC packet of a version that nobody speaks must be answered by a gateway that listens on the WAN
    /// (RFC 9000 §6.1), and by edge not at all.
    async fn probe_inbound(&self) -> Result<Value> {
        let mut seen = BTreeMap::new();
        for name in [GKE, EDGE] {
            let cloud = self.story.cloud(name)?;
            let gateway = cloud.net().gateways().first().context("no gateway")?;
            let target = SocketAddr::new(gateway.wan, super::lab::files::LINK_PORT);
            let answers = self.story.lab.wan().run(async move { Ok(answers_quic(target).await) }).await?;
            ensure!(answers == cloud.is_inbound(), "{name} answers on the WAN: {answers}");
            seen.insert(name, if answers { "answers" } else { "silent" });
        }
        Ok(json!(seen))
    }
}

/// Whether something at `target` answers a QUIC packet with an unknown version.
async fn answers_quic(target: SocketAddr) -> bool {
    // Long header, version 0x?a?a?a?a reserved for this (RFC 9000 §15), two 8-byte connection ids, padding to 1200.
    let mut packet = vec![0xc0, 0x1a, 0x2a, 0x3a, 0x4a, 8, 1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 7, 6, 5, 4, 3, 2, 1];
    packet.resize(1200, 0);
    let exchange = async {
        let socket = UdpSocket::bind("0.0.0.0:0").await?;
        socket.connect(target).await?;
        for _ in 0..3 {
            socket.send(&packet).await?;
            let answer = tokio::time::timeout(Duration::from_millis(150), socket.recv(&mut [0; 1500])).await;
            if let Ok(answer) = answer {
                return answer;
            }
        }
        Err(std::io::ErrorKind::TimedOut.into())
    };
    exchange.await.is_ok_and(|length| length > 0)
}

/// Versions whose share is further from its weight than `sigmas` standard deviations of a binomial distribution.
fn off_by_more_than(sigmas: u32, counts: &BTreeMap<Version, u32>) -> Vec<Version> {
    let total = f64::from(counts.values().sum::<u32>());
    let off = |version: &Version, weight: u32| {
        let share = f64::from(weight) / 100.0;
        let count = f64::from(counts.get(version).copied().unwrap_or(0));
        (count - total * share).abs() > f64::from(sigmas) * (total * share * (1.0 - share)).sqrt()
    };
    let mut wrong: Vec<Version> = WEIGHTS.iter().filter(|(v, weight)| off(v, *weight)).map(|(v, _)| *v).collect();
    wrong.extend(counts.keys().filter(|version| !WEIGHTS.iter().any(|(known, _)| known == *version)));
    wrong
}

fn named(counts: &BTreeMap<Version, u32>) -> BTreeMap<String, u32> {
    counts.iter().map(|(version, count)| (version.to_string(), *count)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(numbers: [u32; 3]) -> BTreeMap<Version, u32> {
        WEIGHTS.iter().map(|(version, _)| *version).zip(numbers).collect()
    }

    #[test]
    fn three_sigma_accepts_chance_and_nothing_else() {
        assert!(off_by_more_than(3, &counts([500, 300, 200])).is_empty());
        assert!(off_by_more_than(3, &counts([540, 290, 170])).is_empty());
        assert_eq!(off_by_more_than(3, &counts([552, 263, 185])), [Version(1)]);
        assert!(off_by_more_than(4, &counts([552, 263, 185])).is_empty());
        assert_eq!(off_by_more_than(3, &counts([1000, 0, 0])).len(), 3);
        let mut with_stranger = counts([500, 300, 200]);
        with_stranger.insert(Version(4), 1);
        assert_eq!(off_by_more_than(3, &with_stranger), [Version(4)]);
    }
}

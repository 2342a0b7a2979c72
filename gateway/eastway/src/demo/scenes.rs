//! The routing demo as the live demo plays it: scene after scene, over and over. In all of them [`USER`] gets v2.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Value, json};

use super::bookinfo::{Call, Service, Version};
use super::failover::set_link;
use super::faults::{self, DELAY, TIMEOUT, answer_with};
use super::routing::{self, Seen, USER, apply, asked, look, set_policy};
use super::script::Script;
use super::story::GKE;
use super::story::rules::{self, of_user, to_version};

/// How long a scene is shown.
const LENGTH: Duration = Duration::from_secs(12);
/// Requests of others than [`USER`] in each round of a scene.
const REQUESTS: u32 = 20;

/// What others than [`USER`] get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scene {
    AllToOne,
    Split,
    Copies,
    Timeout,
    Retries,
    BadPod,
    ToCloud,
    CloudLost,
    CloudBack,
}

const SCENES: [Scene; 9] = [
    Scene::AllToOne,
    Scene::Split,
    Scene::Copies,
    Scene::Timeout,
    Scene::Retries,
    Scene::BadPod,
    Scene::ToCloud,
    Scene::CloudLost,
    Scene::CloudBack,
];

impl Scene {
    fn title(self) -> &'static str {
        match self {
            Self::AllToOne => "all to v1",
            Self::Split => "80 % to v1, 20 % to v3",
            Self::Copies => "all to v1, and a copy of each request to v3, which nobody waits for",
            Self::Timeout => "held up for 2 s on purpose; the rule waits 300 ms, jason's has no limit",
            Self::Retries => "half of all tries are aborted on purpose, and tried again",
            Self::BadPod => "all to v2, of which pod 14 answers with errors: it alone is ejected",
            Self::ToCloud => "all to gke",
            Self::CloudLost => "all to gke, whose cable is pulled: on-prem serves",
            Self::CloudBack => "all to gke, whose cable is back",
        }
    }

    /// What the TrafficPolicy says beside the weights, and the rule.
    fn setup(self) -> (Value, Value) {
        match self {
            Self::AllToOne => (json!({}), to_version(1)),
            Self::Split => (json!({}), rules::split(80, 20)),
            Self::Copies => (json!({}), rules::copied(3)),
            Self::Timeout => (faults::held_up(DELAY), rules::limited(TIMEOUT)),
            Self::Retries => (faults::half_aborted(), rules::tried_again(faults::RETRIES)),
            Self::BadPod => (faults::ejecting(), to_version(2)),
            Self::ToCloud | Self::CloudLost | Self::CloudBack => (routing::soon_back(), rules::to_gke()),
        }
    }

    async fn begin(self, script: &Script<'_>) -> Result<()> {
        let (policy, rule) = self.setup();
        set_policy(script, &policy)?;
        apply(script, &[of_user(USER, 2), rule]).await?;
        self.upset(script, true).await
    }

    async fn end(self, script: &Script<'_>) -> Result<()> {
        self.upset(script, false).await
    }

    /// Breaks what is broken in it, or mends that.
    async fn upset(self, script: &Script<'_>, broken: bool) -> Result<()> {
        if self == Self::BadPod {
            answer_with(script, bad_pod(script), if broken { 500 } else { 200 }).await?;
        }
        if self == Self::CloudLost {
            set_link(script, !broken).await?;
        }
        Ok(())
    }

    /// Pods of gke whose own counters show what happens.
    fn watched(self, script: &Script<'_>) -> Vec<u8> {
        if !matches!(self, Self::Copies | Self::BadPod) {
            return Vec::new();
        }
        let version = if self == Self::Copies { Version(3) } else { Version(2) };
        script.story.pods(GKE, Service::Reviews, version).collect()
    }
}

/// The last of reviews v2.
fn bad_pod(script: &Script<'_>) -> u8 {
    script.story.pods(GKE, Service::Reviews, Version(2)).last().unwrap_or_default()
}

/// The scene that is on.
#[derive(Debug)]
pub(super) struct Play {
    number: usize,
    begun: Instant,
    seen: Seen,
    /// Pods that are watched, with what they had counted at the beginning and have counted since.
    pods: Vec<(u8, u64, u64)>,
}

impl Play {
    /// Begins with the first scene.
    pub(super) async fn begin(script: &Script<'_>) -> Result<Self> {
        let mut play = Self { number: 0, begun: Instant::now(), seen: Seen::default(), pods: Vec::new() };
        play.raise(script).await?;
        Ok(play)
    }

    fn scene(&self) -> Scene {
        SCENES.get(self.number).copied().unwrap_or(Scene::AllToOne)
    }

    async fn raise(&mut self, script: &Script<'_>) -> Result<()> {
        let scene = self.scene();
        self.pods.clear();
        for pod in scene.watched(script) {
            self.pods.push((pod, asked(script, GKE, pod).await?, 0));
        }
        scene.begin(script).await?;
        (self.begun, self.seen) = (Instant::now(), Seen::default());
        Ok(())
    }

    /// Goes on to the next scene when it is time; says whether it did.
    pub(super) async fn go_on(&mut self, script: &Script<'_>) -> Result<bool> {
        if self.begun.elapsed() < LENGTH {
            return Ok(false);
        }
        self.scene().end(script).await?;
        self.number = (self.number + 1) % SCENES.len();
        self.raise(script).await?;
        Ok(true)
    }

    /// One round of requests.
    pub(super) async fn count(&mut self, script: &Script<'_>) -> Result<()> {
        self.seen.extend(look(script, "live", REQUESTS, None).await?);
        for (pod, before, since) in &mut self.pods {
            *since = asked(script, GKE, *pod).await?.saturating_sub(*before);
        }
        Ok(())
    }

    /// Requests that were shown one by one count, too.
    pub(super) fn add(&mut self, call: &Call) {
        self.seen.add(call);
    }

    /// What is shown.
    pub(super) fn title(&self) -> String {
        format!("{}/{}       {USER}: v2; others: {}", self.number + 1, SCENES.len(), self.scene().title())
    }

    /// What was counted in it.
    pub(super) fn counted(&self) -> String {
        let pods = self.pods.iter().map(|(pod, _, since)| format!("{since} in pod {pod}"));
        let pods = pods.collect::<Vec<_>>().join(", ");
        if pods.is_empty() { self.seen.to_string() } else { format!("{}; gke's programs counted {pods}", self.seen) }
    }
}

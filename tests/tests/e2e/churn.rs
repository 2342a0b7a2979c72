//! Pods of a remote service that come and go under load.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use eastway_tests::kube::traffic::{self, Client};
use eastway_tests::kube::{Cluster, eastway as installed};
use eastway_tests::load::Failure;
use eastway_tests::{bed_tests, within};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);
const NAMESPACE: &str = "e2e-churn";
/// Requests per second, as many as the definition of "0 failed" asks for.
const RATE: u32 = 500;
/// Pods of the service.
const PODS: usize = 8;
/// Of these, how many go at once: as many as a machine of two cores can start beside the load.
const GO: usize = 4;
/// How often: each pod is killed where it stands, starts again, and is deleted as Kubernetes deletes pods.
const ROUNDS: usize = 50;
/// The end of a killed server's connections is on its way to the client for as long, on a busy machine.
const UNDER_WAY: Duration = Duration::from_millis(500);

/// Pods of the service, the oldest first.
async fn pods(cluster: &Cluster) -> Result<Vec<Value>> {
    let pods =
        cluster.get(&["pods", "-n", NAMESPACE, "-l", "app=echo", "--sort-by=.metadata.creationTimestamp"]).await?;
    pods["items"].as_array().cloned().context("a list")
}

fn name(pod: &Value) -> Option<String> {
    pod["metadata"]["name"].as_str().map(str::to_owned)
}

/// Those that answer and are not on their way out.
async fn ready(cluster: &Cluster) -> Result<Vec<String>> {
    let is_ready = |pod: &&Value| {
        pod["metadata"]["deletionTimestamp"].is_null() && pod["status"]["containerStatuses"][0]["ready"] == true
    };
    Ok(pods(cluster).await?.iter().filter(is_ready).filter_map(name).collect())
}

/// Those that were started again after they had ended.
async fn restarted(cluster: &Cluster) -> Result<Vec<String>> {
    let is_again = |pod: &&Value| pod["status"]["containerStatuses"][0]["restartCount"].as_u64() > Some(0);
    Ok(pods(cluster).await?.iter().filter(is_again).filter_map(name).collect())
}

/// A process has closed its connections when it is gone, or waits for somebody to hear of its end.
fn has_ended(pid: u32) -> bool {
    let state = |stat: &str| stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| matches!(state(&stat), Some('Z' | 'X')))
}

/// A kill: which pods, and from when to when. A process that is killed closes its connections when it gets time to.
#[derive(Debug)]
struct Kill {
    pods: BTreeSet<String>,
    from: Duration,
    until: Duration,
}

impl Kill {
    /// The request was in flight on a pod that was killed. Of one on a new connection nobody knows which pod it went to.
    fn excuses(&self, failure: &Failure) -> bool {
        let in_flight = failure.sent <= self.until + UNDER_WAY && failure.failed >= self.from;
        in_flight && failure.server.as_ref().is_none_or(|server| self.pods.contains(server))
    }
}

bed_tests! {
    /// 200 ends of pods, half of them by SIGKILL: nothing fails but what was in flight on a killed pod.
    async fn pods_that_come_and_go_fail_no_request(bed) limit 400 {
        installed::ready(bed).await?;
        let b = bed.cluster("b");
        let client = Client::start(bed, NAMESPACE, PODS).await?;
        let started = Instant::now();
        let load = client.load(RATE);
        let (mut kills, mut going, mut ends) = (Vec::new(), Vec::new(), 0);
        for round in 0..ROUNDS {
            within(PATIENCE, "all pods are ready", async || Ok(ready(b).await?.len() == PODS)).await?;
            if round % 2 == 0 {
                going = ready(b).await?.into_iter().take(GO).collect::<Vec<_>>();
                let pids = futures_util::future::try_join_all(going.iter().map(|pod| b.pod_process(NAMESPACE, pod))).await?;
                let from = load.elapsed();
                for pid in &pids {
                    kill(Pid::from_raw(i32::try_from(*pid)?), Signal::SIGKILL)?;
                }
                let ended = async || Ok(pids.iter().copied().all(has_ended));
                within(Duration::from_secs(5), "those that were killed end", ended).await?;
                kills.push(Kill { pods: going.iter().cloned().collect(), from, until: load.elapsed() });
                let again = async || {
                    let again = restarted(b).await?;
                    Ok(going.iter().all(|pod| again.contains(pod)))
                };
                within(PATIENCE, "the kubelet starts them again", again).await?;
            } else {
                let delete = ["delete", "pod", "-n", NAMESPACE, "--wait=false"];
                let arguments: Vec<&str> = delete.into_iter().chain(going.iter().map(String::as_str)).collect();
                b.kubectl(&arguments).await?;
            }
            ends += going.len();
        }
        within(PATIENCE, "all pods are ready", async || Ok(ready(b).await?.len() == PODS)).await?;
        let result = load.stop().await?;
        traffic::record(bed, "churn", &result, started.elapsed());
        bed.record("churn.pods_ended", ends);
        let excused = |failure: &Failure| kills.iter().any(|kill| kill.excuses(failure));
        bed.record("churn.failed_in_flight_on_killed", result.failures.iter().filter(|failure| excused(failure)).count());
        client.end(bed, NAMESPACE).await?;
        ensure!(ends >= 200, "{ends} pods ended");
        ensure!(result.by_server.len() > GO * ROUNDS / 4, "{} servers answered", result.by_server.len());
        result.failed_only(excused).with_context(|| format!("{kills:?}"))
    }
}

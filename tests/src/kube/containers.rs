//! Containers as the node has them: what there is to look at, and to break, while the API server is away.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::process::Command;
use tokio::time::sleep;

use super::Cluster;
use super::eastway::SYSTEM;
use super::process::output;
use crate::lab::place::Place;
use crate::until::within;

/// Longest pause of a kubelet before it starts a container again that ended a few times.
const RESTART: Duration = Duration::from_secs(90);
/// Longest end of a pod that was deleted.
const ENDING: Duration = Duration::from_secs(60);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(200);

/// A running container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Name of its pod.
    pub pod: String,
    /// Its first process, as the tests see it.
    pub pid: u32,
}

impl Container {
    /// The network of its pod, to run clients and servers in. It outlives the container, and ends with the pod.
    ///
    /// # Errors
    /// The container has ended.
    pub async fn place(&self) -> Result<Place> {
        Place::of_process(&self.pod, self.pid).await
    }

    /// What it answers to a GET on loopback, asked inside its pod; `None` if that is an error.
    ///
    /// # Errors
    /// The container has ended.
    pub async fn get(&self, port: u16, path: &str) -> Result<Option<String>> {
        let url = format!("http://127.0.0.1:{port}{path}");
        let asked = async move {
            let mut curl = Command::new("curl");
            curl.args(["--silent", "--fail", "--max-time", "2", &url]);
            Ok(output(&mut curl).await.ok())
        };
        self.place().await?.run(asked).await
    }

    /// A file as the container sees it.
    #[must_use]
    pub fn file(&self, path: &str) -> PathBuf {
        format!("/proc/{}/root{path}", self.pid).into()
    }

    /// Kills it as the kernel does that runs out of memory. The kubelet starts it again, at once the first time.
    ///
    /// # Errors
    /// It has ended already.
    pub fn kill(&self) -> Result<()> {
        kill(Pid::from_raw(self.pid.try_into()?), Signal::SIGKILL).with_context(|| format!("kill {}", self.pod))
    }
}

impl Cluster {
    /// Kills all gateways at once, and waits until the kubelet has started as many again.
    ///
    /// # Errors
    /// There are none, or they do not come again.
    pub async fn restart_gateways(&self) -> Result<Vec<Container>> {
        let before = self.containers(SYSTEM, "gateway").await?;
        ensure!(!before.is_empty(), "no gateway runs in {}", self.name());
        for gateway in &before {
            gateway.kill()?;
        }
        let again = async || {
            let running = self.containers(SYSTEM, "gateway").await?;
            Ok(running.len() == before.len() && !running.iter().any(|one| before.contains(one)))
        };
        within(RESTART, "the kubelet starts the gateways again", again).await?;
        self.containers(SYSTEM, "gateway").await
    }

    /// The running containers of this name in a namespace, by pod.
    ///
    /// # Errors
    /// containerd does not answer.
    pub async fn containers(&self, namespace: &str, container: &str) -> Result<Vec<Container>> {
        let tasks = output(self.node.ctr()?.args(["tasks", "ls"])).await?;
        let label = |name: &str, value: &str| format!("labels.\"io.kubernetes.{name}\"=={value}");
        let filter = [label("pod.namespace", namespace), label("container.name", container)].join(",");
        let ids = output(self.node.ctr()?.args(["containers", "ls", "-q", &filter])).await?;
        let mut found = Vec::new();
        for line in tasks.lines() {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            let [id, pid, "RUNNING"] = words.as_slice() else { continue };
            if !ids.lines().any(|known| known == *id) {
                continue;
            }
            let info: Value = serde_json::from_str(&output(self.node.ctr()?.args(["containers", "info", id])).await?)?;
            let pod = info["Labels"]["io.kubernetes.pod.name"].as_str().context("a pod's name")?;
            found.push(Container { pod: pod.to_owned(), pid: pid.parse()? });
        }
        found.sort_by(|a, b| a.pod.cmp(&b.pod));
        Ok(found)
    }

    /// The one running container of this name in a namespace whose pod is called `pod`; that of an earlier pod of the name
    /// is waited for to end.
    ///
    /// # Errors
    /// There is none, or more than one.
    pub async fn container(&self, namespace: &str, pod: &str, container: &str) -> Result<Container> {
        let started = Instant::now();
        loop {
            let mut all = self.containers(namespace, container).await?;
            all.retain(|one| one.pod == pod);
            if all.len() < 2 || started.elapsed() > ENDING {
                ensure!(all.len() == 1, "{} containers {container} in {namespace}/{pod}", all.len());
                return all.pop().context("one");
            }
            sleep(PAUSE).await;
        }
    }
}

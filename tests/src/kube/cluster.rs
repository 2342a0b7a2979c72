//! One cluster: bring-up, what a test may do to its programs, and the end.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use eastway_dns::client::{self, QueryType};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::Mutex;

use super::node::{API_PORT, CLUSTER_DNS, Node};
use super::pki::Pki;
use super::process::{self, Daemon};
use super::wan::{WAN_ADDRESS, Wan};
use crate::lab::place::Place;
use crate::until::within;

/// What every cluster gets: CoreDNS, and a cure for images without a tag.
const BASE: &str = include_str!("manifests/base.yaml");
/// Longest start of one part on a busy machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(90);

/// A program of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Program {
    /// Where the API server keeps everything.
    Etcd,
    /// The API server.
    ApiServer,
    /// The container runtime.
    Containerd,
    /// Deployments, endpoints, service accounts.
    ControllerManager,
    /// Gives pods their node.
    Scheduler,
    /// Runs pods.
    Kubelet,
    /// Makes Services work.
    Proxy,
}

impl Program {
    /// Its name in logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::ApiServer => "kube-apiserver",
            Self::Containerd => "containerd",
            Self::ControllerManager => "kube-controller-manager",
            Self::Scheduler => "kube-scheduler",
            Self::Kubelet => "kubelet",
            Self::Proxy => "kube-proxy",
        }
    }
}

/// What a cluster is made from.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its name.
    pub name: String,
    /// Its node's address on the WAN.
    pub address: Ipv4Addr,
    /// Address of its first pod; `None`: the first of the range, as in every other cluster.
    pub first_pod: Option<Ipv4Addr>,
}

impl Options {
    /// A cluster with this name and number, from 1 up.
    #[must_use]
    pub fn new(name: &str, number: u8) -> Self {
        let [a, b, c, _] = WAN_ADDRESS.octets();
        Self { name: name.to_owned(), address: Ipv4Addr::new(a, b, c, 10 + number), first_pod: None }
    }

    /// Name of its node.
    #[must_use]
    pub fn node(&self) -> String {
        format!("node-{}", self.name)
    }
}

/// A running cluster of one node.
#[derive(Debug)]
pub struct Cluster {
    pub(super) node: Node,
    place: Place,
    holder: Child,
    programs: Mutex<BTreeMap<Program, Daemon>>,
    logs: PathBuf,
    steps: Vec<(&'static str, Duration)>,
}

impl Cluster {
    /// Brings a cluster up, until names resolve in it.
    pub(super) async fn start(wan: &Wan, stage: &Path, options: Options, images: &[PathBuf]) -> Result<Self> {
        let cluster = Self::prepare_in(wan, stage, options).await?;
        let (name, logs) = (cluster.name().to_owned(), cluster.logs.clone());
        let up = cluster.bring_up(images).await;
        up.with_context(|| format!("cluster {name} does not come up; its logs are in {}", logs.display()))
    }

    /// Brings up a cluster that has an API server and nothing that acts on what is written there: whoever wants a pod
    /// writes its status, too.
    pub(super) async fn start_api(wan: &Wan, stage: &Path, options: Options) -> Result<Self> {
        let cluster = Self::prepare_in(wan, stage, options).await?;
        for program in [Program::Etcd, Program::ApiServer] {
            cluster.start_program(program).await?;
        }
        cluster.wait_api().await?;
        Ok(cluster)
    }

    /// Files, namespaces and cables of a cluster on this stage, and a place for its logs; no program yet.
    pub(super) async fn prepare_in(wan: &Wan, stage: &Path, options: Options) -> Result<Self> {
        // Not on the stage: whoever looks into a failure comes later.
        let logs = fresh_logs(&options.name)?;
        Self::prepare(wan, stage, options, logs).await
    }

    async fn prepare(wan: &Wan, stage: &Path, options: Options, logs: PathBuf) -> Result<Self> {
        let folder = stage.join(&options.name);
        let pki = Pki::make(&folder.join("pki"), &options.name, &options.node(), options.address)?;
        let node = Node { options, pki, folder };
        node.write_files()?;
        let (holder, pid) = hold(&node.folder).await?;
        wan.plug(&node.options.name, pid, node.options.address).await?;
        let place = Place::of_process(&node.options.node(), pid).await?;
        Ok(Self { node, place, holder, programs: Mutex::default(), logs, steps: Vec::new() })
    }

    async fn bring_up(mut self, images: &[PathBuf]) -> Result<Self> {
        let mut last = Instant::now();
        for program in [Program::Etcd, Program::ApiServer, Program::Containerd] {
            self.start_program(program).await?;
        }
        // The import needs no API server, which is busy with itself for seconds.
        let (imported, ready) = tokio::join!(self.load_images(images), self.wait_api());
        imported?;
        ready?;
        self.step("api", &mut last);
        for program in [Program::ControllerManager, Program::Scheduler, Program::Kubelet, Program::Proxy] {
            self.start_program(program).await?;
        }
        // Refused until the namespace has its service account.
        self.until("the base manifests are applied", async || self.apply(BASE).await.map(|_| true)).await?;
        self.step("manifests", &mut last);
        self.wait_dns().await?;
        self.step("dns", &mut last);
        Ok(self)
    }

    fn step(&mut self, name: &'static str, last: &mut Instant) {
        self.steps.push((name, last.elapsed()));
        *last = Instant::now();
    }

    pub(super) async fn wait_api(&self) -> Result<()> {
        let url = format!("https://{}:{API_PORT}/readyz", self.node.options.address);
        let authority = self.node.pki.file("ca.crt");
        self.until("the API server is ready", async || {
            let mut command = Command::new("curl");
            command.args(["--silent", "--fail", "--max-time", "2", "--header", "Authorization: Bearer admin"]);
            command.arg("--cacert").arg(&authority).arg(&url);
            Ok(process::output(&mut command).await.is_ok())
        })
        .await
    }

    async fn wait_dns(&self) -> Result<()> {
        self.until("names resolve in the cluster", async || {
            let asked = self.place.run(async {
                let server = SocketAddr::from((CLUSTER_DNS, 53));
                let name = "kubernetes.default.svc.cluster.local";
                Ok(client::query(server, name, QueryType::A, Duration::from_millis(200)).await?)
            });
            Ok(asked.await.is_ok_and(|answer| !answer.records.is_empty()))
        })
        .await
    }

    /// Waits for a condition, as long as every program runs.
    async fn until<F>(&self, what: &str, mut condition: impl FnMut() -> F) -> Result<()>
    where
        F: Future<Output = Result<bool>>,
    {
        let ended = std::sync::Mutex::new(None);
        let keep = |error| *ended.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        within(PATIENCE, what, || {
            let condition = condition();
            async {
                if let Err(error) = self.ensure_running().await {
                    keep(error);
                    return Ok(true);
                }
                condition.await
            }
        })
        .await?;
        ended.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.node.options.name
    }

    /// Its node's address on the WAN.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.node.options.address
    }

    /// Its node's network namespace, to run clients in.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Its keys, certificates and kubeconfigs.
    #[must_use]
    pub fn pki(&self) -> &Pki {
        &self.node.pki
    }

    /// The pid of the process that holds its namespaces, for `nsenter`.
    #[must_use]
    pub fn holder(&self) -> Option<u32> {
        self.holder.id()
    }

    /// What the steps of its start took.
    #[must_use]
    pub fn steps(&self) -> &[(&'static str, Duration)] {
        &self.steps
    }

    /// Where its programs' logs are.
    #[must_use]
    pub fn logs(&self) -> &Path {
        &self.logs
    }

    /// Starts a program that does not run.
    ///
    /// # Errors
    /// It runs, or its binary is missing.
    pub async fn start_program(&self, program: Program) -> Result<()> {
        let command = match program {
            Program::Etcd => self.node.etcd(),
            Program::ApiServer => self.node.api_server(),
            Program::Containerd => self.node.containerd(),
            Program::ControllerManager => self.node.controller_manager(),
            Program::Scheduler => self.node.scheduler(),
            Program::Kubelet => self.node.kubelet(),
            Program::Proxy => self.node.proxy(),
        }?;
        let holder = self.holder.id().context("the cluster has ended")?;
        let mut programs = self.programs.lock().await;
        ensure!(!programs.contains_key(&program), "{} runs already", program.name());
        programs.insert(program, Daemon::start(program.name(), Node::inside(holder, &command), &self.logs)?);
        Ok(())
    }

    /// Kills a program, as a machine that fails would.
    ///
    /// # Errors
    /// It does not run.
    pub async fn kill_program(&self, program: Program) -> Result<()> {
        let daemon = self.programs.lock().await.remove(&program);
        daemon.with_context(|| format!("{} does not run", program.name()))?.kill().await
    }

    /// That every program that was started still runs.
    ///
    /// # Errors
    /// One has ended; the message has the end of its log.
    pub async fn ensure_running(&self) -> Result<()> {
        self.programs.lock().await.values_mut().try_for_each(Daemon::ensure_running)
    }

    /// Starts again what ended by itself and a kubelet would start again, as these are pods elsewhere. Gives the names.
    ///
    /// # Errors
    /// One does not start.
    pub async fn revive(&self) -> Result<Vec<&'static str>> {
        let mut revived = Vec::new();
        for program in [Program::ControllerManager, Program::Scheduler] {
            let mut programs = self.programs.lock().await;
            if programs.get_mut(&program).is_some_and(|daemon| daemon.ensure_running().is_err()) {
                programs.remove(&program);
                drop(programs);
                self.start_program(program).await?;
                revived.push(program.name());
            }
        }
        Ok(revived)
    }

    /// A command to be run on its node: in its network and mount namespaces.
    ///
    /// # Errors
    /// The cluster has ended.
    pub fn on_node(&self, program: &str, arguments: &[&str]) -> Result<Command> {
        let holder = self.holder.id().context("the cluster has ended")?;
        let mut command = Command::new(program);
        command.args(arguments);
        Ok(Node::inside(holder, &command))
    }

    /// Makes images known to its node. Those already there under the same name are replaced.
    ///
    /// # Errors
    /// One is no docker-archive.
    pub async fn load_images(&self, tars: &[PathBuf]) -> Result<()> {
        let socket = self.node.containerd_socket();
        within(PATIENCE, "containerd listens", async || Ok(socket.exists())).await?;
        for tar in tars {
            process::output(self.node.ctr()?.args(["images", "import"]).arg(tar)).await?;
        }
        Ok(())
    }

    /// Gives new pods addresses from this one on; `None`: as the cluster was made.
    ///
    /// # Errors
    /// The network's configuration cannot be written.
    pub fn set_first_pod(&self, address: Option<Ipv4Addr>) -> Result<()> {
        self.node.write_network(address.or(self.node.options.first_pod))
    }

    /// Kills everything of it.
    ///
    /// # Errors
    /// A program cannot be killed.
    pub async fn stop(mut self) -> Result<()> {
        let mut programs = std::mem::take(&mut *self.programs.lock().await);
        // First what would start pods again.
        for daemon in programs.values_mut().rev() {
            daemon.kill().await?;
        }
        self.holder.kill().await.context("end the namespaces")
    }
}

/// A folder for logs, empty. Not on the stage: whoever looks into a failure comes later.
fn fresh_logs(name: &str) -> Result<PathBuf> {
    let logs = super::suite::results().join("logs").join(name);
    if logs.exists() {
        std::fs::remove_dir_all(&logs)?;
    }
    std::fs::create_dir_all(&logs)?;
    Ok(logs)
}

/// Starts the process that holds a cluster's mount and network namespaces.
async fn hold(folder: &Path) -> Result<(Child, u32)> {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--net", "--propagation", "private", "--", "bash", "-c", &Node::holder_script(folder)]);
    let mut holder = command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
    let mut lines = BufReader::new(holder.stdout.take().context("a pipe was asked for")?).lines();
    let said = lines.next_line().await?;
    ensure!(said.as_deref() == Some("holds"), "the node's namespaces cannot be prepared: see above");
    let pid = holder.id().context("the holder has ended")?;
    Ok((holder, pid))
}

//! Two ends of traffic as pods: a service that answers what nobody else would, and the network namespace of a
//! client's pod.
//!
//! The server is the test's own program in an image, started with [`SERVE`] and, if it is to take its time, with the
//! milliseconds before each answer. It ends as a server in Kubernetes should:
//! told to stop, it goes on answering, says `connection: close` with each answer, and leaves when it has been
//! taken out of balancing and nobody is connected any more.

use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};

use super::image::{self, Image};
use super::{Bed, Cluster, process, seconds, stage};
use crate::lab::place::Place;
use crate::load::{self, Load, Plan, Record};
use crate::{servers, within};

/// What the test's program is started with to be the server.
pub const SERVE: &str = "serve-echo";
/// Port of the service.
pub const PORT: u16 = 80;
/// Bytes of each answer of a load.
const SIZE: usize = 1_000;
/// Port of its pods.
pub const TARGET: u16 = 8080;
/// The image of the server.
pub const ECHO: &str = "eastway.test/echo:1";
/// A pod that is told to stop is still chosen until all have heard of it.
const LINGER: Duration = Duration::from_secs(3);
/// Longest wait for a pod.
const PATIENCE: Duration = Duration::from_secs(60);

/// Is the server, if that is what this program was started for.
///
/// # Panics
/// It cannot listen: there is nobody to tell but the pod's log.
#[must_use]
pub fn serve_if_asked() -> Option<ExitCode> {
    if std::env::args().nth(1).as_deref() != Some(SERVE) {
        return None;
    }
    let after =
        std::env::args().nth(2).and_then(|text| text.parse().ok()).map_or(Duration::ZERO, Duration::from_millis);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(serve(after)).expect("a server");
    Some(ExitCode::SUCCESS)
}

async fn serve(after: Duration) -> Result<()> {
    let listener = TcpListener::bind(SocketAddr::from(([0; 4], TARGET))).await?;
    let name: Arc<str> = std::env::var("HOSTNAME").unwrap_or_default().into();
    let (leaving, open) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut told = signal(SignalKind::terminate())?;
    let mut since: Option<Instant> = None;
    let mut looks = tokio::time::interval(Duration::from_millis(100));
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                open.fetch_add(1, Ordering::Relaxed);
                let (name, leaving, open) = (Arc::clone(&name), Arc::clone(&leaving), Arc::clone(&open));
                tokio::spawn(async move {
                    // How a connection ends is for its client to judge.
                    let _ended = converse(stream, (&name, after), &leaving).await;
                    open.fetch_sub(1, Ordering::Relaxed);
                });
            }
            _ = told.recv() => {
                leaving.store(true, Ordering::Relaxed);
                since.get_or_insert_with(Instant::now);
            }
            _ = looks.tick() => {
                let unknown = since.is_some_and(|since| since.elapsed() > LINGER);
                if unknown && open.load(Ordering::Relaxed) == 0 {
                    return Ok(());
                }
            }
        }
    }
}

async fn converse(stream: TcpStream, (name, after): (&str, Duration), leaving: &AtomicBool) -> Result<()> {
    stream.set_nodelay(true)?;
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    while let Some(request) = lines.next_line().await? {
        while !lines.next_line().await?.context("cut short")?.is_empty() {}
        if !after.is_zero() {
            tokio::time::sleep(after).await;
        }
        let last = leaving.load(Ordering::Relaxed);
        write.write_all(&servers::answer(&request, name, last)).await?;
        if last {
            break;
        }
    }
    Ok(write.shutdown().await?)
}

/// Makes the image of the server known to a cluster.
///
/// # Errors
/// It cannot be written or loaded.
pub async fn load_echo(cluster: &Cluster) -> Result<()> {
    let tar = stage::folder()?.join("images/echo.tar");
    if !tar.exists() {
        let program = std::env::current_exe().context("a test knows its file")?;
        let image = Image::with_shell(ECHO, &["/usr/bin/echo-server", SERVE])?;
        image.program("usr/bin/echo-server", &program).await?.write(&tar).await?;
    }
    cluster.load_images(&[tar]).await
}

/// The service `echo` in `namespace`: exported, and open to all workloads of this namespace in cluster `client`.
#[must_use]
pub fn echo(namespace: &str, replicas: usize, client: &str) -> String {
    let meta = json!({"name": "echo", "namespace": namespace});
    let labels = json!({"app": "echo"});
    let container = json!({
        "name": "echo", "image": ECHO, "imagePullPolicy": "IfNotPresent",
        // A machine that starts pods all the time may be late with a probe; the pod is none the less ready for it.
        "readinessProbe": {"tcpSocket": {"port": TARGET}, "periodSeconds": 1, "timeoutSeconds": 5},
        // Without a request a pod is the last to get time on a busy machine.
        "resources": {"requests": {"cpu": "50m"}},
    });
    list(&[
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}),
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": meta,
            "spec": {"selector": labels, "ports": [{"name": "http", "port": PORT, "targetPort": TARGET}]},
        }),
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta,
            "spec": {
                "replicas": replicas, "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {"containers": [container], "terminationGracePeriodSeconds": 20},
                },
            },
        }),
        json!({"apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceExport", "metadata": meta}),
        json!({
            "apiVersion": "eastway.dev/v1alpha1", "kind": "AccessPolicy", "metadata": meta,
            "spec": {
                "services": ["echo"],
                "allow": [{"cluster": client, "namespace": namespace, "serviceAccounts": ["*"]}],
            },
        }),
    ])
}

/// A pod `client` in `namespace` that does nothing itself.
#[must_use]
pub fn client(namespace: &str) -> String {
    list(&[
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}),
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "client", "namespace": namespace},
            "spec": {
                "containers": [{"name": "client", "image": image::BUSYBOX, "command": ["sleep", "infinity"]}],
                "terminationGracePeriodSeconds": 0,
            },
        }),
    ])
}

fn list(items: &[Value]) -> String {
    json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
}

/// A pod of cluster `a` that can use the service `echo` of the same namespace in cluster `b`.
#[derive(Debug)]
pub struct Client {
    /// The pod's network namespace.
    pub place: Place,
    /// The pod's own address.
    pub source: IpAddr,
    /// The service's address in `a`, with its port.
    pub target: SocketAddr,
}

impl Client {
    /// Starts both, until the one has an answer of the other.
    ///
    /// # Errors
    /// Something of it does not start.
    pub async fn start(bed: &Bed, namespace: &str, replicas: usize) -> Result<Self> {
        let (a, b) = (bed.cluster("a"), bed.cluster("b"));
        load_echo(b).await?;
        b.apply(&echo(namespace, replicas, "a")).await?;
        a.apply(&client(namespace)).await?;
        b.rollout("deploy/echo", namespace, PATIENCE).await?;
        let address: IpAddr = super::eastway::imported(a, namespace, "echo").await?.parse()?;
        let place = a.pod_place(namespace, "client").await?;
        let (source, target) = (a.pod_ip(namespace, "client").await?, SocketAddr::new(address, PORT));
        let client = Self { place, source, target };
        let first = async || Ok(client.place.run(load::ask_once(source, target, 100)).await.is_ok());
        within(PATIENCE, "a first answer of the other cluster", first).await?;
        Ok(client)
    }

    /// Starts asking.
    #[must_use]
    pub fn load(&self, rate: u32) -> Load {
        Load::start(&self.place, Plan { source: self.source, target: self.target, rate, size: SIZE })
    }

    /// Removes both.
    ///
    /// # Errors
    /// They do not go.
    pub async fn end(self, bed: &Bed, namespace: &str) -> Result<()> {
        for cluster in bed.clusters() {
            cluster.kubectl(&["delete", "namespace", namespace, "--wait=false"]).await?;
        }
        Ok(())
    }
}

/// Keeps what a load measured, as `<name>.requests` and so on, and prints why requests failed.
pub fn record(bed: &Bed, name: &str, record: &Record, took: Duration) {
    let milliseconds = |duration: Duration| duration.as_secs_f64() * 1000.0;
    bed.record(&format!("{name}.requests"), record.sent);
    bed.record(&format!("{name}.failed"), record.failures.len());
    bed.record(&format!("{name}.connections"), record.connections);
    bed.record(&format!("{name}.seconds"), seconds(took));
    bed.record(&format!("{name}.per_second"), record.sent as f64 / took.as_secs_f64());
    for (of_1000, label) in [(500, "p50"), (990, "p99"), (999, "p99_9")] {
        bed.record(&format!("{name}.{label}_ms"), milliseconds(record.quantile(of_1000)));
    }
    bed.record(&format!("{name}.slowest_ms"), milliseconds(record.slowest));
    bed.record(&format!("{name}.late"), record.late);
    bed.record(&format!("{name}.client_stood_still_ms"), milliseconds(record.stood_still));
    for ((second, reason), count) in record.failed_by_second() {
        println!("  {name}: {count} requests of second {second} failed: {reason}");
    }
}

impl Cluster {
    /// The network namespace of a pod, for sockets that are as good as its own.
    ///
    /// # Errors
    /// The pod does not run.
    pub async fn pod_place(&self, namespace: &str, pod: &str) -> Result<Place> {
        self.wait("condition=Ready", &["pod", pod, "-n", namespace], PATIENCE).await?;
        let pid = self.pod_process(namespace, pod).await?;
        Place::of_process(&format!("{}-{pod}", self.name()), pid).await
    }

    /// The pid of a pod's first container, as the stage sees it.
    ///
    /// # Errors
    /// It does not run.
    pub async fn pod_process(&self, namespace: &str, pod: &str) -> Result<u32> {
        let pod = self.get(&["pod", pod, "-n", namespace]).await?;
        let id = pod["status"]["containerStatuses"][0]["containerID"].as_str().context("no container yet")?;
        let id = id.trim_start_matches("containerd://");
        let listed = process::output(self.node.ctr()?.args(["tasks", "list"])).await?;
        let line = listed.lines().find(|line| line.starts_with(id)).context("the container does not run")?;
        let pid = line.split_ascii_whitespace().nth(1).context("a line has a pid")?;
        Ok(pid.parse()?)
    }

    /// Makes an image known under another name too.
    ///
    /// # Errors
    /// There is no such image.
    pub async fn copy_image(&self, from: &str, to: &str) -> Result<()> {
        let full = |name: &str| format!("docker.io/library/{name}");
        process::output(self.node.ctr()?.args(["images", "tag", "--force", &full(from), &full(to)])).await.map(drop)
    }

    /// The address of a pod.
    ///
    /// # Errors
    /// It has none yet.
    pub async fn pod_ip(&self, namespace: &str, pod: &str) -> Result<IpAddr> {
        let pod = self.get(&["pod", pod, "-n", namespace]).await?;
        Ok(pod["status"]["podIP"].as_str().context("no address yet")?.parse()?)
    }
}

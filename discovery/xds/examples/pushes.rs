//! Counts what pushes to many delta clients cost a server, for measurements (`bench/xds/run`).
//!
//! `pushes ADDRESS CLIENTS STEPS COMMAND…` starts the server, connects the clients, which want everything, as sidecars do,
//! and then lets one resource change for each line that it writes to the server. A step is over when every client has
//! the change and the server their acknowledgements are on the way. Prints one JSON object.
#![allow(clippy::print_stdout, reason = "its result goes there")]

use std::error::Error;
use std::fs;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use eastway_proto::envoy::config::core::v3 as core;
use eastway_proto::xds::discovery as wire;
use eastway_proto::xds::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use eastway_xds::Kind;
use prost::Message as _;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Longest wait for a step.
const PATIENCE: Duration = Duration::from_secs(60);
/// Clients that connect at a time.
const AT_ONCE: usize = 50;
/// What clusters with endpoints of their own begin with.
const SERVICES: &str = "outbound|";
/// Units of CPU time that Linux counts in, per second (`man 7 time`, USER_HZ).
const TICKS: f64 = 100.0;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().ok_or("whom to connect to?")?;
    let clients: usize = arguments.next().ok_or("how many clients?")?.parse()?;
    let steps: usize = arguments.next().ok_or("how many steps?")?.parse()?;
    let mut server = Server::start(&arguments.collect::<Vec<_>>()).await?;
    let empty = server.resident()?;
    let (told, mut tellings) = mpsc::unbounded_channel();
    let room = Arc::new(Semaphore::new(AT_ONCE));
    for number in 0..clients {
        tokio::spawn(client(address.clone(), number, Arc::clone(&room), told.clone()));
    }
    drop(told);
    wait(&mut tellings, clients).await?;
    let full = server.resident()?;
    let (before, began) = (server.cpu()?, Instant::now());
    let mut took = Vec::new();
    for _ in 0..steps {
        let begin = Instant::now();
        server.step().await?;
        wait(&mut tellings, clients).await?;
        took.push(begin.elapsed());
    }
    let (cpu, wall) = (server.cpu()? - before, began.elapsed().as_secs_f64());
    took.sort();
    let pushes = f64::from(u32::try_from(clients * steps)?);
    let per_client = full.saturating_sub(empty) / u64::try_from(clients)?;
    let last_client = took.get(steps / 2).ok_or("no step")?.as_secs_f64() * 1_000.0;
    println!(
        "{{\"pushes\": {pushes}, \"cpu_s\": {cpu:.2}, \"wall_s\": {wall:.2}, \"pushes_per_cpu_s\": {:.0}, \
         \"bytes_per_client\": {per_client}, \"last_client_ms_p50\": {last_client:.2}}}",
        pushes / cpu
    );
    server.child.kill().await?;
    Ok(())
}

/// Until every client has told once more.
async fn wait(tellings: &mut mpsc::UnboundedReceiver<Outcome<()>>, clients: usize) -> Outcome<()> {
    let all = async {
        for _ in 0..clients {
            tellings.recv().await.ok_or("all clients are gone")??;
        }
        Ok(())
    };
    tokio::time::timeout(PATIENCE, all).await.map_err(|_| "not all clients were told in time")?
}

/// The server under test.
struct Server {
    child: Child,
    input: ChildStdin,
    pid: u32,
}

impl Server {
    async fn start(command: &[String]) -> Outcome<Self> {
        let (program, arguments) = command.split_first().ok_or("which server?")?;
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let input = child.stdin.take().ok_or("no input")?;
        let output = child.stdout.take().ok_or("no output")?;
        let line = BufReader::new(output).lines().next_line().await?;
        if line.as_deref() != Some("ready") {
            return Err(format!("the server said {line:?}").into());
        }
        let pid = child.id().ok_or("the server ended")?;
        Ok(Self { child, input, pid })
    }

    async fn step(&mut self) -> Outcome<()> {
        self.input.write_all(b"step\n").await?;
        Ok(self.input.flush().await?)
    }

    /// CPU time of all its threads so far, seconds.
    fn cpu(&self) -> Outcome<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid))?;
        let (_, fields) = stat.rsplit_once(") ").ok_or("no stat")?;
        let ticks: f64 = fields.split(' ').skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
        Ok(ticks / TICKS)
    }

    /// Memory that it holds, bytes.
    fn resident(&self) -> Outcome<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no memory")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1_024)
    }
}

/// One sidecar: tells when it has everything, and once for every change after that.
async fn client(address: String, number: usize, room: Arc<Semaphore>, told: mpsc::UnboundedSender<Outcome<()>>) {
    if let Err(error) = follow(&address, number, &room, &told).await {
        // Whoever counts may have gone.
        let _gone = told.send(Err(format!("client {number}: {error}").into()));
    }
}

async fn follow(
    address: &str,
    number: usize,
    room: &Semaphore,
    told: &mpsc::UnboundedSender<Outcome<()>>,
) -> Outcome<()> {
    let mut permit = Some(room.acquire().await?);
    let channel = Endpoint::from_shared(format!("http://{address}"))?.connect().await?;
    let (sender, requests) = mpsc::channel(16);
    let node = core::Node {
        id: format!("sidecar~{number}.bench"),
        cluster: "client.bench".to_owned(),
        ..core::Node::default()
    };
    let node = Bytes::from(node.encode_to_vec());
    for kind in [Kind::Cluster, Kind::Listener] {
        let request = wire::DeltaDiscoveryRequest {
            node: node.clone(),
            type_url: kind.url().to_owned(),
            ..wire::DeltaDiscoveryRequest::default()
        };
        sender.send(request).await?;
    }
    let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(64 << 20);
    let mut responses = client.delta_aggregated_resources(ReceiverStream::new(requests)).await?.into_inner();
    // Large answers come in parts; those of endpoints and routes come last.
    let (mut wanted, mut endpoints, mut routes) = (0, 0, 0);
    while let Some(response) = responses.message().await? {
        let kind = Kind::parse(&response.type_url)?;
        let mut answer = wire::DeltaDiscoveryRequest {
            type_url: response.type_url,
            response_nonce: response.nonce,
            ..wire::DeltaDiscoveryRequest::default()
        };
        sender.send(answer.clone()).await?;
        if permit.is_none() {
            told.send(Ok(()))?;
            continue;
        }
        match kind {
            Kind::Cluster => {
                let mut names = Vec::new();
                for resource in &response.resources {
                    let name = wire::Resource::decode(resource.clone())?.name;
                    names.extend(name.starts_with(SERVICES).then_some(name));
                }
                wanted += names.len();
                answer.response_nonce.clear();
                answer.resource_names_subscribe = names;
                for kind in [Kind::Endpoints, Kind::Route] {
                    kind.url().clone_into(&mut answer.type_url);
                    sender.send(answer.clone()).await?;
                }
            }
            Kind::Endpoints => endpoints += response.resources.len(),
            Kind::Route => routes += response.resources.len(),
            Kind::Listener | Kind::Secret | Kind::VirtualHost | Kind::ScopedRoute | Kind::Extension | Kind::Runtime => {
            }
        }
        if wanted > 0 && endpoints == wanted && routes == wanted {
            permit = None;
            told.send(Ok(()))?;
        }
    }
    Err("the server ended the stream".into())
}

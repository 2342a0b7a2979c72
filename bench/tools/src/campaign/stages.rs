//! What is measured on which network.

use rustix::process::{Resource, getrlimit};

use crate::bed::Road;
use crate::measure::Flows;
use crate::rivals::{Rival, Service};

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scale {
    /// At most five minutes.
    pub(super) quick: bool,
    /// Instead of a stage's own.
    pub(super) rounds: Option<usize>,
    /// Instead of a stage's own.
    pub(super) seconds: Option<u32>,
}

impl Scale {
    fn rounds(&self, full: usize) -> usize {
        self.rounds.unwrap_or(if self.quick { full.min(2) } else { full })
    }

    fn seconds(&self, full: u32) -> u32 {
        self.seconds.unwrap_or(if self.quick { full.div_ceil(4) } else { full })
    }
}

/// Measurements on one network.
#[derive(Clone, Debug)]
pub(super) struct Stage {
    /// In results.
    pub(super) name: &'static str,
    /// The goals it has figures for.
    pub(super) cases: &'static [&'static str],
    pub(super) road: Road,
    pub(super) rounds: usize,
    /// Measured without a tunnel before and after each round, to see whether the machine stayed the same.
    pub(super) guard: Option<Flows>,
    /// Tunnels are started anew for each round: what they have kept from the last would falsify this one.
    pub(super) fresh: bool,
    pub(super) entries: Vec<Entry>,
}

/// One measurement of a round.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// Unique within a stage: `envoy/8`.
    pub(super) label: String,
    pub(super) rival: Rival,
    pub(super) task: Task,
    /// Only in every so many rounds: what no goal is about.
    pub(super) every: usize,
}

/// What is done.
#[derive(Clone, Copy, Debug)]
pub(super) enum Task {
    /// iperf3.
    Goodput(Flows),
    /// One byte and back, beside a flow that takes what there is.
    PingBeside(Flows),
    /// 16 connections, 1,000 questions a second.
    Rpc { seconds: u32 },
    /// 32 connections, 10 questions a second each, beside a flow that takes what there is.
    RpcBeside(Flows),
    /// New connections.
    Connect { threads: u32, seconds: u32 },
    /// Connections that are kept.
    Idle { connections: u32 },
    /// Packets of 1,200 bytes at rising rates, so long each.
    Packets { milliseconds: u32 },
}

impl Task {
    /// The server it goes to.
    pub(super) fn service(self) -> Service {
        match self {
            Self::Goodput(_) => Service::Iperf,
            Self::PingBeside(_) | Self::Rpc { .. } | Self::RpcBeside(_) | Self::Connect { .. } | Self::Idle { .. } => {
                Service::Echo
            }
            Self::Packets { .. } => Service::Packets,
        }
    }
}

impl Stage {
    /// Whether it has figures for one of these goals; of no goals: yes.
    pub(super) fn is_wanted(&self, goals: &[String]) -> bool {
        goals.is_empty() || goals.iter().any(|goal| self.cases.contains(&goal.as_str()))
    }

    fn on(name: &'static str, cases: &'static [&'static str], road: Road, rounds: usize) -> Self {
        Self { name, cases, road, rounds, guard: None, fresh: false, entries: Vec::new() }
    }

    fn add(&mut self, rivals: &[Rival], every: usize, what: &str, task: Task) {
        for rival in rivals {
            let label = format!("{}/{what}", rival.name());
            self.entries.push(Entry { label, rival: *rival, task, every });
        }
    }
}

/// A wire with frames of this size.
fn wire(mtu: u16) -> Road {
    Road { mtu, wan: None, congestion: "cubic".to_owned() }
}

/// A line of 200 Mbit/s, 50 ms there and back, that loses one packet in a hundred each way. Its queue is twice what is
/// on the line.
fn lossy(congestion: &str) -> Road {
    let way = "delay=25,loss=0.01,rate=200,queue=2500000";
    Road { mtu: 1500, wan: Some([way, way].map(str::to_owned)), congestion: congestion.to_owned() }
}

/// All of them, in the order in which they are measured.
pub(super) fn all(scale: &Scale) -> Vec<Stage> {
    let mut stages = vec![
        goodput(scale),
        jumbo(scale),
        latency(scale),
        connections(scale),
        idle(scale),
        packets(scale),
        loss(scale),
        loss_cubic(scale),
        far(scale),
    ];
    stages.retain(|stage| !stage.entries.is_empty());
    stages
}

const fn flows(count: u32, warm_up: u32, seconds: u32) -> Flows {
    Flows { count, warm_up, seconds }
}

fn goodput(scale: &Scale) -> Stage {
    let mut stage = Stage::on("wire-1500", &["G1", "G2", "G2A", "G3", "G4", "G5"], wire(1500), scale.rounds(9));
    let seconds = scale.seconds(3);
    for count in [1, 8] {
        let (what, task) = (count.to_string(), Task::Goodput(flows(count, 1, seconds)));
        let goals = [Rival::Direct, Rival::Pump, Rival::Envoy, Rival::Wireguard, Rival::Quic, Rival::Link];
        stage.add(&goals, 1, &what, task);
        if !scale.quick {
            stage.add(&[Rival::PumpChunks, Rival::Tls], 1, &what, task);
            stage.add(&[Rival::EnvoyH2, Rival::EnvoyH3, Rival::Haproxy, Rival::Rathole], 3, &what, task);
        }
    }
    let sixteen: &[Rival] = if scale.quick { &[Rival::Quic] } else { &[Rival::Direct, Rival::Quic] };
    stage.add(sixteen, 1, "16", Task::Goodput(flows(16, 1, seconds)));
    stage.guard = Some(flows(1, 0, 1));
    stage
}

fn jumbo(scale: &Scale) -> Stage {
    let mut stage = Stage::on("wire-9000", &["G2", "G4"], wire(9000), scale.rounds(9));
    for count in [1, 8] {
        let task = Task::Goodput(flows(count, 1, scale.seconds(3)));
        stage.add(&[Rival::Direct, Rival::Envoy, Rival::Quic], 1, &count.to_string(), task);
    }
    stage.guard = Some(flows(1, 0, 1));
    stage
}

fn latency(scale: &Scale) -> Stage {
    let mut stage = Stage::on("latency", &["G8", "G8A"], wire(1500), scale.rounds(9));
    let seconds = scale.seconds(4);
    let rivals = [Rival::Direct, Rival::Envoy, Rival::Quic];
    // The 99th percentile of a few seconds is as much the scheduler's as anybody's.
    stage.add(&rivals, 1, "rpc", Task::Rpc { seconds: if scale.quick { seconds } else { 2 * seconds } });
    stage.add(&rivals, 1, "ping-beside", Task::PingBeside(flows(1, 1, seconds)));
    if !scale.quick {
        let others = [Rival::EnvoyH2, Rival::Wireguard];
        stage.add(&others, 3, "rpc", Task::Rpc { seconds });
        stage.add(&others, 3, "ping-beside", Task::PingBeside(flows(1, 1, seconds)));
    }
    stage
}

fn connections(scale: &Scale) -> Stage {
    let mut stage = Stage::on("connections", &["G10"], wire(1500), scale.rounds(9));
    for threads in [1, 16] {
        let task = Task::Connect { threads, seconds: scale.seconds(2) };
        stage.add(&[Rival::Direct, Rival::Envoy, Rival::Quic], 1, &format!("connect-{threads}"), task);
        if !scale.quick {
            stage.add(&[Rival::EnvoyH2, Rival::Haproxy], 3, &format!("connect-{threads}"), task);
        }
    }
    stage
}

fn idle(scale: &Scale) -> Stage {
    let mut stage = Stage::on("idle", &["G11"], wire(1500), scale.rounds(3));
    stage.fresh = true;
    // A connection takes up to three descriptors of a gateway, and some systems allow no more than 20,000: our gateways
    // then serve 5,000 connections.
    let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let connections = if descriptors >= 65_536 { 10_000 } else { 4_800 };
    stage.add(&[Rival::Quic], 1, "idle", Task::Idle { connections });
    if !scale.quick {
        stage.add(&[Rival::Envoy, Rival::EnvoyH2], 3, "idle", Task::Idle { connections });
    }
    stage
}

fn packets(scale: &Scale) -> Stage {
    let mut stage = Stage::on("packets", &["G12"], wire(1500), scale.rounds(9));
    let task = Task::Packets { milliseconds: if scale.quick { 300 } else { 500 } };
    stage.add(&[Rival::Wireguard, Rival::Quic], 1, "udp-1200", task);
    if !scale.quick {
        stage.add(&[Rival::Direct], 3, "udp-1200", task);
    }
    stage
}

fn loss(scale: &Scale) -> Stage {
    let mut stage = Stage::on("loss", &["G6", "G7"], lossy("bbr"), scale.rounds(9));
    let warm_up = if scale.quick { 2 } else { 3 };
    let task = Task::Goodput(flows(1, warm_up, scale.seconds(6)));
    stage.add(&[Rival::Envoy, Rival::Quic], 1, "1", task);
    let task = Task::RpcBeside(flows(1, warm_up, scale.seconds(6)));
    stage.add(&[Rival::EnvoyH2, Rival::Quic], 1, "rpc-beside", task);
    if !scale.quick {
        stage.add(&[Rival::Envoy, Rival::Wireguard], 3, "rpc-beside", task);
    }
    stage
}

/// The same with what most systems have: the kernel's default for TCP.
fn loss_cubic(scale: &Scale) -> Stage {
    let mut stage = Stage::on("loss-cubic", &["G6"], lossy("cubic"), scale.rounds(3));
    let task = Task::Goodput(flows(1, 3, scale.seconds(6)));
    if !scale.quick {
        stage.add(&[Rival::Envoy, Rival::EnvoyH2, Rival::Wireguard], 1, "1", task);
    }
    stage
}

fn far(scale: &Scale) -> Stage {
    let way = "delay=50";
    let road = Road { mtu: 1500, wan: Some([way, way].map(str::to_owned)), congestion: "cubic".to_owned() };
    let mut stage = Stage::on("far", &["G9"], road, scale.rounds(9));
    let task = Task::Connect { threads: 1, seconds: scale.seconds(3).max(2) };
    stage.add(&[Rival::Direct, Rival::Quic], 1, "connect-1", task);
    if !scale.quick {
        stage.add(&[Rival::Envoy, Rival::EnvoyH2, Rival::Haproxy], 3, "connect-1", task);
    }
    stage
}

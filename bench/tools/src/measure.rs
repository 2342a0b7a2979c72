//! What is measured of a tunnel that runs, one thing at a time.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::bed::{CLIENTS, Place, logs, own_program};
use crate::load::idle::OPEN;
use crate::process::{Process, output};
use crate::rivals::{self, Running, Service};

/// What a measurement found, by name.
pub type Metrics = BTreeMap<String, f64>;

/// Kernel ticks of `/proc/stat` in a second.
const TICKS: f64 = 100.0;
/// For what is measured to come to its end, beyond its time.
const GRACE: u32 = 15;
/// After connections were opened, before memory is looked at.
const SETTLE: Duration = Duration::from_secs(3);

/// What the machine's processors did since it was started, in seconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu {
    /// Work, everybody's.
    pub busy: f64,
    /// Wanted and not given by the host.
    pub steal: f64,
    /// All there was.
    pub all: f64,
}

impl Cpu {
    /// Until now.
    ///
    /// # Errors
    /// `/proc/stat` is not as known.
    pub fn now() -> Result<Self> {
        let text = std::fs::read_to_string("/proc/stat")?;
        let line = text.lines().next().context("/proc/stat is empty")?;
        let ticks: Vec<f64> = line.split_whitespace().skip(1).map(str::parse).collect::<Result<_, _>>()?;
        // user nice system idle iowait irq softirq steal; guest time is part of user time.
        ensure!(ticks.len() >= 8, "/proc/stat: {line}");
        let all: f64 = ticks[..8].iter().sum();
        Ok(Self { busy: (all - ticks[3] - ticks[4] - ticks[7]) / TICKS, steal: ticks[7] / TICKS, all: all / TICKS })
    }

    /// Since `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self { busy: self.busy - earlier.busy, steal: self.steal - earlier.steal, all: self.all - earlier.all }
    }
}

/// An iperf3 client: TCP connections for so long after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flows {
    /// At the same time.
    pub count: u32,
    /// Seconds before the figures.
    pub warm_up: u32,
    /// Seconds.
    pub seconds: u32,
}

impl Flows {
    fn command(self, target: SocketAddr) -> Command {
        let limit = (self.warm_up + self.seconds + GRACE).to_string();
        let mut command = Place::Cli.command("timeout");
        command.args(["-k", "1", &limit, "iperf3", "-J", "--connect-timeout", "5000"]);
        command.args(["-c", &target.ip().to_string(), "-p", &target.port().to_string(), "-P", &self.count.to_string()]);
        command.args(["-t", &self.seconds.to_string(), "-O", &self.warm_up.to_string()]);
        command
    }
}

/// Megabits per second that arrived, and the processor time that it took, everybody's.
///
/// # Errors
/// iperf3 fails.
pub fn goodput(target: SocketAddr, flows: Flows) -> Result<Metrics> {
    let _server = rivals::iperf(Service::Iperf)?;
    let (before, started) = (Cpu::now()?, Instant::now());
    let report = output(&mut flows.command(target))?;
    let (spent, took) = (Cpu::now()?.since(before), started.elapsed());
    let mbit = received(&report)?;
    // The warm-up costs processor time as well, and its bytes are not in the sum: by the rate they are.
    let gigabytes = mbit / 8e3 * took.min(Duration::from_secs((flows.warm_up + flows.seconds).into())).as_secs_f64();
    Ok(Metrics::from([("mbit".to_owned(), mbit), ("cpu_s_per_gb".to_owned(), spent.busy / gigabytes)]))
}

fn received(report: &str) -> Result<f64> {
    let report: Value = serde_json::from_str(report).context("iperf3's report")?;
    let received = report["end"]["sum_received"]["bits_per_second"].as_f64();
    let mbit = received.with_context(|| format!("iperf3: {}", report["error"]))? / 1e6;
    ensure!(mbit > 0.0, "nothing arrived");
    Ok(mbit)
}

/// Runs `eastway-bench load` at the clients and gives what it found; `seconds` is how long it works.
///
/// # Errors
/// It fails or takes much longer.
pub fn load(seconds: u32, arguments: &[String]) -> Result<Metrics> {
    let mut command = Place::Cli.command("timeout");
    command.args(["-k", "1", &(seconds + GRACE).to_string()]).arg(own_program()?).arg("load").args(arguments);
    let printed = output(&mut command)?;
    serde_json::from_str(printed.trim()).with_context(|| printed.clone())
}

/// [`load`] while `flows` go to `target`, after their warm-up; what these reached is `bulk_mbit`.
///
/// # Errors
/// Either fails.
pub fn beside(target: SocketAddr, flows: Flows, arguments: &[String]) -> Result<Metrics> {
    let _server = rivals::iperf(Service::Bulk)?;
    let log = logs().join("bulk.log");
    let mut bulk = Process::start(&logs(), "bulk", flows.command(target))?;
    std::thread::sleep(Duration::from_secs(flows.warm_up.into()));
    let mut found = load(flows.seconds, arguments)?;
    bulk.wait_for_end(Duration::from_secs((flows.seconds + GRACE).into()))?;
    found.insert("bulk_mbit".to_owned(), received(&std::fs::read_to_string(log)?)?);
    Ok(found)
}

/// Memory of an open connection through `running` that nothing goes through, kB: of the gateway where it is more.
///
/// # Errors
/// Connections are refused, or a gateway has ended.
pub fn idle_connections(running: &Running, target: SocketAddr, connections: u32) -> Result<Metrics> {
    let before = running.memory()?;
    let mut command = Place::Cli.command(own_program()?);
    command.args(["load", "idle", &target.to_string(), "--connections", &connections.to_string()]);
    command.args(["--sources", &CLIENTS.join(",")]);
    let log = logs().join("idle.log");
    let mut process = Process::start(&logs(), "idle", command)?;
    let open = || Ok(std::fs::read_to_string(&log)?.lines().any(|line| line == OPEN));
    process.wait_until("all connections are open", Duration::from_secs(120), open)?;
    // What was needed to open them goes.
    std::thread::sleep(SETTLE);
    let after = running.memory()?;
    let grown = before
        .iter()
        .zip(&after)
        .map(|((name, before), (_, after))| (format!("{name}_kb"), (after - before) / f64::from(connections)));
    let mut found: Metrics = grown.collect();
    let most = found.values().copied().fold(0.0, f64::max);
    found.insert("kb".to_owned(), most);
    found.insert("connections".to_owned(), connections.into());
    Ok(found)
}

//! The rounds of one stage.
//!
//! A round does not count if the host took more than [`STEAL`] of the processors, or if the direct way was faster before
//! it than after it by more than [`APART`], or the reverse; another is measured then, up to [`MORE`] as many in all. If
//! nothing is left, all count, and the results say so.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::stages::{Entry, Stage, Task};
use crate::bed;
use crate::measure::{self, Cpu, Metrics};
use crate::process::output;
use crate::rivals::{self, Programs, Rival, Running, Service};
use crate::statistics::median;

/// Share of a round's processor time.
const STEAL: f64 = 0.01;
/// Share of the slower one.
const APART: f64 = 0.10;
/// Times that the WAN may be too late before it counts as inexact.
const WAN_TRIES: usize = 5;
/// Rounds that are tried for one that is wanted.
const MORE: f64 = 4.0 / 3.0;

/// What was found in one round.
#[derive(Clone, Debug, Default)]
pub(super) struct Round {
    /// By the entries' labels.
    pub(super) found: BTreeMap<String, Metrics>,
    /// What failed, and how.
    failed: BTreeMap<String, String>,
    /// Mbit/s without a tunnel before and after it.
    guards: Vec<f64>,
    /// Share of the processor time that the host took.
    steal: f64,
    /// Why it does not count.
    dropped: Option<String>,
}

/// All of a stage.
#[derive(Clone, Debug, Default)]
pub(super) struct Rounds {
    all: Vec<Round>,
    /// Too few counted, so that all do.
    noisy: bool,
}

type Tunnels = BTreeMap<Rival, Running>;

/// Runs them. One measurement that fails is noted, and is missing in its round.
pub(super) fn run(stage: &Stage, programs: &Programs) -> Result<Rounds> {
    let _server = rivals::echo()?;
    let mut running = Tunnels::new();
    if !stage.fresh {
        for rival in stage.entries.iter().map(|entry| entry.rival).chain([Rival::Direct]).collect::<BTreeSet<_>>() {
            match start(rival, stage, programs) {
                Ok(tunnel) => drop(running.insert(rival, tunnel)),
                // The others are measured all the same; each round says that it was missing.
                Err(error) => eprintln!("{}: {error:#}", stage.name),
            }
        }
    }
    let mut rounds = Rounds::default();
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small number of rounds")]
    let most = (stage.rounds as f64 * MORE) as usize;
    while rounds.counted().count() < stage.rounds && rounds.all.len() < most.max(stage.rounds) {
        let number = rounds.all.len();
        let round = once(stage, number, &mut running, programs)?;
        if let Some(reason) = &round.dropped {
            eprintln!("{} {number} does not count: {reason}", stage.name);
        }
        rounds.all.push(round);
    }
    // Two thirds are better than what comes of a machine that was busy all the time.
    rounds.noisy = rounds.counted().count() * 3 < stage.rounds * 2;
    Ok(rounds)
}

fn start(rival: Rival, stage: &Stage, programs: &Programs) -> Result<Running> {
    Running::start(rival, programs, stage.road.mtu).with_context(|| format!("start {}", rival.name()))
}

fn once(stage: &Stage, number: usize, running: &mut Tunnels, programs: &Programs) -> Result<Round> {
    let mut round = Round::default();
    let before = Cpu::now()?;
    round.guard(stage, running)?;
    let mut entries: Vec<&Entry> = stage.entries.iter().filter(|entry| number.is_multiple_of(entry.every)).collect();
    if !number.is_multiple_of(2) {
        entries.reverse();
    }
    for entry in entries {
        if stage.fresh {
            running.clear();
            running.insert(entry.rival, start(entry.rival, stage, programs)?);
        }
        let tunnel = running.get(&entry.rival).context("it does not run");
        match tunnel.and_then(|tunnel| take(entry.task, tunnel)) {
            Ok(metrics) => {
                eprintln!("{} {number} {:24} {}", stage.name, entry.label, short(&metrics));
                round.found.insert(entry.label.clone(), metrics);
            }
            Err(error) => {
                eprintln!("{} {number} {:24} failed: {error:#}", stage.name, entry.label);
                round.failed.insert(entry.label.clone(), format!("{error:#}"));
            }
        }
    }
    round.guard(stage, running)?;
    let spent = Cpu::now()?.since(before);
    round.judge(spent.steal / spent.all);
    Ok(round)
}

fn short(metrics: &Metrics) -> String {
    metrics
        .iter()
        .filter(|(name, _)| !name.ends_with("_ms"))
        .map(|(name, value)| format!("{name} {value:.2}"))
        .collect::<Vec<_>>()
        .join(", ")
}

fn take(task: Task, running: &Running) -> Result<Metrics> {
    let (target, bulk) = (running.target(task.service())?, running.target(Service::Bulk)?);
    let words =
        |text: &str| text.replace("TARGET", &target.to_string()).split(' ').map(str::to_owned).collect::<Vec<_>>();
    match task {
        Task::Goodput(flows) => measure::goodput(target, flows),
        Task::PingBeside(flows) => {
            measure::beside(bulk, flows, &words(&format!("ping TARGET --seconds {}", flows.seconds)))
        }
        Task::Rpc { seconds } => {
            let arguments = format!("rpc TARGET --connections 16 --rate 1000 --seconds {seconds}");
            measure::load(seconds, &words(&arguments))
        }
        Task::RpcBeside(flows) => {
            let arguments = format!("rpc TARGET --connections 32 --rate 320 --seconds {}", flows.seconds);
            measure::beside(bulk, flows, &words(&arguments))
        }
        Task::Connect { threads, seconds } => {
            let arguments = format!("connect TARGET --threads {threads} --seconds {seconds}");
            measure::load(seconds, &words(&arguments))
        }
        Task::Packets { milliseconds } => {
            let counts = Running::direct().target(Service::Echo)?;
            let seconds = f64::from(milliseconds) / 1e3;
            measure::load(milliseconds / 100, &words(&format!("udp TARGET {counts} --size 1200 --seconds {seconds}")))
        }
        Task::Idle { connections } => measure::idle_connections(running, target, connections),
    }
}

impl Rounds {
    /// Those that count.
    pub(super) fn counted(&self) -> impl Iterator<Item = &Round> {
        self.all.iter().filter(|round| self.noisy || round.dropped.is_none())
    }

    /// The medians, and every figure they come from.
    pub(super) fn json(&self, stage: &Stage) -> Value {
        let mut medians = serde_json::Map::new();
        for entry in &stage.entries {
            let mut by_metric: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
            for metrics in self.counted().filter_map(|round| round.found.get(&entry.label)) {
                for (name, value) in metrics {
                    by_metric.entry(name).or_default().push(*value);
                }
            }
            let figures: BTreeMap<_, _> = by_metric.iter().map(|(name, values)| (*name, median(values))).collect();
            medians.insert(entry.label.clone(), json!(figures));
        }
        let rounds: Vec<Value> = self.all.iter().map(Round::json).collect();
        let road = json!({"mtu": stage.road.mtu, "wan": stage.road.wan, "congestion": stage.road.congestion});
        json!({"road": road, "medians": medians, "noisy": self.noisy, "counted": self.counted().count(), "rounds": rounds})
    }
}

impl Round {
    /// Measures the direct way, if the stage wants it.
    fn guard(&mut self, stage: &Stage, running: &Tunnels) -> Result<()> {
        let Some(flows) = stage.guard else { return Ok(()) };
        let direct = running.get(&Rival::Direct).context("it does not run")?;
        let metrics = measure::goodput(direct.target(Service::Iperf)?, flows).context("the direct way")?;
        self.guards.extend(metrics.get("mbit"));
        Ok(())
    }

    fn judge(&mut self, steal: f64) {
        self.steal = steal;
        if steal > STEAL {
            self.dropped = Some(format!("the host took {:.1} % of the processors", steal * 100.0));
        }
        if let [before, after] = self.guards[..] {
            let apart = before.max(after) / before.min(after) - 1.0;
            if apart > APART {
                self.dropped = Some(format!("the direct way differed by {:.0} % before and after", apart * 100.0));
            }
        }
    }

    fn json(&self) -> Value {
        json!({"found": self.found, "failed": self.failed, "guards": self.guards, "steal": self.steal, "dropped": self.dropped})
    }
}

/// The simulated WAN must be as exact as what is measured on it needs: the median `ping` within 0.3 ms of the delay, and
/// at least twice the goodput that stages limit it to.
///
/// # Errors
/// It is not.
pub(super) fn check_wan() -> Result<Value> {
    let way = ["delay=25", "delay=25"].map(str::to_owned);
    let road = bed::Road { mtu: 1500, wan: Some(way), congestion: "cubic".to_owned() };
    let _bed = bed::Bed::lay(&road)?;
    let mut took = f64::INFINITY;
    // What else the machine does can only make it later.
    for _ in 0..WAN_TRIES {
        let mut ping = bed::Place::GwA.command(bed::own_program()?);
        let said = output(ping.args(["load", "icmp", bed::WAN_B]))?;
        let found: Metrics = serde_json::from_str(said.trim())?;
        took = took.min(found.get("p50_us").context("no median")? / 1e3);
        if took <= 50.3 {
            break;
        }
    }
    ensure!((took - 50.0).abs() <= 0.3, "a ping takes {took} ms where 50 were set: is the machine busy?");
    let direct = Running::direct().target(Service::Iperf)?;
    let mut mbit = 0.0_f64;
    // TCP grows slowly on such a line, and takes a processor that is busy for a queue.
    for seconds in 3..3 + WAN_TRIES {
        let flows = measure::Flows { count: 16, warm_up: 2, seconds: u32::try_from(seconds)? };
        mbit = mbit.max(measure::goodput(direct, flows)?.get("mbit").copied().unwrap_or_default());
        if mbit >= 400.0 {
            break;
        }
    }
    ensure!(mbit >= 400.0, "{mbit} Mbit/s go through without a limit: too little for a limit of 200");
    Ok(json!({"ping_ms": took, "set_ms": 50, "mbit_without_limit": mbit}))
}

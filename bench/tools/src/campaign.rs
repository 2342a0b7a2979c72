//! The whole comparison: stages on networks of their own, rounds within a stage, ratios within a round.
//!
//! In a round everything of a stage is measured once, one after the other, every second round in the opposite order, with
//! the direct way first and last. Figures are compared within a round only, so that what comes and goes on the machine
//! meets all alike. See `rounds` for when a round does not count.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use serde_json::{Value, json};
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

use crate::bed::Bed;
use crate::certificates;
use crate::report;
use crate::rivals::{self, Programs};

mod goals;
pub mod keep;
mod rounds;
mod setup;
mod stages;

use stages::{Scale, Stage};

/// What is installed where; bench/run knows.
#[derive(Clone, Debug, clap::Args)]
pub struct Installed {
    /// Our release binary
    #[arg(long)]
    eastway: PathBuf,
    /// Envoy's binary
    #[arg(long)]
    envoy: PathBuf,
    /// rathole's binary
    #[arg(long)]
    rathole: PathBuf,
    /// wireguard-go's binary
    #[arg(long)]
    wireguard: PathBuf,
    /// Folder of the tunnels' configurations
    #[arg(long)]
    peers: PathBuf,
}

impl Installed {
    fn programs(&self) -> Programs {
        Programs {
            eastway: self.eastway.clone(),
            envoy: self.envoy.clone(),
            rathole: self.rathole.clone(),
            wireguard: self.wireguard.clone(),
            peers: self.peers.clone(),
        }
    }
}

/// Arguments of `eastway-bench run`.
#[derive(Debug, Parser)]
pub struct Args {
    #[command(flatten)]
    installed: Installed,
    /// Where the figures go. They become those of the documents only if all was measured, by --quick or in full
    #[arg(long, default_value = "bench/results")]
    results: PathBuf,
    /// The document with the figures
    #[arg(long, default_value = "docs/performance.md")]
    documents: PathBuf,
    /// Few and short rounds
    #[arg(long)]
    quick: bool,
    /// Goals, e.g. "G1 G6"; none: all
    #[arg(long, default_value = "")]
    cases: String,
    /// Rounds of each stage, instead of its own number
    #[arg(long)]
    rounds: Option<usize>,
    /// Seconds of each measurement, instead of its own
    #[arg(long)]
    seconds: Option<u32>,
    /// Print the stages and their goals, and end
    #[arg(long)]
    list: bool,
}

/// Runs it to its end, or until a signal comes.
///
/// # Errors
/// A stage cannot be laid, or nothing was measured.
pub fn run(args: Args) -> Result<ExitCode> {
    until_signal(move || measure(&args))
}

/// The network and some tunnels, while a command runs.
///
/// # Errors
/// Something does not come up, or the command fails.
pub fn keep(args: keep::Args) -> Result<ExitCode> {
    until_signal(move || keep::run(&args))
}

fn until_signal(work: impl FnOnce() -> Result<()> + Send + 'static) -> Result<ExitCode> {
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let result = runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            result = tokio::task::spawn_blocking(work) => result?.map(|()| ExitCode::SUCCESS),
            _ = interrupt.recv() => Ok(ExitCode::from(130)),
            _ = terminate.recv() => Ok(ExitCode::from(143)),
        }
    });
    // What still works is not waited for: with process 1 all others end, and their namespaces with them.
    runtime.shutdown_background();
    result
}

fn measure(args: &Args) -> Result<()> {
    let wanted: Vec<String> =
        args.cases.split([' ', ',']).filter(|case| !case.is_empty()).map(str::to_uppercase).collect();
    let scale = Scale { quick: args.quick, rounds: args.rounds, seconds: args.seconds };
    let stages: Vec<Stage> = stages::all(&scale).into_iter().filter(|stage| stage.is_wanted(&wanted)).collect();
    ensure!(!stages.is_empty(), "no stage measures {}: --list shows what there is", args.cases);
    if args.list {
        for stage in &stages {
            println!("{:10} {}", stage.name, stage.cases.join(" "));
        }
        return Ok(());
    }
    let programs = args.installed.programs();
    certificates::write(&rivals::tls())?;
    let simulated = stages.iter().any(|stage| stage.road.wan.is_some());
    let wan = if simulated { rounds::check_wan().context("the simulated WAN")? } else { Value::Null };
    let started = Instant::now();
    let mut measured = Vec::new();
    for stage in stages {
        let _bed = Bed::lay(&stage.road).with_context(|| format!("lay the network of {}", stage.name))?;
        let rounds = rounds::run(&stage, &programs).with_context(|| stage.name.to_owned())?;
        measured.push((stage, rounds));
    }
    let ratios = goals::ratios(&measured);
    print(&ratios);
    let stages: serde_json::Map<String, Value> =
        measured.iter().map(|(stage, rounds)| (stage.name.to_owned(), rounds.json(stage))).collect();
    let mut setup = setup::read(&programs)?;
    setup["quick"] = args.quick.into();
    setup["seconds"] = started.elapsed().as_secs().into();
    setup["wan_check"] = wan;
    let results = json!({"setup": setup, "ratios": ratios, "stages": stages});
    let all = wanted.is_empty() && args.rounds.is_none() && args.seconds.is_none();
    let file = args.results.join(if all { "latest.json" } else { "partial.json" });
    std::fs::write(&file, format!("{results:#}\n")).with_context(|| file.display().to_string())?;
    eprintln!("{} s, figures in {}", started.elapsed().as_secs(), file.display());
    if all { report::write(&args.results, &args.documents) } else { Ok(()) }
}

fn print(ratios: &Value) {
    for (key, ratio) in ratios.as_object().into_iter().flatten() {
        let met = ratio["met"].as_str().unwrap_or("");
        println!(
            "{key:16} {:8} {:20} {met:7} {}",
            ratio["median"],
            ratio["ci95"],
            ratio["what"].as_str().unwrap_or("")
        );
    }
}

//! The programs of the benchmark; see the library.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use eastway_bench::{campaign, load, pump, report, wan};

/// Measures the tunnel beside others.
#[derive(Debug, Parser)]
#[command(name = "eastway-bench", version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the whole comparison; only as process 1 of the namespaces that bench/run makes
    Run(campaign::Args),
    /// Keeps the network and some tunnels while a command runs; as process 1, like run
    Keep(campaign::keep::Args),
    /// A plain tunnel on quinn with its stock settings
    Pump(pump::Args),
    /// A line between two TUN devices, with delay, loss and a rate
    Wan(wan::Args),
    /// Writes plots and documents anew from the figures that are there
    Report(report::Args),
    /// Either end of the load
    Load(load::Args),
}

fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::Run(args) => campaign::run(args),
        Command::Keep(args) => campaign::keep(args),
        Command::Pump(args) => pump::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Wan(args) => wan::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Report(args) => report::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Load(args) => load::run(&args).map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        eprintln!("eastway-bench: {error:#}");
        ExitCode::FAILURE
    })
}

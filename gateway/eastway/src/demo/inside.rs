//! The process inside: builds the clouds, then runs the script or the live table.

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use super::Output;
use super::lab::Isolation;

/// Arguments of the hidden command `demo-lab`.
#[derive(Debug, clap::Parser)]
#[command(name = "eastway demo-lab")]
pub(super) struct Args {
    #[arg(long, value_enum)]
    isolation: Isolation,
    /// Why not namespaces.
    #[arg(long)]
    reason: Option<String>,
    #[arg(long)]
    once: bool,
    #[arg(long, value_enum)]
    output: Output,
    /// When the demo was started, microseconds since the Unix epoch.
    #[arg(long)]
    started: u64,
}

/// The command line that makes a process the inside of the demo.
pub(super) fn command_line(
    args: &super::Args,
    isolation: Isolation,
    reason: Option<&str>,
    started: SystemTime,
) -> Result<Vec<OsString>> {
    let started = started.duration_since(UNIX_EPOCH).context("the clock is before 1970")?.as_micros();
    let mut line = vec!["demo-lab".to_owned(), format!("--started={started}")];
    line.push(format!("--isolation={}", value_name(&isolation)));
    line.push(format!("--output={}", value_name(&args.output)));
    line.extend(args.once.then(|| "--once".to_owned()));
    line.extend(reason.map(|reason| format!("--reason={reason}")));
    Ok(line.into_iter().map(OsString::from).collect())
}

fn value_name(value: &impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

/// Runs it.
pub(super) fn run(args: Args) -> Result<ExitCode> {
    let started = UNIX_EPOCH + Duration::from_micros(args.started);
    let Args { isolation, reason, once, output, .. } = args;
    bail!("not built yet: {isolation:?} {reason:?} {once} {output:?} {started:?}")
}

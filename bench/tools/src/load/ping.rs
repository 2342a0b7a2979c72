//! One byte there and one back, the next when it has come: what a person at a terminal feels.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Parser;

use super::{Asker, latencies, microseconds};
use crate::measure::Metrics;

/// Arguments of `eastway-bench load ping`.
#[derive(Debug, Parser)]
pub(super) struct Args {
    target: SocketAddr,
    /// Seconds
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
}

pub(super) fn run(args: &Args) -> Result<Metrics> {
    let mut asker = Asker::connect(None, args.target, 1, 1)?;
    asker.ask()?;
    let end = Instant::now() + Duration::try_from_secs_f64(args.seconds)?;
    let mut took = Vec::new();
    while Instant::now() < end {
        let started = Instant::now();
        asker.ask()?;
        took.push(microseconds(started.elapsed()));
    }
    Ok(latencies(took))
}

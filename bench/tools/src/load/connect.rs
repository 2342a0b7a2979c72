//! New connections: connect, ask, be answered, be closed. The server closes first, so that the client's ports are free
//! at once.

use std::io::Read;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;

use super::serve::ASK_AND_CLOSE;
use super::{Asker, latencies, microseconds};
use crate::measure::Metrics;

/// Arguments of `eastway-bench load connect`.
#[derive(Debug, Parser)]
pub(super) struct Args {
    target: SocketAddr,
    /// At the same time
    #[arg(long, default_value_t = 1)]
    threads: u32,
    /// Seconds
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
}

pub(super) fn run(args: &Args) -> Result<Metrics> {
    let started = Instant::now();
    let end = started + Duration::try_from_secs_f64(args.seconds)?;
    let target = args.target;
    let threads: Vec<_> = (0..args.threads).map(|_| std::thread::spawn(move || connect(target, end))).collect();
    let mut took = Vec::new();
    for thread in threads {
        took.extend(thread.join().ok().context("a thread panicked")??);
    }
    let count = f64::from(u32::try_from(took.len())?);
    let mut metrics = latencies(took);
    metrics.insert("per_s".to_owned(), count / started.elapsed().as_secs_f64());
    Ok(metrics)
}

fn connect(target: SocketAddr, end: Instant) -> Result<Vec<f64>> {
    let mut took = Vec::new();
    while Instant::now() < end {
        let started = Instant::now();
        let mut asker = Asker::connect(None, target, ASK_AND_CLOSE, 1)?;
        asker.ask()?;
        took.push(microseconds(started.elapsed()));
        ensure!(asker.stream.read(&mut [0])? == 0, "more than the answer");
    }
    Ok(took)
}

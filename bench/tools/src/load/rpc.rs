//! Questions at a constant rate. A question has a time at which it is due; what one waits because the one before it on
//! its connection is not answered yet counts as its latency, too, so that a stall costs what it would cost users.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;

use super::{Asker, latencies, microseconds};
use crate::measure::Metrics;

/// Arguments of `eastway-bench load rpc`.
#[derive(Debug, Parser)]
pub(super) struct Args {
    target: SocketAddr,
    /// Connections
    #[arg(long, default_value_t = 16)]
    connections: u32,
    /// Questions a second, on all connections together
    #[arg(long, default_value_t = 1000)]
    rate: u32,
    /// Bytes of an answer
    #[arg(long, default_value_t = 1000)]
    size: u32,
    /// Seconds
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
}

pub(super) fn run(args: &Args) -> Result<Metrics> {
    let askers = (0..args.connections).map(|_| {
        let mut asker = Asker::connect(None, args.target, 100, args.size)?;
        asker.ask()?;
        Ok(asker)
    });
    let askers: Vec<Asker> = askers.collect::<Result<_>>()?;
    let start = Instant::now() + Duration::from_millis(50);
    let end = start + Duration::try_from_secs_f64(args.seconds)?;
    let pause = Duration::from_secs(1) / args.rate;
    let threads = askers.into_iter().zip(0u32..).map(|(asker, number)| {
        let due = start + pause * number;
        let period = pause * args.connections;
        std::thread::spawn(move || ask(asker, due, period, end))
    });
    let threads: Vec<_> = threads.collect();
    let mut all = Vec::new();
    for thread in threads {
        all.extend(thread.join().ok().context("a connection's thread panicked")??);
    }
    Ok(latencies(all))
}

fn ask(mut asker: Asker, mut due: Instant, period: Duration, end: Instant) -> Result<Vec<f64>> {
    let mut took = Vec::new();
    while due < end {
        // What the kernel is late to wake this thread is not the tunnel's; that the answer before was late is.
        let pause = due.saturating_duration_since(Instant::now());
        std::thread::sleep(pause);
        let since = if pause.is_zero() { due } else { Instant::now() };
        asker.ask()?;
        took.push(microseconds(since.elapsed()));
        due += period;
    }
    Ok(took)
}

//! Connections that are opened, used once and kept. Says [`OPEN`] on a line of its own, and waits to be killed.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use clap::Parser;

use super::Asker;
/// What it says when all are open.
pub const OPEN: &str = "open";

/// Arguments of `eastway-bench load idle`.
#[derive(Debug, Parser)]
pub(super) struct Args {
    target: SocketAddr,
    /// Connections
    #[arg(long, default_value_t = 10_000)]
    connections: usize,
    /// From these addresses in turn
    #[arg(long, value_delimiter = ',')]
    sources: Vec<IpAddr>,
}

pub(super) fn run(args: &Args) -> Result<Infallible> {
    let mut open = Vec::with_capacity(args.connections);
    for number in 0..args.connections {
        let source = args.sources.get(number % args.sources.len().max(1)).copied();
        let asked = Asker::connect(source, args.target, 1, 1).and_then(|mut asker| asker.ask().map(|()| asker));
        open.push(asked.with_context(|| format!("connection {number}"))?);
    }
    println!("{OPEN}");
    loop {
        std::thread::park();
    }
}

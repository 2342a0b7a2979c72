//! What a sidecar costs and how fast it learns, with a real Envoy that the gateway configures: `make bench-sidecar`.
//!
//! Gateways, sidecars and Envoys are processes as a user runs them; clients and servers are tasks of this program, the same
//! for everything that is compared. Prints one JSON object.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a measurement that meets the unexpected has to fail, and prints what it measured"
)]

mod changes;
mod clouds;
mod flat;
mod latency;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Parser;
use eastway::demo::stage;
use eastway_tests::envoy;
use serde_json::{Value, json};

/// Prints what a sidecar costs and how fast it learns.
#[derive(Debug, Parser)]
struct Args {
    /// The release binary of the gateway
    #[arg(long)]
    binary: PathBuf,
    /// Version of Envoy
    #[arg(long, default_value = envoy::VERSIONS[0])]
    envoy: String,
    /// Changes timed
    #[arg(long, default_value_t = 120)]
    changes: usize,
    /// Rounds of requests; in each, every way is measured once
    #[arg(long, default_value_t = 6)]
    rounds: usize,
    /// Seconds that each way is measured in a round
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Requests per second, half of them on kept-alive connections
    #[arg(long, default_value_t = 500)]
    rate: u32,
    /// Measures; runs inside the namespaces of a laboratory
    #[arg(long, hide = true)]
    inside: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    if !args.inside {
        return in_namespaces(&args);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    println!("{:#}", runtime.block_on(measure(&args))?);
    Ok(())
}

/// Runs this program again where it may make networks.
fn in_namespaces(args: &Args) -> Result<()> {
    let binary = args.binary.canonicalize()?;
    let mut command = stage::in_namespaces(&binary);
    command.arg(std::env::current_exe()?).args(std::env::args_os().skip(1)).arg("--inside");
    let status = command.env("EASTWAY_BIN", &binary).status()?;
    ensure!(status.success(), "the measurement in namespaces failed");
    Ok(())
}

async fn measure(args: &Args) -> Result<Value> {
    let mut mesh = clouds::start(&args.envoy).await?;
    let changes = changes::measure(&mut mesh, args.changes).await?;
    let network = flat::Network::lay(mesh.lab().folder(), &args.envoy).await?;
    let mut ways = network.ways();
    ways.extend(clouds::ways(&mesh).await?);
    let pace = latency::Pace { rounds: args.rounds, each: Duration::from_secs_f64(args.seconds), rate: args.rate };
    let latency = latency::measure(&ways, pace).await?;
    mesh.stop().await?;
    Ok(json!({"envoy": args.envoy, "changes": changes, "latency": latency}))
}

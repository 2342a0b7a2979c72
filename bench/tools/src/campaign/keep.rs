//! The network and some tunnels, kept while a command runs: to look at one of them closely.

use anyhow::{Context, Result, bail};
use clap::Parser;

use super::{Installed, rivals};
use crate::bed::{Bed, Place, Road};
use crate::certificates;
use crate::rivals::{Rival, Running, Service};

/// Arguments of `eastway-bench keep`.
#[derive(Debug, Parser)]
pub struct Args {
    #[command(flatten)]
    installed: Installed,
    /// Bytes of the largest packet
    #[arg(long, default_value_t = 1500)]
    mtu: u16,
    /// What a simulated WAN does to packets either way, e.g. delay=25,loss=0.01,rate=200
    #[arg(long)]
    wan: Option<String>,
    /// TCP's congestion control at the gateways
    #[arg(long, default_value = "cubic")]
    congestion: String,
    /// Tunnels, e.g. quic,envoy
    #[arg(long, value_delimiter = ',', default_value = "quic")]
    tunnels: Vec<String>,
    /// What to run, at the clients
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Lays the network, starts the tunnels, prints where to connect to, and runs the command to its end.
///
/// # Errors
/// A tunnel does not come up, or the command fails.
pub(super) fn run(args: &Args) -> Result<()> {
    certificates::write(&rivals::tls())?;
    let way = args.wan.clone();
    let congestion = args.congestion.clone();
    let road = Road { mtu: args.mtu, wan: way.map(|way| [way.clone(), way]), congestion };
    let _bed = Bed::lay(&road)?;
    let _servers = (rivals::echo()?, rivals::iperf(Service::Iperf)?, rivals::iperf(Service::Bulk)?);
    let mut running = Vec::new();
    for name in args.tunnels.iter().filter(|name| !name.is_empty()) {
        let rival = Rival::ALL.into_iter().find(|rival| rival.name() == name);
        let rival = rival.with_context(|| format!("{name}: no tunnel has this name"))?;
        let tunnel = Running::start(rival, &args.installed.programs(), args.mtu)?;
        let at = |service| tunnel.target(service).map(|target| target.to_string());
        eprintln!("{name}: iperf3 at {}, echo at {}", at(Service::Iperf)?, at(Service::Echo)?);
        running.push(tunnel);
    }
    let [program, arguments @ ..] = &args.command[..] else { bail!("no command") };
    let status = Place::Cli.command(program).args(arguments).status()?;
    if status.success() { Ok(()) } else { bail!("{program}: {status}") }
}

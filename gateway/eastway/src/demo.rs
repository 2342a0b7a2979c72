//! Three clouds on one machine, with the Bookinfo application spread over them.
//!
//! `eastway demo` needs no root, no cluster and no network: each cloud is a set of network namespaces
//! inside one unprivileged user namespace ([`lab`], [`stage`]), or, where those are forbidden, a set of
//! loopback addresses. The processes are real ones, of this binary: gateways, certificate authorities
//! and the services of [`bookinfo`]. This file is the outer process, which stays on the host: it makes
//! the browser's listener, starts the inside, passes signals on and waits.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitCode, ExitStatus, Stdio};

use anyhow::{Context, Result, bail};
use clap::builder::OsStringValueParser;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};

pub mod bookinfo;
mod browser;
mod envoy;
mod failover;
mod faults;
mod inside;
pub mod lab;
mod live;
pub mod names;
mod report;
mod routing;
mod scenes;
mod script;
pub mod stage;
mod story;

use lab::Isolation;

/// This binary, also where its file is hidden or replaced: resolved by each child after its fork.
const THIS_BINARY: &str = "/proc/self/exe";
/// Where browsers look unless told otherwise; taken by another program: any free port.
const BROWSER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);

/// Arguments of `eastway demo`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Run the fixed script once, print the result and end; fails unless every step is ok
    #[arg(long)]
    pub once: bool,
    /// How to print results
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
    /// Fail where network namespaces cannot be had, instead of using loopback addresses
    #[arg(long)]
    pub require_namespaces: bool,
    /// Keep the clouds apart in this way only
    #[arg(long, value_enum)]
    pub isolation: Option<Isolation>,
    /// Serve the product page to browsers here [default: 127.0.0.1:8080, or any free port]
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<SocketAddr>,
    /// Put this Envoy beside each service, and play the routing rules [default: `envoy` in PATH, if there is one]
    #[arg(long, value_name = "PROGRAM", env = "EASTWAY_ENVOY", value_parser = OsStringValueParser::new())]
    pub envoy: Option<OsString>,
    /// Run the services without Envoys beside them
    #[arg(long)]
    pub no_envoy: bool,
}

/// How the demo prints results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// One JSON object, with `--once`.
    Json,
}

/// Runs the demo. Blocks; must not be called from inside an async runtime.
///
/// # Errors
/// It cannot be started, or namespaces are required and forbidden.
pub fn run(args: &Args) -> Result<ExitCode> {
    let started = std::time::SystemTime::now();
    if args.output == Output::Json && !args.once {
        bail!("-o json prints one result: add --once");
    }
    let (isolation, reason) = choose_isolation(args)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let envoy = runtime.block_on(envoy::choose(args, isolation))?;
    let browser = browser_listener(args.listen)?;
    let mut command = match isolation {
        Isolation::Namespaces => {
            let mut command = stage::in_namespaces(Path::new(THIS_BINARY));
            command.arg("-");
            command
        }
        Isolation::Loopback => {
            let mut command = Command::new(THIS_BINARY);
            command.args(["demo-stage", "leashed", "--", "-"]);
            command
        }
    };
    command.args(inside::command_line(args, (isolation, reason.as_deref()), &envoy, started)?);
    // The listener belongs to the host's network and is handed in as standard input.
    command.stdin(Stdio::from(OwnedFd::from(browser)));
    runtime.block_on(wait(command, args.once))
}

fn choose_isolation(args: &Args) -> Result<(Isolation, Option<String>)> {
    if args.isolation == Some(Isolation::Loopback) {
        if args.require_namespaces {
            bail!("--require-namespaces contradicts --isolation loopback");
        }
        return Ok((Isolation::Loopback, Some("asked for".to_owned())));
    }
    match stage::why_not(Path::new(THIS_BINARY))? {
        None => Ok((Isolation::Namespaces, None)),
        Some(reason) if args.require_namespaces || args.isolation.is_some() => {
            bail!("network namespaces are required: {reason}")
        }
        Some(reason) => {
            eprintln!("no network namespaces here ({reason}): loopback addresses instead, which keep nothing apart");
            Ok((Isolation::Loopback, Some(reason)))
        }
    }
}

fn browser_listener(wanted: Option<SocketAddr>) -> Result<TcpListener> {
    if let Some(address) = wanted {
        return TcpListener::bind(address).with_context(|| format!("listen on {address}"));
    }
    TcpListener::bind(BROWSER)
        .or_else(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
        .context("listen for browsers on loopback")
}

/// Waits for the inside; Ctrl-C and SIGTERM end it in order, a second one at once.
async fn wait(command: Command, once: bool) -> Result<ExitCode> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut command = tokio::process::Command::from(command);
    // Its own group: a Ctrl-C in the terminal comes here only.
    let mut child = command.process_group(0).spawn().context("start the inside of the demo")?;
    let pid = Pid::from_raw(i32::try_from(child.id().context("the inside ended at once")?)?);
    let mut asked = false;
    loop {
        tokio::select! {
            status = child.wait() => return Ok(exit_code(status?, asked && !once)),
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
        kill(pid, if asked { Signal::SIGKILL } else { Signal::SIGTERM }).context("stop the inside")?;
        asked = true;
    }
}

/// A live demo is ended by its user: that is success.
fn exit_code(status: ExitStatus, ended_by_user: bool) -> ExitCode {
    let killed = status.signal().map(|signal| 128 + signal);
    match status.code().or(killed).and_then(|code| u8::try_from(code).ok()) {
        _ if ended_by_user && status.signal().is_none() => ExitCode::SUCCESS,
        Some(code) => ExitCode::from(code),
        None => ExitCode::FAILURE,
    }
}

/// Runs the hidden commands of the demo (`demo-app`, `demo-lab`, `demo-stage`). `None`: it is another command.
///
/// Must come before the process starts a thread: see [`stage`].
pub fn hidden(arguments: impl IntoIterator<Item = OsString>) -> Option<ExitCode> {
    use clap::Parser;
    let mut arguments = arguments.into_iter().skip(1).peekable();
    let result = match arguments.peek()?.to_str()? {
        "demo-app" => bookinfo::Args::try_parse_from(arguments).map(bookinfo::run),
        "demo-lab" => inside::Args::try_parse_from(arguments).map(inside::run),
        "demo-stage" => stage::Args::try_parse_from(arguments).map(stage::run),
        _ => return None,
    };
    Some(match result {
        Ok(Ok(code)) => code,
        Ok(Err(error)) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
        Err(usage) => {
            eprintln!("{usage}");
            ExitCode::from(2)
        }
    })
}

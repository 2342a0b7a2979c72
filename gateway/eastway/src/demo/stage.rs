//! The step into namespaces: `eastway demo-stage …`, a hidden command of small single-threaded processes.
//!
//! A user namespace can only be entered by a process with one thread, and a PID namespace only begins
//! with its first child, so the way in is a chain: `demo` → `demo-stage namespaces` (enters) →
//! `demo-stage first` (process 1 inside: mounts) → the program. Each link of the chain asks for SIGKILL
//! when its parent dies, and the kernel ends a PID namespace with its first process, so that whatever
//! is killed first, nothing stays: no process, no namespace, no mount, no file (the lab's folder is a
//! tmpfs of the mount namespace).

use std::ffi::OsString;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getegid, geteuid, getppid};
use tokio::signal::unix::{SignalKind, signal};

/// Tells a program that runs inside where its tmpfs is.
pub const LAB_FOLDER: &str = "EASTWAY_LAB_FOLDER";

/// Folders that every system has and nothing in a lab needs: the first one becomes the lab's tmpfs.
const MOUNT_POINTS: [&str; 4] = ["/mnt", "/media", "/srv", "/opt"];

/// Arguments of the hidden command.
#[derive(Debug, clap::Parser)]
#[command(name = "eastway demo-stage")]
pub struct Args {
    #[command(subcommand)]
    step: Step,
}

#[derive(Debug, clap::Subcommand)]
enum Step {
    /// Enters new user, PID, mount and network namespaces and runs the program as process 1 of them.
    Namespaces(Inner),
    /// Process 1: prepares mounts, then becomes the program.
    First(Inner),
    /// Becomes the program, to be killed with the parent.
    Leashed(Inner),
    /// Tries what a lab needs inside namespaces.
    Probe,
}

#[derive(Debug, clap::Args)]
struct Inner {
    /// The program and its arguments; `-` stands for this binary.
    #[arg(last = true, required = true)]
    program: Vec<OsString>,
}

/// Runs one step. Must be called while the process has a single thread.
///
/// # Errors
/// The kernel or the container forbids a step.
pub fn run(args: Args) -> Result<ExitCode> {
    match args.step {
        Step::Namespaces(inner) => namespaces(&inner.program),
        Step::First(inner) => first(&inner.program),
        Step::Leashed(inner) => {
            leash()?;
            become_program(&inner.program)
        }
        Step::Probe => probe(),
    }
}

/// A command that runs `program` of this binary as process 1 of new namespaces.
#[must_use]
pub fn in_namespaces(binary: &Path) -> Command {
    let mut command = Command::new(binary);
    command.args(["demo-stage", "namespaces", "--"]);
    command
}

/// Why a lab cannot use namespaces here; `None`: it can.
///
/// # Errors
/// The binary cannot be run.
pub fn why_not(binary: &Path) -> Result<Option<String>> {
    let output = in_namespaces(binary).args(["-", "demo-stage", "probe"]).output().context("probe namespaces")?;
    if output.status.success() {
        return Ok(None);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let reason = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no reason given");
    Ok(Some(reason.trim().trim_start_matches("error: ").to_owned()))
}

fn namespaces(program: &[OsString]) -> Result<ExitCode> {
    enter()?;
    // After the namespaces: a change of credentials clears it.
    leash()?;
    let mut command = Command::new("/proc/self/exe");
    command.args(["demo-stage", "first", "--"]).args(program);
    // The runtime's threads may only come after the namespaces.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let status = runtime.block_on(relay_signals(command))?;
    Ok(exit_code(status))
}

/// New namespaces for this process and, for PIDs, its children.
fn enter() -> Result<()> {
    let (user, group) = (geteuid(), getegid());
    let flags = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    if let Err(error) = unshare(flags | CloneFlags::CLONE_NEWUSER) {
        // Root may do without a user namespace where those are switched off.
        if user.is_root() && unshare(flags).is_ok() {
            return Ok(());
        }
        bail!("namespaces are forbidden here (unshare: {error})");
    }
    std::fs::write("/proc/self/setgroups", "deny").context("write setgroups")?;
    std::fs::write("/proc/self/uid_map", format!("0 {user} 1")).context("write uid_map")?;
    std::fs::write("/proc/self/gid_map", format!("0 {group} 1")).context("write gid_map")?;
    Ok(())
}

/// Asks the kernel to kill this process with its parent.
fn leash() -> Result<()> {
    let parent = getppid();
    set_pdeathsig(Signal::SIGKILL).context("ask for a signal at the parent's death")?;
    ensure!(getppid() == parent, "the parent is gone already");
    Ok(())
}

/// Runs `command`, hands SIGTERM and SIGINT on to it as SIGTERM and waits for its end.
async fn relay_signals(command: Command) -> Result<ExitStatus> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut child = tokio::process::Command::from(command).spawn().context("start the first process")?;
    let pid = child.id().context("the first process ended at once")?;
    loop {
        tokio::select! {
            status = child.wait() => return Ok(status?),
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGTERM).context("pass a signal on")?;
    }
}

/// As a shell would report it.
fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

fn first(program: &[OsString]) -> Result<ExitCode> {
    leash()?;
    let nothing = None::<&str>;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing).context("make mounts private")?;
    // Where a container hides parts of /proc the kernel refuses a new one; the old one will do.
    let _kept = mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), nothing);
    let folder = mount_point(program)?;
    mount(Some("lab"), &folder, Some("tmpfs"), MsFlags::empty(), Some("mode=0755")).context("mount a tmpfs")?;
    let mut command = command_of(program)?;
    command.env(LAB_FOLDER, folder);
    Err(command.exec()).with_context(|| format!("run {program:?}"))
}

/// A folder that can be covered: it must not hide the program, what its arguments name, this binary or the working folder.
fn mount_point(program: &[OsString]) -> Result<PathBuf> {
    let mut needed: Vec<PathBuf> = [std::env::current_exe(), std::env::current_dir()].into_iter().flatten().collect();
    needed.extend(program.first().map(PathBuf::from));
    let named = program.iter().filter_map(|argument| argument.to_str()?.split_once('=')).map(|(_, value)| value);
    needed.extend(named.filter(|value| value.starts_with('/')).map(PathBuf::from));
    let fits = |folder: &PathBuf| folder.is_dir() && !needed.iter().any(|path| path.starts_with(folder));
    let folder = MOUNT_POINTS.iter().map(PathBuf::from).find(fits);
    folder.with_context(|| format!("no mount point: none of {MOUNT_POINTS:?} can be covered"))
}

fn become_program(program: &[OsString]) -> Result<ExitCode> {
    Err(command_of(program)?.exec()).with_context(|| format!("run {program:?}"))
}

fn command_of(program: &[OsString]) -> Result<Command> {
    let Some((name, arguments)) = program.split_first() else { bail!("no program") };
    let name = if name == "-" { OsString::from("/proc/self/exe") } else { name.clone() };
    let mut command = Command::new(name);
    command.args(arguments);
    Ok(command)
}

/// The smallest lab: two namespaces and a cable. Some systems allow namespaces but nothing in them.
fn probe() -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let one = super::lab::place::Place::namespace("one").await?;
        let two = super::lab::place::Place::namespace("two").await?;
        one.veth("probe0", &two, "probe1").await?;
        one.ip("route add local 242.0.0.0/16 dev lo").await?;
        Ok(ExitCode::SUCCESS)
    })
}

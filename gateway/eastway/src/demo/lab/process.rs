//! Child processes of a lab: started in a [`Place`], logged to a file, stopped for certain.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

use super::place::Place;

/// Bytes of a log that an error quotes.
pub(super) const LOG_TAIL: u64 = 3000;

/// How the children of a lab are kept from outliving it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leash {
    /// The lab is the first process of a PID namespace: the kernel ends all of them with it.
    PidNamespace,
    /// Each child asks the kernel for a SIGKILL when the lab dies.
    ParentDeath,
}

/// What to start.
#[derive(Clone, Debug)]
pub struct Program {
    /// The `eastway` binary.
    pub binary: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Where its output goes; appended to.
    pub log: PathBuf,
    /// How it is kept from outliving the lab.
    pub leash: Leash,
}

/// A running child. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    pid: u32,
    log: PathBuf,
}

impl Process {
    /// Starts `program` at `place`.
    ///
    /// # Errors
    /// The binary cannot be run or the log cannot be written.
    pub async fn start(place: &Place, name: &str, program: Program) -> Result<Self> {
        let log = program.log.clone();
        let started = place.run(async move { spawn(program) }).await;
        let child = started.with_context(|| format!("start {name}"))?;
        let pid = child.id().with_context(|| format!("{name} ended at once"))?;
        Ok(Self { name: name.to_owned(), child, pid, log })
    }

    /// Its name, e.g. `gke/gateway`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id as the lab sees it.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it has not ended yet.
    ///
    /// # Errors
    /// The kernel cannot say.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Whether it has ended, for who only looks at it: its status stays for who waits.
    ///
    /// # Errors
    /// The kernel cannot say.
    pub fn has_ended(&self) -> Result<bool> {
        if self.child.id().is_none() {
            return Ok(true);
        }
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        let status = waitid(Id::Pid(Pid::from_raw(i32::try_from(self.pid)?)), flags);
        match status {
            Ok(status) => Ok(status != WaitStatus::StillAlive),
            // Somebody has waited for it.
            Err(Errno::ECHILD) => Ok(true),
            Err(error) => Err(error).with_context(|| format!("look at {}", self.name)),
        }
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// It has ended already.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.pid)?);
        kill(pid, signal).with_context(|| format!("{signal} to {}", self.name))
    }

    /// Ends it with SIGKILL and waits until it is gone.
    ///
    /// # Errors
    /// The kernel cannot say.
    pub async fn kill(&mut self) -> Result<()> {
        self.child.kill().await.with_context(|| format!("kill {}", self.name))
    }

    /// Sends SIGTERM and waits; after `patience` it is killed.
    ///
    /// # Errors
    /// It had to be killed, or the kernel cannot say.
    pub async fn terminate(&mut self, patience: Duration) -> Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        self.signal(Signal::SIGTERM)?;
        if let Ok(status) = tokio::time::timeout(patience, self.child.wait()).await {
            return Ok(status?);
        }
        self.kill().await?;
        anyhow::bail!("{} did not end within {patience:?} of SIGTERM:\n{}", self.name, self.log_tail(LOG_TAIL))
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// The kernel cannot say.
    pub async fn wait(&mut self) -> Result<ExitStatus> {
        Ok(self.child.wait().await?)
    }

    /// Resident memory, bytes.
    ///
    /// # Errors
    /// It has ended, or `/proc` does not show it.
    pub fn rss(&self) -> Result<u64> {
        rss_of(self.pid).with_context(|| format!("memory of {}", self.name))
    }

    /// The end of what it printed, at most `limit` bytes.
    #[must_use]
    pub fn log_tail(&self, limit: u64) -> String {
        tail(&self.log, limit).unwrap_or_else(|error| format!("(no log: {error})"))
    }

    /// The last line that it printed, if there is one.
    #[must_use]
    pub fn last_line(&self) -> Option<String> {
        let tail = self.log_tail(LOG_TAIL);
        tail.lines().map(str::trim).rfind(|line| !line.is_empty()).map(str::to_owned)
    }

    /// Its log file.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }
}

fn spawn(program: Program) -> Result<Child> {
    let log = File::options().create(true).append(true).open(&program.log)?;
    let mut command = Command::new(&program.binary);
    if program.leash == Leash::ParentDeath {
        command.args(["demo-stage", "leashed", "--", "-"]);
    }
    command
        .args(program.arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::from(log.try_clone()?))
        .stderr(Stdio::from(log))
        // A Ctrl-C in the terminal is for the lab, which stops its children in order.
        .process_group(0)
        .kill_on_drop(true);
    Ok(command.spawn()?)
}

fn rss_of(pid: u32) -> Result<u64> {
    let status = match std::fs::read_to_string(format!("/proc/{pid}/status")) {
        Ok(status) if inner_pid(&status) == Some(pid) => status,
        Ok(_) | Err(_) => status_by_inner_pid(pid)?,
    };
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kilobytes * 1024)
}

/// The process id in the innermost namespace of the process.
fn inner_pid(status: &str) -> Option<u32> {
    status.lines().find_map(|line| line.strip_prefix("NSpid:"))?.split_ascii_whitespace().last()?.parse().ok()
}

/// Where `/proc` could not be mounted anew it shows the ids of an outer PID namespace.
fn status_by_inner_pid(pid: u32) -> Result<String> {
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Ok(status) = std::fs::read_to_string(entry.path().join("status")) else { continue };
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).map(str::trim);
        if inner_pid(&status) == Some(pid) && parent == own_outer_pid().as_deref() {
            return Ok(status);
        }
    }
    anyhow::bail!("process {pid} is not in /proc")
}

fn own_outer_pid() -> Option<String> {
    Some(std::fs::read_link("/proc/self").ok()?.to_string_lossy().into_owned())
}

fn tail(path: &Path, limit: u64) -> Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(limit)))?;
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

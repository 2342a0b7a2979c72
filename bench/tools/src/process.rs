//! Child processes: started in a namespace, logged to a file, killed with their owner.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// Lines of a log that an error quotes.
const TAIL: usize = 20;
/// Pause between two looks at a condition.
const GLANCE: Duration = Duration::from_millis(20);

/// A running child. Dropping it kills it and waits for its end.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with its output in `logs/NAME.log`.
    ///
    /// # Errors
    /// It cannot be run or the log cannot be written.
    pub fn start(logs: &Path, name: &str, mut command: Command) -> Result<Self> {
        std::fs::create_dir_all(logs)?;
        let log = logs.join(format!("{name}.log"));
        let file = File::create(&log).with_context(|| format!("write {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().with_context(|| format!("start {name}"))?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    /// Its name, e.g. `envoy-a`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The end of its log.
    pub fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL)..].join("\n")
    }

    /// Waits until `condition` holds.
    ///
    /// # Errors
    /// It ended before, or `patience` is over.
    pub fn wait_until(&mut self, what: &str, patience: Duration, condition: impl Fn() -> Result<bool>) -> Result<()> {
        let started = Instant::now();
        loop {
            if condition()? {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended with {status} before {what}:\n{}", self.name, self.log_tail());
            }
            ensure!(started.elapsed() < patience, "{}: not {what} in {patience:?}:\n{}", self.name, self.log_tail());
            std::thread::sleep(GLANCE);
        }
    }
}

impl Process {
    /// Waits until it has ended well.
    ///
    /// # Errors
    /// It failed, or `patience` is over.
    pub fn wait_for_end(&mut self, patience: Duration) -> Result<()> {
        let started = Instant::now();
        while started.elapsed() < patience {
            if let Some(status) = self.child.try_wait()? {
                ensure!(status.success(), "{}: {status}\n{}", self.name, self.log_tail());
                return Ok(());
            }
            std::thread::sleep(GLANCE);
        }
        bail!("{} does not end", self.name)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that has ended already cannot be killed; it is waited for all the same.
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Runs a command to its end and gives its standard output.
///
/// # Errors
/// It cannot be run, or fails; the message has what it said.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("run {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}\n{}", output.status, said(&output));
    String::from_utf8(output.stdout).context("it prints text")
}

fn said(output: &Output) -> String {
    let both = [output.stderr.as_slice(), output.stdout.as_slice()].concat();
    String::from_utf8_lossy(&both).trim().to_owned()
}

//! A shell that stays open from block to block, and ends with the first command that fails.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, ChildStdin, Command};

/// Where programs of the system are.
const SYSTEM: &str = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin";

/// An open shell.
#[derive(Debug)]
pub struct Shell {
    child: Child,
    stdin: ChildStdin,
    home: PathBuf,
    patience: Duration,
    steps: usize,
}

/// A shell to be started, with a home, a working folder, and programs in `tools` before the system's.
#[must_use]
pub fn command(home: &Path, folder: &Path, tools: &[PathBuf]) -> Command {
    let tools: String = tools.iter().map(|tools| format!("{}:", tools.display())).collect();
    let mut command = Command::new("bash");
    command.args(["--noprofile", "--norc", "-euo", "pipefail"]);
    command.current_dir(folder).env_clear().env("HOME", home).env("LC_ALL", "C.UTF-8");
    command.env("PATH", format!("{tools}{SYSTEM}"));
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    command
}

impl Shell {
    /// The one that was started by [`command`] with this home; a step may take as long as `patience`.
    ///
    /// # Errors
    /// It has no input.
    pub fn new(mut child: Child, home: &Path, patience: Duration) -> Result<Self> {
        let stdin = child.stdin.take().context("no input")?;
        Ok(Self { child, stdin, home: home.to_owned(), patience, steps: 0 })
    }

    /// Runs commands and gives what they printed.
    ///
    /// # Errors
    /// One of them fails, or they take too long; the message has what they printed.
    pub async fn run(&mut self, commands: &str) -> Result<String> {
        self.steps += 1;
        let file = |what: &str| self.home.join(format!(".{what}-{}", self.steps));
        let (script, output, done) = (file("script"), file("output"), file("done"));
        std::fs::write(&script, format!("{commands}\n"))?;
        // What reads its input must not find the next step there.
        let line = format!(". {} >{} 2>&1 </dev/null\ntouch {}\n", script.display(), output.display(), done.display());
        self.stdin.write_all(line.as_bytes()).await.context("the shell has ended")?;
        let printed = || std::fs::read_to_string(&output).unwrap_or_default();
        let started = Instant::now();
        while !done.exists() {
            if let Some(status) = self.child.try_wait()? {
                bail!("{status}:\n{}", printed());
            }
            if started.elapsed() > self.patience {
                bail!("no end within {:?}:\n{}", self.patience, printed());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(printed())
    }
}

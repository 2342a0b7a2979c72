//! Long-running programs with a log, and short ones with a verdict.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};

/// How much of a log a message carries.
const TAIL_LINES: usize = 25;

/// A program that runs until it is told to end.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    log: PathBuf,
    child: Child,
}

impl Daemon {
    /// Starts it; its output goes to `<folder>/<name>.log`, after what is there already.
    ///
    /// # Errors
    /// The program or the log's folder is missing.
    pub fn start(name: &str, mut command: Command, folder: &Path) -> Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let output = std::fs::OpenOptions::new().create(true).append(true).open(&log);
        let output = output.with_context(|| log.display().to_string())?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).kill_on_drop(true);
        let child = command.spawn().with_context(|| format!("start {name}"))?;
        Ok(Self { name: name.to_owned(), log, child })
    }

    /// Its pid. `None`: it has ended.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// That it runs.
    ///
    /// # Errors
    /// It has ended; the message has the end of its log.
    pub fn ensure_running(&mut self) -> Result<()> {
        let status = self.child.try_wait()?;
        ensure!(status.is_none(), "{} has ended ({}):\n{}", self.name, status.unwrap_or_default(), self.tail());
        Ok(())
    }

    /// Kills it and waits for its end.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn kill(&mut self) -> Result<()> {
        self.child.kill().await.with_context(|| format!("kill {}", self.name))
    }

    /// The end of its log.
    #[must_use]
    pub fn tail(&self) -> String {
        tail(&self.log)
    }
}

/// The last lines of a log, under its name.
#[must_use]
pub fn tail(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let last = lines.get(lines.len().saturating_sub(TAIL_LINES)..).unwrap_or_default();
    format!("--- {}\n{}\n", log.display(), last.join("\n"))
}

/// Runs a program to its end and returns what it printed.
///
/// # Errors
/// It cannot be started or fails; the message has what it said.
pub async fn output(command: &mut Command) -> Result<String> {
    fed(command, b"").await
}

/// As [`output`], with an input.
///
/// # Errors
/// As there.
pub async fn fed(command: &mut Command, input: &[u8]) -> Result<String> {
    let shown = shown(command);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().with_context(|| shown.clone())?;
    let mut stdin = child.stdin.take().context("a pipe was asked for")?;
    let input = input.to_owned();
    let feeding = tokio::spawn(async move {
        // A program that does not want its input closes the pipe: its verdict says more.
        let _unread = stdin.write_all(&input).await;
    });
    let output = child.wait_with_output().await.with_context(|| shown.clone())?;
    feeding.await?;
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{shown}: {}: {}", output.status, said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn shown(command: &Command) -> String {
    let command = command.as_std();
    let program = Path::new(command.get_program()).file_name().unwrap_or_default();
    let arguments = command.get_args().map(|argument| argument.to_string_lossy().into_owned());
    std::iter::once(program.to_string_lossy().into_owned()).chain(arguments).collect::<Vec<_>>().join(" ")
}

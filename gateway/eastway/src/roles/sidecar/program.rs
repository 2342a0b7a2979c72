//! The Envoy program: whether it is one, how old it is, and how it is started so that it never outlives this process.

use std::fmt;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::fs::{Access, access};
use rustix::process::{Signal, getppid, set_parent_process_death_signal};
use rustix::thread::{CapabilitySet, clear_ambient_capability_set, remove_capability_from_bounding_set};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::bootstrap::Files;
use crate::config::SidecarSettings;
use crate::telemetry::Escaped;

/// Oldest version that what the gateway sends was tried with.
pub const OLDEST: Version = Version { major: 1, minor: 36, patch: 0 };
/// How long `--version` may take; a program of 100 MB is read from the disk for it.
const PATIENCE: Duration = Duration::from_secs(30);
/// Most bytes that are read of what it says to that; Envoy says 90.
const MAX_SAID: u64 = 64 << 10;
/// Most characters of that which an error quotes.
const MAX_QUOTE: usize = 200;
/// How Envoy's lines look: level, logger, message. Neither of the first two has a blank in it.
const LOG_FORMAT: &str = "%l %n %v";
/// Variable with the text of a file instead of the file.
pub const CONFIG_VARIABLE: &str = "EASTWAY_SIDECAR_CONFIG";
/// Subcommand of ours that becomes Envoy.
pub const BECOME: &str = "become-envoy";

/// A version of Envoy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    major: u32,
    minor: u32,
    patch: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl Version {
    /// From `envoy  version: <commit>/1.40.0/Clean/RELEASE/BoringSSL`.
    fn parse(said: &str) -> Option<Self> {
        let (_, rest) = said.split_once("version:")?;
        let text = rest.trim_start().split('/').nth(1)?;
        // A build between two releases is called 1.41.0-dev.
        let mut numbers = text.split('-').next()?.split('.').map(|number| number.parse().ok());
        let version = Self { major: numbers.next()??, minor: numbers.next()??, patch: numbers.next()?? };
        numbers.next().is_none().then_some(version)
    }
}

/// Why the program cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// There is none.
    #[error("there is no Envoy at {}; {OLDEST} or newer is needed", .0.display())]
    Missing(PathBuf),
    /// It may not be run.
    #[error("{} may not be executed: it needs the permission, on a file system that is not mounted noexec", .0.display())]
    NotExecutable(PathBuf),
    /// The system cannot start it.
    #[error("{} cannot be started: {source}", path.display())]
    Start {
        /// The program.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// It says nothing that an Envoy would.
    #[error("{} is no Envoy: `--version` says {said:?}", path.display())]
    NoEnvoy {
        /// The program.
        path: PathBuf,
        /// Its first line.
        said: String,
    },
    /// It does not end.
    #[error("{} does not answer `--version` within {PATIENCE:?}", .0.display())]
    Silent(PathBuf),
    /// It is too old.
    #[error("{} is Envoy {found}; {OLDEST} or newer is needed", path.display())]
    TooOld {
        /// The program.
        path: PathBuf,
        /// Its version.
        found: Version,
    },
}

/// Asks the program for its version. To be called on the main thread, as [`start`].
///
/// # Errors
/// [`ProgramError`] says why it cannot be used.
pub async fn version(path: &Path) -> Result<Version, ProgramError> {
    may_run(path)?;
    let said = ask(path, tied(path), PATIENCE).await?;
    judge(path, &said)
}

fn judge(path: &Path, said: &str) -> Result<Version, ProgramError> {
    let Some(found) = Version::parse(said) else {
        let first = said.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
        let said: String = first.chars().take(MAX_QUOTE).collect();
        return Err(ProgramError::NoEnvoy { path: path.to_owned(), said: Escaped(&said).to_string() });
    };
    if found < OLDEST {
        return Err(ProgramError::TooOld { path: path.to_owned(), found });
    }
    Ok(found)
}

/// Whether there is something that may be run: it is not this process that runs it, and would hear that.
fn may_run(path: &Path) -> Result<(), ProgramError> {
    let found = if path.as_os_str().as_encoded_bytes().contains(&b'/') {
        Some(path.to_owned())
    } else {
        // As a shell and execvp(3) do.
        let folders = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&folders).map(|folder| folder.join(path)).find(|file| file.is_file())
    };
    let failed = |source: io::Error| start_error(path, source);
    let file = found.ok_or_else(|| ProgramError::Missing(path.to_owned()))?;
    if !std::fs::metadata(&file).map_err(failed)?.is_file() {
        return Err(ProgramError::NotExecutable(path.to_owned()));
    }
    access(&file, Access::EXEC_OK).map_err(|error| failed(error.into()))
}

/// What it says to `--version`, to either output: as much as an Envoy would, and no more.
async fn ask(path: &Path, mut command: Command, patience: Duration) -> Result<String, ProgramError> {
    let failed = |source| start_error(path, source);
    let (reader, writer) = io::pipe().map_err(failed)?;
    command.arg("--version").stdin(Stdio::null()).stdout(writer.try_clone().map_err(failed)?).stderr(writer);
    // Dropping it ends the program, whatever that does.
    let child = command.kill_on_drop(true).spawn().map_err(failed)?;
    // It holds the other end of the pipe.
    drop(command);
    let reader = pipe::Receiver::from_owned_fd(reader.into()).map_err(failed)?;
    let mut said = Vec::new();
    let read = timeout(patience, reader.take(MAX_SAID).read_to_end(&mut said)).await;
    drop(child);
    match read {
        Ok(Ok(_)) => Ok(String::from_utf8_lossy(&said).into_owned()),
        Ok(Err(error)) => Err(failed(error)),
        Err(_) => Err(ProgramError::Silent(path.to_owned())),
    }
}

/// A command that becomes `program` and ends with this process, however that ends: this program, which asks the kernel
/// for its own end first. In between nothing is run in a copy of a process with threads. By this path it is found also
/// after an upgrade took its file away.
fn tied(program: &Path) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg(BECOME).arg(std::process::id().to_string()).arg(program).arg("--");
    command
}

fn start_error(path: &Path, source: io::Error) -> ProgramError {
    #[expect(clippy::wildcard_enum_match_arm, reason = "of the many kinds two have words of their own")]
    match source.kind() {
        io::ErrorKind::NotFound => ProgramError::Missing(path.to_owned()),
        io::ErrorKind::PermissionDenied => ProgramError::NotExecutable(path.to_owned()),
        _ => ProgramError::Start { path: path.to_owned(), source },
    }
}

/// Starts Envoy. To be called on the main thread: the kernel ties a child to the thread that made it.
///
/// # Errors
/// The process cannot be made.
pub fn start(settings: &SidecarSettings, files: &Files) -> io::Result<Child> {
    let mut command = tied(&settings.envoy.path);
    command.arg("--config-path").arg(&files.bootstrap);
    command.arg("--disable-hot-restart");
    command.arg("--concurrency").arg(settings.envoy.concurrency.to_string());
    // The gateway cuts connections by changing a listener's filter chain, and those close within this time.
    command.args(["--drain-time-s", "2", "--drain-strategy", "immediate"]);
    command.arg("--log-level").arg(settings.envoy.log.as_str());
    command.args(["--log-format", LOG_FORMAT, "--log-format-escaped"]);
    command.args(&settings.envoy.args);
    // Its own group: Ctrl-C is for this process, which lets connections finish.
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
    command.spawn()
}

/// Becomes the program, which the kernel kills when `parent` ends, however that ends.
///
/// # Errors
/// Always: it only returns if the program cannot be started, or `parent` is gone.
pub fn become_envoy(parent: u32, program: &Path, arguments: &[std::ffi::OsString]) -> io::Error {
    // Kept over execve(2), as the program has neither set-user-id nor capabilities.
    if let Err(error) = set_parent_process_death_signal(Some(Signal::KILL)) {
        return error.into();
    }
    let is_child = getppid().is_some_and(|pid| u32::try_from(pid.as_raw_nonzero().get()) == Ok(parent));
    if !is_child {
        return io::Error::other("the process that started this one is gone");
    }
    // Rules in the kernel are this process's to make. Who has no such capability cannot, and need not, let go of it.
    let _had_none = (clear_ambient_capability_set(), remove_capability_from_bounding_set(CapabilitySet::NET_ADMIN));
    std::process::Command::new(program).args(arguments).exec()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn versions_are_read_as_envoy_says_them() {
        let version = |text: &str| Version::parse(text).map(|version| version.to_string());
        assert_eq!(version("\nenvoy  version: dc2d30/1.36.2/Clean/RELEASE/BoringSSL\n\n").as_deref(), Some("1.36.2"));
        assert_eq!(version("/x/envoy  version: 0/1.41.0-dev/Clean/RELEASE/BoringSSL").as_deref(), Some("1.41.0"));
        for none in
            ["", "version:", "GNU bash, version 5.2", "version: a/b/c", "version: a/1.36/c", "version: a/1.2.3.4/c"]
        {
            assert_eq!(version(none), None, "{none}");
        }
    }

    /// A file that is open for writing cannot be run, and whatever starts meanwhile holds it open for a moment.
    static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

    /// A program of these commands.
    fn program(folder: &Path, commands: &str) -> PathBuf {
        let path = folder.join("envoy");
        fs::write(&path, format!("#!/bin/sh\n{commands}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// As [`super::version`], by a command that is not this program, which here is that of the tests.
    async fn said(path: &Path, patience: Duration) -> Result<String, ProgramError> {
        may_run(path)?;
        ask(path, Command::new(path), patience).await
    }

    #[tokio::test]
    async fn what_cannot_be_run_is_told_in_words() {
        let _alone = ALONE.lock().await;
        let folder = tempfile::tempdir().unwrap();
        let missing = said(&folder.path().join("none"), PATIENCE).await.unwrap_err().to_string();
        assert!(missing.starts_with("there is no Envoy at ") && !missing.contains("envoy.path"), "{missing}");
        let missing = said(Path::new("no-such-envoy"), PATIENCE).await.unwrap_err();
        assert!(matches!(missing, ProgramError::Missing(_)), "{missing}");
        let good = program(folder.path(), "echo hello");
        assert_eq!(said(&good, PATIENCE).await.unwrap(), "hello\n");
        fs::set_permissions(&good, fs::Permissions::from_mode(0o644)).unwrap();
        for path in [good.as_path(), folder.path()] {
            let forbidden = said(path, PATIENCE).await.unwrap_err().to_string();
            assert!(forbidden.contains("may not be executed"), "{forbidden}");
        }
    }

    #[test]
    fn what_is_no_envoy_or_an_old_one_is_told_in_words() {
        let path = Path::new("/opt/envoy");
        let other = judge(path, "\nhello\n").unwrap_err().to_string();
        assert!(other.ends_with("is no Envoy: `--version` says \"hello\""), "{other}");
        let old = judge(path, "envoy  version: a/1.35.9/Clean/RELEASE/x").unwrap_err().to_string();
        assert!(old.ends_with("is Envoy 1.35.9; 1.36.0 or newer is needed"), "{old}");
        assert!(judge(path, "envoy  version: a/1.40.0/Clean/RELEASE/x").unwrap() > OLDEST);
        let long = judge(path, &"x".repeat(1 << 16)).unwrap_err().to_string();
        assert!(long.len() < 300, "{long}");
    }

    #[tokio::test]
    async fn what_never_ends_is_read_no_further_and_ended() {
        let _alone = ALONE.lock().await;
        let folder = tempfile::tempdir().unwrap();
        let endless = program(folder.path(), "while :; do echo yes; done");
        let text = said(&endless, PATIENCE).await.unwrap();
        assert_eq!(u64::try_from(text.len()).unwrap(), MAX_SAID);
        let file = folder.path().join("pid");
        let hangs = program(folder.path(), &format!("echo $$ > {}; exec sleep 600", file.display()));
        let silent = said(&hangs, Duration::from_secs(5)).await.unwrap_err();
        assert!(matches!(silent, ProgramError::Silent(_)), "{silent}");
        let pid = fs::read_to_string(file).unwrap();
        let command_line = PathBuf::from(format!("/proc/{}/cmdline", pid.trim()));
        let begun = std::time::Instant::now();
        while fs::read(&command_line).is_ok_and(|line| !line.is_empty()) {
            assert!(begun.elapsed() < PATIENCE, "it goes on");
            tokio::task::yield_now().await;
        }
    }
}

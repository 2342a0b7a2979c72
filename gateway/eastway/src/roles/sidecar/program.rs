//! The Envoy program: whether it is one, how old it is, and how it is started so that it never outlives this process.

use std::fmt;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Signal, getppid, set_parent_process_death_signal};
use rustix::thread::{CapabilitySet, clear_ambient_capability_set, remove_capability_from_bounding_set};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::bootstrap::Files;
use crate::config::SidecarSettings;
use crate::telemetry::Escaped;

/// Oldest version that what the gateway sends was tried with.
pub const OLDEST: Version = Version { major: 1, minor: 36, patch: 0 };
/// How long `--version` may take; a program of 100 MB is read from the disk for it.
const PATIENCE: Duration = Duration::from_secs(30);
/// How Envoy's lines look: level, logger, message. Neither of the first two has a blank in it.
const LOG_FORMAT: &str = "%l %n %v";
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
    #[error("there is no Envoy at {}: envoy.path names its program, {OLDEST} or newer", .0.display())]
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
    #[error("{} does not answer `--version`", .0.display())]
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

/// Asks the program for its version.
///
/// # Errors
/// [`ProgramError`] says why it cannot be used.
pub async fn version(path: &Path) -> Result<Version, ProgramError> {
    let mut command = Command::new(path);
    command.arg("--version").stdin(Stdio::null()).kill_on_drop(true);
    let output = match timeout(PATIENCE, command.output()).await {
        Ok(output) => output.map_err(|error| start_error(path, error))?,
        Err(_) => return Err(ProgramError::Silent(path.to_owned())),
    };
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let Some(found) = Version::parse(&said) else {
        let first = said.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
        return Err(ProgramError::NoEnvoy { path: path.to_owned(), said: Escaped(first).to_string() });
    };
    if found < OLDEST {
        return Err(ProgramError::TooOld { path: path.to_owned(), found });
    }
    Ok(found)
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
    // This program, which asks the kernel for its own end and then becomes Envoy: in between nothing is run in a copy of
    // a process with threads. By this path it is found also after an upgrade took its file away.
    let mut command = Command::new("/proc/self/exe");
    command.arg(BECOME).arg(std::process::id().to_string()).arg(&settings.envoy.path).arg("--");
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

    /// A program that prints `text`.
    fn program(folder: &Path, text: &str) -> PathBuf {
        let path = folder.join("envoy");
        fs::write(&path, format!("#!/bin/sh\necho '{text}'\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[tokio::test]
    async fn what_is_no_envoy_or_an_old_one_is_told_in_words() {
        let folder = tempfile::tempdir().unwrap();
        let missing = version(&folder.path().join("none")).await.unwrap_err().to_string();
        assert!(missing.starts_with("there is no Envoy at ") && missing.contains("envoy.path"), "{missing}");
        let other = version(&program(folder.path(), "hello")).await.unwrap_err().to_string();
        assert!(other.ends_with("is no Envoy: `--version` says \"hello\""), "{other}");
        let old = version(&program(folder.path(), "envoy  version: a/1.35.9/Clean/RELEASE/x")).await.unwrap_err();
        assert!(old.to_string().ends_with("is Envoy 1.35.9; 1.36.0 or newer is needed"), "{old}");
        let good = program(folder.path(), "envoy  version: a/1.40.0/Clean/RELEASE/x");
        assert!(version(&good).await.unwrap() > OLDEST);
        fs::set_permissions(&good, fs::Permissions::from_mode(0o644)).unwrap();
        let forbidden = version(&good).await.unwrap_err().to_string();
        assert!(forbidden.contains("may not be executed"), "{forbidden}");
    }
}

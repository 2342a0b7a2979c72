//! The ca role beside a gateway: a process of its own, so that the process which faces the WAN never
//! holds the CA key (invariant I10).

use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use crate::roles::RunOptions;

/// How long it may take to stop; it only has to close a socket.
const STOP: Duration = Duration::from_secs(2);

/// One that ends sooner cannot serve: it has said why, and would again.
const SERVED: Duration = Duration::from_secs(2);
/// Shortest and longest pause before one that had served is started again.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// A running ca role.
#[derive(Debug)]
pub struct Authority<'a> {
    options: &'a RunOptions,
    child: Child,
}

impl<'a> Authority<'a> {
    /// Starts this program again with the ca role and the same file. It ends with this process,
    /// however that ends.
    ///
    /// To be called, and [`Authority::run`] to be awaited, on the main thread: the kernel ties a child to the thread
    /// that made it.
    ///
    /// # Errors
    /// The process cannot be made.
    pub fn start(options: &'a RunOptions) -> io::Result<Self> {
        Ok(Self { options, child: Self::spawn(options)? })
    }

    fn spawn(options: &RunOptions) -> io::Result<Child> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("ca").arg("--config").arg(&options.config);
        command.arg("--end-with").arg(std::process::id().to_string());
        if let Some(level) = &options.log_level {
            command.arg("--log-level").arg(level);
        }
        if let Some(format) = options.log_format {
            command.arg("--log-format").arg(format.as_str());
        }
        // Its own group: Ctrl-C is for the gateway, which needs certificates until it has drained.
        let child = command.stdin(Stdio::null()).process_group(0).kill_on_drop(true).spawn()?;
        debug!(pid = child.id(), "the ca role runs in a process of its own");
        Ok(child)
    }

    /// Waits until `end`, then stops it. If it ends before although it had served, it was killed or has crashed: it is
    /// started again, for the gateway does not need it while its certificate lasts.
    ///
    /// # Errors
    /// The status with which it ended without ever having served.
    pub async fn run(mut self, end: CancellationToken) -> Result<(), ExitStatus> {
        let (mut served, mut pause) = (false, PAUSE.0);
        loop {
            let begun = Instant::now();
            let status = tokio::select! {
                Ok(status) = self.child.wait() => status,
                () = end.cancelled() => break,
            };
            if begun.elapsed() >= SERVED {
                (served, pause) = (true, PAUSE.0);
            } else if !served {
                return Err(status);
            }
            error!(%status, again_in = ?pause, "the ca role ended by itself; the gateway goes on with the certificate it has");
            if end.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return Ok(());
            }
            pause = (pause * 2).min(PAUSE.1);
            match Self::spawn(self.options) {
                Ok(child) => self.child = child,
                Err(error) => error!(%error, "the ca role cannot be started"),
            }
        }
        let pid = self.child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        if let Some(pid) = pid
            && let Err(error) = kill_process(pid, Signal::TERM)
        {
            debug!(%error, "the ca role was gone already");
        }
        if timeout(STOP, self.child.wait()).await.is_err() {
            // Dropping it kills it.
            warn!("the ca role did not stop in time");
        }
        Ok(())
    }
}

/// Ends this process when the one with id `parent` ends, also if that already happened.
///
/// # Errors
/// `parent` is not this process's parent any more.
pub fn end_with(parent: u32) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
    let is_child =
        rustix::process::getppid().is_some_and(|pid| u32::try_from(pid.as_raw_nonzero().get()) == Ok(parent));
    if is_child { Ok(()) } else { Err(io::Error::other("the process that started this one is gone")) }
}

//! Where things run: one thread with its own runtime, inside a network namespace or on the host.
//!
//! A socket belongs to the network namespace of the thread that creates it. Each [`Place`] therefore
//! owns one thread that entered its namespace and polls every task spawned there, so that sockets,
//! DNS queries and child processes of those tasks all live in that namespace. The namespace itself
//! has no name and no mount: it is gone with the thread, its sockets and its processes.

use std::fs::File;
use std::future::Future;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns, unshare};
use tokio::process::Command;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// A thread in a network namespace (or on the host), with a runtime.
#[derive(Clone, Debug)]
pub struct Place {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    handle: Handle,
    /// The namespace, absent on the host.
    netns: Option<OwnedFd>,
    /// Dropping it ends the thread, its tasks and its child processes.
    _stop: oneshot::Sender<()>,
}

impl Place {
    /// A new network namespace with its loopback interface up and forwarding off.
    ///
    /// # Errors
    /// The namespace cannot be made: the process is not allowed to, or `ip` is missing.
    pub async fn namespace(name: &str) -> Result<Self> {
        let place = Self::start(name, Namespace::New).await?;
        place.ip("link set lo up").await?;
        place.run(async { forbid_forwarding() }).await?;
        Ok(place)
    }

    /// The namespace the process is already in.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub async fn host(name: &str) -> Result<Self> {
        Self::start(name, Namespace::Own).await
    }

    /// The network namespace that a process lives in.
    ///
    /// # Errors
    /// There is no such process, or this one may not enter its namespace.
    pub async fn of_process(name: &str, pid: u32) -> Result<Self> {
        Self::start(name, Namespace::OfProcess(pid)).await
    }

    async fn start(name: &str, namespace: Namespace) -> Result<Self> {
        let (ready, started) = oneshot::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        std::thread::Builder::new()
            .name(format!("place-{name}"))
            .spawn(move || serve(namespace, ready, stopped))
            .context("start a thread")?;
        let (handle, netns) =
            started.await.context("the thread ended")?.with_context(|| format!("namespace {name}"))?;
        Ok(Self { inner: Arc::new(Inner { name: name.to_owned(), handle, netns, _stop: stop }) })
    }

    /// Its name, for people.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Whether it is a network namespace of its own.
    #[must_use]
    pub fn is_isolated(&self) -> bool {
        self.inner.netns.is_some()
    }

    /// Runs a task there. It ends with the place at the latest.
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.inner.handle.spawn(task)
    }

    /// Runs a task there and waits for its result.
    ///
    /// # Errors
    /// The task's own, or that the place was left while it ran.
    pub async fn run<F, T>(&self, task: F) -> Result<T>
    where
        F: Future<Output = Result<T>> + Send + 'static,
        T: Send + 'static,
    {
        self.spawn(task).await.context("task did not finish")?
    }

    /// Runs one `ip` command line there and returns what it prints.
    ///
    /// # Errors
    /// `ip` is missing or refuses.
    pub async fn ip(&self, arguments: &str) -> Result<String> {
        self.tool("ip", arguments.split_ascii_whitespace(), Stdio::null()).await
    }

    /// Makes a veth pair: `here` in this namespace, `there` in the other.
    ///
    /// # Errors
    /// `ip` is missing or refuses, or `other` is not isolated.
    pub async fn veth(&self, here: &str, other: &Self, there: &str) -> Result<()> {
        let netns = other.inner.netns.as_ref().context("the other end has no namespace")?;
        // The namespace is named by a descriptor the child has anyway: works with any view of /proc.
        let stdin = Stdio::from(netns.try_clone().context("duplicate a descriptor")?);
        let arguments = format!("link add {here} type veth peer name {there} netns /proc/self/fd/0");
        self.tool("ip", arguments.split_ascii_whitespace(), stdin).await?;
        Ok(())
    }

    /// Runs several `ip` command lines there, all or none after the first that fails.
    ///
    /// # Errors
    /// `ip` is missing or refuses one of them.
    pub async fn ip_batch(&self, lines: &[String]) -> Result<()> {
        self.feed("ip", &["-batch", "-"], lines.join("\n")).await
    }

    /// Applies an nftables script there.
    ///
    /// # Errors
    /// `nft` is missing or refuses.
    pub async fn nft(&self, script: &str) -> Result<()> {
        self.feed("nft", &["-f", "-"], format!("{script}\n")).await
    }

    /// Runs a program of the system there and returns what it prints.
    ///
    /// # Errors
    /// It cannot be started or fails; the message holds what it said.
    async fn tool(&self, program: &str, arguments: impl Iterator<Item = &str>, stdin: Stdio) -> Result<String> {
        let mut command = Command::new(program);
        command.args(arguments).stdin(stdin).env("PATH", system_path()).kill_on_drop(true);
        let shown = format!("{command:?}");
        let output = self.run(async move { Ok(command.output().await?) }).await;
        let output = output.with_context(|| format!("run {program}"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{shown}: {}", said.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Feeds a script to a program of the system through an unlinked file.
    async fn feed(&self, program: &str, arguments: &[&str], script: String) -> Result<()> {
        let file = script_file(&script).context("write a script")?;
        self.tool(program, arguments.iter().copied(), Stdio::from(file)).await.map(drop)
    }
}

/// A pipe would do for short scripts only: its reader is started after the writer.
fn script_file(script: &str) -> Result<File> {
    use std::io::{Seek, Write};
    let flags = nix::sys::memfd::MFdFlags::MFD_CLOEXEC;
    let mut file = File::from(nix::sys::memfd::memfd_create("script", flags)?);
    file.write_all(script.as_bytes())?;
    file.rewind()?;
    Ok(file)
}

/// `PATH` with the folders of administration tools, which users often lack.
pub(super) fn system_path() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{path}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin")
}

/// Which network namespace a place's thread is in.
#[derive(Clone, Copy, Debug)]
enum Namespace {
    /// That of the process.
    Own,
    New,
    OfProcess(u32),
}

type Started = Result<(Handle, Option<OwnedFd>)>;

/// The thread of a place: enters a namespace, then polls until `stopped`.
fn serve(namespace: Namespace, ready: oneshot::Sender<Started>, stopped: oneshot::Receiver<()>) {
    let prepared = enter(namespace).and_then(|netns| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
        Ok((runtime, netns))
    });
    match prepared {
        Ok((runtime, netns)) => {
            if ready.send(Ok((runtime.handle().clone(), netns))).is_ok() {
                // Ends when the sender is dropped: nobody ever sends.
                let _ended = runtime.block_on(stopped);
            }
            runtime.shutdown_background();
        }
        Err(error) => {
            let _unheard = ready.send(Err(error));
        }
    }
}

fn enter(namespace: Namespace) -> Result<Option<OwnedFd>> {
    match namespace {
        Namespace::Own => return Ok(None),
        Namespace::New => unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace")?,
        Namespace::OfProcess(pid) => {
            let file = File::open(format!("/proc/{pid}/ns/net")).with_context(|| format!("process {pid}"))?;
            setns(file, CloneFlags::CLONE_NEWNET).context("enter a network namespace")?;
        }
    }
    let netns = File::open("/proc/thread-self/ns/net").context("open the network namespace")?;
    Ok(Some(netns.as_fd().try_clone_to_owned()?))
}

/// New namespaces may inherit forwarding from the host's settings.
fn forbid_forwarding() -> Result<()> {
    for switch in ["/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"] {
        let Ok(value) = std::fs::read_to_string(switch) else { continue };
        if value.trim() != "0" {
            std::fs::write(switch, "0").with_context(|| format!("write {switch}"))?;
        }
    }
    Ok(())
}

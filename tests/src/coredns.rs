//! A real CoreDNS, and as much of a Kubernetes API as it reads.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use eastway_dns::client::{self, Answer, QueryType};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::until::within;

pub mod api;

/// How long one query through CoreDNS may take. Its own patience with an upstream is 5 s.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a port is tried that was free when it was looked for.
const STARTS: usize = 3;

/// A running CoreDNS. Dropping it kills it.
#[derive(Debug)]
pub struct CoreDns {
    process: Child,
    folder: TempDir,
    /// Where it answers, over UDP and TCP.
    pub address: SocketAddr,
}

impl CoreDns {
    /// Starts CoreDNS with the Corefile made for its port, and waits until it answers at all.
    ///
    /// # Errors
    /// The binary is missing, or it ends or says nothing for 10 s; the message has its output.
    pub async fn start(corefile: impl Fn(u16) -> String) -> Result<Self> {
        let binary = binary()?;
        for _ in 0..STARTS {
            let address = free_port()?;
            let folder = TempDir::new()?;
            std::fs::write(folder.path().join("Corefile"), corefile(address.port()))?;
            let log = std::fs::File::create(folder.path().join("log"))?;
            let process = Command::new(&binary)
                .current_dir(folder.path())
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log)
                .kill_on_drop(true)
                .spawn()
                .with_context(|| format!("cannot start {}", binary.display()))?;
            let mut started = Self { process, folder, address };
            if started.answers().await? {
                return Ok(started);
            }
            if !started.log().contains("address already in use") {
                bail!("CoreDNS ended: {}", started.log());
            }
        }
        bail!("CoreDNS found its port taken {STARTS} times")
    }

    /// Asks it for records of `name`.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn ask(&self, name: &str, qtype: &str) -> Result<Answer> {
        Ok(client::query(self.address, name, qtype.parse()?, PATIENCE).await?)
    }

    /// What it has written so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Waits until it answers; false if it ended instead.
    async fn answers(&mut self) -> Result<bool> {
        let address = self.address;
        let mut has_ended = false;
        let waited = within(PATIENCE, "CoreDNS answers", || {
            has_ended = has_ended || !matches!(self.process.try_wait(), Ok(None));
            let has_ended = has_ended;
            async move {
                Ok(has_ended || client::query(address, ".", QueryType::Ns, Duration::from_millis(200)).await.is_ok())
            }
        })
        .await;
        waited.with_context(|| self.log())?;
        Ok(!has_ended)
    }
}

/// The CoreDNS binary that `make deps` built.
///
/// # Errors
/// There is none: a test that needs it fails and says how to get it.
pub fn binary() -> Result<PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let candidates = [
        std::env::var_os("EASTWAY_COREDNS").map(PathBuf::from),
        std::env::var_os("EASTWAY_TOOLS").map(|tools| PathBuf::from(tools).join("coredns")),
        Some(workspace.join("target/tools/bin/coredns")),
        Some(workspace.join("target/tools/coredns")),
    ];
    let Some(found) = candidates.into_iter().flatten().find(|path| path.is_file()) else {
        bail!("CoreDNS is missing: run `make deps`, or name the binary in EASTWAY_COREDNS");
    };
    Ok(found.canonicalize()?)
}

/// A port that is free for UDP and TCP just now.
fn free_port() -> Result<SocketAddr> {
    loop {
        let tcp = TcpListener::bind("127.0.0.1:0")?;
        let address = tcp.local_addr()?;
        if UdpSocket::bind(address).is_ok() {
            return Ok(address);
        }
    }
}

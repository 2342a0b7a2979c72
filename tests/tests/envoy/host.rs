//! A host: its CA, a sidecar, and who connects.

use std::cell::RefCell;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use eastway_tests::{binary, envoy, within};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::gateway::{DOMAIN, Gateway, IMPORT, LOCAL};

/// How long anything may take that takes well below a second on an idle machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A host with a CA role that knows two workloads, and a gateway.
pub(crate) struct Host {
    pub(crate) folder: TempDir,
    pub(crate) gateway: Gateway,
    version: &'static str,
    ca: Child,
}

impl Host {
    /// Makes and starts all but the sidecar, which is to have this Envoy.
    pub(crate) async fn start(version: &'static str) -> Result<Self> {
        // The namespace of a test begins with nothing.
        let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().await?;
        ensure!(up.success(), "no loopback device");
        let folder = TempDir::new()?;
        let workload = |account: &str| json!({"namespace": "shop", "serviceAccount": account, "socket": format!("run/{account}.sock")});
        let config = json!({
            "apiVersion": "eastway.dev/v1alpha1",
            "kind": "GatewayConfig",
            "cluster": "onprem",
            "trust": {"domain": DOMAIN, "workloads": [workload("web"), workload("cart")]},
        });
        fs::write(folder.path().join("gateway.yaml"), config.to_string())?;
        command(&folder, &["ca", "init"]).await?;
        let ca = ca(&folder)?;
        let gateway = Gateway::start(&folder.path().join("run/ca.sock")).await?;
        Ok(Self { folder, gateway, version, ca })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Ends the CA role: nobody gets a certificate any more.
    pub(crate) async fn end_ca(&mut self) -> Result<()> {
        Ok(self.ca.kill().await?)
    }

    /// Starts it again.
    pub(crate) fn start_ca(&mut self) -> Result<()> {
        self.ca = ca(&self.folder)?;
        Ok(())
    }

    /// Runs a step of `eastway ca rotate`.
    pub(crate) async fn rotate(&self, step: &str) -> Result<()> {
        command(&self.folder, &["ca", "rotate", step]).await
    }

    /// Starts the sidecar of `web`, with these changes to its file at the top.
    pub(crate) fn sidecar(&self, changes: &Value) -> Result<Sidecar> {
        let mut config = json!({
            "apiVersion": "eastway.dev/v1alpha1",
            "kind": "SidecarConfig",
            "workload": {"namespace": "shop", "serviceAccount": "web", "name": "web-1"},
            "trust": {"domain": DOMAIN, "ca": "unix:./run/web.sock"},
            "gateway": LOCAL,
            "envoy": {"path": envoy::binary(self.version)?, "concurrency": 1, "log": "info"},
        });
        for (key, value) in changes.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        fs::write(self.path("sidecar.yaml"), config.to_string())?;
        self.start_sidecar(Command::new(binary()))
    }

    /// Starts the sidecar once more, with the file as it is, by a command that its arguments are added to.
    pub(crate) fn start_sidecar(&self, mut command: Command) -> Result<Sidecar> {
        let log = self.path("sidecar.log");
        let output = File::options().create(true).append(true).open(&log)?;
        let child = command
            .args(["sidecar", "--config", "sidecar.yaml"])
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .kill_on_drop(true)
            .spawn()?;
        Ok(Sidecar { child, log })
    }
}

fn ca(folder: &TempDir) -> Result<Child> {
    let log = File::options().create(true).append(true).open(folder.path().join("ca.log"))?;
    let mut command = Command::new(binary());
    command.args(["ca", "--config", "gateway.yaml"]).current_dir(folder.path()).stdin(Stdio::null());
    Ok(command.stdout(log.try_clone()?).stderr(log).kill_on_drop(true).spawn()?)
}

/// Runs `eastway` to its end with the host's configuration.
async fn command(folder: &TempDir, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new(binary());
    command.args(arguments).args(["--config", "gateway.yaml"]).current_dir(folder.path());
    let output = command.output().await?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{arguments:?}: {said}");
    Ok(())
}

/// A sidecar's process. Dropping it kills it.
pub(crate) struct Sidecar {
    child: Child,
    log: PathBuf,
}

impl Sidecar {
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub(crate) fn pid(&self) -> Result<Pid> {
        Ok(Pid::from_raw(i32::try_from(self.child.id().context("it has ended")?)?))
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(self.pid()?, signal)?)
    }

    /// Waits until it ends by itself.
    pub(crate) async fn ended(&mut self) -> Result<ExitStatus> {
        match timeout(PATIENCE, self.child.wait()).await {
            Ok(status) => Ok(status?),
            Err(_) => bail!("the sidecar goes on:\n{}", self.log()),
        }
    }

    /// SIGTERM, and waits until it has ended as it should.
    pub(crate) async fn stop(mut self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        let status = self.ended().await?;
        ensure!(status.success(), "{status}:\n{}", self.log());
        ensure!(envoys().is_empty(), "Envoy was left behind:\n{}", self.log());
        Ok(())
    }

    /// Waits until connections get through, and says whom the other side took the client for.
    pub(crate) async fn caller(&self) -> Result<String> {
        let caller = RefCell::new(String::new());
        let connected = within(PATIENCE, "Envoy leads to the workload", async || {
            let conversation = Conversation::start().await?;
            caller.replace(conversation.caller);
            Ok(true)
        });
        connected.await.with_context(|| self.log())?;
        Ok(caller.into_inner())
    }
}

/// Process ids of all Envoys; the test is alone in its PID namespace.
pub(crate) fn envoys() -> Vec<Pid> {
    let is_envoy = |pid: &Pid| {
        let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        program.file_name().is_some_and(|name| name.to_string_lossy().starts_with("envoy-1."))
    };
    let entries = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.map(Pid::from_raw).filter(is_envoy).collect()
}

/// A connection through Envoy to the workload.
pub(crate) struct Conversation {
    stream: BufReader<TcpStream>,
    /// Whom the other side takes the client for.
    pub(crate) caller: String,
}

impl Conversation {
    pub(crate) async fn start() -> Result<Self> {
        let exchange = async {
            let mut stream = BufReader::new(TcpStream::connect(IMPORT).await?);
            let mut caller = String::new();
            stream.read_line(&mut caller).await?;
            ensure!(caller.ends_with('\n'), "closed without a word");
            Ok(Self { stream, caller: caller.trim().to_owned() })
        };
        timeout(Duration::from_secs(3), exchange).await.context("no answer")?
    }

    /// Says something, which must come back.
    pub(crate) async fn echo(&mut self, text: &str) -> Result<()> {
        let exchange = async {
            self.stream.write_all(text.as_bytes()).await?;
            let mut back = vec![0; text.len()];
            self.stream.read_exact(&mut back).await?;
            ensure!(back == text.as_bytes(), "another echo");
            Ok(())
        };
        timeout(Duration::from_secs(3), exchange).await.context("no echo")?
    }

    /// Waits until the other side closes.
    pub(crate) async fn closed(&mut self) -> Result<()> {
        let mut rest = Vec::new();
        // A reset is an end as well.
        let _end = timeout(PATIENCE, self.stream.read_to_end(&mut rest)).await.context("it stays open")?;
        Ok(())
    }
}

/// The permissions of a file.
pub(crate) fn mode(path: &Path) -> Result<u32> {
    use std::os::unix::fs::MetadataExt as _;
    Ok(fs::symlink_metadata(path)?.mode() & 0o777)
}

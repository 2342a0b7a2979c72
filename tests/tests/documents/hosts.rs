//! The machines that documents speak of, as shells in the namespaces of a lab.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use eastway_tests::lab::Lab;
use eastway_tests::lab::net::CloudNet;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, ChildStdin, Command};

/// Longest run of one block.
const PATIENCE: Duration = Duration::from_secs(60);
/// The hosts and the number of the cloud each is the gateway of.
const HOSTS: [(&str, u8); 3] = [("here", 1), ("onprem", 1), ("gke", 2)];
/// `scp FILE HOST:PATH`, where hosts are folders.
const SCP: &str = "#!/bin/bash\nset -eu\ncp \"$1\" \"$(dirname \"$HOME\")/${2/:/\\/}\"\n";

/// A lab with a shell for each host.
pub(crate) struct Hosts {
    shells: BTreeMap<&'static str, Shell>,
    _clouds: Vec<CloudNet>,
    _lab: Lab,
}

struct Shell {
    child: Child,
    stdin: ChildStdin,
    home: PathBuf,
    steps: usize,
}

impl Hosts {
    /// Makes the hosts; their home folders are empty.
    pub(crate) async fn lay() -> Result<Self> {
        let lab = Lab::in_namespaces(&eastway_tests::binary()).await?;
        let clouds = vec![CloudNet::lay(&lab, "onprem", 1, 1).await?, CloudNet::lay(&lab, "gke", 2, 1).await?];
        let tools = lab.folder().join("bin");
        std::fs::create_dir(&tools)?;
        std::os::unix::fs::symlink(eastway_tests::binary(), tools.join("eastway"))?;
        write_program(&tools.join("scp"), SCP)?;
        let mut shells = BTreeMap::new();
        for (name, number) in HOSTS {
            let home = lab.folder().join(name);
            std::fs::create_dir(&home)?;
            let cloud = clouds.iter().find(|cloud| cloud.number() == number).context("no such cloud")?;
            let mut command = shell(&home, &tools);
            let mut child = cloud.gateways()[0].place.run(async move { Ok(command.spawn()?) }).await?;
            let stdin = child.stdin.take().context("no input")?;
            shells.insert(name, Shell { child, stdin, home, steps: 0 });
        }
        Ok(Self { shells, _clouds: clouds, _lab: lab })
    }

    /// Runs commands on a host, in the shell that ran those before, and gives what they printed.
    pub(crate) async fn run(&mut self, host: &str, commands: &str) -> Result<String> {
        self.shells.get_mut(host).with_context(|| format!("there is no host {host}"))?.run(commands).await
    }
}

fn write_program(path: &Path, text: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, text)?;
    Ok(std::fs::set_permissions(path, PermissionsExt::from_mode(0o755))?)
}

/// A shell that ends with the first command that fails.
fn shell(home: &Path, tools: &Path) -> Command {
    let mut path = tools.display().to_string();
    if let Ok(real) = std::env::var("EASTWAY_TOOLS") {
        path = format!("{path}:{real}");
    }
    let path = format!("{path}:/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin");
    let mut command = Command::new("bash");
    command.args(["--noprofile", "--norc", "-euo", "pipefail"]);
    command.current_dir(home).env_clear().env("HOME", home).env("PATH", path).env("LC_ALL", "C.UTF-8");
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    command
}

impl Shell {
    async fn run(&mut self, commands: &str) -> Result<String> {
        self.steps += 1;
        let file = |what: &str| self.home.join(format!(".{what}-{}", self.steps));
        let (script, output, done) = (file("script"), file("output"), file("done"));
        std::fs::write(&script, format!("{commands}\n"))?;
        let line = format!(". {} >{} 2>&1\ntouch {}\n", script.display(), output.display(), done.display());
        self.stdin.write_all(line.as_bytes()).await.context("the shell has ended")?;
        let printed = || std::fs::read_to_string(&output).unwrap_or_default();
        let started = Instant::now();
        while !done.exists() {
            if let Some(status) = self.child.try_wait()? {
                bail!("{status}:\n{}", printed());
            }
            if started.elapsed() > PATIENCE {
                bail!("no end within {PATIENCE:?}:\n{}", printed());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(printed())
    }
}

//! The machines that documents speak of, as shells in the namespaces of a lab.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use eastway_tests::documents::shell::{self, Shell};
use eastway_tests::lab::Lab;
use eastway_tests::lab::net::CloudNet;

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

impl Hosts {
    /// Makes the hosts; their home folders are empty.
    pub(crate) async fn lay() -> Result<Self> {
        let lab = Lab::in_namespaces(&eastway_tests::binary()).await?;
        let clouds = vec![CloudNet::lay(&lab, "onprem", 1, 1).await?, CloudNet::lay(&lab, "gke", 2, 1).await?];
        let tools = lab.folder().join("bin");
        std::fs::create_dir(&tools)?;
        std::os::unix::fs::symlink(eastway_tests::binary(), tools.join("eastway"))?;
        write_program(&tools.join("scp"), SCP)?;
        let programs: Vec<_> =
            [tools].into_iter().chain(std::env::var_os("EASTWAY_TOOLS").map(PathBuf::from)).collect();
        let mut shells = BTreeMap::new();
        for (name, number) in HOSTS {
            let home = lab.folder().join(name);
            std::fs::create_dir(&home)?;
            let cloud = clouds.iter().find(|cloud| cloud.number() == number).context("no such cloud")?;
            let mut command = shell::command(&home, &home, &programs);
            let child = cloud.gateways()[0].place.run(async move { Ok(command.spawn()?) }).await?;
            shells.insert(name, Shell::new(child, &home, PATIENCE)?);
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

//! The network between clusters: a bridge in the stage's own network namespace, and what lives on it.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use tokio::process::Command;

use super::process::{Daemon, fed, output};
use super::tools;

/// The WAN's own address: where tests are, where nodes send what is for nobody they know, and its DNS.
pub const WAN_ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// A name of the outside world, and what the WAN's DNS says about it.
pub const OUTSIDE: (&str, Ipv4Addr) = ("www.outside.test", Ipv4Addr::new(192, 0, 2, 80));

/// The network between clusters.
#[derive(Clone, Debug)]
pub struct Wan {
    /// Ends with the last user.
    _dns: Arc<Daemon>,
}

impl Wan {
    /// Makes the bridge and starts the WAN's DNS.
    ///
    /// # Errors
    /// A tool is missing or refuses.
    pub(super) async fn lay(folder: &Path) -> Result<Self> {
        let lines = format!("link add wan type bridge\naddr add {WAN_ADDRESS}/24 dev wan\nlink set wan up\n");
        fed(Command::new("ip").args(["-batch", "-"]), lines.as_bytes()).await?;
        let folder = folder.join("wan");
        std::fs::create_dir_all(&folder)?;
        let (name, address) = OUTSIDE;
        // No name but one exists out there; that one has no IPv6 address.
        let corefile = format!(
            ".:53 {{
    bind {WAN_ADDRESS}
    template IN A {name} {{
        answer \"{{{{ .Name }}}} 5 IN A {address}\"
    }}
    template IN AAAA {name} {{
        rcode NOERROR
    }}
    template ANY ANY . {{
        rcode NXDOMAIN
    }}
}}
"
        );
        std::fs::write(folder.join("Corefile"), corefile)?;
        let mut command = Command::new(tools::built("coredns")?);
        command.current_dir(&folder);
        Ok(Self { _dns: Arc::new(Daemon::start("wan-dns", command, &folder)?) })
    }

    /// Plugs a node in: `eth0` of the network namespace that `pid` lives in.
    pub(super) async fn plug(&self, name: &str, pid: u32, address: Ipv4Addr) -> Result<()> {
        let cable = format!("node-{name}");
        let lines = format!(
            "link add {cable} type veth peer name eth0 netns {pid}\nlink set {cable} master wan\nlink set {cable} up\n"
        );
        fed(Command::new("ip").args(["-batch", "-"]), lines.as_bytes()).await?;
        let lines = format!(
            "link set lo up\naddr add {address}/24 dev eth0\nlink set eth0 up\nroute add default via {WAN_ADDRESS}\n"
        );
        let target = pid.to_string();
        fed(Command::new("nsenter").args(["--net", "--target", &target, "ip", "-batch", "-"]), lines.as_bytes())
            .await?;
        Ok(())
    }

    /// Pulls a node's cable, or plugs it again.
    ///
    /// # Errors
    /// There is no such node.
    pub async fn set_cable(&self, name: &str, plugged: bool) -> Result<()> {
        let state = if plugged { "up" } else { "down" };
        output(Command::new("ip").args(["link", "set", &format!("node-{name}"), state])).await.map(drop)
    }
}

/// The resolver configuration of nodes: the WAN's DNS.
pub(super) fn resolver_file(folder: &Path) -> Result<PathBuf> {
    let file = folder.join("resolv.conf");
    std::fs::write(&file, format!("nameserver {WAN_ADDRESS}\n"))?;
    Ok(file)
}

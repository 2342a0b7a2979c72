//! The network: `cli – gwA – (wan) – gwB – srv`, five network namespaces joined by veth pairs.
//!
//! On the way between the gateways segmentation is done before the wire and coalescing after it, so that frames of the
//! MTU cross as they would between two machines ("wire-like"); inside a cloud the offloads stay. The wire is one veth
//! pair between the gateways. With a simulated WAN the packets go through `wan`, over two TUN devices that
//! [`crate::wan`] joins. A namespace that only forwards would be a poor wire: it coalesces TCP and not UDP, and its CPU
//! time would be billed to the tunnels.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process::{Process, output};

/// Where everything of a run is: process 1 has a tmpfs of its own on `/run`.
pub const FOLDER: &str = "/run/bench";
/// What clients reach servers by without any tunnel.
pub const SERVER: &str = "10.2.0.2";
/// Addresses of clients, the first of which is taken unless said otherwise.
pub const CLIENTS: [&str; 8] =
    ["10.1.0.2", "10.1.0.3", "10.1.0.4", "10.1.0.5", "10.1.0.6", "10.1.0.7", "10.1.0.8", "10.1.0.9"];
/// Towards the clients: where the near ends of proxies listen.
pub const GATEWAY_A: &str = "10.1.0.1";
/// Of the simulated WAN.
pub const SEED: u64 = 6;
/// On the WAN.
pub const WAN_B: &str = "192.0.2.2";

/// A namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Clients.
    Cli,
    /// The gateway on the clients' side.
    GwA,
    /// What lies between the gateways, when it is simulated.
    Wan,
    /// The gateway on the servers' side.
    GwB,
    /// Servers.
    Srv,
}

impl Place {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Cli, Self::GwA, Self::Wan, Self::GwB, Self::Srv];

    /// The namespace's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cli => "cli",
            Self::GwA => "gwa",
            Self::Wan => "wan",
            Self::GwB => "gwb",
            Self::Srv => "srv",
        }
    }

    /// A command that runs `program` here.
    pub fn command(self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.name())).arg("--").arg(program);
        command
    }

    /// Runs `ip` with each line here.
    ///
    /// # Errors
    /// It refuses one.
    pub fn ip(self, lines: &[String]) -> Result<()> {
        for line in lines {
            output(Command::new("ip").args(["-n", self.name()]).args(line.split_whitespace()))?;
        }
        Ok(())
    }
}

/// What lies between the gateways.
#[derive(Clone, Debug)]
pub struct Road {
    /// Bytes of the largest packet, everywhere.
    pub mtu: u16,
    /// What a simulated WAN does to packets from a to b and to those from b to a, see [`crate::wan`]; `None`: a wire.
    pub wan: Option<[String; 2]>,
    /// TCP's congestion control at the gateways; clients and servers always have the kernel's default, cubic.
    pub congestion: String,
}

/// Settings of every namespace, recorded with the results.
pub const SYSCTLS: [(&str, &str); 6] = [
    ("net.ipv4.ip_forward", "1"),
    ("net.ipv4.conf.all.rp_filter", "0"),
    ("net.ipv4.conf.default.rp_filter", "0"),
    ("net.ipv4.tcp_rmem", "4096 131072 67108864"),
    ("net.ipv4.tcp_wmem", "4096 131072 67108864"),
    ("net.ipv4.ip_local_port_range", "1024 65535"),
];

/// Laid networks. Dropping it takes them away; whatever runs in them must have ended.
#[derive(Debug)]
pub struct Bed {
    /// The WAN's simulator, if there is one.
    _wan: Option<Process>,
}

impl Bed {
    /// Lays the network.
    ///
    /// # Errors
    /// A step fails, e.g. for want of privileges.
    pub fn lay(road: &Road) -> Result<Self> {
        for place in Place::ALL {
            output(Command::new("ip").args(["netns", "add", place.name()]))?;
            place.ip(&["link set lo up".to_owned()])?;
            let own = if [Place::GwA, Place::GwB].contains(&place) { road.congestion.as_str() } else { "cubic" };
            let congestion = ("net.ipv4.tcp_congestion_control", own);
            for (key, value) in SYSCTLS.iter().chain([&congestion]) {
                output(place.command("sysctl").args(["-q", "-w", &format!("{key}={value}")]))?;
            }
        }
        link(Place::Cli, "eth0", Place::GwA, "pods0", road.mtu)?;
        link(Place::Srv, "eth0", Place::GwB, "pods0", road.mtu)?;
        // Second addresses at both ends: what goes between these goes by the layer 3 tunnels.
        let lines = |own: u8, other: u8| {
            let at = |line: &str| line.replace("OWN", &own.to_string()).replace("OTHER", &other.to_string());
            [
                at("addr add 10.OWN.0.2/24 dev eth0"),
                at("addr add 10.3OWN.0.2/24 dev eth0"),
                at("route add default via 10.OWN.0.1"),
                at("route add 10.3OTHER.0.0/24 via 10.OWN.0.1 src 10.3OWN.0.2"),
            ]
        };
        Place::Cli.ip(&lines(1, 2))?;
        for host in CLIENTS.iter().skip(1) {
            Place::Cli.ip(&[format!("addr add {host}/24 dev eth0")])?;
        }
        Place::Srv.ip(&lines(2, 1))?;
        for (place, own) in [(Place::GwA, 1), (Place::GwB, 2)] {
            let addresses =
                [format!("addr add 10.{own}.0.1/24 dev pods0"), format!("addr add 10.3{own}.0.1/24 dev pods0")];
            place.ip(&addresses)?;
        }
        let wan = match &road.wan {
            None => {
                wire(road.mtu)?;
                None
            }
            Some(ways) => Some(simulated(road.mtu, ways)?),
        };
        Ok(Self { _wan: wan })
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        for place in Place::ALL {
            // What is left goes with the mount namespace.
            let _gone = output(Command::new("ip").args(["netns", "del", place.name()]));
        }
    }
}

/// Joins two places by a veth pair.
fn link(one: Place, its: &str, other: Place, theirs: &str, mtu: u16) -> Result<()> {
    let peer = format!("peer name {theirs} mtu {mtu} netns {}", other.name());
    one.ip(&[format!("link add {its} mtu {mtu} type veth {peer}"), format!("link set {its} up")])?;
    other.ip(&[format!("link set {theirs} up")])
}

/// One veth pair between the gateways.
fn wire(mtu: u16) -> Result<()> {
    link(Place::GwA, "wan0", Place::GwB, "wan0", mtu)?;
    for (place, own, other, far) in [(Place::GwA, 1, 2, 2), (Place::GwB, 2, 1, 1)] {
        real_frames(place, "wan0")?;
        let address = format!("addr add 192.0.2.{own}/24 dev wan0");
        place.ip(&[address, format!("route add 10.{far}.0.0/24 via 192.0.2.{other}")])?;
    }
    Ok(())
}

/// Frames leave a device as they would a network card, and are coalesced where they arrive.
fn real_frames(place: Place, device: &str) -> Result<()> {
    let features = ["tso", "off", "gso", "off", "tx-udp-segmentation", "off", "gro", "on"];
    output(place.command("ethtool").args(["-K", device]).args(features)).map(|_| ())
}

/// A veth pair from each gateway to `wan`, where the simulator takes every packet from one to the other.
fn simulated(mtu: u16, [forth, back]: &[String; 2]) -> Result<Process> {
    link(Place::GwA, "wan0", Place::Wan, "side-a", mtu)?;
    link(Place::GwB, "wan0", Place::Wan, "side-b", mtu)?;
    for (place, own, far) in [(Place::GwA, 1, 2), (Place::GwB, 2, 1)] {
        real_frames(place, "wan0")?;
        place.ip(&[
            format!("addr add 192.0.2.{own}/32 dev wan0"),
            format!("addr add 100.64.{own}.2/24 dev wan0"),
            format!("route add 192.0.2.0/24 via 100.64.{own}.1 src 192.0.2.{own}"),
            format!("route add 10.{far}.0.0/24 via 100.64.{own}.1 src 192.0.2.{own}"),
        ])?;
    }
    // Before all others, as a line does not wait for a processor; but not before the kernel's own work for the network.
    let mut command = Place::Wan.command("nice");
    command.args(["-n", "-20"]).arg(own_program()?);
    let seed = SEED.to_string();
    command.args(["wan", "--mtu", &mtu.to_string(), "--forth", forth, "--back", back, "--seed", &seed]);
    let mut process = Process::start(&logs(), "wan", command)?;
    let there = || {
        let devices = output(Command::new("ip").args(["-n", "wan", "-o", "link"]))?;
        Ok(["tun-a", "tun-b"].iter().all(|device| devices.contains(device)))
    };
    process.wait_until("its devices are there", std::time::Duration::from_secs(5), there)?;
    for (number, side) in [(1, "a"), (2, "b")] {
        real_frames(Place::Wan, &format!("side-{side}"))?;
        // No coalescing here: each packet is lost or late by itself.
        output(Place::Wan.command("ethtool").args(["-K", &format!("side-{side}"), "gro", "off"]))?;
        Place::Wan.ip(&[
            format!("addr add 100.64.{number}.1/24 dev side-{side}"),
            format!("route add 192.0.2.{number}/32 via 100.64.{number}.2"),
            format!("route add 10.{number}.0.0/24 via 100.64.{number}.2"),
            // A flight arrives at once: the queue that drops is the simulator's.
            format!("link set tun-{side} txqueuelen 20000 up"),
            format!("route add default dev tun-{side} table 10{number}"),
            format!("rule add iif side-{side} lookup 10{number}"),
        ])?;
    }
    Ok(process)
}

/// This program, to be run again.
///
/// # Errors
/// The kernel does not say where it is.
pub fn own_program() -> Result<PathBuf> {
    std::env::current_exe().context("where this program is")
}

/// Where logs go.
pub fn logs() -> PathBuf {
    Path::new(FOLDER).join("logs")
}

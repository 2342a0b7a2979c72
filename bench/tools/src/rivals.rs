//! The tunnels that are compared, each with its own committed configuration under `bench/peers`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::bed::{FOLDER, GATEWAY_A, Place, SERVER, WAN_B, logs, own_program};
use crate::process::{Process, output};

mod eastway;
mod wireguard;

/// Longest time until a tunnel is up.
const PATIENCE: Duration = Duration::from_secs(20);

/// A tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rival {
    /// No tunnel: packets are routed.
    Direct,
    /// [`crate::pump`].
    Pump,
    /// The same with the copies by which the goals were set.
    PumpChunks,
    /// Envoys, `tcp_proxy` over mutual TLS: a TLS connection for each TCP connection.
    Envoy,
    /// Envoys, HTTP/2 CONNECT over mutual TLS: few connections for all.
    EnvoyH2,
    /// Envoys, HTTP/3 CONNECT.
    EnvoyH3,
    /// haproxies, TCP over mutual TLS: a TLS connection for each TCP connection.
    Haproxy,
    /// rathole, TCP over the Noise protocol with both ends' keys: a connection for each TCP connection.
    Rathole,
    /// wireguard-go: packets, encrypted in user space.
    Wireguard,
    /// Ours, by the transport that the link chooses.
    Link,
    /// Ours over QUIC.
    Quic,
    /// Ours over TLS on TCP.
    Tls,
}

/// A server that tunnels lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// iperf3.
    Iperf,
    /// Another iperf3, for what goes on beside.
    Bulk,
    /// [`crate::load`]'s server.
    Echo,
    /// What counts packets there; no proxy leads to it.
    Packets,
}

impl Service {
    /// Those over TCP.
    pub const ALL: [Self; 3] = [Self::Iperf, Self::Bulk, Self::Echo];

    /// Its port on the server.
    pub fn port(self) -> u16 {
        match self {
            Self::Iperf => 5201,
            Self::Bulk => 5202,
            Self::Echo => 7000,
            Self::Packets => 7001,
        }
    }

    /// What the ports of proxies that lead to it end with.
    fn digit(self) -> u16 {
        match self {
            Self::Iperf => 1,
            Self::Bulk => 2,
            Self::Echo => 3,
            Self::Packets => 4,
        }
    }
}

impl Rival {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Direct,
        Self::Pump,
        Self::PumpChunks,
        Self::Envoy,
        Self::EnvoyH2,
        Self::EnvoyH3,
        Self::Haproxy,
        Self::Rathole,
        Self::Wireguard,
        Self::Link,
        Self::Quic,
        Self::Tls,
    ];

    /// Its name in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Pump => "pump",
            Self::PumpChunks => "pump-chunks",
            Self::Envoy => "envoy",
            Self::EnvoyH2 => "envoy-h2",
            Self::EnvoyH3 => "envoy-h3",
            Self::Haproxy => "haproxy",
            Self::Rathole => "rathole",
            Self::Wireguard => "wireguard",
            Self::Link => "link",
            Self::Quic => "quic",
            Self::Tls => "tls",
        }
    }

    /// Where the ports of its proxies begin, those of both gateways alike; 0: clients connect to the service's own port.
    fn ports(self) -> u16 {
        match self {
            Self::Direct | Self::Wireguard | Self::Link | Self::Quic | Self::Tls => 0,
            Self::Pump => 21_000,
            Self::PumpChunks => 21_100,
            Self::Envoy => 22_000,
            Self::EnvoyH2 => 23_000,
            Self::EnvoyH3 => 24_000,
            Self::Haproxy => 25_000,
            Self::Rathole => 26_000,
        }
    }
}

/// Programs that are needed and not in the path.
#[derive(Clone, Debug)]
pub struct Programs {
    /// Our release binary.
    pub eastway: PathBuf,
    /// Envoy.
    pub envoy: PathBuf,
    /// rathole.
    pub rathole: PathBuf,
    /// wireguard-go.
    pub wireguard: PathBuf,
    /// The folder `bench/peers`.
    pub peers: PathBuf,
}

/// A tunnel that is up.
#[derive(Debug)]
pub struct Running {
    rival: Rival,
    /// The address that clients connect to.
    address: String,
    processes: Vec<Process>,
}

impl Running {
    /// What needs no tunnel.
    pub fn direct() -> Self {
        Self { rival: Rival::Direct, address: SERVER.to_owned(), processes: Vec::new() }
    }

    /// Starts a tunnel and waits until it is up. `mtu` is that of the way between the gateways.
    ///
    /// # Errors
    /// It does not come up; the message quotes its log.
    pub fn start(rival: Rival, programs: &Programs, mtu: u16) -> Result<Self> {
        let (address, processes) = match rival {
            Rival::Direct => return Ok(Self::direct()),
            Rival::Pump => (GATEWAY_A.to_owned(), pump(rival, &[])?),
            Rival::PumpChunks => (GATEWAY_A.to_owned(), pump(rival, &["--chunks"])?),
            Rival::Envoy => (GATEWAY_A.to_owned(), envoy(rival, programs, Some(22_001))?),
            Rival::EnvoyH2 => (GATEWAY_A.to_owned(), envoy(rival, programs, Some(23_000))?),
            Rival::EnvoyH3 => (GATEWAY_A.to_owned(), envoy(rival, programs, None)?),
            Rival::Haproxy => (GATEWAY_A.to_owned(), haproxy(rival, programs)?),
            Rival::Rathole => (GATEWAY_A.to_owned(), rathole(rival, programs)?),
            Rival::Wireguard => (wireguard::SERVER.to_owned(), wireguard::start(programs, mtu)?),
            Rival::Link => eastway::start(programs, &eastway::LINK)?,
            Rival::Quic => eastway::start(programs, &eastway::QUIC)?,
            Rival::Tls => eastway::start(programs, &eastway::TLS)?,
        };
        Ok(Self { rival, address, processes })
    }

    /// What a client connects to for a service.
    ///
    /// # Errors
    /// None but of a wrong table of addresses.
    pub fn target(&self, service: Service) -> Result<SocketAddr> {
        let port = match self.rival.ports() {
            0 => service.port(),
            first => first + service.digit(),
        };
        Ok(SocketAddr::new(self.address.parse()?, port))
    }

    /// Memory of its processes by gateway, kB: resident, not shared with a file.
    ///
    /// # Errors
    /// One has ended.
    pub fn memory(&self) -> Result<Vec<(String, f64)>> {
        let of = |process: &Process| {
            let text = std::fs::read_to_string(format!("/proc/{}/status", process.pid()))?;
            let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
            let kb = line.trim().trim_end_matches(" kB").parse()?;
            Ok((process.name().to_owned(), kb))
        };
        self.processes.iter().map(of).collect()
    }
}

fn pump(rival: Rival, more: &[&str]) -> Result<Vec<Process>> {
    let link = format!("{WAN_B}:{}", rival.ports());
    let end = |place: Place| {
        let mut command = place.command(own_program()?);
        command.arg("pump").arg("--tls").arg(tls()).args(more);
        anyhow::Ok(command)
    };
    let mut far = end(Place::GwB)?;
    far.args(["--listen", &link]);
    let far = Process::start(&logs(), &format!("{}-b", rival.name()), far)?;
    let mut near = end(Place::GwA)?;
    near.args(["--connect", &link]);
    for service in Service::ALL {
        let port = rival.ports() + service.digit();
        near.args(["--forward", &format!("{GATEWAY_A}:{port}={SERVER}:{}", service.port())]);
    }
    let mut near = Process::start(&logs(), &format!("{}-a", rival.name()), near)?;
    listening(&mut near, Place::GwA, rival.ports() + Service::Echo.digit())?;
    Ok(vec![near, far])
}

/// A pair of Envoys by `bench/peers/NAME/{a,b}.yaml`, whose far end listens on this TCP port.
fn envoy(rival: Rival, programs: &Programs, at_b: Option<u16>) -> Result<Vec<Process>> {
    pair(
        rival,
        |side| {
            let mut command = Command::new(&programs.envoy);
            command.arg("-c").arg(programs.peers.join(rival.name()).join(format!("{side}.yaml")));
            command.args(["--disable-hot-restart", "--concurrency", "2", "--log-level", "warning"]);
            command
        },
        at_b,
    )
}

/// A pair of haproxies by `bench/peers/haproxy/{a,b}.cfg`.
fn haproxy(rival: Rival, programs: &Programs) -> Result<Vec<Process>> {
    pair(
        rival,
        |side| {
            let mut command = Command::new("haproxy");
            command.arg("-db").arg("-f").arg(programs.peers.join(rival.name()).join(format!("{side}.cfg")));
            command
        },
        Some(rival.ports() + Service::Iperf.digit()),
    )
}

/// A pair of ratholes by `bench/peers/rathole/{a,b}.toml`. The far end connects to the near one, which opens the ports of
/// services when it has.
fn rathole(rival: Rival, programs: &Programs) -> Result<Vec<Process>> {
    pair(
        rival,
        |side| {
            let mut command = Command::new(&programs.rathole);
            command.arg(programs.peers.join(rival.name()).join(format!("{side}.toml"))).env("RUST_LOG", "warn");
            command
        },
        None,
    )
}

/// A far end and a near end, each up before the next.
fn pair(rival: Rival, command: impl Fn(&str) -> Command, at_b: Option<u16>) -> Result<Vec<Process>> {
    let mut processes = Vec::new();
    let near = Some(rival.ports() + Service::Iperf.digit());
    for (place, side, port) in [(Place::GwB, "b", at_b), (Place::GwA, "a", near)] {
        let program = command(side);
        let mut inside = place.command(program.get_program());
        inside.args(program.get_args());
        let mut process = Process::start(&logs(), &format!("{}-{side}", rival.name()), inside)?;
        if let Some(port) = port {
            listening(&mut process, place, port)?;
        }
        processes.push(process);
    }
    Ok(processes)
}

/// Waits until something listens on a TCP port.
fn listening(process: &mut Process, place: Place, port: u16) -> Result<()> {
    let listens = || {
        let listeners = output(place.command("ss").args(["-Hltn", &format!("sport = :{port}")]))?;
        Ok(!listeners.trim().is_empty())
    };
    process.wait_until(&format!("it listens on port {port}"), PATIENCE, listens)
}

/// Where the certificates are.
pub fn tls() -> PathBuf {
    Path::new(FOLDER).join("tls")
}

/// Starts what answers [`crate::load`].
///
/// # Errors
/// It does not come up.
pub fn echo() -> Result<Process> {
    let mut command = Place::Srv.command(own_program()?);
    command.args(["load", "serve", &format!("0.0.0.0:{}", Service::Echo.port())]);
    let mut process = Process::start(&logs(), "serve", command)?;
    listening(&mut process, Place::Srv, Service::Echo.port())?;
    Ok(process)
}

/// Starts an iperf3 that serves. One that has served before may not be done with what a tunnel still brings it, and
/// would refuse the next client.
///
/// # Errors
/// It does not come up.
pub fn iperf(service: Service) -> Result<Process> {
    let mut command = Place::Srv.command("iperf3");
    command.args(["-s", "-p", &service.port().to_string()]);
    let mut process = Process::start(&logs(), &format!("iperf3-{}", service.port()), command)?;
    listening(&mut process, Place::Srv, service.port())?;
    Ok(process)
}

//! wireguard-go, the newest there is: two ends by `bench/peers/wireguard/{a,b}.uapi`, and routes into them.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::{PATIENCE, Programs};
use crate::bed::{Place, logs};
use crate::process::Process;

/// The server, by the addresses that go through here.
pub(super) const SERVER: &str = "10.32.0.2";
/// What an encrypted packet is longer by.
const OVERHEAD: u16 = 80;

pub(super) fn start(programs: &Programs, mtu: u16) -> Result<Vec<Process>> {
    let mut processes = Vec::new();
    for (place, side, far) in [(Place::GwA, "a", 32), (Place::GwB, "b", 31)] {
        let device = format!("wg-{side}");
        let socket = format!("/var/run/wireguard/{device}.sock");
        // Of one that was killed.
        let _none = std::fs::remove_file(&socket);
        let mut command = place.command(&programs.wireguard);
        command.args(["-f", &device]).env("LOG_LEVEL", "error");
        let mut process = Process::start(&logs(), &format!("wireguard-{side}"), command)?;
        process.wait_until("its socket is there", PATIENCE, || Ok(Path::new(&socket).exists()))?;
        configure(&socket, &programs.peers.join("wireguard").join(format!("{side}.uapi")))?;
        place.ip(&[
            format!("link set {device} mtu {} up", mtu - OVERHEAD),
            format!("route replace 10.{far}.0.0/24 dev {device}"),
        ])?;
        processes.push(process);
    }
    Ok(processes)
}

/// As the tool `wg` would, which is not needed for it.
fn configure(socket: &str, file: &Path) -> Result<()> {
    let settings = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let mut stream = UnixStream::connect(socket)?;
    stream.write_all(settings.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.trim() == "errno=0", "{}: {answer}", file.display());
    Ok(())
}

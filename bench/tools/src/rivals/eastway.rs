//! Our own gateways, set up by the commands and files that a user has.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{PATIENCE, Programs};
use crate::bed::{FOLDER, Place, logs};
use crate::process::{Process, output};

/// A pair of gateways by `bench/peers/eastway/{a,b}`, with ports and addresses of its own.
pub(super) struct Pair {
    name: &'static str,
    /// What the numbers of its ports begin with, instead of 15.
    ports: &'static str,
    /// Its virtual addresses.
    range: &'static str,
    /// `spec.transport` of its Peer files.
    transport: &'static str,
}

/// The way a user has it: the link chooses its transport.
pub(super) const LINK: Pair = Pair { name: "eastway-link", ports: "17", range: "244.0.0.0/16", transport: "auto" };
/// Over QUIC, whatever would be faster.
pub(super) const QUIC: Pair = Pair { name: "eastway-quic", ports: "15", range: "242.0.0.0/16", transport: "quic" };
/// Over TLS on TCP.
pub(super) const TLS: Pair = Pair { name: "eastway-tls", ports: "16", range: "243.0.0.0/16", transport: "tcp" };

impl Pair {
    fn admin(&self) -> String {
        format!("127.0.0.1:{}000", self.ports)
    }
}

/// Starts a pair and gives the service's virtual address.
pub(super) fn start(programs: &Programs, pair: &Pair) -> Result<(String, Vec<Process>)> {
    let name = pair.name;
    let sides = [Side::prepare(programs, pair, Place::GwA, "a")?, Side::prepare(programs, pair, Place::GwB, "b")?];
    let [a, b] = &sides;
    a.introduce(b)?;
    b.introduce(a)?;
    // As on any gateway: its virtual addresses are its own.
    Place::GwA.ip(&[format!("route replace local {} dev lo", pair.range)])?;
    let mut processes = Vec::new();
    for side in [a, b] {
        let mut ca = Process::start(&logs(), &format!("{name}-{}-ca", side.letter), side.role("ca"))?;
        let socket = side.folder.join("run/ca.sock");
        ca.wait_until("its socket is there", PATIENCE, || Ok(socket.exists()))?;
        processes.push(ca);
        processes.push(Process::start(&logs(), &format!("{name}-{}", side.letter), side.role("gateway"))?);
    }
    let gateway = processes.get_mut(1).context("a gateway was started")?;
    gateway.wait_until("the import has an address", PATIENCE, || Ok(a.address()?.is_some()))?;
    let address = a.address()?.context("the import's address is gone")?;
    Ok((address, processes))
}

struct Side<'a> {
    binary: &'a Path,
    admin: String,
    transport: &'static str,
    place: Place,
    letter: &'static str,
    folder: PathBuf,
}

impl<'a> Side<'a> {
    fn prepare(programs: &'a Programs, pair: &Pair, place: Place, letter: &'static str) -> Result<Self> {
        let folder = Path::new(FOLDER).join(pair.name).join(letter);
        if folder.exists() {
            std::fs::remove_dir_all(&folder)?;
        }
        copy(&programs.peers.join("eastway").join(letter), &folder, pair)?;
        for inner in ["run", "peers", "policies"] {
            std::fs::create_dir_all(folder.join(inner))?;
        }
        let side =
            Self { binary: &programs.eastway, admin: pair.admin(), transport: pair.transport, place, letter, folder };
        output(&mut side.command(&["ca", "init"]))?;
        Ok(side)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.place.command(self.binary);
        command.args(arguments).env("EASTWAY_CONFIG", self.folder.join("gateway.yaml"));
        command.env("EASTWAY_ADMIN", &self.admin);
        command
    }

    fn role(&self, role: &str) -> Command {
        self.command(&["run", "--roles", role])
    }

    /// Writes the other side's Peer file, with what crosses filled in.
    fn introduce(&self, other: &Self) -> Result<()> {
        let exported = output(&mut other.command(&["peer", "export"]))?;
        let mut text = exported;
        for key in ["export", "import"] {
            let empty = format!("\n  {key}: []\n");
            ensure!(text.contains(&empty), "eastway peer export: no empty list `{key}`:\n{text}");
            text = text.replacen(&empty, &format!("\n  {key}: [{{namespace: bench}}]\n"), 1);
        }
        ensure!(text.contains("\nspec:\n"), "eastway peer export: no `spec`:\n{text}");
        text = text.replacen("\nspec:\n", &format!("\nspec:\n  transport: {}\n", self.transport), 1);
        std::fs::write(self.folder.join("peers").join(format!("{}.yaml", other.letter)), text)?;
        Ok(())
    }

    /// The virtual address of the import, once it has one and the link is up.
    fn address(&self) -> Result<Option<String>> {
        let Ok(said) = output(&mut self.command(&["services", "-o", "json"])) else { return Ok(None) };
        let view: Value = serde_json::from_str(&said).context("eastway services")?;
        let items = view["items"].as_array().or_else(|| view["contents"]["items"].as_array());
        let import = items.into_iter().flatten().find(|item| item["name"] == "target");
        Ok(import.and_then(|import| import["vips"][0].as_str().map(str::to_owned)))
    }
}

/// Copies a folder of configuration, with the ports and virtual addresses of this pair.
fn copy(from: &Path, to: &Path, pair: &Pair) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from).with_context(|| from.display().to_string())? {
        let (path, to) = {
            let entry = entry?;
            (entry.path(), to.join(entry.file_name()))
        };
        if path.is_dir() {
            copy(&path, &to, pair)?;
        } else {
            let text = std::fs::read_to_string(&path)?;
            let text = text.replace(":15", &format!(":{}", pair.ports)).replace("242.0.0.0/16", pair.range);
            std::fs::write(to, text)?;
        }
    }
    Ok(())
}

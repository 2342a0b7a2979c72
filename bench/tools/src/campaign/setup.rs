//! On what and with what was measured: recorded with the figures.

use std::process::Command;

use anyhow::Result;
use serde_json::{Value, json};

use crate::bed::{SEED, SYSCTLS};
use crate::process::output;
use crate::rivals::Programs;

/// Settings of the machine that no namespace has of its own.
const OF_THE_MACHINE: [&str; 5] = [
    "net.core.netdev_max_backlog",
    "net.core.rmem_max",
    "net.core.wmem_max",
    "net.core.rmem_default",
    "net.ipv4.tcp_allowed_congestion_control",
];

/// Reads it.
///
/// # Errors
/// The kernel says less than expected.
pub(super) fn read(programs: &Programs) -> Result<Value> {
    let file = |path: &str| std::fs::read_to_string(path).map(|text| text.trim().to_owned());
    let processors = file("/proc/cpuinfo")?;
    let model = processors
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map(|(_, name)| name.trim());
    let sysctls: serde_json::Map<String, Value> = OF_THE_MACHINE
        .iter()
        .map(|key| Ok(((*key).to_owned(), file(&format!("/proc/sys/{}", key.replace('.', "/")))?.into())))
        .chain(SYSCTLS.iter().map(|(key, value)| Ok(((*key).to_owned(), Value::from(*value)))))
        .collect::<Result<_>>()?;
    Ok(json!({
        "machine": {
            "processor": model,
            "processors": processors.lines().filter(|line| line.starts_with("processor")).count(),
            "kernel": file("/proc/sys/kernel/osrelease")?,
        },
        "versions": {
            "eastway": first_line(Command::new(&programs.eastway).arg("version")),
            // Of a copy without history nobody knows it.
            "commit": first_line(Command::new("git").args(["rev-parse", "--short", "HEAD"])),
            "envoy": envoy(Command::new(&programs.envoy).arg("--version")),
            "haproxy": first_line(Command::new("haproxy").arg("-v")),
            "rathole": rathole(Command::new(&programs.rathole).arg("--version")),
            "iperf3": first_line(Command::new("iperf3").arg("-v")),
            "wireguard-go": required(&programs.peers.join("wireguard/go.mod"), "golang.zx2c4.com/wireguard "),
            "quinn": required(std::path::Path::new("Cargo.toml"), "quinn = "),
        },
        "configurations": "bench/peers, bench/tools/src/campaign/stages.rs",
        "sysctls": sysctls,
        "seed": SEED,
    }))
}

fn first_line(command: &mut Command) -> Option<String> {
    let said = output(command).ok()?;
    said.lines().find(|line| !line.is_empty()).map(|line| line.trim().to_owned())
}

/// It says its own path before the version.
fn envoy(command: &mut Command) -> Option<String> {
    first_line(command)?.split_once("version: ").map(|(_, version)| version.to_owned())
}

/// It says a version for each thing that it was built of.
fn rathole(command: &mut Command) -> Option<String> {
    let said = output(command).ok()?;
    let version = |line: &str| line.split_once("Build Version:").map(|(_, version)| version.trim().to_owned());
    said.lines().find_map(version)
}

/// The line of a file of dependencies that begins so.
fn required(file: &std::path::Path, start: &str) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    text.lines().map(str::trim).find(|line| line.starts_with(start)).map(|line| line[start.len()..].to_owned())
}

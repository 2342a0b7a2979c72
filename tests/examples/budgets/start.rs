//! A gateway from the start of its process to ready, and the demo to its first answer across clouds.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::table::{Figure, Kind};
use crate::{median_and_p99, to_f64};

/// Starts measured; the median counts.
const STARTS: usize = 9;
/// Runs of the demo's script; the median counts.
const DEMOS: usize = 3;
/// Longest wait for a gateway or an end.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) async fn measure(binary: &Path) -> Result<Vec<Figure>> {
    let binary = binary.to_owned();
    tokio::task::spawn_blocking(move || Ok(vec![cold_start(&binary)?, first_answer(&binary)?])).await?
}

/// `eastway run` in a new folder that `eastway ca init` has been run in, with a checked service, as after an installation.
fn cold_start(binary: &Path) -> Result<Figure> {
    // Its backlog is all that a check by TCP needs.
    let service = TcpListener::bind("127.0.0.1:0")?;
    let mut times = Vec::new();
    for _ in 0..STARTS {
        let folder = tempfile::tempdir()?;
        let health = write_files(folder.path(), service.local_addr()?)?;
        let config = folder.path().join("gateway.yaml");
        let made = Command::new(binary).args(["ca", "init", "--config"]).arg(&config).output()?;
        ensure!(made.status.success(), "ca init: {}", String::from_utf8_lossy(&made.stderr));
        times.push(start_to_ready(binary, &config, health)?);
    }
    let (median, slowest) = median_and_p99(times);
    let note = format!("process start to /healthz/ready 200; median of {STARTS}, slowest {slowest:.0}");
    Ok(Figure::new("cold start", Kind::Milliseconds, median, 300.0, note))
}

fn start_to_ready(binary: &Path, config: &Path, health: SocketAddr) -> Result<f64> {
    let log = std::fs::File::create(config.with_file_name("log"))?;
    let started = Instant::now();
    let mut gateway = Command::new(binary).args(["run", "--config"]).arg(config).stderr(log).spawn()?;
    while !is_ready(health) {
        if gateway.try_wait()?.is_some() || started.elapsed() > PATIENCE {
            stop(gateway)?;
            bail!("not ready:\n{}", std::fs::read_to_string(config.with_file_name("log"))?);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let elapsed = started.elapsed();
    stop(gateway)?;
    Ok(elapsed.as_secs_f64() * 1e3)
}

fn is_ready(health: SocketAddr) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(health)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET /healthz/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

fn stop(mut process: Child) -> Result<()> {
    if process.try_wait()?.is_none() {
        kill(Pid::from_raw(i32::try_from(process.id())?), Signal::SIGTERM)?;
    }
    process.wait()?;
    Ok(())
}

/// The files of a cluster with one peer that is away; gives the address of the health port.
fn write_files(folder: &Path, service: SocketAddr) -> Result<SocketAddr> {
    // Found free, then let go.
    let udp = UdpSocket::bind("127.0.0.1:0")?.local_addr()?;
    let free = || anyhow::Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?);
    let (dns, admin, metrics, health) = (free()?, free()?, free()?, free()?);
    let config = format!(
        "apiVersion: eastway.dev/v1alpha1\nkind: GatewayConfig\ncluster: onprem\n\
         trust: {{domain: onprem.example, cacerts: ./cacerts, ca: unix:./ca.sock}}\n\
         listen: {{link: \"{udp}\", dns: [\"{dns}\"], admin: \"{admin}\", metrics: \"{metrics}\", health: \"{health}\"}}\n\
         registries: [{{name: hosts, file: ./services.yaml}}]\npeers: ./peers\nallowLoopback: true\n\
         vip: {{ranges: [127.77.0.0/16], owner: true}}\nstate: ./state\n"
    );
    let (ip, port) = (service.ip(), service.port());
    let services = format!(
        "apiVersion: eastway.dev/v1alpha1\nkind: ServiceList\nservices:\n- namespace: shop\n  name: web\n  export: true\n  \
         ports: [{{name: http, port: {port}}}]\n  health: {{tcp: {{port: http}}}}\n  endpoints: [{{address: {ip}}}]\n"
    );
    let peer = format!(
        "apiVersion: eastway.dev/v1alpha1\nkind: Peer\nmetadata: {{name: gke}}\nspec:\n  addresses: [\"127.0.0.1:9\"]\n  \
         trustDomain: gke.example\n  pins: [\"sha256:{:064}\"]\n  import: [{{namespace: shop}}]\n  export: [{{namespace: shop}}]\n",
        7
    );
    std::fs::create_dir(folder.join("peers"))?;
    for (name, text) in [("gateway.yaml", config), ("services.yaml", services), ("peers/gke.yaml", peer)] {
        std::fs::write(folder.join(name), text)?;
    }
    Ok(health)
}

/// `eastway demo --once -o json`, from the start of the command.
fn first_answer(binary: &Path) -> Result<Figure> {
    let mut times = Vec::new();
    let mut largest = 0.0_f64;
    for _ in 0..DEMOS {
        let mut command = Command::new(binary);
        command.args(["demo", "--once", "-o", "json", "--require-namespaces"]).stdin(Stdio::null());
        let output = command.output()?;
        ensure!(output.status.success(), "demo: {}", String::from_utf8_lossy(&output.stderr));
        let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        times.push(report["first_cross_cloud_answer_ms"].as_f64().context("no first answer")?);
        let clouds = report["clouds"].as_array().context("no clouds")?;
        let memory = clouds.iter().filter_map(|cloud| cloud["gateway"]["rss_bytes"].as_u64());
        largest = memory.map(to_f64).fold(largest, f64::max);
    }
    let (median, slowest) = median_and_p99(times);
    let largest = largest / 1e6;
    let note = format!("median of {DEMOS}, slowest {slowest:.0}; largest gateway after the script {largest:.1} MB");
    Ok(Figure::new("demo: first answer across clouds", Kind::Milliseconds, median, 3000.0, note))
}

//! The process inside: builds the clouds, then runs the script or the live table.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use clap::ValueEnum;
use tokio::signal::unix::{SignalKind, signal};

use super::envoy::{Choice, Envoy};
use super::lab::cloud::Cloud;
use super::lab::{Isolation, Lab};
use super::report::{CloudReport, EnvoyReport, GatewayReport, LinkReport, Report, Step};
use super::script::Script;
use super::story::Story;
use super::{Output, THIS_BINARY, browser, live};

/// Arguments of the hidden command `demo-lab`.
#[derive(Debug, clap::Parser)]
#[command(name = "eastway demo-lab")]
pub(super) struct Args {
    #[arg(long, value_enum)]
    isolation: Isolation,
    /// Why not namespaces.
    #[arg(long)]
    reason: Option<String>,
    /// The program beside each workload.
    #[arg(long, requires = "envoy_version")]
    envoy: Option<PathBuf>,
    #[arg(long)]
    envoy_version: Option<String>,
    /// Why none.
    #[arg(long)]
    no_envoy: Option<String>,
    #[arg(long)]
    once: bool,
    #[arg(long, value_enum)]
    output: Output,
    /// When the demo was started, microseconds since the Unix epoch.
    #[arg(long)]
    started: u64,
}

/// The command line that makes a process the inside of the demo.
pub(super) fn command_line(
    args: &super::Args,
    (isolation, reason): (Isolation, Option<&str>),
    envoy: &Choice,
    started: SystemTime,
) -> Result<Vec<OsString>> {
    let started = started.duration_since(UNIX_EPOCH).context("the clock is before 1970")?.as_micros();
    let mut line = vec!["demo-lab".to_owned(), format!("--started={started}")];
    line.push(format!("--isolation={}", value_name(&isolation)));
    line.push(format!("--output={}", value_name(&args.output)));
    line.extend(args.once.then(|| "--once".to_owned()));
    line.extend(reason.map(|reason| format!("--reason={reason}")));
    let mut line: Vec<OsString> = line.into_iter().map(OsString::from).collect();
    match envoy {
        Ok(envoy) => {
            let mut path = OsString::from("--envoy=");
            path.push(&envoy.path);
            line.extend([path, format!("--envoy-version={}", envoy.version).into()]);
        }
        Err(reason) => line.push(format!("--no-envoy={reason}").into()),
    }
    Ok(line)
}

fn value_name(value: &impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

/// Runs it.
pub(super) fn run(args: Args) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(until_told_to_stop(args))
}

async fn until_told_to_stop(args: Args) -> Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate())?;
    let browser = handed_in()?;
    let lab = match args.isolation {
        Isolation::Namespaces => Lab::in_namespaces(Path::new(THIS_BINARY)).await?,
        Isolation::Loopback => Lab::on_loopback(Path::new(THIS_BINARY)).await?,
    };
    let mut story = None;
    let result = tokio::select! {
        result = perform(&args, lab, browser, &mut story) => result,
        _ = terminate.recv() => Ok(ExitCode::from(130)),
    };
    let Some(mut story) = story else { return result };
    let logs = story.logs();
    let stopped = story.stop().await;
    if result.is_err() || stopped.is_err() {
        eprintln!("{logs}");
    }
    stopped.and(result)
}

/// The browser's listener, which the outer process made on the host's network.
fn handed_in() -> Result<TcpListener> {
    let descriptor = std::io::stdin().as_fd().try_clone_to_owned().context("no listener was handed in")?;
    Ok(TcpListener::from(descriptor))
}

/// `kept` outlives a cancelled performance, so that its clouds can be stopped in order.
async fn perform(args: &Args, lab: Lab, browser: TcpListener, kept: &mut Option<Story>) -> Result<ExitCode> {
    let start = UNIX_EPOCH + Duration::from_micros(args.started);
    eprintln!("starting three clouds ({}), {}", value_name(&args.isolation), beside(args));
    let envoy = args.envoy.clone().zip(args.envoy_version.clone()).map(|(path, version)| Envoy { path, version });
    let story = kept.insert(Story::prepare(lab, envoy).await?);
    story.start().await?;
    eprintln!("three clouds run after {} ms", milliseconds_since(start));
    let script = Script::new(story);
    let settled = async {
        let first = script.first_answer(start).await?;
        eprintln!("first answer across clouds after {} ms", first.as_millis());
        // The links of the private cluster come last: what is shown before would look broken.
        script.settled().await?;
        anyhow::Ok(first)
    };
    let first = tokio::select! {
        settled = settled => settled?,
        // Without it they would never answer.
        ended = story.until_one_ended() => match ended? {},
    };
    if story.envoy.is_some() {
        eprintln!("all Envoys have their configuration after {} ms", milliseconds_since(start));
    }
    if !args.once {
        let url = browser::serve(story, browser)?;
        eprintln!("productpage for your browser: {url} (Ctrl-C ends the demo and leaves nothing behind)");
        live::run(story, &script, &url).await?;
        return Ok(ExitCode::SUCCESS);
    }
    drop(browser);
    let steps = script.run(|step| eprintln!("{}", line(step))).await;
    let ok = steps.iter().all(|step| step.ok);
    if !ok {
        eprintln!("{}", story.logs());
    }
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        isolation: args.isolation,
        isolation_reason: args.reason.clone(),
        envoy: story.envoy.as_ref().map(|envoy| EnvoyReport {
            version: envoy.version.clone(),
            beside: story.sidecars().map(|workload| format!("{}/{}", workload.cloud, workload.name())).collect(),
        }),
        envoy_reason: args.no_envoy.clone(),
        clouds: clouds(story, &script).await?,
        first_cross_cloud_answer_ms: first.as_secs_f64() * 1000.0,
        steps,
        requests: script.requests(),
    };
    print(args.output, &report)?;
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What is beside the workloads.
fn beside(args: &Args) -> String {
    match (&args.envoy_version, &args.no_envoy) {
        (Some(version), _) => format!("Envoy {version} beside each workload"),
        (None, Some(reason)) => format!("no Envoy beside workloads ({reason})"),
        (None, None) => "no Envoy beside workloads".to_owned(),
    }
}

fn milliseconds_since(start: SystemTime) -> u128 {
    start.elapsed().unwrap_or_default().as_millis()
}

fn line(step: &Step) -> String {
    format!("{:4} {:16} {}", if step.ok { "ok" } else { "FAIL" }, step.name, step.detail)
}

fn print(output: Output, report: &Report) -> Result<()> {
    let mut text = match output {
        Output::Json => serde_json::to_string_pretty(report)?,
        Output::Table => live::summary(report),
    };
    text.push('\n');
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    Ok(stdout.flush()?)
}

async fn clouds(story: &Story, script: &Script<'_>) -> Result<Vec<CloudReport>> {
    let mut reports = Vec::new();
    for (cloud, ready) in story.clouds.iter().zip(&story.ready) {
        reports.push(cloud_report(story, cloud, *ready, script).await?);
    }
    Ok(reports)
}

async fn cloud_report(story: &Story, cloud: &Cloud, ready: Duration, script: &Script<'_>) -> Result<CloudReport> {
    let (mut routes, mut ways_out) = (Vec::new(), BTreeMap::new());
    if story.lab.isolation() == Isolation::Namespaces {
        routes = cloud.net().routes().await?;
        for other in story.clouds.iter().filter(|other| other.name() != cloud.name()) {
            for gateway in other.net().gateways() {
                let reason = cloud.net().no_route_to(gateway.wan).await?;
                ways_out.insert(gateway.wan, reason.unwrap_or_else(|| "there is a route".to_owned()));
            }
        }
    }
    let status = cloud.status(0).await?;
    let process = cloud.gateway(0)?;
    Ok(CloudReport {
        name: cloud.name().to_owned(),
        inbound: cloud.advertised().first().cloned(),
        inbound_guard: (!cloud.is_inbound()).then(|| story.edge_guard.clone()),
        pod_range: cloud.net().pod_range(),
        vip_range: cloud.net().vip_range(),
        pods: script.pods_of(cloud).await?,
        routes,
        ways_out,
        gateway: GatewayReport {
            version: status.version,
            pid: process.pid(),
            rss_bytes: process.rss()?,
            ready_ms: ready.as_secs_f64() * 1000.0,
            links: links(cloud).await?,
        },
    })
}

/// The live links of a cloud's gateway.
pub(super) async fn links(cloud: &Cloud) -> Result<Vec<LinkReport>> {
    let peers = cloud.peers(0).await?;
    let of_peer = |peer: crate::admin::views::PeerView| {
        peer.links.into_iter().map(move |link| LinkReport {
            peer: peer.name.clone(),
            remote: link.remote,
            transport: link.transport,
            dialled: link.dialled,
            rtt_ms: link.rtt_us.map(|rtt| Duration::from_micros(rtt).as_secs_f64() * 1000.0),
        })
    };
    Ok(peers.into_iter().flat_map(of_peer).collect())
}

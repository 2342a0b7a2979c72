//! Two Kubernetes clusters that stay up until Ctrl-C, to try things on: `make bed`.
//!
//! The API servers are forwarded to loopback ports of this machine, so that any program reads
//! `target/bed/<cluster>.kubeconfig` and works. The script `target/bed/bed` does the rest: commands on the
//! WAN or on a node, images, load balancers.
#![allow(clippy::print_stdout, reason = "it tells a person how to use it")]

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Parser;
use eastway_tests::kube::cluster::Options;
use eastway_tests::kube::node::API_PORT;
use eastway_tests::kube::{Bed, Cluster, image, stage, suite, tools};
use eastway_tests::lab::place::Place;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};

/// What the script in the results' folder does. `@…@` is filled in.
const SCRIPT: &str = include_str!("bed.sh");

/// Two (or more) Kubernetes clusters that stay up until Ctrl-C.
#[derive(Debug, Parser)]
struct Args {
    /// Names of the clusters.
    #[arg(default_values = ["a", "b"])]
    clusters: Vec<String>,
    /// Give the pods of every cluster addresses of their own within the same range, as the MCS suite wants it.
    #[arg(long)]
    distinct_pods: bool,
    /// Loopback ports of the API servers, given to the copy on the stage.
    #[arg(long, hide = true, value_delimiter = ',')]
    ports: Vec<u16>,
    /// Instead: write an image of this binary, to be loaded by `bed eastway`.
    #[arg(long, requires = "to")]
    image_of: Option<PathBuf>,
    /// Where to write it.
    #[arg(long)]
    to: Option<PathBuf>,
    /// Instead: write the images that the MCS suite wants into this folder.
    #[arg(long)]
    conformance_images_to: Option<PathBuf>,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    if let (Some(binary), Some(tar)) = (&args.image_of, &args.to) {
        runtime.block_on(image::eastway_image(binary, tar))?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(folder) = &args.conformance_images_to {
        runtime.block_on(image::conformance_images(folder))?;
        return Ok(ExitCode::SUCCESS);
    }
    if stage::is_entered() {
        runtime.block_on(on_stage(&args))?;
        return Ok(ExitCode::SUCCESS);
    }
    let listeners = runtime.block_on(async {
        let mut listeners = Vec::new();
        for _ in &args.clusters {
            listeners.push(TcpListener::bind("127.0.0.1:0").await?);
        }
        anyhow::Ok(listeners)
    })?;
    let mut ports = Vec::new();
    for listener in &listeners {
        ports.push(listener.local_addr()?.port().to_string());
    }
    std::fs::create_dir_all(folder())?;
    let mut arguments: Vec<OsString> = args.clusters.iter().map(OsString::from).collect();
    arguments.push(format!("--ports={}", ports.join(",")).into());
    if args.distinct_pods {
        arguments.push("--distinct-pods".into());
    }
    let stage = stage::Stage::new(arguments)?.start()?;
    std::fs::write(folder().join("pid"), stage.pid().to_string())?;
    let pid = stage.pid();
    let _forwarding = runtime.spawn(forward(listeners, options(&args), pid));
    let _passing = runtime.spawn(pass_signals(pid));
    let status = stage.finish()?;
    Ok(ExitCode::from(stage::exit_code(status)))
}

/// Passes on what asks for the end, so that the stage ends in order and is waited for.
async fn pass_signals(pid: u32) -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    loop {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        // It may have ended by itself: a terminal tells all its processes.
        let _gone = stage::terminate(pid);
    }
}

fn folder() -> PathBuf {
    suite::results().with_file_name("bed")
}

fn options(args: &Args) -> Vec<Options> {
    let mut options: Vec<Options> = args.clusters.iter().zip(1..).map(|(name, n)| Options::new(name, n)).collect();
    if args.distinct_pods {
        for (options, number) in options.iter_mut().zip(0_u8..) {
            options.first_pod = Some([10, 244, number, 2].into());
        }
    }
    options
}

/// Carries connections from loopback ports of the machine to API servers on the stage.
async fn forward(listeners: Vec<TcpListener>, clusters: Vec<Options>, pid: u32) -> Result<()> {
    let mut tasks = tokio::task::JoinSet::new();
    for (listener, cluster) in listeners.into_iter().zip(clusters) {
        let target = (cluster.address, API_PORT);
        tasks.spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                tokio::spawn(async move {
                    // Only now: a stage that has just been started is not in its namespaces yet, and ports are
                    // told to nobody before its clusters are up.
                    let wan = Place::of_process("wan", pid).await?;
                    // The socket keeps its namespace; this runtime does not poll another's sockets, so as std.
                    let dialled = wan.run(async move { Ok(TcpStream::connect(target).await?.into_std()?) }).await?;
                    let mut server = TcpStream::from_std(dialled)?;
                    tokio::io::copy_bidirectional(&mut client, &mut server).await?;
                    anyhow::Ok(())
                });
            }
        });
    }
    while tasks.join_next().await.is_some() {}
    Ok(())
}

async fn on_stage(args: &Args) -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let bed = tokio::select! {
        bed = Bed::start_with(options(args)) => bed?,
        _ = interrupt.recv() => bail!("interrupted"),
        _ = terminate.recv() => bail!("interrupted"),
    };
    for cluster in bed.clusters() {
        cluster.gateway_api(tools::GATEWAY_API).await?;
    }
    for (name, value) in bed.figures() {
        println!("{name}: {value}");
    }
    describe(&bed, &args.ports)?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    bed.stop().await
}

/// Writes kubeconfigs and the script, and says where they are.
fn describe(bed: &Bed, ports: &[u16]) -> Result<()> {
    let folder = folder();
    for (cluster, port) in bed.clusters().iter().zip(ports) {
        let file = folder.join(format!("{}.kubeconfig", cluster.name()));
        std::fs::write(&file, cluster.pki().admin_at(cluster.name(), &format!("https://127.0.0.1:{port}")))?;
        let wan = folder.join(format!("{}.wan.kubeconfig", cluster.name()));
        std::fs::copy(cluster.pki().admin(), wan)?;
        println!("KUBECONFIG={}", file.display());
    }
    std::fs::write(folder.join("all.wan.kubeconfig"), bed.kubeconfig()?)?;
    let script = folder.join("bed");
    std::fs::write(&script, self::script(bed, &folder)?)?;
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))?;
    println!(
        "commands: {} help\nlogs: {}\nCtrl-C ends everything",
        script.display(),
        suite::results().join("logs").display()
    );
    Ok(())
}

fn script(bed: &Bed, folder: &Path) -> Result<String> {
    let holders = bed.clusters().iter().map(|cluster: &Cluster| {
        let pid = cluster.holder().context("a cluster has ended")?;
        Ok(format!("[{}]={pid}", cluster.name()))
    });
    let holders = holders.collect::<Result<Vec<_>>>()?.join(" ");
    let program = std::env::current_exe()?;
    let script = SCRIPT
        .replace("@holders@", &holders)
        .replace("@folder@", &folder.display().to_string())
        .replace("@stage@", &stage::folder()?.display().to_string())
        .replace("@program@", &program.display().to_string())
        .replace("@kubectl@", &tools::built("kubectl")?.display().to_string())
        .replace("@suite@", &tools::built("mcs-conformance")?.display().to_string());
    Ok(script)
}

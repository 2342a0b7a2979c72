//! Gateways that lack what they need: file descriptors (F21), memory (F22), processor time (F23), and time for all the
//! questions there are (F37).

use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use eastway_tests::cage::Cage;
use eastway_tests::lab::files::DNS_PORT;
use eastway_tests::lab::process::Process;
use eastway_tests::load;
use eastway_tests::mesh::{Mesh, MeshBuilder, NAMESPACE};
use eastway_tests::servers::Habit;
use eastway_tests::transfer::connect_small;
use eastway_tests::{lab_test, within};
use futures_util::future::join_all;
use serde_json::json;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinSet;

use crate::restart::Conversation;

/// What 99 of 100 admitted questions may take longer beside a flood of others.
const BESIDE_A_FLOOD: Duration = Duration::from_millis(5);
/// Fewer answers per second are no flood, on a machine that does all the rest beside.
const LEAST_FLOOD: f64 = 5_000.0;

/// Runs a program of the system.
fn tool(program: &str, arguments: &[String]) -> Result<()> {
    let output = Command::new(program).args(arguments).output().with_context(|| format!("run {program}"))?;
    ensure!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Lets a process, with all threads it has and will have, use this one core.
fn pin(pid: u32, core: usize) -> Result<()> {
    tool("taskset", &["-a".into(), "-p".into(), "-c".into(), core.to_string(), pid.to_string()])
}

/// Changes how many file descriptors a process may open.
fn limit_files(process: &Process, files: &str) -> Result<()> {
    tool("prlimit", &["--pid".into(), process.pid().to_string(), format!("--nofile={files}:")])
}

/// How many file descriptors the gateway of a cloud has open.
async fn open_files(mesh: &Mesh, cloud: &str) -> Result<u64> {
    let page = mesh.cloud(cloud).metrics(0).await?;
    let line =
        page.lines().find_map(|line| line.strip_prefix("process_open_fds ")).context("no count of descriptors")?;
    Ok(line.parse()?)
}

/// Connections from a client of `a` to `target` on which a request was sent.
async fn ask_without_waiting(mesh: &Mesh, target: SocketAddr, count: usize) -> Result<Vec<TcpStream>> {
    let (place, source) = mesh.client("a");
    let streams = place.run(async move {
        let mut streams = Vec::new();
        for id in 0..count {
            let mut stream = connect_small(source, target).await?;
            stream.write_all(format!("GET /{id}/100 HTTP/1.1\r\nhost: test\r\n\r\n").as_bytes()).await?;
            streams.push(stream.into_std()?);
        }
        Ok(streams)
    });
    streams.await?.into_iter().map(|stream| Ok(TcpStream::from_std(stream)?)).collect()
}

/// How many of them have an answer within `patience`.
async fn answered(streams: &mut [TcpStream], patience: Duration) -> usize {
    let looks = streams.iter_mut().map(|stream| async move {
        let mut byte = [0];
        matches!(tokio::time::timeout(patience, stream.read(&mut byte)).await, Ok(Ok(1)))
    });
    join_all(looks).await.into_iter().filter(|answered| *answered).count()
}

/// Clients that ask one request after the other for so long, each connection for twenty; good answers, and the others.
async fn crowd(mesh: &Mesh, target: SocketAddr, clients: usize, how_long: Duration) -> Result<(u64, u64)> {
    let (place, source) = mesh.client("a");
    place
        .run(async move {
            let mut tasks = JoinSet::new();
            for _ in 0..clients {
                tasks.spawn(client(source, target, Instant::now() + how_long));
            }
            let counts = tasks.join_all().await;
            Ok(counts.into_iter().fold((0, 0), |sum, count| (sum.0 + count.0, sum.1 + count.1)))
        })
        .await
}

async fn client(source: IpAddr, target: SocketAddr, until: Instant) -> (u64, u64) {
    let (mut good, mut bad) = (0, 0);
    while Instant::now() < until {
        match session(source, target, until, &mut good).await {
            Ok(()) => {}
            Err(_) => bad += 1,
        }
    }
    (good, bad)
}

async fn session(source: IpAddr, target: SocketAddr, until: Instant, good: &mut u64) -> Result<()> {
    let mut stream = load::connect(source, target).await?;
    let mut buffer = vec![0; 4096];
    for id in 0..20 {
        stream.write_all(format!("GET /{id}/1000 HTTP/1.1\r\nhost: test\r\n\r\n").as_bytes()).await?;
        let mut length = 0;
        // The head is less than a hundred bytes.
        while length < 1_050 {
            let read = stream.read(&mut buffer);
            let read = tokio::time::timeout(load::PATIENCE * 5, read).await.context("no answer")??;
            ensure!(read > 0, "cut short");
            length += read;
        }
        if Instant::now() >= until {
            return Ok(());
        }
        *good += 1;
    }
    Ok(())
}

/// How long each of the health port's answers takes, until aborted.
async fn watch_health(mesh: &Mesh, until: Instant) -> Result<Vec<Duration>> {
    let mut took = Vec::new();
    while Instant::now() < until {
        let at = Instant::now();
        ensure!(mesh.cloud("a").is_ready(0).await, "the health port does not answer that it is ready");
        took.push(at.elapsed());
        ensure!(mesh.cloud("a").is_up(0, "b").await?, "b was called down");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    took.sort_unstable();
    Ok(took)
}

/// Asks `server` for `name` from a pod every 2 ms and waits up to 100 ms each; the times of what was answered, in order.
async fn probe(mesh: &Mesh, server: SocketAddr, name: &str, how_long: Duration) -> Result<(usize, Vec<Duration>)> {
    let mut question = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        question.push(u8::try_from(label.len())?);
        question.extend_from_slice(label.as_bytes());
    }
    question.extend_from_slice(&[0, 0, 1, 0, 1]);
    let (place, source) = mesh.client("a");
    place
        .run(async move {
            let socket = UdpSocket::bind((source, 0)).await?;
            socket.connect(server).await?;
            let (mut sent, mut took, begun) = (0, Vec::new(), Instant::now());
            while begun.elapsed() < how_long {
                sent += 1;
                question[0..2].copy_from_slice(&u16::try_from(sent % 65_536)?.to_be_bytes());
                let at = Instant::now();
                socket.send(&question).await?;
                let mut answer = [0; 1_500];
                loop {
                    let left = Duration::from_millis(100).saturating_sub(at.elapsed());
                    let Ok(length) = tokio::time::timeout(left, socket.recv(&mut answer)).await else { break };
                    // One that came too late is no answer to this.
                    if length? > 12 && answer[0..2] == question[0..2] {
                        took.push(at.elapsed());
                        break;
                    }
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            took.sort_unstable();
            Ok((sent, took))
        })
        .await
}

/// The most memory that the gateways of `a` and `b` use.
async fn watch_memory(mesh: &Mesh, how_long: Duration) -> Result<[u64; 2]> {
    let (mut most, begun) = ([0; 2], Instant::now());
    while begun.elapsed() < how_long {
        for (most, cloud) in most.iter_mut().zip(["a", "b"]) {
            *most = mesh.cloud(cloud).gateway(0)?.rss()?.max(*most);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(most)
}

/// Streams that the gateway of a cloud has refused or cut as too many, or was told so of.
async fn overloaded(mesh: &Mesh, cloud: &str) -> Result<u64> {
    let page = mesh.cloud(cloud).metrics(0).await?;
    let lines = page.lines().filter(|line| line.contains("OVERLOADED") && !line.starts_with('#'));
    Ok(lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum())
}

fn p99(sorted: &[Duration]) -> Duration {
    sorted.get((sorted.len() * 99 / 100).min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
}

lab_test! {
    /// F21: a gateway that may open no more files keeps every connection it has, whichever side of a link it is on, and serves
    /// again within a second of getting some.
    async fn f21_without_file_descriptors_a_gateway_keeps_what_it_has_and_recovers() {
        // Only one side dials: where both do, one of two links goes when it has nothing to do.
        let mut mesh = MeshBuilder::of(&["a", "b"]).private("a").start().await?;
        mesh.serve("b", "web", 11, Habit::Http).await?;
        mesh.serve("b", "echo", 12, Habit::Echo).await?;
        let target = mesh.target("a", "web").await?;
        mesh.wait_answer("a", target, "b-11", Duration::from_secs(5)).await?;
        let link = mesh.settled("a", "b").await?;
        for cloud in ["a", "b"] {
            let mut conversations = Vec::new();
            for _ in 0..10 {
                conversations.push(Conversation::start(&mesh, "a", "echo").await?);
            }
            let files = open_files(&mesh, cloud).await? + 2;
            limit_files(mesh.cloud(cloud).gateway(0)?, &files.to_string())?;
            let begun = Instant::now();
            let mut streams = ask_without_waiting(&mesh, target, 60).await?;
            let served = answered(&mut streams, Duration::from_millis(700)).await;
            ensure!(served < 30, "{served} of 60 connections were served: {cloud} was not short of files");
            drop(streams);
            // Long enough for heartbeats and keep-alives to need something.
            within(Duration::from_secs(5), "some time", async || Ok(begun.elapsed() > Duration::from_secs(3))).await?;
            limit_files(mesh.cloud(cloud).gateway(0)?, "20000")?;
            let released = Instant::now();
            let back = mesh.wait_answer("a", target, "b-11", Duration::from_secs(1)).await?;
            println!("{cloud}: {served} of 60 were served; answers again {back:?} after there were files");
            ensure!(released.elapsed() <= Duration::from_millis(1_500), "{:?}", released.elapsed());
            for conversation in conversations {
                let rounds = conversation.stop().await.with_context(|| format!("a conversation while {cloud} lacked files"))?;
                ensure!(rounds > 40, "{rounds} rounds");
            }
        }
        mesh.same_link("a", "b", &link).await?;
        mesh.stop().await
    }

    /// F22: with 256 MiB of memory and many who take what they do not read, on either side of a link, a gateway sheds
    /// them, tells them so, keeps a tenth of its memory free, and serves all others.
    async fn f22_little_memory_is_shared_out_and_never_overrun() {
        const LIMIT: u64 = 256 << 20;
        let cage = Cage::of(LIMIT)?;
        let mut builder = MeshBuilder::of(&["a", "b"]).private("a");
        if cage.is_none() {
            println!("not root: no cgroup, so that the budget is set by hand, and what is used is measured only");
            for cloud in ["a", "b"] {
                builder = builder.settings(cloud, &json!({"limits": {"bufferBytes": "64MiB"}}));
            }
        }
        // Before the clouds, so that it outlives them when the test fails.
        let mut cages = Vec::from_iter(cage);
        if !cages.is_empty() {
            cages.extend(Cage::of(LIMIT)?);
        }
        let mut mesh = builder.prepare().await?;
        for (number, cloud) in ["a", "b"].into_iter().enumerate() {
            let cage = cages.get(number);
            cage.map_or(Ok(()), Cage::enter)?;
            let started = mesh.cloud_mut(cloud).start_gateway(0).await;
            cage.map_or(Ok(()), Cage::leave)?;
            started?;
            mesh.cloud_mut(cloud).wait_ready(0).await?;
        }
        mesh.serve("b", "web", 11, Habit::Http).await?;
        mesh.serve("b", "flood", 12, Habit::Flood).await?;
        mesh.serve("b", "silent", 13, Habit::Silent).await?;
        let target = mesh.target("a", "web").await?;
        let (flood, silent) = (mesh.target("a", "flood").await?, mesh.target("a", "silent").await?);
        mesh.wait_answer("a", target, "b-11", Duration::from_secs(5)).await?;
        let link = mesh.settled("a", "b").await?;
        let held = ask_without_waiting(&mesh, flood, 400).await?;
        let (place, source) = mesh.client("a");
        let uploads = place.run(async move {
            let mut tasks = JoinSet::new();
            for _ in 0..200 {
                tasks.spawn(async move {
                    let mut stream = load::connect(source, silent).await?;
                    let block = vec![7; 1 << 20];
                    while let Ok(written) = tokio::time::timeout(Duration::from_millis(500), stream.write(&block)).await {
                        written?;
                    }
                    anyhow::Ok(stream.into_std()?)
                });
            }
            // Those that were shed have broken off.
            Ok(tasks.join_all().await.into_iter().flatten().collect::<Vec<_>>())
        });
        let (full, most) = tokio::join!(uploads, watch_memory(&mesh, Duration::from_secs(5)));
        let (full, most) = (full?, most?);
        let shed = overloaded(&mesh, "a").await? + overloaded(&mesh, "b").await?;
        // Servers and clients share two threads with those that flood, so that for a while they are slow themselves.
        let answered = mesh.wait_answer("a", target, "b-11", Duration::from_secs(10)).await?;
        println!(
            "at most {} MiB at a, {} MiB at b; {shed} counted as OVERLOADED; others are answered {answered:?} later; {} of 200 uploads \
             still stand",
            most[0] >> 20,
            most[1] >> 20,
            full.len(),
        );
        for (cage, cloud) in cages.iter().zip(["a", "b"]) {
            ensure!(cage.kills()? == 0, "the kernel killed the gateway of {cloud}");
        }
        ensure!(most.into_iter().all(|most| most <= LIMIT / 10 * 9), "{most:?}");
        ensure!(shed > 0, "nobody was told OVERLOADED");
        mesh.same_link("a", "b", &link).await?;
        // What the system still has of their bytes nobody waits for.
        for stream in &full {
            SockRef::from(stream).set_linger(Some(Duration::ZERO))?;
        }
        drop((held, full));
        mesh.stop().await
    }

    /// F23: with one core for both gateways and ten times the clients that keep it busy, answers are as many as before or
    /// nearly, the health port answers, and nobody is taken for dead.
    async fn f23_ten_times_the_clients_of_a_busy_core_cost_a_fifth_of_the_answers_at_most() {
        let mut mesh = MeshBuilder::of(&["a", "b"]).private("a").start().await?;
        mesh.serve("b", "web", 11, Habit::Http).await?;
        let target = mesh.target("a", "web").await?;
        mesh.wait_answer("a", target, "b-11", Duration::from_secs(5)).await?;
        for cloud in ["a", "b"] {
            pin(mesh.cloud(cloud).gateway(0)?.pid(), 0)?;
        }
        // And the load on another, if there is one.
        pin(std::process::id(), std::thread::available_parallelism()?.get() - 1)?;
        let link = mesh.settled("a", "b").await?;
        let round = Duration::from_secs(2);
        let (mut shares, mut slowest, mut refused) = (Vec::new(), Duration::ZERO, 0);
        for _ in 0..3 {
            let (peak, _) = crowd(&mesh, target, 64, round).await?;
            let (busy, health) = tokio::join!(crowd(&mesh, target, 640, round), watch_health(&mesh, Instant::now() + round));
            let ((good, bad), health) = (busy?, health?);
            slowest = slowest.max(p99(&health));
            refused += bad;
            shares.push((good as f64 / peak as f64, peak));
            if shares.last().is_some_and(|(share, _)| *share >= 0.8) {
                break;
            }
        }
        println!("share of the peak, and the peak in {round:?}: {shares:.2?}; {refused} connections broke; health port p99 {slowest:?}");
        ensure!(shares.last().is_some_and(|(share, _)| *share >= 0.8), "{shares:?}");
        ensure!(slowest <= Duration::from_secs(1), "health port p99 {slowest:?}");
        mesh.same_link("a", "b", &link).await?;
        mesh.wait_answer("a", target, "b-11", Duration::from_secs(2)).await?;
        mesh.stop().await
    }

    /// F37: as many questions as a core can take, and more, cost who asks beside them 5 ms at most, and no memory.
    async fn f37_a_flood_of_questions_delays_no_admitted_one_and_costs_no_memory() {
        let limits = json!({"limits": {"dnsAnswersPerSecond": 10_000_000}});
        let mut mesh = MeshBuilder::of(&["a", "b"]).settings("a", &limits).start().await?;
        mesh.serve("b", "web", 11, Habit::Http).await?;
        mesh.target("a", "web").await?;
        let gateway = mesh.cloud("a").gateway(0)?;
        pin(gateway.pid(), 0)?;
        let rss = gateway.rss()?;
        let (server, name) = (mesh.cloud("a").dns(0)?, format!("web.{NAMESPACE}.svc.clusterset.local"));
        ensure!(server.port() == DNS_PORT);
        let questions = mesh.lab().folder().join("questions");
        let lines = (0..1_000).map(|number| match number % 5 {
            0 => format!("none-{number}.{NAMESPACE}.svc.clusterset.local A\n"),
            1 => format!("{name} AAAA\n"),
            _ => format!("{name} A\n"),
        });
        std::fs::write(&questions, lines.collect::<String>())?;
        let core = std::thread::available_parallelism()?.get() - 1;
        let (mut rounds, mut grown) = (Vec::new(), 0);
        for _ in 0..5 {
            let calm = p99(&probe(&mesh, server, &name, Duration::from_millis(500)).await?.1);
            let mut flood = tokio::process::Command::new("taskset");
            flood.args(["-c", &core.to_string(), "dnsperf", "-s", &server.ip().to_string(), "-p", &server.port().to_string()]);
            flood.arg("-d").arg(&questions).args(["-l", "3", "-c", "8", "-T", "1", "-q", "1000", "-Q", "100000"]);
            flood.kill_on_drop(true);
            let (place, _) = mesh.client("a");
            let flood = place.spawn(async move { flood.output().await });
            let probes = probe(&mesh, server, &name, Duration::from_millis(2_500)).await?;
            let report = flood.await?.context("dnsperf is missing: make deps")?;
            let text = String::from_utf8_lossy(&report.stdout).into_owned();
            let rate = text.lines().find_map(|line| line.trim().strip_prefix("Queries per second:")).context("no report")?;
            let rate: f64 = rate.trim().parse()?;
            grown = grown.max(mesh.cloud("a").gateway(0)?.rss()?.saturating_sub(rss));
            rounds.push((rate, probes.0, probes.1.len(), calm, p99(&probes.1)));
            // What a busy machine delays it delays without a flood, too, and not each time.
            if rate > LEAST_FLOOD && p99(&probes.1) <= calm + BESIDE_A_FLOOD {
                break;
            }
        }
        println!("answers/s, probes sent, answered, p99 without and with the flood: {rounds:?}; {} KiB more memory", grown >> 10);
        ensure!(rounds.last().is_some_and(|(rate, ..)| *rate > LEAST_FLOOD), "no flood: {rounds:?}");
        ensure!(rounds.last().is_some_and(|(.., calm, p99)| *p99 <= *calm + BESIDE_A_FLOOD), "{rounds:?}");
        ensure!(rounds.iter().all(|(_, sent, answered, ..)| answered * 10 >= sent * 9), "{rounds:?}");
        ensure!(grown <= 20 << 20, "{} KiB more", grown >> 10);
        mesh.stop().await
    }
}

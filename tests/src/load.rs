//! An open-loop HTTP client that forgives nothing.
//!
//! Requests are sent at a fixed rate, whether or not earlier ones have been answered: half on a new
//! connection each, half on kept-alive connections. Nothing is ever retried. A refusal, a reset, a
//! status other than 200, a short or altered body and an answer later than [`PATIENCE`] are failures,
//! each recorded with its time. The one thing that is none: a server may close a kept-alive connection
//! while nothing is asked of it (RFC 9112 §9.3), or say that it will (§9.6); a client that knows of it before it
//! sends opens another.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::lab::place::Place;
use crate::servers::body;

/// Longest wait for an answer, the connection's set-up included, in time that the client itself was running.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// Longest use of a kept-alive connection, as of a server that limits it. No longer than a drain (30 s):
/// a proxy for bytes cannot tell between which two requests it may close.
const KEPT: Duration = Duration::from_secs(5);

/// What to ask, from where, how often.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// The client's address.
    pub source: IpAddr,
    /// Where to, usually a virtual address.
    pub target: SocketAddr,
    /// Requests per second.
    pub rate: u32,
    /// Bytes of each answer.
    pub size: usize,
}

/// Who is asked for where names say it: a proxy that is on the way.
const HOST: &str = "test";

/// A plan, and who is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Named {
    plan: Plan,
    host: &'static str,
}

impl Plan {
    /// With requests for this host.
    #[must_use]
    pub fn named(self, host: &'static str) -> Named {
        Named { plan: self, host }
    }
}

impl From<Plan> for Named {
    fn from(plan: Plan) -> Self {
        plan.named(HOST)
    }
}

/// A load that runs until it is stopped.
#[derive(Debug)]
pub struct Load {
    stop: watch::Sender<bool>,
    record: Arc<Mutex<Record>>,
    task: JoinHandle<()>,
    started: Instant,
}

/// What became of the requests.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// Requests sent.
    pub sent: u64,
    /// Requests answered as they should be.
    pub ok: u64,
    /// The others.
    pub failures: Vec<Failure>,
    /// Answers by the name of the server.
    pub by_server: BTreeMap<String, u64>,
    /// New connections.
    pub connections: u64,
    /// Slowest good answer.
    pub slowest: Duration,
    /// How long each good answer on a kept-alive connection took, microseconds, in no order.
    pub kept_us: Vec<u32>,
    /// The same of those on a new connection, its set-up included.
    pub new_us: Vec<u32>,
    /// How long the client itself was not running although it wanted to, where that was for long.
    pub stood_still: Duration,
    /// Good answers that came later than a client waits, because it was not running itself meanwhile.
    pub late: u64,
}

/// A request that failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// When it was sent, since the start of the load.
    pub sent: Duration,
    /// When it failed, since the start of the load.
    pub failed: Duration,
    /// Whether its connection had carried requests before.
    pub kept_alive: bool,
    /// Who answered on its connection before; none if it was new.
    pub server: Option<String>,
    /// Why.
    pub reason: String,
}

impl Record {
    /// The time within which so many of 1,000 good answers came: 500 for the median. Zero if there is none.
    #[must_use]
    pub fn quantile(&self, of_1000: usize) -> Duration {
        quantile(&[&self.kept_us[..], &self.new_us[..]].concat(), of_1000)
    }

    /// The time within which 99 of 100 good answers came.
    #[must_use]
    pub fn p99(&self) -> Duration {
        self.quantile(990)
    }

    /// How many requests failed, by the second in which they were sent and why.
    #[must_use]
    pub fn failed_by_second(&self) -> BTreeMap<(u64, &str), usize> {
        self.failures.iter().fold(BTreeMap::new(), |mut counts, failure| {
            *counts.entry((failure.sent.as_secs(), failure.reason.as_str())).or_default() += 1;
            counts
        })
    }

    /// Fails unless every request was answered.
    ///
    /// # Errors
    /// The failures, with raw counts.
    pub fn none_failed(&self) -> Result<()> {
        ensure!(self.sent > 0, "nothing was sent");
        self.failed_only(|_| false)
    }

    /// Fails if a request failed that is not `excused`.
    ///
    /// # Errors
    /// The failures, with raw counts.
    pub fn failed_only(&self, excused: impl Fn(&Failure) -> bool) -> Result<()> {
        let bad: Vec<&Failure> = self.failures.iter().filter(|failure| !excused(failure)).collect();
        let shown: Vec<&&Failure> = bad.iter().take(5).collect();
        ensure!(bad.is_empty(), "{} of {} requests failed: {shown:#?}", bad.len(), self.sent);
        self.in_time()
    }

    /// Fails if of 100 good answers more than one came later than a client waits, which this one forgave because it was
    /// not running itself: the machine was too busy for this to show anything.
    fn in_time(&self) -> Result<()> {
        let (late, ok) = (self.late, self.ok);
        ensure!(late * 100 <= ok, "{late} of {ok} good answers came after {PATIENCE:?}: this machine is too busy");
        Ok(())
    }
}

/// The time, of these in microseconds, that so many of 1,000 do not exceed: 500 for the median. Zero if there is none.
#[must_use]
pub fn quantile(took_us: &[u32], of_1000: usize) -> Duration {
    let mut sorted = took_us.to_vec();
    sorted.sort_unstable();
    let took = sorted.get((sorted.len() * of_1000 / 1000).min(sorted.len().saturating_sub(1)));
    Duration::from_micros(took.copied().unwrap_or_default().into())
}

impl Load {
    /// Starts sending at `place`.
    #[must_use]
    pub fn start(place: &Place, plan: impl Into<Named>) -> Self {
        let (stop, stopped) = watch::channel(false);
        let record = Arc::new(Mutex::new(Record::default()));
        let started = Instant::now();
        let task = place.spawn(send(plan.into(), Arc::clone(&record), stopped, started));
        Self { stop, record, task, started }
    }

    /// Time since the start, as [`Failure`]s count it.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Requests sent so far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        lock(&self.record).sent
    }

    /// What became of the requests so far.
    #[must_use]
    pub fn so_far(&self) -> Record {
        self.record.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sends no more, waits for the last answers.
    ///
    /// # Errors
    /// The load itself broke.
    pub async fn stop(self) -> Result<Record> {
        self.stop.send_replace(true);
        self.task.await.context("the load broke")?;
        let record = lock(&self.record).clone();
        Ok(record)
    }
}

/// Used in turn, so that none stands idle for long.
type Idle = Arc<Mutex<VecDeque<Connection>>>;

/// The time that the client itself was running. On a machine that gives it none for a second nobody can answer in time,
/// and whoever looks afterwards sees answers and deadlines at once.
#[derive(Clone, Debug, Default)]
struct OwnTime(Arc<AtomicU32>);

impl OwnTime {
    /// A step of it, and how late it may come before it is told as a standstill.
    const STEP: Duration = Duration::from_millis(10);
    const LATE: Duration = Duration::from_millis(100);

    /// Goes on for ever.
    async fn run(self, record: Arc<Mutex<Record>>) {
        let mut clock = tokio::time::interval(Self::STEP);
        clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let mut last = Instant::now();
        loop {
            clock.tick().await;
            self.0.fetch_add(1, Ordering::Relaxed);
            if last.elapsed() > Self::LATE {
                lock(&record).stood_still += last.elapsed();
            }
            last = Instant::now();
        }
    }

    /// Waits until so much of it has gone by.
    async fn wait(&self, duration: Duration) {
        let steps = || self.0.load(Ordering::Relaxed);
        let end = steps() + u32::try_from(duration.as_millis() / Self::STEP.as_millis()).unwrap_or(u32::MAX);
        while let Some(left) = end.checked_sub(steps()).filter(|left| *left > 0) {
            tokio::time::sleep(Self::STEP * left).await;
        }
    }
}

async fn send(named: Named, record: Arc<Mutex<Record>>, mut stopped: watch::Receiver<bool>, started: Instant) {
    let (idle, time) = (Idle::default(), OwnTime::default());
    let mut others = JoinSet::new();
    others.spawn(time.clone().run(Arc::clone(&record)));
    let mut requests = JoinSet::new();
    let mut clock = tokio::time::interval(Duration::from_secs_f64(1.0 / f64::from(named.plan.rate)));
    // Open loop: a client that was held up makes up for it.
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
    for id in 0_u64.. {
        tokio::select! {
            _ = clock.tick() => {}
            _ = stopped.changed() => break,
        }
        lock(&record).sent += 1;
        requests.spawn(one(named, id, Arc::clone(&idle), Arc::clone(&record), (started, time.clone())));
        while requests.try_join_next().is_some() {}
    }
    requests.join_all().await;
}

fn lock(record: &Mutex<Record>) -> std::sync::MutexGuard<'_, Record> {
    record.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn one(named: Named, id: u64, idle: Idle, record: Arc<Mutex<Record>>, (started, time): (Instant, OwnTime)) {
    let Named { plan, host } = named;
    let sent = started.elapsed();
    let keep = id.is_multiple_of(2);
    let reused = if keep { usable(&idle) } else { None };
    let kept_alive = reused.is_some();
    let before = reused.as_ref().map(|connection| connection.server.clone());
    let exchange = async {
        let mut connection = match reused {
            Some(connection) => connection,
            None => {
                lock(&record).connections += 1;
                Connection::open(plan).await?
            }
        };
        connection.ask(host, id, plan.size).await?;
        anyhow::Ok(connection)
    };
    let result = tokio::select! {
        // Rather what came than that it came late.
        biased;
        result = exchange => result,
        () = time.wait(PATIENCE) => Err(anyhow::anyhow!("no answer within {PATIENCE:?}")),
    };
    let took = started.elapsed().saturating_sub(sent);
    match result {
        Ok(connection) => {
            let server = connection.server.clone();
            if keep && !connection.closing && connection.opened.elapsed() < KEPT {
                idle.lock().unwrap_or_else(PoisonError::into_inner).push_back(connection);
            }
            let mut record = lock(&record);
            record.ok += 1;
            record.late += u64::from(took > PATIENCE);
            record.slowest = record.slowest.max(took);
            let took_us = if kept_alive { &mut record.kept_us } else { &mut record.new_us };
            took_us.push(u32::try_from(took.as_micros()).unwrap_or(u32::MAX));
            *record.by_server.entry(server).or_default() += 1;
        }
        Err(error) => {
            let failure =
                Failure { sent, failed: started.elapsed(), kept_alive, server: before, reason: format!("{error:#}") };
            lock(&record).failures.push(failure);
        }
    }
}

/// A kept connection that the server has not closed.
fn usable(idle: &Idle) -> Option<Connection> {
    let mut idle = idle.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let connection = idle.pop_front()?;
        if connection.is_open() && connection.opened.elapsed() < KEPT {
            return Some(connection);
        }
    }
}

#[derive(Debug)]
struct Connection {
    opened: Instant,
    /// The server said that this was the last answer.
    closing: bool,
    /// Who answered last.
    server: String,
    read: BufReader<OwnedReadHalf>,
    write: OwnedWriteHalf,
}

impl Connection {
    async fn open(plan: Plan) -> Result<Self> {
        let stream = connect(plan.source, plan.target).await.context("connect")?;
        let (read, write) = stream.into_split();
        Ok(Self { opened: Instant::now(), closing: false, server: String::new(), read: BufReader::new(read), write })
    }

    /// Whether the server has neither closed nor reset it. A reset is left for the request to meet.
    fn is_open(&self) -> bool {
        !matches!(self.read.get_ref().try_read(&mut [0]), Ok(0))
    }

    async fn ask(&mut self, host: &str, id: u64, size: usize) -> Result<()> {
        let request = format!("GET /{id}/{size} HTTP/1.1\r\nhost: {host}\r\n\r\n");
        self.write.write_all(request.as_bytes()).await.context("send")?;
        let mut line = String::new();
        self.read.read_line(&mut line).await.context("read status")?;
        ensure!(line.starts_with("HTTP/1.1 200 "), "status line {line:?}");
        let mut length = None;
        loop {
            line.clear();
            self.read.read_line(&mut line).await.context("read header")?;
            match line.trim_end().split_once(": ") {
                Some(("server", name)) => name.clone_into(&mut self.server),
                Some(("connection", "close")) => self.closing = true,
                Some(("content-length", text)) => length = text.parse().ok(),
                Some(_) => {}
                None if line == "\r\n" => break,
                None => bail!("header cut short: {line:?}"),
            }
        }
        ensure!(length == Some(size), "length {length:?} instead of {size}");
        let mut content = vec![0; size];
        self.read.read_exact(&mut content).await.context("read body")?;
        ensure!(content == body(id, size), "altered body");
        Ok(())
    }
}

/// One request on a new connection; gives the name of the server. Must run at the client's place.
///
/// # Errors
/// As for every request of a [`Load`].
pub async fn ask_once(source: IpAddr, target: SocketAddr, size: usize) -> Result<String> {
    let plan = Plan { source, target, rate: 1, size };
    let exchange = async {
        let mut connection = Connection::open(plan).await?;
        connection.ask(HOST, fastrand::u64(..), size).await?;
        Ok(connection.server)
    };
    tokio::time::timeout(PATIENCE, exchange).await.with_context(|| format!("no answer within {PATIENCE:?}"))?
}

/// A TCP connection from `source` to `target`. Must run at the client's place.
///
/// # Errors
/// The connection is refused.
pub async fn connect(source: IpAddr, target: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = if target.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if source.is_ipv4() == target.is_ipv4() {
        socket.bind(SocketAddr::new(source, 0))?;
    }
    let stream = socket.connect(target).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::servers::{Habit, Server};

    async fn bench(last: u8) -> (Place, Plan) {
        let place = Place::host("load").await.unwrap();
        let target = SocketAddr::from(([127, 201, 0, last], 8080));
        let source = IpAddr::from([127, 201, 1, last]);
        (place, Plan { source, target, rate: 500, size: 3000 })
    }

    #[tokio::test]
    async fn counts_every_answer_and_keeps_half_of_the_connections() {
        let (place, plan) = bench(1).await;
        let server = Server::start(&place, plan.target, "s1", Habit::Http).await.unwrap();
        let load = Load::start(&place, plan);
        while load.so_far().ok < 300 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let record = load.stop().await.unwrap();
        record.none_failed().unwrap();
        assert_eq!((record.sent, record.by_server["s1"]), (record.ok, record.ok));
        assert!(record.connections >= record.sent / 2 && record.connections < record.sent * 3 / 4, "{record:?}");
        assert_eq!(server.accepted(), record.connections);
    }

    #[tokio::test]
    async fn forgives_neither_refusals_nor_silence() {
        let (place, plan) = bench(2).await;
        let load = Load::start(&place, plan);
        while load.so_far().failures.len() < 5 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let error = load.stop().await.unwrap().none_failed().unwrap_err().to_string();
        assert!(error.contains("connect: Connection refused"), "{error}");

        let _server = Server::start(&place, plan.target, "s2", Habit::Silent).await.unwrap();
        let load = Load::start(&place, Plan { rate: 5, ..plan });
        while load.so_far().failures.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let failure = load.stop().await.unwrap().failures.remove(0);
        assert!(failure.reason.contains("no answer within 2s"), "{failure:?}");
        assert!(failure.failed - failure.sent >= PATIENCE);
    }

    #[tokio::test]
    async fn a_client_that_stood_still_blames_nobody() {
        let (place, plan) = bench(3).await;
        let elsewhere = Place::host("elsewhere").await.unwrap();
        let _server = Server::start(&elsewhere, plan.target, "s3", Habit::Http).await.unwrap();
        let load = Load::start(&place, Plan { rate: 100, ..plan });
        while load.so_far().ok < 20 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        place
            .run(async {
                std::thread::sleep(PATIENCE + Duration::from_millis(300));
                Ok(())
            })
            .await
            .unwrap();
        // It has to come to itself first: stopped before, it would not have noticed.
        let noticed = async || Ok(load.so_far().stood_still > Duration::ZERO);
        crate::within(PATIENCE, "the client has noticed that it stood still", noticed).await.unwrap();
        let record = load.stop().await.unwrap();
        record.none_failed().unwrap();
        assert!(record.stood_still >= PATIENCE, "{:?}", record.stood_still);
        let busy = Record { late: record.ok / 50, ..record };
        assert!(busy.none_failed().unwrap_err().to_string().contains("too busy"));
    }
}

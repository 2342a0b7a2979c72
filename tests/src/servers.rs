//! Servers behind a service, each with one habit. They run as tasks at a [`Place`] and end with it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use socket2::SockRef;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::{TcpListener, TcpStream};

use crate::lab::place::Place;

/// How a server behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Habit {
    /// HTTP/1.1 with keep-alive: answers `GET /<id>/<size>` with its name and a body made from `id`
    /// ([`body`]), anything else with an empty 200.
    Http,
    /// HTTP/1.1 with keep-alive: answers everything with its name, and with the head of the request as it came.
    Mirror,
    /// HTTP/1.1 with keep-alive: answers everything with 503.
    Broken,
    /// Greets with its name and a line feed before it has read anything, then echoes.
    Greeter,
    /// Reads until the client has finished, then sends all of it back and finishes too.
    HalfClose,
    /// Accepts and never says a word; reads nothing either. Its end of a connection is open until that is reset.
    Silent,
    /// Greets with its name and a line feed, and resets the connection at the first byte that comes.
    Resets,
    /// Echoes every byte at once.
    Echo,
    /// Sends as fast as it can until the client goes.
    Flood,
}

/// What [`Habit::Broken`] says.
const BROKEN: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n";

/// A running server.
#[derive(Clone, Debug)]
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    accepted: Arc<AtomicU64>,
    open: Arc<AtomicU64>,
    reset: Arc<AtomicU64>,
}

impl Server {
    /// Starts one. `name` is what it calls itself.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub async fn start(place: &Place, address: SocketAddr, name: &str, habit: Habit) -> Result<Self> {
        let bound = place.run(async move { Ok(TcpListener::bind(address).await?) }).await;
        let listener = bound.with_context(|| format!("server on {address}"))?;
        let server = Self { address, accepted: Arc::default(), open: Arc::default(), reset: Arc::default() };
        let counters = server.clone();
        let name: Arc<str> = Arc::from(name);
        place.spawn(async move {
            loop {
                let Ok((stream, _from)) = listener.accept().await else { continue };
                counters.accepted.fetch_add(1, Ordering::Relaxed);
                counters.open.fetch_add(1, Ordering::Relaxed);
                let (name, counters) = (Arc::clone(&name), counters.clone());
                tokio::spawn(async move {
                    // How a connection ends is for its client to judge, and for who asks for resets.
                    let ended = converse(stream, &name, habit).await;
                    let error = ended.err().and_then(|error| error.downcast::<std::io::Error>().ok());
                    if error.is_some_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset) {
                        counters.reset.fetch_add(1, Ordering::Relaxed);
                    }
                    counters.open.fetch_sub(1, Ordering::Relaxed);
                });
            }
        });
        Ok(server)
    }

    /// Connections accepted since the start.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Connections that ended by a reset from the other side.
    #[must_use]
    pub fn reset(&self) -> u64 {
        self.reset.load(Ordering::Relaxed)
    }

    /// Connections open now.
    #[must_use]
    pub fn open(&self) -> u64 {
        self.open.load(Ordering::Relaxed)
    }
}

async fn converse(stream: TcpStream, name: &str, habit: Habit) -> Result<()> {
    stream.set_nodelay(true)?;
    match habit {
        Habit::Http => http(stream, |request| answer(request, name, false)).await,
        Habit::Mirror => mirror(stream, name).await,
        Habit::Broken => http(stream, |_| BROKEN.to_vec()).await,
        Habit::Greeter => {
            let mut stream = stream;
            stream.write_all(format!("{name}\n").as_bytes()).await?;
            echo(stream).await
        }
        Habit::Echo => echo(stream).await,
        Habit::HalfClose => {
            let mut stream = stream;
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await?;
            stream.write_all(&all).await?;
            Ok(stream.shutdown().await?)
        }
        Habit::Silent => {
            stream.ready(Interest::ERROR).await?;
            Ok(())
        }
        Habit::Resets => {
            let mut stream = stream;
            stream.write_all(format!("{name}\n").as_bytes()).await?;
            stream.read_u8().await?;
            Ok(SockRef::from(&stream).set_linger(Some(Duration::ZERO))?)
        }
        Habit::Flood => flood(stream).await,
    }
}

async fn echo(mut stream: TcpStream) -> Result<()> {
    let (mut read, mut write) = stream.split();
    tokio::io::copy(&mut read, &mut write).await?;
    Ok(write.shutdown().await?)
}

async fn flood(mut stream: TcpStream) -> Result<()> {
    let mut block = vec![0; 64 * 1024];
    for number in 0_u64.. {
        fill(&mut block, number);
        stream.write_all(&block).await?;
        // Others of its thread have their turn.
        tokio::task::yield_now().await;
    }
    Ok(())
}

async fn http(stream: TcpStream, answer: impl Fn(&str) -> Vec<u8>) -> Result<()> {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    while let Some(request) = lines.next_line().await? {
        while !lines.next_line().await?.context("cut short")?.is_empty() {}
        write.write_all(&answer(&request)).await?;
    }
    Ok(())
}

async fn mirror(stream: TcpStream, name: &str) -> Result<()> {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    while let Some(request) = lines.next_line().await? {
        let mut head = format!("{request}\n");
        loop {
            let line = lines.next_line().await?.context("cut short")?;
            if line.is_empty() {
                break;
            }
            head.push_str(&line);
            head.push('\n');
        }
        let answer = format!("HTTP/1.1 200 OK\r\nserver: {name}\r\ncontent-length: {}\r\n\r\n{head}", head.len());
        write.write_all(answer.as_bytes()).await?;
    }
    Ok(())
}

/// What [`Habit::Http`] answers to the line `request`; `last`: and that it closes the connection after it.
#[must_use]
pub fn answer(request: &str, name: &str, last: bool) -> Vec<u8> {
    let content = asked(request).map_or_else(Vec::new, |(id, size)| body(id, size));
    let close = if last { "connection: close\r\n" } else { "" };
    let head = format!("HTTP/1.1 200 OK\r\nserver: {name}\r\n{close}content-length: {}\r\n\r\n", content.len());
    [head.as_bytes(), &content].concat()
}

/// `GET /<id>/<size> …` as (id, size).
fn asked(request: &str) -> Option<(u64, usize)> {
    let mut parts = request.split(' ').nth(1)?.split('/').skip(1);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// The body of request `id`: bytes that no other request shares.
#[must_use]
pub fn body(id: u64, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    fill(&mut bytes, id);
    bytes
}

fn fill(bytes: &mut [u8], seed: u64) {
    fastrand::Rng::with_seed(seed).fill(bytes);
}

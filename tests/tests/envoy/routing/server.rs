//! A server that says what it was asked, and misbehaves if it is told to.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use eastway_tests::lab::place::Place;
use eastway_tests::servers::answer;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// One request as it arrived.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// Method, path and query.
    pub(super) line: String,
    /// `name: value`, lower case names.
    pub(super) headers: Vec<String>,
}

impl Seen {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

/// Answers `GET /<id>/<size>` as load wants it, anything else with 200 and its name. The header `x-misbehave` makes it
/// wait or fail: `slow` for 5 s; `fail-<name>` with 503, the server of this name only.
#[derive(Clone)]
pub(super) struct Server {
    pub(super) name: String,
    requests: Arc<AtomicU64>,
    last: Arc<Mutex<Seen>>,
}

impl Server {
    pub(super) async fn start(place: &Place, address: SocketAddr, name: &str) -> Result<Self> {
        let listener = place.run(async move { Ok(TcpListener::bind(address).await?) }).await?;
        let server = Self { name: name.to_owned(), requests: Arc::default(), last: Arc::default() };
        let it = server.clone();
        place.spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                let it = it.clone();
                // How a connection ends is for its client to judge.
                tokio::spawn(async move { it.converse(stream).await });
            }
        });
        Ok(server)
    }

    /// Requests so far.
    pub(super) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// The last one.
    pub(super) fn last(&self) -> Seen {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn converse(&self, stream: TcpStream) -> Result<()> {
        stream.set_nodelay(true)?;
        let (read, mut write) = stream.into_split();
        let mut lines = BufReader::new(read).lines();
        while let Some(line) = lines.next_line().await? {
            let mut seen = Seen { line, headers: Vec::new() };
            loop {
                let header = lines.next_line().await?.context("cut short")?;
                if header.is_empty() {
                    break;
                }
                let (name, value) = header.split_once(':').context("no header")?;
                seen.headers.push(format!("{}: {}", name.to_ascii_lowercase(), value.trim()));
            }
            self.requests.fetch_add(1, Ordering::Relaxed);
            let misbehave = seen.header("x-misbehave").unwrap_or_default().to_owned();
            let line = seen.line.clone();
            *self.last.lock().unwrap_or_else(PoisonError::into_inner) = seen;
            if misbehave == "slow" {
                tokio::time::sleep(Duration::from_secs(5)).await;
            }
            if misbehave.strip_prefix("fail-") == Some(self.name.as_str()) {
                write.write_all(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n").await?;
            } else {
                write.write_all(&answer(&line, &self.name, false)).await?;
            }
        }
        Ok(())
    }
}

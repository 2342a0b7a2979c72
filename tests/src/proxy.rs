//! An HTTP proxy that connects on request, as companies have them between their networks and the internet.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

use crate::lab::place::Place;

/// A running proxy. It ends with its place.
#[derive(Clone, Debug)]
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
    connected: Arc<AtomicU64>,
    refused: Arc<AtomicU64>,
    /// Connections at a time; more get 503.
    most: usize,
    open: Arc<AtomicUsize>,
}

impl Proxy {
    /// Starts one that wants to see `username` and `password`.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub async fn start(place: &Place, address: SocketAddr, username: &str, password: &str) -> Result<Self> {
        Self::start_with(place, address, (username, password), usize::MAX).await
    }

    /// As [`Proxy::start`], for at most so many connections at a time.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub async fn start_with(
        place: &Place,
        address: SocketAddr,
        (username, password): (&str, &str),
        most: usize,
    ) -> Result<Self> {
        let bound = place.run(async move { Ok(TcpListener::bind(address).await?) }).await;
        let listener = bound.with_context(|| format!("proxy on {address}"))?;
        let proxy = Self { address, connected: Arc::default(), refused: Arc::default(), most, open: Arc::default() };
        let expected = format!("Basic {}", BASE64_STANDARD.encode(format!("{username}:{password}")));
        let (expected, counters): (Arc<str>, _) = (expected.into(), proxy.clone());
        place.spawn(async move {
            loop {
                let Ok((stream, _from)) = listener.accept().await else { continue };
                // How a connection ends is for its two ends to judge.
                tokio::spawn(serve(stream, Arc::clone(&expected), counters.clone()));
            }
        });
        Ok(proxy)
    }

    /// Connections that were made on request.
    #[must_use]
    pub fn connected(&self) -> u64 {
        self.connected.load(Ordering::Relaxed)
    }

    /// Requests without the right credentials, or beyond the limit.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

async fn serve(stream: TcpStream, expected: Arc<str>, counters: Proxy) -> Result<()> {
    let mut stream = BufReader::new(stream);
    let (mut request, mut shown) = (String::new(), None);
    stream.read_line(&mut request).await?;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        match line.trim_end().split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("proxy-authorization") => shown = Some(value.to_owned()),
            Some(_) => {}
            None => break,
        }
    }
    if shown.as_deref() != Some(&*expected) {
        counters.refused.fetch_add(1, Ordering::Relaxed);
        let answer = "HTTP/1.1 407 Proxy Authentication Required\r\nproxy-authenticate: Basic\r\n\r\n";
        return Ok(stream.write_all(answer.as_bytes()).await?);
    }
    let target = request.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next());
    let room = Room::new(&counters);
    if room.is_none() {
        counters.refused.fetch_add(1, Ordering::Relaxed);
        return Ok(stream.write_all(b"HTTP/1.1 503 Service Unavailable\r\n\r\n").await?);
    }
    let connected = match target {
        Some(target) => TcpStream::connect(target).await.ok(),
        None => None,
    };
    let Some(mut target) = connected else {
        return Ok(stream.write_all(b"HTTP/1.1 502 Bad Gateway\r\n\r\n").await?);
    };
    counters.connected.fetch_add(1, Ordering::Relaxed);
    stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
    copy_bidirectional(&mut stream, &mut target).await?;
    Ok(())
}

/// A place among those that may be open.
struct Room(Arc<AtomicUsize>);

impl Room {
    fn new(proxy: &Proxy) -> Option<Self> {
        let room = Self(Arc::clone(&proxy.open));
        // Given back at once if it was one too many.
        (room.0.fetch_add(1, Ordering::Relaxed) < proxy.most).then_some(room)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

//! A GET to an operator's port inside a namespace.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::place::Place;

/// Longest answer that is read, bytes.
const MAX_ANSWER: u64 = 16 << 20;
/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// An answer.
#[derive(Clone, Debug)]
pub struct Response {
    /// HTTP status.
    pub status: u16,
    /// Its body.
    pub body: String,
}

/// Fetches `path`, without retries.
///
/// # Errors
/// No connection, no answer in time, or an answer that is not HTTP.
pub async fn get(place: &Place, to: SocketAddr, path: &str) -> Result<Response> {
    let request = format!("GET {path} HTTP/1.0\r\nHost: {to}\r\nConnection: close\r\n\r\n");
    let exchange = async move {
        let mut stream = TcpStream::connect(to).await.with_context(|| format!("connect to {to}"))?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(MAX_ANSWER).read_to_end(&mut answer).await?;
        parse(&String::from_utf8_lossy(&answer))
    };
    place.run(async move { tokio::time::timeout(PATIENCE, exchange).await.context("no answer in time")? }).await
}

/// The status of the answer to a GET of `path`; the rest of it is not waited for, as proxies keep connections open.
///
/// # Errors
/// As for [`get`].
pub async fn status(place: &Place, to: SocketAddr, path: &str) -> Result<u16> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n");
    let exchange = async move {
        let mut stream = BufReader::new(TcpStream::connect(to).await.with_context(|| format!("connect to {to}"))?);
        stream.write_all(request.as_bytes()).await?;
        let mut line = String::new();
        stream.take(MAX_ANSWER).read_line(&mut line).await?;
        status_of(&line)
    };
    place.run(async move { tokio::time::timeout(PATIENCE, exchange).await.context("no answer in time")? }).await
}

fn status_of(line: &str) -> Result<u16> {
    line.split(' ').nth(1).and_then(|status| status.parse().ok()).context("not HTTP")
}

fn parse(answer: &str) -> Result<Response> {
    let (head, body) = answer.split_once("\r\n\r\n").context("cut short")?;
    Ok(Response { status: status_of(head)?, body: body.to_owned() })
}

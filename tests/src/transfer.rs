//! Long transfers that are watched: whether every byte is right, and for how long nothing moved.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream};

use crate::load;
use crate::servers::body;

/// Longest pause that is waited out.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of one write and of one read.
const BLOCK: usize = 64 << 10;

/// How many bytes of a transfer have come; shared with who watches it.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<AtomicU64>);

impl Progress {
    /// Bytes that have come so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A transfer whose every byte came as it was sent.
#[derive(Clone, Copy, Debug)]
pub struct Transfer {
    /// Bytes that came.
    pub bytes: usize,
    /// From the connection's beginning.
    pub took: Duration,
    /// The longest time in which no byte came.
    pub longest_pause: Duration,
}

/// Fetches `size` bytes from a [`Habit::Http`](crate::servers::Habit::Http). Must run at the client's place.
///
/// # Errors
/// The connection breaks, a byte is another, or nothing comes for too long.
pub async fn download(source: IpAddr, target: SocketAddr, size: usize, progress: Progress) -> Result<Transfer> {
    let begun = Instant::now();
    let stream = load::connect(source, target).await.context("connect")?;
    let (read, mut write) = stream.into_split();
    let id = fastrand::u64(..);
    write.write_all(format!("GET /{id}/{size} HTTP/1.1\r\nhost: test\r\n\r\n").as_bytes()).await.context("ask")?;
    let mut read = BufReader::new(read);
    let head = async {
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            ensure!(read.read_line(&mut line).await.context("read the head")? > 0, "the head is cut short");
        }
        Ok(())
    };
    tokio::time::timeout(PATIENCE, head).await.context("no answer")??;
    let longest_pause = compare(&mut read, &body(id, size), &progress).await?;
    Ok(Transfer { bytes: size, took: begun.elapsed(), longest_pause })
}

/// Sends `size` bytes to a [`Habit::HalfClose`](crate::servers::Habit::HalfClose) and takes all of them back after it has
/// got the last. Must run at the client's place.
///
/// # Errors
/// As for [`download`].
pub async fn there_and_back(source: IpAddr, target: SocketAddr, size: usize) -> Result<Transfer> {
    let begun = Instant::now();
    let mut stream = load::connect(source, target).await.context("connect")?;
    let content = body(fastrand::u64(..), size);
    let mut longest_pause = Duration::ZERO;
    for block in content.chunks(BLOCK) {
        let at = Instant::now();
        tokio::time::timeout(PATIENCE, stream.write_all(block)).await.context("nothing is taken")?.context("send")?;
        longest_pause = longest_pause.max(at.elapsed());
    }
    stream.shutdown().await.context("finish")?;
    // Whether the first byte comes late for want of a server that has all or of the way back is the same to who waits.
    let back = compare(&mut stream, &content, &Progress::default()).await?;
    ensure!(stream.read(&mut [0]).await.context("read the end")? == 0, "more came back than was sent");
    Ok(Transfer { bytes: 2 * size, took: begun.elapsed(), longest_pause: longest_pause.max(back) })
}

/// A TCP connection whose client's own system holds little of what the client does not read: the rest is for whoever sends to
/// hold. Must run at the client's place.
///
/// # Errors
/// The connection is refused.
pub async fn connect_small(source: IpAddr, target: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(16 << 10)?;
    socket.bind(SocketAddr::new(source, 0))?;
    socket.connect(target).await
}

/// Reads `expected` and returns the longest time in which nothing came.
async fn compare(read: &mut (impl AsyncRead + Unpin), expected: &[u8], progress: &Progress) -> Result<Duration> {
    let (mut buffer, mut longest, mut at) = (vec![0; BLOCK], Duration::ZERO, 0);
    while at < expected.len() {
        let waited = Instant::now();
        let coming = tokio::time::timeout(PATIENCE, read.read(&mut buffer)).await;
        let length = coming.with_context(|| format!("nothing came after byte {at}"))?.context("read")?;
        longest = longest.max(waited.elapsed());
        ensure!(length > 0, "cut short after {at} of {} bytes", expected.len());
        ensure!(expected.get(at..at + length) == buffer.get(..length), "altered after byte {at}");
        at += length;
        progress.0.fetch_add(length as u64, Ordering::Relaxed);
    }
    Ok(longest)
}

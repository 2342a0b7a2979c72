//! Copies a connection, both ways, with half-close and resets kept, and watches that it does not stand still.

mod watch;

use std::future::poll_fn;
use std::io;
use std::net::Shutdown;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use eastway_tunnel::{RecvHalf, ResetCode, SendHalf, StreamError};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

pub use watch::{Limits, Watch};

/// Smallest read buffer. It is allocated only when bytes are waiting, so an idle connection has none.
const MIN_READ: usize = 4 * 1024;
/// Largest read buffer: few large chunks keep the work per byte small, and quinn searches its
/// chunks one by one.
const MAX_READ: usize = 256 * 1024;
/// Bytes that all connections together may hold in read buffers above [`MIN_READ`]: a peer that reads nothing
/// leaves one buffer in the hands of each of its streams.
const LARGE_READS: u64 = 64 << 20;

/// Bytes in read buffers above [`MIN_READ`], of the whole process: what bounds memory has to be.
static LARGE: LargeReads = LargeReads { held: AtomicU64::new(0), most: LARGE_READS };

/// Bytes that a connection carried, readable while it runs.
#[derive(Debug, Default)]
pub struct Transferred {
    /// From the local socket that [`Local`] holds.
    pub from_local: Lane,
    /// To it.
    pub to_local: Lane,
}

/// One direction of a connection.
#[derive(Debug, Default)]
pub struct Lane {
    taken: AtomicU64,
    given: AtomicU64,
    ended: AtomicBool,
}

impl Lane {
    /// Bytes taken from where they come from.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// Bytes of those that were handed on.
    #[must_use]
    pub fn given(&self) -> u64 {
        self.given.load(Ordering::Relaxed)
    }

    /// Counts bytes that went through before the copying began.
    pub fn passed(&self, bytes: usize) {
        self.take(bytes);
        self.give(bytes);
    }

    fn take(&self, bytes: usize) {
        self.taken.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn give(&self, bytes: usize) {
        self.given.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Its end was handed on too.
    fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    fn is_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }
}

/// How a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The local socket failed.
    #[error("local connection: {0}")]
    Local(#[from] io::Error),
    /// The other gateway or the link ended the stream.
    #[error("stream: {0}")]
    Stream(#[from] StreamError),
    /// It stood still for too long.
    #[error("{0} for {1:?}")]
    Idle(Idle, Duration),
}

/// How a connection stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Idle {
    /// No byte moved in either direction.
    #[error("no byte moved")]
    Quiet,
    /// One direction has ended, and no byte moved in the other.
    #[error("half-closed, and no byte moved")]
    HalfClosed,
    /// Bytes wait in one direction, and nobody takes them.
    #[error("bytes wait and nobody took them")]
    Blocked,
}

/// Reads what is waiting on a TCP socket into buffers of a size that follows the traffic.
#[derive(Debug)]
pub struct ChunkReader {
    size: usize,
}

impl Default for ChunkReader {
    fn default() -> Self {
        Self { size: MIN_READ }
    }
}

impl ChunkReader {
    /// The next bytes, at most 4 KiB of them; `None` at the end of the stream. Cancel safe.
    ///
    /// # Errors
    /// Those of the socket.
    pub async fn read(&mut self, tcp: &TcpStream) -> io::Result<Option<Bytes>> {
        read(tcp, || MIN_READ).await
    }

    /// As [`Self::read`], more at once when much comes and `large` has room.
    async fn read_large<'a>(
        &mut self,
        tcp: &TcpStream,
        large: &'a LargeReads,
    ) -> io::Result<Option<(Bytes, LargeRead<'a>)>> {
        let mut held = LargeRead { owner: large, bytes: 0 };
        let size = self.size;
        let chunk = read(tcp, || {
            held = large.reserve(size);
            size.min(MIN_READ + held.bytes)
        });
        let Some(chunk) = chunk.await? else { return Ok(None) };
        self.adapt(chunk.len());
        Ok(Some((chunk, held)))
    }

    fn adapt(&mut self, read: usize) {
        if read >= self.size {
            self.size = (self.size * 4).min(MAX_READ);
        } else if read < self.size / 4 {
            self.size = (self.size / 4).max(MIN_READ);
        }
    }
}

/// Reads once bytes are waiting, into a buffer of the size that is asked for only then.
async fn read(tcp: &TcpStream, mut size: impl FnMut() -> usize) -> io::Result<Option<Bytes>> {
    loop {
        tcp.ready(Interest::READABLE).await?;
        let mut buffer = BytesMut::with_capacity(size());
        match tcp.try_read_buf(&mut buffer) {
            Ok(0) => return Ok(None),
            Ok(_) => return Ok(Some(buffer.freeze())),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// Bytes in large read buffers.
#[derive(Debug)]
struct LargeReads {
    held: AtomicU64,
    most: u64,
}

/// What one read buffer has of them.
#[derive(Debug)]
struct LargeRead<'a> {
    owner: &'a LargeReads,
    bytes: usize,
}

impl LargeReads {
    /// Room for a buffer of `size`, or none beyond the least.
    fn reserve(&self, size: usize) -> LargeRead<'_> {
        let bytes = size.saturating_sub(MIN_READ);
        let before = self.held.fetch_add(bytes as u64, Ordering::Relaxed);
        let mut read = LargeRead { owner: self, bytes };
        if before + bytes as u64 > self.most {
            read.release();
        }
        read
    }
}

impl LargeRead<'_> {
    fn release(&mut self) {
        self.owner.held.fetch_sub(std::mem::take(&mut self.bytes) as u64, Ordering::Relaxed);
    }
}

impl Drop for LargeRead<'_> {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.release();
        }
    }
}

/// The local socket of a connection, as far as it was read.
#[derive(Debug)]
pub struct Local {
    /// The socket.
    pub tcp: TcpStream,
    /// Its reader.
    pub reader: ChunkReader,
    /// Its direction has ended.
    pub ended: bool,
}

impl Local {
    /// A connection of which nothing was read. From now on it is reset unless it ends in order.
    #[must_use]
    pub fn new(tcp: TcpStream) -> Self {
        reset_unless_done(&tcp);
        Self { tcp, reader: ChunkReader::default(), ended: false }
    }
}

/// Copies between a local connection and a stream until both directions have ended. Whatever goes
/// wrong on one side is a reset on the other; nothing is truncated silently.
///
/// # Errors
/// The first thing that went wrong.
pub async fn with_stream(
    local: Local,
    (mut send, mut recv): (SendHalf, RecvHalf),
    moved: &Transferred,
    watch: Watch<'_>,
) -> Result<(), CopyError> {
    let Local { tcp, mut reader, ended } = local;
    let result = {
        // Pinned where they are made: a future that is moved into another one is kept twice, and an idle
        // connection is little else than its futures.
        let up = pin!(async {
            if !ended {
                upload(&tcp, &mut reader, &mut send, &moved.from_local).await?;
            }
            moved.from_local.end();
            Ok(())
        });
        let down = pin!(download(&mut recv, &tcp, &moved.to_local));
        let both = pin!(async { tokio::try_join!(up, down).map(|((), ())| ()) });
        let (broken, watch) = (pin!(broken(&tcp)), pin!(watch.run(moved)));
        tokio::select! {
            biased;
            result = both => result,
            error = broken => Err(error.into()),
            error = watch => Err(error),
        }
    };
    match &result {
        Ok(()) => done(&tcp),
        Err(error) => {
            let code = reset_code(error);
            send.reset(code);
            recv.stop(code);
        }
    }
    result
}

async fn upload(tcp: &TcpStream, reader: &mut ChunkReader, send: &mut SendHalf, lane: &Lane) -> Result<(), CopyError> {
    while let Some((chunk, _held)) = reader.read_large(tcp, &LARGE).await? {
        lane.take(chunk.len());
        let mut rest = [chunk];
        while rest.iter().any(|chunk| !chunk.is_empty()) {
            lane.give(poll_fn(|cx| send.poll_write(cx, &mut rest)).await?);
        }
    }
    send.finish();
    Ok(())
}

async fn download(recv: &mut RecvHalf, tcp: &TcpStream, lane: &Lane) -> Result<(), CopyError> {
    while let Some(mut chunk) = recv.read().await? {
        lane.take(chunk.len());
        while write(tcp, &mut chunk, lane)? {
            // A client that does not read must not keep a stream that the other side has cut.
            tokio::select! {
                writable = tcp.writable() => writable?,
                error = recv.aborted() => return Err(error.into()),
            }
        }
    }
    finish(tcp)?;
    lane.end();
    Ok(())
}

/// Writes what the socket takes of `chunk`; whether there is a rest.
fn write(tcp: &TcpStream, chunk: &mut Bytes, lane: &Lane) -> io::Result<bool> {
    while !chunk.is_empty() {
        match tcp.try_write(chunk) {
            Ok(written) => {
                lane.give(written);
                chunk.advance(written);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// Copies between two local connections: client and an endpoint of this cluster, as [`dial`](super::dial::dial) gives it.
///
/// # Errors
/// The first thing that went wrong.
pub async fn between_sockets(
    local: Local,
    upstream: TcpStream,
    moved: &Transferred,
    watch: Watch<'_>,
) -> Result<(), CopyError> {
    let Local { tcp: client, mut reader, ended } = local;
    let mut back = ChunkReader::default();
    let result = {
        let up = pin!(async {
            if ended {
                finish(&upstream)?;
                moved.from_local.end();
                return Ok(());
            }
            pipe(&client, &mut reader, &upstream, &moved.from_local).await
        });
        let down = pin!(pipe(&upstream, &mut back, &client, &moved.to_local));
        let both = pin!(async { tokio::try_join!(up, down).map(|((), ())| ()) });
        let (broken_client, broken_upstream) = (pin!(broken(&client)), pin!(broken(&upstream)));
        let watch = pin!(watch.run(moved));
        tokio::select! {
            biased;
            result = both => result,
            error = broken_client => Err(error.into()),
            error = broken_upstream => Err(error.into()),
            error = watch => Err(error),
        }
    };
    if result.is_ok() {
        done(&client);
        done(&upstream);
    }
    result
}

async fn pipe(from: &TcpStream, reader: &mut ChunkReader, to: &TcpStream, lane: &Lane) -> Result<(), CopyError> {
    while let Some((mut chunk, _held)) = reader.read_large(from, &LARGE).await? {
        lane.take(chunk.len());
        while write(to, &mut chunk, lane)? {
            to.writable().await?;
        }
    }
    finish(to)?;
    lane.end();
    Ok(())
}

fn finish(tcp: &TcpStream) -> io::Result<()> {
    match SockRef::from(tcp).shutdown(Shutdown::Write) {
        // The other side is gone already, with everything it was sent.
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
        other => other,
    }
}

/// Resolves when the socket is reset, also while it is neither read nor written.
async fn broken(tcp: &TcpStream) -> io::Error {
    match tcp.ready(Interest::ERROR).await {
        Ok(_) => tcp.take_error().ok().flatten().unwrap_or_else(|| io::ErrorKind::ConnectionReset.into()),
        Err(error) => error,
    }
}

/// What the other gateway is told when this side fails.
fn reset_code(error: &CopyError) -> ResetCode {
    match error {
        CopyError::Local(_) => ResetCode::UpstreamReset,
        CopyError::Stream(StreamError::Reset(code)) => *code,
        CopyError::Stream(_) => ResetCode::Internal,
        CopyError::Idle(..) => ResetCode::IdleTimeout,
    }
}

/// Makes the close of a socket a TCP reset, whoever closes it: an error, a task that is dropped, or the system when
/// this process is killed. An application must see that what it got is not complete.
pub fn reset_unless_done(tcp: &TcpStream) {
    // A socket that is gone already needs no reset.
    let _gone = SockRef::from(tcp).set_linger(Some(Duration::ZERO));
}

/// Both directions have ended in order: so may the socket.
fn done(tcp: &TcpStream) {
    let _gone = SockRef::from(tcp).set_linger(None);
}

#[cfg(test)]
mod tests;

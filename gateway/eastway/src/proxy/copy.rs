//! Copies a connection, both ways, with half-close and resets kept, and watches that it does not stand still.

mod read;
mod watch;

use std::future::poll_fn;
use std::io::{self, Read as _};
use std::net::Shutdown;
use std::pin::pin;
use std::slice;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use eastway_tunnel::transport::BoxFuture;
use eastway_tunnel::{RecvHalf, ResetCode, SendHalf, StreamError, TunnelStream};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

pub use read::ChunkReader;
use read::{LARGE, MIN_READ, Read};
pub use watch::{Limits, Watch};

/// Bytes that a connection carried, readable while it runs.
#[derive(Debug, Default)]
pub struct Transferred {
    /// From the local socket that [`Local`] holds.
    pub from_local: Lane,
    /// To it.
    pub to_local: Lane,
}

impl Transferred {
    fn has_ended(&self) -> bool {
        self.from_local.is_ended() && self.to_local.is_ended()
    }
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

    /// Goes on with it by `poll` until its end.
    fn advance(&self, poll: impl FnOnce(&Self) -> Poll<Result<(), CopyError>>) -> Result<(), CopyError> {
        if !self.is_ended()
            && let Poll::Ready(result) = poll(self)
        {
            result?;
            self.end();
        }
        Ok(())
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

    /// What has come by now, at most 4 KiB of it, without waiting. Its end is left to [`ChunkReader::read`].
    ///
    /// # Errors
    /// Those of the socket.
    pub fn read_now(&self) -> io::Result<Option<Bytes>> {
        // Not by tokio, which knows of a new socket's bytes only after its driver has run.
        let waiting = usize::try_from(rustix::io::ioctl_fionread(&self.tcp)?).unwrap_or(MIN_READ).min(MIN_READ);
        if waiting == 0 {
            return Ok(None);
        }
        let mut buffer = BytesMut::zeroed(waiting);
        match (&*SockRef::from(&self.tcp)).read(&mut buffer) {
            Ok(0) => Ok(None),
            Ok(read) => {
                buffer.truncate(read);
                Ok(Some(buffer.freeze()))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Copies between a local connection and a stream until both directions have ended. Whatever goes
/// wrong on one side is a reset on the other; nothing is truncated silently.
///
/// An idle connection is little else than this future: it polls by hand what futures of their own would keep
/// room for.
///
/// # Errors
/// The first thing that went wrong.
pub async fn with_stream(
    local: &mut Local,
    stream: &mut TunnelStream,
    moved: &Transferred,
    watch: &mut Watch<'_>,
) -> Result<(), CopyError> {
    let Local { tcp, reader, ended } = local;
    let TunnelStream { send, recv } = stream;
    if *ended {
        moved.from_local.end();
    }
    let result = {
        let (mut up, mut down) = (None, Bytes::new());
        let mut unread = Unread::default();
        let mut watch = pin!(watch.run(moved));
        poll_fn(|cx| {
            moved.from_local.advance(|lane| poll_upload(cx, (tcp, reader), send, lane, &mut up))?;
            moved.to_local.advance(|lane| poll_download(cx, recv, tcp, lane, &mut down))?;
            if moved.has_ended() {
                return Poll::Ready(Ok(()));
            }
            if let Poll::Ready(error) = unread.poll_reset(cx, tcp, &moved.from_local) {
                return Poll::Ready(Err(error.into()));
            }
            watch.as_mut().poll(cx).map(Err)
        })
        .await
    };
    match &result {
        Ok(()) => done(tcp),
        Err(error) => {
            let code = reset_code(error);
            send.reset(code);
            recv.stop(code);
        }
    }
    result
}

fn poll_upload(
    cx: &mut Context<'_>,
    (tcp, reader): (&TcpStream, &mut ChunkReader),
    send: &mut SendHalf,
    lane: &Lane,
    read: &mut Option<Read<'_>>,
) -> Poll<Result<(), CopyError>> {
    loop {
        while let Some(Read { chunk, .. }) = read {
            lane.give(ready!(send.poll_write(cx, slice::from_mut(chunk)))?);
            if chunk.is_empty() {
                *read = None;
            }
        }
        *read = ready!(reader.poll_read_large(cx, tcp, &LARGE))?;
        let Some(Read { chunk, .. }) = read else {
            send.finish();
            return Poll::Ready(Ok(()));
        };
        lane.take(chunk.len());
    }
}

fn poll_download(
    cx: &mut Context<'_>,
    recv: &mut RecvHalf,
    tcp: &TcpStream,
    lane: &Lane,
    chunk: &mut Bytes,
) -> Poll<Result<(), CopyError>> {
    loop {
        while write(tcp, chunk, lane)? {
            // A client that does not read must not keep a stream that the other side has cut.
            if let Poll::Ready(error) = recv.poll_aborted(cx) {
                return Poll::Ready(Err(error.into()));
            }
            ready!(tcp.poll_write_ready(cx))?;
        }
        let Some(next) = ready!(recv.poll_read(cx))? else {
            return Poll::Ready(finish(tcp).map_err(CopyError::from));
        };
        lane.take(next.len());
        *chunk = next;
    }
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
    local: &mut Local,
    upstream: &TcpStream,
    moved: &Transferred,
    watch: &mut Watch<'_>,
) -> Result<(), CopyError> {
    let Local { tcp: client, reader, ended } = local;
    if *ended {
        finish(upstream)?;
        moved.from_local.end();
    }
    let result = {
        let mut back = ChunkReader::default();
        let (mut up, mut down) = (None, None);
        let (mut unread_client, mut unread_upstream) = (Unread::default(), Unread::default());
        let mut watch = pin!(watch.run(moved));
        poll_fn(|cx| {
            moved.from_local.advance(|lane| poll_pipe(cx, (client, reader), upstream, lane, &mut up))?;
            moved.to_local.advance(|lane| poll_pipe(cx, (upstream, &mut back), client, lane, &mut down))?;
            if moved.has_ended() {
                return Poll::Ready(Ok(()));
            }
            let reset_client = unread_client.poll_reset(cx, client, &moved.from_local);
            let reset_upstream = unread_upstream.poll_reset(cx, upstream, &moved.to_local);
            if let (Poll::Ready(error), _) | (_, Poll::Ready(error)) = (reset_client, reset_upstream) {
                return Poll::Ready(Err(error.into()));
            }
            watch.as_mut().poll(cx).map(Err)
        })
        .await
    };
    if result.is_ok() {
        done(client);
        done(upstream);
    }
    result
}

fn poll_pipe(
    cx: &mut Context<'_>,
    (from, reader): (&TcpStream, &mut ChunkReader),
    to: &TcpStream,
    lane: &Lane,
    read: &mut Option<Read<'_>>,
) -> Poll<Result<(), CopyError>> {
    loop {
        if let Some(Read { chunk, .. }) = read {
            while write(to, chunk, lane)? {
                ready!(to.poll_write_ready(cx))?;
            }
        }
        *read = ready!(reader.poll_read_large(cx, from, &LARGE))?;
        let Some(Read { chunk, .. }) = read else {
            return Poll::Ready(finish(to).map_err(CopyError::from));
        };
        lane.take(chunk.len());
    }
}

fn finish(tcp: &TcpStream) -> io::Result<()> {
    match SockRef::from(tcp).shutdown(Shutdown::Write) {
        // The other side is gone already, with everything it was sent.
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
        other => other,
    }
}

/// A socket that nobody reads: what was read of it waits to be handed on, or its direction has ended. Otherwise its
/// reader sees that it is reset.
#[derive(Default)]
struct Unread<'a> {
    /// Only while it is needed: most connections are read, and wait for that.
    broken: Option<BoxFuture<'a, io::Error>>,
}

impl<'a> Unread<'a> {
    /// Resolves when the socket is reset while nobody reads it. To be polled after whoever reads it.
    fn poll_reset(&mut self, cx: &mut Context<'_>, tcp: &'a TcpStream, lane: &Lane) -> Poll<io::Error> {
        if !lane.is_ended() && lane.taken() == lane.given() {
            self.broken = None;
            return Poll::Pending;
        }
        self.broken.get_or_insert_with(|| Box::pin(broken(tcp))).as_mut().poll(cx)
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

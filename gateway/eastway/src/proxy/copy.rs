//! Copies a connection, both ways, with half-close and resets kept.

use std::future::pending;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use eastway_tunnel::{RecvHalf, ResetCode, SendHalf, StreamError};
use socket2::SockRef;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::{MissedTickBehavior, interval};

/// Smallest read buffer. It is allocated only when bytes are waiting, so an idle connection has none.
const MIN_READ: usize = 4 * 1024;
/// Largest read buffer: few large chunks keep the work per byte small, and quinn searches its
/// chunks one by one.
const MAX_READ: usize = 256 * 1024;
/// How often an established connection is looked at for idleness.
const IDLE_CHECK: Duration = Duration::from_secs(60);

/// Bytes that a connection carried, readable while it runs.
#[derive(Debug, Default)]
pub struct Transferred {
    /// Read from the local socket that [`Local`] holds.
    pub from_local: AtomicU64,
    /// Written to it.
    pub to_local: AtomicU64,
}

impl Transferred {
    fn total(&self) -> u64 {
        self.from_local.load(Ordering::Relaxed).wrapping_add(self.to_local.load(Ordering::Relaxed))
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
    /// Nothing moved for the idle limit.
    #[error("idle for {0:?}")]
    Idle(Duration),
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
    /// The next bytes; `None` at the end of the stream. Cancel safe.
    ///
    /// # Errors
    /// Those of the socket.
    pub async fn read(&mut self, tcp: &TcpStream) -> io::Result<Option<Bytes>> {
        loop {
            tcp.ready(Interest::READABLE).await?;
            let mut buffer = BytesMut::with_capacity(self.size);
            match tcp.try_read_buf(&mut buffer) {
                Ok(0) => return Ok(None),
                Ok(read) => {
                    self.adapt(read);
                    return Ok(Some(buffer.freeze()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn adapt(&mut self, read: usize) {
        if read >= self.size {
            self.size = (self.size * 4).min(MAX_READ);
        } else if read < self.size / 4 {
            self.size = (self.size / 4).max(MIN_READ);
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
    /// A connection of which nothing was read.
    #[must_use]
    pub fn new(tcp: TcpStream) -> Self {
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
    idle: Duration,
) -> Result<(), CopyError> {
    let Local { tcp, mut reader, ended } = local;
    let (tcp_read, mut tcp_write) = tcp.into_split();
    let result = {
        let up = async {
            if !ended {
                upload(&tcp_read, &mut reader, &mut send, &moved.from_local).await?;
            }
            Ok(())
        };
        let down = download(&mut recv, &mut tcp_write, &moved.to_local);
        let both = async { tokio::try_join!(up, down).map(|((), ())| ()) };
        until_idle(both, moved, idle).await
    };
    if let Err(error) = &result {
        let code = reset_code(error);
        send.reset(code);
        recv.stop(code);
        abort(tcp_write.as_ref());
    }
    result
}

async fn upload(
    tcp: &OwnedReadHalf,
    reader: &mut ChunkReader,
    send: &mut SendHalf,
    sent: &AtomicU64,
) -> Result<(), CopyError> {
    while let Some(chunk) = reader.read(tcp.as_ref()).await? {
        sent.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        send.write(chunk).await?;
    }
    send.finish();
    Ok(())
}

async fn download(recv: &mut RecvHalf, tcp: &mut OwnedWriteHalf, received: &AtomicU64) -> Result<(), CopyError> {
    while let Some(chunk) = recv.read().await? {
        received.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        tcp.write_all(&chunk).await?;
    }
    end(tcp).await
}

/// Copies between two local connections: client and an endpoint of this cluster.
///
/// # Errors
/// The first thing that went wrong.
pub async fn between_sockets(
    local: Local,
    upstream: TcpStream,
    moved: &Transferred,
    idle: Duration,
) -> Result<(), CopyError> {
    let Local { tcp, mut reader, ended } = local;
    let (client_read, mut client_write) = tcp.into_split();
    let (upstream_read, mut upstream_write) = upstream.into_split();
    let mut back = ChunkReader::default();
    let result = {
        let up = async {
            if ended {
                // The client ended its direction while its far end was looked for.
                return end(&mut upstream_write).await;
            }
            pipe(&client_read, &mut reader, &mut upstream_write, &moved.from_local).await
        };
        let down = pipe(&upstream_read, &mut back, &mut client_write, &moved.to_local);
        let both = async { tokio::try_join!(up, down).map(|((), ())| ()) };
        until_idle(both, moved, idle).await
    };
    if result.is_err() {
        abort(client_write.as_ref());
        abort(upstream_write.as_ref());
    }
    result
}

async fn pipe(
    from: &OwnedReadHalf,
    reader: &mut ChunkReader,
    to: &mut OwnedWriteHalf,
    moved: &AtomicU64,
) -> Result<(), CopyError> {
    while let Some(chunk) = reader.read(from.as_ref()).await? {
        moved.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        to.write_all(&chunk).await?;
    }
    end(to).await
}

async fn end(tcp: &mut OwnedWriteHalf) -> Result<(), CopyError> {
    match tcp.shutdown().await {
        // The other side is gone already, with everything it was sent.
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
        other => Ok(other?),
    }
}

/// Runs `copy`, but ends it when no byte moved for `limit` (zero: no limit).
async fn until_idle<F>(copy: F, moved: &Transferred, limit: Duration) -> Result<(), CopyError>
where
    F: Future<Output = Result<(), CopyError>>,
{
    let watch = async {
        if limit.is_zero() {
            return pending().await;
        }
        let period = IDLE_CHECK.min(limit);
        let mut ticks = interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await;
        let (mut last, mut quiet) = (moved.total(), Duration::ZERO);
        loop {
            ticks.tick().await;
            let now = moved.total();
            quiet = if now == last { quiet + period } else { Duration::ZERO };
            last = now;
            if quiet >= limit {
                return CopyError::Idle(limit);
            }
        }
    };
    tokio::select! {
        result = copy => result,
        error = watch => Err(error),
    }
}

/// What the other gateway is told when this side fails.
fn reset_code(error: &CopyError) -> ResetCode {
    match error {
        CopyError::Local(_) => ResetCode::UpstreamReset,
        CopyError::Stream(StreamError::Reset(code)) => *code,
        CopyError::Stream(_) => ResetCode::Internal,
        CopyError::Idle(_) => ResetCode::IdleTimeout,
    }
}

/// Makes the coming close a TCP reset: the application must see that what it got is not complete.
pub fn abort(tcp: &TcpStream) {
    // A socket that is gone already needs no reset.
    let _gone = SockRef::from(tcp).set_linger(Some(Duration::ZERO));
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;

    async fn sockets() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (one, other) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (one.unwrap(), other.unwrap().0)
    }

    #[tokio::test]
    async fn a_client_that_ended_before_its_endpoint_was_found_is_answered() {
        let ((mut client, ours), (upstream, mut server)) = (sockets().await, sockets().await);
        let local = Local { ended: true, ..Local::new(ours) };
        let copy =
            tokio::spawn(
                async move { between_sockets(local, upstream, &Transferred::default(), Duration::ZERO).await },
            );
        let answer = async {
            // This server speaks only when it has heard all.
            let mut heard = Vec::new();
            server.read_to_end(&mut heard).await.unwrap();
            server.write_all(b"answer").await.unwrap();
            drop(server);
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            answer
        };
        let answer = tokio::time::timeout(Duration::from_secs(5), answer).await;
        assert_eq!(answer.unwrap(), "answer");
        copy.await.unwrap().unwrap();
    }
}

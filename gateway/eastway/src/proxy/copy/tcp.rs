//! A local socket as one side of a connection.

use std::io::{self, IoSlice, Read as _};
use std::mem;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use eastway_tunnel::transport::BoxFuture;
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::read::{ChunkReader, Chunks, LARGE, MIN_READ, Read};
use super::{CopyError, Lane, Side};

/// Pieces that one system call writes: a stream gives one for each packet.
pub(super) const PIECES: usize = 64;

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
        Self::resetting(tcp)
    }

    /// As [`Self::new`], of one that is [reset unless it ends in order](reset_unless_done) already.
    #[must_use]
    pub fn resetting(tcp: TcpStream) -> Self {
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

    /// The socket to copy from and to.
    pub fn side(&mut self) -> TcpSide<'_> {
        TcpSide { ended: self.ended, ..TcpSide::new(&self.tcp, &mut self.reader) }
    }
}

/// A socket that is copied.
pub struct TcpSide<'a> {
    tcp: &'a TcpStream,
    reader: &'a mut ChunkReader,
    ended: bool,
    /// It was written to.
    written: bool,
    unread: Unread<'a>,
}

impl<'a> TcpSide<'a> {
    /// A socket that goes on from where `reader` is.
    pub fn new(tcp: &'a TcpStream, reader: &'a mut ChunkReader) -> Self {
        Self { tcp, reader, ended: false, written: false, unread: Unread::default() }
    }

    /// The socket itself.
    #[must_use]
    pub fn socket(&self) -> &'a TcpStream {
        self.tcp
    }
}

impl Side for TcpSide<'_> {
    fn has_ended(&self) -> bool {
        self.ended
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Read<'static>>, CopyError>> {
        self.reader.poll_read_large(cx, self.tcp, &LARGE).map_err(CopyError::from)
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, chunks: &mut Chunks) -> Poll<Result<usize, CopyError>> {
        loop {
            let mut slices = [IoSlice::new(&[]); PIECES];
            let rest = chunks.rest();
            slices.iter_mut().zip(rest.iter()).for_each(|(slice, chunk)| *slice = IoSlice::new(chunk));
            let slices = slices.get(..rest.len().min(PIECES)).unwrap_or(&slices);
            let written = if mem::replace(&mut self.written, true) {
                self.tcp.try_write_vectored(slices)
            } else {
                // Not by tokio, which knows that there is room in a new socket only after its driver has run.
                SockRef::from(self.tcp).send_vectored(slices)
            };
            match written {
                Ok(written) => {
                    chunks.advance(written);
                    return Poll::Ready(Ok(written));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready!(self.tcp.poll_write_ready(cx))?,
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    fn finish(&mut self) -> Result<(), CopyError> {
        match SockRef::from(self.tcp).shutdown(Shutdown::Write) {
            // The other side is gone already, with everything it was sent.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            other => other.map_err(CopyError::from),
        }
    }

    fn poll_cut(&mut self, cx: &mut Context<'_>, lane: &Lane) -> Poll<CopyError> {
        self.unread.poll_reset(cx, self.tcp, lane).map(CopyError::from)
    }

    fn close(&mut self, result: &Result<(), CopyError>) {
        if result.is_ok() {
            done(self.tcp);
        }
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

/// Makes the close of a socket a TCP reset, whoever closes it: an error, a task that is dropped, or the system when
/// this process is killed. An application must see that what it got is not complete. Connections have it from their
/// listener.
pub fn reset_unless_done(tcp: &impl AsFd) {
    // A socket that is gone already needs no reset.
    let _gone = SockRef::from(tcp).set_linger(Some(Duration::ZERO));
}

/// Both directions have ended in order: so may the socket.
fn done(tcp: &TcpStream) {
    let _gone = SockRef::from(tcp).set_linger(None);
}

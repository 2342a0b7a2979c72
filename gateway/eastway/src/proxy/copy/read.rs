//! Reads from local connections: little at a time where little comes, much where much comes and there is room for it.

use std::future::poll_fn;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use rustix::buffer::spare_capacity;
use rustix::net::{RecvFlags, recv};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Smallest read buffer. It is allocated only when bytes are waiting, so an idle connection has none.
pub(super) const MIN_READ: usize = 4 * 1024;
/// Largest read buffer: few large chunks keep the work per byte small, and quinn searches its
/// chunks one by one.
const MAX_READ: usize = 256 * 1024;
/// Bytes that all connections together may hold in read buffers above [`MIN_READ`]: a peer that reads nothing
/// leaves one buffer in the hands of each of its streams.
const LARGE_READS: u64 = 64 << 20;

/// What a thread may have freed before it is given back to the kernel is twice this.
const KEPT: usize = 2 << 20;

/// Has the process keep some memory that it freed. To be called once, before anything is carried.
///
/// glibc gives the end of a thread's heap back as soon as it has twice the largest buffer in it that was ever freed (`mallopt(3)`,
/// `M_MMAP_THRESHOLD`, "dynamic"). Largest are read buffers, of which several are in use at a time: they were given back
/// with every other one, and what is got again comes cleared, page by page. So one that is larger is freed here; it
/// was never written to and takes no memory. Other allocators do not mind.
pub fn keep_freed() {
    drop(std::hint::black_box(Vec::<u8>::with_capacity(KEPT)));
}

/// Bytes in read buffers above [`MIN_READ`], of the whole process: what bounds memory has to be.
pub(super) static LARGE: LargeReads = LargeReads { held: AtomicU64::new(0), most: LARGE_READS };

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
        poll_fn(|cx| self.poll_read(cx, tcp)).await
    }

    /// As [`Self::read`].
    pub fn poll_read(&mut self, cx: &mut Context<'_>, tcp: &TcpStream) -> Poll<io::Result<Option<Bytes>>> {
        poll_read(cx, tcp, || MIN_READ)
    }

    /// As [`Self::read`], more at once when much comes and `large` has room.
    pub(super) fn poll_read_large<'a>(
        &mut self,
        cx: &mut Context<'_>,
        tcp: &TcpStream,
        large: &'a LargeReads,
    ) -> Poll<io::Result<Option<Read<'a>>>> {
        let mut held = LargeRead { owner: large, bytes: 0 };
        let size = self.size;
        let chunk = poll_read(cx, tcp, || {
            held = large.reserve(size);
            size.min(MIN_READ + held.bytes)
        });
        let Some(chunk) = ready!(chunk)? else { return Poll::Ready(Ok(None)) };
        self.adapt(chunk.len());
        let chunks = Chunks { chunks: vec![chunk], taken: 0 };
        Poll::Ready(Ok(Some(Read { chunks, _held: held })))
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
fn poll_read(
    cx: &mut Context<'_>,
    tcp: &TcpStream,
    mut size: impl FnMut() -> usize,
) -> Poll<io::Result<Option<Bytes>>> {
    loop {
        ready!(tcp.poll_read_ready(cx))?;
        let mut buffer = Vec::with_capacity(size());
        let mut is_end = false;
        let result = tcp.try_io(Interest::READABLE, || {
            let room = buffer.capacity();
            let read = recv(tcp, spare_capacity(&mut buffer), RecvFlags::empty())?.0;
            is_end = read == 0;
            // There was no more: what comes from now on is told anew, and nobody needs to ask for it.
            if is_end || read == room { Ok(()) } else { Err(io::ErrorKind::WouldBlock.into()) }
        });
        match result {
            _ if is_end => return Poll::Ready(Ok(None)),
            _ if !buffer.is_empty() => return Poll::Ready(Ok(Some(buffer.into()))),
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Poll::Ready(Err(error)),
        }
    }
}

/// Bytes that were read and are not handed on yet.
#[derive(Debug)]
pub struct Read<'a> {
    pub(super) chunks: Chunks,
    _held: LargeRead<'a>,
}

/// Bytes that somebody else holds room for.
impl From<Bytes> for Read<'static> {
    fn from(chunk: Bytes) -> Self {
        Self::from(vec![chunk])
    }
}

impl From<Vec<Bytes>> for Read<'static> {
    fn from(chunks: Vec<Bytes>) -> Self {
        Self { chunks: Chunks { chunks, taken: 0 }, _held: LargeRead { owner: &LARGE, bytes: 0 } }
    }
}

/// Bytes in order, in the pieces that they came in.
#[derive(Debug)]
pub struct Chunks {
    chunks: Vec<Bytes>,
    /// How many of them are empty, from the first on.
    taken: usize,
}

impl Chunks {
    /// What is left, from the first piece on that is not empty; to be taken off the front.
    pub fn rest(&mut self) -> &mut [Bytes] {
        let rest = self.chunks.get(self.taken..).unwrap_or_default();
        self.taken += rest.iter().take_while(|chunk| chunk.is_empty()).count();
        self.chunks.get_mut(self.taken..).unwrap_or_default()
    }

    /// Takes `bytes` off the front.
    pub(super) fn advance(&mut self, mut bytes: usize) {
        for chunk in self.rest() {
            let part = bytes.min(chunk.len());
            chunk.advance(part);
            bytes -= part;
            if bytes == 0 {
                return;
            }
        }
    }

    /// Takes all that are left.
    #[must_use]
    pub fn take(&mut self) -> Self {
        Self { chunks: std::mem::take(&mut self.chunks), taken: std::mem::take(&mut self.taken) }
    }

    /// Bytes that are left.
    #[must_use]
    pub fn len(&self) -> usize {
        self.chunks.iter().map(Bytes::len).sum()
    }

    /// Whether nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chunks.iter().all(Bytes::is_empty)
    }
}

/// Bytes in large read buffers.
#[derive(Debug)]
pub(super) struct LargeReads {
    pub(super) held: AtomicU64,
    pub(super) most: u64,
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

#[cfg(test)]
#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod tests {
    use super::*;

    /// Pages that this thread was given, or got back cleared (`proc_pid_stat(5)`, `minflt`).
    fn faults() -> u64 {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        let (_, after_name) = stat.rsplit_once(')').unwrap();
        after_name.split_whitespace().nth(7).unwrap().parse().unwrap()
    }

    #[test]
    fn read_buffers_that_are_freed_are_not_given_back() {
        const BUFFERS: u64 = 10;
        keep_freed();
        let read = || drop((0..BUFFERS).map(|_| std::hint::black_box(vec![1u8; MAX_READ])).collect::<Vec<_>>());
        read();
        let before = faults();
        (0..10).for_each(|_| read());
        let pages = BUFFERS * MAX_READ as u64 / rustix::param::page_size() as u64;
        let got = faults() - before;
        assert!(got < pages, "{got} pages got again in ten rounds of {pages}");
    }
}

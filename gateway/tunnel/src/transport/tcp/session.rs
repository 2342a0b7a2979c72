//! TLS over a pipe, without I/O of its own: who polls it moves bytes.
//!
//! Reading and writing may be polled by different tasks, under one lock. What is read is decrypted at once, at most one
//! scratch buffer full; what is written is encrypted at once, and no more is taken before all of it went to the pipe. So
//! a session where nothing moves holds no buffers.

use std::cell::Cell;
use std::future::poll_fn;
use std::io::{self, BufRead, IoSlice, Write as _};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use rustls::{AlertDescription, Connection};
use tokio::io::ReadBuf;

use super::pipe::Pipe;
use super::shared::Carrier;

/// Bytes that are read by one system call: some four records.
const READ: usize = 64 << 10;
/// Bytes that are encrypted at once.
const WRITE: usize = 64 << 10;

thread_local! {
    /// What is read goes through it and stays in none.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// One TLS connection.
pub(super) struct Session {
    tls: Connection,
    pipe: Box<dyn Pipe>,
    /// Read and decrypted, not taken yet.
    plain: Bytes,
    /// The other side has ended in order.
    closed: bool,
    /// The pipe gives no more.
    exhausted: bool,
}

/// Why a session gives or takes no more.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    /// The pipe.
    #[error("{0}")]
    Pipe(#[from] io::Error),
    /// The other side ended the session with an alert.
    #[error("{0:?}")]
    Alert(AlertDescription),
    /// What came is not what TLS allows, or its certificate is not accepted.
    #[error("{0}")]
    Tls(rustls::Error),
    /// It ended without saying so.
    #[error("the connection was cut")]
    Truncated,
}

impl From<rustls::Error> for SessionError {
    fn from(error: rustls::Error) -> Self {
        if let rustls::Error::AlertReceived(alert) = error { Self::Alert(alert) } else { Self::Tls(error) }
    }
}

impl Session {
    pub(super) fn new(mut tls: Connection, pipe: Box<dyn Pipe>) -> Self {
        // Bounded here, by what is taken at once.
        tls.set_buffer_limit(None);
        Self { tls, pipe, plain: Bytes::new(), closed: false, exhausted: false }
    }

    /// The ends of its pipe, if the system knows them.
    pub(super) fn ends(&self) -> Option<(SocketAddr, SocketAddr)> {
        self.pipe.ends()
    }

    /// What its pipe goes over, if others go over it too.
    pub(super) fn carrier(&self) -> Option<&Arc<Carrier>> {
        self.pipe.carrier()
    }

    /// TLS, for what it knows of the other side.
    pub(super) fn tls(&self) -> &Connection {
        &self.tls
    }

    /// Makes the handshake. The caller keeps the deadline.
    pub(super) async fn handshake(&mut self) -> Result<(), SessionError> {
        poll_fn(|cx| {
            loop {
                ready!(self.poll_flush(cx))?;
                if !self.tls.is_handshaking() {
                    return Poll::Ready(Ok(()));
                }
                if ready!(self.poll_fill(cx))? == Filled::End {
                    return Poll::Ready(Err(SessionError::Truncated));
                }
            }
        })
        .await
    }

    /// Reads exactly `into.len()` bytes.
    pub(super) async fn read_exact(&mut self, into: &mut [u8]) -> Result<(), SessionError> {
        let mut rest = into;
        while !rest.is_empty() {
            let chunk = poll_fn(|cx| self.poll_read(cx, rest.len())).await?;
            let chunk = chunk.ok_or(SessionError::Truncated)?;
            let (now, later) = rest.split_at_mut(chunk.len().min(rest.len()));
            now.copy_from_slice(chunk.get(..now.len()).unwrap_or_default());
            rest = later;
        }
        Ok(())
    }

    /// Writes all of `bytes`.
    pub(super) async fn write_all(&mut self, bytes: &[u8]) -> Result<(), SessionError> {
        self.tls.writer().write_all(bytes)?;
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    /// The next bytes, at most `max`. `None`: the other side ended in order.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>, max: usize) -> Poll<Result<Option<Bytes>, SessionError>> {
        while self.plain.is_empty() {
            match ready!(self.poll_fill(cx))? {
                Filled::Some => {}
                Filled::Closed => return Poll::Ready(Ok(None)),
                Filled::End => return Poll::Ready(Err(SessionError::Truncated)),
            }
        }
        Poll::Ready(Ok(Some(self.plain.split_to(self.plain.len().min(max)))))
    }

    /// Gives back what was read, to be read again first.
    pub(super) fn unread(&mut self, chunk: Bytes) {
        debug_assert!(self.plain.is_empty(), "what was read last is given back first");
        self.plain = chunk;
    }

    /// As [`Session::write`], of what is borrowed.
    pub(super) fn write_parts<'a>(&mut self, parts: impl Iterator<Item = &'a [u8]>) -> Result<usize, SessionError> {
        let mut room = WRITE;
        for part in parts {
            let part = part.get(..room.min(part.len())).unwrap_or_default();
            room -= self.tls.writer().write(part)?;
        }
        Ok(WRITE - room)
    }

    /// Encrypts what it takes off the front of `chunks`. To be flushed, before more is written.
    pub(super) fn write(&mut self, chunks: &mut [Bytes]) -> Result<usize, SessionError> {
        let mut room = WRITE;
        for chunk in chunks {
            let part = chunk.get(..room.min(chunk.len())).unwrap_or_default();
            if !part.is_empty() {
                let written = self.tls.writer().write(part)?;
                room -= written;
                chunk.advance(written);
            }
        }
        Ok(WRITE - room)
    }

    /// Nothing more is written. To be flushed.
    pub(super) fn finish(&mut self) {
        self.tls.send_close_notify();
    }

    /// From now on the end of the pipe is an abort.
    pub(super) fn set_abort(&self) {
        self.pipe.set_abort();
    }

    /// Moves what was encrypted to the pipe.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SessionError>> {
        let mut out = Out { pipe: &mut *self.pipe, cx };
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut out) {
                Ok(0) => return Poll::Ready(Err(SessionError::Truncated)),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Closes the pipe for writing, when all was flushed.
    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SessionError>> {
        ready!(self.poll_flush(cx))?;
        Pin::new(&mut *self.pipe).poll_shutdown(cx).map_err(Into::into)
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<Filled, SessionError>> {
        if self.closed {
            return Poll::Ready(Ok(Filled::Closed));
        }
        if self.exhausted {
            return Poll::Ready(Ok(Filled::End));
        }
        // Taken out, because a pipe may itself be a stream of a session.
        let mut scratch = SCRATCH.take();
        scratch.resize(READ, 0);
        let mut read = ReadBuf::new(&mut scratch);
        let result = match Pin::new(&mut *self.pipe).poll_read(cx, &mut read) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(error)) => Poll::Ready(Err(error.into())),
            Poll::Ready(Ok(())) => Poll::Ready(self.decrypt(read.filled())),
        };
        SCRATCH.set(scratch);
        result
    }

    fn decrypt(&mut self, mut input: &[u8]) -> Result<Filled, SessionError> {
        if input.is_empty() {
            self.exhausted = true;
            return Ok(Filled::End);
        }
        let mut plain = Vec::new();
        while !input.is_empty() && !self.closed {
            self.tls.read_tls(&mut input)?;
            let state = match self.tls.process_new_packets() {
                Ok(state) => state,
                Err(error) => {
                    // The alert, if it can go at once.
                    let mut cx = Context::from_waker(std::task::Waker::noop());
                    let _told = self.poll_flush(&mut cx);
                    self.exhausted = true;
                    return Err(error.into());
                }
            };
            self.closed = state.peer_has_closed();
            let mut left = state.plaintext_bytes_to_read();
            while left > 0 {
                let mut reader = self.tls.reader();
                let chunk = reader.fill_buf()?;
                let length = chunk.len();
                if plain.is_empty() {
                    plain.reserve_exact(left.max(length).max(input.len()));
                }
                plain.extend_from_slice(chunk);
                reader.consume(length);
                left = left.saturating_sub(length.max(1));
            }
        }
        let filled = if plain.is_empty() && self.closed { Filled::Closed } else { Filled::Some };
        self.plain = plain.into();
        Ok(filled)
    }
}

/// What a look at the pipe gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Filled {
    /// Bytes, if not of data then of the handshake.
    Some,
    /// The end in order.
    Closed,
    /// The end, however it came.
    End,
}

/// A pipe as rustls writes to it.
struct Out<'a, 'b> {
    pipe: &'a mut dyn Pipe,
    cx: &'a mut Context<'b>,
}

impl Out<'_, '_> {
    fn done(poll: Poll<io::Result<usize>>) -> io::Result<usize> {
        match poll {
            Poll::Ready(result) => result,
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

impl io::Write for Out<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Self::done(Pin::new(&mut *self.pipe).poll_write(self.cx, bytes))
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        Self::done(Pin::new(&mut *self.pipe).poll_write_vectored(self.cx, slices))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

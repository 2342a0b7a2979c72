//! Streams of a connection, as the traits of [`crate::transport`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn_proto::{FinishError, ReadError, ReadableError, StreamId, VarInt, WriteError};
use tokio::runtime::Handle;

use super::drive::{Conn, For, State};
use crate::code::ResetCode;
use crate::transport::{Halves, RecvStream, SendStream, StreamError};

/// Both halves of a new stream.
pub(super) fn halves(conn: &Arc<Conn>, id: StreamId) -> Halves {
    conn.halves_made();
    let send = QuicSend { conn: Arc::clone(conn), id, rate: Rate::default(), is_set: AtomicBool::new(false) };
    let recv = QuicRecv { conn: Arc::clone(conn), id, end: None };
    (Box::new(send), Box::new(recv))
}

struct QuicSend {
    conn: Arc<Conn>,
    id: StreamId,
    rate: Rate,
    /// Somebody has set its priority.
    is_set: AtomicBool,
}

/// Streams that send little go before those that send much: whoever waits for an answer must not wait for a download.
#[derive(Default)]
struct Rate {
    /// Begin of the span in which bytes are counted.
    since: Option<Instant>,
    bytes: usize,
    is_bulk: bool,
}

/// A stream that sends more than this within the span goes last.
const BULK: usize = 64 << 10;
const SPAN: Duration = Duration::from_millis(100);
/// The priority of streams that send little; it is 0 for all others.
const FIRST: i32 = 1;

impl Rate {
    /// Counts bytes that were written, and says the priority that the stream has from now on if it is another one.
    fn count(&mut self, bytes: usize, now: Instant) -> Option<i32> {
        let is_new = self.since.is_none();
        if now.duration_since(*self.since.get_or_insert(now)) > SPAN {
            (self.since, self.bytes) = (Some(now), 0);
        }
        self.bytes += bytes;
        let was_bulk = std::mem::replace(&mut self.is_bulk, self.bytes > BULK);
        (is_new || was_bulk != self.is_bulk).then_some(if self.is_bulk { 0 } else { FIRST })
    }
}

impl SendStream for QuicSend {
    fn poll_write(&mut self, cx: &mut Context<'_>, chunks: &mut [Bytes]) -> Poll<Result<usize, StreamError>> {
        let mut state = self.conn.lock();
        if state.error.is_some() {
            return Poll::Ready(Err(StreamError::LinkLost));
        }
        let mut stream = state.inner.send_stream(self.id);
        match stream.write_chunks(chunks) {
            Ok(written) => {
                let priority = self.rate.count(written.bytes, Instant::now());
                if let Some(priority) = priority.filter(|_| !self.is_set.load(Ordering::Relaxed)) {
                    stream.set_priority(priority).ok();
                }
                if !self.rate.is_bulk {
                    state.again.wrote(written.bytes);
                }
                state.wake_driver();
                Poll::Ready(Ok(written.bytes))
            }
            Err(WriteError::Blocked) => {
                state.waiters.wait(self.id, For::Write, cx);
                Poll::Pending
            }
            Err(WriteError::Stopped(code)) => Poll::Ready(Err(StreamError::Reset(reset_code(code)))),
            Err(WriteError::ClosedStream) => Poll::Ready(Err(StreamError::Closed)),
        }
    }

    fn poll_stopped(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<ResetCode>, StreamError>> {
        let mut state = self.conn.lock();
        match state.inner.send_stream(self.id).stopped() {
            // All was acknowledged.
            Err(_) => Poll::Ready(Ok(None)),
            Ok(Some(code)) => Poll::Ready(Ok(Some(reset_code(code)))),
            Ok(None) if state.error.is_some() => Poll::Ready(Err(StreamError::LinkLost)),
            Ok(None) => {
                state.waiters.wait(self.id, For::Stopped, cx);
                Poll::Pending
            }
        }
    }

    fn finish(&mut self) {
        let mut state = self.conn.lock();
        // Fails only if it was ended before.
        if state.inner.send_stream(self.id).finish().is_ok() {
            state.wake_driver();
        }
    }

    fn reset(&mut self, code: ResetCode) {
        let mut state = self.conn.lock();
        if state.inner.send_stream(self.id).reset(wire_code(code)).is_ok() {
            state.wake_driver();
        }
    }

    fn set_priority(&self, priority: i32) {
        self.is_set.store(true, Ordering::Relaxed);
        self.conn.lock().inner.send_stream(self.id).set_priority(priority).ok();
    }

    fn home(&self) -> Option<Handle> {
        Some(self.conn.home.clone())
    }
}

impl Drop for QuicSend {
    fn drop(&mut self) {
        self.conn.half_dropped();
        let mut state = self.conn.lock();
        state.waiters.forget(self.id, &[For::Write, For::Stopped]);
        // What was not cut ends in order, and what the other side stopped is cut, or the connection would never forget it.
        match state.inner.send_stream(self.id).finish() {
            Err(FinishError::ClosedStream) => {}
            Err(FinishError::Stopped(code)) => {
                state.inner.send_stream(self.id).reset(code).ok();
                state.wake_driver();
            }
            Ok(()) => state.wake_driver(),
        }
    }
}

struct QuicRecv {
    conn: Arc<Conn>,
    id: StreamId,
    /// Once seen, it stays: the connection forgets the stream.
    end: Option<End>,
}

/// How a stream ended.
#[derive(Clone, Copy)]
enum End {
    Finished,
    Reset(ResetCode),
    /// On this side.
    Stopped,
}

impl End {
    fn result<T>(self) -> Result<Option<T>, StreamError> {
        match self {
            Self::Finished => Ok(None),
            Self::Reset(code) => Err(StreamError::Reset(code)),
            Self::Stopped => Err(StreamError::Closed),
        }
    }
}

impl QuicRecv {
    /// Reads by `next` until it has enough (`None`), and tells how it was.
    fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        take: impl FnOnce(&mut quinn_proto::Chunks<'_>) -> (Option<T>, Result<bool, ReadError>),
    ) -> Poll<Result<Option<T>, StreamError>> {
        if let Some(end) = self.end {
            return Poll::Ready(end.result());
        }
        let mut state = self.conn.lock();
        let State { inner, waiters, error, .. } = &mut *state;
        let mut stream = inner.recv_stream(self.id);
        let mut chunks = match stream.read(true) {
            Ok(chunks) => chunks,
            Err(ReadableError::ClosedStream | ReadableError::IllegalOrderedRead) => {
                return Poll::Ready(Err(StreamError::Closed));
            }
        };
        let (taken, goes_on) = take(&mut chunks);
        let is_to_tell = chunks.finalize().should_transmit();
        let poll = match (taken, goes_on) {
            (taken, Ok(false)) => {
                self.end = Some(End::Finished);
                Poll::Ready(Ok(taken))
            }
            (taken, Err(ReadError::Reset(code))) => {
                let code = reset_code(code);
                self.end = Some(End::Reset(code));
                Poll::Ready(if taken.is_some() { Ok(taken) } else { Err(StreamError::Reset(code)) })
            }
            (Some(taken), Ok(true) | Err(ReadError::Blocked)) => Poll::Ready(Ok(Some(taken))),
            (None, Ok(true) | Err(ReadError::Blocked)) if error.is_some() => Poll::Ready(Err(StreamError::LinkLost)),
            (None, Ok(true) | Err(ReadError::Blocked)) => {
                waiters.wait(self.id, For::Read, cx);
                Poll::Pending
            }
        };
        if self.end.is_some() {
            waiters.forget(self.id, &[For::Read, For::Reset]);
        }
        if is_to_tell {
            state.wake_driver();
        }
        poll
    }
}

impl RecvStream for QuicRecv {
    fn poll_read(&mut self, cx: &mut Context<'_>, max: usize) -> Poll<Result<Option<Bytes>, StreamError>> {
        self.poll(cx, |chunks| match chunks.next(max) {
            Ok(Some(chunk)) => (Some(chunk.bytes), Ok(true)),
            Ok(None) => (None, Ok(false)),
            Err(error) => (None, Err(error)),
        })
    }

    fn poll_read_chunks(
        &mut self,
        cx: &mut Context<'_>,
        chunks: &mut [Bytes],
    ) -> Poll<Result<Option<usize>, StreamError>> {
        if chunks.is_empty() {
            return Poll::Ready(Ok(Some(0)));
        }
        self.poll(cx, |source| {
            let mut count = 0;
            for place in chunks.iter_mut() {
                match source.next(usize::MAX) {
                    Ok(Some(chunk)) => *place = chunk.bytes,
                    Ok(None) => return ((count > 0).then_some(count), Ok(false)),
                    Err(error) => return ((count > 0).then_some(count), Err(error)),
                }
                count += 1;
            }
            (Some(count), Ok(true))
        })
    }

    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        match self.end {
            Some(End::Reset(code)) => return Poll::Ready(StreamError::Reset(code)),
            Some(End::Finished | End::Stopped) => return Poll::Pending,
            None => {}
        }
        let mut state = self.conn.lock();
        match state.inner.recv_stream(self.id).received_reset() {
            Ok(Some(code)) => {
                let code = reset_code(code);
                self.end = Some(End::Reset(code));
                state.waiters.forget(self.id, &[For::Read, For::Reset]);
                // The other side may open another one in its place.
                state.wake_driver();
                Poll::Ready(StreamError::Reset(code))
            }
            Ok(None) if state.error.is_some() => Poll::Ready(StreamError::LinkLost),
            Ok(None) => {
                state.waiters.wait(self.id, For::Reset, cx);
                Poll::Pending
            }
            // All has arrived: nothing can cut it any more.
            Err(_) => Poll::Pending,
        }
    }

    fn stop(&mut self, code: ResetCode) {
        self.end_here(wire_code(code));
    }
}

impl QuicRecv {
    fn end_here(&mut self, code: VarInt) {
        let mut state = self.conn.lock();
        state.waiters.forget(self.id, &[For::Read, For::Reset]);
        if self.end.is_none() {
            self.end = Some(End::Stopped);
            state.inner.recv_stream(self.id).stop(code).ok();
            state.wake_driver();
        }
    }
}

impl Drop for QuicRecv {
    fn drop(&mut self) {
        self.conn.half_dropped();
        self.end_here(VarInt::from_u32(0));
    }
}

fn wire_code(code: ResetCode) -> VarInt {
    VarInt::from_u64(code.to_wire()).unwrap_or(VarInt::MAX)
}

fn reset_code(code: VarInt) -> ResetCode {
    ResetCode::from_wire(code.into_inner())
}

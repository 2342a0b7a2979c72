//! Streams as their users see them: two halves that move whole chunks, ended by FIN or by a
//! [`ResetCode`], each direction on its own.
//!
//! The reply direction begins with one status byte, `0x01`: the endpoint was reached. What fails before
//! that is a reset. [`RecvHalf`] takes the byte off; nobody else sees it.

mod accepted;
mod reader;
mod shared;

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Sleep;

pub use crate::transport::StreamError;
pub(crate) use accepted::admit;
pub use accepted::{AcceptedStream, LinkInfo, StreamHandler};
pub(crate) use shared::{Direction, Stall, StreamShared};

use crate::code::ResetCode;
use crate::link::{Awaited, Link};
use crate::transport::SendStream;

/// First byte of the reply direction.
pub(crate) const STATUS_ACCEPTED: u8 = 0x01;

/// How long it waits for an answer that it can go with: a tick of the runtime's clock. Longer would be felt by who sends more
/// than is kept until the endpoint was reached.
const HOLD: Duration = Duration::from_millis(1);

/// A stream inside a link.
pub struct TunnelStream {
    /// Towards the other side.
    pub send: SendHalf,
    /// From the other side.
    pub recv: RecvHalf,
}

impl TunnelStream {
    /// Both halves, to be moved into two tasks.
    #[must_use]
    pub fn split(self) -> (SendHalf, RecvHalf) {
        (self.send, self.recv)
    }

    /// The link that carries it.
    #[must_use]
    pub fn link(&self) -> Link {
        self.send.shared.link()
    }

    /// Waits until the other side has reached the endpoint. At once on the accepting side.
    ///
    /// # Errors
    /// [`StreamError::Reset`] with the reason of the other side.
    pub async fn accepted(&mut self) -> Result<(), StreamError> {
        self.recv.accepted().await
    }
}

/// The writing half. Dropped before [`SendHalf::finish`], it resets its direction with `CANCELLED`, so that
/// a part is never taken for the whole.
pub struct SendHalf {
    inner: Option<Box<dyn SendStream>>,
    shared: Arc<StreamShared>,
    ended: bool,
    /// It ended in order; whether a drain waits until the other side has all of it.
    finished: Option<Awaited>,
    /// The status is not said yet, and will be with what is written first, or when this is over.
    held: Option<Pin<Box<Sleep>>>,
}

impl SendHalf {
    pub(crate) fn new(inner: Box<dyn SendStream>, shared: Arc<StreamShared>) -> Self {
        Self { inner: Some(inner), shared, ended: false, finished: None, held: None }
    }

    /// Has the status wait for what is written first: it then takes no packet of its own.
    fn hold_status(&mut self) {
        self.held = Some(Box::pin(tokio::time::sleep(HOLD)));
    }

    fn poll_status(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        if self.held.is_none() {
            return Poll::Ready(Ok(()));
        }
        let status = &mut [Bytes::from_static(&[STATUS_ACCEPTED])];
        let written = match &mut self.inner {
            Some(inner) => ready!(inner.poll_write(cx, status)),
            None => Err(StreamError::Closed),
        };
        self.held = None;
        self.shared.sent(written?);
        Poll::Ready(Ok(()))
    }

    /// Says the status that [`AcceptedStream::accept_soon`] keeps back, once it was kept for long enough. Whatever goes wrong
    /// shows in the next write.
    pub fn poll_held(&mut self, cx: &mut Context<'_>) {
        let is_over = self.held.as_mut().is_some_and(|held| held.as_mut().poll(cx).is_ready());
        if is_over && !self.ended {
            let _shows_later = self.poll_status(cx);
        }
    }

    /// Writes all of `chunk` without copying it. Not cancel-safe: a part may have been written.
    ///
    /// # Errors
    /// [`StreamError`]: the other side stopped reading, or the link is gone.
    pub async fn write(&mut self, chunk: Bytes) -> Result<(), StreamError> {
        self.write_chunks(&mut [chunk]).await
    }

    /// Writes all of `chunks` in order without copying them, and leaves each empty. When dropped half-way,
    /// what was not written is still in `chunks`.
    ///
    /// # Errors
    /// As [`SendHalf::write`].
    pub async fn write_chunks(&mut self, chunks: &mut [Bytes]) -> Result<(), StreamError> {
        let mut rest = chunks;
        loop {
            let empty = rest.iter().take_while(|chunk| chunk.is_empty()).count();
            rest = rest.split_at_mut(empty).1;
            if rest.is_empty() {
                return Ok(());
            }
            poll_fn(|cx| self.poll_write(cx, rest)).await?;
        }
    }

    /// Writes as much of `chunks` as there is room for, and takes it off their fronts.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, chunks: &mut [Bytes]) -> Poll<Result<usize, StreamError>> {
        if self.ended {
            return Poll::Ready(Err(StreamError::Closed));
        }
        ready!(self.poll_status(cx))?;
        let Some(inner) = self.inner.as_mut() else { return Poll::Ready(Err(StreamError::Closed)) };
        let written = ready!(inner.poll_write(cx, chunks))?;
        self.shared.sent(written);
        Poll::Ready(Ok(written))
    }

    /// Bytes of streams with a higher priority go first on their link; 0 unless set.
    pub fn set_priority(&self, priority: i32) {
        self.inner.iter().for_each(|inner| inner.set_priority(priority));
    }

    /// Ends this direction in order; the other direction goes on.
    pub fn finish(&mut self) {
        self.finish_as(Awaited::ByDrains);
    }

    /// As [`SendHalf::finish`], for what is worth nothing to a peer that is gone: a drain does not wait until the other
    /// side has got it.
    pub fn finish_unawaited(&mut self) {
        self.finish_as(Awaited::ByNobody);
    }

    fn finish_as(&mut self, awaited: Awaited) {
        if !self.ended && self.poll_status(&mut Context::from_waker(Waker::noop())).is_pending() {
            // The other side admits not even one byte.
            self.reset(ResetCode::IdleTimeout);
        }
        if !self.ended {
            (self.ended, self.finished) = (true, Some(awaited));
            self.inner.iter_mut().for_each(|inner| inner.finish());
        }
    }

    /// Cuts this direction: what the other side has not read yet may be lost.
    pub fn reset(&mut self, code: ResetCode) {
        if !self.ended {
            self.ended = true;
            self.inner.iter_mut().for_each(|inner| inner.reset(code));
            self.shared.cut(code);
        }
    }

    /// Waits until the other side stops reading (`Some`), or has got everything after [`SendHalf::finish`]
    /// (`None`).
    ///
    /// # Errors
    /// [`StreamError::LinkLost`].
    pub async fn stopped(&mut self) -> Result<Option<ResetCode>, StreamError> {
        poll_fn(|cx| match &mut self.inner {
            Some(inner) => inner.poll_stopped(cx),
            None => Poll::Ready(Err(StreamError::Closed)),
        })
        .await
    }
}

impl Drop for SendHalf {
    fn drop(&mut self) {
        self.reset(ResetCode::Cancelled);
        if let (Some(inner), Some(awaited)) = (self.inner.take(), self.finished) {
            self.shared.finished(inner, awaited);
        }
    }
}

/// The reading half. Dropped before its end, it tells the other side to stop with `CANCELLED`.
pub struct RecvHalf {
    shared: Arc<StreamShared>,
    /// The status byte is still to come.
    status: bool,
    /// How it ended; it stays so.
    ended: Option<Result<(), StreamError>>,
}

impl RecvHalf {
    /// `status`: a status byte comes before the data.
    pub(crate) fn new(shared: Arc<StreamShared>, status: bool) -> Self {
        Self { shared, status, ended: None }
    }

    /// Waits until the other side has reached the endpoint. Cancel-safe.
    ///
    /// # Errors
    /// [`StreamError::Reset`] with the reason of the other side.
    pub async fn accepted(&mut self) -> Result<(), StreamError> {
        poll_fn(|cx| self.poll_accepted(cx)).await
    }

    /// As [`RecvHalf::accepted`].
    pub fn poll_accepted(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        if !self.status {
            return Poll::Ready(Ok(()));
        }
        if let Some(ended) = self.ended {
            return Poll::Ready(ended);
        }
        let error = match ready!(self.shared.poll_read(cx, 1)) {
            Ok(Some(byte)) if *byte == [STATUS_ACCEPTED] => {
                self.status = false;
                return Poll::Ready(Ok(()));
            }
            Ok(Some(_)) => {
                self.stop(ResetCode::Internal);
                StreamError::Reset(ResetCode::Internal)
            }
            // The other side ended the reply in order without a status: it gave up.
            Ok(None) => StreamError::Reset(ResetCode::Cancelled),
            Err(error) => error,
        };
        self.ended = Some(Err(error));
        Poll::Ready(Err(error))
    }

    /// The next chunk in order, as it arrived; `None` when the other side finished. Cancel-safe.
    ///
    /// # Errors
    /// [`StreamError`]: the other side cut the stream, or the link is gone.
    pub async fn read(&mut self) -> Result<Option<Bytes>, StreamError> {
        poll_fn(|cx| self.poll_read(cx)).await
    }

    /// As [`RecvHalf::read`].
    pub fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamError>> {
        ready!(self.poll_accepted(cx))?;
        if let Some(ended) = self.ended {
            return Poll::Ready(ended.map(|()| None));
        }
        let result = ready!(self.shared.poll_read(cx, usize::MAX));
        Poll::Ready(self.note(result))
    }

    /// Fills `chunks` from the front with what has arrived and returns how many were filled: one system
    /// call can then write them all. `None` when the other side finished. Cancel-safe.
    ///
    /// # Errors
    /// As [`RecvHalf::read`].
    pub async fn read_chunks(&mut self, chunks: &mut [Bytes]) -> Result<Option<usize>, StreamError> {
        poll_fn(|cx| self.poll_read_chunks(cx, chunks)).await
    }

    /// As [`RecvHalf::read_chunks`].
    pub fn poll_read_chunks(
        &mut self,
        cx: &mut Context<'_>,
        chunks: &mut [Bytes],
    ) -> Poll<Result<Option<usize>, StreamError>> {
        ready!(self.poll_accepted(cx))?;
        if let Some(ended) = self.ended {
            return Poll::Ready(ended.map(|()| None));
        }
        let result = ready!(self.shared.poll_read_chunks(cx, chunks));
        Poll::Ready(self.note(result))
    }

    fn note<T>(&mut self, result: Result<Option<T>, StreamError>) -> Result<Option<T>, StreamError> {
        self.ended = match &result {
            Ok(Some(_)) => None,
            Ok(None) => Some(Ok(())),
            Err(error) => Some(Err(*error)),
        };
        result
    }

    /// Resolves when the stream is cut from outside, by the other side or by a limit, while nothing is
    /// read here: to be awaited beside a slow write to what is behind the stream. Cancel-safe.
    pub async fn aborted(&mut self) -> StreamError {
        poll_fn(|cx| self.poll_aborted(cx)).await
    }

    /// As [`RecvHalf::aborted`].
    pub fn poll_aborted(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        self.shared.poll_abort(cx)
    }

    /// Drops what is unread and tells the other side to send no more; the other direction goes on.
    pub fn stop(&mut self, code: ResetCode) {
        if self.ended.is_none() {
            self.ended = Some(Err(StreamError::Closed));
            self.shared.stop(code);
        }
    }
}

impl Drop for RecvHalf {
    fn drop(&mut self) {
        self.stop(ResetCode::Cancelled);
    }
}

//! One direction of a stream in memory.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use tokio::time::{Instant, Sleep};

use super::{Shared, lock};
use crate::code::ResetCode;
use crate::transport::{RecvStream, SendStream, StreamError};

/// Unread bytes that a direction may hold.
const WINDOW: usize = 256 << 10;

/// What is on its way. Each item carries the time when it arrives.
#[derive(Default)]
pub(super) struct Pipe {
    chunks: VecDeque<(Instant, Bytes)>,
    bytes: usize,
    finished: Option<Instant>,
    reset: Option<(Instant, ResetCode)>,
    stopped: Option<(Instant, ResetCode)>,
    /// The reader has taken the end.
    drained: bool,
    wakers: Vec<Waker>,
}

impl Pipe {
    pub(super) fn wake(&mut self) {
        self.wakers.drain(..).for_each(Waker::wake);
    }

    fn wait(&mut self, cx: &Context<'_>) {
        if !self.wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
            self.wakers.push(cx.waker().clone());
        }
    }
}

/// One end of a direction: the writer's or the reader's.
pub(super) struct PipeEnd {
    pipe: Arc<Mutex<Pipe>>,
    connection: Arc<Shared>,
    arrival: Option<Pin<Box<Sleep>>>,
}

impl PipeEnd {
    pub(super) fn new(pipe: Arc<Mutex<Pipe>>, connection: Arc<Shared>) -> Self {
        Self { pipe, connection, arrival: None }
    }

    fn arrives(&self) -> Instant {
        Instant::now() + self.connection.network.delay
    }

    /// Ready when what is due `at` has arrived: the time has come and the network is whole.
    fn poll_arrival(&mut self, at: Instant, cx: &mut Context<'_>) -> Poll<()> {
        if Instant::now() < at {
            let arrival = self.arrival.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
            arrival.as_mut().reset(at);
            ready!(arrival.as_mut().poll(cx));
        }
        if self.connection.is_cut() {
            lock(&self.pipe).wait(cx);
            // Healed in between: nobody would wake us.
            return if self.connection.is_cut() { Poll::Pending } else { Poll::Ready(()) };
        }
        Poll::Ready(())
    }

    /// Pending until something changes, unless the connection has ended.
    fn wait<T>(&self, cx: &Context<'_>) -> Poll<Result<T, StreamError>> {
        lock(&self.pipe).wait(cx);
        if self.connection.is_ended() { Poll::Ready(Err(StreamError::LinkLost)) } else { Poll::Pending }
    }
}

impl SendStream for PipeEnd {
    fn poll_write(&mut self, cx: &mut Context<'_>, chunks: &mut [Bytes]) -> Poll<Result<usize, StreamError>> {
        if self.connection.is_ended() {
            return Poll::Ready(Err(StreamError::LinkLost));
        }
        let stopped = lock(&self.pipe).stopped;
        if let Some((at, code)) = stopped
            && self.poll_arrival(at, cx).is_ready()
        {
            return Poll::Ready(Err(StreamError::Reset(code)));
        }
        let arrives = self.arrives();
        let mut pipe = lock(&self.pipe);
        if pipe.finished.is_some() || pipe.reset.is_some() {
            return Poll::Ready(Err(StreamError::Closed));
        }
        let mut written = 0;
        for chunk in chunks {
            let part = chunk.split_to(chunk.len().min(WINDOW.saturating_sub(pipe.bytes)));
            if !part.is_empty() {
                (written, pipe.bytes) = (written + part.len(), pipe.bytes + part.len());
                pipe.chunks.push_back((arrives, part));
            }
        }
        if written > 0 {
            pipe.wake();
            return Poll::Ready(Ok(written));
        }
        drop(pipe);
        self.wait(cx)
    }

    fn poll_stopped(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<ResetCode>, StreamError>> {
        let (stopped, drained) = {
            let pipe = lock(&self.pipe);
            (pipe.stopped, pipe.drained)
        };
        if let Some((at, code)) = stopped {
            ready!(self.poll_arrival(at, cx));
            return Poll::Ready(Ok(Some(code)));
        }
        if drained { Poll::Ready(Ok(None)) } else { self.wait(cx) }
    }

    fn finish(&mut self) {
        let arrives = self.arrives();
        let mut pipe = lock(&self.pipe);
        pipe.finished.get_or_insert(arrives);
        pipe.wake();
    }

    fn reset(&mut self, code: ResetCode) {
        let arrives = self.arrives();
        let mut pipe = lock(&self.pipe);
        pipe.reset.get_or_insert((arrives, code));
        pipe.wake();
    }

    fn set_priority(&self, _priority: i32) {}
}

impl RecvStream for PipeEnd {
    fn poll_read(&mut self, cx: &mut Context<'_>, max: usize) -> Poll<Result<Option<Bytes>, StreamError>> {
        let (reset, first, finished) = {
            let pipe = lock(&self.pipe);
            (pipe.reset, pipe.chunks.front().map(|(at, _)| *at), pipe.finished)
        };
        if let Some((at, code)) = reset
            && self.poll_arrival(at, cx).is_ready()
        {
            return Poll::Ready(Err(StreamError::Reset(code)));
        }
        let Some(at) = first.or(finished) else { return self.wait(cx) };
        if self.connection.is_ended() {
            return Poll::Ready(Err(StreamError::LinkLost));
        }
        ready!(self.poll_arrival(at, cx));
        let mut pipe = lock(&self.pipe);
        let chunk = pipe.chunks.front_mut().map(|(_, chunk)| chunk.split_to(chunk.len().min(max)));
        if pipe.chunks.front().is_some_and(|(_, rest)| rest.is_empty()) {
            pipe.chunks.pop_front();
        }
        pipe.bytes -= chunk.as_ref().map_or(0, Bytes::len);
        pipe.drained |= chunk.is_none();
        pipe.wake();
        Poll::Ready(Ok(chunk))
    }

    fn poll_read_chunks(
        &mut self,
        cx: &mut Context<'_>,
        chunks: &mut [Bytes],
    ) -> Poll<Result<Option<usize>, StreamError>> {
        let mut count = 0;
        for slot in chunks {
            match RecvStream::poll_read(self, cx, usize::MAX) {
                Poll::Ready(Ok(Some(chunk))) => *slot = chunk,
                other if count == 0 => return other.map_ok(|_| None),
                Poll::Ready(_) | Poll::Pending => break,
            }
            count += 1;
        }
        Poll::Ready(Ok(Some(count)))
    }

    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        let reset = lock(&self.pipe).reset;
        if let Some((at, code)) = reset {
            ready!(self.poll_arrival(at, cx));
            return Poll::Ready(StreamError::Reset(code));
        }
        match self.wait::<()>(cx) {
            Poll::Ready(_) => Poll::Ready(StreamError::LinkLost),
            Poll::Pending => Poll::Pending,
        }
    }

    fn stop(&mut self, code: ResetCode) {
        let arrives = self.arrives();
        let mut pipe = lock(&self.pipe);
        pipe.stopped.get_or_insert((arrives, code));
        (pipe.bytes, pipe.drained) = (0, true);
        pipe.chunks.clear();
        pipe.wake();
    }
}

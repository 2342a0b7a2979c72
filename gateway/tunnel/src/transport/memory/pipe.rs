//! One direction of a stream in memory.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use tokio::time::{Instant, Sleep};

use super::{Shared, lock};
use crate::code::ResetCode;
use crate::transport::{RecvStream, SendStream, StreamError};

/// Unread bytes that a direction may hold.
const WINDOW: usize = 256 << 10;
/// Bytes of one turn, while others wait for theirs.
const TURN: usize = 4 << 10;

/// What one end of a connection may leave unread, all of its streams together, and what it does. Streams that want more
/// than there is get it in turns, as packets do.
pub(super) struct Credit {
    window: AtomicU64,
    held: AtomicU64,
    waiting: Mutex<Waiting>,
}

/// Writers that wait for their turn.
#[derive(Default)]
struct Waiting {
    tickets: u64,
    queue: BTreeMap<u64, Waker>,
}

impl Credit {
    pub(super) fn new(window: u64) -> Arc<Self> {
        Arc::new(Self { window: AtomicU64::new(window), held: AtomicU64::new(0), waiting: Mutex::default() })
    }

    pub(super) fn set_window(&self, window: u64) {
        self.window.store(window, Ordering::Relaxed);
        self.call(&lock(&self.waiting));
    }

    fn room(&self) -> usize {
        let room = self.window.load(Ordering::Relaxed).saturating_sub(self.held.load(Ordering::Relaxed));
        usize::try_from(room).unwrap_or(usize::MAX)
    }

    /// Whose turn it is looks again if there is room.
    fn call(&self, waiting: &Waiting) {
        if self.room() > 0 {
            waiting.queue.first_key_value().into_iter().for_each(|(_, waker)| waker.wake_by_ref());
        }
    }

    /// Takes up to `wanted`; 0: not yet, and `ticket` is its place in the queue.
    fn take(&self, ticket: &mut Option<u64>, wanted: usize, cx: &Context<'_>) -> usize {
        let mut waiting = lock(&self.waiting);
        let room = self.room();
        let turn = waiting.queue.first_key_value().is_none_or(|(first, _)| Some(*first) == *ticket);
        if !turn || room == 0 {
            let tickets = &mut waiting.tickets;
            let place = *ticket.get_or_insert_with(|| {
                *tickets += 1;
                *tickets
            });
            waiting.queue.insert(place, cx.waker().clone());
            return 0;
        }
        ticket.take().and_then(|ticket| waiting.queue.remove(&ticket));
        let most = if waiting.queue.is_empty() { usize::MAX } else { TURN };
        let taken = wanted.min(room).min(most);
        self.held.fetch_add(taken as u64, Ordering::Relaxed);
        self.call(&waiting);
        taken
    }

    fn give(&self, bytes: usize) {
        self.held.fetch_sub(bytes as u64, Ordering::Relaxed);
        self.call(&lock(&self.waiting));
    }

    /// Gives a place in the queue up. Whoever had it may queue again.
    fn leave(&self, ticket: &mut Option<u64>) {
        let Some(ticket) = ticket.take() else { return };
        let mut waiting = lock(&self.waiting);
        waiting.queue.remove(&ticket).into_iter().for_each(Waker::wake);
        self.call(&waiting);
    }
}

/// What is on its way. Each item carries the time when it arrives.
pub(super) struct Pipe {
    credit: Arc<Credit>,
    /// The writer's place in the queue for it.
    ticket: Option<u64>,
    chunks: VecDeque<(Instant, Bytes)>,
    bytes: usize,
    /// How many of them the credit pays for: none that nobody will read.
    charged: usize,
    finished: Option<Instant>,
    reset: Option<(Instant, ResetCode)>,
    stopped: Option<(Instant, ResetCode)>,
    /// The reader has taken the end.
    drained: bool,
    wakers: Vec<Waker>,
}

impl Pipe {
    /// `credit`: of who reads it.
    pub(super) fn new(credit: Arc<Credit>) -> Self {
        Self {
            credit,
            ticket: None,
            chunks: VecDeque::new(),
            bytes: 0,
            charged: 0,
            finished: None,
            reset: None,
            stopped: None,
            drained: false,
            wakers: Vec::new(),
        }
    }

    /// Nobody will read what is unread.
    fn discard(&mut self) {
        self.chunks.clear();
        self.bytes = 0;
        self.credit.give(std::mem::take(&mut self.charged));
    }

    /// Room for up to so many bytes, 0 if there is none yet.
    fn take(&mut self, wanted: usize, cx: &Context<'_>) -> usize {
        if self.stopped.is_some() {
            self.bytes += wanted;
            return wanted;
        }
        let taken = self.credit.take(&mut self.ticket, wanted, cx);
        (self.bytes, self.charged) = (self.bytes + taken, self.charged + taken);
        taken
    }

    /// Nobody writes at the moment.
    fn leave(&mut self) {
        self.credit.leave(&mut self.ticket);
    }

    pub(super) fn wake(&mut self) {
        self.wakers.drain(..).for_each(Waker::wake);
    }

    fn wait(&mut self, cx: &Context<'_>) {
        if !self.wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
            self.wakers.push(cx.waker().clone());
        }
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.discard();
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

impl Drop for PipeEnd {
    fn drop(&mut self) {
        lock(&self.pipe).leave();
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
            lock(&self.pipe).leave();
            return Poll::Ready(Err(StreamError::Reset(code)));
        }
        let arrives = self.arrives();
        let mut pipe = lock(&self.pipe);
        if pipe.finished.is_some() || pipe.reset.is_some() {
            pipe.leave();
            return Poll::Ready(Err(StreamError::Closed));
        }
        let wanted = chunks.iter().map(Bytes::len).sum::<usize>().min(WINDOW.saturating_sub(pipe.bytes));
        let granted = if wanted > 0 { pipe.take(wanted, cx) } else { 0 };
        let (mut left, unread) = (granted, pipe.stopped.is_none());
        for chunk in chunks.iter_mut().filter(|chunk| !chunk.is_empty()) {
            let part = chunk.split_to(chunk.len().min(left));
            left -= part.len();
            if !part.is_empty() && unread {
                pipe.chunks.push_back((arrives, part));
            }
        }
        if granted > 0 {
            pipe.wake();
            return Poll::Ready(Ok(granted));
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
            lock(&self.pipe).discard();
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
        let length = chunk.as_ref().map_or(0, Bytes::len);
        (pipe.bytes, pipe.charged) = (pipe.bytes - length, pipe.charged - length);
        pipe.credit.give(length);
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
            lock(&self.pipe).discard();
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
        pipe.drained = true;
        pipe.leave();
        pipe.discard();
        pipe.wake();
    }
}

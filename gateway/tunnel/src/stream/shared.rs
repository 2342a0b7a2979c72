//! What both halves of a stream and the watch over unread bytes share.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;

use super::StreamError;
use super::reader::Reader;
use crate::code::ResetCode;
use crate::link::{Awaited, Link, LinkShared};
use crate::loads::{Load, MUCH};
use crate::transport::{RecvStream, SendStream};

/// Who opened a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// This side.
    Opened,
    /// The other side.
    Served,
}

/// State of one stream, kept as long as one of its halves.
pub(crate) struct StreamShared {
    link: Arc<LinkShared>,
    id: u64,
    direction: Direction,
    /// Where it counts, if it is a connection to a service that was opened here, and what it has moved.
    load: Option<Load>,
    moved: AtomicU64,
    recv: Mutex<Receiver>,
    reader: Arc<Reader>,
    /// A limit cut the stream.
    shed: AtomicBool,
}

struct Receiver {
    inner: Box<dyn RecvStream>,
    /// Taken off the transport to see how much there is, in order.
    stash: VecDeque<Bytes>,
}

/// A stream whose reader does not come back for what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stall {
    /// For how many ticks of its link.
    pub(crate) ticks: u32,
    /// Bytes that it holds, if that is all there is; it may be a whole window otherwise.
    pub(crate) held: Option<u64>,
}

/// Most that is taken off the transport of one stream: what a client may have said before it is known whether anybody
/// listens.
const STASH: u64 = 64 << 10;
/// Most chunks of it: each costs some bytes of its own.
const STASH_CHUNKS: usize = 64;

impl Receiver {
    fn stashed(&self) -> u64 {
        self.stash.iter().map(|chunk| chunk.len() as u64).sum()
    }
}

impl StreamShared {
    pub(crate) fn new(
        link: &Arc<LinkShared>,
        direction: Direction,
        load: Option<Load>,
        inner: Box<dyn RecvStream>,
    ) -> Arc<Self> {
        let shared = Arc::new(Self {
            id: link.next_stream_id(),
            link: Arc::clone(link),
            direction,
            load,
            moved: AtomicU64::new(0),
            recv: Mutex::new(Receiver { inner, stash: VecDeque::new() }),
            reader: Reader::new(Arc::clone(link.pace())),
            shed: AtomicBool::new(false),
        });
        link.register(shared.id, direction, &shared);
        shared
    }

    pub(super) fn link(&self) -> Link {
        Link(Arc::clone(&self.link))
    }

    fn receiver(&self) -> MutexGuard<'_, Receiver> {
        // Nothing panics while the lock is held; if it did, the stream is still consistent.
        self.recv.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn poll_read(&self, cx: &mut Context<'_>, max: usize) -> Poll<Result<Option<Bytes>, StreamError>> {
        self.poll(cx, |receiver, cx| match receiver.stash.pop_front() {
            Some(mut chunk) => {
                if chunk.len() > max {
                    receiver.stash.push_front(chunk.split_off(max));
                }
                Poll::Ready(Ok(Some((chunk.len(), chunk))))
            }
            None => receiver.inner.poll_read(cx, max).map_ok(|chunk| chunk.map(|chunk| (chunk.len(), chunk))),
        })
    }

    pub(super) fn poll_read_chunks(
        &self,
        cx: &mut Context<'_>,
        chunks: &mut [Bytes],
    ) -> Poll<Result<Option<usize>, StreamError>> {
        self.poll(cx, |receiver, cx| {
            if !receiver.stash.is_empty() && !chunks.is_empty() {
                let (mut bytes, mut count) = (0, 0);
                for (slot, chunk) in chunks.iter_mut().zip(std::iter::from_fn(|| receiver.stash.pop_front())) {
                    *slot = chunk;
                    bytes += slot.len();
                    count += 1;
                }
                return Poll::Ready(Ok(Some((bytes, count))));
            }
            let count = ready!(receiver.inner.poll_read_chunks(cx, chunks))?;
            let bytes = |count| chunks.iter().take(count).map(Bytes::len).sum();
            Poll::Ready(Ok(count.map(|count| (bytes(count), count))))
        })
    }

    /// Runs one read and keeps the books: who waits holds nothing up, who took data has to come back.
    fn poll<T>(
        &self,
        cx: &mut Context<'_>,
        read: impl FnOnce(&mut Receiver, &mut Context<'_>) -> Poll<Result<Option<(usize, T)>, StreamError>>,
    ) -> Poll<Result<Option<T>, StreamError>> {
        let mut receiver = self.receiver();
        if self.shed.load(Ordering::Relaxed) {
            return Poll::Ready(Err(StreamError::Reset(ResetCode::Overloaded)));
        }
        let result = read(&mut receiver, cx);
        match &result {
            Poll::Ready(Ok(Some((bytes, _)))) => {
                self.reader.takes();
                self.link.received(*bytes);
                self.moved(*bytes);
            }
            Poll::Pending | Poll::Ready(Ok(None)) => self.reader.waits(),
            Poll::Ready(Err(error)) => {
                self.reader.waits();
                self.note(*error);
            }
        }
        result.map_ok(|read| read.map(|(_, value)| value))
    }

    pub(super) fn poll_abort(&self, cx: &mut Context<'_>) -> Poll<StreamError> {
        self.reader.register_abort(cx.waker());
        let mut receiver = self.receiver();
        if self.shed.load(Ordering::Relaxed) {
            return Poll::Ready(StreamError::Reset(ResetCode::Overloaded));
        }
        let error = ready!(receiver.inner.poll_reset(cx));
        self.note(error);
        Poll::Ready(error)
    }

    pub(super) fn stop(&self, code: ResetCode) {
        let mut receiver = self.receiver();
        receiver.stash = VecDeque::new();
        receiver.inner.stop(code);
        self.reader.waits();
    }

    /// Whether the reader has not come back for at least `at_least` ticks although more is unread. To see how much that
    /// is, up to `room` bytes are taken off the transport. `None`: it holds nothing up.
    pub(crate) fn stalled_for(&self, now: u32, at_least: u32, room: u64) -> Option<Stall> {
        self.reader.away(now, at_least)?;
        let mut receiver = self.receiver();
        // Again under the lock: a reader that waits has its waker registered with the transport, and that
        // one must not be replaced.
        let ticks = self.reader.away(now, at_least)?;
        let waker = Waker::from(Arc::clone(&self.reader));
        let mut cx = Context::from_waker(&waker);
        let mut held = receiver.stashed();
        let most = STASH.min(held.saturating_add(room));
        loop {
            let is_first = receiver.stash.is_empty();
            // One chunk tells whether there is anything at all, which is worth its bytes.
            if !is_first && (held >= most || receiver.stash.len() >= STASH_CHUNKS) {
                return Some(Stall { ticks, held: None });
            }
            if is_first {
                self.reader.presume_empty();
            }
            match receiver.inner.poll_read(&mut cx, usize::MAX) {
                Poll::Ready(Ok(Some(chunk))) => {
                    held += chunk.len() as u64;
                    receiver.stash.push_back(chunk);
                    if is_first {
                        self.reader.not_empty(now.wrapping_sub(ticks));
                    }
                }
                // An end that was found by the way: who waits for an abort learns it from here.
                Poll::Ready(Ok(None) | Err(_)) => {
                    self.reader.abort();
                    return (!is_first).then_some(Stall { ticks, held: Some(held) });
                }
                Poll::Pending => return (!is_first).then_some(Stall { ticks, held: Some(held) }),
            }
        }
    }

    /// Cuts a stalled stream to make room for those that move.
    pub(crate) fn shed(&self) {
        let mut receiver = self.receiver();
        if !self.shed.swap(true, Ordering::Relaxed) {
            receiver.stash = VecDeque::new();
            receiver.inner.stop(ResetCode::Overloaded);
            self.reader.waits();
            self.link.counters().reset_sent(ResetCode::Overloaded);
        }
        drop(receiver);
        self.reader.abort();
    }

    pub(super) fn sent(&self, bytes: usize) {
        self.link.sent(bytes);
        self.moved(bytes);
    }

    fn moved(&self, bytes: usize) {
        let Some(load) = self.load else { return };
        let before = self.moved.fetch_add(bytes as u64, Ordering::Relaxed);
        if before < MUCH && before + bytes as u64 >= MUCH {
            self.link.note(load, true);
        }
    }

    /// The writing half has ended in order, and nobody waits for the other side to have got it all.
    pub(super) fn finished(&self, half: Box<dyn SendStream>, awaited: Awaited) {
        self.link.finished(half, awaited);
    }

    /// Counts a cut made on this side.
    pub(super) fn cut(&self, code: ResetCode) {
        self.link.counters().reset_sent(code);
    }

    /// Counts a cut made on the other side.
    fn note(&self, error: StreamError) {
        if let StreamError::Reset(code) = error {
            self.link.counters().reset_received(code);
        }
    }
}

impl Drop for StreamShared {
    fn drop(&mut self) {
        if let Some(load) = self.load.filter(|_| *self.moved.get_mut() < MUCH) {
            self.link.note(load, false);
        }
        self.link.unregister(self.id, self.direction);
    }
}

//! One TLS connection of a link, as a stream.
//!
//! Data are plain records, and the end of a direction is a close_notify. What TLS has no words for crosses on the control
//! connection: that a direction was cut and why, that it is not read any more, that it was read to its end. When both
//! directions are over, the connection ends: in order if they were, and by a TCP reset otherwise. A reset that comes
//! before its code waits a moment for it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::task::AtomicWaker;

use super::frames::Frame;
use super::link::LinkCore;
use super::losses::{Diagnosis, Segments};
use super::session::{Session, SessionError};
use crate::code::ResetCode;
use crate::transport::{Halves, RecvStream, SendStream, StreamError};

/// How long the code of a connection that was cut is waited for, beside two round trips.
const CODE_GRACE: Duration = Duration::from_millis(250);
/// How long a connection that ended here is still read and thrown away, so that what was sent last is not lost to a reset.
const LINGER: Duration = Duration::from_secs(10);
/// Bytes after which the system is asked what became of a connection's segments.
const WORTH_A_LOOK: u64 = 1 << 20;

/// A connection of a link, idle or in use.
pub(super) struct Flow {
    number: u64,
    link: Arc<LinkCore>,
    /// Bytes of the stream, in both directions.
    moved: AtomicU64,
    /// The link knows it by its number.
    listed: AtomicBool,
    state: Mutex<State>,
    /// Who waits for data, for a cut, for room, for a stop; and the task that moves what is behind.
    read: AtomicWaker,
    cut: AtomicWaker,
    room: AtomicWaker,
    stop: AtomicWaker,
    flush: AtomicWaker,
}

struct State {
    session: Session,
    send: Direction,
    recv: Direction,
    /// The other side cut its direction.
    cut: Option<ResetCode>,
    /// The other side reads ours no more.
    stopped: Option<ResetCode>,
    /// The other side has read all of ours.
    read_out: bool,
    /// The connection failed; the code may still come.
    broken: bool,
    /// Something is behind, and the flusher moves it.
    behind: bool,
    /// The flusher's task is there.
    flusher: bool,
    /// What became of its segments, and how much had moved, when it was looked at last.
    seen: (Segments, u64),
}

/// How this side stands to one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Open,
    /// Ended in order.
    Done,
    /// Given up.
    Cut,
}

impl Flow {
    pub(super) fn new(number: u64, link: Arc<LinkCore>, session: Session) -> Arc<Self> {
        let state = State {
            session,
            send: Direction::Open,
            recv: Direction::Open,
            cut: None,
            stopped: None,
            read_out: false,
            broken: false,
            behind: false,
            flusher: false,
            seen: Default::default(),
        };
        let waker = AtomicWaker::new;
        let (read, cut, room, stop, flush) = (waker(), waker(), waker(), waker(), waker());
        Arc::new(Self {
            number,
            link,
            moved: AtomicU64::new(0),
            listed: AtomicBool::new(false),
            state: Mutex::new(state),
            read,
            cut,
            room,
            stop,
            flush,
        })
    }

    /// The link knows it by its number from now on.
    pub(super) fn set_listed(&self) {
        self.listed.store(true, Ordering::Relaxed);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Both halves of the stream that it becomes.
    pub(super) fn halves(self: &Arc<Self>) -> Halves {
        (Box::new(FlowSend(Arc::clone(self))), Box::new(FlowRecv(Arc::clone(self))))
    }

    /// Whether a connection that nothing was sent on yet may be used.
    pub(super) fn is_fresh(&self) -> bool {
        let mut state = self.state();
        let quiet = state.session.poll_read(&mut Context::from_waker(Waker::noop()), 1).is_pending();
        quiet && state.cut.is_none() && state.stopped.is_none()
    }

    /// Resolves when the first byte of a stream of the other side is there (`true`), or the connection is of no use.
    pub(super) fn poll_begun(&self, cx: &mut Context<'_>) -> Poll<bool> {
        self.read.register(cx.waker());
        let mut state = self.state();
        if self.link.has_ended() || state.cut.is_some() {
            return Poll::Ready(false);
        }
        match ready!(state.session.poll_read(cx, usize::MAX)) {
            Ok(Some(chunk)) => {
                state.session.unread(chunk);
                Poll::Ready(true)
            }
            Ok(None) | Err(_) => Poll::Ready(false),
        }
    }

    /// The other side cut its direction.
    pub(super) fn was_cut(self: &Arc<Self>, code: ResetCode) {
        self.state().cut.get_or_insert(code);
        self.read.wake();
        self.cut.wake();
    }

    /// The other side reads ours no more.
    pub(super) fn was_stopped(self: &Arc<Self>, code: ResetCode) {
        self.state().stopped.get_or_insert(code);
        self.room.wake();
        self.stop.wake();
    }

    /// The other side has read all of ours.
    pub(super) fn was_read(&self) {
        self.state().read_out = true;
        self.stop.wake();
    }

    /// What became of its segments since the last look; none if too little moved to ask.
    pub(super) fn look<'a>(&self, system: impl FnOnce() -> Option<&'a Diagnosis>) -> Option<Segments> {
        let moved = self.moved.load(Ordering::Relaxed);
        let mut state = self.state();
        let (before, then) = state.seen;
        if moved - then < WORTH_A_LOOK {
            return None;
        }
        let (local, remote) = state.session.ends()?;
        let now = system()?.segments(local, remote)?;
        state.seen = (now, moved);
        // What is shared is counted once, whoever looks.
        let before = state.session.carrier().map_or(before, |carrier| carrier.seen(now));
        Some(now.since(&before))
    }

    /// The two ends of what it goes over, if the system knows them.
    pub(super) fn ends(&self) -> Option<(SocketAddr, SocketAddr)> {
        self.state().session.ends()
    }

    /// The link has ended, or something else that everybody should look at.
    pub(super) fn wake_all(&self) {
        [&self.read, &self.cut, &self.room, &self.stop, &self.flush].into_iter().for_each(AtomicWaker::wake);
    }

    /// The connection failed. Why may be on its way: it is waited for a moment.
    fn broke(self: &Arc<Self>, state: &mut State, error: &SessionError) {
        if std::mem::replace(&mut state.broken, true) {
            return;
        }
        tracing::trace!(flow = self.number, %error, "A connection of a link was cut");
        state.behind = false;
        let (flow, grace) = (Arc::downgrade(self), CODE_GRACE + self.link.rtt() * 2);
        self.link.spawn(async move {
            tokio::time::sleep(grace).await;
            if let Some(flow) = Weak::upgrade(&flow) {
                flow.was_cut(ResetCode::Cancelled);
                flow.was_stopped(ResetCode::Cancelled);
            }
        });
    }

    /// Moves what is behind, also when nobody writes any more.
    fn engage(self: &Arc<Self>, state: &mut State) {
        state.behind = true;
        if std::mem::replace(&mut state.flusher, true) {
            self.flush.wake();
        } else {
            let flow = Arc::clone(self);
            self.link.spawn(async move { std::future::poll_fn(|cx| flow.poll_flusher(cx)).await });
        }
    }

    fn poll_flusher(self: &Arc<Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.flush.register(cx.waker());
        let mut state = self.state();
        if state.behind {
            match state.session.poll_flush(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) => state.behind = false,
                Poll::Ready(Err(error)) => self.broke(&mut state, &error),
            }
            self.room.wake();
        }
        let over = state.send != Direction::Open || state.broken || self.link.has_ended();
        if over {
            state.flusher = false;
            self.end_if_over(&mut state);
            return Poll::Ready(());
        }
        Poll::Pending
    }

    /// Ends the connection when both directions are over.
    fn end_if_over(self: &Arc<Self>, state: &mut State) {
        if state.send == Direction::Open || state.recv == Direction::Open || state.behind || state.broken {
            return;
        }
        match (state.send, state.recv) {
            (Direction::Cut, _) => state.session.set_abort(),
            // What the other side still sends would turn the end into a reset, and that would take what it has not
            // read yet.
            (Direction::Done, Direction::Cut) => self.link.spawn(linger(Arc::clone(self))),
            (Direction::Done | Direction::Open, _) => {}
        }
    }
}

/// Reads and throws away until the other side has ended.
async fn linger(flow: Arc<Flow>) {
    let ended = std::future::poll_fn(|cx| {
        let mut state = flow.state();
        loop {
            if let Ok(None) | Err(_) = ready!(state.session.poll_read(cx, usize::MAX)) {
                return Poll::Ready(());
            }
        }
    });
    tokio::time::timeout(LINGER, ended).await.ok();
}

impl Drop for Flow {
    fn drop(&mut self) {
        if self.listed.load(Ordering::Relaxed) {
            self.link.forget(self.number);
        }
    }
}

/// The writing half.
struct FlowSend(Arc<Flow>);

impl SendStream for FlowSend {
    fn poll_write(&mut self, cx: &mut Context<'_>, chunks: &mut [Bytes]) -> Poll<Result<usize, StreamError>> {
        let flow = &self.0;
        flow.room.register(cx.waker());
        let mut state = flow.state();
        if state.send != Direction::Open {
            return Poll::Ready(Err(StreamError::Closed));
        }
        if let Some(code) = state.stopped {
            return Poll::Ready(Err(StreamError::Reset(code)));
        }
        if flow.link.has_ended() {
            return Poll::Ready(Err(StreamError::LinkLost));
        }
        if state.broken || state.behind {
            return Poll::Pending;
        }
        let written = match state.session.write(chunks) {
            Ok(written) => written,
            Err(error) => {
                flow.broke(&mut state, &error);
                return Poll::Pending;
            }
        };
        match state.session.poll_flush(cx) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => flow.broke(&mut state, &error),
            Poll::Pending => flow.engage(&mut state),
        }
        flow.moved.fetch_add(written as u64, Ordering::Relaxed);
        Poll::Ready(Ok(written))
    }

    fn poll_stopped(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<ResetCode>, StreamError>> {
        let flow = &self.0;
        flow.stop.register(cx.waker());
        let state = flow.state();
        if let Some(code) = state.stopped {
            return Poll::Ready(Ok(Some(code)));
        }
        if state.send == Direction::Done && state.read_out {
            return Poll::Ready(Ok(None));
        }
        if state.send == Direction::Cut {
            return Poll::Ready(Err(StreamError::Closed));
        }
        if flow.link.has_ended() { Poll::Ready(Err(StreamError::LinkLost)) } else { Poll::Pending }
    }

    fn finish(&mut self) {
        let flow = &self.0;
        let mut state = flow.state();
        if state.send != Direction::Open {
            return;
        }
        state.send = Direction::Done;
        if state.broken {
            return;
        }
        state.session.finish();
        match state.session.poll_flush(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(())) => flow.end_if_over(&mut state),
            Poll::Ready(Err(error)) => flow.broke(&mut state, &error),
            Poll::Pending => flow.engage(&mut state),
        }
    }

    fn reset(&mut self, code: ResetCode) {
        let flow = &self.0;
        let mut state = flow.state();
        if state.send != Direction::Open {
            return;
        }
        (state.send, state.behind) = (Direction::Cut, false);
        flow.link.send(&Frame::Reset { flow: flow.number, code });
        flow.end_if_over(&mut state);
        drop(state);
        flow.flush.wake();
    }

    fn set_priority(&self, _priority: i32) {}
}

/// The reading half.
struct FlowRecv(Arc<Flow>);

impl RecvStream for FlowRecv {
    fn poll_read(&mut self, cx: &mut Context<'_>, max: usize) -> Poll<Result<Option<Bytes>, StreamError>> {
        let flow = &self.0;
        flow.read.register(cx.waker());
        let mut state = flow.state();
        match state.recv {
            Direction::Done => return Poll::Ready(Ok(None)),
            Direction::Cut if state.cut.is_none() => return Poll::Ready(Err(StreamError::Closed)),
            Direction::Open | Direction::Cut => {}
        }
        if let Some(code) = state.cut {
            state.recv = Direction::Cut;
            flow.end_if_over(&mut state);
            return Poll::Ready(Err(StreamError::Reset(code)));
        }
        if !state.broken {
            match state.session.poll_read(cx, max) {
                Poll::Ready(Ok(Some(chunk))) => {
                    flow.moved.fetch_add(chunk.len() as u64, Ordering::Relaxed);
                    return Poll::Ready(Ok(Some(chunk)));
                }
                Poll::Ready(Ok(None)) => {
                    state.recv = Direction::Done;
                    flow.link.send(&Frame::Read { flow: flow.number });
                    flow.end_if_over(&mut state);
                    return Poll::Ready(Ok(None));
                }
                Poll::Ready(Err(error)) => flow.broke(&mut state, &error),
                Poll::Pending => {}
            }
        }
        if flow.link.has_ended() { Poll::Ready(Err(StreamError::LinkLost)) } else { Poll::Pending }
    }

    fn poll_read_chunks(
        &mut self,
        cx: &mut Context<'_>,
        chunks: &mut [Bytes],
    ) -> Poll<Result<Option<usize>, StreamError>> {
        let Some(first) = chunks.first_mut() else { return Poll::Ready(Ok(Some(0))) };
        let chunk = ready!(self.poll_read(cx, usize::MAX))?;
        Poll::Ready(Ok(chunk.map(|chunk| {
            *first = chunk;
            1
        })))
    }

    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        let flow = &self.0;
        flow.cut.register(cx.waker());
        let state = flow.state();
        if let Some(code) = state.cut {
            return Poll::Ready(StreamError::Reset(code));
        }
        // All has arrived: nothing can cut it any more.
        if state.recv == Direction::Done {
            return Poll::Pending;
        }
        if flow.link.has_ended() { Poll::Ready(StreamError::LinkLost) } else { Poll::Pending }
    }

    fn stop(&mut self, code: ResetCode) {
        let flow = &self.0;
        let mut state = flow.state();
        if state.recv != Direction::Open {
            return;
        }
        state.recv = Direction::Cut;
        flow.link.send(&Frame::Stop { flow: flow.number, code });
        flow.end_if_over(&mut state);
    }
}

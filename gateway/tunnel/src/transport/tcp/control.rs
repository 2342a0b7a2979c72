//! The control connection of a link: its task, and the control stream that crosses on it.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::task::AtomicWaker;
use tokio::time::{Instant, MissedTickBehavior};

use super::frames::{Frame, MAX_BODY};
use super::link::{LinkCore, lock};
use super::session::SessionError;
use crate::code::{CloseCode, ResetCode};
use crate::config::Timing;
use crate::transport::{CloseReason, Halves, RecvStream, SendStream, StreamError};

/// Bytes of the control stream that may wait to be sent; more and its writer waits.
const OUT_SOFT: usize = 64 << 10;
/// Bytes that may wait to be sent in all: the other side does not read.
const OUT_HARD: usize = 4 << 20;
/// Bytes of the control stream that may wait to be read: its reader always reads.
const IN_HARD: usize = 1 << 20;

/// What waits to be sent.
#[derive(Default)]
pub(super) struct Outbox {
    buffer: Mutex<BytesMut>,
    task: AtomicWaker,
    room: AtomicWaker,
}

/// Too much waits to be sent.
pub(super) struct Full;

impl Outbox {
    pub(super) fn push(&self, frame: &Frame) -> Result<(), Full> {
        let mut buffer = lock(&self.buffer);
        frame.encode(&mut buffer);
        let full = buffer.len() > OUT_HARD;
        drop(buffer);
        self.task.wake();
        if full { Err(Full) } else { Ok(()) }
    }

    pub(super) fn wake(&self) {
        self.task.wake();
        self.room.wake();
    }

    fn take(&self) -> Bytes {
        let buffer = std::mem::take(&mut *lock(&self.buffer));
        self.room.wake();
        buffer.freeze()
    }
}

/// What came of the control stream.
#[derive(Default)]
pub(super) struct Inbox {
    state: Mutex<InboxState>,
    reader: AtomicWaker,
}

#[derive(Default)]
struct InboxState {
    chunks: VecDeque<Bytes>,
    bytes: usize,
    ended: bool,
}

impl Inbox {
    pub(super) fn wake(&self) {
        self.reader.wake();
    }

    fn push(&self, chunk: Bytes) -> Result<(), Full> {
        let mut state = lock(&self.state);
        state.bytes += chunk.len();
        state.chunks.push_back(chunk);
        let full = state.bytes > IN_HARD;
        drop(state);
        self.reader.wake();
        if full { Err(Full) } else { Ok(()) }
    }

    fn end(&self) {
        lock(&self.state).ended = true;
        self.reader.wake();
    }
}

/// The control stream.
pub(super) fn halves(link: &Arc<LinkCore>) -> Halves {
    (Box::new(ControlSend { link: Arc::clone(link), ended: false }), Box::new(ControlRecv(Arc::clone(link))))
}

/// Until the link has ended and the other side was told.
pub(super) async fn run(link: Arc<LinkCore>, timing: Timing) {
    let mut task =
        Task { link: Arc::clone(&link), input: BytesMut::new(), heard: Instant::now(), epoch: Instant::now() };
    let mut ticks = tokio::time::interval(timing.keep_alive);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            reason = poll_fn(|cx| task.poll(cx)) => {
                link.end(reason);
                break;
            }
            _ = link.wait_end() => break,
            _ = ticks.tick() => {
                if task.heard.elapsed() >= timing.idle {
                    link.end(CloseReason::Silent);
                    break;
                }
                link.send(&Frame::Ping(task.micros()));
                link.look();
            }
        }
    }
    tokio::time::timeout(timing.close, poll_fn(|cx| task.poll_farewell(cx))).await.ok();
    lock(&link.session).take();
}

struct Task {
    link: Arc<LinkCore>,
    input: BytesMut,
    /// When the last bytes came.
    heard: Instant,
    epoch: Instant,
}

impl Task {
    fn micros(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Resolves when the connection gives no more.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<CloseReason> {
        let link = Arc::clone(&self.link);
        link.outbox.task.register(cx.waker());
        let mut session = lock(&link.session);
        let Some(session) = session.as_mut() else { return Poll::Ready(CloseReason::Silent) };
        loop {
            match session.poll_read(cx, usize::MAX) {
                Poll::Ready(Ok(Some(chunk))) => {
                    self.heard = Instant::now();
                    self.input.extend_from_slice(&chunk);
                    if let Err(reason) = self.take_frames() {
                        return Poll::Ready(reason);
                    }
                }
                Poll::Ready(Ok(None)) => return Poll::Ready(CloseReason::Cut("it was closed".to_owned())),
                Poll::Ready(Err(error)) => return Poll::Ready(lost(&error)),
                Poll::Pending => break,
            }
        }
        // Answers to what was read go with it.
        loop {
            match session.poll_flush(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(lost(&error)),
                Poll::Pending => return Poll::Pending,
            }
            let mut chunks = [link.outbox.take()];
            if chunks.iter().all(Bytes::is_empty) {
                return Poll::Pending;
            }
            while chunks.iter().any(|chunk| !chunk.is_empty()) {
                if let Err(error) = session.write(&mut chunks) {
                    return Poll::Ready(lost(&error));
                }
            }
        }
    }

    /// Sends what is left, and the end.
    fn poll_farewell(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut session = lock(&self.link.session);
        let Some(session) = session.as_mut() else { return Poll::Ready(()) };
        let mut chunks = [self.link.outbox.take()];
        while chunks.iter().any(|chunk| !chunk.is_empty()) {
            if session.write(&mut chunks).is_err() {
                return Poll::Ready(());
            }
        }
        session.finish();
        session.poll_shutdown(cx).map(|_| ())
    }

    fn take_frames(&mut self) -> Result<(), CloseReason> {
        let protocol = |message: String| {
            let code = CloseCode::Protocol;
            self.link.send(&Frame::Close { code, reason: message.clone() });
            CloseReason::Local { code, message }
        };
        let full = |Full| "the control stream brings more than it may".to_owned();
        while let Some(frame) = Frame::decode(&mut self.input).map_err(|error| protocol(error.to_string()))? {
            match frame {
                Frame::Data(bytes) => self.link.inbox.push(bytes).map_err(full).map_err(protocol)?,
                Frame::DataEnd => self.link.inbox.end(),
                Frame::Reset { flow, code } => self.with(flow, |flow| flow.was_cut(code)),
                Frame::Stop { flow, code } => self.with(flow, |flow| flow.was_stopped(code)),
                Frame::Read { flow } => self.with(flow, |flow| flow.was_read()),
                Frame::Close { code, reason } => return Err(CloseReason::Remote { code, message: reason }),
                Frame::Ping(number) => self.link.send(&Frame::Pong(number)),
                Frame::Pong(number) => {
                    let taken = self.micros().checked_sub(number);
                    taken.into_iter().for_each(|taken| self.link.measured(Duration::from_micros(taken)));
                }
                Frame::Want(count) => {
                    lock(&self.link.reverse).asked(usize::from(count));
                    self.link.short.notify_one();
                }
            }
        }
        Ok(())
    }

    fn with(&self, number: u64, tell: impl FnOnce(&Arc<super::flow::Flow>)) {
        // It may have ended here meanwhile.
        if let Some(flow) = self.link.flow(number) {
            tell(&flow);
        }
    }
}

fn lost(error: &SessionError) -> CloseReason {
    match error {
        SessionError::Alert(alert) => CloseReason::RefusedUs(format!("{alert:?}")),
        SessionError::Tls(error) => CloseReason::Transport(crate::control::printable(&error.to_string())),
        SessionError::Pipe(_) | SessionError::Truncated => CloseReason::Cut(error.to_string()),
    }
}

struct ControlSend {
    link: Arc<LinkCore>,
    ended: bool,
}

impl SendStream for ControlSend {
    fn poll_write(&mut self, cx: &mut Context<'_>, chunks: &mut [Bytes]) -> Poll<Result<usize, StreamError>> {
        let outbox = &self.link.outbox;
        outbox.room.register(cx.waker());
        if self.ended {
            return Poll::Ready(Err(StreamError::Closed));
        }
        if self.link.has_ended() {
            return Poll::Ready(Err(StreamError::LinkLost));
        }
        let mut written = 0;
        for chunk in chunks {
            while !chunk.is_empty() && lock(&outbox.buffer).len() < OUT_SOFT {
                let part = chunk.split_to(chunk.len().min(MAX_BODY));
                written += part.len();
                self.link.send(&Frame::Data(part));
            }
        }
        if written > 0 { Poll::Ready(Ok(written)) } else { Poll::Pending }
    }

    fn poll_stopped(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<ResetCode>, StreamError>> {
        self.link.outbox.room.register(cx.waker());
        if self.link.has_ended() { Poll::Ready(Err(StreamError::LinkLost)) } else { Poll::Pending }
    }

    fn finish(&mut self) {
        if !std::mem::replace(&mut self.ended, true) {
            self.link.send(&Frame::DataEnd);
        }
    }

    fn reset(&mut self, _code: ResetCode) {
        // The end of the link says why.
        self.ended = true;
    }

    fn set_priority(&self, _priority: i32) {}
}

struct ControlRecv(Arc<LinkCore>);

impl RecvStream for ControlRecv {
    fn poll_read(&mut self, cx: &mut Context<'_>, max: usize) -> Poll<Result<Option<Bytes>, StreamError>> {
        let inbox = &self.0.inbox;
        inbox.reader.register(cx.waker());
        let mut state = lock(&inbox.state);
        if let Some(mut chunk) = state.chunks.pop_front() {
            if chunk.len() > max {
                state.chunks.push_front(chunk.split_off(max));
            }
            state.bytes -= chunk.len();
            return Poll::Ready(Ok(Some(chunk)));
        }
        if state.ended {
            return Poll::Ready(Ok(None));
        }
        if self.0.has_ended() { Poll::Ready(Err(StreamError::LinkLost)) } else { Poll::Pending }
    }

    fn poll_read_chunks(
        &mut self,
        cx: &mut Context<'_>,
        chunks: &mut [Bytes],
    ) -> Poll<Result<Option<usize>, StreamError>> {
        let Some(first) = chunks.first_mut() else { return Poll::Ready(Ok(Some(0))) };
        self.poll_read(cx, usize::MAX).map_ok(|chunk| {
            chunk.map(|chunk| {
                *first = chunk;
                1
            })
        })
    }

    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        self.0.inbox.reader.register(cx.waker());
        if self.0.has_ended() { Poll::Ready(StreamError::LinkLost) } else { Poll::Pending }
    }

    fn stop(&mut self, _code: ResetCode) {
        // Its reader ends with the link.
    }
}

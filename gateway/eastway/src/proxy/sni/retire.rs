//! Ends a sidecar's connection where nothing is lost by it, when this gateway or that of the peer is about to leave.
//!
//! A sidecar keeps connections for hours. What it asks on one that is cut has no answer, and it tries nothing again of which it
//! had sent a part. The gateway reads none of it, but sees whose turn it is: after an answer it is the client's. So what
//! a server says is kept back for a moment. If nothing follows, it goes on with the end of the connection in one packet: a
//! client of HTTP/1.1 asks nothing between the two, and asks the next on another connection, which leads to another replica.

use std::io::{self, ErrorKind};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use eastway_tunnel::Link;
use eastway_tunnel::transport::BoxFuture;
use socket2::SockRef;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::proxy::copy::{Chunks, CopyError, Lane, Read, Side, TcpSide};

/// What a server says is kept back for so long, and two round trips of the link: a sender that waits for acknowledgements
/// pauses for one.
const HOLD: Duration = Duration::from_millis(100);
/// Likewise when a third and two thirds of the drain are over, and a moment as good was not found.
const LATER: Duration = Duration::from_millis(20);
const LAST: Duration = Duration::from_millis(5);
/// A connection on which nothing moved since an answer for this part of the drain is not in use, nor is one after half of it
/// whose client spoke last.
const UNUSED: u32 = 10;
const GIVEN_UP: u32 = 2;
/// How often a client has to have spoken after the server did: the first time it ends the handshake, and what the server then
/// says may be no answer.
const EXCHANGES: u32 = 2;
/// How long a client may take to end its side too.
const FAREWELL: Duration = Duration::from_secs(2);

/// When connections are to end.
#[derive(Clone, Debug)]
pub struct Leaving {
    /// Cancelled when this gateway leaves, and connections are led to others.
    pub told: CancellationToken,
    /// How long it may take.
    pub drain: Duration,
}

/// The client's side of a connection, which ends in time.
pub(super) struct Retiring<'a> {
    client: TcpSide<'a>,
    link: Option<Link>,
    drain: Duration,
    phase: Phase,
    /// The server spoke last.
    answered: bool,
    /// How often the client spoke after the server did.
    exchanges: u32,
    /// What the server says.
    records: Records,
    /// Bytes given to be written that `records` has seen.
    seen: usize,
    /// What is kept back of it.
    held: Option<Chunks>,
    /// It could not be handed on.
    broken: Option<CopyError>,
}

enum Phase {
    /// Until one of the gateways leaves.
    Serving(BoxFuture<'static, ()>),
    /// Since when, when something moved last, and the wait for the end.
    Leaving { since: Instant, moved: Instant, due: std::pin::Pin<Box<Sleep>> },
    /// The client was told the end, and has some time to say its own.
    Told(std::pin::Pin<Box<Sleep>>),
}

impl<'a> Retiring<'a> {
    /// `client`, of a connection that `link` carries.
    pub(super) fn new(client: TcpSide<'a>, Leaving { told, drain }: Leaving, link: Option<Link>) -> Self {
        let left = link.as_ref().map(Link::left);
        let leaving = Box::pin(async move {
            match left {
                Some(left) => tokio::select! { () = told.cancelled() => {}, () = left.cancelled() => {} },
                None => told.cancelled().await,
            }
        });
        Self {
            client,
            link,
            drain,
            phase: Phase::Serving(leaving),
            answered: false,
            exchanges: 0,
            records: Records::default(),
            seen: 0,
            held: None,
            broken: None,
        }
    }

    fn moves(&mut self) {
        if let Phase::Leaving { moved, .. } = &mut self.phase {
            *moved = Instant::now();
        }
    }

    /// How long nothing may move from now on before it ends; `None`: in the middle of something.
    fn patience(&self, since: Instant) -> Option<Duration> {
        if !self.records.are_whole() {
            return None;
        }
        let leaving = since.elapsed();
        Some(match self.held {
            _ if !self.answered => self.drain / GIVEN_UP,
            None => self.drain / UNUSED,
            Some(_) if leaving < self.drain / 3 => HOLD + 2 * self.link.as_ref().map(Link::rtt).unwrap_or_default(),
            Some(_) if leaving < self.drain / 3 * 2 => LATER,
            Some(_) => LAST,
        })
    }

    /// Hands on what is kept back.
    fn poll_release(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), CopyError>> {
        while let Some(held) = &mut self.held {
            ready!(self.client.poll_write(cx, held))?;
            if held.is_empty() {
                self.held = None;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Ends it, unless the client has just said something.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), CopyError>> {
        let socket = self.client.socket();
        if rustix::io::ioctl_fionread(socket).map_err(io::Error::from)? > 0 {
            self.moves();
            return Poll::Ready(Ok(()));
        }
        if self.held.is_some() {
            // One packet for both, or the client might ask between them.
            SockRef::from(socket).set_tcp_cork(true)?;
        }
        if self.poll_release(cx)?.is_pending() {
            SockRef::from(socket).set_tcp_cork(false)?;
            return Poll::Pending;
        }
        self.client.finish()?;
        self.phase = Phase::Told(Box::pin(sleep_until(Instant::now() + FAREWELL)));
        Poll::Ready(Ok(()))
    }

    fn poll_leave(&mut self, cx: &mut Context<'_>) -> Result<(), CopyError> {
        loop {
            match &mut self.phase {
                Phase::Serving(leaving) => {
                    if leaving.as_mut().poll(cx).is_pending() {
                        return Ok(());
                    }
                    let now = Instant::now();
                    self.phase = Phase::Leaving { since: now, moved: now, due: Box::pin(sleep_until(now)) };
                }
                Phase::Told(over) => {
                    let late = || CopyError::from(io::Error::from(ErrorKind::TimedOut));
                    return if over.as_mut().poll(cx).is_ready() { Err(late()) } else { Ok(()) };
                }
                Phase::Leaving { since, moved, .. } => {
                    let (since, moved) = (*since, *moved);
                    if !self.answered && self.poll_release(cx)?.is_pending() {
                        return Ok(());
                    }
                    let Some(patience) = self.patience(since) else { return Ok(()) };
                    let Phase::Leaving { due, .. } = &mut self.phase else { return Ok(()) };
                    due.as_mut().reset(moved + patience);
                    if due.as_mut().poll(cx).is_pending() || self.poll_end(cx)?.is_pending() {
                        return Ok(());
                    }
                }
            }
        }
    }
}

impl Side for Retiring<'_> {
    fn has_ended(&self) -> bool {
        self.client.has_ended()
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Read<'static>>, CopyError>> {
        let read = ready!(self.client.poll_read(cx))?;
        if read.is_some() {
            if let Phase::Told(_) = self.phase {
                // It will get no answer: so nobody must do it.
                return Poll::Ready(Err(io::Error::from(ErrorKind::ConnectionReset).into()));
            }
            self.exchanges = self.exchanges.saturating_add(u32::from(self.answered));
            self.answered = false;
            self.moves();
        }
        Poll::Ready(Ok(read))
    }

    fn handed_on(&mut self, bytes: usize) {
        self.client.handed_on(bytes);
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, chunks: &mut Chunks) -> Poll<Result<usize, CopyError>> {
        if let Phase::Told(_) = self.phase {
            return Poll::Ready(Err(io::Error::from(ErrorKind::BrokenPipe).into()));
        }
        ready!(self.poll_release(cx))?;
        if self.seen == 0 {
            chunks.rest().iter().for_each(|chunk| self.records.see(chunk));
            self.seen = chunks.len();
        }
        self.answered = true;
        self.moves();
        let is_answer = self.exchanges >= EXCHANGES && self.records.are_whole();
        if is_answer && matches!(self.phase, Phase::Leaving { .. }) {
            self.held = Some(chunks.take());
            return Poll::Ready(Ok(std::mem::take(&mut self.seen)));
        }
        let written = ready!(self.client.poll_write(cx, chunks))?;
        self.seen -= written.min(self.seen);
        Poll::Ready(Ok(written))
    }

    fn poll_held(&mut self, cx: &mut Context<'_>) {
        self.client.poll_held(cx);
        if self.broken.is_none() {
            self.broken = self.poll_leave(cx).err();
        }
    }

    fn finish(&mut self) -> Result<(), CopyError> {
        if let Phase::Told(_) = self.phase {
            return Ok(());
        }
        // Where so little as is kept back finds no room, the client reads nothing.
        match self.poll_release(&mut Context::from_waker(Waker::noop()))? {
            Poll::Ready(()) => self.client.finish(),
            Poll::Pending => Err(io::Error::from(ErrorKind::WouldBlock).into()),
        }
    }

    fn poll_cut(&mut self, cx: &mut Context<'_>, lane: &Lane) -> Poll<CopyError> {
        match self.broken.take() {
            Some(broken) => Poll::Ready(broken),
            None => self.client.poll_cut(cx, lane),
        }
    }

    fn close(&mut self, result: &Result<(), CopyError>) {
        self.client.close(result);
    }
}

/// Where in its records one direction of TLS is (RFC 8446 §5.1). They are told apart by their length alone.
#[derive(Debug, Default)]
struct Records {
    /// Bytes of the header that came, and the last two of them as a number.
    header: u8,
    length: u16,
    /// Bytes of the record that are due.
    left: usize,
}

impl Records {
    const HEADER: u8 = 5;

    fn see(&mut self, mut bytes: &[u8]) {
        while let Some((first, rest)) = bytes.split_first() {
            if self.left > 0 {
                let part = self.left.min(bytes.len());
                self.left -= part;
                bytes = bytes.get(part..).unwrap_or_default();
                continue;
            }
            (self.header, self.length, bytes) = (self.header + 1, self.length << 8 | u16::from(*first), rest);
            if self.header == Self::HEADER {
                (self.header, self.left) = (0, usize::from(self.length));
            }
        }
    }

    fn are_whole(&self) -> bool {
        self.left == 0 && self.header == 0
    }
}

#[cfg(test)]
mod tests;

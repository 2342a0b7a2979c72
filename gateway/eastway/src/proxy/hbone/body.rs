//! The two directions of a tunnel's HTTP/2 stream.
//!
//! Both halves are kept until both have ended: `h2` resets a stream of which somebody has lost interest.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use eastway_tunnel::{ResetCode, StreamError};
use h2::{Reason, RecvStream, SendStream};
use tokio::time::timeout;

use super::held::Meter;
use super::session::SEND_BUFFER;
use crate::proxy::copy::{Chunks, CopyError, Lane, Read, Side};
use crate::proxy::outbound::Client;

/// Window is given back in portions of so much: many small updates are taken for a flood by Envoy 1.36. A quarter of a
/// stream's window, so that the other three keep the sidecar going.
const RELEASE: usize = super::session::STREAM_WINDOW as usize / 4;

/// Bytes of a frame: with its header it fills one record of TLS, and does not begin another.
const FRAME: usize = (16 << 10) - 9;

/// From the sidecar.
pub(super) struct Incoming {
    stream: RecvStream,
    ended: bool,
    /// It has given bytes.
    began: bool,
    /// Bytes that were handed on, and whose window was not given back.
    unreleased: usize,
    meter: Arc<Meter>,
}

impl Incoming {
    pub(super) fn new(stream: RecvStream, meter: Arc<Meter>) -> Self {
        Self { stream, ended: false, began: false, unreleased: 0, meter }
    }

    /// Whether no byte was taken from it.
    pub(super) fn is_untouched(&self) -> bool {
        !self.began
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        loop {
            match ready!(self.stream.poll_data(cx)) {
                None => {
                    self.ended = true;
                    return Poll::Ready(Ok(None));
                }
                Some(Ok(chunk)) if chunk.is_empty() => {}
                Some(Ok(chunk)) => {
                    self.began = true;
                    return Poll::Ready(Ok(Some(chunk)));
                }
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
            }
        }
    }

    fn release(&mut self, bytes: usize) {
        self.unreleased += bytes;
        if self.unreleased >= RELEASE {
            // Of a stream that is gone nothing can be given back, nor has to.
            let _gone = self.stream.flow_control().release_capacity(std::mem::take(&mut self.unreleased));
        }
        self.meter.set_passed_on(self.unreleased);
    }
}

/// What is read before the tunnel is established is kept, and bounded, by whoever establishes it.
impl Client for Incoming {
    fn has_ended(&self) -> bool {
        self.ended
    }

    fn read_now(&mut self) -> io::Result<Option<Bytes>> {
        match self.poll_next(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(chunk) => chunk,
            Poll::Pending => Ok(None),
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        let chunk = ready!(self.poll_chunk(cx))?;
        self.release(chunk.as_ref().map_or(0, Bytes::len));
        Poll::Ready(Ok(chunk))
    }
}

/// To the sidecar.
pub(super) struct Outgoing {
    stream: SendStream<Bytes>,
    ended: bool,
    /// Bytes that were ever sent, as far as they could still wait.
    sent: usize,
    meter: Arc<Meter>,
}

impl Outgoing {
    pub(super) fn new(stream: SendStream<Bytes>, meter: Arc<Meter>) -> Self {
        Self { stream, ended: false, sent: 0, meter }
    }

    /// Cuts the stream, both ways.
    pub(super) fn reset(&mut self, reason: Reason) {
        self.stream.send_reset(reason);
    }

    /// Resolves when the sidecar has cut the stream, or its connection is gone. Cancel safe.
    pub(super) async fn cut(&mut self) -> io::Error {
        poll_fn(|cx| self.poll_cut(cx)).await
    }

    fn poll_cut(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        self.stream.poll_reset(cx).map(|reset| match reset {
            Ok(reason) => io::Error::new(io::ErrorKind::ConnectionReset, reason.description()),
            Err(error) => broken(error),
        })
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, chunk: &mut Bytes) -> Poll<io::Result<usize>> {
        self.stream.reserve_capacity(chunk.len());
        loop {
            let room = self.stream.capacity().min(chunk.len());
            if room > 0 {
                let mut part = chunk.split_to(room);
                while !part.is_empty() {
                    self.stream.send_data(part.split_to(part.len().min(FRAME)), false).map_err(broken)?;
                }
                self.sent = (self.sent + room).min(SEND_BUFFER);
                self.meter.set_waiting(0);
                return Poll::Ready(Ok(room));
            }
            let Poll::Ready(capacity) = self.stream.poll_capacity(cx) else {
                // The sidecar is slow: what it was sent may all be here yet.
                self.meter.set_waiting(self.sent + chunk.len());
                return Poll::Pending;
            };
            match capacity {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None => return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            }
        }
    }
}

/// Both directions, to be copied.
pub(super) struct Body {
    pub(super) incoming: Incoming,
    pub(super) outgoing: Outgoing,
}

impl Body {
    /// Reads on to the end of what the sidecar says, and drops it, for at most `patience`. A sidecar that was told the
    /// end of the data loses what it has not read of them by then when it is reset: Envoy 1.36 does.
    pub(super) async fn read_out(mut self, patience: Duration) {
        if !self.outgoing.ended {
            return;
        }
        let reading = async { while let Ok(Some(_dropped)) = poll_fn(|cx| self.incoming.poll_next(cx)).await {} };
        // It had its time.
        let _late = timeout(patience, reading).await;
    }
}

impl Side for Body {
    fn has_ended(&self) -> bool {
        self.incoming.ended
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Read<'static>>, CopyError>> {
        self.incoming.poll_chunk(cx).map_ok(|chunk| chunk.map(Read::from)).map_err(CopyError::from)
    }

    fn handed_on(&mut self, bytes: usize) {
        self.incoming.release(bytes);
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, chunks: &mut Chunks) -> Poll<Result<usize, CopyError>> {
        match chunks.rest().first_mut() {
            Some(chunk) => self.outgoing.poll_write(cx, chunk).map_err(CopyError::from),
            None => Poll::Ready(Ok(0)),
        }
    }

    /// END_STREAM. It goes with a frame of its own, and so behind all that was sent.
    fn finish(&mut self) -> Result<(), CopyError> {
        self.outgoing.ended = true;
        self.outgoing.stream.send_data(Bytes::new(), true).map_err(|error| broken(error).into())
    }

    fn poll_cut(&mut self, cx: &mut Context<'_>, lane: &Lane) -> Poll<CopyError> {
        // Otherwise its reader sees it.
        if !lane.is_ended() && lane.taken() == lane.given() {
            return Poll::Pending;
        }
        self.outgoing.poll_cut(cx).map(CopyError::from)
    }

    fn close(&mut self, result: &Result<(), CopyError>) {
        if let Err(error) = result
            && !self.outgoing.ended
        {
            self.outgoing.reset(reason(error));
        }
    }
}

/// What a sidecar is told of a tunnel that broke (RFC 9113 §7): `CONNECT_ERROR` is that of the connection behind it
/// (§8.5).
fn reason(error: &CopyError) -> Reason {
    match error {
        CopyError::Local(_) | CopyError::Revoked | CopyError::Stream(StreamError::Reset(ResetCode::UpstreamReset)) => {
            Reason::CONNECT_ERROR
        }
        CopyError::Idle(..) | CopyError::Stream(StreamError::Reset(ResetCode::Cancelled | ResetCode::IdleTimeout)) => {
            Reason::CANCEL
        }
        CopyError::Stream(_) => Reason::INTERNAL_ERROR,
    }
}

fn broken(error: h2::Error) -> io::Error {
    let kind = if error.is_reset() { io::ErrorKind::ConnectionReset } else { io::ErrorKind::BrokenPipe };
    if error.is_io() {
        return error.into_io().unwrap_or_else(|| kind.into());
    }
    io::Error::new(kind, error)
}

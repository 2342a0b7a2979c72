//! A stream of HTTP/2 as what TLS runs over.

use std::future::Future as _;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::client::ResponseFuture;
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Carrier;
use crate::transport::tcp::link::lock;
use crate::transport::tcp::pipe::{self, Pipe};

/// Bytes that are taken by one write.
const MOST: usize = 64 << 10;

pub(super) struct SharedPipe {
    send: SendStream<Bytes>,
    recv: Incoming,
    /// What came and did not fit.
    rest: Bytes,
    /// END_STREAM was sent.
    finished: bool,
    abort: AtomicBool,
    place: Place,
}

/// What the other side says.
enum Incoming {
    /// Whether it has taken the request is not known yet; it is spoken to all the same, which saves a round trip.
    Answer(ResponseFuture),
    Body(RecvStream),
}

/// A pipe's place on its connection.
struct Place {
    carrier: Arc<Carrier>,
    number: u64,
}

impl Place {
    fn new(carrier: Arc<Carrier>) -> Self {
        carrier.pipes.fetch_add(1, Ordering::Relaxed);
        let number = carrier.next.fetch_add(1, Ordering::Relaxed);
        Self { carrier, number }
    }

    /// What comes by `body` counts from now on.
    fn count(&self, body: &mut RecvStream) {
        lock(&self.carrier.flows).insert(self.number, body.flow_control().clone());
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let gone = lock(&self.carrier.flows).remove(&self.number);
        // Not under the lock: the last reference to a stream of HTTP/2 takes that of its connection.
        drop(gone);
        self.carrier.pipes.fetch_sub(1, Ordering::Relaxed);
    }
}

impl SharedPipe {
    /// One that was asked for.
    pub(super) fn asked(carrier: Arc<Carrier>, answer: ResponseFuture, send: SendStream<Bytes>) -> Self {
        Self::new(carrier, Incoming::Answer(answer), send)
    }

    /// One that was granted.
    pub(super) fn granted(carrier: Arc<Carrier>, body: RecvStream, send: SendStream<Bytes>) -> Self {
        let mut this = Self::new(carrier, Incoming::Body(body), send);
        if let Incoming::Body(body) = &mut this.recv {
            this.place.count(body);
        }
        this
    }

    fn new(carrier: Arc<Carrier>, recv: Incoming, send: SendStream<Bytes>) -> Self {
        let place = Place::new(carrier);
        Self { send, recv, rest: Bytes::new(), finished: false, abort: AtomicBool::new(false), place }
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<&mut RecvStream>> {
        if let Incoming::Answer(answer) = &mut self.recv {
            let response = ready!(Pin::new(answer).poll(cx)).map_err(broken)?;
            if !response.status().is_success() {
                let text = format!("CONNECT is answered with {}", response.status());
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionRefused, text)));
            }
            let mut body = response.into_body();
            self.place.count(&mut body);
            self.recv = Incoming::Body(body);
        }
        match &mut self.recv {
            Incoming::Body(body) => Poll::Ready(Ok(body)),
            Incoming::Answer(_) => Poll::Pending,
        }
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        let body = ready!(self.poll_body(cx))?;
        loop {
            match ready!(body.poll_data(cx)) {
                Some(Ok(chunk)) if chunk.is_empty() => {}
                Some(Ok(chunk)) => {
                    // Of a stream that is gone nothing can be given back, nor has to.
                    let _gone = body.flow_control().release_capacity(chunk.len());
                    return Poll::Ready(Ok(chunk));
                }
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None => return Poll::Ready(Ok(Bytes::new())),
            }
        }
    }

    /// Waits for room, and gives how much of `wanted` there is.
    fn poll_room(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<io::Result<usize>> {
        self.send.reserve_capacity(wanted);
        loop {
            let room = self.send.capacity().min(wanted);
            if room > 0 {
                return Poll::Ready(Ok(room));
            }
            match ready!(self.send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None => return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            }
        }
    }

    fn finish(&mut self) {
        if !std::mem::replace(&mut self.finished, true) {
            // Of a stream that is gone nobody waits for the end.
            self.send.send_data(Bytes::new(), true).ok();
        }
    }
}

fn broken(error: h2::Error) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, error)
}

impl Pipe for SharedPipe {
    fn set_abort(&self) {
        self.abort.store(true, Ordering::Relaxed);
    }

    fn ends(&self) -> Option<(SocketAddr, SocketAddr)> {
        self.place.carrier.ends
    }

    fn carrier(&self) -> Option<&Arc<Carrier>> {
        Some(&self.place.carrier)
    }
}

impl AsyncRead for SharedPipe {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.rest.is_empty() {
            this.rest = ready!(this.poll_chunk(cx))?;
        }
        let length = this.rest.len().min(into.remaining());
        into.put_slice(this.rest.get(..length).unwrap_or_default());
        this.rest.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for SharedPipe {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let wanted = parts.iter().map(|part| part.len()).sum::<usize>().min(MOST);
        if wanted == 0 {
            return Poll::Ready(Ok(0));
        }
        let room = ready!(this.poll_room(cx, wanted))?;
        this.send.send_data(pipe::join(parts, room), false).map_err(broken)?;
        Poll::Ready(Ok(room))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().finish();
        Poll::Ready(Ok(()))
    }
}

impl Drop for SharedPipe {
    fn drop(&mut self) {
        if self.abort.load(Ordering::Relaxed) {
            self.send.send_reset(Reason::CANCEL);
        } else {
            // What was written before is still to arrive; a cut of TLS shows by its missing end.
            self.finish();
        }
    }
}

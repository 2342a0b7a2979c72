//! A stream of a link as what TLS runs over.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::code::ResetCode;
use crate::stream::{RecvHalf, SendHalf, StreamError, TunnelStream};
use crate::transport::tcp::pipe::{self, Pipe};

/// Bytes that are taken by one write.
const MOST: usize = 64 << 10;

pub(super) struct RelayPipe {
    send: SendHalf,
    recv: RecvHalf,
    /// What came and did not fit.
    rest: Bytes,
    abort: AtomicBool,
}

impl RelayPipe {
    pub(super) fn new(stream: TunnelStream) -> Self {
        let (send, recv) = stream.split();
        Self { send, recv, rest: Bytes::new(), abort: AtomicBool::new(false) }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, bytes: Bytes) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.send.poll_write(cx, &mut [bytes]).map_err(broken)
    }
}

fn broken(error: StreamError) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, error)
}

impl Pipe for RelayPipe {
    fn set_abort(&self) {
        self.abort.store(true, Ordering::Relaxed);
    }
}

impl AsyncRead for RelayPipe {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.rest.is_empty() {
            this.rest = ready!(this.recv.poll_read(cx)).map_err(broken)?.unwrap_or_default();
        }
        let length = this.rest.len().min(into.remaining());
        into.put_slice(this.rest.get(..length).unwrap_or_default());
        this.rest.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for RelayPipe {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let part = bytes.get(..bytes.len().min(MOST)).unwrap_or_default();
        self.get_mut().poll_send(cx, Bytes::copy_from_slice(part))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_send(cx, pipe::join(parts, MOST))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().send.finish();
        Poll::Ready(Ok(()))
    }
}

impl Drop for RelayPipe {
    fn drop(&mut self) {
        if self.abort.load(Ordering::Relaxed) {
            self.send.reset(ResetCode::Cancelled);
        } else {
            // What was written before is still to arrive; a cut of TLS shows by its missing end.
            self.send.finish();
        }
    }
}

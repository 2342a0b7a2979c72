//! TLS over a pipe, as bytes both ways.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::ops::Deref;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::transport::tcp::session::{Session, SessionError};

/// What HTTP/2 runs over.
pub(super) struct Below {
    session: Session,
    finished: bool,
}

impl Below {
    pub(super) fn new(session: Session) -> Self {
        Self { session, finished: false }
    }

    pub(super) fn ends(&self) -> Option<(SocketAddr, SocketAddr)> {
        self.session.ends()
    }

    fn poll_send<'a>(
        &mut self,
        cx: &mut Context<'_>,
        parts: impl Iterator<Item = &'a [u8]>,
    ) -> Poll<io::Result<usize>> {
        // Nothing is encrypted before what was has gone: that bounds what waits here.
        ready!(self.session.poll_flush(cx)).map_err(broken)?;
        let taken = self.session.write_parts(parts).map_err(broken)?;
        // What does not go now goes with the next flush.
        if let Poll::Ready(Err(error)) = self.session.poll_flush(cx) {
            return Poll::Ready(Err(broken(error)));
        }
        Poll::Ready(Ok(taken))
    }
}

fn broken(error: SessionError) -> io::Error {
    match error {
        SessionError::Pipe(error) => error,
        SessionError::Alert(_) | SessionError::Tls(_) | SessionError::Truncated => {
            io::Error::new(io::ErrorKind::ConnectionAborted, error)
        }
    }
}

impl AsyncRead for Below {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let chunk = ready!(self.get_mut().session.poll_read(cx, into.remaining())).map_err(broken)?;
        into.put_slice(&chunk.unwrap_or_default());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Below {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().poll_send(cx, std::iter::once(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_send(cx, parts.iter().map(Deref::deref))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().session.poll_flush(cx).map_err(broken)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !std::mem::replace(&mut this.finished, true) {
            this.session.finish();
        }
        this.session.poll_shutdown(cx).map_err(broken)
    }
}

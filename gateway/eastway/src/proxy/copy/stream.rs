//! A stream of a link as one side of a connection.

use std::cell::RefCell;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use eastway_tunnel::{ResetCode, StreamError, TunnelStream};

use super::read::{Chunks, Read};
use super::tcp::PIECES;
use super::{CopyError, Lane, Side};

impl Side for TunnelStream {
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Read<'static>>, CopyError>> {
        thread_local! {
            static CHUNKS: RefCell<Vec<Bytes>> = const { RefCell::new(Vec::new()) };
        }
        CHUNKS.with_borrow_mut(|chunks| {
            chunks.resize(PIECES, Bytes::new());
            let Some(count) = ready!(self.recv.poll_read_chunks(cx, chunks))? else { return Poll::Ready(Ok(None)) };
            Poll::Ready(Ok(Some(Read::from(chunks.drain(..count).collect::<Vec<_>>()))))
        })
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, chunks: &mut Chunks) -> Poll<Result<usize, CopyError>> {
        self.send.poll_write(cx, chunks.rest()).map_err(CopyError::from)
    }

    fn poll_held(&mut self, cx: &mut Context<'_>) {
        self.send.poll_held(cx);
    }

    fn finish(&mut self) -> Result<(), CopyError> {
        self.send.finish();
        Ok(())
    }

    /// A client that does not read must not keep a stream that the other side has cut.
    fn poll_cut(&mut self, cx: &mut Context<'_>, lane: &Lane) -> Poll<CopyError> {
        if lane.taken() == lane.given() {
            return Poll::Pending;
        }
        self.recv.poll_aborted(cx).map(CopyError::from)
    }

    fn close(&mut self, result: &Result<(), CopyError>) {
        if let Err(error) = result {
            let code = reset_code(error);
            self.send.reset(code);
            self.recv.stop(code);
        }
    }
}

/// What the other gateway is told when this side fails.
fn reset_code(error: &CopyError) -> ResetCode {
    match error {
        CopyError::Local(_) => ResetCode::UpstreamReset,
        CopyError::Stream(StreamError::Reset(code)) => *code,
        CopyError::Stream(_) => ResetCode::Internal,
        CopyError::Idle(..) => ResetCode::IdleTimeout,
        CopyError::Revoked => ResetCode::UpstreamReset,
    }
}

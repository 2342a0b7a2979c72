//! The control stream of a link: messages in, messages out, both bounded.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use eastway_proto::control::v1::ControlMessage;

use crate::code::ResetCode;
use crate::control::codec::{self, ControlDecodeError};
use crate::transport::{Halves, RecvStream, SendStream, StreamError};

/// Messages that may wait for the other side to read; more and it does not read.
const MAX_QUEUE: usize = 64;
/// Heartbeats never wait behind a snapshot or a download.
const PRIORITY: i32 = 100;

pub(super) struct ControlStream {
    send: Box<dyn SendStream>,
    recv: Box<dyn RecvStream>,
    input: BytesMut,
    output: VecDeque<Bytes>,
}

/// Why no message came.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ControlStreamError {
    #[error("the control stream ended")]
    Ended,
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error(transparent)]
    Decode(#[from] ControlDecodeError),
}

/// The other side does not read its control stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct QueueFull;

impl ControlStream {
    pub(super) fn new((send, recv): Halves) -> Self {
        send.set_priority(PRIORITY);
        Self { send, recv, input: BytesMut::new(), output: VecDeque::new() }
    }

    pub(super) fn push(&mut self, message: &ControlMessage) -> Result<(), QueueFull> {
        if self.output.len() >= MAX_QUEUE {
            return Err(QueueFull);
        }
        self.output.push_back(codec::encode(message));
        Ok(())
    }

    /// The next message; sends what is queued meanwhile. Pending for ever when the link is lost: its end says
    /// why, this does not. Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<ControlMessage, ControlStreamError> {
        poll_fn(|cx| {
            let result = match self.poll_flush(cx) {
                Poll::Ready(Err(error)) => Poll::Ready(Err(error.into())),
                Poll::Ready(Ok(())) | Poll::Pending => self.poll_next(cx),
            };
            let lost = matches!(result, Poll::Ready(Err(ControlStreamError::Stream(StreamError::LinkLost))));
            if lost { Poll::Pending } else { result }
        })
        .await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<ControlMessage, ControlStreamError>> {
        loop {
            if let Some(message) = codec::decode(&mut self.input)? {
                return Poll::Ready(Ok(message));
            }
            // One message at most is missing: the buffer cannot outgrow one message and one read.
            match ready!(self.recv.poll_read(cx, codec::MAX_MESSAGE))? {
                Some(bytes) => self.input.extend_from_slice(&bytes),
                None => return Poll::Ready(Err(ControlStreamError::Ended)),
            }
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        while !self.output.is_empty() {
            ready!(self.send.poll_write(cx, self.output.make_contiguous()))?;
            while self.output.front().is_some_and(Bytes::is_empty) {
                self.output.pop_front();
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Sends what can be sent at once.
    pub(super) async fn flush_now(&mut self) {
        poll_fn(|cx| {
            // What does not go at once is lost with the link.
            let _pending = self.poll_flush(cx);
            Poll::Ready(())
        })
        .await;
    }
}

impl Drop for ControlStream {
    fn drop(&mut self) {
        self.send.reset(ResetCode::Cancelled);
        self.recv.stop(ResetCode::Cancelled);
    }
}

//! Clients whose connection is being established.

use std::io;
use std::task::{Context, Poll, ready};

use bytes::Bytes;

use crate::proxy::copy::Local;

/// A client, as far as it is read before its connection is established.
pub trait Client: Send {
    /// Its direction has ended.
    fn has_ended(&self) -> bool;

    /// What has come by now, at most some KiB of it, without waiting; an end is left to [`Self::poll_next`].
    ///
    /// # Errors
    /// It has gone.
    fn read_now(&mut self) -> io::Result<Option<Bytes>>;

    /// What comes next, in chunks of some KiB; `None` at the end, which it notes. Cancel safe.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>>;
}

impl Client for Local {
    fn has_ended(&self) -> bool {
        self.ended
    }

    fn read_now(&mut self) -> io::Result<Option<Bytes>> {
        Self::read_now(self)
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        let chunk = ready!(self.reader.poll_read(cx, &self.tcp))?;
        self.ended = chunk.is_none();
        Poll::Ready(Ok(chunk))
    }
}

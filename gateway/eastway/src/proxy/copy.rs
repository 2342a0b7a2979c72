//! Copies a connection, both ways, with half-close and resets kept, and watches that it does not stand still.

mod read;
mod stream;
mod tcp;
mod watch;

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use eastway_tunnel::{StreamError, TunnelStream};

pub use read::{ChunkReader, Chunks, Read, keep_freed};
pub use tcp::{Local, TcpSide, reset_unless_done};
pub use watch::{Limits, Watch};

/// Bytes that a connection carried, readable while it runs.
#[derive(Debug, Default)]
pub struct Transferred {
    /// From the local socket that [`Local`] holds.
    pub from_local: Lane,
    /// To it.
    pub to_local: Lane,
}

impl Transferred {
    /// Both directions have ended in order.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.from_local.is_ended() && self.to_local.is_ended()
    }
}

/// One direction of a connection.
#[derive(Debug, Default)]
pub struct Lane {
    taken: AtomicU64,
    given: AtomicU64,
    ended: AtomicBool,
}

impl Lane {
    /// Bytes taken from where they come from.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// Bytes of those that were handed on.
    #[must_use]
    pub fn given(&self) -> u64 {
        self.given.load(Ordering::Relaxed)
    }

    /// Counts bytes that went through before the copying began.
    pub fn passed(&self, bytes: u64) {
        self.taken.fetch_add(bytes, Ordering::Relaxed);
        self.given.fetch_add(bytes, Ordering::Relaxed);
    }

    fn take(&self, bytes: usize) {
        self.taken.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn give(&self, bytes: usize) {
        self.given.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Its end was handed on too.
    fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    /// Whether its end was handed on.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// Goes on with it by `poll` until its end.
    fn advance(&self, poll: impl FnOnce(&Self) -> Poll<Result<(), CopyError>>) -> Result<(), CopyError> {
        if !self.is_ended()
            && let Poll::Ready(result) = poll(self)
        {
            result?;
            self.end();
        }
        Ok(())
    }
}

/// How a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The local socket failed.
    #[error("local connection: {0}")]
    Local(#[from] io::Error),
    /// The other gateway or the link ended the stream.
    #[error("stream: {0}")]
    Stream(#[from] StreamError),
    /// It stood still for too long.
    #[error("{0} for {1:?}")]
    Idle(Idle, Duration),
    /// Who it goes to is trusted no more.
    #[error("the server's certificate was revoked")]
    Revoked,
}

/// How a connection stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Idle {
    /// No byte moved in either direction.
    #[error("no byte moved")]
    Quiet,
    /// One direction has ended, and no byte moved in the other.
    #[error("half-closed, and no byte moved")]
    HalfClosed,
    /// Bytes wait in one direction, and nobody takes them.
    #[error("bytes wait and nobody took them")]
    Blocked,
}

/// One end of a connection that is copied.
pub trait Side: Send {
    /// Its direction had ended before the copying began.
    fn has_ended(&self) -> bool {
        false
    }

    /// The next bytes from it; `None` at their end.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Read<'static>>, CopyError>>;

    /// So many bytes of those that it gave were handed on.
    fn handed_on(&mut self, _bytes: usize) {}

    /// Takes as much off the front of `chunks`, which are not empty, as there is room for, at least a byte.
    fn poll_write(&mut self, cx: &mut Context<'_>, chunks: &mut Chunks) -> Poll<Result<usize, CopyError>>;

    /// What it keeps back of itself goes in time. Polled after everything else.
    fn poll_held(&mut self, _cx: &mut Context<'_>) {}

    /// Nothing more comes for it; it can go on.
    ///
    /// # Errors
    /// It cannot be told.
    fn finish(&mut self) -> Result<(), CopyError>;

    /// Resolves when it is cut while it is not read: what it gave, as `lane` counts it, waits, or its direction has
    /// ended. Polled after all that reads it.
    fn poll_cut(&mut self, cx: &mut Context<'_>, lane: &Lane) -> Poll<CopyError>;

    /// The copying is over, and ended so.
    fn close(&mut self, result: &Result<(), CopyError>);
}

/// Copies between a local connection and a stream until both directions have ended. Whatever goes
/// wrong on one side is a reset on the other; nothing is truncated silently.
///
/// # Errors
/// The first thing that went wrong.
pub async fn with_stream(
    local: &mut Local,
    stream: &mut TunnelStream,
    moved: &Transferred,
    watch: &mut Watch<'_>,
) -> Result<(), CopyError> {
    between(&mut local.side(), stream, moved, watch).await
}

/// Copies between two ends, of which `one` is the client, until both directions have ended.
///
/// An idle connection is little else than this future: it polls by hand what futures of their own would keep
/// room for.
///
/// # Errors
/// The first thing that went wrong.
pub async fn between(
    one: &mut impl Side,
    other: &mut impl Side,
    moved: &Transferred,
    watch: &mut Watch<'_>,
) -> Result<(), CopyError> {
    let mut result = Ok(());
    if one.has_ended() {
        result = other.finish();
        moved.from_local.end();
    }
    if result.is_ok() {
        let (mut up, mut down) = (None, None);
        let mut watch = pin!(watch.run(moved));
        let copying = poll_fn(|cx| {
            moved.from_local.advance(|lane| poll_lane(cx, one, other, lane, &mut up))?;
            moved.to_local.advance(|lane| poll_lane(cx, other, one, lane, &mut down))?;
            if moved.has_ended() {
                return Poll::Ready(Ok(()));
            }
            one.poll_held(cx);
            other.poll_held(cx);
            if let Poll::Ready(error) = one.poll_cut(cx, &moved.from_local) {
                return Poll::Ready(Err(error));
            }
            if let Poll::Ready(error) = other.poll_cut(cx, &moved.to_local) {
                return Poll::Ready(Err(error));
            }
            watch.as_mut().poll(cx).map(Err)
        });
        result = copying.await;
    }
    one.close(&result);
    other.close(&result);
    result
}

fn poll_lane(
    cx: &mut Context<'_>,
    from: &mut impl Side,
    to: &mut impl Side,
    lane: &Lane,
    read: &mut Option<Read<'static>>,
) -> Poll<Result<(), CopyError>> {
    loop {
        while let Some(Read { chunks, .. }) = read {
            let given = ready!(to.poll_write(cx, chunks))?;
            lane.give(given);
            from.handed_on(given);
            if chunks.is_empty() {
                *read = None;
            }
        }
        *read = ready!(from.poll_read(cx))?;
        let Some(Read { chunks, .. }) = read else { return Poll::Ready(to.finish()) };
        lane.take(chunks.len());
    }
}

#[cfg(test)]
mod tests;

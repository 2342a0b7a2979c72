//! Streams that the other side opened: their header is read here, before they go to the [`StreamHandler`].

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;

use super::{Direction, RecvHalf, STATUS_ACCEPTED, SendHalf, StreamError, StreamShared, TunnelStream};
use crate::code::ResetCode;
use crate::config::ReplicaId;
use crate::flow::{Flow, FlowSink, Slot};
use crate::header::{self, HeaderError, StreamHeader};
use crate::link::LinkShared;
use crate::transport::{BoxFuture, Halves, TransportKind};

/// Where a stream comes from.
#[derive(Clone, Debug)]
pub struct LinkInfo {
    /// The authenticated peer: the only source of the cluster's name (threat P3).
    pub peer: Arc<str>,
    /// Its replica.
    pub replica: ReplicaId,
    /// Its address now. For people: nothing may be decided by it.
    pub remote: SocketAddr,
    /// What carries the link.
    pub transport: TransportKind,
}

/// Serves the streams that peers open. Called for each in a task of its own, which the tunnel owns.
pub trait StreamHandler: Send + Sync + 'static {
    /// Serves one stream to its end. When the future ends, what it still holds of the stream is cut.
    fn handle(&self, link: LinkInfo, header: StreamHeader, stream: AcceptedStream) -> BoxFuture<'static, ()>;
}

/// A stream that the other side opened and that waits for an answer. Dropped without one, it is rejected
/// with `INTERNAL`.
pub struct AcceptedStream {
    halves: Option<(SendHalf, RecvHalf)>,
    /// Of a UDP flow: its packets may come already.
    flow: Option<Slot>,
    /// For the status byte.
    within: Duration,
}

impl AcceptedStream {
    /// Tells the other side that the endpoint was reached, and hands the stream over.
    ///
    /// # Errors
    /// [`StreamError`]: the other side has given up, admits not even one byte, or the link is gone.
    pub async fn accept(mut self) -> Result<TunnelStream, StreamError> {
        let (mut send, mut recv) = self.halves.take().ok_or(StreamError::Closed)?;
        match timeout(self.within, send.write(Bytes::from_static(&[STATUS_ACCEPTED]))).await {
            Ok(written) => written?,
            Err(_elapsed) => {
                send.reset(ResetCode::IdleTimeout);
                recv.stop(ResetCode::IdleTimeout);
                return Err(StreamError::Reset(ResetCode::IdleTimeout));
            }
        }
        Ok(TunnelStream { send, recv })
    }

    /// As [`Self::accept`], and does not wait: the other side is told with the first bytes that are written, or a moment later
    /// by [`SendHalf::poll_held`].
    ///
    /// # Errors
    /// [`StreamError::Closed`], if it was answered before.
    pub fn accept_soon(mut self) -> Result<TunnelStream, StreamError> {
        let (mut send, recv) = self.halves.take().ok_or(StreamError::Closed)?;
        send.hold_status();
        Ok(TunnelStream { send, recv })
    }

    /// As [`Self::accept`], for a flow: `sink` takes its packets from now on.
    ///
    /// # Errors
    /// As [`Self::accept`]; [`StreamError::Closed`] if the header is none of a flow.
    pub async fn accept_flow(mut self, sink: Arc<dyn FlowSink>) -> Result<Flow, StreamError> {
        let slot = self.flow.take().ok_or(StreamError::Closed)?;
        slot.attach(sink);
        Ok(Flow::new(slot, self.accept().await?))
    }

    /// Refuses the stream in both directions.
    pub fn reject(mut self, code: ResetCode) {
        self.cut(code);
    }

    /// Waits until the other side gives up on a stream that is not answered yet: to be awaited beside a dial.
    pub async fn aborted(&mut self) -> StreamError {
        match &mut self.halves {
            Some((_, recv)) => recv.aborted().await,
            None => StreamError::Closed,
        }
    }

    fn cut(&mut self, code: ResetCode) {
        if let Some((mut send, mut recv)) = self.halves.take() {
            send.reset(code);
            recv.stop(code);
        }
    }
}

impl Drop for AcceptedStream {
    fn drop(&mut self) {
        self.cut(ResetCode::Internal);
    }
}

/// Reads the header of a new stream within the deadline. `None`: the stream was refused.
pub(crate) async fn admit(link: &Arc<LinkShared>, halves: Halves) -> Option<(StreamHeader, AcceptedStream)> {
    let (send, recv) = halves;
    let shared = StreamShared::new(link, Direction::Served, None, recv);
    let halves = (SendHalf::new(send, Arc::clone(&shared)), RecvHalf::new(Arc::clone(&shared), false));
    let mut stream = AcceptedStream { halves: Some(halves), flow: None, within: link.timing().header };
    match admissible(link, &shared).await {
        Ok((header, flow)) => {
            stream.flow = flow;
            Some((header, stream))
        }
        Err(code) => {
            stream.cut(code);
            None
        }
    }
}

async fn admissible(link: &Arc<LinkShared>, shared: &StreamShared) -> Result<(StreamHeader, Option<Slot>), ResetCode> {
    if link.over_stream_limit() {
        return Err(ResetCode::Overloaded);
    }
    let header = timeout(link.timing().header, read_header(shared)).await;
    let header = match header {
        Ok(Err(ReadHeaderError::Stream(error))) => return Err(error.code()),
        Ok(Err(ReadHeaderError::Header(error))) => Err(error),
        Ok(Ok(header)) => Ok(header),
        Err(_) => Err(HeaderError::Deadline),
    };
    let admitted = header.and_then(|header| match header.flow() {
        None => Ok((header, None)),
        Some(id) => Slot::serve(link, id).map(|slot| (header, Some(slot))).ok_or(HeaderError::Flow),
    });
    let admitted = admitted.map_err(|error| {
        link.header_refused(&error);
        error.code()
    })?;
    if link.refuses_streams() { Err(ResetCode::Draining) } else { Ok(admitted) }
}

/// Why no header was read.
#[derive(Debug, thiserror::Error)]
enum ReadHeaderError {
    /// The other side gave up before it was read: nobody's fault.
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error(transparent)]
    Header(#[from] HeaderError),
}

/// Reads exactly one header: not a byte of what follows it.
async fn read_header(stream: &StreamShared) -> Result<StreamHeader, ReadHeaderError> {
    let mut buffer = Vec::with_capacity(header::PREFIX);
    let mut missing = header::PREFIX;
    let mut length = None;
    loop {
        while missing > 0 {
            let chunk = poll_fn(|cx| stream.poll_read(cx, missing)).await?;
            let chunk = chunk.ok_or(HeaderError::Truncated)?;
            missing = missing.saturating_sub(chunk.len());
            buffer.extend_from_slice(&chunk);
            if length.is_none() {
                // A wrong byte is answered at once, not when the prefix is complete.
                length = header::decode_prefix(&buffer)?;
            }
        }
        match length {
            Some(length) if buffer.len() == header::PREFIX => {
                buffer.reserve_exact(length);
                missing = length;
            }
            Some(_) => return Ok(header::decode_message(buffer.get(header::PREFIX..).unwrap_or_default())?),
            None => return Err(HeaderError::Malformed.into()),
        }
    }
}

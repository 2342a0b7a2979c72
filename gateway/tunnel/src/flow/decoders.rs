//! Packets of a peer, taken apart: for fuzz targets.

use bytes::{Bytes, BytesMut};

use super::FlowId;
use super::frames::{self, Frames};

/// The packets of a flow's stream.
#[derive(Default)]
pub struct Stream(Frames);

impl Stream {
    /// The packets that the next bytes of the stream complete.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Bytes> {
        let mut packets = Vec::new();
        self.0.push(Bytes::copy_from_slice(bytes), &mut packets);
        packets
    }

    /// Bytes that are kept until the rest of their packet comes.
    #[must_use]
    pub fn kept(&self) -> usize {
        self.0.kept()
    }
}

/// A packet as it goes on the stream.
#[must_use]
pub fn framed(packet: &Bytes) -> Vec<u8> {
    [frames::length(packet), packet.clone()].concat()
}

/// Whose a datagram is, and what of it is the packet. `None`: nobody's.
#[must_use]
pub fn datagram(bytes: &[u8]) -> Option<(FlowId, &[u8])> {
    let (id, length) = FlowId::decode(bytes)?;
    Some((id, bytes.get(length..)?))
}

/// What goes before a packet in a datagram.
#[must_use]
pub fn prefix(id: FlowId) -> Vec<u8> {
    let mut out = BytesMut::new();
    id.encode(&mut out);
    out.to_vec()
}

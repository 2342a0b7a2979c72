//! Names of flows.

use bytes::{BufMut, BytesMut};

use crate::transport::Side;

/// Names one flow on its link; never used again there. Below 2^62. Its lowest bit tells which end of the link opened the
/// flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowId(u64);

/// What fits a variable-length integer.
const MAX: u64 = (1 << 62) - 1;

impl FlowId {
    /// `None`: not below 2^62.
    #[must_use]
    pub const fn new(id: u64) -> Option<Self> {
        if id <= MAX { Some(Self(id)) } else { None }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The one with this number among those that `side` opens.
    pub(super) fn numbered(number: u64, side: Side) -> Option<Self> {
        let bit = match side {
            Side::Dialler => 0,
            Side::Acceptor => 1,
        };
        Self::new(number.checked_mul(2)? | bit)
    }

    /// Which end of the link draws it.
    pub(super) const fn opener(self) -> Side {
        if self.0 & 1 == 0 { Side::Dialler } else { Side::Acceptor }
    }

    /// Bytes on the wire.
    pub(super) const fn length(self) -> usize {
        match self.0 {
            0..=0x3f => 1,
            0x40..=0x3fff => 2,
            0x4000..=0x3fff_ffff => 4,
            _ => 8,
        }
    }

    /// Writes it as a variable-length integer (RFC 9000 §16).
    pub(super) fn encode(self, out: &mut BytesMut) {
        let length = self.length();
        let mark = u64::from(length.trailing_zeros()) << (length * 8 - 2);
        out.put_uint(self.0 | mark, length);
    }

    /// Reads it off the front of a datagram: the id, and its bytes. `None`: there is none.
    pub(super) fn decode(datagram: &[u8]) -> Option<(Self, usize)> {
        let first = *datagram.first()?;
        let length = 1 << (first >> 6);
        let rest = datagram.get(1..length)?;
        let id = rest.iter().fold(u64::from(first & 0x3f), |id, byte| id << 8 | u64::from(*byte));
        Some((Self(id), length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_variable_length_integers() {
        // RFC 9000 appendix A.1, and the limits.
        for (id, bytes) in [
            (0, &[0][..]),
            (37, &[0x25]),
            (63, &[0x3f]),
            (64, &[0x40, 0x40]),
            (15_293, &[0x7b, 0xbd]),
            (16_384, &[0x80, 0, 0x40, 0]),
            (494_878_333, &[0x9d, 0x7f, 0x3e, 0x7d]),
            (151_288_809_941_952_652, &[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c]),
            (MAX, &[0xff; 8]),
        ] {
            let id = FlowId::new(id).unwrap();
            let mut out = BytesMut::new();
            id.encode(&mut out);
            assert_eq!(out, bytes);
            assert_eq!((FlowId::decode(bytes), id.length()), (Some((id, bytes.len())), bytes.len()));
            assert_eq!(FlowId::decode(&bytes[..bytes.len() - 1]), None, "cut");
        }
        assert_eq!(FlowId::new(MAX + 1), None);
        assert_eq!(
            FlowId::decode(&[0x40, 37, 9]).map(|(id, length)| (id.get(), length)),
            Some((37, 2)),
            "longer than need be"
        );
    }

    #[test]
    fn both_ends_draw_ids_of_their_own() {
        for side in [Side::Dialler, Side::Acceptor] {
            assert_eq!(FlowId::numbered(7, side).unwrap().opener(), side);
        }
        assert_eq!(FlowId::numbered(u64::MAX / 2, Side::Dialler), None);
    }
}

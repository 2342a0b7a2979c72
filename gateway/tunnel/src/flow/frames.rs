//! Packets on a stream: each after its length.

use bytes::{Buf, Bytes, BytesMut};

/// The length that goes before a packet. One that is longer than 65,535 bytes, which none is, would be cut short by who
/// reads it.
pub(super) fn length(packet: &Bytes) -> Bytes {
    Bytes::copy_from_slice(&u16::try_from(packet.len()).unwrap_or(u16::MAX).to_be_bytes())
}

/// Takes a stream apart.
#[derive(Default)]
pub(super) struct Frames {
    /// The beginning of a packet and its length; never more than that.
    part: BytesMut,
}

impl Frames {
    /// Bytes that wait for the rest of their packet.
    pub(super) fn kept(&self) -> usize {
        self.part.len()
    }

    /// Takes the next bytes of the stream; the packets that they complete are added to `packets`.
    pub(super) fn push(&mut self, mut chunk: Bytes, packets: &mut Vec<Bytes>) {
        while !chunk.is_empty() {
            if self.part.is_empty()
                && let Some(length) = packet_length(&chunk)
                && chunk.len() >= 2 + length
            {
                chunk.advance(2);
                packets.push(chunk.split_to(length));
                continue;
            }
            let wanted = packet_length(&self.part).map_or(2, |length| 2 + length);
            let more = wanted.saturating_sub(self.part.len()).min(chunk.len());
            self.part.extend_from_slice(&chunk.split_to(more));
            if packet_length(&self.part).is_some_and(|length| self.part.len() == 2 + length) {
                self.part.advance(2);
                packets.push(self.part.split().freeze());
            }
        }
    }
}

fn packet_length(bytes: &[u8]) -> Option<usize> {
    let (length, _) = bytes.split_first_chunk()?;
    Some(usize::from(u16::from_be_bytes(*length)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_packets_come_out_as_they_went_in(
            lengths in proptest::collection::vec(0_usize..=u16::MAX as usize, 0..6),
            size in 1_usize..70_000,
        ) {
            let sent: Vec<Bytes> = lengths.iter().map(|length| Bytes::from(vec![u8::try_from(*length % 251).unwrap_or_default(); *length])).collect();
            let stream: Vec<u8> = sent.iter().flat_map(|packet| [length(packet), packet.clone()].concat()).collect();
            let (mut frames, mut packets) = (Frames::default(), Vec::new());
            for chunk in stream.chunks(size) {
                frames.push(Bytes::copy_from_slice(chunk), &mut packets);
                prop_assert!(frames.kept() < 2 + usize::from(u16::MAX), "what is kept is bounded");
            }
            prop_assert!(packets == sent && frames.kept() == 0);
        }
    }

    #[test]
    fn packets_come_out_whole_wherever_the_stream_is_cut() {
        let sent = [Bytes::from(vec![7; 300]), Bytes::new(), Bytes::from_static(b"x"), Bytes::from(vec![9; 65_507])];
        let stream: Vec<u8> = sent.iter().flat_map(|packet| [length(packet), packet.clone()].concat()).collect();
        for size in [1, 2, 3, 301, 302, 303, 304, 1_000, stream.len()] {
            let (mut frames, mut packets) = (Frames::default(), Vec::new());
            for chunk in stream.chunks(size) {
                frames.push(Bytes::copy_from_slice(chunk), &mut packets);
            }
            assert!(packets == sent, "cut every {size} bytes");
            assert!(frames.part.is_empty());
        }
    }
}

//! What replicas of one cluster send each other: beats, and packets of links in an envelope. Version 1.
//!
//! ```text
//! beat    01 01 state(1) sender(16) stamp(8) echoed sender(16) echoed stamp(8) HMAC-SHA256(32)
//! packet  01 02 sender(4) number(8) sealed{ flow, packet } tag(16)       to the replica whose link it is
//! answer  01 03 sender(4) number(8) sealed{ flow, packet } tag(16)       back, to be sent to the client
//! flow    ECN(1) family(1) address(4|16) port(2) family(1) address(0|4|16)
//! ```
//!
//! Numbers are big endian. The flow is the client's address and the local address that it sent to (family 0: not
//! known). The seal is AES-128-GCM under a key of this sender and this receiver; the first 14 bytes are
//! authenticated with it, and the number is its nonce.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::config::ReplicaId;

/// The only version there is.
pub const VERSION: u8 = 1;
/// Bytes before what is sealed.
pub const HEADER: usize = 14;
/// Bytes of the seal's tag.
pub const TAG: usize = 16;
/// Bytes of a whole beat.
pub const BEAT: usize = SIGNED + 32;
/// Of these, the bytes that its HMAC is over.
pub const SIGNED: usize = 51;
/// Largest packet of a link that is forwarded: more than any path of a link carries.
pub const MAX_PACKET: usize = 9_000;
/// Largest flow.
const MAX_FLOW: usize = 1 + 19 + 17;
/// Largest envelope.
pub const MAX_ENVELOPE: usize = HEADER + MAX_FLOW + MAX_PACKET + TAG;

const KIND_BEAT: u8 = 1;
const KIND_PACKET: u8 = 2;
const KIND_ANSWER: u8 = 3;

/// The beginning of a replica's id: enough to tell those of one cluster apart.
pub type ShortId = [u8; 4];

/// What is on the wire, before anything of it is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Envelope {
    /// A sign of life; the HMAC over its first [`SIGNED`] bytes stands behind them.
    Beat(Beat),
    /// A packet; what is behind [`HEADER`] is sealed.
    Sealed {
        /// Where it goes.
        direction: Direction,
        /// Who sealed it.
        sender: ShortId,
        /// How many that sender had sealed before.
        number: u64,
    },
}

/// A datagram is no envelope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// Another version.
    #[error("the envelope has version {0}, not 1")]
    Version(u8),
    /// Not what it says it is.
    #[error("not an envelope")]
    Malformed,
    /// Larger than any envelope.
    #[error("larger than {MAX_ENVELOPE} bytes")]
    Oversized,
}

/// Where a packet in an envelope goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To the replica whose link it is.
    ToOwner,
    /// Back through the replica that the client's packets arrive at.
    ToClient,
}

/// A sign of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beat {
    /// How its sender is.
    pub state: BeatState,
    /// Who sends it.
    pub sender: ReplicaId,
    /// Milliseconds since its sender started, more with each beat.
    pub stamp: u64,
    /// The last beat that the sender had from where this one goes. Who finds a late stamp of its own here knows
    /// that the sender lives and hears it; nothing recorded earlier says that.
    pub echo: Option<(ReplicaId, u64)>,
}

/// How the sender of a beat is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BeatState {
    /// Takes links.
    Live,
    /// Takes no new links and goes on with those it has.
    Draining,
    /// Has closed all of its links and will not come back under this id.
    Gone,
}

/// Reads as far as no key is needed.
///
/// # Errors
/// [`EnvelopeError`]
pub fn decode(bytes: &[u8]) -> Result<Envelope, EnvelopeError> {
    if bytes.len() > MAX_ENVELOPE {
        return Err(EnvelopeError::Oversized);
    }
    let mut rest = bytes;
    let version = byte(&mut rest).ok_or(EnvelopeError::Malformed)?;
    if version != VERSION {
        return Err(EnvelopeError::Version(version));
    }
    let envelope = match byte(&mut rest) {
        Some(KIND_BEAT) if bytes.len() == BEAT => beat(rest).map(Envelope::Beat),
        Some(KIND_PACKET) if bytes.len() > HEADER + TAG => sealed(rest, Direction::ToOwner),
        Some(KIND_ANSWER) if bytes.len() > HEADER + TAG => sealed(rest, Direction::ToClient),
        _ => None,
    };
    envelope.ok_or(EnvelopeError::Malformed)
}

/// The header of a sealed packet.
#[must_use]
pub fn header(direction: Direction, sender: ShortId, number: u64) -> [u8; HEADER] {
    let kind = match direction {
        Direction::ToOwner => KIND_PACKET,
        Direction::ToClient => KIND_ANSWER,
    };
    let mut header = [0; HEADER];
    let bytes = [VERSION, kind].into_iter().chain(sender).chain(number.to_be_bytes());
    header.iter_mut().zip(bytes).for_each(|(slot, byte)| *slot = byte);
    header
}

fn sealed(mut rest: &[u8], direction: Direction) -> Option<Envelope> {
    let (sender, number) = (array(&mut rest)?, u64::from_be_bytes(array(&mut rest)?));
    Some(Envelope::Sealed { direction, sender, number })
}

fn beat(mut rest: &[u8]) -> Option<Beat> {
    let state = match byte(&mut rest)? {
        1 => BeatState::Live,
        2 => BeatState::Draining,
        3 => BeatState::Gone,
        _ => return None,
    };
    let (sender, stamp) = (ReplicaId(array(&mut rest)?), u64::from_be_bytes(array(&mut rest)?));
    let (echoed, echoed_stamp) = (ReplicaId(array(&mut rest)?), u64::from_be_bytes(array(&mut rest)?));
    let echo = (echoed != ReplicaId([0; 16])).then_some((echoed, echoed_stamp));
    Some(Beat { state, sender, stamp, echo })
}

impl Beat {
    /// All but the HMAC.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let state = match self.state {
            BeatState::Live => 1,
            BeatState::Draining => 2,
            BeatState::Gone => 3,
        };
        let (echoed, echoed_stamp) = self.echo.unwrap_or((ReplicaId([0; 16]), 0));
        let mut bytes = Vec::with_capacity(BEAT);
        bytes.extend([VERSION, KIND_BEAT, state]);
        bytes.extend(self.sender.0);
        bytes.extend(self.stamp.to_be_bytes());
        bytes.extend(echoed.0);
        bytes.extend(echoed_stamp.to_be_bytes());
        bytes
    }
}

/// Which client a packet is of, as the replica saw it that the packet came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// Where the client is.
    pub client: SocketAddr,
    /// Which address of the replica it sent to, if the system said so.
    pub local: Option<IpAddr>,
}

impl Flow {
    /// Puts the flow and the ECN bits of its packet in front of that packet.
    pub fn encode(&self, ecn: u8, out: &mut Vec<u8>) {
        out.push(ecn & 3);
        put_address(Some(self.client.ip()), out);
        out.extend(self.client.port().to_be_bytes());
        put_address(self.local, out);
    }

    /// The flow, the ECN bits, and the packet behind them. `None`: not what [`Flow::encode`] makes.
    #[must_use]
    pub fn decode(mut rest: &[u8]) -> Option<(Self, u8, &[u8])> {
        let ecn = byte(&mut rest).filter(|ecn| *ecn <= 3)?;
        let client = take_address(&mut rest)??;
        let port = u16::from_be_bytes(array(&mut rest)?);
        let local = take_address(&mut rest)?;
        let usable = port != 0 && !client.is_unspecified() && !rest.is_empty() && rest.len() <= MAX_PACKET;
        usable.then_some((Self { client: SocketAddr::new(client, port), local }, ecn, rest))
    }
}

fn put_address(address: Option<IpAddr>, out: &mut Vec<u8>) {
    match address {
        None => out.push(0),
        Some(IpAddr::V4(address)) => {
            out.push(4);
            out.extend(address.octets());
        }
        Some(IpAddr::V6(address)) => {
            out.push(6);
            out.extend(address.octets());
        }
    }
}

fn take_address(rest: &mut &[u8]) -> Option<Option<IpAddr>> {
    match byte(rest)? {
        0 => Some(None),
        4 => array::<4>(rest).map(|octets| Some(Ipv4Addr::from(octets).into())),
        6 => array::<16>(rest).map(|octets| Some(Ipv6Addr::from(octets).into())),
        _ => None,
    }
}

fn byte(rest: &mut &[u8]) -> Option<u8> {
    array::<1>(rest).map(|[byte]| byte)
}

fn array<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (array, after) = rest.split_first_chunk::<N>()?;
    *rest = after;
    Some(*array)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_decoded() {
        let beats = [
            Beat { state: BeatState::Live, sender: ReplicaId([1; 16]), stamp: 7, echo: None },
            Beat {
                state: BeatState::Gone,
                sender: ReplicaId([2; 16]),
                stamp: u64::MAX,
                echo: Some((ReplicaId([3; 16]), 9)),
            },
        ];
        for beat in beats {
            let mut bytes = beat.encode();
            assert_eq!(bytes.len(), SIGNED);
            bytes.extend([0; 32]);
            assert_eq!(decode(&bytes), Ok(Envelope::Beat(beat)));
            bytes[0] = 2;
            assert_eq!(decode(&bytes), Err(EnvelopeError::Version(2)));
        }
        let mut bytes = header(Direction::ToClient, [1, 2, 3, 4], 5).to_vec();
        bytes.extend([0; TAG + 1]);
        let sealed = Envelope::Sealed { direction: Direction::ToClient, sender: [1, 2, 3, 4], number: 5 };
        assert_eq!(decode(&bytes), Ok(sealed));
        assert_eq!(decode(&bytes[..HEADER + TAG]), Err(EnvelopeError::Malformed), "nothing is sealed");
        bytes.resize(MAX_ENVELOPE + 1, 0);
        assert_eq!(decode(&bytes), Err(EnvelopeError::Oversized));
    }

    #[test]
    fn flows_of_both_families_come_back_whole() {
        for (client, local) in [("192.0.2.1:50000", None), ("[2001:db8::1]:1", Some("2001:db8::2"))] {
            let flow = Flow { client: client.parse().unwrap(), local: local.map(|local| local.parse().unwrap()) };
            let mut bytes = Vec::new();
            flow.encode(2, &mut bytes);
            assert!(bytes.len() <= MAX_FLOW);
            assert_eq!(Flow::decode(&bytes), None, "no packet");
            bytes.extend(b"packet");
            assert_eq!(Flow::decode(&bytes), Some((flow, 2, &b"packet"[..])));
            for cut in 0..bytes.len() - 6 {
                assert_eq!(Flow::decode(&bytes[..cut]), None);
            }
        }
    }
}

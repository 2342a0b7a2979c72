//! What crosses on a control connection: the control stream of the link, and what TCP has no words for.
//!
//! One byte of type, a big-endian `u16` length, and so many bytes.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::preface::{code_from_wire, code_to_wire};
use crate::code::{CloseCode, ResetCode};

/// Longest body.
pub(super) const MAX_BODY: usize = 16 << 10;
/// Longest reason of a close, bytes.
const MAX_REASON: usize = 512;
const PREFIX: usize = 3;

const DATA: u8 = 1;
const RESET: u8 = 2;
const STOP: u8 = 3;
const READ: u8 = 4;
const CLOSE: u8 = 5;
const PING: u8 = 6;
const PONG: u8 = 7;
const WANT: u8 = 8;
const DATA_END: u8 = 9;

/// One message of a control connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// Bytes of the control stream.
    Data(Bytes),
    /// The control stream ends in this direction.
    DataEnd,
    /// The sender cuts its direction of a flow.
    Reset {
        flow: u64,
        code: ResetCode,
    },
    /// The sender reads a flow no more.
    Stop {
        flow: u64,
        code: ResetCode,
    },
    /// The sender has read a flow to its end.
    Read {
        flow: u64,
    },
    /// The link ends.
    Close {
        code: CloseCode,
        reason: String,
    },
    /// To be answered with the same number.
    Ping(u64),
    Pong(u64),
    /// The acceptor would like so many connections to wait for it.
    Want(u16),
}

/// Bytes that are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum FrameError {
    #[error("a frame claims {0} bytes; at most {MAX_BODY} are allowed")]
    TooLong(u16),
    #[error("a frame of type {0} has a body that does not fit it")]
    Malformed(u8),
}

impl Frame {
    pub(super) fn encode(&self, out: &mut BytesMut) {
        let flow_and_code =
            |flow: u64, code: ResetCode| [flow.to_be_bytes().as_slice(), &[code_to_wire(code)]].concat();
        match self {
            Self::Data(bytes) => put(out, DATA, bytes),
            Self::DataEnd => put(out, DATA_END, &[]),
            Self::Reset { flow, code } => put(out, RESET, &flow_and_code(*flow, *code)),
            Self::Stop { flow, code } => put(out, STOP, &flow_and_code(*flow, *code)),
            Self::Read { flow } => put(out, READ, &flow.to_be_bytes()),
            Self::Close { code, reason } => {
                let reason = reason.as_bytes();
                let reason = reason.get(..reason.len().min(MAX_REASON)).unwrap_or_default();
                put(out, CLOSE, &[&[u8::try_from(code.to_wire()).unwrap_or(u8::MAX)], reason].concat());
            }
            Self::Ping(number) => put(out, PING, &number.to_be_bytes()),
            Self::Pong(number) => put(out, PONG, &number.to_be_bytes()),
            Self::Want(count) => put(out, WANT, &count.to_be_bytes()),
        }
    }

    /// Takes the first frame off `buffer`. `None`: it is not complete yet. A type that this version does not know is
    /// passed over.
    pub(super) fn decode(buffer: &mut BytesMut) -> Result<Option<Self>, FrameError> {
        loop {
            let Some([kind, high, low]) = buffer.first_chunk::<PREFIX>().copied() else { return Ok(None) };
            let claimed = u16::from_be_bytes([high, low]);
            let length = usize::from(claimed);
            if length > MAX_BODY {
                return Err(FrameError::TooLong(claimed));
            }
            if buffer.len() < PREFIX + length {
                return Ok(None);
            }
            buffer.advance(PREFIX);
            let body = buffer.split_to(length).freeze();
            if (DATA..=DATA_END).contains(&kind) {
                return Self::parse(kind, body).map(Some).ok_or(FrameError::Malformed(kind));
            }
        }
    }

    fn parse(kind: u8, body: Bytes) -> Option<Self> {
        let number = |body: &[u8]| body.try_into().ok().map(u64::from_be_bytes);
        let flow_and_code = |body: &[u8]| {
            let (code, flow) = body.split_last()?;
            Some((number(flow)?, code_from_wire(*code)))
        };
        match kind {
            DATA => Some(Self::Data(body)),
            DATA_END => Some(Self::DataEnd),
            RESET => flow_and_code(&body).map(|(flow, code)| Self::Reset { flow, code }),
            STOP => flow_and_code(&body).map(|(flow, code)| Self::Stop { flow, code }),
            READ => number(&body).map(|flow| Self::Read { flow }),
            CLOSE => {
                let (code, reason) = body.split_first()?;
                let reason = crate::control::printable(&String::from_utf8_lossy(reason));
                Some(Self::Close { code: CloseCode::from_wire(u64::from(*code)), reason })
            }
            PING => number(&body).map(Self::Ping),
            PONG => number(&body).map(Self::Pong),
            WANT => body.as_ref().try_into().ok().map(|count| Self::Want(u16::from_be_bytes(count))),
            _ => None,
        }
    }
}

fn put(out: &mut BytesMut, kind: u8, body: &[u8]) {
    out.put_u8(kind);
    out.put_u16(u16::try_from(body.len()).unwrap_or(u16::MAX));
    out.put_slice(body);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_frame() -> impl Strategy<Value = Frame> {
        let code = || (0..=u8::MAX).prop_map(code_from_wire);
        let close = (0..=u64::from(u8::MAX)).prop_map(CloseCode::from_wire);
        prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..=MAX_BODY).prop_map(|bytes| Frame::Data(bytes.into())),
            Just(Frame::DataEnd),
            (any::<u64>(), code()).prop_map(|(flow, code)| Frame::Reset { flow, code }),
            (any::<u64>(), code()).prop_map(|(flow, code)| Frame::Stop { flow, code }),
            any::<u64>().prop_map(|flow| Frame::Read { flow }),
            (close, "[ -~]{0,200}").prop_map(|(code, reason)| Frame::Close { code, reason }),
            any::<u64>().prop_map(Frame::Ping),
            any::<u64>().prop_map(Frame::Pong),
            any::<u16>().prop_map(Frame::Want),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_frames_are_read_as_they_were_written(
            frames in proptest::collection::vec(any_frame(), 0..8),
            size in 1_usize..5_000,
        ) {
            let mut bytes = BytesMut::new();
            frames.iter().for_each(|frame| frame.encode(&mut bytes));
            let (mut input, mut read) = (BytesMut::new(), Vec::new());
            for piece in bytes.chunks(size) {
                input.extend_from_slice(piece);
                while let Some(frame) = Frame::decode(&mut input).unwrap() {
                    read.push(frame);
                }
                prop_assert!(input.len() < PREFIX + MAX_BODY);
            }
            prop_assert!(read == frames && input.is_empty());
        }
    }

    #[test]
    fn frames_are_read_as_written_whatever_the_pieces() {
        let frames = [
            Frame::Data(Bytes::from_static(b"hello")),
            Frame::DataEnd,
            Frame::Reset { flow: 7, code: ResetCode::Draining },
            Frame::Stop { flow: u64::MAX, code: ResetCode::UpstreamReset },
            Frame::Read { flow: 0 },
            Frame::Close { code: CloseCode::Revoked, reason: "no longer".to_owned() },
            Frame::Ping(1),
            Frame::Pong(2),
            Frame::Want(300),
        ];
        let mut bytes = BytesMut::new();
        for frame in &frames {
            frame.encode(&mut bytes);
            put(&mut bytes, 200, b"of a later version");
        }
        let (mut input, mut read) = (BytesMut::new(), Vec::new());
        for byte in bytes {
            input.put_u8(byte);
            read.extend(Frame::decode(&mut input).unwrap());
        }
        assert_eq!(read, frames);
        assert!(input.is_empty());
    }

    #[test]
    fn u5_whatever_comes_is_read_or_refused_and_nothing_is_kept_that_was_read() {
        let mut random = fastrand::Rng::with_seed(5);
        for _ in 0..20_000 {
            let length = random.usize(0..64);
            let mut input: BytesMut = std::iter::repeat_with(|| random.u8(..12)).take(length).collect();
            loop {
                let before = input.len();
                match Frame::decode(&mut input) {
                    Ok(Some(_)) => assert!(input.len() < before),
                    Ok(None) | Err(_) => break,
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for (bytes, error) in [
            (&[RESET, 0, 1, 0][..], FrameError::Malformed(RESET)),
            (&[CLOSE, 0, 0], FrameError::Malformed(CLOSE)),
            (&[WANT, 0, 3, 0, 0, 0], FrameError::Malformed(WANT)),
            (&[DATA, 0xff, 0xff], FrameError::TooLong(0xffff)),
        ] {
            assert_eq!(Frame::decode(&mut BytesMut::from(bytes)), Err(error));
        }
    }
}

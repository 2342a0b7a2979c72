//! Messages in a byte stream: a big-endian u32 length of at most [`MAX_MESSAGE`], then the message.
//!
//! Nothing is compressed, so no length lies about the memory it costs.

use std::marker::PhantomData;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;

use crate::close::CloseReason;

/// Largest message, bytes, without its length field.
pub const MAX_MESSAGE: usize = 1 << 20;

/// Bytes of the length field.
pub const LENGTH_FIELD: usize = 4;

/// Why a stream cannot be read on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length field says more than [`MAX_MESSAGE`].
    #[error("message of {0} bytes; at most {MAX_MESSAGE} are allowed")]
    TooLarge(usize),
    /// A frame that is no message; the decoder's words.
    #[error("not a message: {0}")]
    Malformed(String),
}

impl FrameError {
    /// Why the session ends.
    #[must_use]
    pub fn close_reason(&self) -> CloseReason {
        match self {
            Self::TooLarge(bytes) => CloseReason::MessageTooLarge { bytes: *bytes },
            Self::Malformed(words) => CloseReason::Malformed(words.clone()),
        }
    }
}

/// The message with its length field.
///
/// # Errors
/// [`FrameError::TooLarge`]; sessions never make such a message.
pub fn encode(message: &impl Message) -> Result<Bytes, FrameError> {
    let length = message.encoded_len();
    if length > MAX_MESSAGE {
        return Err(FrameError::TooLarge(length));
    }
    let mut out = BytesMut::with_capacity(LENGTH_FIELD + length);
    out.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    message.encode_raw(&mut out);
    Ok(out.freeze())
}

/// Cuts a stream into messages. It holds one incomplete message and the last push at most, if the
/// caller takes all messages after each push.
#[derive(Debug)]
pub struct Decoder<M> {
    buffer: BytesMut,
    failed: Option<FrameError>,
    message: PhantomData<fn() -> M>,
}

impl<M: Message + Default> Decoder<M> {
    /// At the beginning of a stream.
    #[must_use]
    pub fn new() -> Self {
        Self { buffer: BytesMut::new(), failed: None, message: PhantomData }
    }

    /// Adds bytes as they arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.failed.is_none() {
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// The next whole message, if there is one.
    ///
    /// # Errors
    /// [`FrameError`]; it stays, since nothing behind a bad frame can be trusted.
    pub fn next_message(&mut self) -> Result<Option<M>, FrameError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.cut().inspect_err(|error| {
            self.failed = Some(error.clone());
            self.buffer = BytesMut::new();
        })
    }

    fn cut(&mut self) -> Result<Option<M>, FrameError> {
        let Some(field) = self.buffer.first_chunk::<LENGTH_FIELD>() else {
            return Ok(None);
        };
        let length = usize::try_from(u32::from_be_bytes(*field)).unwrap_or(usize::MAX);
        if length > MAX_MESSAGE {
            return Err(FrameError::TooLarge(length));
        }
        if self.buffer.len() < LENGTH_FIELD + length {
            return Ok(None);
        }
        self.buffer.advance(LENGTH_FIELD);
        let frame = self.buffer.split_to(length).freeze();
        M::decode(frame).map(Some).map_err(|error| FrameError::Malformed(error.to_string()))
    }

    /// Bytes waiting for the rest of their message.
    #[must_use]
    pub fn buffered(&self) -> usize {
        self.buffer.len()
    }
}

impl<M: Message + Default> Default for Decoder<M> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use eastway_proto::federation::v1::{Ack, ImporterMessage, Resync, importer_message::Body};

    use super::*;

    fn ack(sequence: u64) -> ImporterMessage {
        ImporterMessage { body: Some(Body::Ack(Ack { sequence })) }
    }

    #[test]
    fn any_cut_gives_the_same_messages() {
        let messages = [ack(1), ImporterMessage::default(), ack(u64::MAX)];
        let stream: Vec<u8> = messages.iter().flat_map(|m| encode(m).unwrap()).collect();
        for size in 1..=stream.len() {
            let mut decoder = Decoder::<ImporterMessage>::new();
            let mut out = Vec::new();
            for piece in stream.chunks(size) {
                decoder.push(piece);
                while let Some(message) = decoder.next_message().unwrap() {
                    out.push(message);
                }
            }
            assert_eq!(out, messages, "pieces of {size}");
            assert_eq!(decoder.buffered(), 0);
        }
    }

    #[test]
    fn p7_a_large_frame_is_refused_by_its_length_field() {
        let mut decoder = Decoder::<ImporterMessage>::new();
        decoder.push(&(u32::try_from(MAX_MESSAGE).unwrap() + 1).to_be_bytes());
        let error = decoder.next_message().unwrap_err();
        assert_eq!(error, FrameError::TooLarge(MAX_MESSAGE + 1));
        assert!(error.close_reason().to_string().starts_with("RESOURCE_EXHAUSTED MESSAGE_TOO_LARGE"));
        decoder.push(&[0; 100]);
        assert!(decoder.next_message().is_err(), "nothing behind it is read");
        assert_eq!(decoder.buffered(), 0, "nor kept");
        let large = ImporterMessage { body: Some(Body::Resync(Resync { reason: "x".repeat(MAX_MESSAGE) })) };
        assert!(encode(&large).is_err());
    }

    #[test]
    fn p7_garbage_is_refused() {
        let mut decoder = Decoder::<ImporterMessage>::new();
        decoder.push(&[0, 0, 0, 3, 0xff, 0xff, 0xff]);
        assert!(matches!(decoder.next_message(), Err(FrameError::Malformed(_))));
    }
}

//! Control messages as bytes: a big-endian `u32` length of at most [`MAX_MESSAGE`], then the message.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use eastway_proto::control::v1::ControlMessage;
use prost::Message;

/// Longest control message: a chain of certificates fits many times over.
pub const MAX_MESSAGE: usize = 64 << 10;
const PREFIX: usize = 4;

/// Why bytes are no control message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlDecodeError {
    /// Longer than a message may be.
    #[error("a control message claims {0} bytes; at most {MAX_MESSAGE} are allowed")]
    TooLong(u32),
    /// Not protobuf, or a field of the wrong type.
    #[error("a control message cannot be decoded")]
    Malformed,
}

/// The bytes of a message.
#[must_use]
pub fn encode(message: &ControlMessage) -> Bytes {
    let length = message.encoded_len();
    let mut out = BytesMut::with_capacity(PREFIX + length);
    // Messages of this side are far below 64 KiB.
    out.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    message.encode_raw(&mut out);
    out.freeze()
}

/// Takes the first message off `buffer`. `None`: it is not complete yet; a caller that reads on only then never
/// holds more than one message and one read.
///
/// # Errors
/// [`ControlDecodeError`]; nothing after it can be understood.
pub fn decode(buffer: &mut BytesMut) -> Result<Option<ControlMessage>, ControlDecodeError> {
    let Some(prefix) = buffer.first_chunk::<PREFIX>() else { return Ok(None) };
    let claimed = u32::from_be_bytes(*prefix);
    let length = usize::try_from(claimed).ok().filter(|length| *length <= MAX_MESSAGE);
    let length = length.ok_or(ControlDecodeError::TooLong(claimed))?;
    if buffer.len() < PREFIX + length {
        return Ok(None);
    }
    buffer.advance(PREFIX);
    ControlMessage::decode(buffer.split_to(length)).map(Some).map_err(|_| ControlDecodeError::Malformed)
}

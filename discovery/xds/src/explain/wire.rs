//! Fields of an encoded message (<https://protobuf.dev/programming-guides/encoding>).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

/// The value of a field, before its type is known.
#[derive(Clone, Copy, Debug)]
pub(super) enum Raw<'a> {
    /// A number, a truth value or a value of an enumeration.
    Varint(u64),
    /// Eight bytes.
    Fixed64(u64),
    /// Text, bytes, a message, or packed numbers.
    Bytes(&'a [u8]),
    /// Four bytes.
    Fixed32(u32),
}

impl<'a> Raw<'a> {
    /// It as a number; 0 if it is none.
    pub(super) fn varint(&self) -> u64 {
        match self {
            Self::Varint(value) | Self::Fixed64(value) => *value,
            Self::Fixed32(value) => u64::from(*value),
            Self::Bytes(_) => 0,
        }
    }

    pub(super) fn bytes(&self) -> Option<&'a [u8]> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            Self::Varint(_) | Self::Fixed64(_) | Self::Fixed32(_) => None,
        }
    }

    /// It, without knowing what it means.
    pub(super) fn unknown(&self) -> Value {
        match self {
            Self::Bytes(bytes) => json!(BASE64.encode(bytes)),
            Self::Varint(_) | Self::Fixed64(_) | Self::Fixed32(_) => json!(self.varint()),
        }
    }
}

/// The fields of a message by number, as far as they can be read.
pub(super) fn fields(mut bytes: &[u8]) -> impl Iterator<Item = (u64, Raw<'_>)> {
    std::iter::from_fn(move || {
        let tag = varint(&mut bytes)?;
        let raw = match tag & 7 {
            0 => Raw::Varint(varint(&mut bytes)?),
            1 => Raw::Fixed64(u64::from_le_bytes(take(&mut bytes, 8)?.try_into().ok()?)),
            2 => {
                let length = usize::try_from(varint(&mut bytes)?).ok()?;
                Raw::Bytes(take(&mut bytes, length)?)
            }
            5 => Raw::Fixed32(u32::from_le_bytes(take(&mut bytes, 4)?.try_into().ok()?)),
            _ => return None,
        };
        Some((tag >> 3, raw))
    })
}

/// Numbers of this type, one after the other.
pub(super) fn packed<'a>(shape: &'a str, mut bytes: &'a [u8]) -> impl Iterator<Item = Raw<'a>> {
    std::iter::from_fn(move || match shape {
        "double" | "fixed64" => Some(Raw::Fixed64(u64::from_le_bytes(take(&mut bytes, 8)?.try_into().ok()?))),
        "float" | "fixed32" => Some(Raw::Fixed32(u32::from_le_bytes(take(&mut bytes, 4)?.try_into().ok()?))),
        _ => varint(&mut bytes).map(Raw::Varint),
    })
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(taken)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

//! `link.quicLb` after all checks.

use std::path::Path;

use eastway_registry::diagnostic::Code;
use eastway_registry::yaml::{At, Context};

use super::{QuicLbSettings, convert};
use crate::config::file::QuicLbSection;

/// Lengths of the server id and of the nonce, and of both together: what fits a connection id of QUIC version 1.
const MAX_SERVER_ID: usize = 15;
const MIN_NONCE: usize = 4;
const MAX_TOGETHER: usize = 19;

pub(super) fn settings(section: &At<QuicLbSection>, base: &Path, cx: &mut Context<'_>) -> QuicLbSettings {
    let lb = &section.value;
    let server_id = lb.server_id.get().and_then(|text| {
        cx.parse(text, |text| {
            let bytes = hex(text).filter(|bytes| (1..=MAX_SERVER_ID).contains(&bytes.len()));
            bytes.ok_or("must be 1 to 15 bytes as hexadecimal digits, e.g. 0x2d6575a16fa08ea4")
        })
    });
    let configuration = lb.configuration.get().and_then(|number| {
        cx.checked(number, |number| u8::try_from(*number).ok().filter(|number| *number <= 6).ok_or("must be 0 to 6"))
    });
    let nonce_length = lb.nonce_length.get().and_then(|length| {
        cx.checked(length, |length| {
            let length = usize::try_from(*length).ok().filter(|length| (MIN_NONCE..MAX_TOGETHER).contains(length));
            length.ok_or("must be 4 to 18")
        })
    });
    let nonce_length = nonce_length.unwrap_or(MIN_NONCE);
    if let Some(together) = server_id.as_ref().map(|id| id.len() + nonce_length).filter(|sum| *sum > MAX_TOGETHER) {
        let message = format!("serverId and nonceLength are {together} bytes; at most {MAX_TOGETHER} fit");
        cx.error(lb.nonce_length.get().map_or(section.at, |length| length.at), Code::TooLarge, message);
    }
    let key_file = lb.key_file.get().and_then(|text| convert::path(text, base, cx));
    QuicLbSettings { server_id, configuration: configuration.unwrap_or(0), nonce_length, key_file }
}

/// Bytes of hexadecimal digits, with or without `0x`.
pub(crate) fn hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.strip_prefix("0x").unwrap_or(text).as_bytes();
    let pairs = digits.chunks(2).map(|pair| {
        let text = std::str::from_utf8(pair).ok().filter(|pair| pair.len() == 2)?;
        u8::from_str_radix(text, 16).ok().filter(|_| pair.iter().all(u8::is_ascii_hexdigit))
    });
    pairs.collect()
}

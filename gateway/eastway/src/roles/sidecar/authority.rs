//! Connections of gRPC's C core, which over a Unix socket names the socket's path as the authority of its requests, with
//! `%2F` for each slash. That is no authority that HTTP/2's other libraries let pass: ours ends the stream. So `%` becomes
//! `-` in the authority of requests before it is read. Nothing here looks at it.
//!
//! A header that is sent as a literal is patched in place (RFC 7541 §6.2); C core compresses none. All else goes through as
//! it is.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

/// `PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n` (RFC 9113 §3.4).
const PREFACE: usize = 24;
/// A frame's header (§4.1), its types that hold fields (§6.2, §6.10), and the largest that we accept.
const FRAME_HEADER: usize = 9;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const MAX_FRAME: usize = 16 << 10;
/// The name as a literal: its length, and it.
const NAME: &[u8] = b"\x0a:authority";
/// Bytes read at once.
const READ: usize = 8 << 10;

/// A connection whose requests' authority can be read.
#[derive(Debug)]
pub(super) struct Readable<S> {
    inner: S,
    frames: Frames,
    ready: Bytes,
}

impl<S> Readable<S> {
    pub(super) fn new(inner: S) -> Self {
        Self { inner, frames: Frames::default(), ready: Bytes::new() }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Readable<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.ready.is_empty() {
            let mut space = [0; READ];
            let mut read = ReadBuf::new(&mut space);
            ready!(Pin::new(&mut self.inner).poll_read(cx, &mut read))?;
            if read.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.ready = self.frames.take(read.filled());
        }
        let size = self.ready.len().min(buf.remaining());
        buf.put_slice(&self.ready.split_to(size));
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Readable<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

impl<S: Connected> Connected for Readable<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.inner.connect_info()
    }
}

/// Where in the frames a connection is.
#[derive(Debug)]
struct Frames {
    /// Bytes that go through before the next frame begins.
    pass: usize,
    /// A frame of fields, or the beginning of any, until it is whole.
    held: BytesMut,
}

impl Default for Frames {
    fn default() -> Self {
        Self { pass: PREFACE, held: BytesMut::new() }
    }
}

impl Frames {
    /// What can go on now.
    fn take(&mut self, mut bytes: &[u8]) -> Bytes {
        let mut out = BytesMut::with_capacity(bytes.len() + self.held.len());
        while !bytes.is_empty() {
            if self.pass > 0 {
                self.pass -= move_some(&mut bytes, self.pass, &mut out);
                continue;
            }
            let missing = FRAME_HEADER.saturating_sub(self.held.len());
            move_some(&mut bytes, missing, &mut self.held);
            let &[a, b, c, kind, ..] = &*self.held else { continue };
            if self.held.len() < FRAME_HEADER {
                continue;
            }
            let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
            if !matches!(kind, HEADERS | CONTINUATION) || length > MAX_FRAME {
                out.extend_from_slice(&self.held.split());
                self.pass = length;
                continue;
            }
            let missing = (FRAME_HEADER + length).saturating_sub(self.held.len());
            move_some(&mut bytes, missing, &mut self.held);
            if self.held.len() == FRAME_HEADER + length {
                patch(&mut self.held);
                out.extend_from_slice(&self.held.split());
            }
        }
        out.freeze()
    }
}

/// At most so many.
fn move_some(from: &mut &[u8], most: usize, to: &mut BytesMut) -> usize {
    let size = most.min(from.len());
    let (moved, _) = from.split_at_checked(size).unwrap_or_default();
    to.extend_from_slice(moved);
    from.advance(size);
    size
}

/// Makes the authorities in a frame's fields readable.
fn patch(frame: &mut [u8]) {
    let places: Vec<usize> =
        frame.windows(NAME.len()).enumerate().filter(|(_, window)| *window == NAME).map(|(place, _)| place).collect();
    for place in places {
        let Some(rest) = frame.get_mut(place + NAME.len()..) else { continue };
        let Some((length, skip)) = string_length(rest) else { continue };
        let value = rest.get_mut(skip..).and_then(|rest| rest.get_mut(..length));
        for byte in value.into_iter().flatten().filter(|byte| **byte == b'%') {
            *byte = b'-';
        }
    }
}

/// The length of a string that is not compressed, and that of the length itself (RFC 7541 §5.1, §5.2). None of ours takes
/// three bytes.
fn string_length(bytes: &[u8]) -> Option<(usize, usize)> {
    match *bytes {
        [length, ..] if length < 0x7f => Some((usize::from(length), 1)),
        [0x7f, more, ..] if more < 0x80 => Some((0x7f + usize::from(more), 2)),
        [0x7f, low, high, ..] if high < 0x80 => Some((0x7f + usize::from(low & 0x7f) + (usize::from(high) << 7), 3)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let length = u8::try_from(payload.len()).unwrap();
        [&[0, 0, length, kind, 4, 0, 0, 0, 1], payload].concat()
    }

    fn connection(authority: &str) -> Vec<u8> {
        let mut value = vec![0x40];
        value.extend_from_slice(NAME);
        value.push(u8::try_from(authority.len()).unwrap());
        value.extend_from_slice(authority.as_bytes());
        let fields = [value.as_slice(), b"\x83\x86@\x05:path\x06/a%2Fb"].concat();
        let data = [NAME, b"\x03%2F"].concat();
        [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(4, &[]), &frame(1, &fields), &frame(0, &data)].concat()
    }

    #[test]
    fn the_authority_alone_is_changed_however_it_comes() {
        let (sent, wanted) = (connection("run%2Fa%2Fagent.sock"), connection("run-2Fa-2Fagent.sock"));
        for size in [1, 2, 5, 24, 33, 1_000] {
            let mut frames = Frames::default();
            let got: Vec<u8> = sent.chunks(size).flat_map(|chunk| frames.take(chunk)).collect();
            assert_eq!(got, wanted, "in pieces of {size}");
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_nothing_is_lost_or_added(
            parts in vec(prop_oneof![
                vec(any::<u8>(), 0..40),
                (any::<u8>(), vec(any::<u8>(), 0..60)).prop_map(|(kind, payload)| frame(kind % 10, &payload)),
                Just(connection("a%2Fb")[PREFACE..].to_vec()),
            ], 0..12),
            size in 1_usize..50,
        ) {
            let sent = [vec![b'x'; PREFACE], parts.concat()].concat();
            let mut frames = Frames::default();
            let got: Vec<u8> = sent.chunks(size).flat_map(|chunk| frames.take(chunk)).collect();
            prop_assert_eq!(got.len() + frames.held.len(), sent.len());
            let is_kept = |(sent, got): (&u8, &u8)| sent == got || (*sent, *got) == (b'%', b'-');
            prop_assert!(sent.iter().zip(&got).all(is_kept));
        }
    }

    #[test]
    fn lengths_of_one_to_three_bytes() {
        assert_eq!(string_length(&[5]), Some((5, 1)));
        assert_eq!(string_length(&[0x7f, 0]), Some((127, 2)));
        assert_eq!(string_length(&[0x7f, 0x80, 1]), Some((255, 3)));
        assert_eq!(string_length(&[0x85]), None, "compressed");
        assert_eq!(string_length(&[0x7f]), None);
        // What is cut short or lies is left as it is.
        let mut bad = [NAME, &[200, b'%']].concat();
        let before = bad.clone();
        patch(&mut bad);
        assert_eq!(bad, before);
    }
}

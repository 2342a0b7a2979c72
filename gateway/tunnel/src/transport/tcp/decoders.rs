//! What others say on connections of this transport, read and written again: for fuzz targets, which compare.

use bytes::{Bytes, BytesMut};

use super::frames::Frame;
use super::preface::Preface;
use super::proxy;

/// What was made of the bytes of a control connection.
#[derive(Debug, PartialEq, Eq)]
pub struct Reread {
    /// Its frames, each written again.
    pub frames: Vec<Bytes>,
    /// Why no more is read.
    pub refused: Option<String>,
    /// Bytes that are kept until the rest of their frame comes.
    pub kept: usize,
}

/// Reads frames that come in these pieces.
pub fn frames<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Reread {
    let (mut input, mut frames) = (BytesMut::new(), Vec::new());
    for piece in pieces {
        input.extend_from_slice(piece);
        loop {
            match Frame::decode(&mut input) {
                Ok(Some(frame)) => {
                    let mut again = BytesMut::new();
                    frame.encode(&mut again);
                    frames.push(again.freeze());
                }
                Ok(None) => break,
                Err(error) => return Reread { frames, refused: Some(error.to_string()), kept: input.len() },
            }
        }
    }
    Reread { frames, refused: None, kept: input.len() }
}

/// Reads what a connection says first, and writes it again. `None`: it is not complete yet.
///
/// # Errors
/// Why it is refused.
pub fn preface(bytes: &[u8]) -> Result<Option<Vec<u8>>, String> {
    let preface = Preface::decode(bytes).map_err(|error| error.to_string())?;
    Ok(preface.map(|preface| preface.encode()))
}

/// Reads what an HTTP proxy answers: code, and code with reason as it is shown. `None`: it is not complete yet.
///
/// # Errors
/// Why it is refused.
pub fn proxy_answer(head: &[u8]) -> Result<Option<(u16, String)>, String> {
    let answer = proxy::answer(head).map_err(|error| error.to_string())?;
    Ok(answer.map(|answer| (answer.code, answer.line)))
}

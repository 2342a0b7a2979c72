//! What a client sends before anybody has confirmed its connection.

use std::collections::VecDeque;

use bytes::Bytes;
use tokio::net::TcpStream;

/// Bytes of the client that are kept until the owner has dialled (design: data stream).
const REPLAY_LIMIT: usize = 64 * 1024;

/// What the client sent while nobody had confirmed it.
#[derive(Debug, Default)]
pub(super) struct Replay {
    chunks: VecDeque<Bytes>,
    bytes: usize,
}

impl Replay {
    pub(super) fn push(&mut self, chunk: Bytes) {
        self.bytes += chunk.len();
        self.chunks.push_back(chunk);
    }

    pub(super) fn has_room(&self) -> bool {
        self.bytes < REPLAY_LIMIT
    }

    pub(super) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Bytes of it.
    pub(super) fn len(&self) -> usize {
        self.bytes
    }

    /// What goes with a header; empty if there is nothing.
    pub(super) fn first(&self) -> Bytes {
        self.chunks.front().cloned().unwrap_or_default()
    }

    /// What goes after it.
    pub(super) fn others(&self) -> impl Iterator<Item = &Bytes> {
        self.chunks.iter().skip(1)
    }

    /// Says it to an endpoint.
    pub(super) async fn write_to(&self, tcp: &TcpStream) -> std::io::Result<()> {
        for chunk in &self.chunks {
            let mut rest = chunk.clone();
            while !rest.is_empty() {
                tcp.writable().await?;
                match tcp.try_write(&rest) {
                    Ok(written) => rest = rest.slice(written..),
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }
}

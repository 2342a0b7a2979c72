//! Few TCP connections for many of a link's, where connections are scarce: each pipe is a stream of HTTP/2 that CONNECT
//! opened (RFC 9113 §8.5). Below is TLS with both sides authenticated, so that no stranger reaches the HTTP/2; what
//! crosses a pipe is what would cross a TCP connection: TLS end to end, prefaces and proofs.

mod accept;
mod dial;
mod io;
mod pipe;
mod windows;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use h2::FlowControl;

pub(super) use self::accept::serve;
pub(super) use self::dial::Sharing;
use super::link::lock;
use super::losses::Segments;

/// Where CONNECT leads to, and the only place: whoever takes the connection.
const AUTHORITY: &str = "gateway.eastway.invalid:15443";
/// Pipes of one connection. What each costs is bounded as that of a connection is.
const MAX_PIPES: u32 = 4_096;
/// A request of ours has some fifty bytes of header.
const MAX_HEADER_LIST: u32 = 2 << 10;
/// The smallest maximum that HTTP/2 knows: what is small never waits for more than that of each other pipe.
const MAX_FRAME: u32 = 16 << 10;
/// Bytes of a pipe that wait to be sent, beside those in its window.
const SEND_BUFFER: usize = 256 << 10;
/// Overhead of small frames that wait here, as h2 counts it (up to 256 bytes each); more ends the connection.
const SMALL_FRAMES: usize = 32 << 20;
/// Pipes that may be reset before they are looked at; more is taken for an attack (CVE-2023-44487) and ends the connection.
const MAX_RESETS_BEFORE_LOOK: usize = 64;
/// Pipes that are remembered after a reset, and for how long: what is still on its way to them is no fault.
const RESET_MEMORY: (usize, Duration) = (MAX_PIPES as usize, Duration::from_secs(10));
/// Pipes that broke the protocol, over the life of a connection (CVE-2025-8671).
const MAX_FAULTY_PIPES: usize = 4 * MAX_PIPES as usize;

/// The bounds of either side.
macro_rules! bounded {
    ($builder:expr, $limits:expr) => {{
        let mut builder = $builder;
        builder
            .max_concurrent_streams(MAX_PIPES)
            .initial_window_size(windows::pipe(0, $limits))
            .initial_connection_window_size(windows::connection(0, $limits))
            .max_frame_size(MAX_FRAME)
            .max_header_list_size(MAX_HEADER_LIST)
            .header_table_size(0)
            .max_send_buffer_size(SEND_BUFFER)
            .data_frame_budget(SMALL_FRAMES)
            .max_pending_accept_reset_streams(MAX_RESETS_BEFORE_LOOK)
            .max_local_error_reset_streams(Some(MAX_FAULTY_PIPES))
            .max_concurrent_reset_streams(RESET_MEMORY.0)
            .reset_stream_duration(RESET_MEMORY.1);
        builder
    }};
}
use bounded;

/// A TCP connection that pipes share.
pub(crate) struct Carrier {
    /// Its two ends, if the system knows it.
    ends: Option<(SocketAddr, SocketAddr)>,
    /// What became of its segments, when one of its pipes looked last.
    seen: Mutex<Segments>,
    /// Of pipes that are open.
    flows: Mutex<HashMap<u64, FlowControl>>,
    pipes: AtomicU32,
    next: AtomicU64,
    /// It takes no more pipes: it has ended, or leads to another gateway of the peer than the link.
    retired: AtomicBool,
}

impl Carrier {
    fn new(ends: Option<(SocketAddr, SocketAddr)>) -> Self {
        Self {
            ends,
            seen: Mutex::default(),
            flows: Mutex::default(),
            pipes: AtomicU32::new(0),
            next: AtomicU64::new(0),
            retired: AtomicBool::new(false),
        }
    }

    /// No further pipe is to be made of it.
    pub(crate) fn retire(&self) {
        self.retired.store(true, Ordering::Relaxed);
    }

    fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Relaxed)
    }

    /// What its segments were at the last look, whichever pipe it was for; from now on it is `now`.
    pub(super) fn seen(&self, now: Segments) -> Segments {
        std::mem::replace(&mut *lock(&self.seen), now)
    }

    fn pipes(&self) -> u32 {
        self.pipes.load(Ordering::Relaxed)
    }

    /// Bytes of all pipes that nobody has read yet.
    fn unread(&self) -> u64 {
        lock(&self.flows).values().map(|flow| flow.used_capacity() as u64).sum()
    }
}

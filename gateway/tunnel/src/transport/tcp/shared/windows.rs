//! How many bytes of shared connections may wait to be read.
//!
//! One window is for all pipes of a connection, and pipes that nobody reads must never fill it: it has room for
//! those that move, and on top of that for what lies unread, up to the most that a link may hold. A pipe alone may have
//! as much under way as a long path holds, less when much lies unread already. Streams that nobody reads are cut as
//! on every link.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::Carrier;
use crate::config::TunnelLimits;

/// Between two looks, and for each thousand pipes more.
const TICK: Duration = Duration::from_millis(50);
const TICK_PER_THOUSAND: Duration = Duration::from_millis(25);
/// Bytes that a pipe may have under way: HTTP/2 gives window back by halves, and one half holds 100 ms of 1 Gbit/s.
const LONG_PATH: u32 = 24 << 20;
/// When more is not to be had: 4 Mbit/s and more on any path.
const LEAST: u32 = 256 << 10;

/// The window of a connection where `unread` bytes lie.
pub(super) fn connection(unread: u64, limits: &TunnelLimits) -> u32 {
    let most = limits.link_window_max.max(limits.link_window);
    u32::try_from(unread).unwrap_or(u32::MAX).saturating_add(limits.link_window).min(most)
}

/// The window of each of its pipes.
pub(super) fn pipe(unread: u64, limits: &TunnelLimits) -> u32 {
    let base = u64::from(limits.link_window);
    if unread < base / 4 {
        LONG_PATH.min(limits.link_window / 4 * 3)
    } else if unread < u64::from(limits.link_window_max) / 2 {
        limits.stream_window.min(limits.link_window / 4)
    } else {
        LEAST.min(limits.stream_window)
    }
}

/// What both sides of HTTP/2 can be told.
pub(super) trait SetWindows {
    fn set_connection(&mut self, bytes: u32);

    /// Fails while the other side has not acknowledged the last change.
    fn set_pipe(&mut self, bytes: u32) -> Result<(), h2::Error>;
}

impl<T, B> SetWindows for h2::server::Connection<T, B>
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    B: bytes::Buf,
{
    fn set_connection(&mut self, bytes: u32) {
        self.set_target_window_size(bytes);
    }

    fn set_pipe(&mut self, bytes: u32) -> Result<(), h2::Error> {
        self.set_initial_window_size(bytes)
    }
}

impl<T, B> SetWindows for h2::client::Connection<T, B>
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    B: bytes::Buf,
{
    fn set_connection(&mut self, bytes: u32) {
        self.set_target_window_size(bytes);
    }

    fn set_pipe(&mut self, bytes: u32) -> Result<(), h2::Error> {
        self.set_initial_window_size(bytes)
    }
}

/// The windows of one connection, as the other side knows them.
pub(super) struct Windows {
    limits: TunnelLimits,
    connection: u32,
    pipe: u32,
    next: Instant,
}

impl Windows {
    pub(super) fn new(limits: TunnelLimits) -> Self {
        let (connection, pipe) = (connection(0, &limits), pipe(0, &limits));
        Self { limits, connection, pipe, next: Instant::now() + TICK }
    }

    /// Resolves when it is time to look. Cancel safe.
    pub(super) async fn due(&self) {
        sleep_until(self.next).await;
    }

    /// Looks at what lies unread.
    pub(super) fn fit(&mut self, carrier: &Carrier, told: &mut impl SetWindows) {
        self.next = Instant::now() + TICK + TICK_PER_THOUSAND * (carrier.pipes() / 1_000);
        let unread = carrier.unread();
        let wanted = connection(unread, &self.limits);
        if wanted != self.connection {
            self.connection = wanted;
            told.set_connection(wanted);
        }
        let wanted = pipe(unread, &self.limits);
        if wanted != self.pipe && told.set_pipe(wanted).is_ok() {
            self.pipe = wanted;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p9_what_lies_unread_never_takes_the_room_of_what_moves() {
        let limits = TunnelLimits::default();
        let most = u64::from(limits.link_window_max);
        let mut unread = 0;
        let mut stalled = 0_u32;
        // One pipe after the other fills its window, and is not read.
        while unread + u64::from(limits.link_window) <= most {
            let window = u64::from(connection(unread, &limits));
            assert_eq!(window - unread, u64::from(limits.link_window), "after {stalled}");
            unread += u64::from(pipe(unread, &limits));
            stalled += 1;
        }
        assert!(stalled > 24, "only {stalled} may stall");
        assert!(u64::from(connection(most * 2, &limits)) == most, "never more than a link may hold");
    }

    #[test]
    fn one_pipe_fills_a_long_path() {
        let limits = TunnelLimits::default();
        // 100 ms of 1 Gbit/s.
        assert!(pipe(0, &limits) / 2 >= 12_500_000);
        assert!(connection(0, &limits) / 2 >= 12_500_000);
    }
}

//! How many packets of handshakes are read: as many as links that begin can need. Each costs cryptography, on the task
//! that reads for all links; more than this, and who floods the port takes the time of those that have one. What is not
//! read waits in the listening socket's queue, and the kernel drops what does not fit, which costs next to nothing.

use std::io::IoSliceMut;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use quinn::udp::RecvMeta;
use tokio::time::{Instant, Sleep, sleep};

/// Handshake packets per second: 200 gateways that come back at once send some 2,000.
const RATE: f64 = 40_000.0;
/// As many at once.
const BURST: f64 = 4_096.0;
/// The shortest wait that a timer can keep.
const REST: Duration = Duration::from_millis(1);
/// RFC 9000 section 17.2: the first bit of a packet with a long header, which all packets of a handshake have.
const LONG_HEADER: u8 = 0x80;

/// What is left of it. Only the endpoint's one reader asks, so that nobody waits for the lock.
pub(super) struct Strangers(Mutex<Budget>);

struct Budget {
    left: f64,
    counted: Instant,
    rest: Pin<Box<Sleep>>,
}

impl Strangers {
    /// Within a Tokio runtime.
    pub(super) fn new() -> Self {
        let rest = Box::pin(sleep(Duration::ZERO));
        Self(Mutex::new(Budget { left: BURST, counted: Instant::now(), rest }))
    }

    /// Ready when packets may be read.
    pub(super) fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut budget = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let new = now.duration_since(budget.counted).as_secs_f64() * RATE;
        budget.left = (budget.left + new).min(BURST);
        budget.counted = now;
        if budget.left > 0.0 {
            return Poll::Ready(());
        }
        budget.rest.as_mut().reset(now + REST);
        budget.rest.as_mut().poll(cx)
    }

    /// Counts what was read.
    pub(super) fn read(&self, bufs: &[IoSliceMut<'_>], meta: &[RecvMeta]) {
        let of_handshake = |buf: &IoSliceMut<'_>| buf.first().is_some_and(|first| first & LONG_HEADER != 0);
        let packets = |meta: &RecvMeta| meta.len.div_ceil(meta.stride.max(1));
        let trains = bufs.iter().zip(meta).filter(|(buf, _)| of_handshake(buf));
        let count: usize = trains.map(|(_, meta)| packets(meta)).sum();
        if count > 0 {
            let mut budget = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            budget.left -= count as f64;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    /// Reads batches of 32 packets that begin so, as fast as ever, for a second.
    async fn read_for_a_second(strangers: &Strangers, first: u8) -> usize {
        let mut memory = vec![[first; 1_200]; 32];
        let bufs: Vec<_> = memory.iter_mut().map(|buf| IoSliceMut::new(buf)).collect();
        let meta = [RecvMeta { len: 1_200, stride: 1_200, ..RecvMeta::default() }; 32];
        let end = Instant::now() + Duration::from_secs(1);
        let mut read = 0;
        while Instant::now() < end && read < 1_000_000 {
            poll_fn(|cx| strangers.poll_ready(cx)).await;
            strangers.read(&bufs, &meta);
            read += 32;
        }
        read
    }

    #[tokio::test(start_paused = true)]
    async fn u1_of_a_flood_of_handshakes_so_much_is_read_and_of_links_everything() {
        let strangers = Strangers::new();
        let read = read_for_a_second(&strangers, 0xc0).await;
        assert!((40_000..48_000).contains(&read), "{read}");
        assert_eq!(read_for_a_second(&strangers, 0x40).await, 1_000_000);
    }
}

//! How many packets of handshakes are read: as many as links that begin can need. Each costs cryptography, on the task
//! that reads for all links; more than this, and who floods the port takes the time of those that have one. What is not
//! read waits in the listening socket's queue, and the kernel drops what does not fit, which costs next to nothing.

use std::time::Duration;

use quinn_udp::RecvMeta;
use tokio::time::{Instant, sleep};

/// Handshake packets per second: 200 gateways that come back at once send some 2,000.
const RATE: f64 = 40_000.0;
/// As many at once.
const BURST: f64 = 4_096.0;
/// The shortest wait that a timer can keep.
const REST: Duration = Duration::from_millis(1);
/// RFC 9000 section 17.2: the first bit of a packet with a long header, which all packets of a handshake have.
const LONG_HEADER: u8 = 0x80;

/// What is left of it. Only the listening socket's one reader asks.
pub(in super::super) struct Strangers {
    left: f64,
    counted: Instant,
}

impl Strangers {
    pub(in super::super) fn new() -> Self {
        Self { left: BURST, counted: Instant::now() }
    }

    /// Resolves when packets may be read.
    pub(in super::super) async fn ready(&mut self) {
        loop {
            let now = Instant::now();
            let new = now.duration_since(self.counted).as_secs_f64() * RATE;
            self.left = (self.left + new).min(BURST);
            self.counted = now;
            if self.left > 0.0 {
                return;
            }
            sleep(REST).await;
        }
    }

    /// Counts what was read.
    pub(in super::super) fn read<'a>(&mut self, trains: impl Iterator<Item = (&'a mut [u8], &'a mut RecvMeta)>) {
        let of_handshake = |train: &[u8]| train.first().is_some_and(|first| first & LONG_HEADER != 0);
        let packets = |meta: &RecvMeta| meta.len.div_ceil(meta.stride.max(1));
        let count: usize = trains.filter(|(train, _)| of_handshake(train)).map(|(_, meta)| packets(meta)).sum();
        self.left -= count as f64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads batches of 32 packets that begin so, as fast as ever, for a second.
    async fn read_for_a_second(strangers: &mut Strangers, first: u8) -> usize {
        let mut memory = vec![[first; 1_200]; 32];
        let mut metas = [RecvMeta { len: 1_200, stride: 1_200, ..RecvMeta::default() }; 32];
        let end = Instant::now() + Duration::from_secs(1);
        let mut read = 0;
        while Instant::now() < end && read < 1_000_000 {
            strangers.ready().await;
            strangers.read(memory.iter_mut().map(<[u8; 1_200]>::as_mut_slice).zip(&mut metas));
            read += 32;
        }
        read
    }

    #[tokio::test(start_paused = true)]
    async fn u1_of_a_flood_of_handshakes_so_much_is_read_and_of_links_everything() {
        let mut strangers = Strangers::new();
        let read = read_for_a_second(&mut strangers, 0xc0).await;
        assert!((40_000..48_000).contains(&read), "{read}");
        assert_eq!(read_for_a_second(&mut strangers, 0x40).await, 1_000_000);
    }
}

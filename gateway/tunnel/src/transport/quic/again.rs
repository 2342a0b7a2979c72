//! What streams that send little say is sent twice where packets are lost at random.
//!
//! Who waits for an answer waits a round trip or more longer if its packet is lost: that it was is known only when later
//! ones are acknowledged, and then it has to travel once more. So on paths that lose packets although nothing queues
//! ([`congestion`](super::congestion)) such a packet is sent once more as it was, a moment later, because losses come
//! together. The other side knows its number and drops the second (RFC 9000 §12.3). The controller does not count it, and
//! so it is little: at most 4 Mbit/s, and at most half of what the path has room for.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use quinn_proto::Transmit;

/// From the first to the second.
const LATER: Duration = Duration::from_millis(2);
/// Bytes a second that may be repeated.
const RATE: u64 = 512 << 10;
/// Of what the congestion window admits, one in so many.
const SHARE: u64 = 2;
/// Bytes that may be saved up to be repeated.
const SAVED: usize = 32 << 10;
/// Packets that may wait.
const WAITING: usize = 64;
/// What a packet has beside the bytes of streams, roughly.
const OVERHEAD: usize = 64;

/// Of one connection.
#[derive(Default)]
pub(super) struct Again {
    /// Bytes of streams that send little, written and not sent yet.
    urgent: usize,
    /// Bytes that may be repeated, and since when it was not looked at.
    credit: usize,
    counted: Option<Instant>,
    waiting: VecDeque<Packet>,
    repeated: u64,
}

struct Packet {
    due: Instant,
    transmit: Transmit,
    contents: Vec<u8>,
}

impl Again {
    /// Such a stream was written to.
    pub(super) fn wrote(&mut self, bytes: usize) {
        self.urgent = self.urgent.saturating_add(bytes).min(SAVED);
    }

    /// Whether there is something of which the first packets are to be repeated.
    pub(super) fn is_urgent(&self) -> bool {
        self.urgent > 0
    }

    /// A train with bytes of streams was sent, those of such streams first. `path`: its congestion window, bytes, and round
    /// trip if it is lossy.
    pub(super) fn sent(&mut self, now: Instant, train: &Transmit, contents: &[u8], path: Option<(u64, Duration)>) {
        let urgent = std::mem::take(&mut self.urgent);
        let Some((window, rtt)) = path.filter(|_| urgent > 0) else { return };
        self.save(now, window, rtt);
        let segment = train.segment_size.unwrap_or(train.size);
        let packets = urgent.div_ceil(segment.saturating_sub(OVERHEAD).max(1));
        for contents in contents.chunks(segment.max(1)).take(packets) {
            if self.credit < contents.len() || self.waiting.len() >= WAITING {
                return;
            }
            self.credit -= contents.len();
            let transmit = Transmit {
                destination: train.destination,
                ecn: train.ecn,
                size: contents.len(),
                segment_size: None,
                src_ip: train.src_ip,
            };
            self.waiting.push_back(Packet { due: now + LATER, transmit, contents: contents.to_vec() });
        }
    }

    fn save(&mut self, now: Instant, window: u64, rtt: Duration) {
        let since = self.counted.replace(now).map_or(Duration::MAX, |then| now.duration_since(then));
        let millis = u64::try_from(since.as_millis()).unwrap_or(u64::MAX).min(1_000);
        if millis == 0 {
            self.counted = self.counted.map(|_| now - since);
            return;
        }
        let rtt = u64::try_from(rtt.as_millis()).unwrap_or(u64::MAX).max(1);
        let rate = RATE.min(window.saturating_mul(1_000) / rtt / SHARE);
        let saved = usize::try_from(rate * millis / 1_000).unwrap_or(SAVED);
        self.credit = self.credit.saturating_add(saved).min(SAVED);
    }

    /// When the next one is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.waiting.front().map(|packet| packet.due)
    }

    /// The next one that is due.
    pub(super) fn next(&mut self, now: Instant) -> Option<(Transmit, Vec<u8>)> {
        self.due().filter(|due| *due <= now)?;
        let packet = self.waiting.pop_front()?;
        self.repeated += 1;
        Some((packet.transmit, packet.contents))
    }

    /// How many there were.
    pub(super) fn repeated(&self) -> u64 {
        self.repeated
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn train(size: usize, segment_size: Option<usize>) -> Transmit {
        Transmit { destination: ([192, 0, 2, 1], 443).into(), ecn: None, size, segment_size, src_ip: None }
    }

    /// How many bytes of a train are repeated.
    fn repeated(again: &mut Again, now: Instant) -> Vec<usize> {
        assert!(again.next(now).is_none(), "not at once");
        std::iter::from_fn(|| again.next(now + LATER)).map(|(transmit, _)| transmit.size).collect()
    }

    const PATH: Option<(u64, Duration)> = Some((1 << 20, Duration::from_millis(50)));

    #[test]
    fn the_first_packets_of_a_train_are_repeated_once_where_the_path_is_lossy() {
        let (mut again, now, bytes) = (Again::default(), Instant::now(), [0; 14_520]);
        let bulk = train(bytes.len(), Some(1_452));
        again.sent(now, &bulk, &bytes, PATH);
        assert!(repeated(&mut again, now).is_empty(), "nothing but bulk");
        again.wrote(100);
        again.sent(now, &bulk, &bytes, PATH);
        again.sent(now, &bulk, &bytes, PATH);
        assert_eq!(repeated(&mut again, now), [1_452]);
        again.wrote(2_000);
        again.sent(now, &train(2_100, Some(1_452)), &bytes[..2_100], PATH);
        assert_eq!(repeated(&mut again, now), [1_452, 648]);
        again.wrote(100);
        again.sent(now, &bulk, &bytes, None);
        again.sent(now, &bulk, &bytes, PATH);
        assert!(repeated(&mut again, now).is_empty(), "nothing is lost here");
        assert_eq!(again.repeated(), 3);
    }

    #[test]
    fn what_is_repeated_is_little() {
        // On a wide path, and on one with room for 10 packets in 100 ms.
        for (path, most) in [(PATH, 10 * RATE), (Some((12_000, Duration::from_millis(100))), 10 * 60_000)] {
            let (mut again, mut now, bytes) = (Again::default(), Instant::now(), [0; 1_200]);
            let mut sum = 0;
            for _ in 0..100_000 {
                now += Duration::from_micros(100);
                again.wrote(1_100);
                again.sent(now, &train(bytes.len(), None), &bytes, path);
                sum += std::iter::from_fn(|| again.next(now)).map(|(transmit, _)| transmit.size as u64).sum::<u64>();
            }
            let least = most / 10 * 9;
            assert!((least..=most + SAVED as u64).contains(&sum), "{sum} bytes, {most} at most");
        }
    }
}

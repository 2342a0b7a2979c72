//! One direction of the WAN: which packets arrive, and when. Pure; `now` is time since the start.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

/// What a direction does to packets. The default passes everything on at once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Conditions {
    /// Added to every packet.
    pub delay: Duration,
    /// Added as well, drawn evenly from none to this. Order is kept.
    pub jitter: Duration,
    /// Share of packets lost on the line, 0 to 1; they have used its rate.
    pub loss: f64,
    /// Share of packets that are held back, 0 to 1, so that later ones overtake them.
    pub reorder: f64,
    /// For how long those are held back.
    pub hold: Duration,
    /// Bytes a second; `None`: no limit.
    pub bytes_per_s: Option<f64>,
    /// Bytes that may wait for the rate; what comes when there is no more room is dropped.
    pub queue_bytes: f64,
}

impl Default for Conditions {
    fn default() -> Self {
        Self {
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            loss: 0.0,
            reorder: 0.0,
            hold: Duration::ZERO,
            bytes_per_s: None,
            queue_bytes: 1e6,
        }
    }
}

/// Packets on their way.
#[derive(Debug)]
pub struct Queue {
    conditions: Conditions,
    random: fastrand::Rng,
    /// When the packet before has left, at a limited rate.
    free_at: Duration,
    /// When the packet before arrives.
    last: Duration,
    sequence: u64,
    waiting: BinaryHeap<Reverse<(Duration, u64, Vec<u8>)>>,
    /// Packets that did not arrive, of a full queue and of loss.
    pub dropped: u64,
}

impl Queue {
    /// Nothing is on its way yet.
    #[must_use]
    pub fn new(conditions: Conditions, seed: u64) -> Self {
        Self {
            conditions,
            random: fastrand::Rng::with_seed(seed),
            free_at: Duration::ZERO,
            last: Duration::ZERO,
            sequence: 0,
            waiting: BinaryHeap::new(),
            dropped: 0,
        }
    }

    /// A packet comes.
    pub fn put(&mut self, now: Duration, packet: &[u8]) {
        let Some(left_at) = self.transmit(now, packet.len()) else {
            self.dropped += 1;
            return;
        };
        // Each kind of chance is drawn for each packet, so that one setting does not shift the others' fate.
        let (lost, held, late) = (self.random.f64(), self.random.f64(), self.random.f64());
        if lost < self.conditions.loss {
            self.dropped += 1;
            return;
        }
        let arrives = left_at + self.conditions.delay + self.conditions.jitter.mul_f64(late);
        let at = if held < self.conditions.reorder {
            arrives + self.conditions.hold
        } else {
            self.last = self.last.max(arrives);
            self.last
        };
        self.sequence += 1;
        self.waiting.push(Reverse((at, self.sequence, packet.to_vec())));
    }

    /// When a packet has left at the rate; `None`: there was no room for it to wait.
    fn transmit(&mut self, now: Duration, length: usize) -> Option<Duration> {
        let Some(rate) = self.conditions.bytes_per_s else { return Some(now) };
        let backlog = self.free_at.saturating_sub(now).as_secs_f64() * rate;
        let length = f64::from(u32::try_from(length).unwrap_or(u32::MAX));
        if backlog + length > self.conditions.queue_bytes {
            return None;
        }
        self.free_at = self.free_at.max(now) + Duration::from_secs_f64(length / rate);
        Some(self.free_at)
    }

    /// When the next packet arrives.
    #[must_use]
    pub fn next(&self) -> Option<Duration> {
        self.waiting.peek().map(|Reverse((at, ..))| *at)
    }

    /// A packet that has arrived.
    pub fn take(&mut self, now: Duration) -> Option<Vec<u8>> {
        if self.next()? > now {
            return None;
        }
        self.waiting.pop().map(|Reverse((.., packet))| packet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn arrivals(conditions: Conditions, seed: u64, packets: u16) -> Vec<(Duration, u16)> {
        let mut queue = Queue::new(conditions, seed);
        for number in 0..packets {
            let mut packet = number.to_be_bytes().to_vec();
            packet.resize(1000, 0);
            queue.put(MS * u32::from(number), &packet);
        }
        let mut all = Vec::new();
        while let Some(at) = queue.next() {
            let before = at.checked_sub(Duration::from_nanos(1));
            assert!(before.is_none_or(|before| queue.take(before).is_none()), "too early");
            let packet = queue.take(at).unwrap();
            all.push((at, u16::from_be_bytes([packet[0], packet[1]])));
        }
        all
    }

    #[test]
    fn delay_shifts_all_alike_and_jitter_keeps_the_order() {
        let plain = arrivals(Conditions { delay: 25 * MS, ..Conditions::default() }, 1, 3);
        assert_eq!(plain, [(25 * MS, 0), (26 * MS, 1), (27 * MS, 2)]);
        let late = arrivals(Conditions { delay: 5 * MS, jitter: 20 * MS, ..Conditions::default() }, 1, 500);
        assert!(late.is_sorted_by_key(|(_, number)| *number), "order is kept");
        let most = late.iter().map(|(at, number)| *at - MS * u32::from(*number)).max().unwrap();
        assert!(most > 20 * MS && most <= 25 * MS, "{most:?}");
    }

    #[test]
    fn the_share_asked_for_is_lost_and_a_seed_gives_the_same() {
        let conditions = Conditions { loss: 0.1, ..Conditions::default() };
        let (one, again, other) =
            (arrivals(conditions, 1, 5000), arrivals(conditions, 1, 5000), arrivals(conditions, 2, 5000));
        assert_eq!(one, again);
        assert_ne!(one, other);
        assert!((4400..4600).contains(&one.len()), "{}", one.len());
    }

    #[test]
    fn a_rate_spaces_packets_and_a_full_queue_drops_the_newest() {
        // 100 bytes a millisecond, so a packet each 10 ms, and room for three.
        let conditions = Conditions { bytes_per_s: Some(1e5), queue_bytes: 3000.0, ..Conditions::default() };
        let all = arrivals(conditions, 1, 10);
        assert_eq!(all[..3], [(10 * MS, 0), (20 * MS, 1), (30 * MS, 2)]);
        assert!(all.len() < 5, "{all:?}");
    }

    #[test]
    fn held_packets_are_overtaken() {
        let conditions = Conditions { reorder: 0.05, hold: 10 * MS, ..Conditions::default() };
        let all = arrivals(conditions, 1, 1000);
        assert_eq!(all.len(), 1000);
        assert!(all.is_sorted_by_key(|(at, _)| *at));
        let overtaken = all.windows(2).filter(|pair| pair[0].1 > pair[1].1).count();
        assert!((20..100).contains(&overtaken), "{overtaken}");
    }
}

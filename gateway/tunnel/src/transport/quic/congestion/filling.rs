//! For paths that lose packets at random: as much under way as fills the path, and little more.
//!
//! What arrives in a round trip says how much the path takes, whatever is lost of it, as with BBR
//! (draft-ietf-ccwg-bbr). BBR's own window is twice that, and its pace keeps the queue short; quinn-proto's pace goes by
//! the window (a quarter more than a window in a round trip), and so its BBR fills the queue with the other half: all that
//! goes beside waits for it. Here the window itself is what fills the path and a quarter more, by which it is seen when
//! more passes. Loss does not count, unless it is more than chance takes.

use std::any::Any;
use std::time::{Duration, Instant};

use quinn_proto::RttEstimator;
use quinn_proto::congestion::{Controller, ControllerMetrics};

use super::shortest::Shortest;

/// Spans of a round trip each, of which the fastest counts.
const SPANS: usize = 10;
/// The least span: what arrives together is no rate.
const SPAN: Duration = Duration::from_millis(2);
/// A measurement counts for so long when senders have little to send.
const KEPT: Duration = Duration::from_secs(10);
/// The window, in what fills the path: as long as nothing queues, usually, and when more is lost than by chance.
const GAINS: [f64; 3] = [2.0, 1.25, 1.1];
/// Round trips take longer than the shortest by one part in so many, and by as much time: something queues.
const QUEUED: (u32, Duration) = (8, Duration::from_millis(1));
/// Spans for which a path counts as full when something queued.
const FULL: u32 = 40;
/// Of what was sent, this share was lost: it may be too much for the path; and more than chance takes.
const MUCH: f64 = 0.05;
const TOO_MUCH: f64 = 0.15;
/// What may queue in any case: on paths much shorter than this a round trip is what the gateways take, not the path.
const STANDING: Duration = Duration::from_millis(2);
/// Bytes that may be under way in any case.
const FEWEST: u64 = 32 * 1_200;

/// See the module's documentation.
#[derive(Clone)]
pub(super) struct Filling {
    window: u64,
    rtt: Duration,
    shortest: Shortest,
    /// Since the span began.
    since: Option<Instant>,
    acknowledged: u64,
    lost: u64,
    /// The senders had less to send than the window admits.
    is_limited: bool,
    /// Bytes a second that arrived in the last spans that count, and when the last of them ended.
    rates: [f64; SPANS],
    next: usize,
    counted: Option<Instant>,
    /// Spans for which the path still counts as full.
    full: u32,
}

impl Filling {
    /// `window`: bytes that may be under way at first.
    pub(super) fn new(window: u64) -> Self {
        Self {
            window: window.max(FEWEST),
            rtt: Duration::ZERO,
            shortest: Shortest::default(),
            since: None,
            acknowledged: 0,
            lost: 0,
            is_limited: false,
            rates: [0.0; SPANS],
            next: 0,
            counted: None,
            full: 0,
        }
    }

    fn acknowledge(&mut self, now: Instant, bytes: u64, is_limited: bool, rtt: Duration) {
        self.acknowledged += bytes;
        self.is_limited |= is_limited;
        self.rtt = rtt;
        self.shortest.note(now, rtt);
    }

    /// Judges if a span has passed, and begins the next.
    fn judge(&mut self, now: Instant) {
        let passed = now.duration_since(*self.since.get_or_insert(now));
        if passed < self.rtt.max(SPAN) {
            return;
        }
        let Some(shortest) = self.shortest.get() else { return };
        let (acknowledged, lost) = (as_f64(self.acknowledged), as_f64(self.lost));
        let loss = lost / (acknowledged + lost).max(1.0);
        self.count(now, acknowledged / passed.as_secs_f64());
        if self.rtt > shortest + shortest / QUEUED.0 + QUEUED.1 || loss > MUCH {
            self.full = FULL;
        }
        self.full = self.full.saturating_sub(1);
        let [free, usual, careful] = GAINS;
        let gain = if loss > TOO_MUCH {
            careful
        } else if self.full > 0 {
            usual
        } else {
            free
        };
        let fastest = self.rates.iter().copied().fold(0.0, f64::max);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of bytes")]
        let fills = (fastest * (shortest.mul_f64(gain) + STANDING).as_secs_f64()) as u64;
        self.window = fills.max(FEWEST);
        (self.since, self.acknowledged, self.lost, self.is_limited) = (Some(now), 0, 0, false);
    }

    /// What arrives while little is sent says nothing of the path, unless it is more than was known.
    fn count(&mut self, now: Instant, rate: f64) {
        let fastest = self.rates.iter().copied().fold(0.0, f64::max);
        let is_late = self.counted.is_some_and(|counted| now.duration_since(counted) > KEPT);
        if self.is_limited && rate < fastest && !is_late {
            return;
        }
        if let Some(place) = self.rates.get_mut(self.next) {
            *place = rate;
        }
        (self.next, self.counted) = ((self.next + 1) % SPANS, Some(now));
    }
}

#[expect(clippy::cast_precision_loss, reason = "a rate need not be exact")]
fn as_f64(bytes: u64) -> f64 {
    bytes as f64
}

impl Controller for Filling {
    fn on_ack(&mut self, now: Instant, _sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.acknowledge(now, bytes, app_limited, rtt.get());
    }

    fn on_end_acks(&mut self, now: Instant, _in_flight: u64, _app_limited: bool, _largest: Option<u64>) {
        self.judge(now);
    }

    fn on_congestion_event(&mut self, _now: Instant, _sent: Instant, is_persistent_congestion: bool, lost_bytes: u64) {
        self.lost += lost_bytes;
        // Nothing came through for several round trips (RFC 9002 §7.6): nothing is known any more.
        if is_persistent_congestion {
            *self = Self { shortest: self.shortest, rtt: self.rtt, ..Self::new(FEWEST) };
        }
    }

    fn on_mtu_update(&mut self, _new_mtu: u16) {}

    fn window(&self) -> u64 {
        self.window
    }

    fn metrics(&self) -> ControllerMetrics {
        let mut metrics = ControllerMetrics::default();
        metrics.congestion_window = self.window;
        metrics
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        FEWEST
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RTT: Duration = Duration::from_millis(50);

    /// A line of 200 Mbit/s with a queue, of which a share is lost; for so many round trips. Returns the window, and how
    /// long the queue is, in round trips.
    fn line(filling: &mut Filling, now: &mut Instant, trips: u32, loss: f64, share: f64) -> (f64, f64) {
        let full = 25e6 * RTT.as_secs_f64();
        let mut queue = 0.0;
        for _ in 0..trips {
            let sent = as_f64(filling.window()) * share;
            queue = (sent / full - 1.0).max(0.0);
            let rtt = RTT.mul_f64(1.0 + queue);
            let arrived = sent.min(full * (1.0 + queue)) * (1.0 - loss);
            *now += rtt;
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts of bytes")]
            let (arrived, lost) = (arrived as u64, (sent * loss) as u64);
            filling.on_congestion_event(*now, *now, false, lost);
            filling.acknowledge(*now, arrived, share < 1.0, rtt);
            filling.judge(*now);
        }
        (as_f64(filling.window()) / full, queue)
    }

    #[test]
    fn it_fills_a_lossy_line_and_leaves_its_queue_short() {
        for loss in [0.0, 0.01, 0.04] {
            let (mut filling, mut now) = (Filling::new(0), Instant::now());
            filling.acknowledge(now, 0, true, RTT / 2);
            let (window, _) = line(&mut filling, &mut now, 12, loss, 1.0);
            assert!(window > 0.95, "after half a second it is {window} at {loss}");
            let (window, queue) = line(&mut filling, &mut now, 100, loss, 1.0);
            assert!(window > 1.0 && queue < 0.3, "{window} with a queue of {queue} at {loss}");
        }
    }

    #[test]
    fn little_to_send_does_not_make_the_path_slow() {
        let (mut filling, mut now) = (Filling::new(0), Instant::now());
        filling.acknowledge(now, 0, true, RTT / 2);
        line(&mut filling, &mut now, 50, 0.01, 1.0);
        let (window, _) = line(&mut filling, &mut now, 50, 0.01, 0.02);
        assert!(window > 1.0, "{window}");
    }

    #[test]
    fn much_loss_is_not_answered_with_more() {
        let (mut filling, mut now) = (Filling::new(10_000_000), Instant::now());
        filling.acknowledge(now, 0, true, RTT / 2);
        let (window, _) = line(&mut filling, &mut now, 200, 0.3, 1.0);
        assert!(window < 0.1, "{window}");
        filling.on_congestion_event(now, now, true, 1_200);
        assert_eq!(filling.window(), FEWEST);
    }
}

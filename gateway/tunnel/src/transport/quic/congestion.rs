//! How much may be under way, by what the path shows.
//!
//! Cubic takes each loss for a queue that ran over: on a path that loses packets at random it sends next to nothing (2 to
//! 5 Mbit/s of 200 at 1 % and 50 ms). Going by what arrives ([`filling`]) costs goodput on a clean path. So a connection
//! begins with Cubic, goes over to the other when packets are lost although nothing queues, and remembers that for the
//! next connection to the same address.

mod filling;
mod shortest;

use std::any::Any;
use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use self::filling::Filling;
use self::shortest::Shortest;
use quinn_proto::RttEstimator;
use quinn_proto::congestion::{Controller, ControllerFactory, ControllerMetrics, CubicConfig};

/// Between two judgements, at least.
const LOOK: Duration = Duration::from_millis(400);
/// Bytes that a judgement is based on, at least.
const LEAST: u64 = 100 * 1_200;
/// One in so many bytes is lost: the path is lossy.
const LOSSY: u64 = 1_000;
/// Judgements in a row after which the controller is changed: to that for lossy paths, and back.
const TO_LOSSY: u32 = 2;
const TO_CUBIC: u32 = 75;
/// Round trips take that much longer than the shortest: something queues.
const QUEUE: Duration = Duration::from_millis(5);
/// What may be under way beside twice what arrives in the shortest round trip. Streams have a limit of their own, datagrams
/// none: those that come faster than the other side takes them would fill its socket's buffer, and all else waits behind.
const AHEAD: u64 = 2 << 20;
/// Addresses with lossy paths that are remembered.
const REMEMBERED: usize = 256;

/// Where paths were found to lose packets at random.
#[derive(Default)]
pub(super) struct Lossy {
    addresses: Mutex<VecDeque<IpAddr>>,
}

impl Lossy {
    pub(super) fn is(&self, address: IpAddr) -> bool {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner).contains(&address)
    }

    fn set(&self, address: IpAddr, is_lossy: bool) {
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        addresses.retain(|known| *known != address);
        if is_lossy {
            addresses.truncate(REMEMBERED - 1);
            addresses.push_front(address);
        }
    }
}

/// Makes controllers for paths to one address.
pub(super) struct ByPath {
    pub(super) cubic: Arc<CubicConfig>,
    pub(super) lossy: Arc<Lossy>,
    pub(super) remote: IpAddr,
}

impl ByPath {
    /// `window`: bytes that may be under way at first, where packets are lost.
    fn controller(&self, is_lossy: bool, window: u64, now: Instant, mtu: u16) -> Box<dyn Controller> {
        if is_lossy { Box::new(Filling::new(window)) } else { Arc::clone(&self.cubic).build(now, mtu) }
    }
}

impl ControllerFactory for ByPath {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let is_lossy = self.lossy.is(self.remote);
        let inner = self.controller(is_lossy, 0, now, current_mtu);
        Box::new(Adaptive { paths: self, inner, is_lossy, mtu: current_mtu, seen: Seen::default() })
    }
}

/// A controller that may become another one.
struct Adaptive {
    paths: Arc<ByPath>,
    inner: Box<dyn Controller>,
    is_lossy: bool,
    mtu: u16,
    seen: Seen,
}

/// What the path showed since the last judgement.
#[derive(Clone, Copy, Default)]
struct Seen {
    since: Option<Instant>,
    acknowledged: u64,
    lost: u64,
    /// Round trip.
    rtt: Duration,
    shortest: Shortest,
    /// Bytes a second that arrived, before the last judgement.
    rate: u64,
    /// Judgements in a row that were for the other controller.
    contrary: u32,
}

/// What is said of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// It loses packets, and nothing queues.
    Lossy,
    /// It loses some because something queues.
    Full,
    Clean,
}

impl Seen {
    fn acknowledge(&mut self, now: Instant, bytes: u64, rtt: Duration) {
        self.acknowledged += bytes;
        self.rtt = rtt;
        self.shortest.note(now, rtt);
    }

    /// Judges if there is enough to go by, and begins anew.
    fn judge(&mut self, now: Instant) -> Option<Verdict> {
        let all = self.acknowledged + self.lost;
        let took = now.duration_since(*self.since.get_or_insert(now));
        if took < LOOK || all < LEAST {
            return None;
        }
        let shortest = self.shortest.get()?;
        let verdict = if self.lost * LOSSY < all {
            Verdict::Clean
        } else if self.rtt > shortest + shortest / 2 + QUEUE {
            Verdict::Full
        } else {
            Verdict::Lossy
        };
        *self = Self {
            since: Some(now),
            rtt: self.rtt,
            shortest: self.shortest,
            rate: self.acknowledged.saturating_mul(1_000) / u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            contrary: self.contrary,
            ..Self::default()
        };
        Some(verdict)
    }

    /// Bytes that may be under way whatever the controller says.
    fn most(&self) -> u64 {
        let Some(shortest) = self.shortest.get() else { return u64::MAX };
        let micros = u64::try_from(shortest.as_micros()).unwrap_or(u64::MAX);
        AHEAD.saturating_add(self.rate.saturating_mul(2).saturating_mul(micros) / 1_000_000)
    }
}

impl Adaptive {
    fn judge(&mut self, now: Instant) {
        let Some(verdict) = self.seen.judge(now) else { return };
        let (is_contrary, enough) = match verdict {
            Verdict::Lossy => (!self.is_lossy, TO_LOSSY),
            Verdict::Full => (false, TO_LOSSY),
            Verdict::Clean => (self.is_lossy, TO_CUBIC),
        };
        self.seen.contrary = if is_contrary { self.seen.contrary + 1 } else { 0 };
        if self.seen.contrary >= enough {
            self.seen.contrary = 0;
            self.is_lossy = !self.is_lossy;
            self.inner = self.paths.controller(self.is_lossy, self.inner.window(), now, self.mtu);
            self.paths.lossy.set(self.paths.remote, self.is_lossy);
            tracing::debug!(remote = %self.paths.remote, lossy = self.is_lossy, "Another congestion controller for a link");
        }
    }
}

impl Controller for Adaptive {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.inner.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.seen.acknowledge(now, bytes, rtt.get());
        // What cannot be used must not grow.
        let is_limited = app_limited || self.inner.window() > self.seen.most();
        self.inner.on_ack(now, sent, bytes, is_limited, rtt);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest_packet_num_acked: Option<u64>) {
        self.inner.on_end_acks(now, in_flight, app_limited, largest_packet_num_acked);
        self.judge(now);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent_congestion: bool, lost_bytes: u64) {
        self.seen.lost += lost_bytes;
        self.inner.on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.mtu = new_mtu;
        self.inner.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        self.inner.window().min(self.seen.most())
    }

    fn metrics(&self) -> ControllerMetrics {
        self.inner.metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        let paths = Arc::clone(&self.paths);
        Box::new(Self { paths, inner: self.inner.clone_box(), is_lossy: self.is_lossy, mtu: self.mtu, seen: self.seen })
    }

    fn initial_window(&self) -> u64 {
        self.inner.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RTT: Duration = Duration::from_millis(50);

    fn by_path(lossy: &Arc<Lossy>) -> Arc<ByPath> {
        let remote = IpAddr::from([192, 0, 2, 1]);
        Arc::new(ByPath { cubic: Arc::default(), lossy: Arc::clone(lossy), remote })
    }

    /// Looks at so many seconds of a path that loses one packet in `loses` (0: none), with such a round trip.
    fn looks((controller, now): &mut (Adaptive, Instant), seconds: u32, loses: u32, rtt: Duration) {
        for number in 0..seconds * 1_000 {
            *now += Duration::from_millis(1);
            let now = *now;
            controller.seen.acknowledge(now, 1_200, rtt);
            if loses > 0 && number % loses == 0 {
                controller.on_congestion_event(now, now, false, 1_200);
            }
            controller.on_end_acks(now, 0, false, Some(u64::from(number)));
        }
    }

    fn adaptive(lossy: &Arc<Lossy>) -> Adaptive {
        let paths = by_path(lossy);
        let is_lossy = lossy.is(paths.remote);
        let inner = paths.controller(is_lossy, 0, Instant::now(), 1_200);
        let mut seen = Seen::default();
        seen.acknowledge(Instant::now(), 0, RTT / 2);
        Adaptive { paths, inner, is_lossy, mtu: 1_200, seen }
    }

    #[test]
    fn random_loss_changes_the_controller_and_is_remembered_until_the_path_is_clean() {
        let lossy = Arc::<Lossy>::default();
        let mut path = (adaptive(&lossy), Instant::now());
        looks(&mut path, 5, 0, RTT);
        looks(&mut path, 5, 5_000, RTT);
        assert!(!path.0.is_lossy, "too few are lost");
        looks(&mut path, 5, 100, RTT * 2);
        assert!(!path.0.is_lossy, "something queues");
        looks(&mut path, 5, 100, RTT);
        assert!(path.0.is_lossy && adaptive(&lossy).is_lossy);
        looks(&mut path, 10, 0, RTT);
        assert!(path.0.is_lossy, "not at the first good moment");
        looks(&mut path, 40, 0, RTT);
        assert!(!path.0.is_lossy && !adaptive(&lossy).is_lossy);
    }

    #[test]
    fn a_path_that_became_longer_is_not_taken_for_a_full_one() {
        let lossy = Arc::<Lossy>::default();
        let mut path = (adaptive(&lossy), Instant::now());
        looks(&mut path, 5, 0, RTT);
        looks(&mut path, 50, 100, RTT * 3);
        assert!(!path.0.is_lossy, "it may be a queue");
        looks(&mut path, 100, 100, RTT * 3);
        assert!(path.0.is_lossy, "no queue lasts so long");
    }

    #[test]
    fn so_many_addresses_are_remembered() {
        let lossy = Lossy::default();
        let address = |number: u32| IpAddr::from(number.to_be_bytes());
        (0..1_000).for_each(|number| lossy.set(address(number), true));
        assert_eq!(lossy.addresses.lock().unwrap().len(), REMEMBERED);
        assert!(lossy.is(address(999)) && !lossy.is(address(0)));
    }
}

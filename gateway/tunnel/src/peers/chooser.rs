//! Whether streams that move much go by QUIC or by TLS on TCP, by what is measured of both (ADR 0025).
//!
//! Pure: what was seen is told once a second, and the answer holds until the next time. Both are compared by the bytes
//! that they carried in the best of their seconds, of those in which much moved and only one of them moved it. So what
//! the ends of streams do, and how many there are, counts for both alike.

use std::time::Duration;

/// From so many bytes a second on it matters what a byte costs.
const BUSY: f64 = 32_000_000.0;
/// So many say that something more than heartbeats and questions moves.
const SOME: f64 = 1_000_000.0;
/// TCP is kept for so long after much has moved.
const KEEP: Duration = Duration::from_secs(600);
/// On longer paths a packet that is lost costs a stream by TCP more than its records save. What counts is the shortest
/// round trip of late: what moves much makes others wait.
const SHORT: Duration = Duration::from_millis(5);
/// By how much the shortest one is forgotten each second.
const FORGET: f64 = 1.01;
/// Seconds that make a measurement.
const SAMPLES: u32 = 2;
/// How long the measurement of what is not used counts.
const STALE: Duration = Duration::from_secs(900);
/// A trial that gave no measurement in so many seconds with traffic is over.
const TRIAL: u32 = 30;
/// What is chosen anew has to be better by so much: what is alike must not take turns.
const MARGIN: f64 = 1.1;
/// Of the packets of QUIC; those are never lost for too little room at a queue, as TCP has it.
const QUIC_LOSS: f64 = 0.001;
/// Of the segments of TCP, which finds out how much room there is by losing some, at the start of streams above all.
const TCP_LOSS: f64 = 0.005;
/// Of the segments that came out of order: each that is lost makes others so.
const DISORDER: f64 = 0.02;
/// Packets that tell how many of them are lost.
const TELLING: u64 = 1_000;
/// And how many of fewer packets tell as much.
const TELLING_LOST: u64 = 4;
/// So often in a row, a second each where much moves.
const IN_A_ROW: u32 = 3;
/// For how long a path that lost packets is not used for TCP; doubles up to the second of these.
const AVOID: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(900));

/// What one transport did since the last look.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Seen {
    /// Of streams, in both directions.
    pub(crate) bytes: u64,
    pub(crate) rtt: Duration,
    pub(crate) sent: u64,
    pub(crate) lost: u64,
    pub(crate) received: u64,
    pub(crate) disordered: u64,
}

/// Why streams that move much go where they go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// Too little moves for it to matter.
    Quiet,
    /// The path is long.
    Long,
    /// The path loses packets.
    Lossy,
    /// There is no connection by TCP.
    Unreached,
    /// TCP is measured.
    Trial,
    /// QUIC is measured.
    Again,
    /// One of both is not measured yet.
    Unknown,
    /// It is measured to be faster.
    Faster,
    /// The other one is not faster, or not by enough.
    Alike,
}

impl Why {
    /// In words, for status.
    pub(crate) const fn text(self) -> &'static str {
        match self {
            Self::Quiet => "little moves",
            Self::Long => "the path is long",
            Self::Lossy => "the path loses packets",
            Self::Unreached => "no connection by TCP",
            Self::Trial => "TCP is being measured",
            Self::Again => "QUIC is being measured again",
            Self::Unknown => "TCP is not measured yet",
            Self::Faster => "measured to be faster",
            Self::Alike => "TCP is not faster",
        }
    }
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    /// Streams that move much go by TCP.
    pub(crate) tcp: bool,
    pub(crate) why: Why,
    /// A link by TCP is wanted beside the one by QUIC.
    pub(crate) wanted: bool,
}

impl Default for Choice {
    fn default() -> Self {
        Self { tcp: false, why: Why::Quiet, wanted: false }
    }
}

/// See the module's documentation.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chooser {
    quic: Estimate,
    tcp: Estimate,
    /// By QUIC and by TCP, what was sent and lost, and came and came out of order.
    losses: [Ratio; 3],
    looked: Option<Duration>,
    rtt: Option<Duration>,
    busy: Option<Duration>,
    /// TCP is the faster one, as far as is known.
    prefers_tcp: bool,
    trial: Option<Trial>,
    avoid_until: Option<Duration>,
    avoid: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Trial {
    tcp: bool,
    /// Seconds of it in which something moved.
    seconds: u32,
}

impl Chooser {
    /// Bytes a second, by QUIC and by TCP; none where it was not measured.
    pub(crate) fn rates(&self) -> [Option<u64>; 2] {
        #[expect(clippy::cast_possible_truncation, reason = "a count of bytes")]
        let whole = |rate: f64| rate as u64;
        [self.quic.rate().map(whole), self.tcp.rate().map(whole)]
    }

    /// Looks at what happened since the last time. `tcp`: none while there is no link by TCP.
    pub(crate) fn look(&mut self, now: Duration, quic: &Seen, tcp: Option<&Seen>) -> Choice {
        let passed = self.looked.replace(now).map_or(Duration::ZERO, |looked| now.saturating_sub(looked));
        if passed.is_zero() {
            return Choice::default();
        }
        let moved = |bytes: u64| as_f64(bytes) / passed.as_secs_f64();
        let (by_quic, by_tcp) = (moved(quic.bytes), moved(tcp.map_or(0, |tcp| tcp.bytes)));
        let is_busy = by_quic + by_tcp >= BUSY;
        if is_busy {
            self.busy = Some(now);
            // What the other one carries beside hardly counts.
            if by_tcp < by_quic / 32.0 {
                self.quic.add(by_quic, now);
            } else if by_quic < by_tcp / 32.0 {
                self.tcp.add(by_tcp, now);
            }
        }
        self.judge_losses(now, quic, tcp);
        let rtt = self.rtt.map_or(quic.rtt, |rtt| rtt.mul_f64(FORGET).min(quic.rtt));
        self.rtt = Some(rtt);
        let wanted = self.busy.is_some_and(|busy| now.saturating_sub(busy) < KEEP);
        let stay = |why| Choice { tcp: false, why, wanted: false };
        if !wanted {
            return stay(Why::Quiet);
        }
        if rtt >= SHORT {
            return stay(Why::Long);
        }
        if self.avoid_until.is_some_and(|until| now < until) {
            return stay(Why::Lossy);
        }
        if tcp.is_none() {
            return Choice { tcp: false, why: Why::Unreached, wanted };
        }
        self.go_on_with_trial(now, is_busy, [by_quic, by_tcp]);
        if let Some(Trial { tcp, .. }) = self.trial {
            return Choice { tcp, why: if tcp { Why::Trial } else { Why::Again }, wanted };
        }
        let (tcp, why) = self.faster();
        Choice { tcp, why, wanted }
    }

    /// Which one is faster, with some reluctance to change.
    fn faster(&mut self) -> (bool, Why) {
        let (Some(quic), Some(tcp)) = (self.quic.rate(), self.tcp.rate()) else { return (false, Why::Unknown) };
        let margin = if self.prefers_tcp { 1.0 } else { MARGIN };
        self.prefers_tcp = tcp >= quic * margin;
        (self.prefers_tcp, if self.prefers_tcp { Why::Faster } else { Why::Alike })
    }

    /// Begins one when the other transport should be measured, and nothing under way would be in its way.
    fn go_on_with_trial(&mut self, now: Duration, is_busy: bool, [by_quic, by_tcp]: [f64; 2]) {
        if let Some(trial) = &mut self.trial {
            trial.seconds += u32::from(if trial.tcp { by_tcp } else { by_quic } >= SOME);
            let estimate = if trial.tcp { &mut self.tcp } else { &mut self.quic };
            if estimate.samples >= SAMPLES || trial.seconds >= TRIAL {
                estimate.tried = Some(now);
                self.trial = None;
            }
            return;
        }
        let tcp = !self.prefers_tcp;
        let other = if tcp { &mut self.tcp } else { &mut self.quic };
        if !is_busy && other.is_stale(now) {
            // What is measured now counts, and nothing that was.
            *other = Estimate { tried: other.tried, ..Estimate::default() };
            self.trial = Some(Trial { tcp, seconds: 0 });
        }
    }

    /// Keeps away from TCP for a while when either transport loses packets.
    fn judge_losses(&mut self, now: Duration, quic: &Seen, tcp: Option<&Seen>) {
        let tcp = tcp.copied().unwrap_or_default();
        let [by_quic, by_tcp, order] = &mut self.losses;
        let lossy = [
            by_quic.add(quic.sent, quic.lost, QUIC_LOSS),
            by_tcp.add(tcp.sent, tcp.lost, TCP_LOSS),
            order.add(tcp.received, tcp.disordered, DISORDER),
        ];
        if !lossy.contains(&true) {
            return;
        }
        self.avoid = match self.avoid_until {
            Some(until) if now < until => self.avoid,
            Some(until) if now < until + AVOID.1 => (self.avoid * 2).min(AVOID.1),
            Some(_) | None => AVOID.0,
        };
        self.avoid_until = Some(now + self.avoid);
        self.trial = None;
        self.prefers_tcp = false;
        self.tcp = Estimate::default();
    }
}

/// How fast one transport is.
#[derive(Clone, Copy, Debug, Default)]
struct Estimate {
    /// Bytes a second.
    rate: f64,
    /// Seconds that it comes from.
    samples: u32,
    last: Duration,
    /// A trial ended.
    tried: Option<Duration>,
}

impl Estimate {
    /// Up at once and down slowly: what disturbs a measurement only ever makes it smaller.
    fn add(&mut self, rate: f64, now: Duration) {
        self.rate = if rate > self.rate { rate } else { self.rate + (rate - self.rate) / 8.0 };
        self.samples = self.samples.saturating_add(1);
        self.last = now;
    }

    fn rate(&self) -> Option<f64> {
        (self.samples >= SAMPLES).then_some(self.rate)
    }

    fn is_stale(&self, now: Duration) -> bool {
        let last = if self.samples > 0 { Some(self.last) } else { None };
        let latest = last.max(self.tried);
        latest.is_none_or(|latest| now.saturating_sub(latest) >= STALE)
    }
}

/// How many of how many, until there are enough to tell, and how often in a row they were too many.
#[derive(Clone, Copy, Debug, Default)]
struct Ratio {
    all: u64,
    bad: u64,
    row: u32,
}

impl Ratio {
    /// Whether more than `limit` of all are bad, again and again.
    fn add(&mut self, all: u64, bad: u64, limit: f64) -> bool {
        (self.all, self.bad) = (self.all + all, self.bad + bad);
        let is_bad = self.bad >= TELLING_LOST && as_f64(self.bad) > as_f64(self.all) * limit;
        if is_bad || self.all >= TELLING {
            let row = if is_bad { self.row.saturating_add(1) } else { 0 };
            *self = Self { row, ..Self::default() };
        }
        is_bad && self.row >= IN_A_ROW
    }
}

fn as_f64(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests;

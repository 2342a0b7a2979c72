//! Which of several paths to one replica is the best, by what links on them measure.

use std::time::Duration;

use super::LinkFacts;
use crate::transport::PathStats;

/// A path is judged when the younger link on it is so old: its first round trips have the handshake's work in them.
const TRIAL: Duration = Duration::from_secs(3);
/// Packets that tell how many of them are lost.
const SAMPLE: u64 = 20;
/// How much a lost packet weighs: at 5 % of them a path counts as twice as long.
const LOSS_WEIGHT: f64 = 20.0;
/// A younger link has to be better by so much, or the older stays: paths that are alike must not take turns.
const MARGIN: f64 = 0.8;
const LEAST_GAIN: Duration = Duration::from_millis(2);

/// How the path of one link does.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct PathMeter {
    rtt: Duration,
    /// Of 1.
    loss: f64,
    sent: u64,
    lost: u64,
}

impl PathMeter {
    pub(crate) fn sample(&mut self, stats: &PathStats) {
        self.rtt = stats.rtt;
        let sent = stats.sent_packets.saturating_sub(self.sent);
        let lost = stats.lost_packets.saturating_sub(self.lost);
        if sent >= SAMPLE {
            let loss = as_f64(lost.min(sent)) / as_f64(sent);
            self.loss = self.loss * 0.75 + loss * 0.25;
            (self.sent, self.lost) = (stats.sent_packets, stats.lost_packets);
        }
    }

    /// The round trip time, longer for what is lost; none if it was not measured.
    fn cost(&self) -> Option<Duration> {
        (!self.rtt.is_zero()).then(|| self.rtt.mul_f64(1.0 + LOSS_WEIGHT * self.loss))
    }
}

impl PathMeter {
    /// Whether a path that had this round trip time when it was seen last may be better now.
    pub(super) fn may_be_beaten_by(&self, rtt: Duration) -> bool {
        self.cost().is_some_and(|cost| is_better(rtt, cost))
    }
}

fn is_better(cost: Duration, than: Duration) -> bool {
    cost + LEAST_GAIN <= than && cost <= than.mul_f64(MARGIN)
}

/// Whether `one` makes `other` superfluous: both were dialled here, at different addresses.
pub(super) fn beats(one: &LinkFacts, other: &LinkFacts, now: Duration) -> bool {
    let (older, younger) = if one.id < other.id { (one, other) } else { (other, one) };
    if now.saturating_sub(younger.since) < TRIAL {
        return false;
    }
    let better = match (older.path.cost(), younger.path.cost()) {
        (Some(older), Some(younger)) => is_better(younger, older),
        (None, _) | (_, None) => false,
    };
    (one.id == younger.id) == better
}

fn as_f64(count: u64) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

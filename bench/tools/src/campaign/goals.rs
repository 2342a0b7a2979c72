//! The goals: what is compared with what, and what has to come out.

use serde_json::{Map, Value, json};

use super::rounds::{Round, Rounds};
use super::stages::Stage;
use crate::statistics::{Estimate, estimate, estimate_of, median};

/// One line of the table.
struct Goal {
    /// Its key in the results: goal and case.
    key: &'static str,
    /// What it is, for readers.
    what: &'static str,
    stage: &'static str,
    /// Of each measurement.
    metric: &'static str,
    compared: Compared,
    bounds: Option<Bounds>,
}

/// What must come out, and what should.
struct Bounds {
    floor: f64,
    goal: f64,
    better: Better,
}

#[derive(Clone, Copy, PartialEq)]
enum Better {
    More,
    Less,
}

/// How a figure of a round is made from what was measured in it, by labels.
enum Compared {
    /// The first by the second.
    Ratio(&'static str, &'static str),
    /// The same of what each adds to the third: of the medians over all rounds, since in a single one the second may add
    /// next to nothing.
    Added(&'static str, &'static str, &'static str),
    /// By a constant.
    Share(&'static str, f64),
}

const fn more(floor: f64, goal: f64) -> Option<Bounds> {
    Some(Bounds { floor, goal, better: Better::More })
}

const fn less(floor: f64, goal: f64) -> Option<Bounds> {
    Some(Bounds { floor, goal, better: Better::Less })
}

macro_rules! goals {
    ($($key:literal $what:literal: $stage:literal $metric:literal $compared:expr, $bounds:expr;)+) => {
        &[$(Goal { key: $key, what: $what, stage: $stage, metric: $metric, compared: $compared, bounds: $bounds }),+]
    };
}

use Compared::{Added, Ratio, Share};

const GOALS: &[Goal] = goals! {
    "G1/1" "goodput against the plain quinn pump, 1 flow": "wire-1500" "mbit" Ratio("quic/1", "pump/1"), more(1.7, 2.5);
    "G1/8" "the same, 8 flows": "wire-1500" "mbit" Ratio("quic/8", "pump/8"), more(3.0, 4.5);
    "G1/chunks/1" "against a pump that writes each datagram by itself, 1 flow": "wire-1500" "mbit" Ratio("quic/1", "pump-chunks/1"), None;
    "G1/chunks/8" "the same, 8 flows": "wire-1500" "mbit" Ratio("quic/8", "pump-chunks/8"), None;
    "G2/1500/1" "goodput against the Envoy pair, 1 flow": "wire-1500" "mbit" Ratio("quic/1", "envoy/1"), more(0.6, 0.9);
    "G2/1500/8" "the same, 8 flows": "wire-1500" "mbit" Ratio("quic/8", "envoy/8"), more(0.6, 0.9);
    "G2/9000/1" "MTU 9000, 1 flow": "wire-9000" "mbit" Ratio("quic/1", "envoy/1"), more(1.0, 1.4);
    "G2/9000/8" "MTU 9000, 8 flows": "wire-9000" "mbit" Ratio("quic/8", "envoy/8"), more(1.0, 1.4);
    "G2a/1" "the link as users get it against the Envoy pair, 1 flow": "wire-1500" "mbit" Ratio("link/1", "envoy/1"), more(0.85, 1.2);
    "G2a/8" "the same, 8 flows": "wire-1500" "mbit" Ratio("link/8", "envoy/8"), more(1.0, 1.3);
    "G2a/tls/1" "over TLS on TCP, 1 flow": "wire-1500" "mbit" Ratio("tls/1", "envoy/1"), None;
    "G2a/tls/8" "the same, 8 flows": "wire-1500" "mbit" Ratio("tls/8", "envoy/8"), None;
    "G3/1" "goodput against wireguard-go, 1 flow": "wire-1500" "mbit" Ratio("quic/1", "wireguard/1"), more(2.0, 2.9);
    "G3/8" "the same, 8 flows": "wire-1500" "mbit" Ratio("quic/8", "wireguard/8"), more(2.0, 2.9);
    "G4/1500/1" "processor time per byte against the Envoy pair, 1 flow": "wire-1500" "cpu_s_per_gb" Ratio("quic/1", "envoy/1"), less(1.6, 1.15);
    "G4/1500/8" "the same, 8 flows": "wire-1500" "cpu_s_per_gb" Ratio("quic/8", "envoy/8"), less(1.6, 1.15);
    "G4/9000/1" "MTU 9000, 1 flow": "wire-9000" "cpu_s_per_gb" Ratio("quic/1", "envoy/1"), less(1.0, 0.7);
    "G4/9000/8" "MTU 9000, 8 flows": "wire-9000" "cpu_s_per_gb" Ratio("quic/8", "envoy/8"), less(1.0, 0.7);
    "G4/added/1500/1" "only what either adds to the direct way, 1 flow": "wire-1500" "cpu_s_per_gb" Added("quic/1", "envoy/1", "direct/1"), None;
    "G4/added/1500/8" "the same, 8 flows": "wire-1500" "cpu_s_per_gb" Added("quic/8", "envoy/8", "direct/8"), None;
    "G5" "goodput of 16 flows against 1": "wire-1500" "mbit" Ratio("quic/16", "quic/1"), more(1.0, 1.5);
    "G5/direct" "the same without a tunnel": "wire-1500" "mbit" Ratio("direct/16", "direct/1"), None;
    "G6/share" "1 % loss, 50 ms: share of a line of 200 Mbit/s": "loss" "mbit" Share("quic/1", 200.0), more(0.8, 0.95);
    "G6/bbr" "the same against the Envoy pair with BBR": "loss" "mbit" Ratio("quic/1", "envoy/1"), more(0.9, 1.1);
    "G7" "p99 of 32 small flows beside a bulk flow at 1 % loss, against HTTP/2 CONNECT with BBR": "loss" "p99_us" Ratio("quic/rpc-beside", "envoy-h2/rpc-beside"), less(0.7, 0.5);
    "G8" "added p99 of 1,000 requests a second on 16 connections, against the Envoy pair": "latency" "p99_us" Added("quic/rpc", "envoy/rpc", "direct/rpc"), less(1.0, 0.5);
    "G8a" "p99 of a ping beside a flow that takes all there is, against the Envoy pair": "latency" "p99_us" Ratio("quic/ping-beside", "envoy/ping-beside"), less(1.5, 0.5);
    "G9" "first byte of a new connection at 100 ms, against no tunnel": "far" "p50_us" Ratio("quic/connect-1", "direct/connect-1"), less(1.05, 0.5);
    "G10/1" "new connections a second against the Envoy pair, one at a time": "connections" "per_s" Ratio("quic/connect-1", "envoy/connect-1"), more(5.0, 20.0);
    "G10/16" "the same, 16 at a time": "connections" "per_s" Ratio("quic/connect-16", "envoy/connect-16"), more(5.0, 20.0);
    "G11" "memory of an idle connection, kB": "idle" "kb" Share("quic/idle", 1.0), less(4.0, 1.5);
    "G12" "goodput of packets of 1,200 bytes against wireguard-go": "packets" "mbit" Ratio("quic/udp-1200", "wireguard/udp-1200"), more(1.0, 2.0);
};

/// Every goal that there are figures for.
pub(super) fn ratios(measured: &[(Stage, Rounds)]) -> Value {
    let mut all = Map::new();
    for goal in GOALS {
        let Some((_, rounds)) = measured.iter().find(|(stage, _)| stage.name == goal.stage) else { continue };
        if let Some((estimate, count)) = goal.estimate(rounds) {
            all.insert(goal.key.to_owned(), goal.line(estimate, count));
        }
    }
    Value::Object(all)
}

impl Goal {
    /// Over all rounds that have what is needed, and how many those are.
    fn estimate(&self, rounds: &Rounds) -> Option<(Estimate, usize)> {
        let found = |round: &Round, label: &str| round.found.get(label)?.get(self.metric).copied();
        let (ours, theirs, base) = match self.compared {
            Share(ours, of) => {
                let shares: Vec<f64> = rounds.counted().filter_map(|round| Some(found(round, ours)? / of)).collect();
                return Some((estimate(&shares)?, shares.len()));
            }
            Ratio(ours, theirs) => (ours, theirs, None),
            Added(ours, theirs, base) => (ours, theirs, Some(base)),
        };
        let pair = |round| {
            let base = base.map_or(Some(0.0), |base| found(round, base))?;
            Some((found(round, ours)? - base, found(round, theirs)? - base))
        };
        let pairs: Vec<(f64, f64)> = rounds.counted().filter_map(pair).collect();
        let of_pairs = |pairs: &[(f64, f64)]| {
            let [ours, theirs]: [Vec<f64>; 2] =
                [pairs.iter().map(|pair| pair.0).collect(), pairs.iter().map(|pair| pair.1).collect()];
            let ratio = match base {
                Some(_) => median(&ours)? / median(&theirs)?,
                None => median(&pairs.iter().map(|(ours, theirs)| ours / theirs).collect::<Vec<_>>())?,
            };
            Some(ratio).filter(|ratio| ratio.is_finite())
        };
        Some((estimate_of(&pairs, of_pairs)?, pairs.len()))
    }

    fn line(&self, estimate: Estimate, rounds: usize) -> Value {
        let mut line = json!({"what": self.what, "median": three(estimate.median), "ci95": estimate.ci95.map(three),
            "rounds": rounds});
        if let Some(bounds) = &self.bounds {
            let reaches = |bound: f64| match bounds.better {
                Better::More => estimate.median >= bound,
                Better::Less => estimate.median <= bound,
            };
            let met = if reaches(bounds.goal) {
                "goal"
            } else if reaches(bounds.floor) {
                "floor"
            } else {
                "missed"
            };
            line["floor"] = bounds.floor.into();
            line["goal"] = bounds.goal.into();
            line["better"] = if bounds.better == Better::More { "more" } else { "less" }.into();
            line["met"] = met.into();
        }
        line
    }
}

/// Three digits after the point.
fn three(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

//! One request at a time by each of several ways, in turn: what one way adds to another is compared within a round.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use eastway_tests::lab::place::Place;
use eastway_tests::load::{Load, Plan, Record, quantile};
use serde_json::{Value, json};

/// Bytes of an answer.
const SIZE: usize = 1_000;
/// Before each measurement, unmeasured: pools fill and caches are warm.
const WARM: Duration = Duration::from_millis(300);
/// Which ways are compared: what the first adds to the second. A way that there is none of is an error.
const COMPARED: [(&str, &str); 4] = [
    ("sidecar_gateways", "envoy"),
    ("sidecar_gateways", "envoy_envoy"),
    ("sidecar_gateways", "gateways"),
    ("envoy_envoy", "direct"),
];

/// A way from a client to a server that answers as [`eastway_tests::servers::Habit::Http`].
pub(crate) struct Way {
    /// In the output.
    pub(crate) name: &'static str,
    /// Where the client is.
    pub(crate) place: Place,
    /// The client's address.
    pub(crate) source: IpAddr,
    /// Whom it asks.
    pub(crate) target: SocketAddr,
}

/// How much is measured.
#[derive(Clone, Copy)]
pub(crate) struct Pace {
    /// In each, every way is measured once.
    pub(crate) rounds: usize,
    /// How long each way is measured in a round.
    pub(crate) each: Duration,
    /// Requests per second.
    pub(crate) rate: u32,
}

/// Measures every way in every round.
pub(crate) async fn measure(ways: &[Way], pace: Pace) -> Result<Value> {
    let mut records: BTreeMap<&str, Vec<Record>> = BTreeMap::new();
    for round in 0..pace.rounds {
        // Whatever comes and goes on the machine shall not meet the same way each time.
        let (first, last) = ways.split_at(round % ways.len());
        for way in last.iter().chain(first) {
            once(way, pace.rate, WARM).await?;
            let record = once(way, pace.rate, pace.each).await.with_context(|| way.name)?;
            eprintln!("round {round}, {}: {:?}, 99 of 100 {:?}", way.name, record.quantile(500), record.p99());
            records.entry(way.name).or_default().push(record);
        }
    }
    let figures: BTreeMap<_, _> = records.iter().map(|(name, rounds)| (name, figures(rounds))).collect();
    let mut added = BTreeMap::new();
    for (way, base) in COMPARED {
        let of = |name| records.get(name).with_context(|| format!("nothing goes by {name}"));
        added.insert(format!("{way} - {base}"), differences(of(way)?, of(base)?));
    }
    let (seconds, rate) = (pace.each.as_secs_f64(), pace.rate);
    let setup = json!({"rounds": pace.rounds, "seconds": seconds, "requests_per_s": rate, "bytes": SIZE});
    Ok(json!({"setup": setup, "took_us": figures, "added_us": added}))
}

async fn once(way: &Way, rate: u32, duration: Duration) -> Result<Record> {
    let load = Load::start(&way.place, Plan { source: way.source, target: way.target, rate, size: SIZE });
    tokio::time::sleep(duration).await;
    let record = load.stop().await?;
    record.none_failed()?;
    Ok(record)
}

/// How long the answers on some connections took, microseconds.
type Took = fn(&Record) -> &[u32];

/// The connections that are told from each other.
const CONNECTIONS: [(&str, Took); 2] = [("kept_alive", |record| &record.kept_us), ("new", |record| &record.new_us)];

/// Of all rounds together.
fn figures(rounds: &[Record]) -> Value {
    let of = |took: Took| {
        let all: Vec<_> = rounds.iter().flat_map(took).map(|us| Duration::from_micros(u64::from(*us))).collect();
        quantiles(&all, microseconds)
    };
    by_connections(of)
}

/// The medians, over the rounds, of how much larger a quantile is by `way` than by `base` in the same round.
fn differences(way: &[Record], base: &[Record]) -> Value {
    let of = |took: Took, of_1000| {
        let us = |record| quantile(took(record), of_1000).as_secs_f64() * 1e6;
        let mut all: Vec<f64> = way.iter().zip(base).map(|(way, base)| us(way) - us(base)).collect();
        all.sort_by(f64::total_cmp);
        // Of an even number of rounds, between the two in the middle.
        f64::midpoint(all[(all.len() - 1) / 2], all[all.len() / 2]).round()
    };
    let both = |took: Took| json!({"p50": of(took, 500), "p99": of(took, 990)});
    by_connections(both)
}

fn by_connections(of: impl Fn(Took) -> Value) -> Value {
    CONNECTIONS.iter().map(|(name, took)| ((*name).to_owned(), of(*took))).collect::<serde_json::Map<_, _>>().into()
}

/// The median, what one in a hundred exceeds, and the largest.
pub(crate) fn quantiles(times: &[Duration], unit: fn(Duration) -> f64) -> Value {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let at = |of_1000: usize| {
        let index = (sorted.len() * of_1000 / 1000).min(sorted.len().saturating_sub(1));
        unit(sorted.get(index).copied().unwrap_or_default())
    };
    json!({"p50": at(500), "p99": at(990), "max": at(1000)})
}

/// With one digit after the point.
pub(crate) fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e4).round() / 10.0
}

fn microseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round()
}

//! Rules that change all the time cost no request (design, §13: no retries anywhere, half of the requests on new connections).

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use eastway_tests::load::{Load, Plan};
use eastway_tests::within;
use serde_json::{Value, json};

use super::bed::{Bed, PATIENCE, Placed, share};

/// Most of the load stays in its cloud: it is the rules that are tried, and the way to the other cloud costs more.
const SERVERS: [Placed; 3] = [("a", 11, "v1"), ("a", 12, "v2"), ("b", 13, "v3")];

/// Requests per second.
const RATE: u32 = 500;

/// How many times the rules change; `make soak` asks for 1,000.
const RELOADS: &str = "EASTWAY_TEST_RELOADS";

pub(super) async fn run(version: &str) -> Result<()> {
    let reloads = match std::env::var(RELOADS) {
        Ok(number) => number.parse().with_context(|| format!("{RELOADS}={number}: not a number"))?,
        Err(_) => 100,
    };
    let bed = Bed::with(version, &SERVERS).await?;
    let (place, source) = bed.mesh.client("a");
    let load = Load::start(&place, Plan { source, target: bed.target, rate: RATE, size: 1_000 });
    let begun = Instant::now();
    for number in 0..reloads {
        // Each is at work before the next one comes.
        bed.apply(&rules(number)).await?;
    }
    let took = begun.elapsed();
    // What is under way arrives, and a few more requests by the last rules.
    let sent = load.sent();
    within(PATIENCE, "a second of requests", async || Ok(load.sent() > sent + u64::from(RATE))).await?;
    let record = load.stop().await?;
    println!(
        "Envoy {version}: {reloads} reloads in {took:?}, {} requests ({} connections), {} failed, by {:?}, p99 {:?}",
        record.sent,
        record.connections,
        record.failures.len(),
        record.by_server,
        record.p99()
    );
    record.none_failed()?;
    ensure!(record.by_server.len() == 3, "all servers had their turn: {:?}", record.by_server);
    bed.stop().await
}

/// Other shares, weights, matches and filters each time; shares come and go, and clusters with them.
fn rules(number: u64) -> Vec<Value> {
    let weight = u32::try_from(number % 7 + 1).unwrap_or(1);
    let rule = json!({"set": [{"name": "x-rule", "value": number.to_string()}]});
    let header = json!({"type": "RequestHeaderModifier", "requestHeaderModifier": rule});
    let default = match number % 4 {
        0 => json!({"backendRefs": [share("v1", 1)]}),
        1 => json!({"backendRefs": [share("v1", weight), share("v2", 3)]}),
        2 => json!({"backendRefs": [share("b", 1), share("a", 10 * weight)], "filters": [header]}),
        _ => json!({"backendRefs": [share("v2", 1)], "timeouts": {"request": "10s"}}),
    };
    let user = format!("user-{number}");
    let special = json!({
        "matches": [{"headers": [{"name": "end-user", "value": user}]}],
        "backendRefs": [share(["v1", "v2", "v3"][usize::try_from(number % 3).unwrap_or(0)], 1)],
    });
    vec![special, default]
}

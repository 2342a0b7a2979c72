//! The model rung: federated clusters in the seeded simulator, see [`sim`].
//!
//! `EASTWAY_SIM_SEEDS` sets how many seeds are run (10,000 in release, 100 in dev), and
//! `EASTWAY_SIM_SEED=<n>` replays one with every event printed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    unreachable_pub,
    reason = "this is test code: a panic is a verdict"
)]

mod sim;

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use sim::{Hits, MIN_EVENTS, Violation};

/// Seeds of a plain run.
const SEEDS: u64 = if cfg!(debug_assertions) { 100 } else { 10_000 };

/// Threads that share them: the machine that judges has two cores.
const THREADS: usize = 2;

#[test]
fn i1_to_i8_hold_at_each_step_and_clusters_converge() {
    if let Some(seed) = from_environment("EASTWAY_SIM_SEED") {
        let hits = sim::run(seed, true).unwrap_or_else(|violation| panic!("{violation}"));
        println!("seed {seed} holds\n{hits}");
        return;
    }
    let seeds = from_environment("EASTWAY_SIM_SEEDS").unwrap_or(SEEDS);
    let started = Instant::now();
    let hits = run_all(seeds).unwrap_or_else(|violation| {
        panic!("{violation}\nreplay it with EASTWAY_SIM_SEED={}", violation.seed);
    });
    println!(
        "{seeds} seeds, {} events (each seed at least {MIN_EVENTS}), {} messages in {:.1} s; seeds with each kind:\n{hits}",
        hits.events,
        hits.messages,
        started.elapsed().as_secs_f64(),
    );
    assert!(hits.events >= seeds * MIN_EVENTS as u64);
    assert!(hits.missing().is_empty(), "kinds of events that no seed had: {:?}", hits.missing());
}

#[test]
fn a_seed_gives_the_same_run_again() {
    let run = || {
        sim::run(7, false).map(|hits| (hits.messages, hits.events)).unwrap_or_else(|violation| panic!("{violation}"))
    };
    assert_eq!(run(), run());
}

fn run_all(seeds: u64) -> Result<Hits, Violation> {
    let next = AtomicU64::new(0);
    let worker = || {
        let mut hits = Hits::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds {
                return Ok(hits);
            }
            match sim::run(seed, false) {
                Ok(more) => hits.merge(&more),
                Err(violation) => {
                    next.store(seeds, Ordering::Relaxed);
                    return Err(violation);
                }
            }
        }
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..THREADS).map(|_| scope.spawn(worker)).collect();
        let mut all = Hits::default();
        for worker in workers {
            all.merge(&worker.join().unwrap()?);
        }
        Ok(all)
    })
}

fn from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

//! A seeded simulator of federated clusters: real sessions, real tables, real stores, and everything
//! around them (registries, links, clocks, disks, operators, a hostile peer) played by one random
//! number generator in virtual time.
//!
//! A seed is 3 to 8 clusters of up to 3 replicas and at least [`MIN_EVENTS`] random events. After
//! every message the invariants I1 to I8 of the design are checked for whoever it touched, and when
//! everything is healed at the end each cluster must see exactly what the others export. The same
//! seed gives the same run.

mod check;
mod conn;
mod events;
mod hits;
mod hostile;
mod replica;
mod stores;
mod streams;
mod truth;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

pub use hits::Hits;
pub use world::MIN_EVENTS;

/// An invariant that does not hold.
#[derive(Clone, Debug, thiserror::Error)]
#[error("seed {seed}, event {event}, {at_ms} ms: {what}")]
pub struct Violation {
    /// The seed; `EASTWAY_SIM_SEED` replays it.
    pub seed: u64,
    /// How many events had happened.
    pub event: usize,
    /// Virtual time since the beginning.
    pub at_ms: u128,
    /// Which invariant, of whom, and how.
    pub what: String,
}

/// Runs one seed and tells which kinds of events it had. With `trace` every event is printed.
///
/// # Errors
/// [`Violation`], also if the code under test panics.
pub fn run(seed: u64, trace: bool) -> Result<Hits, Violation> {
    let mut world = world::World::new(seed, trace);
    let result = catch_unwind(AssertUnwindSafe(|| world.run()));
    let what = match result {
        Ok(Ok(())) => return Ok(world.hits),
        Ok(Err(what)) => what,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            format!("panic: {}", text.unwrap_or_default())
        }
    };
    Err(Violation { seed, event: world.event, at_ms: world.now.as_millis(), what })
}

//! Links over real UDP sockets on loopback, with real identities; and in memory, in virtual time.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it measured"
)]

mod balanced;
mod balancer;
mod by_way;
mod certificates;
mod faults;
mod flows;
mod hostile;
mod lanes;
mod many;
mod migrations;
mod neighbours;
mod older;
mod over;
mod raw;
mod refusals;
mod relay;
mod replicas;
mod shared;
mod stalls;
mod streams;
mod support;
mod tcp;
mod virtual_time;

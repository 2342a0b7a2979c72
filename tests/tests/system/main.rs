//! Clouds as network namespaces: what a user would notice, with and without faults.
//!
//! Faults are called by their number in the fault table of the design's reliability research (F1, F3, …).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test fails by panicking, and prints what it measured"
)]

mod access;
mod basics;
mod certificates;
mod check;
mod check_trust;
mod chosen;
mod cli;
mod client_address;
mod config;
mod demo;
mod fallback;
mod flood;
mod flows;
mod hbone;
mod hostile;
mod lab;
mod names;
mod partition;
mod rebind;
mod relay;
mod resolving;
mod restart;
mod revocation;
mod scarce;
mod soak;
mod sockets;
mod stale;
mod state;
mod takeover;
mod trust;
mod udp;
mod uplinks;
mod wan;

//! Istio, unmodified, in real clusters: a real istiod in each, and real sidecars. See `eastway_tests::kube::istio`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test fails by panicking, and prints what it measured"
)]

mod alone;
mod networks;
mod parts;
mod stretched;

use std::process::ExitCode;

fn main() -> ExitCode {
    eastway_tests::kube::suite::main_called(
        "istio",
        &["a", "b", "c"],
        &[alone::TESTS, stretched::TESTS, networks::TESTS].concat(),
    )
}

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
mod bookinfo;
mod failover;
mod http2;
mod known;
mod networks;
#[allow(dead_code, reason = "a part of it is for clusters with roots of their own")]
mod parts;
mod rolling;
mod size;
mod stretched;
mod taken_back;

use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(code) = eastway_tests::kube::traffic::serve_if_asked() {
        return code;
    }
    let tests = [
        alone::TESTS,
        stretched::TESTS,
        bookinfo::TESTS,
        networks::TESTS,
        failover::TESTS,
        rolling::TESTS,
        http2::TESTS,
        taken_back::TESTS,
        size::TESTS,
    ]
    .concat();
    eastway_tests::kube::suite::main_called("istio", &["a", "b", "c"], &tests)
}

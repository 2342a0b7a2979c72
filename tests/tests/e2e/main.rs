//! Two real Kubernetes clusters, and Eastway between them. See `eastway_tests::kube`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test fails by panicking, and prints what it measured"
)]

use std::process::ExitCode;

mod bookinfo;
mod client;
mod conformance;
mod installed;
mod mcs;
mod names;
mod services;
mod smoke;
mod sources;

fn main() -> ExitCode {
    let tests = [
        smoke::TESTS,
        names::TESTS,
        bookinfo::TESTS,
        installed::TESTS,
        services::TESTS,
        mcs::TESTS,
        sources::TESTS,
        conformance::TESTS,
    ]
    .concat();
    eastway_tests::kube::suite::main(&["a", "b"], &tests)
}

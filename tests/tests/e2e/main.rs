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

mod answering;
mod bookinfo;
mod churn;
mod client;
mod conformance;
mod faults_lb;
mod herd;
mod injected;
mod injected_rules;
mod injected_table;
mod installed;
mod mcs;
mod names;
mod objects;
mod open_ports;
mod outage;
mod pinned;
mod relay;
mod rotation;
mod routes;
mod services;
mod size;
mod smoke;
mod sources;
mod status;
mod udp;
mod upgrade;

fn main() -> ExitCode {
    if let Some(code) = eastway_tests::kube::traffic::serve_if_asked() {
        return code;
    }
    let tests = [
        smoke::TESTS,
        names::TESTS,
        bookinfo::TESTS,
        installed::TESTS,
        services::TESTS,
        mcs::TESTS,
        sources::TESTS,
        objects::TESTS,
        routes::TESTS,
        pinned::TESTS,
        udp::TESTS,
        injected::TESTS,
        relay::TESTS,
        outage::TESTS,
        churn::TESTS,
        upgrade::TESTS,
        faults_lb::TESTS,
        status::TESTS,
        rotation::TESTS,
        herd::TESTS,
        size::TESTS,
        conformance::TESTS,
    ]
    .concat();
    eastway_tests::kube::suite::main(&["a", "b"], &tests)
}

//! `eastway sidecar` with real Envoys, the newest that was tried and the oldest that is supported. The gateway is played
//! by the test.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test fails by panicking, and prints what it measured"
)]

mod bodies;
mod capture;
mod cut;
mod forged;
mod gateway;
mod host;
mod istio;
mod memory;
mod mutual;
mod occupied;
mod protocols;
mod role;
mod routing;
mod spoken;
mod table;
mod told;
mod views;
mod whole_path;
mod workloads;

/// Each with both Envoys.
macro_rules! with_each_envoy {
    ($($name:ident)+) => {$(
        mod $name {
            eastway_tests::lab_test! {
                async fn envoy_1_40_0() { super::bodies::$name("1.40.0").await }
                async fn envoy_1_36_2() { super::bodies::$name("1.36.2").await }
            }
        }
    )+};
}

with_each_envoy! {
    x1_it_comes_up_with_what_the_gateway_says_and_the_workloads_certificate
    f27_a_rotated_ca_costs_no_connection
    a_killed_envoy_is_started_again
    sigterm_lets_connections_finish_and_cuts_the_rest
    a_killed_sidecar_takes_envoy_along_and_the_next_one_goes_on
}

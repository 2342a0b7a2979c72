//! Harness of the system tests: clouds as network namespaces, on one machine and without root.
//!
//! A system test is written with [`lab_test!`]. Its body runs in a process of its own, process 1 of new
//! user, PID, mount and network namespaces, so tests cannot disturb each other or the machine, and
//! nothing outlives them. A test that cannot get its namespaces **fails**.
//!
//! [`mesh`] starts clouds and introduces them; [`relay`] is the WAN between two gateways, with seeded
//! faults; [`kube`] is real Kubernetes clusters, which need root; [`servers`] and [`load`] are the two ends of the traffic. None of the clients retries
//! anything: what the network does is what a test sees.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::missing_panics_doc,
    reason = "this is test code: a panic is a verdict"
)]

mod archive;
pub mod cage;
pub mod chart;
pub mod coredns;
pub mod documents;
pub mod envoy;
pub mod flood;
pub mod grpc;
pub mod haproxy;
pub mod kube;
pub mod load;
pub mod mesh;
pub mod oci;
pub mod proxy;
pub mod relay;
pub mod rogue;
pub mod run;
pub mod sidecar;
pub mod sniffer;

pub mod servers;
pub mod talk;
pub mod transfer;
pub mod until;

pub use eastway::demo::lab;
pub use run::{binary, run_in_lab};
pub use until::{eventually, within};

/// Declares tests whose `async` body runs inside namespaces of its own and returns `anyhow::Result<()>`.
///
/// ```ignore
/// lab_test! {
///     /// F1: what it guards.
///     async fn f1_name() { Ok(()) }
/// }
/// ```
#[macro_export]
macro_rules! lab_test {
    ($($(#[$meta:meta])* async fn $name:ident() $body:block)+) => {
        $($(#[$meta])*
        #[test]
        fn $name() {
            $crate::run_in_lab(module_path!(), stringify!($name), async move { $body });
        })+
    };
}

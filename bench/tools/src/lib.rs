//! The side-by-side benchmark of the tunnel: `make bench`.
//!
//! `bench/run` starts [`campaign`] as process 1 of namespaces of its own. It lays a network ([`bed`]), starts the tunnels
//! that are compared ([`rivals`]), measures them in turn ([`measure`]), and writes one JSON file, from which [`report`]
//! makes the plots and the section of `docs/performance.md`. What it needs beside are programs of this same binary:
//! the simulated WAN ([`wan`]), a plain pump on quinn ([`pump`]), and both ends of the load ([`load`]).
#![allow(
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "a measuring program prints what it measured, and one that meets the unexpected has to stop"
)]

pub mod bed;
pub mod campaign;
pub mod certificates;
pub mod load;
pub mod measure;
pub mod process;
pub mod pump;
pub mod report;
pub mod rivals;
pub mod statistics;
pub mod wan;

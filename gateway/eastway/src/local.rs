//! What the processes of one cluster say to each other over the network: gRPC on TLS 1.3, both sides known by the
//! cluster's own CA.
//!
//! - [`server`] and [`client`]: the *feed*, by which the gateway tells the controller what peers export.
//! - [`feed`] and [`intake`]: the two ends of it without I/O.
//! - [`links`]: what it says about links, and how often.
//! - [`listener`] and [`dial`]: the TLS connections under it, and under the CA's API.
//! - [`socket`]: Unix sockets for one user.

pub mod client;
pub mod dial;
pub mod feed;
pub mod intake;
pub mod links;
pub mod listener;
pub mod server;
pub mod socket;

#[cfg(test)]
mod sidecar_tests;
#[cfg(test)]
mod tests;

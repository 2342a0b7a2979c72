//! The crate through its public face: CA folders, handshakes, hostile leaves, rotation, revocation.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on must fail at once"
)]

mod cacerts;
mod formats;
mod garbage;
mod handshake;
mod hostile;
mod issuing;
mod local;
mod pki;
mod reauth;
mod revocation;
mod rotation;
mod stores;
mod support;

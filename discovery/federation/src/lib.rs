//! What clusters tell each other about their exports, as state machines without I/O.
//!
//! An [`ImportSession`] asks one replica of a peer for what the peer exports and keeps it in that
//! peer's [`ImportTable`], which outlives sessions and restarts. An [`ExportSession`] answers one
//! such stream out of the store's snapshots. Both take messages and the time and return actions;
//! streams, tasks, clocks and files are the caller's. [`codec`] cuts a byte stream into messages.
//!
//! Not here: which link carries a stream (the caller keeps one session per peer), the store, and
//! merging what several clusters export (`eastway-model`).
//!
//! The messages and their order are described in `federation.proto`.

pub mod close;
pub mod codec;
pub mod convert;
pub mod digest;
pub mod export;
pub mod import;
pub mod limits;
pub mod reject;
pub mod table;

pub use close::CloseReason;
pub use export::{ExportAction, ExportSession};
pub use import::{ImportAction, ImportSession};
pub use limits::{Limits, Now};
pub use reject::RejectReason;
pub use table::ImportTable;

/// Lowest version of the protocol spoken here.
pub const MIN_VERSION: u32 = 1;

/// Highest version of the protocol spoken here.
pub const MAX_VERSION: u32 = 1;

#[cfg(test)]
mod testing;

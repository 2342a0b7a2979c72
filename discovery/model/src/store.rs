//! One writer, many readers: changes go in one by one, immutable snapshots come out.
//!
//! A snapshot is cut into shards, and what a change does not touch is shared with the snapshot
//! before. What changes nothing publishes nothing.

mod local;
mod peers;
mod reader;
mod sharded;
mod snapshot;
mod sources;
mod writer;

pub use local::{RegistryConflict, RegistryConflictKind};
pub use reader::{Closed, Reader};
pub use snapshot::{PeerView, Snapshot};
pub use writer::Writer;

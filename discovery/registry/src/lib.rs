//! Registries that are files: sources of *local* truth. API servers are read by another crate.
//!
//! The strict YAML reader that every file of ours goes through ([`yaml`], [`diagnostic`]) and the
//! watcher of files and folders ([`watch`]) live here too, because this is the lowest crate that
//! reads files; the gateway's own configuration uses both.
//!
//! Nothing here knows peers, policies or routes.

pub mod clusters;
pub mod diagnostic;
pub mod file;
pub mod value;
pub mod watch;
pub mod yaml;

//! Files users write, parsed once into settings that cannot be wrong.
//!
//! [`mod@file`] has the shapes; [`Settings`], [`PeerSettings`] and [`Policies`] are what is left of them
//! after all checks. [`load`] reads a configuration file and the folders it names and reports
//! everything that is wrong at once; [`watch`] keeps doing so and holds on to the last good
//! configuration (invariant I11). Service files are the registries' own ([`eastway_registry::file`]),
//! each with its last good version; [`check`] reads them too.
//!
//! What the environment and flags override is the command line's business.

mod across;
pub mod file;
mod fixed;
mod istio;
mod load;
pub mod objects;
pub mod peer;
pub mod policy;
mod report;
mod route;
mod schema;
pub mod settings;
pub mod sidecar;
pub mod value;
mod watch;

pub use load::{ConfigErrors, Loaded, load, load_settings, settings_of_text};
pub use peer::PeerSettings;
pub use policy::Policies;
pub use report::{Report, Summary, check, check_peer, check_sidecar, check_text};
pub use schema::{KINDS, schema};
pub use settings::{CaAddress, RegistrySettings, ReplicaSettings, Settings};
pub use sidecar::{SidecarSettings, load_sidecar, read_sidecar};
pub use watch::{ReloadStatus, watch};

#[cfg(test)]
mod tests;

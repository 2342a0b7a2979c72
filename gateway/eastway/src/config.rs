//! Files users write, parsed once into settings that cannot be wrong.
//!
//! [`file`] has the shapes, [`Settings`], [`PeerSettings`] and [`Policies`] what is left of them after all checks. [`load`]
//! reads a configuration file and the folders it names and reports everything that is wrong at once.

mod across;
pub mod file;
mod load;
pub mod peer;
pub mod policy;
pub mod settings;
pub mod value;

pub use load::{ConfigErrors, Loaded, load};
pub use peer::PeerSettings;
pub use policy::Policies;
pub use settings::Settings;

#[cfg(test)]
mod tests;

//! Files users write, parsed once into settings that cannot be wrong.
//!
//! [`file`] has the shapes, [`Settings`] what is left of them after all checks. [`load`]
//! reads a configuration file and the folders it names and reports everything that is wrong at once.

pub mod file;
mod load;
pub mod settings;
pub mod value;

pub use load::{ConfigErrors, Loaded, load};
pub use settings::Settings;

#[cfg(test)]
mod tests;

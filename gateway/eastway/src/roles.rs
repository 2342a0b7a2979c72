//! What a process does. A process can hold several roles, but only the certificate authority ever
//! reads the CA key, and only the gateway faces the WAN.

pub mod ca;
pub mod enroll;

use crate::cli::RunOptions;

/// Why a process could not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// No role can be run yet.
    #[error("no role is built in yet")]
    Unavailable,
}

/// Runs the process until it is told to stop.
///
/// # Errors
/// [`RunError`].
pub fn run(options: &RunOptions) -> Result<(), RunError> {
    drop(options.roles.clone());
    Err(RunError::Unavailable)
}

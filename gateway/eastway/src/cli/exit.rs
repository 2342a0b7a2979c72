//! How a command ends: exit codes and the one line that says why.

use std::error::Error;
use std::process::ExitCode;

/// All went well.
pub const OK: u8 = 0;
/// It did not work.
pub const FAILED: u8 = 1;
/// It was asked wrongly: an unknown flag, or a configuration file that cannot be used.
pub const USAGE: u8 = 2;
/// It worked, and somebody should look (`check`, `peer lint`).
pub const WARNINGS: u8 = 3;

/// Why a command did not end well.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    /// It did not work.
    pub fn failed(error: &dyn Error) -> Self {
        Self { code: FAILED, message: chain(error) }
    }
}

/// The error and its sources on one line, each said once.
fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let text = source.to_string();
        if !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        next = source.source();
    }
    line
}

/// Prints what clap has to say: help on standard output, errors on standard error.
pub(super) fn usage(error: &clap::Error) -> ExitCode {
    drop(error.print());
    ExitCode::from(if error.use_stderr() { USAGE } else { OK })
}

/// Prints the failure, if there is one.
pub(super) fn code(result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::from(OK),
        Err(failure) => {
            anstream_eprintln(&failure.message);
            ExitCode::from(failure.code)
        }
    }
}

fn anstream_eprintln(message: &str) {
    use std::io::Write as _;
    drop(writeln!(std::io::stderr().lock(), "error: {message}"));
}

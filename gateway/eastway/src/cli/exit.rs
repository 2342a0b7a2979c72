//! How a command ends: exit codes and the one line that says why.

use std::error::Error;
use std::io::Write as _;
use std::process::ExitCode;

use clap::error::ErrorKind;

use crate::telemetry::Escaped;

/// All went well.
pub const OK: u8 = 0;
/// It did not work.
pub const FAILED: u8 = 1;
/// It was asked wrongly: an unknown flag, or a configuration file that cannot be used.
pub const USAGE: u8 = 2;
/// It worked, and somebody should look (`check`, `config check`, `peer lint`).
pub const WARNINGS: u8 = 3;

/// Why a command did not end well: one line, and how the process ends.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    /// It did not work, for a reason that has a type.
    pub fn failed(error: &dyn Error) -> Self {
        Self { code: FAILED, message: chain(error) }
    }

    /// It did not work: what, where, why, and what to do, in one line.
    pub fn because(message: impl Into<String>) -> Self {
        Self { code: FAILED, message: message.into() }
    }

    /// It was asked wrongly.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { code: USAGE, message: message.into() }
    }

    /// The line.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Everything was said already; only the code is left.
    pub fn silent(code: u8) -> Self {
        Self { code, message: String::new() }
    }
}

impl From<std::io::Error> for Failure {
    /// Writing the output failed. A reader that has seen enough (`| head`) is no failure.
    fn from(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            return Self::silent(OK);
        }
        Self { code: FAILED, message: format!("cannot write the output: {error}") }
    }
}

/// The error and its sources on one line, each said once.
pub fn chain(error: &dyn Error) -> String {
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

/// Prints what clap has to say: help and versions as they are, on standard output; mistakes as one line.
pub(super) fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // Nobody is left to tell if standard output is closed.
        error.print().ok();
        return ExitCode::from(OK);
    }
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        error.print().ok();
        return ExitCode::from(USAGE);
    }
    complain(&one_line(&error.render().to_string()));
    ExitCode::from(USAGE)
}

/// clap's message without its usage block: the first paragraph, and the tips.
fn one_line(rendered: &str) -> String {
    let mut paragraphs = rendered.split("\n\n").map(|text| text.split_whitespace().collect::<Vec<_>>().join(" "));
    let first = paragraphs.next().unwrap_or_default();
    let mut line = first.trim_start_matches("error:").trim().to_owned();
    for paragraph in paragraphs {
        if let Some(tip) = paragraph.strip_prefix("tip: ") {
            line.push_str("; ");
            line.push_str(&tip.replace(" tip: ", "; "));
        }
    }
    line.push_str("; see `eastway --help`");
    line
}

/// Prints the failure, if there is one.
pub(super) fn code(result: Result<ExitCode, Failure>) -> ExitCode {
    match result {
        Ok(code) => code,
        Err(failure) => {
            if !failure.message.is_empty() {
                complain(&failure.message);
            }
            ExitCode::from(failure.code)
        }
    }
}

/// `error:` and one line on standard error. Part of the message may come from a file or a peer.
pub(super) fn complain(message: &str) {
    let mut line = String::from("error: ");
    for part in message.split_inclusive(char::is_whitespace) {
        line.push_str(&Escaped(part.trim_end()).to_string());
        line.push_str(if part.ends_with(char::is_whitespace) { " " } else { "" });
    }
    writeln!(std::io::stderr().lock(), "{}", line.trim_end()).ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_mistakes_are_one_line() {
        let rendered = "error: unexpected argument '--confg' found\n\n  tip: a similar argument exists: '--config'\n\nUsage: eastway run\n\nFor more information, try '--help'.\n";
        assert_eq!(
            one_line(rendered),
            "unexpected argument '--confg' found; a similar argument exists: '--config'; see `eastway --help`"
        );
        let rendered = "error: the following required arguments were not provided:\n  --config <FILE>\n\nUsage: x\n";
        assert_eq!(
            one_line(rendered),
            "the following required arguments were not provided: --config <FILE>; see `eastway --help`"
        );
    }

    #[test]
    fn a_closed_pipe_is_no_failure() {
        let failure = Failure::from(std::io::Error::from(std::io::ErrorKind::BrokenPipe));
        assert_eq!((failure.code, failure.message.as_str()), (OK, ""));
    }
}

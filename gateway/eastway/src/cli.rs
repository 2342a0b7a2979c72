//! The command line: one binary that serves, asks and explains.
//!
//! Commands that ask (`status`, `describe`, …) read the admin port of a running gateway; nothing here reaches into
//! its memory. Errors are one line: what, where, why, what to do.

pub mod exit;
mod run;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub use self::run::{Role, RunOptions};

/// Joins services of several clouds without a VPN.
#[derive(Debug, Parser)]
#[command(name = "eastway", version, propagate_version = true, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a gateway (and what else `--roles` names) from a configuration file
    Run(run::RunArgs),
}

/// Runs the command that `arguments` (with the program's name first) ask for.
pub fn main(arguments: impl IntoIterator<Item = std::ffi::OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => return exit::usage(&error),
    };
    let result = match cli.command {
        Command::Run(args) => run::run(args),
    };
    exit::code(result)
}

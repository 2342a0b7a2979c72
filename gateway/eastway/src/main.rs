//! The `eastway` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    eastway::cli::main(std::env::args_os())
}

//! The `eastway` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    eastway::demo::hidden(std::env::args_os()).unwrap_or_else(|| eastway::cli::main(std::env::args_os()))
}

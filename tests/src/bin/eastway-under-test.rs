//! The `eastway` command as the system tests run it: built by the same `cargo test`, so never stale.

use std::process::ExitCode;

fn main() -> ExitCode {
    eastway::demo::hidden(std::env::args_os()).unwrap_or_else(|| eastway::cli::main(std::env::args_os()))
}

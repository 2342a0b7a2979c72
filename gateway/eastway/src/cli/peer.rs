//! `eastway peer`: the files that join clusters.

mod export;
mod lint;
mod remove;

use clap::Subcommand;

use super::exit::Failure;

/// `eastway peer …`
#[derive(Debug, Subcommand)]
pub(super) enum PeerCommand {
    /// Print the file that makes this cluster a peer of another one
    Export(export::ExportArgs),
    /// Check a Peer file by itself, e.g. one that you were sent
    Lint(lint::LintArgs),
    /// Delete a peer's file and wait until nothing of it is left
    Remove(remove::RemoveArgs),
}

pub(super) fn run(command: &PeerCommand) -> Result<(), Failure> {
    match command {
        PeerCommand::Export(args) => export::export(args),
        PeerCommand::Lint(args) => lint::lint(args),
        PeerCommand::Remove(args) => remove::remove(args),
    }
}

//! `eastway peer`: the files that join clusters.

mod remove;

use clap::Subcommand;

use super::exit::Failure;

/// `eastway peer …`
#[derive(Debug, Subcommand)]
pub(super) enum PeerCommand {
    /// Delete a peer's file and wait until nothing of it is left
    Remove(remove::RemoveArgs),
}

pub(super) fn run(command: &PeerCommand) -> Result<(), Failure> {
    match command {
        PeerCommand::Remove(args) => remove::remove(args),
    }
}

//! `eastway schema`: JSON Schemas of the files that users write.

use clap::Args;
use eastway_registry::diagnostic::did_you_mean;

use super::exit::Failure;
use super::output::print;
use crate::config;

/// Arguments of `eastway schema`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  eastway schema                            the kinds of files
  eastway schema Peer > peer.schema.json

In an editor with a YAML language server, begin a file with
  # yaml-language-server: $schema=./peer.schema.json")]
pub(super) struct SchemaArgs {
    /// Kind of file, as after `kind:`; without one, the kinds are listed
    kind: Option<String>,
}

pub(super) fn schema(args: &SchemaArgs) -> Result<(), Failure> {
    let Some(kind) = &args.kind else {
        return print(&format!("{}\n", config::KINDS.join("\n")));
    };
    match config::schema(kind) {
        Some(schema) => print(&schema),
        None => {
            let hint = match did_you_mean(kind, config::KINDS) {
                Some(near) => format!("did you mean {near}?"),
                None => format!("there are {}", config::KINDS.join(", ")),
            };
            Err(Failure::usage(format!("no file is of kind {kind:?}; {hint}")))
        }
    }
}

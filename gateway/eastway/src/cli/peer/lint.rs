//! `eastway peer lint`: is this Peer file good?

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use crate::admin::views::View;
use crate::cli::config::{refuse, verdict};
use crate::cli::exit::Failure;
use crate::cli::output::{Format, Output, print};
use crate::config::{self, PeerSettings};
use eastway_registry::diagnostic::Diagnostic;

/// Arguments of `eastway peer lint`.
#[derive(Debug, Args)]
#[command(after_help = "\
It knows nothing of the configuration that the file is for; `eastway config check` compares all files.
Compare the pins with the other side's operator by another way than the file came.

Exit codes: 0 good, 2 it cannot be used, 3 it can be used and has warnings.")]
pub(in crate::cli) struct LintArgs {
    /// The `kind: Peer` file
    file: PathBuf,
    #[command(flatten)]
    output: Output,
}

#[derive(Serialize)]
struct Report<'a> {
    file: String,
    usable: bool,
    diagnostics: Vec<&'a Diagnostic>,
}

pub(super) fn lint(args: &LintArgs) -> Result<(), Failure> {
    let result = config::check_peer(&args.file);
    let diagnostics = match &result {
        Ok((_, warnings)) => warnings,
        Err(errors) => errors,
    };
    if args.output.format != Format::Table {
        let file = args.file.display().to_string();
        let report = Report { file, usable: result.is_ok(), diagnostics: diagnostics.iter().collect() };
        let value = serde_json::to_value(View::new("PeerLint", report)).map_err(|error| Failure::failed(&error))?;
        args.output.print(&value, || Ok(String::new()))?;
    } else if let Ok((peer, warnings)) = &result {
        let shown = if warnings.iter().next().is_some() { format!("{warnings}\n") } else { String::new() };
        print(&format!("{shown}{}: {}", args.file.display(), summary(peer)))?;
    } else {
        return Err(refuse(&args.file, diagnostics));
    }
    verdict(result.is_ok(), diagnostics.iter().count())
}

fn summary(peer: &PeerSettings) -> String {
    let addresses: Vec<String> = peer.addresses.iter().map(ToString::to_string).collect();
    let dialled = if addresses.is_empty() { "it dials us".to_owned() } else { addresses.join(", ") };
    let mut text = format!("good, peer {} of {}, {dialled}\n", peer.name, peer.trust_domain);
    for pin in &peer.pins {
        text.push_str(&format!("  pin {pin}\n"));
    }
    text
}

//! `eastway config check`, and what other commands take from a configuration file.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use eastway_registry::diagnostic::Diagnostics;
use serde::Serialize;

use super::exit::{self, Failure};
use super::output::{Format, Output, print};
use crate::admin::views::View;
use crate::config::{self, ConfigErrors, Loaded};

/// `eastway config …`
#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Check a GatewayConfig file and the folders it names
    #[command(after_help = "\
Everything that is wrong is shown at once, with file, line, column and what to do.
Exit codes: 0 good, 2 it cannot be used, 3 it can be used and has warnings.")]
    Check(CheckArgs),
}

/// Where the configuration is.
#[derive(Clone, Debug, Args)]
pub(super) struct ConfigFile {
    /// The GatewayConfig file
    #[arg(long = "config", short = 'c', value_name = "FILE", env = "EASTWAY_CONFIG")]
    path: PathBuf,
}

impl ConfigFile {
    /// The file at `path`.
    pub(super) fn at(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// Reads and checks it; what is wrong goes to standard error.
    pub(super) fn load(&self) -> Result<Loaded, Failure> {
        load(&self.path)
    }
}

/// Arguments of `eastway config check`.
#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    config: ConfigFile,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(command: &ConfigCommand) -> Result<(), Failure> {
    match command {
        ConfigCommand::Check(args) => check(&args.config.path, args.output),
    }
}

/// As `eastway config check FILE`.
pub(super) fn check_file(file: &Path) -> Result<(), Failure> {
    check(file, Output { format: Format::Table })
}

/// `listen.admin` of a GatewayConfig file.
pub(super) fn admin_address(file: &Path) -> Result<SocketAddr, Failure> {
    Ok(load(file)?.settings.listen.admin)
}

fn load(file: &Path) -> Result<Loaded, Failure> {
    config::load(file).map_err(|ConfigErrors(diagnostics)| refuse(file, &diagnostics))
}

/// Shows what is wrong with a file; a single mistake without a place in the file is the error line itself.
pub(super) fn refuse(file: &Path, diagnostics: &Diagnostics) -> Failure {
    let mut all = diagnostics.iter();
    if let (Some(only), None) = (all.next(), all.next())
        && only.span.is_none()
    {
        let help = only.help.as_ref().map_or_else(String::new, |help| format!("; {help}"));
        return Failure::usage(format!("{}{help}", only.headline()));
    }
    // Nobody is left to tell if standard error is closed.
    writeln!(std::io::stderr().lock(), "{diagnostics}").ok();
    let count = match diagnostics.error_count() {
        1 => "1 error".to_owned(),
        count => format!("{count} errors"),
    };
    Failure::usage(format!("{} cannot be used: {count}", file.display()))
}

#[derive(Serialize)]
struct Report<'a> {
    usable: bool,
    diagnostics: Vec<&'a eastway_registry::diagnostic::Diagnostic>,
}

fn check(file: &Path, output: Output) -> Result<(), Failure> {
    let result = config::load(file);
    let diagnostics = match &result {
        Ok(loaded) => &loaded.warnings,
        Err(ConfigErrors(diagnostics)) => diagnostics,
    };
    if output.format != Format::Table {
        let report =
            View::new("ConfigCheck", Report { usable: result.is_ok(), diagnostics: diagnostics.iter().collect() });
        let value = serde_json::to_value(report).map_err(|error| Failure::failed(&error))?;
        output.print(&value, || Ok(String::new()))?;
        return verdict(result.is_ok(), diagnostics);
    }
    match &result {
        Err(_) => Err(refuse(file, diagnostics)),
        Ok(loaded) => {
            if diagnostics.iter().next().is_some() {
                print(&format!("{diagnostics}\n"))?;
            }
            print(&format!("{}: good, cluster {}\n", file.display(), loaded.settings.cluster))?;
            verdict(true, diagnostics)
        }
    }
}

fn verdict(usable: bool, diagnostics: &Diagnostics) -> Result<(), Failure> {
    match (usable, diagnostics.iter().next()) {
        (false, _) => Err(Failure::silent(exit::USAGE)),
        (true, Some(_)) => Err(Failure::silent(exit::WARNINGS)),
        (true, None) => Ok(()),
    }
}

//! `eastway config check`, and what other commands take from a configuration file.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use eastway_registry::diagnostic::{Diagnostic, Diagnostics};

use super::exit::{self, Failure};
use super::output::{Format, Output, print};
use crate::admin::views::View;
use crate::config::{self, ConfigErrors, Loaded, Report, Settings};

/// `eastway config …`
#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Check a GatewayConfig file, the folders it names and the service files
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
        config::load(&self.path).map_err(|ConfigErrors(diagnostics)| refuse(&self.path, &diagnostics))
    }

    /// As [`Self::load`], without the peers and policies.
    pub(super) fn load_settings(&self) -> Result<Settings, Failure> {
        config::load_settings(&self.path).map_err(|ConfigErrors(diagnostics)| refuse(&self.path, &diagnostics))
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
        ConfigCommand::Check(args) => show(&config::check(&args.config.path), args.output),
    }
}

/// As `eastway config check FILE`.
pub(super) fn check_file(file: &Path) -> Result<(), Failure> {
    show(&config::check(file), Output { format: Format::Table })
}

/// As [`check_file`], of a file that has to be a sidecar's.
pub(super) fn check_sidecar(file: &Path) -> Result<(), Failure> {
    show(&config::check_sidecar(file), Output { format: Format::Table })
}

/// `listen.admin` of a GatewayConfig file.
pub(super) fn admin_address(file: &Path) -> Result<SocketAddr, Failure> {
    Ok(ConfigFile::at(file).load_settings()?.listen.admin)
}

/// Shows what is wrong with a file; a single mistake without a place in the file is the error line itself.
pub(super) fn refuse(file: &Path, diagnostics: &Diagnostics) -> Failure {
    let all: Vec<&Diagnostic> = diagnostics.iter().collect();
    refuse_all(&file.display().to_string(), &all, diagnostics.error_count(), diagnostics.dropped())
}

fn refuse_all(file: &str, all: &[&Diagnostic], errors: usize, omitted: usize) -> Failure {
    if let [only] = all
        && only.span.is_none()
    {
        let help = only.help.as_ref().map_or_else(String::new, |help| format!("; {help}"));
        return Failure::usage(format!("{}{help}", only.headline()));
    }
    let mut out = std::io::stderr().lock();
    for diagnostic in all {
        // Nobody is left to tell if standard error is closed.
        writeln!(out, "{diagnostic}").ok();
    }
    if omitted > 0 {
        writeln!(out, "and {omitted} more").ok();
    }
    let count = if errors == 1 { "1 error".to_owned() } else { format!("{errors} errors") };
    Failure::usage(format!("{file} cannot be used: {count}"))
}

fn show(report: &Report, output: Output) -> Result<(), Failure> {
    if output.format == Format::Table {
        if !report.usable {
            let all: Vec<&Diagnostic> = report.diagnostics.iter().collect();
            return Err(refuse_all(&report.file, &all, report.errors, report.omitted));
        }
        print(&format!("{report}\n"))?;
    } else {
        let view = View::new("ConfigCheck", report);
        let value = serde_json::to_value(view).map_err(|error| Failure::failed(&error))?;
        output.print(&value, || Ok(String::new()))?;
    }
    verdict(report.usable, report.warnings)
}

/// How a command that judges a file ends, when everything was said.
pub(super) fn verdict(usable: bool, warnings: usize) -> Result<(), Failure> {
    match (usable, warnings) {
        (false, _) => Err(Failure::silent(exit::USAGE)),
        (true, 0) => Ok(()),
        (true, _) => Err(Failure::silent(exit::WARNINGS)),
    }
}

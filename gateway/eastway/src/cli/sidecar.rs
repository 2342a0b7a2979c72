//! `eastway sidecar`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

use super::exit::Failure;
use super::output::print;
use super::run::level;
use crate::config::ConfigErrors;
use crate::roles::sidecar::{self, Described, SidecarError, SidecarOptions, program};
use crate::telemetry::LogFormat;

/// Arguments of `eastway sidecar`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  eastway sidecar --config sidecar.yaml                    get a certificate, start Envoy, keep both running
  eastway sidecar --config sidecar.yaml --check            only check the file, as `eastway config check`
  eastway sidecar --config sidecar.yaml --print-bootstrap  what Envoy, or a gRPC library, is started with
  eastway sidecar --config sidecar.yaml --prepare-capture  make the rules that `capture: prepared` is about, and end

With `mode: agent` in the file it starts no Envoy, and prints GRPC_XDS_BOOTSTRAP=FILE once programs whose
gRPC library speaks xDS can be started with that variable; their targets are xds:///NAME:PORT.

It runs until SIGTERM or Ctrl-C, then lets connections finish; a second signal ends it at once.
Envoy is 1.36 or newer, and ends whenever this does.")]
pub(super) struct SidecarArgs {
    /// The SidecarConfig file
    #[arg(long, short, value_name = "FILE", env = "EASTWAY_CONFIG", required_unless_present = "config_text")]
    config: Option<PathBuf>,
    /// The text of such a file instead, which the kubelet can fill in for each pod
    #[arg(long, value_name = "TEXT", env = program::CONFIG_VARIABLE, hide_env_values = true, conflicts_with_all = ["config", "check"])]
    config_text: Option<String>,
    /// Check the file and end
    #[arg(long)]
    check: bool,
    /// Print the configuration that Envoy, or a gRPC library, is started with, and end
    #[arg(long, conflicts_with = "check")]
    print_bootstrap: bool,
    /// Lead the connections of this pod, or network namespace, to the sidecar that comes after, and end
    #[arg(long, conflicts_with_all = ["check", "print_bootstrap"])]
    prepare_capture: bool,
    /// error, warn, info, debug, trace, or target=level,…; overrides the file
    #[arg(long, value_name = "LEVEL", env = "EASTWAY_LOG_LEVEL", value_parser = level)]
    log_level: Option<String>,
    /// text or json; overrides the file
    #[arg(long, value_name = "FORMAT", env = "EASTWAY_LOG_FORMAT")]
    log_format: Option<LogFormat>,
}

pub(super) fn run(args: SidecarArgs) -> Result<(), Failure> {
    let SidecarArgs { config, config_text, check, print_bootstrap, prepare_capture, log_level, log_format } = args;
    let config = match (config, config_text) {
        (Some(file), _) if check => return super::config::check_sidecar(&file),
        (Some(file), _) => Described::File(file),
        (None, text) => Described::Text(text.unwrap_or_default()),
    };
    let refused = |ConfigErrors(diagnostics): &ConfigErrors| super::config::refuse(config.name(), diagnostics);
    if print_bootstrap {
        return print(&sidecar::print_bootstrap(&config).map_err(|errors| refused(&errors))?);
    }
    let options = SidecarOptions { config: config.clone(), log_level, log_format };
    let ended = if prepare_capture { sidecar::prepare_capture(&options) } else { sidecar::run(&options) };
    ended.map_err(|error| match &error {
        SidecarError::Config(errors) => refused(errors),
        SidecarError::Log(_)
        | SidecarError::Runtime(_)
        | SidecarError::TrustDomain(_)
        | SidecarError::Program(_)
        | SidecarError::State { .. }
        | SidecarError::Socket(_)
        | SidecarError::Secret(_)
        | SidecarError::Envoy(_)
        | SidecarError::Capture(_)
        | SidecarError::Health(_) => Failure::failed(&error),
    })
}

/// Arguments of the subcommand that becomes Envoy.
#[derive(Debug, Args)]
pub(super) struct BecomeArgs {
    /// The sidecar's process id
    parent: u32,
    /// The program
    program: PathBuf,
    /// Its arguments
    #[arg(last = true)]
    arguments: Vec<OsString>,
}

pub(super) fn become_envoy(args: &BecomeArgs) -> Result<(), Failure> {
    Err(Failure::failed(&program::become_envoy(args.parent, &args.program, &args.arguments)))
}

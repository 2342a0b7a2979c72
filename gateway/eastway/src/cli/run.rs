//! `eastway run` and the roles by their own names: hands over to the roles.

use std::path::PathBuf;

use clap::Args;

use super::exit::Failure;
use crate::config::ConfigErrors;
use crate::roles::{Role, RunError, RunOptions};
use crate::telemetry::{LogFormat, log};

/// Arguments of `eastway run`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  eastway run --config gateway.yaml                  a gateway, and the ca role in a process beside it
  eastway run --config gateway.yaml --roles gateway  the ca role runs elsewhere
  eastway run --config gateway.yaml --check          only check the files, as `eastway config check`

It runs until SIGTERM or Ctrl-C, then lets connections finish; a second signal ends it at once.
Files are watched: a good change is taken over, else the old one goes on and the log says why.")]
pub(super) struct RunArgs {
    /// Roles this process holds, separated by commas
    #[arg(long, value_delimiter = ',', default_value = "gateway,ca", value_name = "ROLE")]
    roles: Vec<Role>,
    #[command(flatten)]
    common: RoleArgs,
}

/// Arguments of `eastway gateway`, `controller`, `injector` and `ca`.
#[derive(Clone, Debug, Args)]
pub(super) struct RoleArgs {
    /// The GatewayConfig file
    #[arg(long, short, value_name = "FILE", env = "EASTWAY_CONFIG")]
    pub(super) config: PathBuf,
    /// Check the files and end
    #[arg(long)]
    check: bool,
    /// error, warn, info, debug, trace, or target=level,…; overrides the file
    #[arg(long, value_name = "LEVEL", env = "EASTWAY_LOG_LEVEL", value_parser = level)]
    log_level: Option<String>,
    /// text or json; overrides the file
    #[arg(long, value_name = "FORMAT", env = "EASTWAY_LOG_FORMAT")]
    log_format: Option<LogFormat>,
    /// Ends when its parent does, which has this process id
    #[arg(long, value_name = "PID", hide = true)]
    end_with: Option<u32>,
}

pub(super) fn level(text: &str) -> Result<String, log::LogError> {
    log::check_level(text).map(|()| text.to_owned())
}

pub(super) fn run(args: RunArgs) -> Result<(), Failure> {
    let RunArgs { mut roles, common } = args;
    roles.sort_unstable();
    roles.dedup();
    start(common, roles)
}

/// Runs one role alone.
pub(super) fn role(role: Role, args: RoleArgs) -> Result<(), Failure> {
    start(args, vec![role])
}

fn start(args: RoleArgs, roles: Vec<Role>) -> Result<(), Failure> {
    if args.check {
        return super::config::check_file(&args.config);
    }
    let RoleArgs { config, log_level, log_format, end_with, .. } = args;
    let options = RunOptions { config, roles, log_level, log_format, end_with };
    crate::roles::run(&options).map_err(|error| match &error {
        RunError::Config(ConfigErrors(diagnostics)) => super::config::refuse(&options.config, diagnostics),
        RunError::Log(_)
        | RunError::Runtime(_)
        | RunError::Ca(_)
        | RunError::AuthorityEnded(_)
        | RunError::TrustDomain(_)
        | RunError::Gateway(_)
        | RunError::Controller(_)
        | RunError::Injector(_)
        | RunError::InjectorAlone
        | RunError::Interrupted => Failure::failed(&error),
    })
}

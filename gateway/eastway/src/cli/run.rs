//! `eastway run`: hands over to the roles.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::exit::Failure;
use crate::telemetry::LogFormat;

/// What a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum)]
pub enum Role {
    /// Links, federation, DNS, virtual addresses: the only role that faces the outside.
    Gateway,
    /// The only role that writes to the Kubernetes API.
    Controller,
    /// The only role that holds the CA key.
    Ca,
}

impl Role {
    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Controller => "controller",
            Self::Ca => "ca",
        }
    }
}

/// What a process was asked to run.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// The `kind: GatewayConfig` file.
    pub config: PathBuf,
    /// Sorted, not empty, without duplicates.
    pub roles: Vec<Role>,
    /// Overrides `log.level` of the file.
    pub log_level: Option<String>,
    /// Overrides `log.format` of the file.
    pub log_format: Option<LogFormat>,
}

/// Arguments of `eastway run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The GatewayConfig file
    #[arg(long, short, value_name = "FILE", env = "EASTWAY_CONFIG")]
    config: PathBuf,
    /// Roles this process holds, separated by commas
    #[arg(long, value_delimiter = ',', default_value = "gateway,ca", value_name = "ROLE")]
    roles: Vec<Role>,
    /// error, warn, info, debug, trace, or target=level,…; overrides the file
    #[arg(long, value_name = "LEVEL", env = "EASTWAY_LOG_LEVEL")]
    log_level: Option<String>,
}

pub(super) fn run(args: RunArgs) -> Result<(), Failure> {
    let mut roles = args.roles;
    roles.sort_unstable();
    roles.dedup();
    let options = RunOptions { config: args.config, roles, log_level: args.log_level, log_format: None };
    crate::roles::run(&options).map_err(|error| Failure::failed(&error))
}

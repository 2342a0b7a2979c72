//! `eastway config check`, and what other commands take from a configuration file.

use std::net::SocketAddr;
use std::path::Path;

use super::exit::Failure;

/// `listen.admin` of a GatewayConfig file.
pub(super) fn admin_address(file: &Path) -> Result<SocketAddr, Failure> {
    Err(Failure::because(format!("{}: reading configuration files is not built in yet", file.display())))
}

/// Checks a GatewayConfig file and the folders it names.
pub(super) fn check_file(file: &Path) -> Result<(), Failure> {
    Err(Failure::because(format!("{}: reading configuration files is not built in yet", file.display())))
}

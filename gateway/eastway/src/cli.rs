//! The command line: one binary that serves, asks and explains.
//!
//! Commands that ask (`status`, `describe`, …) read the admin port of a running gateway; nothing here reaches into
//! its memory. Errors are one line: what, where, why, what to do.

mod bench;
mod ca;
mod check;
mod cleanup;
mod client;
mod config;
mod describe;
mod dns;
pub mod exit;
mod kube;
mod output;
mod peer;
mod proxy;
mod run;
mod schema;
mod show;
mod sidecar;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;
use eastway_registry::diagnostic::did_you_mean;

use crate::roles::Role;
use crate::roles::sidecar::program;
use exit::Failure;

/// Variables that commands read.
const VARIABLES: [&str; 6] = [
    "EASTWAY_CONFIG",
    "EASTWAY_ADMIN",
    "EASTWAY_LOG_LEVEL",
    "EASTWAY_LOG_FORMAT",
    "EASTWAY_ENVOY",
    program::CONFIG_VARIABLE,
];

/// Variables of the demo, the Makefile and the tests, by their beginnings: they reach our commands, and mean
/// nothing to them.
const DEVELOPMENT: [&str; 7] = [
    crate::demo::stage::LAB_FOLDER,
    "EASTWAY_BIN",
    "EASTWAY_COREDNS",
    "EASTWAY_REGENERATE",
    "EASTWAY_SIM_",
    "EASTWAY_TEST_",
    "EASTWAY_TOOLS",
];

/// Joins services of several clouds without a VPN
#[derive(Debug, Parser)]
#[command(
    name = "eastway",
    version,
    propagate_version = true,
    arg_required_else_help = true,
    max_term_width = 100,
    after_help = "\
First steps:
  eastway demo                                   three clouds on this machine, joined
  eastway ca init --config gateway.yaml          make this cluster's CA
  eastway peer export --config gateway.yaml      the file to give to the other side
  eastway run --config gateway.yaml              run
  eastway check                                  what is wrong, why, and what to do

Exit codes: 0 all went well, 1 it did not work, 2 asked wrongly or a bad file, 3 warnings.
NO_COLOR turns colours off. EASTWAY_CONFIG, EASTWAY_ADMIN, EASTWAY_LOG_LEVEL and
EASTWAY_LOG_FORMAT stand for the flags of these names."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a gateway, and what else --roles names
    Run(run::RunArgs),
    /// Run the gateway role alone: links, federation, DNS, virtual addresses
    Gateway(run::RoleArgs),
    /// Run the controller role alone: the only one that writes to the Kubernetes API
    Controller(run::RoleArgs),
    /// Run the ca role alone, or make a CA: the only role that holds the CA key
    Ca(ca::CaArgs),
    /// Run the injector role alone: the webhook that puts sidecars into pods
    Injector(run::RoleArgs),
    /// Run Envoy beside a workload, as the gateway configures it
    Sidecar(sidecar::SidecarArgs),
    /// Become Envoy and end with the sidecar; for itself
    #[command(name = program::BECOME, hide = true)]
    BecomeEnvoy(sidecar::BecomeArgs),
    /// The files that join clusters
    #[command(subcommand)]
    Peer(peer::PeerCommand),
    /// Check configuration files
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Print the JSON Schema of a kind of file
    Schema(schema::SchemaArgs),
    /// Show a running gateway as a whole
    Status(show::StatusArgs),
    /// Show peers: state, links, what crosses
    Peers(show::ListArgs),
    /// Show local services and imports, by cluster
    Services(show::NamespacedArgs),
    /// Show single endpoints
    Endpoints(show::NamespacedArgs),
    /// Ask the gateway's DNS server, or see what it does
    #[command(subcommand)]
    Dns(dns::DnsCommand),
    /// Show what each sidecar was sent, has acknowledged and has refused
    ProxyStatus(proxy::StatusArgs),
    /// Show what a sidecar was told: listeners, routes, clusters, endpoints, secrets
    ProxyConfig(proxy::ConfigArgs),
    /// Explain where a connection would go, and why not elsewhere
    Describe(describe::DescribeArgs),
    /// Find out what is wrong, why, and what to do
    Check(check::CheckArgs),
    /// Measure what the link to a peer can carry
    Bench(bench::BenchArgs),
    /// Remove what the controller made in a cluster's API, after it was uninstalled
    Cleanup(cleanup::CleanupArgs),
    /// Three clouds on this machine, joined; no root, no cluster, no network
    Demo(crate::demo::Args),
    /// Print a completion script
    #[command(after_help = "Example:\n  eastway completion bash > ~/.local/share/bash-completion/completions/eastway")]
    Completion {
        /// Which shell
        shell: Shell,
    },
    /// Print the version
    Version,
}

/// Runs the command that `arguments` (with the program's name first) ask for.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    if let Some(name) = unknown_variable(std::env::vars_os().map(|(name, _)| name)) {
        let hint = match did_you_mean(&name, VARIABLES) {
            Some(near) => format!("did you mean {near}?"),
            None => "`eastway --help` names those that are read".to_owned(),
        };
        return exit::code(Err(Failure::usage(format!("unknown environment variable {name}; {hint}"))));
    }
    match Cli::try_parse_from(arguments) {
        Ok(cli) => exit::code(dispatch(cli.command)),
        Err(error) => exit::usage(&error),
    }
}

fn dispatch(command: Command) -> Result<ExitCode, Failure> {
    let result = match command {
        Command::Run(args) => run::run(args),
        Command::Gateway(args) => run::role(Role::Gateway, args),
        Command::Controller(args) => run::role(Role::Controller, args),
        Command::Ca(args) => ca::run(args),
        Command::Injector(args) => run::role(Role::Injector, args),
        Command::Sidecar(args) => sidecar::run(args),
        Command::BecomeEnvoy(args) => sidecar::become_envoy(&args),
        Command::Peer(command) => peer::run(&command),
        Command::Config(command) => config::run(&command),
        Command::Schema(args) => schema::schema(&args),
        Command::Status(args) => show::status(&args),
        Command::Peers(args) => show::peers(&args),
        Command::Services(args) => show::services(&args),
        Command::Endpoints(args) => show::endpoints(&args),
        Command::Dns(command) => dns::run(&command),
        Command::ProxyStatus(args) => proxy::status(&args),
        Command::ProxyConfig(args) => proxy::config(&args),
        Command::Describe(args) => describe::describe(&args),
        Command::Check(args) => check::check(&args),
        Command::Bench(args) => bench::bench(&args),
        Command::Cleanup(args) => cleanup::run(&args),
        Command::Demo(args) => return crate::demo::run(&args).map_err(|error| Failure::failed(error.as_ref())),
        Command::Completion { shell } => completion(shell),
        Command::Version => output::print(&format!("eastway {}\n", env!("CARGO_PKG_VERSION"))),
    };
    result.map(|()| ExitCode::from(exit::OK))
}

fn completion(shell: Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "eastway", &mut script);
    output::print(&String::from_utf8_lossy(&script))
}

/// A variable that begins with `EASTWAY_` and that nobody reads: probably misspelt. Kubernetes sets such variables
/// for Services called `eastway` and `eastway-…`; those are passed over.
fn unknown_variable(names: impl Iterator<Item = OsString>) -> Option<String> {
    names
        .filter_map(|name| name.into_string().ok())
        .filter(|name| name.starts_with("EASTWAY_") && !VARIABLES.contains(&name.as_str()))
        .find(|name| !is_service_link(name) && !DEVELOPMENT.iter().any(|known| name.starts_with(known)))
}

/// `…_SERVICE_HOST`, `…_SERVICE_PORT`, `…_SERVICE_PORT_<name>`, `…_PORT`, `…_PORT_<n>_<protocol>…` (kubelet).
fn is_service_link(name: &str) -> bool {
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.ends_with("_PORT")
        || name.split("_PORT_").nth(1).is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn misspelt_variables_are_found() {
        let unknown = |names: &[&str]| unknown_variable(names.iter().map(OsString::from));
        assert_eq!(unknown(&["HOME", "EASTWAY_CONFIG", "EASTWAY_LOG_LEVEL"]), None);
        assert_eq!(unknown(&["EASTWAY_CONFG"]), Some("EASTWAY_CONFG".to_owned()));
        assert_eq!(unknown(&["EASTWAY_TOOLS", "EASTWAY_SIM_SEED", "EASTWAY_BIN"]), None);
        let links = [
            "EASTWAY_SERVICE_HOST",
            "EASTWAY_SERVICE_PORT",
            "EASTWAY_SERVICE_PORT_LINK",
            "EASTWAY_PORT",
            "EASTWAY_GATEWAY_PORT_15443_UDP_ADDR",
        ];
        assert_eq!(unknown(&links), None);
    }
}

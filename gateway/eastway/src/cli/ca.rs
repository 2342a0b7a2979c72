//! `eastway ca`: the role, and the CA folder by hand.

mod revoke;
mod rotate;
mod secret;

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand, ValueEnum};
use eastway_identity::Ca;
use eastway_identity::ca::{InitOptions, KeyKind, Root};

use super::config::ConfigFile;
use super::exit::Failure;
use super::kube::KubeArgs;
use super::output::print;
use super::run::{self, RoleArgs};
use crate::config::settings::SYSTEM_NAMESPACE;
use crate::roles::Role;

/// Arguments of `eastway ca`.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "\
Examples:
  eastway ca init --config gateway.yaml      make the CA that `trust` describes
  eastway ca rotate --config gateway.yaml    see where a rotation stands, and what comes next
  eastway ca --config gateway.yaml           run the ca role alone

The ca role is the only process that reads the CA key. Istio's `cacerts` folders work as they are."
)]
pub(super) struct CaArgs {
    #[command(subcommand)]
    command: Option<CaCommand>,
    #[command(flatten)]
    role: Option<RoleArgs>,
}

/// `eastway ca …`
#[derive(Debug, Subcommand)]
enum CaCommand {
    /// Make a new CA in the folder `trust.cacerts`
    #[command(after_help = "\
Examples:
  eastway ca init --config gateway.yaml
  eastway ca init --dir ./cacerts --trust-domain onprem.example
  eastway ca init --config gateway.yaml --shared-root ./root    clusters that share a root, as with Istio
  eastway ca init --kubernetes --trust-domain gke.example       make the Secret eastway-system/cacerts

An existing CA is never overwritten; in Kubernetes it is an answer and no error. Keep the key: whoever has it is this cluster.")]
    Init(InitArgs),
    /// Replace the CA's key in three steps, without cutting a link
    Rotate(rotate::RotateArgs),
    /// Take a workload's certificate back before its end
    Revoke(revoke::RevokeArgs),
}

/// Where a CA folder is.
#[derive(Debug, Args)]
struct Folder {
    /// The GatewayConfig file; its `trust` names folder and trust domain
    #[arg(long, short, value_name = "FILE", env = "EASTWAY_CONFIG")]
    config: Option<PathBuf>,
    /// The folder; the configuration file is not read then
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
    /// Trust domain for --dir and --kubernetes, e.g. onprem.example
    #[arg(long, value_name = "DOMAIN")]
    trust_domain: Option<String>,
}

impl Folder {
    /// The trust domain alone.
    fn trust_domain(&self) -> Result<String, Failure> {
        match (&self.trust_domain, &self.config) {
            (Some(domain), _) => Ok(domain.clone()),
            (None, Some(path)) => Ok(ConfigFile::at(path).load_settings()?.trust.domain.to_string()),
            (None, None) => Err(Failure::usage("--trust-domain DOMAIN is required, or --config FILE")),
        }
    }

    /// Folder and trust domain.
    fn resolve(&self) -> Result<(PathBuf, String), Failure> {
        match (&self.dir, &self.trust_domain) {
            (Some(dir), Some(domain)) => return Ok((dir.clone(), domain.clone())),
            (Some(_), None) => return Err(Failure::usage("--dir FOLDER needs --trust-domain DOMAIN")),
            (None, _) => {}
        }
        let Some(path) = &self.config else {
            return Err(Failure::usage(
                "--config FILE is required, or --dir FOLDER with --trust-domain DOMAIN, or --kubernetes",
            ));
        };
        let settings = ConfigFile::at(path).load_settings()?;
        Ok((settings.trust.cacerts.clone(), settings.trust.domain.to_string()))
    }
}

/// Arguments of `eastway ca init`.
#[derive(Debug, Args)]
struct InitArgs {
    #[command(flatten)]
    folder: Folder,
    #[command(flatten)]
    new: NewCa,
    #[command(flatten)]
    secret: SecretArgs,
}

/// A CA in a Secret. What goes with what is checked by hand: in `ca rotate` these may stand before and after the step,
/// and clap looks at one side alone.
#[derive(Debug, Args)]
struct SecretArgs {
    /// In a Secret of Istio's layout instead of a folder
    #[arg(long)]
    kubernetes: bool,
    /// Namespace of the Secret [default: eastway-system]
    #[arg(long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Name of the Secret [default: cacerts]
    #[arg(long, value_name = "NAME")]
    secret: Option<String>,
    #[command(flatten)]
    kube: KubeArgs,
}

impl SecretArgs {
    /// The Secret; `None`: a folder.
    fn place(&self, folder: &Folder) -> Result<Option<secret::Place<'_>>, Failure> {
        if !self.kubernetes {
            if self.namespace.is_some() || self.secret.is_some() || self.kube.is_given() {
                return Err(Failure::usage(
                    "--namespace, --secret, --context and --kubeconfig are about a Secret: add --kubernetes",
                ));
            }
            return Ok(None);
        }
        if folder.dir.is_some() {
            return Err(Failure::usage("--dir and --kubernetes exclude each other"));
        }
        let namespace = self.namespace.as_deref().unwrap_or(SYSTEM_NAMESPACE);
        let secret = self.secret.as_deref().unwrap_or("cacerts");
        Ok(Some(secret::Place { kube: &self.kube, namespace, secret }))
    }
}

/// What a new CA is to be.
#[derive(Debug, Args)]
struct NewCa {
    /// Sign the new CA by the CA or root in this folder instead of by itself
    #[arg(long, value_name = "FOLDER")]
    shared_root: Option<PathBuf>,
    /// Life of the CA's certificate, e.g. 5years or 90days
    #[arg(long, value_name = "DURATION", default_value = "5years", value_parser = humantime::parse_duration)]
    lifetime: Duration,
    /// Kind of its key
    #[arg(long, value_enum, default_value_t, value_name = "KIND")]
    key: Key,
}

/// Kinds of keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Key {
    /// ECDSA on P-256: small, fast, accepted by everything
    #[default]
    P256,
    /// ECDSA on P-384
    P384,
}

pub(super) fn run(args: CaArgs) -> Result<(), Failure> {
    match (args.command, args.role) {
        (Some(CaCommand::Init(args)), _) => init(&args),
        (Some(CaCommand::Rotate(args)), _) => rotate::run(&args),
        (Some(CaCommand::Revoke(args)), _) => revoke::run(&args),
        (None, Some(role)) => run::role(Role::Ca, role),
        (None, None) => Err(Failure::usage("--config FILE is required; see `eastway ca --help`")),
    }
}

impl NewCa {
    fn options(&self, trust_domain: &str) -> InitOptions {
        InitOptions {
            key: match self.key {
                Key::P256 => KeyKind::P256,
                Key::P384 => KeyKind::P384,
            },
            root: self.shared_root.clone().map_or(Root::Own, Root::Shared),
            lifetime: self.lifetime,
            ..InitOptions::new(trust_domain)
        }
    }
}

fn init(args: &InitArgs) -> Result<(), Failure> {
    if let Some(place) = args.secret.place(&args.folder)? {
        let options = args.new.options(&args.folder.trust_domain()?);
        return print(&secret::init(&place, &options)?);
    }
    let (dir, trust_domain) = args.folder.resolve()?;
    let options = args.new.options(&trust_domain);
    let ca = Ca::init(&dir, &options).map_err(|error| Failure::failed(&error))?;
    print(&summary(&ca, &dir, &trust_domain))
}

fn summary(ca: &Ca, dir: &Path, trust_domain: &str) -> String {
    let mut text = format!("made a CA for {trust_domain} in {}\n", dir.display());
    text.push_str(&format!("  pin  {}\n", ca.pin()));
    text.push_str(&format!("  ends {}\n", date(ca.not_after())));
    for warning in ca.warnings() {
        text.push_str(&format!("  warning: {warning}\n"));
    }
    text.push_str("next: run the gateway, and give the output of `eastway peer export` to the other side\n");
    text
}

fn date(time: SystemTime) -> impl std::fmt::Display {
    humantime::format_rfc3339_seconds(time.max(UNIX_EPOCH))
}

//! `eastway peer export`: the file to give to the other side.

use std::path::{Path, PathBuf};

use clap::Args;
use eastway_identity::ca::public_issuers;
use eastway_identity::{Ca, CertificateDer, SpkiPin, certificates_from_pem};
use eastway_kubernetes::install::{InstallError, Installation, Reachable};
use eastway_model::Label;

use crate::adapters::kubernetes_access;
use crate::admin::views::StatusView;
use crate::cli::client::{self, Target};
use crate::cli::config::{ConfigFile, refuse};
use crate::cli::exit::{Failure, chain};
use crate::cli::kube::{KubeArgs, block_on};
use crate::cli::output::print;
use crate::config::peer::{PeerFile, render};
use crate::config::settings::SYSTEM_NAMESPACE;
use crate::config::value::HostPort;
use crate::config::{self, CaAddress, ConfigErrors, Settings};
use crate::roles::GATEWAY_ACCOUNT;

/// Arguments of `eastway peer export`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example, to join onprem and gke:
  onprem$ eastway peer export --config gateway.yaml > onprem.yaml    give it to gke
  gke$    eastway peer export --config gateway.yaml > gke.yaml       give it to onprem
Each side saves the other's file in its peers folder, and adds there what may cross.

Two clusters of Kubernetes, from any computer with their kubeconfigs:
  eastway peer export --context gke > gke.yaml
  eastway peer export --context eks > eks.yaml
Add what may cross, then: kubectl --context eks apply -f gke.yaml; kubectl --context gke apply -f eks.yaml

The pins come from the CA folder or the Secret, both keys while a CA is rotated; without one, from the running
gateway. The address is `listen.advertise`, or where the cloud leads to the gateways' Service.
The file holds no secret, but whoever can change it on its way can become this cluster: compare the pins.")]
pub(in crate::cli) struct ExportArgs {
    /// The GatewayConfig file; in Kubernetes it is found by --context or --kubeconfig
    #[arg(long, short, value_name = "FILE", env = "EASTWAY_CONFIG")]
    config: Option<PathBuf>,
    /// Where the other side reaches our gateway, instead of `listen.advertise`; can be given again
    #[arg(long = "address", value_name = "HOST:PORT", value_parser = address)]
    addresses: Vec<HostPort>,
    /// Add the certificates of the CA
    #[arg(long)]
    bundle: bool,
    /// The other side is in our trust domain: nothing keeps its workloads and ours apart
    #[arg(long)]
    shared_trust_domain: bool,
    #[command(flatten)]
    kube: KubeArgs,
    /// Namespace that Eastway runs in, with --context or --kubeconfig
    #[arg(long, value_name = "NAMESPACE", default_value = SYSTEM_NAMESPACE)]
    namespace: String,
    /// Secret of the CA there
    #[arg(long, value_name = "NAME", default_value = "cacerts")]
    secret: String,
}

fn address(text: &str) -> Result<HostPort, String> {
    HostPort::parse(text).map_err(|error| error.to_string())
}

pub(super) fn export(args: &ExportArgs) -> Result<(), Failure> {
    let cluster = if args.kube.is_given() { of_installation(args)? } else { of_file(args)? };
    let settings = &cluster.settings;
    let gateway = settings.service_account(GATEWAY_ACCOUNT).map_err(|error| Failure::failed(&error))?;
    print(&render(&PeerFile {
        name: &settings.cluster,
        addresses: &cluster.addresses,
        trust_domain: &settings.trust.domain,
        gateway: &gateway,
        pins: &cluster.pins,
        bundle: &cluster.bundle,
        shared_trust_domain: args.shared_trust_domain,
    }))
}

/// What there is to say about this cluster.
struct Cluster {
    settings: Settings,
    addresses: Vec<HostPort>,
    pins: Vec<SpkiPin>,
    bundle: Vec<CertificateDer<'static>>,
}

fn of_file(args: &ExportArgs) -> Result<Cluster, Failure> {
    let Some(path) = &args.config else {
        return Err(Failure::usage(
            "--config FILE is required; for a cluster of Kubernetes --context NAME or --kubeconfig FILE",
        ));
    };
    let settings = ConfigFile::at(path).load_settings()?;
    let (pins, bundle) = keys(&settings, args.bundle)?;
    let addresses = match (&settings.kubernetes, told_addresses(args, &settings)) {
        (_, Some(addresses)) => addresses,
        (None, None) => Vec::new(),
        (Some(kubernetes), None) => {
            let access = kubernetes_access(Some(&kubernetes.access));
            let (namespace, service) = (kubernetes.namespace.as_str(), kubernetes.service.as_str());
            let found = block_on(async { Installation::at(&access, namespace).await?.reachable(service).await });
            addresses_of(&settings, found.map_err(|error| Failure::failed(&error))?)?
        }
    };
    Ok(Cluster { settings, addresses, pins, bundle })
}

/// By the API server alone: from anywhere, without a file of that cluster.
fn of_installation(args: &ExportArgs) -> Result<Cluster, Failure> {
    block_on(read_installation(args)).map_err(|error| Failure::failed(&error))?
}

async fn read_installation(args: &ExportArgs) -> Result<Cluster, Failure> {
    let failed = |error: InstallError| Failure::failed(&error);
    let installation =
        Installation::at(&args.kube.access(), &args.namespace).await.map_err(|error| Failure::failed(&error))?;
    let config = installation.config().await.map_err(failed)?;
    let name = format!("ConfigMap {}/eastway-config", args.namespace);
    let settings = config::settings_of_text(&name, config)
        .map_err(|ConfigErrors(diagnostics)| refuse(Path::new(&name), &diagnostics))?;
    let addresses = match told_addresses(args, &settings) {
        Some(addresses) => addresses,
        None => {
            let service = settings.kubernetes.as_ref().map(|kubernetes| kubernetes.service.clone());
            let service = service.as_ref().map_or(GATEWAY_ACCOUNT, Label::as_str);
            addresses_of(&settings, installation.reachable(service).await)?
        }
    };
    let ca = installation.ca(&args.secret).await.map_err(failed)?;
    let bad = |reason: String| Failure::because(format!("Secret {}/{}: {reason}", args.namespace, args.secret));
    let files = ["ca-cert.pem", "cert-chain.pem", "tls.crt", "root-cert.pem"];
    let mut issuers = Vec::new();
    // Beside the issuing CA, while it is rotated, the next or the previous one.
    for part in ["", "next-", "previous-"] {
        let Some(file) = files.into_iter().find_map(|file| ca.get(&format!("{part}{file}"))) else { continue };
        issuers.extend(certificates_from_pem(file).map_err(|error| bad(error.to_string()))?.into_iter().take(1));
    }
    if issuers.is_empty() {
        return Err(bad(format!("holds none of {}", files.join(", "))));
    }
    let pins = pins_of(&issuers).map_err(bad)?;
    Ok(Cluster { settings, addresses, pins, bundle: if args.bundle { issuers } else { Vec::new() } })
}

fn told_addresses(args: &ExportArgs, settings: &Settings) -> Option<Vec<HostPort>> {
    let told = if args.addresses.is_empty() { &settings.listen.advertise } else { &args.addresses };
    (!told.is_empty()).then(|| told.clone())
}

/// Where the cloud leads to the gateways.
fn addresses_of(settings: &Settings, found: Result<Reachable, InstallError>) -> Result<Vec<HostPort>, Failure> {
    let found = found.map_err(|error| Failure::failed(&error))?;
    if found.kind == "LoadBalancer" && found.hosts.is_empty() {
        return Err(Failure::because(
            "the cloud has not given the gateways' Service an address yet: wait for it, or say --address HOST:PORT",
        ));
    }
    // Without an address from outside this cluster dials the others.
    let port = found.port.unwrap_or(settings.listen.link.port());
    let address = |host: String| {
        let text = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        HostPort::parse(&text).map_err(|error| Failure::because(format!("the Service's address {text}: {error}")))
    };
    found.hosts.into_iter().map(address).collect()
}

fn pins_of(certificates: &[CertificateDer<'static>]) -> Result<Vec<SpkiPin>, String> {
    certificates.iter().map(|one| SpkiPin::of_certificate(one).map_err(|error| error.to_string())).collect()
}

/// The pins of our CA, and its certificates if they are wanted.
fn keys(settings: &Settings, bundle: bool) -> Result<(Vec<SpkiPin>, Vec<CertificateDer<'static>>), Failure> {
    let folder = &settings.trust.cacerts;
    // Who asks a CA over the network has its certificates in the folder, and no key.
    if !["ca-key.pem", "tls.key"].iter().any(|key| folder.join(key).exists()) {
        let pin = pin_of_running(settings).map_err(|why| {
            Failure::because(format!(
                "there is no CA in {}, and {why}; run `eastway ca init`, or export where the CA is",
                folder.display()
            ))
        })?;
        if bundle {
            return Err(Failure::because("--bundle needs the CA folder; export where the CA is"));
        }
        return Ok((vec![pin], Vec::new()));
    }
    let bad = |reason: String| Failure::because(format!("{}: {reason}", folder.display()));
    // A process that asks a CA on the network has its public half only.
    if let CaAddress::Network(_) = settings.trust.ca {
        let issuers = public_issuers(folder).map_err(|error| bad(chain(&error)))?;
        let pins = pins_of(&issuers).map_err(bad)?;
        return Ok((pins, if bundle { issuers } else { Vec::new() }));
    }
    let ca = Ca::load(folder).map_err(|error| bad(chain(&error)))?;
    Ok((ca.pins(), if bundle { ca.issuers() } else { Vec::new() }))
}

/// The pin that the running gateway's certificate leads to.
fn pin_of_running(settings: &Settings) -> Result<SpkiPin, String> {
    let answer = Target::at(settings.listen.admin).get("/status").map_err(|failure| failure.message().to_owned())?;
    let view: StatusView = client::view(&answer).map_err(|failure| failure.message().to_owned())?;
    let identity = view.identity.ok_or("the running gateway has no certificate yet")?;
    SpkiPin::parse(&identity.pin).map_err(|error| error.to_string())
}

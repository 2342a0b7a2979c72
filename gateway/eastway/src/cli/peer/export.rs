//! `eastway peer export`: the file to give to the other side.

use clap::Args;
use eastway_identity::{Ca, CertificateDer, SpiffeId, SpkiPin};
use rustls_pki_types::pem::PemObject as _;

use crate::admin::views::StatusView;
use crate::cli::client::{self, Target};
use crate::cli::config::ConfigFile;
use crate::cli::exit::{Failure, chain};
use crate::cli::output::print;
use crate::config::Settings;
use crate::config::peer::{PeerFile, render};
use crate::config::value::HostPort;

/// Arguments of `eastway peer export`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example, to join onprem and gke:
  onprem$ eastway peer export --config gateway.yaml > onprem.yaml    give it to gke
  gke$    eastway peer export --config gateway.yaml > gke.yaml       give it to onprem
Each side saves the other's file in its peers folder, and adds there what may cross.

The pins come from the CA folder, both keys while a CA is rotated; without one, from the running gateway.
The file holds no secret, but whoever can change it on its way can become this cluster: compare the pins.")]
pub(in crate::cli) struct ExportArgs {
    #[command(flatten)]
    config: ConfigFile,
    /// Where the other side reaches our gateway, instead of `listen.advertise`; can be given again
    #[arg(long = "address", value_name = "HOST:PORT", value_parser = address)]
    addresses: Vec<HostPort>,
    /// Add the certificates of the CA
    #[arg(long)]
    bundle: bool,
    /// The other side is in our trust domain: nothing keeps its workloads and ours apart
    #[arg(long)]
    shared_trust_domain: bool,
}

fn address(text: &str) -> Result<HostPort, String> {
    HostPort::parse(text).map_err(|error| error.to_string())
}

pub(super) fn export(args: &ExportArgs) -> Result<(), Failure> {
    let settings = args.config.load_settings()?;
    let (pins, bundle) = keys(&settings, args.bundle)?;
    let gateway = SpiffeId::gateway(&settings.trust.domain).map_err(|error| Failure::failed(&error))?;
    print(&render(&PeerFile {
        name: &settings.cluster,
        addresses: if args.addresses.is_empty() { &settings.listen.advertise } else { &args.addresses },
        trust_domain: &settings.trust.domain,
        gateway: &gateway,
        pins: &pins,
        bundle: &bundle,
        shared_trust_domain: args.shared_trust_domain,
    }))
}

/// The pins of our CA, and its certificates if they are wanted.
fn keys(settings: &Settings, bundle: bool) -> Result<(Vec<SpkiPin>, Vec<CertificateDer<'static>>), Failure> {
    let folder = &settings.trust.cacerts;
    if !folder.exists() {
        let pin = pin_of_running(settings).map_err(|why| {
            Failure::because(format!(
                "there is no CA folder {}, and {why}; run `eastway ca init`, or export where the CA is",
                folder.display()
            ))
        })?;
        if bundle {
            return Err(Failure::because("--bundle needs the CA folder; export where the CA is"));
        }
        return Ok((vec![pin], Vec::new()));
    }
    let ca = Ca::load(folder).map_err(|error| Failure::because(format!("{}: {}", folder.display(), chain(&error))))?;
    let mut certificates = Vec::new();
    if bundle {
        for certificate in CertificateDer::pem_slice_iter(ca.bundle_pem().as_bytes()) {
            certificates.push(certificate.map_err(|error| Failure::because(format!("{}: {error}", folder.display())))?);
        }
    }
    Ok((ca.pins(), certificates))
}

/// The pin that the running gateway's certificate leads to.
fn pin_of_running(settings: &Settings) -> Result<SpkiPin, String> {
    let answer = Target::at(settings.listen.admin).get("/status").map_err(|failure| failure.message().to_owned())?;
    let view: StatusView = client::view(&answer).map_err(|failure| failure.message().to_owned())?;
    let identity = view.identity.ok_or("the running gateway has no certificate yet")?;
    SpkiPin::parse(&identity.pin).map_err(|error| error.to_string())
}

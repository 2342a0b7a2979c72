//! `eastway ca revoke`: a certificate that is good no more.

use std::path::Path;
use std::time::SystemTime;

use clap::Args;
use eastway_identity::ca;

use super::{Folder, SecretArgs, secret};
use crate::cli::exit::Failure;
use crate::cli::output::print;

/// Arguments of `eastway ca revoke`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  eastway ca revoke --config gateway.yaml 40be0c2b26bfcb7b1fe38473c84d880d

The ca role logs the serial number of each certificate that it issues. Sidecars here and at peers refuse a revoked one
and cut what it has open, within seconds. It is about workloads; links are cut by `trust.crl` of the peers.")]
pub(super) struct RevokeArgs {
    #[command(flatten)]
    folder: Folder,
    #[command(flatten)]
    secret: SecretArgs,
    /// Serial numbers, in hexadecimal
    #[arg(value_name = "SERIAL", required = true)]
    serials: Vec<String>,
}

pub(super) fn run(args: &RevokeArgs) -> Result<(), Failure> {
    let now = SystemTime::now();
    if let Some(place) = args.secret.place(&args.folder)? {
        return print(&secret::change(&place, true, |dir, _found| revoke(args, dir, now))?);
    }
    // Only the folder is needed.
    let dir = match &args.folder.dir {
        Some(dir) => dir.clone(),
        None => args.folder.resolve()?.0,
    };
    print(&revoke(args, &dir, now)?)
}

fn revoke(args: &RevokeArgs, dir: &Path, now: SystemTime) -> Result<String, Failure> {
    let serials: Vec<&str> = args.serials.iter().map(String::as_str).collect();
    let all = ca::revoke(dir, &serials, now).map_err(|error| Failure::failed(&error))?;
    Ok(format!("revoked {}; {all} in all that have not ended yet\n", serials.join(", ")))
}

//! `make image`: the container image of a binary, without Docker and without root.
#![allow(clippy::print_stdout, reason = "it is a command")]

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Parser;
use eastway_tests::oci;

/// Largest image, bytes: what nodes have to pull before anything works.
const BUDGET: u64 = 40 << 20;

/// Writes an OCI image archive with one binary in it
#[derive(Debug, Parser)]
struct Args {
    /// The binary
    binary: PathBuf,
    /// The archive to write
    archive: PathBuf,
    /// Its name and tag
    #[arg(long, default_value = concat!("ghcr.io/eastway-dev/eastway:", env!("CARGO_PKG_VERSION")))]
    name: String,
    /// Make the image of sidecars: with this Envoy
    #[arg(long, value_name = "FILE")]
    envoy: Option<PathBuf>,
    /// and this `nft`
    #[arg(long, value_name = "FILE", default_value = "/usr/sbin/nft")]
    nft: PathBuf,
    /// Take a binary that makes the image larger than 40 MiB, e.g. one for debugging
    #[arg(long)]
    any_size: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let size = match &args.envoy {
        Some(envoy) => oci::write_sidecar(&args.binary, envoy, &args.nft, &args.archive, &args.name)?,
        None => oci::write(&args.binary, &args.archive, &args.name)?,
    };
    println!("{}: {}, {:.1} MB", args.archive.display(), args.name, size as f64 / 1e6);
    ensure!(args.any_size || args.envoy.is_some() || size <= BUDGET, "the image is larger than 40 MiB");
    Ok(())
}

//! Rotation of the issuing key, with overlap from end to end.
//!
//! | step | folder | issues with | pins exported |
//! |---|---|---|---|
//! | begin | `next/` holds the new CA | old | old, new |
//! | activate | the new CA in place, `previous/` holds the old one | new | new, old |
//! | finish | `previous/` gone | new | new |
//!
//! Between begin and activate peers add the new pin; between activate and finish the last old leaves expire.

use std::path::{Path, PathBuf};

use rustls_pki_types::CertificateDer;

use super::error::CaError;
use super::files;

const NEXT: &str = "next";
const PREVIOUS: &str = "previous";

/// The folder to issue from. While an activation is under way (`next/` and `previous/` both there) the new CA counts:
/// its files are complete, those in `dir` may not be.
pub(super) fn current(dir: &Path) -> PathBuf {
    let next = dir.join(NEXT);
    if next.is_dir() && dir.join(PREVIOUS).is_dir() { next } else { dir.to_owned() }
}

/// CA certificates other than the issuing one that peers should hold.
pub(super) fn announced(dir: &Path, source: &Path) -> Result<Vec<CertificateDer<'static>>, CaError> {
    let mut certificates = Vec::new();
    for folder in [dir.join(NEXT), dir.join(PREVIOUS)] {
        if folder.is_dir() && folder != source {
            certificates.push(files::read(&folder)?.certificate);
        }
    }
    Ok(certificates)
}

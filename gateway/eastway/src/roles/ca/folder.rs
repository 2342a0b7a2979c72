//! Whether a CA folder changed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The files of a CA folder: path, time and size of each.
pub(super) type Fingerprint = Vec<(PathBuf, Option<SystemTime>, u64)>;

/// Changes whenever a file of the folder is replaced or rewritten.
pub(super) fn fingerprint(folder: &Path) -> Fingerprint {
    let mut files: Vec<_> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let meta = fs::metadata(entry.path()).ok()?;
            Some((entry.path(), meta.modified().ok(), meta.len()))
        })
        .collect();
    files.sort();
    files
}

//! Archives that images are made of: owned by root and without times, so that equal contents are equal bytes.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use anyhow::{Context, Result};
use tar::{Builder, EntryType, Header};

/// An archive that is being written.
pub(crate) struct Archive<W: Write> {
    tar: Builder<W>,
    folders: BTreeSet<String>,
}

impl<W: Write> Archive<W> {
    /// An empty one.
    pub(crate) fn new(writer: W) -> Self {
        Self { tar: Builder::new(writer), folders: BTreeSet::new() }
    }

    /// The folders a path lies in, once each.
    pub(crate) fn parents(&mut self, path: &str) -> Result<()> {
        let ends: Vec<usize> = path.match_indices('/').map(|(end, _)| end).collect();
        ends.into_iter().filter_map(|end| path.get(..end)).try_for_each(|folder| self.folder(folder, 0o755))
    }

    /// A folder, unless it is there.
    pub(crate) fn folder(&mut self, path: &str, mode: u32) -> Result<()> {
        if !self.folders.insert(path.to_owned()) {
            return Ok(());
        }
        Ok(self.tar.append_data(&mut header(EntryType::Directory, mode, 0), format!("{path}/"), std::io::empty())?)
    }

    /// A symbolic link.
    pub(crate) fn link(&mut self, path: &str, target: &str) -> Result<()> {
        Ok(self.tar.append_link(&mut header(EntryType::Symlink, 0o777, 0), path, target)?)
    }

    /// A file with these contents.
    pub(crate) fn bytes(&mut self, path: &str, mode: u32, bytes: &[u8]) -> Result<()> {
        let mut header = header(EntryType::Regular, mode, u64::try_from(bytes.len())?);
        Ok(self.tar.append_data(&mut header, path, bytes)?)
    }

    /// A file with the contents of one of this machine.
    pub(crate) fn copy(&mut self, path: &str, mode: u32, from: &Path) -> Result<()> {
        let file = File::open(from).with_context(|| from.display().to_string())?;
        let size = file.metadata()?.len();
        Ok(self.tar.append_data(&mut header(EntryType::Regular, mode, size), path, file.take(size))?)
    }

    /// Ends it.
    pub(crate) fn finish(self) -> Result<W> {
        Ok(self.tar.into_inner()?)
    }
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

/// This machine's architecture, as images name it.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

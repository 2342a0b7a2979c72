//! What the store heard of an API server, on disk: a process that starts while the server is away serves by it.
//!
//! One line of JSON for each service and workload, so that nothing is in memory twice; then a line with the checksum
//! of all before it.

mod stored;

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use eastway_model::{LocalService, Workload};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::runtime::{Handle, RuntimeFlavor};

use crate::client::Access;
use stored::{StoredService, StoredWorkload};

/// Begin of the first line; the API server follows.
const HEADER: &str = "eastway-kubernetes 1";
/// Begin of the last line.
const CHECKSUM: &str = "sha256:";
/// Largest file that is read: some 500,000 endpoints.
const MAX: u64 = 256 << 20;

/// Why a copy is not used.
#[derive(Debug, thiserror::Error)]
pub(super) enum CopyError {
    /// It cannot be read.
    #[error("{0}")]
    Read(#[from] io::Error),
    /// Larger than any that is written.
    #[error("larger than 256 MiB")]
    TooLarge,
    /// Not one of ours, of another version, or of another API server.
    #[error("header")]
    Header,
    /// Torn or altered.
    #[error("checksum")]
    Checksum,
    /// The checksum is right and a line is not: written by another version, or by hand.
    #[error("line {0}")]
    Line(usize),
}

/// What a copy holds.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Contents {
    pub(super) services: Vec<Arc<LocalService>>,
    pub(super) workloads: Vec<Workload>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Line {
    Service(StoredService),
    Workload(StoredWorkload),
}

/// Does what waits for a disk: the other tasks of its thread move on.
pub(super) fn blocking<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

/// Reads what [`write`] wrote of this API server; `None`: there is nothing.
pub(super) fn read(file: &Path, server: &Access) -> Result<Option<Contents>, CopyError> {
    let size = match fs::metadata(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        metadata => metadata?.len(),
    };
    if size > MAX {
        return Err(CopyError::TooLarge);
    }
    parse(&fs::read_to_string(file)?, server).map(Some)
}

fn header(server: &Access) -> String {
    format!("{HEADER} {server:?}\n")
}

fn parse(text: &str, server: &Access) -> Result<Contents, CopyError> {
    let body = text.strip_suffix('\n').and_then(|text| text.rfind('\n')).ok_or(CopyError::Header)? + 1;
    let (body, last) = text.split_at(body);
    let rest = body.strip_prefix(&header(server)).ok_or(CopyError::Header)?;
    let told = last.strip_prefix(CHECKSUM).ok_or(CopyError::Checksum)?;
    if told.trim_end() != hex(&Sha256::digest(body)) {
        return Err(CopyError::Checksum);
    }
    let mut contents = Contents::default();
    for (index, line) in rest.lines().enumerate() {
        let bad = CopyError::Line(index + 2);
        match serde_json::from_str(line) {
            Ok(Line::Service(service)) => contents.services.push(Arc::new(service.restored().ok_or(bad)?)),
            Ok(Line::Workload(workload)) => contents.workloads.push(workload.restored().ok_or(bad)?),
            Err(_) => return Err(bad),
        }
    }
    Ok(contents)
}

/// Replaces the copy as a whole: a crash leaves the old or the new one.
pub(super) fn write(
    file: &Path,
    server: &Access,
    workloads: impl Iterator<Item = Workload>,
    services: impl Iterator<Item = LocalService>,
) -> io::Result<()> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    let temporary = file.with_extension("tmp");
    let written = write_to(&temporary, server, workloads, services).and_then(|()| fs::rename(&temporary, file));
    if written.is_err() {
        // A full disk gets its room back; that this fails too changes nothing.
        let _gone = fs::remove_file(&temporary);
    }
    written
}

fn write_to(
    file: &Path,
    server: &Access,
    workloads: impl Iterator<Item = Workload>,
    services: impl Iterator<Item = LocalService>,
) -> io::Result<()> {
    let mut out = Hashed { out: BufWriter::new(File::create(file)?), hash: Sha256::new() };
    out.write_all(header(server).as_bytes())?;
    let workloads = workloads.map(|workload| Line::Workload(StoredWorkload::of(&workload)));
    let services = services.map(|service| Line::Service(StoredService::of(&service)));
    for line in workloads.chain(services) {
        serde_json::to_writer(&mut out, &line)?;
        out.write_all(b"\n")?;
    }
    let Hashed { mut out, hash } = out;
    writeln!(out, "{CHECKSUM}{}", hex(&hash.finalize()))?;
    out.into_inner()?.sync_all()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A file, and the checksum of what went into it.
struct Hashed {
    out: BufWriter<File>,
    hash: Sha256,
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write_all(bytes)?;
        self.hash.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests;

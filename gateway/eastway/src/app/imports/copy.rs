//! The copy on disk of what a peer exports: a restart serves it until the peer is heard.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use eastway_federation::ImportTable;
use eastway_model::ClusterName;
use eastway_model::rules::PeerRules;
use tokio::time::Instant;
use tracing::warn;

use super::Imports;
use crate::app::disk::write_atomically;
use crate::telemetry::Refusal;

/// How long changes are collected before the copy is written anew.
const COLLECT: Duration = Duration::from_secs(1);
/// How old a copy may say it is while the peer has nothing new to say.
const REFRESH: Duration = Duration::from_secs(600);

/// Where the copy of what a peer exports is, in the folder `state`.
pub(crate) fn file_of(state: &Path, peer: &ClusterName) -> PathBuf {
    state.join("imports").join(format!("{peer}.bin"))
}

/// One file, and what was written there last.
#[derive(Debug)]
pub(super) struct DiskCopy {
    file: PathBuf,
    /// Revision of the table in the file, and when it was written.
    saved: u64,
    saved_at: Instant,
    /// When a change was first seen that is not in the file.
    changed_at: Option<Instant>,
}

impl DiskCopy {
    /// In the folder `state`; nothing is read yet.
    pub(super) fn new(state: &Path, peer: &ClusterName) -> Self {
        Self { file: file_of(state, peer), saved: 0, saved_at: Instant::now(), changed_at: None }
    }

    /// The table of the file; an empty one if there is none that can be used.
    pub(super) fn load(&mut self, imports: &Imports, rules: &PeerRules) -> ImportTable {
        let peer = &rules.name;
        let fresh = || ImportTable::new(imports.cluster.clone(), peer.clone(), imports.limits.clone());
        let bytes = match std::fs::read(&self.file) {
            Ok(bytes) => bytes,
            Err(error) => {
                if error.kind() != std::io::ErrorKind::NotFound {
                    warn!(%error, file = %self.file.display(), "the copy of a peer's exports cannot be read");
                }
                return fresh();
            }
        };
        let (cluster, limits) = (imports.cluster.clone(), imports.limits.clone());
        match ImportTable::from_disk(&bytes, cluster, peer.clone(), rules, limits, imports.clock.now()) {
            Ok(table) => {
                self.saved = table.revision();
                table
            }
            Err(error) => {
                imports.telemetry.refusals.refused(Refusal::State, Some(&Arc::from(peer.as_str())), error);
                warn!(%error, file = %self.file.display(), "snapshot rejected; it is asked for anew");
                fresh()
            }
        }
    }

    /// Notes what the table is now; whether it is time to save it. An old copy of a peer that is
    /// current is due even without changes: it says when the peer was last heard, and is not used
    /// once that is `withdraw_after` ago.
    pub(super) fn is_due(&mut self, table: &ImportTable, is_current: bool, withdraw_after: Duration) -> bool {
        let now = Instant::now();
        if table.revision() != self.saved {
            return now.duration_since(*self.changed_at.get_or_insert(now)) >= COLLECT;
        }
        is_current && now.duration_since(self.saved_at) >= REFRESH.min(withdraw_after / 8)
    }

    /// Writes the table if the file holds another.
    pub(super) fn save_changes(&mut self, table: &ImportTable) {
        if table.revision() != self.saved {
            self.save(table);
        }
    }

    /// Writes the table, if the peer ever sent a complete one. A full or read-only disk costs the
    /// warm start and nothing else (fault F20).
    pub(super) fn save(&mut self, table: &ImportTable) {
        (self.saved, self.saved_at, self.changed_at) = (table.revision(), Instant::now(), None);
        if table.source().is_none() {
            return;
        }
        let folder = self.file.parent().map_or(Ok(()), std::fs::create_dir_all);
        if let Err(error) = folder.and_then(|()| write_atomically(&self.file, &table.to_disk())) {
            warn!(%error, file = %self.file.display(), "a peer's exports are not kept on disk; running from memory");
        }
    }

    /// Deletes the file: what it holds must not come back.
    pub(super) fn delete(&self) {
        match std::fs::remove_file(&self.file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                warn!(%error, file = %self.file.display(), "the copy of a peer's withdrawn exports cannot be deleted");
            }
            Ok(()) | Err(_) => {}
        }
    }
}

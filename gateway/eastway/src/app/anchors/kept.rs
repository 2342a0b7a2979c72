//! What is kept of anchors over a restart.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;
use std::{fs, io};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use eastway_identity::AnchorDer;
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::{Counted, hex};
use crate::app::disk::write_atomically;

/// The file in the state folder.
const FILE: &str = "anchors.json";
/// How long who lost trust is remembered, seconds: far longer than any certificate lives.
const REMEMBERED: u64 = 7 * 24 * 3600;

/// What was said, not checked, and who lost trust.
#[derive(Debug, Default)]
pub(super) struct Kept {
    file: PathBuf,
    /// Of this cluster's CA.
    pub(super) own: Vec<AnchorDer>,
    /// By peer.
    pub(super) peers: BTreeMap<Arc<str>, Vec<AnchorDer>>,
    /// Anchors that went and serial numbers that are revoked, and since when in seconds since the Unix epoch. Sidecars
    /// cut what they have when this changes, so it only grows while a process runs.
    pub(super) cuts: BTreeMap<String, u64>,
    /// What is on disk.
    saved: Vec<u8>,
}

#[derive(Default, Serialize, Deserialize)]
struct Stored {
    own: Vec<StoredAnchor>,
    peers: BTreeMap<String, Vec<StoredAnchor>>,
    cuts: BTreeMap<String, u64>,
}

/// Base64 of DER.
#[derive(Serialize, Deserialize)]
struct StoredAnchor {
    certificate: String,
    crl: String,
}

impl StoredAnchor {
    fn of(anchor: &AnchorDer) -> Self {
        Self { certificate: STANDARD.encode(&anchor.certificate), crl: STANDARD.encode(&anchor.crl) }
    }

    /// What is wrong in it is found out by who judges it.
    fn read(&self) -> AnchorDer {
        let decode = |text: &str| STANDARD.decode(text).unwrap_or_default();
        AnchorDer { certificate: decode(&self.certificate), crl: decode(&self.crl) }
    }
}

impl Kept {
    /// What is in the state folder.
    pub(super) fn open(state: &Path) -> Self {
        let file = state.join(FILE);
        let saved = match fs::read(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            read => read,
        };
        let stored = saved.and_then(|bytes| match bytes.is_empty() {
            true => Ok(Stored::default()),
            false => serde_json::from_slice(&bytes).map_err(io::Error::from),
        });
        let stored: Stored = stored.unwrap_or_else(|error| {
            warn!(%error, file = %file.display(), "what trust domains were known by cannot be read: sidecars wait for peers");
            Stored::default()
        });
        let read = |anchors: &[StoredAnchor]| anchors.iter().map(StoredAnchor::read).collect();
        let oldest = seconds(SystemTime::now()).saturating_sub(REMEMBERED);
        Self {
            file,
            own: read(&stored.own),
            peers: stored.peers.iter().map(|(peer, anchors)| (Arc::from(peer.as_str()), read(anchors))).collect(),
            cuts: stored.cuts.into_iter().filter(|(_, since)| *since >= oldest).collect(),
            saved: Vec::new(),
        }
    }

    /// Notes who lost trust between two looks.
    pub(super) fn note_cuts(&mut self, before: &Counted, now: &Counted, at: SystemTime) {
        let gone = before.keys().filter(|key| !now.contains_key(*key));
        let gone = gone.map(|(domain, pin)| format!("anchor {domain} {pin}"));
        let revoked = now.iter().flat_map(|((domain, _), anchor)| {
            anchor.revoked().iter().map(move |serial| format!("serial {domain} {}", hex(serial)))
        });
        for cut in gone.chain(revoked).collect::<Vec<_>>() {
            self.cuts.entry(cut).or_insert_with(|| seconds(at));
        }
    }

    /// Writes what changed.
    pub(super) fn save(&mut self) {
        let of = |anchors: &[AnchorDer]| anchors.iter().map(StoredAnchor::of).collect();
        let stored = Stored {
            own: of(&self.own),
            peers: self.peers.iter().map(|(peer, anchors)| (peer.to_string(), of(anchors))).collect(),
            cuts: self.cuts.clone(),
        };
        let Ok(bytes) = serde_json::to_vec_pretty(&stored) else { return };
        if bytes == self.saved {
            return;
        }
        if let Err(error) = write_atomically(&self.file, &bytes) {
            warn!(%error, file = %self.file.display(), "what trust domains are known by is not kept on disk");
        }
        self.saved = bytes;
    }
}

fn seconds(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

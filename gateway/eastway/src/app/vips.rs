//! Virtual addresses of imports: allocated by hash with probing, kept on disk by their owner.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use eastway_model::vip::{self, VipRange};
use tracing::{info, warn};

use crate::app::disk::write_atomically;

/// File of the allocation inside the state folder.
const FILE: &str = "vips.json";

/// The addresses that were given out, by what they stand for (e.g. `bookinfo/reviews/service`).
#[derive(Debug)]
pub struct VipBook {
    ranges: Vec<VipRange>,
    entries: BTreeMap<String, Vec<IpAddr>>,
    taken: BTreeSet<IpAddr>,
    file: Option<PathBuf>,
    dirty: bool,
}

#[derive(serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stored {
    version: u32,
    vips: BTreeMap<String, Vec<IpAddr>>,
}

impl VipBook {
    /// The allocation of the last run, as far as it still lies in `ranges`. `state` is the state
    /// folder; `None` keeps nothing.
    #[must_use]
    pub fn open(ranges: Vec<VipRange>, state: Option<&Path>) -> Self {
        let file = state.map(|folder| folder.join(FILE));
        let stored = file.as_deref().map(read).unwrap_or_default();
        let mut book = Self { ranges, entries: BTreeMap::new(), taken: BTreeSet::new(), file, dirty: false };
        for (key, addresses) in stored {
            let fits = addresses.len() == book.ranges.len()
                && addresses.iter().zip(&book.ranges).all(|(address, range)| range.contains(*address))
                && addresses.iter().all(|address| !book.taken.contains(address));
            if fits {
                book.taken.extend(&addresses);
                book.entries.insert(key, addresses);
            } else {
                warn!(key, "a stored virtual address does not lie in vip.ranges any more: a new one is given");
                book.dirty = true;
            }
        }
        book
    }

    /// The addresses of `key`, one per range, given out now if it has none. `None`: a range is full.
    pub fn allocate(&mut self, key: &str) -> Option<&[IpAddr]> {
        if !self.entries.contains_key(key) {
            let taken = &self.taken;
            let pick = |range: &VipRange| vip::allocate(*range, key, |address| taken.contains(&address)).ok();
            let addresses = self.ranges.iter().map(pick).collect::<Option<Vec<_>>>()?;
            self.taken.extend(&addresses);
            self.entries.insert(key.to_owned(), addresses);
            self.dirty = true;
        }
        self.entries.get(key).map(Vec::as_slice)
    }

    /// The addresses of `key`, if it has some.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&[IpAddr]> {
        self.entries.get(key).map(Vec::as_slice)
    }

    /// Gives the addresses of every key back that begins with `prefix` and is not in `keep`.
    pub fn release(&mut self, prefix: &str, keep: &BTreeSet<String>) {
        let gone: Vec<_> = self
            .entries
            .range(prefix.to_owned()..)
            .map(|(key, _)| key)
            .take_while(|key| key.starts_with(prefix))
            .filter(|key| !keep.contains(*key))
            .cloned()
            .collect();
        for key in gone {
            for address in self.entries.remove(&key).unwrap_or_default() {
                self.taken.remove(&address);
            }
            self.dirty = true;
        }
    }

    /// All addresses by key, for status.
    #[must_use]
    pub fn entries(&self) -> &BTreeMap<String, Vec<IpAddr>> {
        &self.entries
    }

    /// Writes the allocation if it changed. A disk that does not take it costs stability over a
    /// restart and nothing else (fault F20).
    pub fn save(&mut self) {
        if !std::mem::take(&mut self.dirty) {
            return;
        }
        let Some(file) = &self.file else { return };
        let stored = Stored { version: 1, vips: self.entries.clone() };
        let written =
            serde_json::to_vec_pretty(&stored).map_err(io::Error::other).and_then(|text| write_atomically(file, &text));
        match written {
            Ok(()) => info!(count = stored.vips.len(), "virtual addresses saved"),
            Err(error) => {
                warn!(%error, file = %file.display(), "virtual addresses are not saved: they may change at the next start");
            }
        }
    }
}

fn read(file: &Path) -> BTreeMap<String, Vec<IpAddr>> {
    match fs::read(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
        Err(error) => {
            warn!(%error, file = %file.display(), "stored virtual addresses cannot be read");
            BTreeMap::new()
        }
        Ok(text) => match serde_json::from_slice::<Stored>(&text) {
            Ok(Stored { version: 1, vips }) => vips,
            Ok(Stored { version, .. }) => {
                warn!(version, "stored virtual addresses are of an unknown version");
                BTreeMap::new()
            }
            Err(error) => {
                warn!(%error, file = %file.display(), "stored virtual addresses are damaged");
                BTreeMap::new()
            }
        },
    }
}

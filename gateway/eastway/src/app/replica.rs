//! Which incarnations this gateway had before: it may answer for them.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use eastway_tunnel::ReplicaId;
use tracing::warn;

use crate::app::disk::write_atomically;

/// File in the state folder with the ids of this gateway's incarnations, oldest first.
const FILE: &str = "replicas.json";
/// Incarnations that are remembered: peers notice within seconds that one is gone.
const KEPT: usize = 16;

/// The incarnations that kept their state in `folder` before `own`, which is remembered for the next.
#[must_use]
pub fn predecessors(folder: &Path, own: ReplicaId) -> Arc<[ReplicaId]> {
    let file = folder.join(FILE);
    let mut known: Vec<String> =
        fs::read(&file).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
    let predecessors = known.iter().filter_map(|id| parse(id)).filter(|id| *id != own).collect();
    known.push(own.to_string());
    let written = serde_json::to_vec(known.get(known.len().saturating_sub(KEPT)..).unwrap_or_default());
    let written = written.map_err(std::io::Error::other).and_then(|text| write_atomically(&file, &text));
    if let Err(error) = written {
        warn!(%error, file = %file.display(), "peers will notice the next restart by silence only");
    }
    predecessors
}

fn parse(text: &str) -> Option<ReplicaId> {
    (text.len() == 32).then(|| u128::from_str_radix(text, 16).ok())?.map(|id| ReplicaId(id.to_be_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f1_each_incarnation_knows_those_before_it_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let ids: Vec<_> = (0..40).map(|id| ReplicaId([id; 16])).collect();
        assert!(predecessors(folder.path(), ids[0]).is_empty());
        assert_eq!(*predecessors(folder.path(), ids[1]), ids[..1]);
        for id in &ids[2..39] {
            let _known = predecessors(folder.path(), *id);
        }
        assert_eq!(*predecessors(folder.path(), ids[39]), ids[23..39], "a few are enough");
        fs::write(folder.path().join(FILE), "[\"x\", 7").unwrap();
        assert!(predecessors(folder.path(), ids[0]).is_empty(), "a damaged file is as none");
    }
}

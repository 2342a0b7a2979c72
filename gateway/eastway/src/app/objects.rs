//! Merges Peer and policy objects of the API server into the configuration, live.
//!
//! The objects of the last run are on disk: a gateway that starts while the API server is away knows its peers.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use eastway_kubernetes::client::Access;
use eastway_kubernetes::objects::{self, Kind, ObjectKey, Objects};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::app::disk::write_atomically;
use crate::config::Loaded;
use crate::config::objects::Overlay;

/// File inside the state folder.
const FILE: &str = "objects.json";
/// Pause before a client that could not be made is tried again.
const CLIENT_PAUSE: Duration = Duration::from_secs(5);

/// What is followed, and where the result goes.
#[derive(Debug)]
pub struct Follower {
    files: watch::Receiver<Arc<Loaded>>,
    objects: watch::Receiver<Option<Arc<Objects>>>,
    merged: watch::Sender<Arc<Loaded>>,
    overlay: Overlay,
    last: Arc<Objects>,
    live: bool,
    state: PathBuf,
}

/// The configuration of files and objects, and what keeps it current.
#[must_use = "the follower does the work"]
pub fn overlay(
    files: watch::Receiver<Arc<Loaded>>,
    objects: watch::Receiver<Option<Arc<Objects>>>,
) -> (watch::Receiver<Arc<Loaded>>, Follower) {
    let loaded = files.borrow().clone();
    let state = loaded.settings.state.clone();
    let last = Arc::new(load(&state).unwrap_or_default());
    let mut overlay = Overlay::default();
    let (merged, receiver) = watch::channel(Arc::new(overlay.merge(&loaded, &last, false)));
    (receiver, Follower { files, objects, merged, overlay, last, live: false, state })
}

impl Follower {
    /// Whether there have been objects in the last run.
    #[must_use]
    pub fn has_objects(&self) -> bool {
        !self.last.is_empty()
    }

    /// Follows until `end`.
    pub async fn run(mut self, end: CancellationToken) {
        loop {
            tokio::select! {
                () = end.cancelled() => return,
                changed = self.files.changed() => if changed.is_err() { return },
                changed = self.objects.changed() => {
                    // Its sender is dropped only while the process stops.
                    if changed.is_err() { return }
                    let Some(now) = self.objects.borrow_and_update().clone() else { continue };
                    if now != self.last {
                        save(&self.state, &now);
                    }
                    (self.last, self.live) = (now, true);
                }
            }
            let files = self.files.borrow_and_update().clone();
            let new = self.overlay.merge(&files, &self.last, self.live);
            self.merged.send_if_modified(|before| {
                let changed = before.settings != new.settings
                    || before.peers != new.peers
                    || before.policies != new.policies
                    || before.refused != new.refused
                    || before.complete != new.complete;
                if changed {
                    info!(
                        peers = new.peers.len(),
                        refused = new.refused.len(),
                        "peers and policies of the API server taken over"
                    );
                    *before = Arc::new(new);
                }
                changed
            });
        }
    }
}

/// Reads the objects of the API server until `end`. `expected`: there have been some.
pub async fn watch(
    access: Access,
    kinds: Vec<Kind>,
    latest: watch::Sender<Option<Arc<Objects>>>,
    expected: bool,
    end: CancellationToken,
) {
    loop {
        match objects::run(&access, &kinds, latest.clone(), expected, end.clone()).await {
            Ok(()) => return,
            Err(error) => warn!(%error, "peers and policies cannot be read from the API server; trying again"),
        }
        if end.run_until_cancelled(tokio::time::sleep(CLIENT_PAUSE)).await.is_none() {
            return;
        }
    }
}

fn load(state: &Path) -> Option<Objects> {
    let file = state.join(FILE);
    let stored = match fs::read(&file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        read => {
            read.and_then(|bytes| serde_json::from_slice::<Vec<(ObjectKey, String)>>(&bytes).map_err(io::Error::from))
        }
    };
    match stored {
        Ok(stored) => Some(stored.into_iter().map(|(key, text)| (key, Arc::from(text))).collect()),
        Err(error) => {
            warn!(%error, file = %file.display(), "stored objects cannot be read: they wait for the API server");
            None
        }
    }
}

fn save(state: &Path, objects: &Objects) {
    let file = state.join(FILE);
    let stored: Vec<(&ObjectKey, &str)> = objects.iter().map(|(key, text)| (key, &**text)).collect();
    let written = serde_json::to_vec(&stored).map_err(io::Error::other);
    if let Err(error) = written.and_then(|text| write_atomically(&file, &text)) {
        warn!(%error, file = %file.display(), "objects are not kept on disk: a restart waits for the API server");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn i4_peers_of_the_last_run_stay_until_the_api_server_is_heard() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("gateway.yaml");
        let text = "apiVersion: eastway.dev/v1alpha1\nkind: GatewayConfig\ncluster: onprem\ntrust: {domain: onprem.example}\nkubernetes: {}\n";
        fs::write(&file, text).unwrap();
        fs::create_dir(folder.path().join("state")).unwrap();
        let (_files, files) = watch::channel(Arc::new(crate::config::load(&file).unwrap()));
        let key = |name: &str| ObjectKey { kind: Kind::Peer, namespace: String::new(), name: name.to_owned() };
        let peer = |name: &str| -> (ObjectKey, Arc<str>) {
            let pin = format!("sha256:{}", name.repeat(64).get(..64).unwrap_or_default());
            let text = format!(
                "apiVersion: eastway.dev/v1alpha1\nkind: Peer\nmetadata: {{name: {name}}}\nspec: {{trustDomain: {name}.example, pins: ['{pin}']}}\n"
            );
            (key(name), text.into())
        };
        let end = CancellationToken::new();
        for run in 0..2 {
            let (objects, latest) = watch::channel(None);
            let (mut merged, follower) = overlay(files.clone(), latest);
            assert_eq!(merged.borrow().peers.len(), run, "those of the last run");
            assert!(!merged.borrow().complete, "there may be more, or fewer");
            assert_eq!(follower.has_objects(), run == 1);
            let follow = tokio::spawn(follower.run(end.clone()));
            // The second server has lost `b` and has `c`.
            objects.send_replace(Some(Arc::new([peer(if run == 0 { "b" } else { "c" })].into())));
            let heard = merged.wait_for(|loaded| loaded.complete);
            let loaded = tokio::time::timeout(DEADLINE, heard).await.unwrap().unwrap().clone();
            let names: Vec<_> = loaded.peers.keys().map(eastway_model::Label::as_str).collect();
            assert_eq!(names, [if run == 0 { "b" } else { "c" }]);
            follow.abort();
        }
    }
}

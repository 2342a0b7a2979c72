//! Tells when files or folders may have changed.
//!
//! Editors replace files, Kubernetes swaps a symbolic link two levels up (`..data`), and either may
//! happen while we look. So folders are watched rather than files, the real ones as well as the
//! named ones; whoever waits here compares contents afterwards; and because notifications get lost
//! (network file systems, watch limits, folders that are replaced), there is a poll as well.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, EventKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// How long nothing may happen before a change counts as complete: an editor's write, rename and
/// remove, or a swapped ConfigMap, are one change.
const QUIET: Duration = Duration::from_millis(25);

/// Longest wait for quiet. A storm of writes is followed at this pace (fault F31).
const PATIENCE: Duration = Duration::from_millis(300);

/// Poll beside notifications.
pub const POLL: Duration = Duration::from_secs(30);

/// Poll where the system gives no notifications.
const POLL_ALONE: Duration = Duration::from_secs(2);

/// Watches a set of files and folders.
pub struct Watch {
    watcher: Option<RecommendedWatcher>,
    /// Folders with a live watch, and which folder was behind the name then.
    folders: BTreeMap<PathBuf, Inode>,
    signal: Arc<Signal>,
    poll: Duration,
    next_poll: Instant,
    /// When the change began that has not come to rest yet.
    pending: Option<Instant>,
}

type Inode = (u64, u64);

#[derive(Default)]
struct Signal {
    /// At most one permit is stored: any number of events is one wake-up.
    wake: Notify,
    /// Names that matter beside YAML files, since other things may be written in the same folders.
    names: Mutex<BTreeSet<PathBuf>>,
}

impl Default for Watch {
    fn default() -> Self {
        Self::new()
    }
}

impl Watch {
    /// Watches nothing yet, and polls every [`POLL`].
    #[must_use]
    pub fn new() -> Self {
        let signal = Arc::<Signal>::default();
        let handler = Arc::clone(&signal);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| handler.event(event));
        let watcher = match watcher {
            Ok(watcher) => Some(watcher),
            Err(error) => {
                tracing::warn!(%error, poll = ?POLL_ALONE, "no file notifications; polling instead");
                None
            }
        };
        let poll = if watcher.is_some() { POLL } else { POLL_ALONE };
        Self { watcher, folders: BTreeMap::new(), signal, poll, next_poll: Instant::now() + poll, pending: None }
    }

    /// Watches `paths` and nothing else. To be called again after each change: the folders behind
    /// the names may be others now.
    pub fn set<'p>(&mut self, paths: impl IntoIterator<Item = &'p Path>) {
        let mut names = BTreeSet::new();
        let mut folders = BTreeMap::new();
        for path in paths {
            for path in [Some(path.to_owned()), path.canonicalize().ok()].into_iter().flatten() {
                add_folders(&path, &mut folders);
                names.insert(path);
            }
        }
        *self.signal.names.lock().unwrap_or_else(PoisonError::into_inner) = names;
        let Some(watcher) = &mut self.watcher else { return };
        let mut ended = BTreeSet::new();
        for (folder, inode) in &self.folders {
            if folders.get(folder) != Some(inode) {
                // Fails if the folder is gone, which ends the watch as well.
                let _gone = watcher.unwatch(folder);
                ended.insert(*inode);
            }
        }
        // The system has one watch for all names of a folder, and ended it for all of them (inotify(7)).
        self.folders.retain(|folder, inode| folders.get(folder) == Some(inode) && !ended.contains(inode));
        for (folder, inode) in folders {
            if self.folders.contains_key(&folder) {
                continue;
            }
            match watcher.watch(&folder, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    self.folders.insert(folder, inode);
                }
                Err(error) => {
                    tracing::warn!(folder = %folder.display(), %error, poll = ?self.poll, "cannot watch; polling instead");
                    self.poll = POLL_ALONE;
                    self.next_poll = Instant::now() + self.poll;
                }
            }
        }
    }

    /// Waits until something may have changed and has come to rest, or until it is time to look
    /// anyway. Nothing is lost if the future is dropped before it is done.
    pub async fn changed(&mut self) {
        let began = match self.pending {
            Some(began) => began,
            None => {
                tokio::select! {
                    () = self.signal.wake.notified() => {}
                    () = sleep_until(self.next_poll) => {
                        self.next_poll = Instant::now() + self.poll;
                        return;
                    }
                }
                *self.pending.insert(Instant::now())
            }
        };
        let mut quiet = Instant::now() + QUIET;
        while tokio::select! {
            () = self.signal.wake.notified() => true,
            () = sleep_until(quiet.min(began + PATIENCE)) => false,
        } {
            quiet = Instant::now() + QUIET;
        }
        self.pending = None;
        self.next_poll = Instant::now() + self.poll;
    }
}

impl Signal {
    fn event(&self, event: notify::Result<notify::Event>) {
        let relevant = match event {
            // Reading a file is an event too, and we read after every event.
            Ok(event) => is_change(event.kind) && (event.need_rescan() || self.concerns(&event.paths)),
            Err(_) => true,
        };
        if relevant {
            self.wake.notify_one();
        }
    }

    fn concerns(&self, paths: &[PathBuf]) -> bool {
        let yaml = |path: &Path| path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
        // ConfigMaps and Secrets: `..data` is the link that is swapped.
        let mount = |path: &Path| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".."));
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        paths.iter().any(|path| yaml(path) || mount(path) || names.contains(path))
    }
}

fn is_change(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
        EventKind::Access(_) => false,
        EventKind::Any | EventKind::Create(_) | EventKind::Modify(_) | EventKind::Remove(_) | EventKind::Other => true,
    }
}

/// The folder itself if `path` is one, and the nearest folder above it that exists: that is where
/// its replacement shows.
fn add_folders(path: &Path, folders: &mut BTreeMap<PathBuf, Inode>) {
    let inode = |path: &Path| {
        let metadata = std::fs::metadata(path).ok()?;
        metadata.is_dir().then(|| (metadata.dev(), metadata.ino()))
    };
    if let Some(inode) = inode(path) {
        folders.insert(path.to_owned(), inode);
    }
    for above in path.ancestors().skip(1) {
        let above = if above.as_os_str().is_empty() { Path::new(".") } else { above };
        if let Some(inode) = inode(above) {
            folders.insert(above.to_owned(), inode);
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    async fn wakes(watch: &mut Watch) {
        timeout(SOON, watch.changed()).await.expect("no notification");
    }

    #[tokio::test]
    async fn writing_replacing_and_removing_wake() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.yaml");
        std::fs::write(&file, "1").unwrap();
        let mut watch = Watch::new();
        watch.set([file.as_path()]);
        std::fs::write(&file, "2").unwrap();
        wakes(&mut watch).await;
        std::fs::write(folder.path().join("b.tmp"), "3").unwrap();
        std::fs::rename(folder.path().join("b.tmp"), &file).unwrap();
        wakes(&mut watch).await;
        std::fs::remove_file(&file).unwrap();
        wakes(&mut watch).await;
    }

    #[tokio::test]
    async fn reading_and_other_files_do_not_wake() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.yaml");
        std::fs::write(&file, "1").unwrap();
        let mut watch = Watch::new();
        watch.set([file.as_path()]);
        std::fs::read(&file).unwrap();
        std::fs::write(folder.path().join("noise.log"), "x").unwrap();
        let woken = timeout(Duration::from_millis(200), watch.changed()).await;
        assert!(woken.is_err(), "woken by a read or by a file that does not matter");
    }

    #[tokio::test]
    async fn a_swapped_configmap_wakes() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for version in ["..v1", "..v2"] {
            std::fs::create_dir(at(version)).unwrap();
            std::fs::write(at(version).join("a.yaml"), version).unwrap();
        }
        std::os::unix::fs::symlink("..v1", at("..data")).unwrap();
        std::os::unix::fs::symlink("..data/a.yaml", at("a.yaml")).unwrap();
        let mut watch = Watch::new();
        watch.set([at("a.yaml").as_path()]);
        std::os::unix::fs::symlink("..v2", at("..data_tmp")).unwrap();
        std::fs::rename(at("..data_tmp"), at("..data")).unwrap();
        wakes(&mut watch).await;
        assert_eq!(std::fs::read_to_string(at("a.yaml")).unwrap(), "..v2");
    }

    #[tokio::test]
    async fn a_replaced_folder_wakes_and_is_watched_again() {
        let outer = tempfile::tempdir().unwrap();
        let (old, new) = (outer.path().join("peers"), outer.path().join("new"));
        std::fs::create_dir(&old).unwrap();
        std::fs::create_dir(&new).unwrap();
        let mut watch = Watch::new();
        watch.set([old.as_path()]);
        std::fs::rename(&old, outer.path().join("gone")).unwrap();
        std::fs::rename(&new, &old).unwrap();
        wakes(&mut watch).await;
        watch.set([old.as_path()]);
        std::fs::write(old.join("a.yaml"), "1").unwrap();
        wakes(&mut watch).await;
    }

    /// Named through a link, or by a relative path, a folder has two names, of which one ends with the file.
    #[tokio::test]
    async fn a_file_that_vanishes_and_returns_wakes_by_whatever_name() {
        let outer = tempfile::tempdir().unwrap();
        let (real, link) = (outer.path().join("real"), outer.path().join("link"));
        std::fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink("real", &link).unwrap();
        let (file, away) = (link.join("a.yaml"), outer.path().join("away"));
        std::fs::write(&file, "1").unwrap();
        let mut watch = Watch::new();
        watch.set([file.as_path()]);
        for _ in 0..3 {
            std::fs::rename(&file, &away).unwrap();
            wakes(&mut watch).await;
            watch.set([file.as_path()]);
            std::fs::rename(&away, &file).unwrap();
            wakes(&mut watch).await;
            watch.set([file.as_path()]);
        }
    }

    #[tokio::test]
    async fn a_waiter_that_is_interrupted_misses_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.yaml");
        let mut watch = Watch::new();
        watch.set([file.as_path()]);
        std::fs::write(&file, "1").unwrap();
        let interrupted = async { while timeout(Duration::from_millis(1), watch.changed()).await.is_err() {} };
        timeout(SOON, interrupted).await.expect("the notification was lost");
    }

    #[tokio::test(start_paused = true)]
    async fn without_notifications_there_is_a_poll() {
        let mut watch = Watch::new();
        let started = Instant::now();
        let interrupted = async { while timeout(Duration::from_secs(7), watch.changed()).await.is_err() {} };
        interrupted.await;
        assert!(started.elapsed() <= POLL + Duration::from_secs(1), "{:?}", started.elapsed());
    }

    #[tokio::test]
    async fn a_folder_that_appears_later_wakes() {
        let outer = tempfile::tempdir().unwrap();
        let peers = outer.path().join("peers");
        let mut watch = Watch::new();
        watch.set([peers.as_path()]);
        std::fs::create_dir(&peers).unwrap();
        wakes(&mut watch).await;
    }
}

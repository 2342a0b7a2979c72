//! Tells when files or folders may have changed.
//!
//! Editors replace files, Kubernetes swaps a symbolic link two levels up (`..data`), and either may
//! happen while we look. So folders are watched rather than files, the real ones as well as the
//! named ones; whoever waits here compares contents afterwards; and because notifications get lost
//! (network file systems, watch limits, folders that are replaced), there is a poll as well.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
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

/// Poll where the system gives no notifications, and where what was read last cannot be used.
const POLL_SOON: Duration = Duration::from_secs(2);

/// Most symbolic links on the way to a file, as Linux has it (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// Watches a set of files and folders.
pub struct Watch {
    watcher: Option<RecommendedWatcher>,
    /// Folders with a live watch, and which folder was behind the name then.
    folders: BTreeMap<PathBuf, Inode>,
    signal: Arc<Signal>,
    /// Whether every folder that matters has a live watch.
    notified: bool,
    hurry: bool,
    next_poll: Instant,
    /// When the change began that has not come to rest yet.
    pending: Option<Instant>,
}

type Inode = (u64, u64);

#[derive(Default)]
struct Signal {
    /// At most one permit is stored: any number of events is one wake-up.
    wake: Notify,
    matters: Mutex<Matters>,
    /// A watched folder was moved or removed: its watch may have ended, even if it is back by now.
    moved: AtomicBool,
}

#[derive(Default)]
struct Matters {
    /// Names that matter beside YAML files, since other things may be written in the same folders.
    names: BTreeSet<PathBuf>,
    /// Folders that are watched. Their own coming and going matters as well.
    folders: BTreeSet<PathBuf>,
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
                tracing::warn!(%error, poll = ?POLL_SOON, "no file notifications; polling instead");
                None
            }
        };
        let notified = watcher.is_some();
        let next_poll = Instant::now() + if notified { POLL } else { POLL_SOON };
        Self { watcher, folders: BTreeMap::new(), signal, notified, hurry: false, next_poll, pending: None }
    }

    /// Whether to look every 2 s, because what was read last cannot be used: whoever mends it waits for us.
    pub fn hurry(&mut self, hurry: bool) {
        self.hurry = hurry;
        self.next_poll = self.next_poll.min(Instant::now() + self.poll());
    }

    fn poll(&self) -> Duration {
        if self.notified && !self.hurry { POLL } else { POLL_SOON }
    }

    /// Watches `paths` and nothing else. To be called again after each change: the folders behind
    /// the names may be others now.
    pub fn set<'p>(&mut self, paths: impl IntoIterator<Item = &'p Path>) {
        let (mut names, mut folders) = (BTreeSet::new(), BTreeMap::new());
        for path in paths {
            // Events have absolute names, whatever the configuration says.
            let path = std::path::absolute(path).unwrap_or_else(|_no_working_directory| path.to_owned());
            for path in path.canonicalize().into_iter().chain(links(&path)).chain([path.clone()]) {
                add(path, &mut names, &mut folders);
            }
        }
        let matters = Matters { names, folders: folders.keys().cloned().collect() };
        *self.signal.matters.lock().unwrap_or_else(PoisonError::into_inner) = matters;
        let Some(watcher) = &mut self.watcher else { return };
        let all = self.signal.moved.swap(false, Ordering::Relaxed);
        let mut ended = BTreeSet::new();
        for (folder, inode) in &self.folders {
            if all || folders.get(folder) != Some(inode) {
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
                    tracing::warn!(folder = %folder.display(), %error, poll = ?POLL_SOON, "cannot watch; polling instead");
                    self.notified = false;
                    self.next_poll = Instant::now() + POLL_SOON;
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
                        self.next_poll = Instant::now() + self.poll();
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
        self.next_poll = Instant::now() + self.poll();
    }
}

impl Signal {
    fn event(&self, event: notify::Result<notify::Event>) {
        let relevant = match event {
            // Reading a file is an event too, and we read after every event.
            Ok(event) => is_change(event.kind) && (self.concerns(&event) || event.need_rescan()),
            Err(_) => true,
        };
        if relevant {
            self.wake.notify_one();
        }
    }

    fn concerns(&self, event: &notify::Event) -> bool {
        let yaml = |path: &Path| path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
        // ConfigMaps and Secrets: `..data` is the link that is swapped.
        let mount = |path: &Path| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".."));
        let matters = self.matters.lock().unwrap_or_else(PoisonError::into_inner);
        let moved = event.paths.iter().any(|path| matters.folders.contains(path));
        if moved {
            self.moved.store(true, Ordering::Relaxed);
        }
        moved || event.paths.iter().any(|path| yaml(path) || mount(path) || matters.names.contains(path))
    }
}

fn is_change(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
        EventKind::Access(_) => false,
        EventKind::Any | EventKind::Create(_) | EventKind::Modify(_) | EventKind::Remove(_) | EventKind::Other => true,
    }
}

/// Adds the folder itself if `path` is one, and the nearest folder above it that exists, with the name in it that leads
/// to `path`: that is where its replacement shows.
fn add(path: PathBuf, names: &mut BTreeSet<PathBuf>, folders: &mut BTreeMap<PathBuf, Inode>) {
    let inode = |path: &Path| {
        let metadata = std::fs::metadata(path).ok()?;
        metadata.is_dir().then(|| (metadata.dev(), metadata.ino()))
    };
    if let Some(inode) = inode(&path) {
        folders.insert(path.clone(), inode);
    }
    let mut below = path.as_path();
    while let Some(above) = below.parent() {
        if let Some(inode) = inode(above) {
            folders.insert(above.to_owned(), inode);
            names.insert(below.to_owned());
            break;
        }
        below = above;
    }
    names.insert(path);
}

/// The symbolic links on the way along `path`, by the real names of their folders: whoever swaps one of them changes
/// what `path` leads to.
fn links(path: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut real = PathBuf::new();
    let parts = |path: &Path| path.iter().map(ToOwned::to_owned).rev().collect::<Vec<_>>();
    let mut ahead = parts(path);
    while let Some(part) = ahead.pop() {
        if part == ".." {
            real.pop();
            continue;
        }
        // The root, where a link's target begins with it, replaces everything.
        real.push(part);
        let Ok(target) = real.read_link() else { continue };
        if found.len() == MAX_LINKS {
            break;
        }
        found.push(real.clone());
        real.pop();
        ahead.extend(parts(&target));
    }
    found
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

    /// In the working directory of the tests, so that the path is relative: nobody else can be given one.
    #[tokio::test]
    async fn by_a_relative_path_a_swapped_link_and_a_folder_that_returns_wake() {
        let folder = tempfile::tempdir_in(".").unwrap();
        let name = PathBuf::from(folder.path().file_name().unwrap());
        let at = |file: &str| name.join(file);
        for version in ["v1", "v2"] {
            std::fs::create_dir(at(version)).unwrap();
        }
        let link = std::os::unix::fs::symlink::<&str, PathBuf>;
        link("v1", at("policies")).unwrap();
        let mut watch = Watch::new();
        watch.set([at("policies").as_path()]);
        for version in ["v2", "v1"] {
            link(version, at("new")).unwrap();
            std::fs::rename(at("new"), at("policies")).unwrap();
            wakes(&mut watch).await;
            watch.set([at("policies").as_path()]);
        }
        let mut watch = Watch::new();
        watch.set([at("v2").as_path()]);
        std::fs::rename(at("v2"), at("away")).unwrap();
        wakes(&mut watch).await;
        watch.set([at("v2").as_path()]);
        std::fs::rename(at("away"), at("v2")).unwrap();
        wakes(&mut watch).await;
        watch.set([at("v2").as_path()]);
        std::fs::write(at("v2/a.yaml"), "1").unwrap();
        wakes(&mut watch).await;
    }

    /// A release is often a folder, and a link to it is what is swapped.
    #[tokio::test]
    async fn links_above_and_between_are_followed() {
        let outer = tempfile::tempdir().unwrap();
        let at = |name: &str| outer.path().join(name);
        for file in ["releases/1/policies", "releases/2/policies", "configuration"] {
            std::fs::create_dir_all(at(file)).unwrap();
        }
        let link = std::os::unix::fs::symlink::<&str, PathBuf>;
        link("releases/1", at("current")).unwrap();
        link("../current/policies", at("configuration/policies")).unwrap();
        let mut watch = Watch::new();
        watch.set([at("configuration/policies").as_path()]);
        link("releases/2", at("next")).unwrap();
        std::fs::rename(at("next"), at("current")).unwrap();
        wakes(&mut watch).await;
        watch.set([at("configuration/policies").as_path()]);
        std::fs::write(at("releases/2/policies/a.yaml"), "1").unwrap();
        wakes(&mut watch).await;
    }

    #[tokio::test]
    async fn a_folder_that_was_away_for_a_moment_is_watched_again() {
        let outer = tempfile::tempdir().unwrap();
        let (peers, away) = (outer.path().join("peers"), outer.path().join("away"));
        std::fs::create_dir(&peers).unwrap();
        let mut watch = Watch::new();
        watch.set([peers.as_path()]);
        std::fs::rename(&peers, &away).unwrap();
        std::fs::rename(&away, &peers).unwrap();
        wakes(&mut watch).await;
        watch.set([peers.as_path()]);
        std::fs::write(peers.join("a.yaml"), "1").unwrap();
        wakes(&mut watch).await;
    }

    #[test]
    fn links_that_lead_in_a_circle_end() {
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("b", folder.path().join("a")).unwrap();
        std::os::unix::fs::symlink("a", folder.path().join("b")).unwrap();
        assert_eq!(links(&folder.path().canonicalize().unwrap().join("a")).len(), MAX_LINKS);
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

    #[tokio::test(start_paused = true)]
    async fn in_a_hurry_the_poll_is_soon() {
        let mut watch = Watch::new();
        let started = Instant::now();
        watch.hurry(true);
        watch.changed().await;
        watch.changed().await;
        assert_eq!(started.elapsed().as_secs(), 2 * POLL_SOON.as_secs());
        watch.hurry(false);
        let started = Instant::now();
        watch.changed().await;
        watch.changed().await;
        assert!(started.elapsed() >= POLL, "{:?}", started.elapsed());
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

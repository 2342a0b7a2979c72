//! The folder of a cluster registry: `kind: Cluster` files (clusterregistry.k8s.io/v1alpha1), one per API server, each
//! with the path of a kubeconfig.
//!
//! A file with a mistake changes nothing about its cluster (invariant I11), and a folder that cannot be read nothing
//! about any (I4); a file that is gone takes its cluster with it. What a kubeconfig says is the caller's business: it
//! opens them, so that a mistake in one is told at the line that names it.

mod file;

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use file::{ALLOW_EXEC, API_VERSION, CONTEXT, Reference, Refusal};

use crate::diagnostic::{Code, Diagnostic, Diagnostics, Severity};
use crate::watch::Watch;
use crate::yaml::{self, MAX_CONFIG_BYTES};

/// Most files of a folder: one with more was not meant.
const MAX_FILES: usize = 1000;

/// What the files say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed<T> {
    /// What was made of each cluster's kubeconfig, by name. Of a file that has become wrong, what was made before.
    pub clusters: BTreeMap<Arc<str>, T>,
    /// What is wrong.
    pub errors: Vec<Diagnostic>,
}

/// A cluster and the files that it depends on, beside its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened<T> {
    /// What the caller makes of a kubeconfig.
    pub value: T,
    /// The kubeconfig and what it names: when one changes, it is opened again.
    pub files: Vec<PathBuf>,
}

/// Reads a folder once.
pub fn load<T: Clone>(folder: &Path, open: &dyn Fn(&Reference) -> Result<Opened<T>, Refusal>) -> Listed<T> {
    Files::new(folder.to_owned()).read(open).1
}

/// Follows a folder until `cancel`; `open` makes something of a kubeconfig. It blocks: kubeconfigs are small.
pub async fn follow<T, F>(
    folder: PathBuf,
    open: F,
    latest: watch::Sender<Option<Arc<Listed<T>>>>,
    cancel: CancellationToken,
) where
    T: Clone + PartialEq + Send + Sync + 'static,
    F: Fn(&Reference) -> Result<Opened<T>, Refusal> + Send + Sync + 'static,
{
    let mut files = Files::new(folder);
    let mut watch = Watch::new();
    let open = Arc::new(open);
    loop {
        // Watched first: a change while it is read is seen as another one.
        let paths = files.watched();
        watch.set(paths.iter().map(PathBuf::as_path));
        let (moved, opener) = (files, Arc::clone(&open));
        let Ok(read) = tokio::task::spawn_blocking(move || moved.read(&*opener)).await else { return };
        let (now, listed) = read;
        files = now;
        latest.send_if_modified(|before| {
            let changed = before.as_deref() != Some(&listed);
            if changed {
                log(before.as_deref(), &listed);
                *before = Some(Arc::new(listed));
            }
            changed
        });
        if files.watched() == paths && cancel.run_until_cancelled(watch.changed()).await.is_none() {
            return;
        }
    }
}

fn log<T>(before: Option<&Listed<T>>, now: &Listed<T>) {
    let known = |error: &Diagnostic| before.is_some_and(|before| before.errors.contains(error));
    for error in now.errors.iter().filter(|error| !known(error)) {
        tracing::error!("{} (what ran before goes on)", error.headline());
    }
}

/// The folder, as it was read last.
#[derive(Debug)]
struct Files<T> {
    folder: PathBuf,
    /// By file.
    known: BTreeMap<PathBuf, Known<T>>,
    listing_error: Option<Diagnostic>,
}

#[derive(Debug)]
struct Known<T> {
    /// Its last good version.
    good: Option<(Arc<str>, Opened<T>)>,
    /// What is wrong with the version on disk.
    errors: Vec<Diagnostic>,
    /// The kubeconfig of the version on disk, when it can be told.
    kubeconfig: Option<PathBuf>,
}

impl<T: Clone> Files<T> {
    fn new(folder: PathBuf) -> Self {
        Self { folder, known: BTreeMap::new(), listing_error: None }
    }

    /// All that a change can come from.
    fn watched(&self) -> Vec<PathBuf> {
        let mut paths = vec![self.folder.clone()];
        for known in self.known.values() {
            paths.extend(known.good.iter().flat_map(|(_, opened)| &opened.files).cloned());
            paths.extend(known.kubeconfig.clone());
        }
        paths.sort();
        paths.dedup();
        paths
    }

    fn read(mut self, open: &dyn Fn(&Reference) -> Result<Opened<T>, Refusal>) -> (Self, Listed<T>) {
        match list(&self.folder) {
            Ok(paths) => {
                self.listing_error = None;
                self.known.retain(|path, _| paths.contains(path));
                for path in paths {
                    self.read_file(&path, open);
                }
            }
            Err(error) => self.listing_error = Some(*error),
        }
        let listed = self.listed();
        (self, listed)
    }

    fn read_file(&mut self, path: &Path, open: &dyn Fn(&Reference) -> Result<Opened<T>, Refusal>) {
        let known =
            self.known.entry(path.to_owned()).or_insert(Known { good: None, errors: Vec::new(), kubeconfig: None });
        let mut sink = Diagnostics::new();
        let source = yaml::read_file(path, MAX_CONFIG_BYTES).map_err(|error| sink.push(*error));
        let read = source.ok().and_then(|source| file::read(path, &source, open, &mut sink));
        if let Some((_, reference, _)) = &read {
            known.kubeconfig = Some(reference.kubeconfig.clone());
        }
        let errors = sink.has_errors();
        known.errors = sink.iter().filter(|error| error.is_error()).cloned().collect();
        if let (Some((name, _, Some(opened))), false) = (read, errors) {
            known.good = Some((name, opened));
        }
    }

    fn listed(&self) -> Listed<T> {
        let mut errors: Vec<Diagnostic> = self.listing_error.iter().cloned().collect();
        let mut clusters: BTreeMap<Arc<str>, T> = BTreeMap::new();
        let mut files: BTreeMap<&str, &Path> = BTreeMap::new();
        for (path, known) in &self.known {
            errors.extend(known.errors.iter().cloned());
            let Some((name, opened)) = &known.good else { continue };
            if let Some(first) = files.get(&**name) {
                let message = format!("cluster {name} is in {} already", first.display());
                let error = Diagnostic::of_file(Severity::Error, Code::Duplicate, path.display().to_string(), message);
                errors.push(
                    error.with_path("metadata.name").with_help("give each cluster one file and a name of its own"),
                );
                continue;
            }
            files.insert(name, path);
            clusters.insert(Arc::clone(name), opened.value.clone());
        }
        Listed { clusters, errors }
    }
}

/// The YAML files of a folder, sorted. Hidden ones are left out: editors keep drafts in them, and Kubernetes the versions
/// of a mounted Secret.
fn list(folder: &Path) -> Result<Vec<PathBuf>, Box<Diagnostic>> {
    let name = folder.display().to_string();
    let failed = |error: std::io::Error| {
        let reason = if error.kind() == ErrorKind::NotADirectory {
            "it is not a folder".to_owned()
        } else {
            yaml::reason(&error)
        };
        Box::new(yaml::unreadable(&name, &reason).with_help("make the folder; it may be empty"))
    };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let hidden = path.file_name().and_then(|name| name.to_str()).is_none_or(|name| name.starts_with('.'));
        let yaml = path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
        if yaml && !hidden {
            paths.push(path);
        }
        if paths.len() > MAX_FILES {
            let message = format!("has more than {MAX_FILES} files");
            return Err(Box::new(Diagnostic::of_file(Severity::Error, Code::TooLarge, name, message)));
        }
    }
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests;

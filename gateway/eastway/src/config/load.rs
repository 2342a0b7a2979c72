//! Reads a configuration file and the folders it names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use eastway_kubernetes::objects::ObjectKey;
use eastway_model::rules::Rules;
use eastway_model::{ClusterName, UnixMillis};
use eastway_registry::diagnostic::{Code, Diagnostic, Diagnostics, Severity, Source};
use eastway_registry::yaml::{self, Context, MAX_CONFIG_BYTES};
use sha2::{Digest as _, Sha256};

use super::file::{GatewayConfig, Peer};
use super::peer::{self, PeerSettings, PlacedPeer};
use super::policy::{self, Policies};
use super::settings::{self, Folder, Settings};
use super::{across, fixed};

/// Most files of one folder.
const MAX_FILES: usize = 10_000;
/// How many that are not read are named.
const SHOWN: usize = 3;

/// A configuration without errors.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The gateway's own settings.
    pub settings: Arc<Settings>,
    /// The Peers.
    pub peers: BTreeMap<ClusterName, Arc<PeerSettings>>,
    /// Traffic and access policies.
    pub policies: Arc<Policies>,
    /// What is probably not meant as it is.
    pub warnings: Diagnostics,
    /// Objects of the API server that cannot be used, and why.
    pub refused: Arc<BTreeMap<ObjectKey, String>>,
    /// All Peers are known: those that are objects too.
    pub complete: bool,
    /// The Peers of the files, with their places.
    pub(super) placed: Arc<[Arc<PlacedPeer>]>,
    /// The policies of the files, with their places.
    pub(super) collected: Arc<policy::Collected>,
    /// Of everything that was read.
    pub(super) digest: Digest,
}

/// SHA-256 of names and contents of all files, and of why others could not be read.
pub(super) type Digest = [u8; 32];

impl Loaded {
    /// What the store decides by. `accepted_at` tells when a Peer was first configured.
    pub fn rules(&self, mut accepted_at: impl FnMut(&ClusterName) -> UnixMillis) -> Rules {
        let peers = self.peers.iter().map(|(name, peer)| (name.clone(), Arc::new(peer.rules(accepted_at(name)))));
        Rules {
            peers: peers.collect(),
            traffic: self.policies.traffic.clone(),
            routes: Arc::clone(&self.policies.routes),
            access: self.policies.access.clone(),
            access_mode: self.settings.authorization,
            visibility: Arc::clone(&self.policies.visibility),
            names: self.settings.dns.names.clone(),
        }
    }
}

/// A configuration that cannot be used, and all that is wrong with it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigErrors(pub Diagnostics);

/// Reads and checks everything.
///
/// # Errors
/// [`ConfigErrors`] has all errors of all files, and the warnings.
pub fn load(path: &Path) -> Result<Loaded, ConfigErrors> {
    let mut loader = Loader::new(None);
    let loaded = loader.all(path);
    loader.finish(loaded).1
}

/// Reads and checks the gateway's own file alone: not the folders that it names, whose mistakes do not concern who
/// needs only a name, a trust domain or an address.
///
/// # Errors
/// [`ConfigErrors`] has all errors of that file, and the warnings.
pub fn load_settings(path: &Path) -> Result<Settings, ConfigErrors> {
    let mut loader = Loader::new(None);
    match loader.settings(path) {
        Some((Some(settings), _)) if !loader.sink.has_errors() => Ok(settings),
        _ => {
            loader.sink.sort();
            Err(ConfigErrors(loader.sink))
        }
    }
}

/// As [`load_settings`], for a text that is not in a file here; `name` stands for it in messages.
///
/// # Errors
/// [`ConfigErrors`]
pub fn settings_of_text(name: &str, text: String) -> Result<Settings, ConfigErrors> {
    let mut loader = Loader::new(None);
    let source = Arc::new(Source::new(name, text));
    match loader.settings_of(Path::new(name), &source) {
        Some((Some(settings), _)) if !loader.sink.has_errors() => Ok(settings),
        _ => {
            loader.sink.sort();
            Err(ConfigErrors(loader.sink))
        }
    }
}

/// Reads and checks everything, to take over from `running`: what cannot change without a restart
/// is as it runs.
pub(super) fn reload(path: &Path, running: &Loaded) -> (Digest, Result<Loaded, ConfigErrors>) {
    let mut loader = Loader::new(Some(running));
    let loaded = loader.all(path);
    loader.finish(loaded)
}

struct Loader<'r> {
    running: Option<&'r Loaded>,
    sink: Diagnostics,
    read: Sha256,
}

impl<'r> Loader<'r> {
    fn new(running: Option<&'r Loaded>) -> Self {
        Self { running, sink: Diagnostics::new(), read: Sha256::new() }
    }

    fn finish(self, loaded: Option<Loaded>) -> (Digest, Result<Loaded, ConfigErrors>) {
        let digest: Digest = self.read.finalize().into();
        let mut warnings = self.sink;
        warnings.sort();
        let result = match loaded {
            Some(loaded) if !warnings.has_errors() => Ok(Loaded { warnings, digest, ..loaded }),
            _ => Err(ConfigErrors(warnings)),
        };
        (digest, result)
    }

    fn all(&mut self, path: &Path) -> Option<Loaded> {
        let (settings, (peers, policies)) = self.settings(path)?;
        let peers = self.files(&peers);
        let placed: Arc<[_]> = peers.iter().filter_map(|path| self.peer(path).map(Arc::new)).collect();
        let mut collected = policy::Collected::default();
        let files = self.files(&policies);
        self.others(&policies.path);
        for path in files {
            let Some(source) = self.file(&path) else { continue };
            for document in yaml::read(&source, &mut self.sink) {
                collected.document(document, policy::Reach::Any, &mut self.sink);
            }
        }
        across::check(settings.as_ref(), &placed, &collected, &mut self.sink);
        let peers = placed.iter().map(|peer| (peer.settings.name.clone(), Arc::new(peer.settings.clone()))).collect();
        let collected = Arc::new(collected);
        Some(Loaded {
            settings: Arc::new(settings?),
            peers,
            policies: Arc::new(policy::Collected::clone(&collected).finish()),
            warnings: Diagnostics::new(),
            refused: Arc::default(),
            complete: true,
            placed,
            collected,
            digest: Digest::default(),
        })
    }

    fn settings(&mut self, path: &Path) -> Option<(Option<Settings>, (Folder, Folder))> {
        let source = self.file(path)?;
        self.settings_of(path, &source)
    }

    fn settings_of(&mut self, path: &Path, source: &Arc<Source>) -> Option<(Option<Settings>, (Folder, Folder))> {
        let document = yaml::read_one(source, "GatewayConfig", &mut self.sink)?;
        let config: GatewayConfig = document.decode(&mut self.sink)?;
        let mut cx = Context::new(&document, &mut self.sink);
        cx.header(cx.root(), &config.api_version, &config.kind, "GatewayConfig");
        let folders = settings::folders(path, &config, &mut cx);
        let settings = settings::convert(path, &config, folders.clone(), &mut cx);
        let settings = match (settings, self.running) {
            (Some(settings), Some(running)) => Some(fixed::keep(&running.settings, settings, &document, &mut cx)),
            (settings, _) => settings,
        };
        Some((settings, folders))
    }

    fn peer(&mut self, path: &Path) -> Option<PlacedPeer> {
        let source = self.file(path)?;
        let document = yaml::read_one(&source, "Peer", &mut self.sink)?;
        let peer: Peer = document.decode(&mut self.sink)?;
        peer::convert(path, &peer, &mut Context::new(&document, &mut self.sink))
    }

    fn file(&mut self, path: &Path) -> Option<Arc<Source>> {
        self.read.update(path.as_os_str().as_encoded_bytes());
        let source = yaml::read_file(path, MAX_CONFIG_BYTES);
        match source {
            Ok(source) => {
                self.read.update([0]);
                self.read.update(Sha256::digest(source.text()));
                Some(source)
            }
            Err(diagnostic) => {
                self.read.update([1]);
                self.read.update(Sha256::digest(&diagnostic.message));
                self.sink.push(*diagnostic);
                None
            }
        }
    }

    /// The YAML files of a folder, sorted. Hidden ones are left out: editors keep drafts in them,
    /// and Kubernetes the versions of a mounted ConfigMap.
    fn files(&mut self, folder: &Folder) -> Vec<PathBuf> {
        self.read.update(folder.path.as_os_str().as_encoded_bytes());
        match list(&folder.path) {
            Ok(paths) if paths.len() > MAX_FILES => {
                self.folder_error(folder, Code::TooLarge, format!("has more than {MAX_FILES} files"));
                Vec::new()
            }
            Ok(paths) => paths,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !self.is_needed(folder) => Vec::new(),
            Err(error) => {
                let is_file = error.kind() == std::io::ErrorKind::NotADirectory;
                let reason = if is_file { "it is not a folder".to_owned() } else { yaml::reason(&error) };
                self.folder_error(folder, Code::Unreadable, format!("cannot read: {reason}"));
                Vec::new()
            }
        }
    }

    /// Tells of what lies in a folder and is not read. What is hidden is meant not to be.
    fn others(&mut self, folder: &Path) {
        // That it cannot be read is said where its files are looked for.
        let Ok(entries) = std::fs::read_dir(folder) else { return };
        let paths = entries.take(MAX_FILES).flatten().map(|entry| entry.path()).filter(|path| !is_yaml(path));
        let names = paths.filter_map(|path| path.file_name()?.to_str().map(str::to_owned));
        let mut names: Vec<String> = names.filter(|name| !name.starts_with('.')).collect();
        names.sort();
        let verb = match names.len() {
            0 => return,
            1 => "is",
            _ => "are",
        };
        let shown = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
        let more = if names.len() > SHOWN { ", …" } else { "" };
        let message = format!("{} {verb} not read: {shown}{more}", names.len());
        self.read.update(&message);
        let help = "what is read are files *.yaml and *.yml in this folder itself";
        let file = folder.display().to_string();
        self.sink.push(Diagnostic::of_file(Severity::Warning, Code::Kind, file, message).with_help(help));
    }

    fn folder_error(&mut self, folder: &Folder, code: Code, message: String) {
        self.read.update(&message);
        let file = folder.path.display().to_string();
        self.sink.push(Diagnostic::of_file(Severity::Error, code, file, message));
    }

    /// A folder that is configured has to be there; and one that had files cannot just be gone
    /// (invariant I4: nothing is deleted because it is missing).
    fn is_needed(&self, folder: &Folder) -> bool {
        let had_peers = |running: &Loaded| running.settings.peers.path == folder.path && !running.peers.is_empty();
        let had_policies = |running: &Loaded| {
            running.settings.policies.path == folder.path && *running.policies != Policies::default()
        };
        folder.required || self.running.is_some_and(|running| had_peers(running) || had_policies(running))
    }
}

fn list(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if is_yaml(&path) {
            paths.push(path);
        }
        if paths.len() > MAX_FILES {
            break;
        }
    }
    paths.sort();
    Ok(paths)
}

fn is_yaml(path: &Path) -> bool {
    let hidden = path.file_name().and_then(|name| name.to_str()).is_none_or(|name| name.starts_with('.'));
    !hidden && path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml")
}

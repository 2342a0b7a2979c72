//! Reads a configuration file and the folders it names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use eastway_model::rules::Rules;
use eastway_model::{ClusterName, UnixMillis};
use eastway_registry::diagnostic::{Code, Diagnostic, Diagnostics, Severity};
use eastway_registry::yaml::{self, Context, MAX_CONFIG_BYTES};

use super::across;
use super::file::{GatewayConfig, Peer};
use super::peer::{self, PeerSettings, PlacedPeer};
use super::policy::{self, Policies};
use super::settings::{self, Folder, Settings};

/// Most files of one folder.
const MAX_FILES: usize = 10_000;

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
}

impl Loaded {
    /// What the store decides by. `accepted_at` tells when a Peer was first configured.
    pub fn rules(&self, mut accepted_at: impl FnMut(&ClusterName) -> UnixMillis) -> Rules {
        let peers = self.peers.iter().map(|(name, peer)| (name.clone(), Arc::new(peer.rules(accepted_at(name)))));
        Rules {
            peers: peers.collect(),
            traffic: self.policies.traffic.clone(),
            access: self.policies.access.clone(),
            access_mode: self.settings.authorization,
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
    let mut sink = Diagnostics::new();
    let loaded = load_all(path, &mut sink);
    sink.sort();
    match loaded {
        Some(loaded) if !sink.has_errors() => Ok(Loaded { warnings: sink, ..loaded }),
        _ => Err(ConfigErrors(sink)),
    }
}

fn load_all(path: &Path, sink: &mut Diagnostics) -> Option<Loaded> {
    let settings = load_settings(path, sink)?;
    let peers: Vec<PlacedPeer> = files(&settings.peers, sink).iter().filter_map(|path| load_peer(path, sink)).collect();
    let mut policies = policy::Collected::default();
    for path in files(&settings.policies, sink) {
        for document in read(&path, sink).map(|source| yaml::read(&source, sink)).unwrap_or_default() {
            policies.document(&document, sink);
        }
    }
    across::check(&settings, &peers, &policies, sink);
    let peers = peers.into_iter().map(|peer| (peer.settings.name.clone(), Arc::new(peer.settings)));
    Some(Loaded {
        settings: Arc::new(settings),
        peers: peers.collect(),
        policies: Arc::new(policies.finish()),
        warnings: Diagnostics::new(),
    })
}

fn load_settings(path: &Path, sink: &mut Diagnostics) -> Option<Settings> {
    let document = yaml::read_one(&read(path, sink)?, "GatewayConfig", sink)?;
    let config: GatewayConfig = document.decode(sink)?;
    let mut cx = Context::new(&document, sink);
    cx.header(cx.root(), &config.api_version, &config.kind, "GatewayConfig");
    settings::convert(path, &config, &mut cx)
}

fn load_peer(path: &Path, sink: &mut Diagnostics) -> Option<PlacedPeer> {
    let document = yaml::read_one(&read(path, sink)?, "Peer", sink)?;
    let peer: Peer = document.decode(sink)?;
    peer::convert(path, &peer, &mut Context::new(&document, sink))
}

fn read(path: &Path, sink: &mut Diagnostics) -> Option<Arc<eastway_registry::diagnostic::Source>> {
    yaml::read_file(path, MAX_CONFIG_BYTES).map_err(|diagnostic| sink.push(*diagnostic)).ok()
}

/// The YAML files of a folder, sorted. Hidden ones are left out: editors keep drafts in them, and
/// Kubernetes the versions of a mounted ConfigMap.
fn files(folder: &Folder, sink: &mut Diagnostics) -> Vec<PathBuf> {
    let name = folder.path.display().to_string();
    let entries = match std::fs::read_dir(&folder.path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !folder.required => return Vec::new(),
        Err(error) => {
            let message = format!("cannot read: {}", yaml::reason(&error));
            sink.push(Diagnostic::of_file(Severity::Error, Code::Unreadable, name, message));
            return Vec::new();
        }
    };
    let mut paths = Vec::new();
    for entry in entries {
        match entry {
            Ok(entry) if is_yaml(&entry.path()) => paths.push(entry.path()),
            Ok(_) => {}
            Err(error) => {
                let message = format!("cannot read: {}", yaml::reason(&error));
                sink.push(Diagnostic::of_file(Severity::Error, Code::Unreadable, name.clone(), message));
                return Vec::new();
            }
        }
        if paths.len() > MAX_FILES {
            let message = format!("has more than {MAX_FILES} files");
            sink.push(Diagnostic::of_file(Severity::Error, Code::TooLarge, name, message));
            return Vec::new();
        }
    }
    paths.sort();
    paths
}

fn is_yaml(path: &Path) -> bool {
    let hidden = path.file_name().and_then(|name| name.to_str()).is_none_or(|name| name.starts_with('.'));
    !hidden && path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml")
}

//! Peers, policies and routes that are objects of an API server, beside those in files.
//!
//! They are read by the same strict reader. A file with a mistake refuses the whole configuration, because whoever
//! writes files sees it at once; an object with a mistake is left out alone, and its last good version stays
//! (invariant I11), because many people write objects. Files count first: an object can contradict neither a file nor
//! an object that was taken before; of those that are new together the order of kind and name decides.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use eastway_kubernetes::objects::{Kind, ObjectKey, Objects};
use eastway_registry::diagnostic::{Diagnostic, Diagnostics, Source};
use eastway_registry::yaml::{self, Context};

use super::across;
use super::file;
use super::load::Loaded;
use super::peer::{self, PlacedPeer};
use super::policy::{Collected, Reach};

/// Merges objects into what files say.
#[derive(Debug, Default)]
pub struct Overlay {
    /// The text of each object that was taken last.
    good: BTreeMap<ObjectKey, Arc<str>>,
}

impl Overlay {
    /// What files and objects say together. `live`: the objects are those of the API server, and not only what was
    /// known of them at the last run.
    pub fn merge(&mut self, files: &Loaded, objects: &Objects, live: bool) -> Loaded {
        let mut merged = Merge {
            loaded: files,
            peers: files.placed.iter().map(Arc::clone).collect(),
            collected: Collected::clone(&files.collected),
        };
        let mut refused = BTreeMap::new();
        self.good.retain(|key, _| objects.contains_key(key));
        // Whoever adds an object cannot take the place of one that works (fault F36).
        let (known, new): (Vec<_>, Vec<_>) = objects.iter().partition(|(key, _)| self.good.contains_key(*key));
        for (key, text) in known.into_iter().chain(new) {
            match merged.take(key, text) {
                Ok(()) => drop(self.good.insert(key.clone(), Arc::clone(text))),
                Err(mut reason) => {
                    let last = self.good.get(key).cloned().filter(|last| last != text);
                    match last.map(|last| merged.take(key, &last)) {
                        Some(Ok(())) => reason.push_str(" (its last good version stays)"),
                        Some(Err(_)) | None => drop(self.good.remove(key)),
                    }
                    refused.insert(key.clone(), reason);
                }
            }
        }
        let peers = merged.peers.iter().map(|peer| (peer.settings.name.clone(), Arc::new(peer.settings.clone())));
        Loaded {
            peers: peers.collect(),
            policies: Arc::new(merged.collected.finish()),
            refused: Arc::new(refused),
            complete: live,
            ..files.clone()
        }
    }
}

struct Merge<'a> {
    loaded: &'a Loaded,
    peers: Vec<Arc<PlacedPeer>>,
    collected: Collected,
}

impl Merge<'_> {
    /// Takes one object; on an error nothing of it is taken, and the first mistake is told.
    fn take(&mut self, key: &ObjectKey, text: &str) -> Result<(), String> {
        let mut sink = Diagnostics::new();
        if text.len() > yaml::MAX_CONFIG_BYTES {
            return Err(format!("{key}: is too large"));
        }
        let source = Arc::new(Source::new(key.to_string(), text));
        let Some(document) = yaml::read_one(&source, "object", &mut sink) else { return first(key, &sink) };
        match key.kind {
            Kind::Peer => {
                let Some(peer) = document.decode::<file::Peer>(&mut sink) else { return first(key, &sink) };
                let path = Path::new(source.name());
                let peer = peer::convert(path, &peer, &mut Context::new(&document, &mut sink));
                let (Some(peer), false) = (peer, sink.has_errors()) else { return first(key, &sink) };
                self.peers.push(Arc::new(peer));
                across::check(Some(&self.loaded.settings), &self.peers, &Collected::default(), &mut sink);
                if sink.has_errors() {
                    self.peers.pop();
                    return first(key, &sink);
                }
            }
            Kind::AccessPolicy
            | Kind::TrafficPolicy
            | Kind::Visibility
            | Kind::ServiceShare
            | Kind::HttpRoute
            | Kind::GrpcRoute
            | Kind::TcpRoute
            | Kind::TlsRoute
            | Kind::VirtualService
            | Kind::DestinationRule => {
                let before = self.collected.clone();
                let system = self.loaded.settings.system_namespace();
                let reach = if key.namespace == system { Reach::Any } else { Reach::Own };
                self.collected.document(document, reach, &mut sink);
                if sink.has_errors() {
                    self.collected = before;
                    return first(key, &sink);
                }
            }
        }
        Ok(())
    }
}

/// The first mistake; its place begins with the object's name.
fn first(key: &ObjectKey, sink: &Diagnostics) -> Result<(), String> {
    let error = sink.iter().find(|each| each.is_error()).map(Diagnostic::headline);
    Err(error.unwrap_or_else(|| format!("{key}: cannot be read")))
}

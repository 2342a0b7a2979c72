//! The answer to "can this file be used?".

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use eastway_identity::crl::{self, CrlError};
use eastway_model::ClusterName;
use eastway_registry::diagnostic::{Code, Diagnostic, Diagnostics, Severity, Source};
use eastway_registry::file as service_file;
use eastway_registry::yaml::{self, Context};
use serde::Serialize;

use super::file::{GatewayConfig, Peer};
use super::load::{ConfigErrors, Loaded, load};
use super::peer::{self, PeerSettings};
use super::settings::{ClusterPlace, RegistrySource};
use super::{KINDS, istio, policy, settings, sidecar};

/// What was found.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The file.
    pub file: String,
    /// Its kind, if that can be told; for a file of several policies that of the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<&'static str>,
    /// Whether there is no error.
    pub usable: bool,
    /// What a usable GatewayConfig adds up to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub summary: Option<Summary>,
    /// Errors.
    pub errors: usize,
    /// Warnings.
    pub warnings: usize,
    /// All of them, by file and place.
    pub diagnostics: Vec<Diagnostic>,
    /// How many more there are.
    pub omitted: usize,
}

/// What a configuration adds up to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// This cluster.
    pub cluster: ClusterName,
    /// How many Peers it has.
    pub peers: usize,
    /// How many traffic and access policies.
    pub policies: usize,
    /// How many routes.
    pub routes: usize,
    /// How many services its registries have.
    pub services: usize,
}

/// Checks a file of any kind. With a GatewayConfig goes everything that a gateway reads at its start:
/// Peers, policies, revocation lists, and the service files of its registries, which a running
/// gateway follows one by one. A file of another kind is checked by itself.
#[must_use]
pub fn check(path: &Path) -> Report {
    let alone = match yaml::read_file(path, service_file::MAX_BYTES) {
        Ok(source) => match kind_of(&source) {
            None | Some("GatewayConfig") => None,
            Some(kind) if kind != "ServiceList" && source.text().len() > yaml::MAX_CONFIG_BYTES => {
                let mut sink = Diagnostics::new();
                sink.push(yaml::too_large(source.name(), yaml::MAX_CONFIG_BYTES));
                Some((kind, sink))
            }
            Some(kind) => Some((kind, check_source(kind, path, &source))),
        },
        // Said again, and in the right words, by what follows.
        Err(_) => None,
    };
    match alone {
        Some((kind, sink)) => Report::new(path, Some(kind), None, sink),
        None => check_gateway(path),
    }
}

/// Checks a file as that of a sidecar, whatever it says it is.
#[must_use]
pub fn check_sidecar(path: &Path) -> Report {
    let sink = match yaml::read_file(path, yaml::MAX_CONFIG_BYTES) {
        Ok(source) => check_source(sidecar::KIND, path, &source),
        Err(diagnostic) => {
            let mut sink = Diagnostics::new();
            sink.push(*diagnostic);
            sink
        }
    };
    Report::new(path, Some(sidecar::KIND), None, sink)
}

/// Checks a text as a file of whatever kind it says, with nothing around it.
#[must_use]
pub fn check_text(name: &str, text: &str) -> Report {
    let source = Arc::new(Source::new(name, text));
    let kind = kind_of(&source);
    let sink = check_source(kind.unwrap_or("GatewayConfig"), Path::new(name), &source);
    Report::new(Path::new(name), kind, None, sink)
}

/// Reads one Peer file by itself, without the configuration that it is for.
///
/// # Errors
/// All that is wrong with it, and the warnings.
pub fn check_peer(path: &Path) -> Result<(PeerSettings, Diagnostics), Diagnostics> {
    let mut sink = Diagnostics::new();
    let source = match yaml::read_file(path, yaml::MAX_CONFIG_BYTES) {
        Ok(source) => source,
        Err(diagnostic) => {
            sink.push(*diagnostic);
            return Err(sink);
        }
    };
    let peer = peer_settings(path, &source, &mut sink);
    sink.sort();
    match peer {
        Some(peer) if !sink.has_errors() => Ok((peer, sink)),
        _ => Err(sink),
    }
}

fn check_gateway(path: &Path) -> Report {
    let loaded = match load(path) {
        Ok(loaded) => loaded,
        Err(ConfigErrors(errors)) => return Report::new(path, Some("GatewayConfig"), None, errors),
    };
    let mut sink = loaded.warnings.clone();
    let services = check_services(&loaded, &mut sink);
    if let Some(file) = &loaded.settings.trust.crl
        && let Err(error) = crl::load(file)
    {
        let (code, message) = match error {
            CrlError::Read { reason, .. } => (Code::Unreadable, format!("cannot read: {reason}")),
            CrlError::TooLarge { .. } => (Code::TooLarge, "larger than 16 MiB".to_owned()),
            CrlError::Format { reason, .. } => (Code::Value, reason),
        };
        sink.push(Diagnostic::of_file(Severity::Error, code, file.display().to_string(), message));
    }
    let summary = Summary {
        cluster: loaded.settings.cluster.clone(),
        peers: loaded.peers.len(),
        policies: loaded.policies.traffic.len() + loaded.policies.access.len() + loaded.policies.visibility.len(),
        routes: loaded.policies.routes.routes().len(),
        services,
    };
    Report::new(path, Some("GatewayConfig"), Some(summary), sink)
}

fn check_services(loaded: &Loaded, sink: &mut Diagnostics) -> usize {
    let mut services = 0;
    for registry in &loaded.settings.registries {
        let file = match &registry.source {
            RegistrySource::File(file) => file,
            RegistrySource::Clusters { place: ClusterPlace::Folder(folder), .. } => {
                let listed = eastway_registry::clusters::load(folder, &crate::app::clusters::open);
                listed.errors.into_iter().for_each(|error| sink.push(error));
                continue;
            }
            // What an API server has is not the configuration's matter.
            RegistrySource::Kubernetes(_) | RegistrySource::Clusters { .. } => continue,
        };
        match service_file::load(file, loaded.settings.allow_loopback) {
            Ok((contents, warnings)) => {
                services += contents.services.len();
                sink.append(warnings);
            }
            Err(errors) => sink.append(errors),
        }
    }
    services
}

/// The `kind` that a text says it is.
fn kind_of(source: &Arc<Source>) -> Option<&'static str> {
    // Mistakes are found when it is read as what it is.
    let mut unheard = Diagnostics::new();
    let documents = yaml::read(source, &mut unheard);
    let kind = documents.first()?.text(&["kind"])?;
    KINDS.into_iter().chain(istio::KINDS).find(|known| *known == kind)
}

fn check_source(kind: &str, path: &Path, source: &Arc<Source>) -> Diagnostics {
    let mut sink = Diagnostics::new();
    match kind {
        "ServiceList" => match service_file::parse(source, false) {
            Ok((_, warnings)) => sink = warnings,
            Err(errors) => sink = errors,
        },
        "Peer" => {
            peer_settings(path, source, &mut sink);
        }
        sidecar::KIND => {
            sidecar::settings_of(path, source, &mut sink);
        }
        "TrafficPolicy" | "AccessPolicy" | "Visibility" | "HTTPRoute" | "GRPCRoute" | "TCPRoute" | "TLSRoute"
        | "ServiceShare" | "VirtualService" | "DestinationRule" => {
            let mut policies = policy::Collected::default();
            for document in yaml::read(source, &mut sink) {
                policies.document(document, policy::Reach::Any, &mut sink);
            }
            policies.routes.bounds(&policies.istio, &mut sink);
        }
        _ => gateway_settings(path, source, &mut sink),
    }
    sink
}

fn peer_settings(path: &Path, source: &Arc<Source>, sink: &mut Diagnostics) -> Option<PeerSettings> {
    let document = yaml::read_one(source, "Peer", sink)?;
    let peer: Peer = document.decode(sink)?;
    peer::convert(path, &peer, &mut Context::new(&document, sink)).map(|peer| peer.settings)
}

fn gateway_settings(path: &Path, source: &Arc<Source>, sink: &mut Diagnostics) {
    let Some(document) = yaml::read_one(source, "GatewayConfig", sink) else { return };
    let Some(config) = document.decode::<GatewayConfig>(sink) else { return };
    let mut cx = Context::new(&document, sink);
    cx.header(cx.root(), &config.api_version, &config.kind, "GatewayConfig");
    let folders = settings::folders(path, &config, &mut cx);
    settings::convert(path, &config, folders, &mut cx);
}

impl Report {
    fn new(path: &Path, kind: Option<&'static str>, summary: Option<Summary>, mut sink: Diagnostics) -> Self {
        sink.sort();
        Self {
            file: path.display().to_string(),
            kind,
            usable: !sink.has_errors(),
            summary: summary.filter(|_| !sink.has_errors()),
            errors: sink.error_count(),
            warnings: sink.iter().filter(|each| !each.is_error()).count(),
            diagnostics: sink.iter().cloned().collect(),
            omitted: sink.dropped(),
        }
    }
}

/// All diagnostics with their quotes, and a line that sums up.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for diagnostic in &self.diagnostics {
            writeln!(f, "{diagnostic}\n")?;
        }
        if self.omitted > 0 {
            writeln!(f, "and {} more\n", self.omitted)?;
        }
        let (errors, warnings) = (count(self.errors, "error", "errors"), count(self.warnings, "warning", "warnings"));
        match &self.summary {
            Some(summary) => {
                let Summary { cluster, peers, policies, routes, services } = summary;
                let peers = count(*peers, "peer", "peers");
                let policies = count(*policies, "policy", "policies");
                let routes = if *routes == 0 { String::new() } else { count(*routes, "route", "routes") + ", " };
                let services = count(*services, "service", "services");
                write!(f, "{}: cluster {cluster}, {peers}, {policies}, {routes}{services}; {warnings}", self.file)
            }
            None if self.usable => write!(f, "{}: a good {}; {warnings}", self.file, self.kind.unwrap_or("file")),
            None => write!(f, "{}: cannot be used: {errors}, {warnings}", self.file),
        }
    }
}

fn count(number: usize, one: &str, more: &str) -> String {
    if number == 1 { format!("1 {one}") } else { format!("{number} {more}") }
}

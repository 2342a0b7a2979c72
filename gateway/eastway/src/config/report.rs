//! The answer to "can this configuration be used?".

use std::fmt;
use std::path::Path;

use eastway_model::ClusterName;
use eastway_registry::diagnostic::{Code, Diagnostic, Diagnostics, Severity};
use eastway_registry::{file as service_file, yaml};
use serde::Serialize;

use super::load::{ConfigErrors, load};

/// What was found.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The configuration file.
    pub file: String,
    /// Whether a gateway starts with it.
    pub usable: bool,
    /// Its cluster, if it is usable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterName>,
    /// How many Peers it has.
    pub peers: usize,
    /// How many traffic and access policies.
    pub policies: usize,
    /// How many services its registries have.
    pub services: usize,
    /// Errors.
    pub errors: usize,
    /// Warnings.
    pub warnings: usize,
    /// All of them, by file and place.
    pub diagnostics: Vec<Diagnostic>,
    /// How many more there are.
    pub omitted: usize,
}

/// Reads everything that a gateway reads at its start: the configuration, Peers, policies, and the
/// service files of its registries, which a running gateway follows one by one.
#[must_use]
pub fn check(path: &Path) -> Report {
    let (mut sink, loaded) = match load(path) {
        Ok(loaded) => (loaded.warnings.clone(), Some(loaded)),
        Err(ConfigErrors(errors)) => (errors, None),
    };
    let mut services = 0;
    if let Some(loaded) = &loaded {
        for registry in &loaded.settings.registries {
            match service_file::load(&registry.file, loaded.settings.allow_loopback) {
                Ok((contents, warnings)) => {
                    services += contents.services.len();
                    sink.append(warnings);
                }
                Err(errors) => sink.append(errors),
            }
        }
        if let Some(crl) = &loaded.settings.trust.crl
            && let Err(error) = eastway_identity::crl::load(crl)
        {
            let file = crl.display().to_string();
            sink.push(Diagnostic::of_file(Severity::Error, Code::Value, file, error.to_string()));
        }
    }
    sink.sort();
    report(path, loaded.as_ref(), services, &sink)
}

fn report(path: &Path, loaded: Option<&super::Loaded>, services: usize, sink: &Diagnostics) -> Report {
    Report {
        file: path.display().to_string(),
        usable: !sink.has_errors(),
        cluster: loaded.map(|loaded| loaded.settings.cluster.clone()),
        peers: loaded.map_or(0, |loaded| loaded.peers.len()),
        policies: loaded.map_or(0, |loaded| loaded.policies.traffic.len() + loaded.policies.access.len()),
        services,
        errors: sink.error_count(),
        warnings: sink.iter().filter(|each| !each.is_error()).count(),
        diagnostics: sink.iter().cloned().collect(),
        omitted: sink.dropped(),
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
        let count = |number: usize, one: &str| format!("{number} {one}{}", if number == 1 { "" } else { "s" });
        let (errors, warnings) = (count(self.errors, "error"), count(self.warnings, "warning"));
        match &self.cluster {
            Some(cluster) if self.usable => {
                let peers = count(self.peers, "peer");
                let policies =
                    if self.policies == 1 { "1 policy".to_owned() } else { format!("{} policies", self.policies) };
                let services = count(self.services, "service");
                write!(f, "{}: cluster {cluster}, {peers}, {policies}, {services}; {warnings}", self.file)
            }
            _ => write!(f, "{}: cannot be used: {errors}, {warnings}", self.file),
        }
    }
}

/// Checks one Peer file by itself, without the configuration that it is for.
///
/// # Errors
/// All that is wrong with it, and the warnings.
pub fn check_peer(path: &Path) -> Result<(super::PeerSettings, Diagnostics), Diagnostics> {
    let mut sink = Diagnostics::new();
    let source = match yaml::read_file(path, yaml::MAX_CONFIG_BYTES) {
        Ok(source) => source,
        Err(diagnostic) => {
            sink.push(*diagnostic);
            return Err(sink);
        }
    };
    let settings = yaml::read_one(&source, "Peer", &mut sink).and_then(|document| {
        let peer: super::file::Peer = document.decode(&mut sink)?;
        super::peer::convert(path, &peer, &mut yaml::Context::new(&document, &mut sink))
    });
    sink.sort();
    match settings {
        Some(peer) if !sink.has_errors() => Ok((peer.settings, sink)),
        _ => Err(sink),
    }
}

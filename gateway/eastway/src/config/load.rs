//! Reads a configuration file and the folders it names.

use std::path::Path;
use std::sync::Arc;

use eastway_registry::diagnostic::Diagnostics;
use eastway_registry::yaml::{self, Context, MAX_CONFIG_BYTES};

use super::file::GatewayConfig;
use super::settings::{self, Settings};

/// A configuration without errors.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The gateway's own settings.
    pub settings: Arc<Settings>,
    /// What is probably not meant as it is.
    pub warnings: Diagnostics,
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
    let settings = load_settings(path, &mut sink);
    sink.sort();
    match settings {
        Some(settings) if !sink.has_errors() => Ok(Loaded { settings: Arc::new(settings), warnings: sink }),
        _ => Err(ConfigErrors(sink)),
    }
}

fn load_settings(path: &Path, sink: &mut Diagnostics) -> Option<Settings> {
    let source = match yaml::read_file(path, MAX_CONFIG_BYTES) {
        Ok(source) => source,
        Err(diagnostic) => {
            sink.push(*diagnostic);
            return None;
        }
    };
    let document = yaml::read_one(&source, "GatewayConfig", sink)?;
    let config: GatewayConfig = document.decode(sink)?;
    let mut cx = Context::new(&document, sink);
    settings::header(cx.root(), &config.api_version, &config.kind, "GatewayConfig", &mut cx);
    settings::convert(path, &config, &mut cx)
}

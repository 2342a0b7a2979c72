//! The log: text or JSON lines on standard error, whose level can change while the process runs.
//!
//! A line never blocks the thread that writes it: see `writer`. Levels are chosen by who is woken: `error` a
//! person now, `warn` a person tomorrow, `info` what happened to the process and its peers, `debug` single
//! connections, `trace` single packets.

mod writer;

use std::fmt;
use std::io::Write;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tracing_subscriber::layer::{Layered, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt as lines, reload};

use self::writer::LineWriter;

/// How lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line, fields at the top level.
    Json,
}

impl LogFormat {
    /// Its name in configuration files.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

/// What to log, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// Fixed from the start.
    pub format: LogFormat,
    /// A level, or directives such as `info,eastway_tunnel=debug`.
    pub level: String,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self { format: LogFormat::Text, level: "info".to_owned() }
    }
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Neither a level nor directives.
    #[error("log level {0:?} is not one of error, warn, info, debug, trace, nor a list of target=level")]
    Level(String),
    /// Another logger was installed in this process before.
    #[error("a logger is already installed")]
    Installed,
    /// No thread for the writer.
    #[error("cannot start the log writer")]
    Thread(#[source] std::io::Error),
}

/// The running logger. Keep it until the process ends: dropping the last clone writes out what is queued.
#[derive(Clone)]
pub struct LogHandle {
    filter: reload::Handle<EnvFilter, Registry>,
    level: Arc<arc_swap::ArcSwap<String>>,
    format: LogFormat,
    writer: LineWriter,
}

impl fmt::Debug for LogHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogHandle").field("level", &self.level.load()).finish_non_exhaustive()
    }
}

/// Installs the process-wide logger.
///
/// # Errors
/// [`LogError`]; nothing is installed then.
pub fn install(settings: &LogSettings) -> Result<LogHandle, LogError> {
    let (subscriber, handle) = logger(settings, std::io::stderr())?;
    subscriber.try_init().map_err(|_installed| LogError::Installed)?;
    Ok(handle)
}

type Output = Box<dyn Layer<Layered<reload::Layer<EnvFilter, Registry>, Registry>> + Send + Sync>;

/// A logger that writes to `output`.
fn logger(
    settings: &LogSettings,
    output: impl Write + Send + 'static,
) -> Result<(impl tracing::Subscriber + Send + Sync + 'static, LogHandle), LogError> {
    let (filter, handle) = reload::Layer::new(filter(&settings.level)?);
    let writer = LineWriter::start(output).map_err(LogError::Thread)?;
    // Fields of strangers are escaped where they enter; colours would only get in the way of `grep`.
    let plain = lines::layer().with_ansi(false).with_writer(writer.clone());
    let output: Output = match settings.format {
        LogFormat::Text => Box::new(plain),
        LogFormat::Json => Box::new(plain.json().flatten_event(true).with_current_span(true).with_span_list(false)),
    };
    let level = Arc::new(arc_swap::ArcSwap::from_pointee(settings.level.clone()));
    let handle = LogHandle { filter: handle, level, format: settings.format, writer };
    Ok((tracing_subscriber::registry().with(filter).with(output), handle))
}

impl LogHandle {
    /// Changes what is logged from now on.
    ///
    /// # Errors
    /// [`LogError::Level`]; the old level stays.
    pub fn set_level(&self, level: &str) -> Result<(), LogError> {
        let filter = filter(level)?;
        self.filter.reload(filter).map_err(|_gone| LogError::Level(level.to_owned()))?;
        self.level.store(Arc::new(level.to_owned()));
        Ok(())
    }

    /// The level or directives in force.
    #[must_use]
    pub fn level(&self) -> Arc<String> {
        self.level.load_full()
    }

    /// How lines look.
    #[must_use]
    pub fn format(&self) -> LogFormat {
        self.format
    }

    /// Lines dropped because standard error was blocked.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.writer.dropped()
    }

    /// Waits until what was logged so far is written, for at most a second.
    pub fn flush(&self) {
        self.writer.flush();
    }
}

/// Checks a level or directives without installing anything.
///
/// # Errors
/// [`LogError::Level`].
pub fn check_level(level: &str) -> Result<(), LogError> {
    filter(level).map(drop)
}

/// Access lines have a switch of their own and pass whatever the level is.
/// Targets that say at each attempt what ours say once, at levels that people watch. Who names them in the level hears
/// them.
const QUIET: &str = "kube_client::client::builder=off,kube_runtime::watcher=off";

fn filter(level: &str) -> Result<EnvFilter, LogError> {
    let bad = || LogError::Level(level.to_owned());
    // A bare word that is no level would be taken for the name of a target.
    let known =
        |word: &str| ["off", "error", "warn", "info", "debug", "trace"].contains(&word.to_ascii_lowercase().as_str());
    if level.is_empty() || level.split(',').any(|part| !part.contains('=') && !known(part.trim())) {
        return Err(bad());
    }
    EnvFilter::builder().parse(format!("{QUIET},{level},{}=info", super::access::TARGET)).map_err(|_error| bad())
}

#[cfg(test)]
mod tests;

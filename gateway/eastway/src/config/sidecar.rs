//! A sidecar's settings after all checks.

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use eastway_identity::{SpiffeId, SpiffeIdError};
use eastway_model::Label;
use eastway_model::vip::VipRange;
use eastway_registry::diagnostic::{Code, Diagnostics, Source};
use eastway_registry::yaml::{self, At, Context, Field, MAX_CONFIG_BYTES};
use eastway_xds::inbound::{ByService, Inbound};
use serde::Serialize;

use super::file::{
    CaptureWord, EnvoyLogWord, EnvoySection, SidecarConfig, SidecarMode, SidecarTrustSection, WorkloadNameSection,
};
use super::load::ConfigErrors;
use super::settings::{
    CaAddress, SYSTEM_NAMESPACE, ca_address, duration_in, folder_of, log_level, path, path_or, vip_ranges,
};
use super::value::{Fqdn, HostPort, HostPortError, byte_size, trust_domain};
use crate::local::socket::MAX_PATH;
use crate::telemetry::LogFormat;

mod inbound;
mod listeners;

pub use listeners::Listener;

/// What such a file says it is.
pub(super) const KIND: &str = "SidecarConfig";
/// Longest name of a socket in the state folder.
pub const LONGEST_SOCKET: &str = "envoy-admin.sock";
/// Worker threads, unless the file says otherwise: as many as Istio gives its sidecars.
const CONCURRENCY: NonZeroU16 = NonZeroU16::MIN.saturating_add(1);
/// Envoy with nothing to do has half of it.
const LEAST_MEMORY: u64 = 32 << 20;
/// Usual port of the gateway's `listen.local`.
const LOCAL: u16 = 15012;
/// Options of Envoy that the sidecar sets, by all their names.
const OURS: [&str; 13] = [
    "-c",
    "--config-path",
    "--config-yaml",
    "--concurrency",
    "--disable-hot-restart",
    "--drain-strategy",
    "--drain-time-s",
    "--log-format",
    "--log-format-escaped",
    "--log-path",
    "--mode",
    "--restart-epoch",
    "--version",
];

/// What one `kind: SidecarConfig` file says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SidecarSettings {
    /// What it does.
    pub mode: SidecarMode,
    /// The workload's namespace.
    pub namespace: Label,
    /// Its service account.
    pub service_account: Label,
    /// Its own name; a DNS name in lower case.
    pub name: Arc<str>,
    /// Where its certificate comes from.
    pub trust: SidecarTrust,
    /// The gateway's local port.
    pub gateway: HostPort,
    /// Where it takes connections for its workload; no two at the same place.
    pub inbound: Vec<Inbound>,
    /// Of which of that services say what is spoken.
    pub by_service: ByService,
    /// Whether it takes connections to the virtual addresses of imports.
    pub outbound: bool,
    /// Where it takes connections to one import each; no two at the same place.
    pub listeners: Vec<Listener>,
    /// How connections get to Envoy.
    pub capture: CaptureWord,
    /// Virtual addresses that are captured, none twice; empty: all addresses.
    pub vips: Vec<VipRange>,
    /// Where it says how it is.
    pub health: Option<SocketAddr>,
    /// Folder for sockets, short enough for them.
    pub state: PathBuf,
    /// Envoy, if there is one.
    pub envoy: EnvoySettings,
    /// How long connections may go on at the end.
    pub drain: Duration,
    /// How log lines look.
    pub log_format: LogFormat,
    /// Filter directives as in `RUST_LOG`; checked for their grammar.
    pub log_level: String,
}

/// Where a sidecar's certificate comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SidecarTrust {
    /// Trust domain of the cluster.
    pub domain: Arc<str>,
    /// Where the ca role is asked.
    pub ca: CaAddress,
    /// The public half of the issuing CA, for a CA on the network.
    pub cacerts: PathBuf,
    /// What proves to a CA on the network who asks.
    pub token: PathBuf,
    /// Where certificate and key are kept over a restart.
    pub keep: Option<PathBuf>,
    /// Lifetime of leaves, 1 minute to 24 hours.
    pub leaf_ttl: Duration,
    /// Eastway's own namespace.
    pub system_namespace: Label,
}

/// How Envoy is started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EnvoySettings {
    /// Its program; a name without a slash is looked for in `PATH`.
    pub path: PathBuf,
    /// Further arguments, none of ours among them.
    pub args: Vec<String>,
    /// Port of its administration on 127.0.0.1; `None`: only a socket in the state folder.
    pub admin: Option<NonZeroU16>,
    /// Worker threads, 1 to 1,024.
    pub concurrency: NonZeroU16,
    /// Bytes of memory that it may use; `None`: nobody says.
    pub memory: Option<u64>,
    /// What it logs.
    pub log: EnvoyLogWord,
}

impl SidecarSettings {
    /// The workload's identity.
    ///
    /// # Errors
    /// The trust domain makes no SPIFFE id.
    pub fn identity(&self) -> Result<SpiffeId, SpiffeIdError> {
        SpiffeId::workload(&self.trust.domain, self.namespace.as_str(), self.service_account.as_str())
    }

    /// The identity of one of Eastway's own service accounts in this cluster.
    ///
    /// # Errors
    /// The trust domain makes no SPIFFE id.
    pub fn system_account(&self, account: &str) -> Result<SpiffeId, SpiffeIdError> {
        SpiffeId::workload(&self.trust.domain, self.trust.system_namespace.as_str(), account)
    }
}

/// Reads and checks a `kind: SidecarConfig` file.
///
/// # Errors
/// [`ConfigErrors`] has all that is wrong with it.
pub fn load_sidecar(file: &Path) -> Result<SidecarSettings, ConfigErrors> {
    let mut sink = Diagnostics::new();
    let settings = match yaml::read_file(file, MAX_CONFIG_BYTES) {
        Ok(source) => settings_of(file, &source, &mut sink),
        Err(diagnostic) => {
            sink.push(*diagnostic);
            None
        }
    };
    finish(settings, sink)
}

/// As [`load_sidecar`], for what `name` holds instead of a file. Relative paths start where the process runs.
///
/// # Errors
/// [`ConfigErrors`] has all that is wrong with it.
pub fn read_sidecar(name: &str, text: &str) -> Result<SidecarSettings, ConfigErrors> {
    let mut sink = Diagnostics::new();
    let settings = settings_of(Path::new("."), &Arc::new(Source::new(name, text)), &mut sink);
    finish(settings, sink)
}

fn finish(settings: Option<SidecarSettings>, mut sink: Diagnostics) -> Result<SidecarSettings, ConfigErrors> {
    sink.sort();
    match settings {
        Some(settings) if !sink.has_errors() => Ok(settings),
        _ => Err(ConfigErrors(sink)),
    }
}

/// As [`load_sidecar`], for a text that was read already.
pub(super) fn settings_of(file: &Path, source: &Arc<Source>, sink: &mut Diagnostics) -> Option<SidecarSettings> {
    let document = yaml::read_one(source, KIND, sink)?;
    if let (Some(at), Some(kind)) = (document.child(document.root(), "kind"), document.text(&["kind"]))
        && super::KINDS.contains(&kind)
        && kind != KIND
    {
        // Every key of it would be wrong here.
        Context::new(&document, sink).error(at, Code::Kind, format!("must be {KIND}, not {kind}"));
        return None;
    }
    let config: SidecarConfig = document.decode(sink)?;
    let mut cx = Context::new(&document, sink);
    cx.header(cx.root(), &config.api_version, &config.kind, KIND);
    convert(folder_of(file), &config, &mut cx)
}

fn convert(base: &Path, config: &SidecarConfig, cx: &mut Context<'_>) -> Option<SidecarSettings> {
    let root = cx.root();
    let mode = config.mode.value().copied().unwrap_or_default();
    if mode == SidecarMode::Agent {
        let (envoy, drain) = (config.envoy.get().map(|at| at.at), config.drain.get().map(|at| at.at));
        let capture = config.capture.get().map(|at| at.at);
        for at in envoy.into_iter().chain(drain).chain(capture) {
            cx.error(at, Code::Value, "has no effect with `mode: agent`, which starts no Envoy");
        }
    }
    let section = cx.required(root, "workload", &config.workload, "namespace, serviceAccount and name");
    let by_service = inbound::by_service(&config.inbound, section.map(|section| &section.value), cx);
    let workload = section.map(|section| workload_name(section, cx));
    let trust = cx.required(root, "trust", &config.trust, "at least trust.domain and trust.ca");
    let trust = trust.and_then(|section| trust_settings(section, base, cx));
    let what = "host and port of the gateway's listen.local, e.g. 10.0.0.5:15012";
    let gateway = cx.required_parse(root, "gateway", &config.gateway, what, |text| match HostPort::parse(text) {
        // What is at hand there is the port of links.
        Err(HostPortError::NoPort(host)) => Err(format!("must be host:port; the port is missing, e.g. {host}:{LOCAL}")),
        parsed => parsed.map_err(|error| error.to_string()),
    });
    let inbound = inbound::list(&config.inbound, cx);
    let listeners = listeners::list(&config.listeners, cx);
    idle(config, mode, &inbound, cx);
    let capture = config.capture.value().copied().unwrap_or_default();
    let everything = capture == CaptureWord::Prepared && config.vips.items().next().is_none();
    let vips = if everything { Vec::new() } else { vip_ranges(Some(&config.vips), cx) };
    let health = config.health.get().and_then(|text| cx.parse(text, inbound::place));
    let state = state(&config.state, base, cx);
    let envoy = envoy_settings(config.envoy.value(), base, cx);
    let hour = Duration::from_secs(3600);
    let drain = duration_in(&config.drain, Duration::ZERO, hour, Duration::from_secs(10), cx);
    let log = config.log.value();
    let log_level = log.and_then(|log| log_level(&log.level, cx)).unwrap_or_else(|| "info".to_owned());
    let log_format = log.and_then(|log| log.format.value().copied()).unwrap_or_default();
    let (namespace, service_account, name) = workload?;
    Some(SidecarSettings {
        mode,
        namespace: namespace?,
        service_account: service_account?,
        name: name?,
        trust: trust?,
        gateway: gateway?,
        inbound,
        by_service,
        outbound: config.outbound.value().copied().unwrap_or(true),
        listeners,
        capture,
        vips,
        health,
        state,
        envoy,
        drain,
        log_format,
        log_level,
    })
}

/// An Envoy that nobody gets to is probably not meant.
fn idle(config: &SidecarConfig, mode: SidecarMode, inbound: &[Inbound], cx: &mut Context<'_>) {
    if let Some(outbound) = config.outbound.get()
        && !outbound.value
        && mode == SidecarMode::Envoy
        && inbound.is_empty()
        && config.inbound.items().next().is_none()
        && config.listeners.items().next().is_none()
    {
        cx.warn(outbound.at, Code::Empty, "without `inbound` or `listeners` Envoy takes no connections at all");
    }
}

type WorkloadName = (Option<Label>, Option<Label>, Option<Arc<str>>);

fn workload_name(section: &At<WorkloadNameSection>, cx: &mut Context<'_>) -> WorkloadName {
    let (at, workload) = (section.at, &section.value);
    let namespace = cx.required_parse(at, "namespace", &workload.namespace, "the workload's namespace", Label::parse);
    let what = "the service account that its certificate is for";
    let account = cx.required_parse(at, "serviceAccount", &workload.service_account, what, Label::parse);
    let what = "the name of the pod or host";
    let name = cx.required_parse(at, "name", &workload.name, what, |text| match Fqdn::parse(text) {
        Ok(name) if name.as_str() == text => Ok(Arc::from(text)),
        Ok(_) => Err("must be in lower case, without a final dot".to_owned()),
        Err(error) => Err(error.to_string()),
    });
    (namespace, account, name)
}

fn trust_settings(section: &At<SidecarTrustSection>, base: &Path, cx: &mut Context<'_>) -> Option<SidecarTrust> {
    let (at, trust) = (section.at, &section.value);
    let what = "the trust domain of this cluster, e.g. onprem.example";
    let domain = cx.required_parse(at, "domain", &trust.domain, what, trust_domain);
    let what = "the workload's socket, e.g. unix:./run/productpage.sock, or https:// with host and port";
    let ca = cx.required_parse(at, "ca", &trust.ca, what, |text| ca_address(text, base));
    let cacerts = path_or(&trust.cacerts, base, "cacerts", cx);
    let token = trust.token.get().and_then(|text| path(text, base, cx));
    let token = token.unwrap_or_else(|| PathBuf::from("/var/run/secrets/eastway/token"));
    let keep = trust.keep.get().and_then(|text| path(text, base, cx));
    let (minute, day) = (Duration::from_secs(60), Duration::from_secs(24 * 3600));
    let leaf_ttl = duration_in(&trust.leaf_ttl, minute, day, day, cx);
    let namespace = trust.system_namespace.get().and_then(|text| cx.parse(text, Label::parse));
    let system_namespace = namespace.or_else(|| Label::parse(SYSTEM_NAMESPACE).ok())?;
    Some(SidecarTrust { domain: domain?, ca: ca?, cacerts, token, keep, leaf_ttl, system_namespace })
}

/// The state folder; the sockets in it must have paths that a socket can have.
fn state(field: &Field<String>, base: &Path, cx: &mut Context<'_>) -> PathBuf {
    let folder = path_or(field, base, "state", cx);
    if folder.join(LONGEST_SOCKET).as_os_str().len() > MAX_PATH {
        let at = field.get().map_or(cx.root(), |text| text.at);
        let most = MAX_PATH - LONGEST_SOCKET.len() - 1;
        let message = format!("{} is too long for sockets in it: at most {most} bytes", folder.display());
        cx.error(at, Code::Value, message);
    }
    folder
}

fn envoy_settings(section: Option<&EnvoySection>, base: &Path, cx: &mut Context<'_>) -> EnvoySettings {
    let mut settings = EnvoySettings {
        path: PathBuf::from("envoy"),
        args: Vec::new(),
        admin: None,
        concurrency: CONCURRENCY,
        memory: None,
        log: EnvoyLogWord::default(),
    };
    let Some(envoy) = section else { return settings };
    match envoy.path.get() {
        // A name alone is looked for in PATH, as a shell does.
        Some(text) if !text.value.is_empty() && !text.value.contains('/') => settings.path = PathBuf::from(&text.value),
        Some(text) => settings.path = path(text, base, cx).unwrap_or(settings.path),
        None => {}
    }
    settings.args = cx.parse_items(&envoy.args, argument).into_iter().map(|at| at.value).collect();
    settings.admin = number(&envoy.admin, u16::MAX, cx);
    settings.concurrency = number(&envoy.concurrency, 1024, cx).unwrap_or(CONCURRENCY);
    settings.memory = envoy.memory.get().and_then(|text| cx.parse(text, memory));
    settings.log = envoy.log.value().copied().unwrap_or_default();
    settings
}

fn memory(text: &str) -> Result<u64, String> {
    match byte_size(text)? {
        bytes if bytes < LEAST_MEMORY => Err("must be at least 32MiB".to_owned()),
        bytes => Ok(bytes),
    }
}

fn argument(text: &str) -> Result<String, String> {
    let name = text.split_once('=').map_or(text, |(name, _)| name);
    if OURS.contains(&name) {
        return Err(format!("{name} is set by the sidecar itself"));
    }
    if text.is_empty() || text.contains('\0') {
        return Err("must not be empty, nor contain a NUL character".to_owned());
    }
    Ok(text.to_owned())
}

fn number(field: &Field<u64>, most: u16, cx: &mut Context<'_>) -> Option<NonZeroU16> {
    let at = field.get()?;
    let number = u16::try_from(at.value).ok().filter(|number| *number <= most).and_then(NonZeroU16::new);
    if number.is_none() {
        cx.error(at.at, Code::Value, format!("must be 1 to {most}"));
    }
    number
}

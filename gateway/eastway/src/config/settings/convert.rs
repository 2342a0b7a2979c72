//! From the file's texts to [`Settings`]. Whatever is wrong is reported where it stands; a wrong
//! optional value counts as its default until the end, where one error is enough to refuse the file.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use eastway_model::Label;
use eastway_model::name::check_label_pair;
use eastway_model::rules::AccessMode;
use eastway_model::vip::VipRange;
use eastway_registry::diagnostic::{Code, did_you_mean};
use eastway_registry::value::duration;
use eastway_registry::yaml::{At, Context, Field, List, Text};

use super::dns::dns_settings;
use super::registries::registries;
use super::sni::sni;
use super::workloads::workloads;
use super::{
    CaAddress, Folder, KubernetesAccess, KubernetesSettings, LEAST_BUFFER_BYTES, Limits, LinkSettings, ListenSettings,
    LogSettings, ReplicaSettings, SYSTEM_NAMESPACE, Settings, SidecarSettings, TrustSettings, VipSettings, folder_of,
};
use super::{injection, memory, quic_lb, relay};
use crate::config::file::{
    AuthorizationWord, GatewayConfig, KubernetesSection, LimitsSection, LinkSection, ListenSection, LogSection,
    ReplicasSection, SidecarsSection, TrustSection, VipSection,
};
use crate::config::value::{HostPort, byte_size, cluster_name, trust_domain};

const HOUR: Duration = Duration::from_secs(3600);
const MINUTE: Duration = Duration::from_secs(60);

/// The folders of Peers and policies. They are known even if the rest is not, so that mistakes in
/// the files there are found at the same time.
pub(in crate::config) fn folders(file: &Path, config: &GatewayConfig, cx: &mut Context<'_>) -> (Folder, Folder) {
    let base = folder_of(file);
    (folder(&config.peers, base, "peers", cx), folder(&config.policies, base, "policies", cx))
}

/// The settings of `config`, or `None` if something that is needed is missing. The caller refuses
/// them if anything was reported as an error.
pub(in crate::config) fn convert(
    file: &Path,
    config: &GatewayConfig,
    (peers, policies): (Folder, Folder),
    cx: &mut Context<'_>,
) -> Option<Settings> {
    let root = cx.root();
    let base = folder_of(file);
    let cluster = cx.required_parse(root, "cluster", &config.cluster, "the name of this cluster", cluster_name);
    let trust = cx.required(root, "trust", &config.trust, "at least trust.domain, e.g. onprem.example");
    let trust = trust.and_then(|section| trust_settings(section, base, cx));
    let listen = listen_settings(config.listen.value(), cx);
    let link = link_settings(config.link.value(), base, cx);
    let relay = config.relay.get().map(|section| relay::rules(section, cluster.as_ref(), cx)).unwrap_or_default();
    let replicas = config.replicas.value().map(|section| replica_settings(section, &listen, cx));
    let registries = registries(config, base, cx);
    let dns = dns_settings(config.dns.value(), cx);
    let vip = vip_settings(config.vip.value(), cx);
    let sidecars = config.sidecars.get().and_then(|section| sidecar_settings(section, &listen, cx));
    let log = log_settings(config.log.value(), cx);
    let limits = limits(config.limits.value(), cx);
    let authorization = match config.authorization.value() {
        None | Some(AuthorizationWord::Enforce) => AccessMode::Enforce,
        Some(AuthorizationWord::DryRun) => AccessMode::DryRun,
    };
    let kubernetes = kubernetes_settings(config.kubernetes.value(), base, cx);
    let system = kubernetes.as_ref().map_or(SYSTEM_NAMESPACE, |kubernetes| kubernetes.namespace.as_str());
    let trust = trust.map(|trust| TrustSettings { workloads: workloads(config, &trust, system, base, cx), ..trust });
    let state = path_or(&config.state, base, "state", cx);
    Some(Settings {
        file: file.to_owned(),
        cluster: cluster?,
        trust: trust?,
        listen,
        link,
        relay,
        replicas,
        registries,
        peers,
        policies,
        dns,
        vip,
        sidecars,
        authorization,
        kubernetes,
        state,
        log,
        limits,
        allow_loopback: config.allow_loopback.value().copied().unwrap_or(false),
    })
}

fn trust_settings(section: &At<TrustSection>, base: &Path, cx: &mut Context<'_>) -> Option<TrustSettings> {
    let trust = &section.value;
    let what = "the trust domain of this cluster, e.g. onprem.example";
    let domain = cx.required_parse(section.at, "domain", &trust.domain, what, trust_domain);
    let ca = trust.ca.get().and_then(|text| cx.parse(text, |text| ca_address(text, base)));
    let cacerts = path_or(&trust.cacerts, base, "cacerts", cx);
    let leaf_ttl = duration_in(&trust.leaf_ttl, MINUTE, 24 * HOUR, 24 * HOUR, cx);
    let crl = trust.crl.get().and_then(|text| path(text, base, cx));
    let ca = ca.unwrap_or_else(|| CaAddress::Unix(base.join("run/ca.sock")));
    let token = trust.token.get().and_then(|text| path(text, base, cx));
    let token = token.unwrap_or_else(|| PathBuf::from("/var/run/secrets/eastway/token"));
    let keep = trust.keep.get().and_then(|text| path(text, base, cx));
    Some(TrustSettings { domain: domain?, cacerts, ca, token, keep, leaf_ttl, crl, workloads: Vec::new() })
}

/// Where a ca role is asked.
pub(in crate::config) fn ca_address(text: &str, base: &Path) -> Result<CaAddress, String> {
    if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
        return Ok(CaAddress::Unix(base.join(path.strip_prefix("./").unwrap_or(path))));
    }
    let form = "must be unix: and a path, e.g. unix:./run/ca.sock, or https:// with host and port";
    let address = text.strip_prefix("https://").ok_or(form)?;
    HostPort::parse(address.trim_end_matches('/')).map(CaAddress::Network).map_err(|error| error.to_string())
}

fn kubernetes_settings(
    section: Option<&KubernetesSection>,
    base: &Path,
    cx: &mut Context<'_>,
) -> Option<KubernetesSettings> {
    let section = section?;
    let namespace = section.namespace.get().and_then(|text| cx.parse(text, Label::parse));
    let service = section.service.get().and_then(|text| cx.parse(text, Label::parse));
    let kubeconfig = section.kubeconfig.get().and_then(|text| path(text, base, cx));
    let context = section.context.get();
    if let (None, Some(context)) = (&kubeconfig, context) {
        cx.error(context.at, Code::Conflict, "a context is one of a kubeconfig: name that too");
    }
    let namespace = namespace.as_ref().map_or(SYSTEM_NAMESPACE, Label::as_str);
    let mut settings = KubernetesSettings::in_namespace(namespace).ok()?;
    settings.access = KubernetesAccess { kubeconfig, context: context.map(|context| context.value.clone()) };
    if let Some(service) = service {
        settings.service = service;
    }
    if let Some(gateways) = section.gateways.get().and_then(|text| cx.parse(text, HostPort::parse)) {
        settings.gateways = gateways;
    }
    settings.routes = section.routes.items().map(|word| word.value).collect();
    settings.routes.sort_unstable();
    settings.routes.dedup();
    if let Some(labels) = section.gateway_labels.get().and_then(|text| cx.parse(text, selector)) {
        settings.gateway_labels = labels;
    }
    settings.istio_service = section.istio_service.get().and_then(|text| cx.parse(text, Label::parse));
    Some(settings)
}

/// Labels that pods have to have: `key=value`, separated by commas.
fn selector(text: &str) -> Result<String, String> {
    let pairs = text.split(',').map(|pair| pair.split_once('=').ok_or("must be key=value, separated by commas"));
    for pair in pairs {
        let (key, value) = pair?;
        check_label_pair(key, value).map_err(|error| error.to_string())?;
    }
    Ok(text.to_owned())
}

fn listen_settings(section: Option<&ListenSection>, cx: &mut Context<'_>) -> ListenSettings {
    let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut settings = ListenSettings {
        link: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 15443)),
        advertise: Vec::new(),
        dns: vec![local(15053)],
        admin: local(15000),
        local: None,
        hbone: None,
        sni: Vec::new(),
        ca: None,
        injection: local(15017),
        metrics: local(15020),
        health: local(15021),
    };
    let Some(listen) = section else { return settings };
    // TCP listeners so far: two of them cannot share an address.
    let mut taken: Vec<(SocketAddr, String)> = Vec::new();
    if let Some(address) = socket_addr(&listen.link, cx) {
        settings.link = address.value;
    }
    settings.advertise = cx.parse_items(&listen.advertise, HostPort::parse).into_iter().map(|at| at.value).collect();
    let dns = cx.parse_items(&listen.dns, parse_socket_addr);
    for (index, address) in dns.iter().enumerate() {
        take(address, &format!("listen.dns[{index}]"), &mut taken, cx);
        if address.value == settings.link && address.value.port() != 0 {
            cx.error(address.at, Code::Duplicate, format!("{} is already used by listen.link", address.value));
        }
    }
    if !dns.is_empty() {
        settings.dns = dns.into_iter().map(|at| at.value).collect();
    }
    if let Some(address) = socket_addr(&listen.admin, cx) {
        if !address.value.ip().is_loopback() {
            let help = "use 127.0.0.1 or [::1]; reach it from elsewhere through ssh or kubectl port-forward";
            cx.error_help(address.at, Code::Forbidden, "the admin port must be on a loopback address", help);
        }
        take(&address, "listen.admin", &mut taken, cx);
        settings.admin = address.value;
    }
    if let Some(address) = socket_addr(&listen.local, cx) {
        take(&address, "listen.local", &mut taken, cx);
        settings.local = Some(address.value);
    }
    if let Some(address) = socket_addr(&listen.hbone, cx) {
        take(&address, "listen.hbone", &mut taken, cx);
        settings.hbone = Some(address.value);
    }
    settings.sni = sni(&listen.sni, &mut taken, cx);
    // Not compared with the others: they are other roles', usually in other pods.
    settings.ca = socket_addr(&listen.ca, cx).map(|address| address.value);
    settings.injection = socket_addr(&listen.injection, cx).map_or(settings.injection, |address| address.value);
    if let Some(address) = socket_addr(&listen.metrics, cx) {
        take(&address, "listen.metrics", &mut taken, cx);
        settings.metrics = address.value;
    }
    if let Some(address) = socket_addr(&listen.health, cx) {
        take(&address, "listen.health", &mut taken, cx);
        settings.health = address.value;
    }
    settings
}

pub(super) fn take(address: &At<SocketAddr>, name: &str, taken: &mut Vec<(SocketAddr, String)>, cx: &mut Context<'_>) {
    let earlier = taken.iter().find(|(other, _)| *other == address.value && other.port() != 0);
    if let Some((_, earlier)) = earlier {
        cx.error(address.at, Code::Duplicate, format!("{} is already used by {earlier}", address.value));
    }
    taken.push((address.value, name.to_owned()));
}

fn socket_addr(field: &Field<Text>, cx: &mut Context<'_>) -> Option<At<SocketAddr>> {
    let text = field.get()?;
    Some(At { value: cx.parse(text, parse_socket_addr)?, at: text.at })
}

pub(super) fn parse_socket_addr(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| match HostPort::parse(text) {
        Ok(address) => format!("must be an IP address of this machine and a port, e.g. 0.0.0.0:{}", address.port),
        Err(_) => "must be address:port, e.g. 127.0.0.1:15053 or [::1]:15053".to_owned(),
    })
}

fn link_settings(section: Option<&LinkSection>, base: &Path, cx: &mut Context<'_>) -> LinkSettings {
    let second = Duration::from_secs(1);
    let mut settings = LinkSettings { keep_alive: second, idle_timeout: 4 * second, drain: 30 * second, quic_lb: None };
    let Some(link) = section else { return settings };
    settings.keep_alive = duration_in(&link.keep_alive, second / 10, 30 * second, settings.keep_alive, cx);
    settings.idle_timeout = duration_in(&link.idle_timeout, 2 * second, 5 * second, settings.idle_timeout, cx);
    settings.drain = duration_in(&link.drain, Duration::ZERO, HOUR, settings.drain, cx);
    settings.quic_lb = link.quic_lb.get().map(|section| quic_lb::settings(section, base, cx));
    if settings.idle_timeout < 3 * settings.keep_alive
        && let Some(at) = link.idle_timeout.get().or(link.keep_alive.get())
    {
        cx.error(at.at, Code::Conflict, "idleTimeout must be at least 3 x keepAlive");
    }
    settings
}

/// Replicas beyond this many are not kept apart by the tunnel.
const MAX_SIBLINGS: usize = 64;

fn replica_settings(section: &ReplicasSection, listen: &ListenSettings, cx: &mut Context<'_>) -> ReplicaSettings {
    let mut settings =
        ReplicaSettings { listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 15442)), siblings: Vec::new() };
    if let Some(address) = socket_addr(&section.listen, cx) {
        let taken = [
            ("listen.link", Some(listen.link)),
            ("listen.dns", listen.dns.iter().copied().find(|dns| *dns == address.value)),
        ];
        let taken = taken.iter().find(|(_, other)| *other == Some(address.value) && address.value.port() != 0);
        if let Some((name, _)) = taken {
            cx.error(address.at, Code::Duplicate, format!("{} is already used by {name}", address.value));
        }
        settings.listen = address.value;
    }
    for sibling in cx.parse_items(&section.siblings, sibling_addr) {
        if settings.siblings.contains(&sibling.value) {
            cx.error(sibling.at, Code::Duplicate, format!("{} is already in the list", sibling.value));
        } else if settings.siblings.len() == MAX_SIBLINGS {
            cx.error(sibling.at, Code::Value, format!("at most {MAX_SIBLINGS} gateways of a cluster know each other"));
            break;
        } else {
            settings.siblings.push(sibling.value);
        }
    }
    settings
}

/// An address that one packet after another can be sent to.
fn sibling_addr(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr =
        text.parse().map_err(|_| "must be the IP address of a gateway and its port, e.g. 10.0.0.5:15442".to_owned())?;
    let ip = address.ip();
    if ip.is_unspecified() || ip.is_multicast() || ip == Ipv4Addr::BROADCAST {
        return Err(format!("{ip} is not the address of one gateway"));
    }
    if address.port() == 0 {
        return Err("must have a port from 1 to 65535".to_owned());
    }
    Ok(address)
}

fn vip_settings(section: Option<&VipSection>, cx: &mut Context<'_>) -> VipSettings {
    let ranges = vip_ranges(section.map(|vip| &vip.ranges), cx);
    let owner = section.and_then(|vip| vip.owner.value().copied()).unwrap_or(true);
    VipSettings { ranges, owner }
}

/// The ranges of a list, or those that count without one.
pub(in crate::config) fn vip_ranges(list: Option<&List<String>>, cx: &mut Context<'_>) -> Vec<VipRange> {
    let mut ranges: Vec<VipRange> = Vec::new();
    for range in list.map(|list| cx.parse_items(list, str::parse::<VipRange>)).unwrap_or_default() {
        if let Some(other) = ranges.iter().find(|other| other.overlaps(&range.value)) {
            cx.error(range.at, Code::Duplicate, format!("overlaps with {other}"));
        } else {
            ranges.push(range.value);
        }
    }
    if ranges.is_empty() {
        ranges = ["242.0.0.0/16", "fd65:6173:7477::/48"].iter().flat_map(|text| text.parse()).collect();
    }
    ranges
}

fn sidecar_settings(
    section: &At<SidecarsSection>,
    listen: &ListenSettings,
    cx: &mut Context<'_>,
) -> Option<SidecarSettings> {
    let gateway = match section.value.gateway.get() {
        Some(text) => cx.parse(text, HostPort::parse),
        None => own_port(listen).or_else(|| {
            let what = "where sidecars reach the gateway's HBONE port, e.g. 10.0.0.5:15008";
            cx.required_parse(section.at, "gateway", &section.value.gateway, what, HostPort::parse)
        }),
    }?;
    if listen.local.is_none() {
        let help = "add listen.local, e.g. 0.0.0.0:15012";
        cx.error_help(section.at, Code::Conflict, "sidecars are served at listen.local, and there is none", help);
    }
    let most = eastway_xds::resources::ENDPOINTS_PER_SERVICE;
    let endpoints_per_service = number_in(&section.value.endpoints_per_service, 1_000_000, most, cx);
    let injection = section.value.injection.get().and_then(|section| injection::settings(section, cx));
    Some(SidecarSettings { gateway, endpoints_per_service, injection })
}

/// Where the HBONE port is for others, if that can be told from where it listens.
fn own_port(listen: &ListenSettings) -> Option<HostPort> {
    let hbone = listen.hbone?;
    let mut addresses = [Some(hbone), listen.local].into_iter().flatten().map(|address| address.ip());
    let ip = addresses.find(|ip| !ip.is_unspecified())?;
    HostPort::parse(&SocketAddr::new(ip, hbone.port()).to_string()).ok()
}

fn log_settings(section: Option<&LogSection>, cx: &mut Context<'_>) -> LogSettings {
    let level = section.and_then(|log| log_level(&log.level, cx));
    LogSettings {
        format: section.and_then(|log| log.format.value().copied()).unwrap_or_default(),
        level: level.unwrap_or_else(|| "info".to_owned()),
        access: section.and_then(|log| log.access.value().copied()).unwrap_or_default(),
    }
}

/// Filter directives with a sound grammar.
pub(in crate::config) fn log_level(field: &Field<String>, cx: &mut Context<'_>) -> Option<String> {
    let text = field.get()?;
    let levels = ["error", "warn", "info", "debug", "trace", "off"];
    let directives = tracing_subscriber::EnvFilter::builder().parse(&text.value);
    let word = text.value.bytes().all(|byte| byte.is_ascii_alphabetic());
    // A lone unknown word is a valid directive ("this target only"), and never what was meant.
    if directives.is_err() || (word && !levels.contains(&text.value.as_str())) {
        let mut message = "must be error, warn, info, debug, trace or filter directives".to_owned();
        if let Some(meant) = did_you_mean(&text.value, levels) {
            message.push_str(&format!(" (did you mean {meant}?)"));
        }
        cx.error(text.at, Code::Value, message);
        return None;
    }
    Some(text.value.clone())
}

fn limits(section: Option<&LimitsSection>, cx: &mut Context<'_>) -> Limits {
    let mut limits = Limits::within(memory::limit());
    let Some(section) = section else { return limits };
    limits.services_per_peer = number_in(&section.services_per_peer, 1_000_000, limits.services_per_peer, cx);
    limits.endpoints_per_peer = number_in(&section.endpoints_per_peer, 10_000_000, limits.endpoints_per_peer, cx);
    let updates = limits.updates_per_second_per_peer;
    limits.updates_per_second_per_peer = number_in(&section.updates_per_second_per_peer, 1_000_000, updates, cx);
    limits.streams_per_peer = number_in(&section.streams_per_peer, 1_000_000, limits.streams_per_peer, cx);
    let bench = limits.bench_seconds_per_hour;
    limits.bench_seconds_per_hour = number_between(&section.bench_seconds_per_hour, 0, 3_600, bench, cx);
    limits.dns_connections = number_in(&section.dns_connections, 65_536, limits.dns_connections, cx);
    let answers = limits.dns_answers_per_second;
    limits.dns_answers_per_second = number_in(&section.dns_answers_per_second, 10_000_000, answers, cx);
    limits.buffer_bytes = buffer_bytes(&section.buffer_bytes, limits.buffer_bytes, cx);
    limits.hbone_buffer_bytes = buffer_bytes(&section.hbone_buffer_bytes, limits.hbone_buffer_bytes, cx);
    let (least, most) = (Duration::from_secs(1), 7 * 24 * HOUR);
    limits.connection_idle = duration_in(&section.connection_idle, least, most, limits.connection_idle, cx);
    let half_closed = limits.connection_half_closed;
    limits.connection_half_closed = duration_in(&section.connection_half_closed, least, most, half_closed, cx);
    limits.udp_idle = duration_in(&section.udp_idle, least, HOUR, limits.udp_idle, cx);
    limits
}

fn buffer_bytes(field: &Field<Text>, default: u64, cx: &mut Context<'_>) -> u64 {
    let Some(text) = field.get() else { return default };
    let Some(bytes) = cx.parse(text, byte_size) else { return default };
    if !(LEAST_BUFFER_BYTES..=64 << 30).contains(&bytes) {
        cx.error(text.at, Code::Value, "must be 16MiB to 64GiB");
        return default;
    }
    bytes
}

pub(super) fn number_in<N: TryFrom<u64>>(field: &Field<u64>, max: u64, default: N, cx: &mut Context<'_>) -> N {
    number_between(field, 1, max, default, cx)
}

fn number_between<N: TryFrom<u64>>(field: &Field<u64>, min: u64, max: u64, default: N, cx: &mut Context<'_>) -> N {
    let Some(at) = field.get() else { return default };
    match N::try_from(at.value) {
        Ok(value) if (min..=max).contains(&at.value) => value,
        _ => {
            cx.error(at.at, Code::Value, format!("must be {min} to {max}"));
            default
        }
    }
}

/// A duration within bounds, or the default.
pub(in crate::config) fn duration_in(
    field: &Field<Text>,
    min: Duration,
    max: Duration,
    default: Duration,
    cx: &mut Context<'_>,
) -> Duration {
    let Some(text) = field.get() else { return default };
    let Some(value) = cx.parse(text, duration) else { return default };
    if (min..=max).contains(&value) {
        return value;
    }
    let show = eastway_registry::value::show_duration;
    cx.error(text.at, Code::Value, format!("must be {} to {}", show(min), show(max)));
    default
}

fn folder(field: &Field<String>, base: &Path, default: &str, cx: &mut Context<'_>) -> Folder {
    let named = field.get().and_then(|text| path(text, base, cx));
    Folder { required: named.is_some(), path: named.unwrap_or_else(|| base.join(default)) }
}

pub(in crate::config) fn path_or(field: &Field<String>, base: &Path, default: &str, cx: &mut Context<'_>) -> PathBuf {
    field.get().and_then(|text| path(text, base, cx)).unwrap_or_else(|| base.join(default))
}

/// A path, from the folder of the file if it is relative.
pub(in crate::config) fn path(text: &At<String>, base: &Path, cx: &mut Context<'_>) -> Option<PathBuf> {
    cx.parse(text, |text| match text {
        "" => Err("must not be empty"),
        _ if text.contains('\0') => Err("must not contain a NUL character"),
        _ => Ok(base.join(text.strip_prefix("./").unwrap_or(text))),
    })
}

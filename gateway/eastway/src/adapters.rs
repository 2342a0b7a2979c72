//! What joins two crates that do not know each other: settings into the types of the leaves.

pub mod admin;

use std::sync::Arc;
use std::time::Duration;

use eastway_dns::{DnsConfig, Fqdn, NameError};
use eastway_identity::{CertificateRevocationListDer, PeerTrust};
use eastway_kubernetes::client::Access;
use eastway_tunnel::{HostPort, Timing, TunnelLimits};

use crate::config::settings::{KubernetesAccess, RegistrySettings, RegistrySource};
use crate::config::{Loaded, Settings};
use crate::proxy::copy::Limits;
use crate::proxy::dial::DialRules;

/// A kubelet tells the address of a pod within a second or two.
const NAMING: Duration = Duration::from_secs(3);

/// Our own zones, for the DNS server.
///
/// # Errors
/// [`NameError`]: a zone that the configuration accepted and DNS does not.
pub fn zones(settings: &Settings) -> Result<Vec<Fqdn>, NameError> {
    settings.dns.zones.iter().map(|zone| Fqdn::parse(zone.as_str())).collect()
}

/// Where DNS listens, and its limits.
#[must_use]
pub fn dns_config(settings: &Settings) -> DnsConfig {
    let limits = eastway_dns::Limits {
        responses_per_second: settings.limits.dns_answers_per_second,
        tcp_connections: settings.limits.dns_connections,
        ..eastway_dns::Limits::default()
    };
    DnsConfig { listen: settings.listen.dns.clone(), limits }
}

/// Whom links are accepted from.
#[must_use]
pub fn peer_trust(loaded: &Loaded, crls: &[CertificateRevocationListDer<'static>]) -> Vec<PeerTrust> {
    loaded.peers.values().map(|peer| peer.trust(crls.to_vec())).collect()
}

/// An address to dial.
#[must_use]
pub fn host_port(address: &crate::config::value::HostPort) -> Option<HostPort> {
    address.to_string().parse().ok()
}

/// Quotas of federation sessions.
#[must_use]
pub fn federation_limits(settings: &Settings) -> eastway_federation::Limits {
    let (services, endpoints) = (settings.limits.services_per_peer, settings.limits.endpoints_per_peer);
    eastway_federation::Limits {
        services,
        endpoints,
        records_per_second: settings.limits.updates_per_second_per_peer,
        // A whole snapshot within the quotas is not held back.
        record_burst: u32::try_from(services.saturating_add(endpoints)).unwrap_or(u32::MAX),
        ..eastway_federation::Limits::default()
    }
}

/// Limits of links. Each stream of a peer takes a file descriptor: one peer gets a quarter of them and no more.
#[must_use]
pub fn tunnel_limits(settings: &Settings, file_descriptors: u64) -> TunnelLimits {
    let share = u32::try_from(file_descriptors / 4).unwrap_or(u32::MAX).max(64);
    TunnelLimits {
        streams_per_peer: settings.limits.streams_per_peer.min(share),
        total_window: settings.limits.buffer_bytes,
        ..TunnelLimits::default()
    }
}

/// How long connections may stand still.
#[must_use]
pub fn limits(settings: &Settings) -> Limits {
    let limits = &settings.limits;
    Limits { idle: limits.connection_idle, half_closed: limits.connection_half_closed }
}

/// How long a connection waits for its client's name. API servers learn addresses of pods from kubelets, after the pod
/// has begun; files say all they have to say at once.
#[must_use]
pub fn patience(settings: &Settings) -> Duration {
    let lags = |registry: &RegistrySettings| !matches!(registry.source, RegistrySource::File(_));
    if settings.registries.iter().any(lags) { NAMING } else { Duration::ZERO }
}

/// Timing of links.
#[must_use]
pub fn timing(settings: &Settings) -> Timing {
    Timing { keep_alive: settings.link.keep_alive, idle: settings.link.idle_timeout, ..Timing::default() }
}

/// What is never dialled as an endpoint.
#[must_use]
pub fn dial_rules(settings: &Settings) -> DialRules {
    DialRules { allow_loopback: settings.allow_loopback, virtual_ranges: settings.vip.ranges.clone() }
}

/// The way to an API server; without one that is configured, the service account of the pod.
#[must_use]
pub fn kubernetes_access(access: Option<&KubernetesAccess>) -> Access {
    match access.and_then(|access| Some((access.kubeconfig.clone()?, access.context.clone()))) {
        Some((path, context)) => Access::Kubeconfig { path, context },
        None => Access::InCluster,
    }
}

/// The version that people see.
#[must_use]
pub fn software_version() -> Arc<str> {
    Arc::from(env!("CARGO_PKG_VERSION"))
}

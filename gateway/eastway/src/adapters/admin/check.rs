//! Facts for `eastway check`, gathered from the handles and by probing the peers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use eastway_dns::client::QueryType;
use eastway_identity::{SpkiPin, VerifyError};
use eastway_kubernetes::injection;
use eastway_model::store::Snapshot;
use eastway_model::{ClusterName, ServiceKey, ServiceKind};
use eastway_tunnel::header::StreamHeader;
use eastway_tunnel::{AddressStatus, CloseCode, FailureCause, Link, PeerStatus, Tunnel};
use futures_util::future::join_all;
use tokio::time::timeout;

use super::{istio, millis, reach};
use crate::adapters;
use crate::admin::check::{AddressFacts, CheckFacts, DnsFacts, GatewayFacts, HandshakeFault, NextCaFault, PeerFacts};
use crate::app::frontend::Shortage;
use crate::app::registries::RegistryStatus;
use crate::app::{Gateway, clock};
use crate::config::{PeerSettings, Settings};
use crate::roles::ca_client;
use crate::roles::enroll::NextCa;
use crate::telemetry::{RECENT, Refusal};

/// What is sent through a link and back.
const ECHO: usize = 64 * 1024;
const ECHO_TIMEOUT: Duration = Duration::from_secs(3);

/// Names that our DNS server is asked for.
const MAX_NAMES: usize = 100;

pub(super) async fn facts(gateway: &Gateway, only: Option<String>) -> CheckFacts {
    let loaded = gateway.configuration.loaded.borrow().clone();
    let snapshot = gateway.reader.load_full();
    let status = gateway.tunnel.get().map(|tunnel| tunnel.status()).unwrap_or_default();
    let wanted = loaded.peers.values().filter(|peer| only.as_deref().is_none_or(|only| only == peer.name.as_str()));
    let peers = wanted.map(|peer| {
        let status = status.iter().find(|status| &*status.name == peer.name.as_str());
        peer_facts(gateway, &snapshot, peer, status)
    });
    // At the same time: one that does not answer takes as long as it may.
    let (next, mut peers, dns) =
        tokio::join!(announced_ca(gateway, &loaded.settings), join_all(peers), dns_facts(gateway, &snapshot));
    if let Ok(Some(next)) = &next {
        for facts in &mut peers {
            facts.next_ca = next_ca(next, status.iter().find(|status| *status.name == *facts.name));
        }
    }
    let mut own = gateway_facts(gateway, &snapshot);
    own.ca_silent = next.err();
    own.sidecars_missing = sidecars_missing(&loaded.settings).await;
    own.istio = istio::facts(gateway, &loaded, &snapshot, &status).await;
    CheckFacts { now: clock::wall().0, gateway: own, dns, peers }
}

/// What the ca role says of a rotation; else why it does not answer.
async fn announced_ca(gateway: &Gateway, settings: &Settings) -> Result<Option<NextCa>, String> {
    let client = ca_client(settings).map_err(|error| error.to_string())?;
    client.next_ca(gateway.identity.get()).await.map_err(|error| error.to_string())
}

/// Where sidecars are put into pods.
async fn sidecars_missing(settings: &Settings) -> Vec<String> {
    if settings.sidecars.as_ref().is_none_or(|sidecars| sidecars.injection.is_none()) {
        return Vec::new();
    }
    let access = adapters::kubernetes_access(settings.kubernetes.as_ref().map(|kubernetes| &kubernetes.access));
    let found = injection::without_sidecar(&access, settings.system_namespace()).await;
    found.unwrap_or_else(|error| vec![format!("not known: {error}")])
}

fn gateway_facts(gateway: &Gateway, snapshot: &Snapshot) -> GatewayFacts {
    let identity = gateway.identity.get().map(|store| store.current());
    let exported: Vec<_> = snapshot.locals().filter(|local| local.exported).collect();
    let idle = exported.iter().filter(|local| local.record.groups.iter().all(|group| group.ready == 0));
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let frontend = gateway.frontend.borrow().clone();
    GatewayFacts {
        leaf: identity.as_ref().map(|identity| (millis(identity.not_before()), millis(identity.not_after()))),
        issuer_not_after: identity.as_ref().and_then(|identity| identity.issuer_not_after()).map(millis),
        crl_next_update: gateway.trust.crl_next_update().map(millis),
        ca_silent: None,
        siblings_silent: gateway.tunnel.get().map(|tunnel| silent(tunnel)).unwrap_or_default(),
        sidecars_refusing: super::sidecars::refusing(gateway),
        sidecars_missing: Vec::new(),
        sidecars_differ: super::sidecars::differing(gateway, snapshot),
        sidecars_in_the_way: in_the_way(gateway),
        istio: None,
        pending: gateway.readiness.pending().iter().map(ToString::to_string).collect(),
        config_errors: gateway.configuration.status.borrow().errors.clone(),
        registry_errors: super::registries(gateway)
            .into_iter()
            .filter(|registry| !registry.errors.is_empty())
            .map(|registry| format!("{}: {}", registry.name, registry.errors.join("; ")))
            .collect(),
        exported_services: count(exported.len()),
        exported_without_endpoints: idle.map(|local| local.key().to_string()).collect(),
        vips_missing: count(frontend.exhausted.values().filter(|shortage| **shortage != Shortage::Waiting).count()),
        vips_unbound: frontend.failed.iter().map(|(address, error)| format!("{address} ({error})")).collect(),
        // The admin port knows the log.
        dropped_log_lines: 0,
        fd_limit: rustix::process::getrlimit(rustix::process::Resource::Nofile).current,
        udp_receive_buffer: gateway.tunnel.get().and_then(|tunnel| tunnel.receive_buffer()),
    }
}

/// Exported services with pods whose sidecars would take a PROXY header for the beginning of a connection.
fn in_the_way(gateway: &Gateway) -> Vec<String> {
    let registries = gateway.registries.borrow();
    let of = |status: &RegistryStatus| match status {
        RegistryStatus::Kubernetes(status) => status.borrow().sidecars_in_the_way.clone(),
        // Those of a list are there by themselves.
        RegistryStatus::File(_) | RegistryStatus::Clusters(_) => Vec::new(),
    };
    registries.values().flat_map(of).map(|key| key.to_string()).collect()
}

fn silent(tunnel: &Tunnel) -> Vec<String> {
    tunnel.silent_siblings().iter().map(ToString::to_string).collect()
}

async fn dns_facts(gateway: &Gateway, snapshot: &Snapshot) -> DnsFacts {
    let Some(server) = gateway.listeners.get("dns").and_then(|all| all.first()).copied() else {
        return DnsFacts::default();
    };
    let asked = eastway_dns::client::query(server, "clusterset.local", QueryType::Soa, Duration::from_secs(1)).await;
    let dangling = snapshot.rules().names.iter().filter(|rule| snapshot.import(&rule.service).is_none());
    let answers = asked.is_ok();
    // Without local truth, and without a server, every name fails, which is told once.
    let unresolved =
        if answers && snapshot.is_local_synced() { unresolved(server, snapshot).await } else { Vec::new() };
    DnsFacts {
        enabled: true,
        answers,
        synced: snapshot.is_local_synced(),
        dangling_names: dangling.map(|rule| (rule.fqdn.to_string(), rule.service.to_string())).collect(),
        unresolved,
    }
}

/// Asks our own server for the names that should have an address, own names first, and gives those that have none.
async fn unresolved(server: SocketAddr, snapshot: &Snapshot) -> Vec<(String, String)> {
    let has_address =
        |key: &ServiceKey| snapshot.import(key).is_some_and(|import| import.kind == ServiceKind::ClusterSetIp);
    let own = snapshot.rules().names.iter().filter(|rule| has_address(&rule.service)).map(|rule| rule.fqdn.to_string());
    let clusterset = snapshot.imports().filter(|import| has_address(&import.key));
    let clusterset =
        clusterset.map(|import| format!("{}.{}.svc.clusterset.local", import.key.name, import.key.namespace));
    let asked = own.chain(clusterset).take(MAX_NAMES).map(|name| async move {
        let (v4, v6) = tokio::join!(answer(server, &name, QueryType::A), answer(server, &name, QueryType::Aaaa));
        match (v4, v6) {
            (Ok(()), _) | (_, Ok(())) => None,
            (Err(why), Err(_)) => Some((name, why)),
        }
    });
    join_all(asked).await.into_iter().flatten().collect()
}

/// Whether a name has an address; else what it is answered.
async fn answer(server: SocketAddr, name: &str, qtype: QueryType) -> Result<(), String> {
    match eastway_dns::client::query(server, name, qtype, Duration::from_secs(2)).await {
        Ok(answer) if answer.rcode != "NOERROR" => Err(answer.rcode),
        Ok(answer) if answer.records.is_empty() => Err("without an address".to_owned()),
        Ok(_) => Ok(()),
        Err(error) => Err(format!("not at all: {error}")),
    }
}

async fn peer_facts(
    gateway: &Gateway,
    snapshot: &Snapshot,
    peer: &PeerSettings,
    status: Option<&PeerStatus>,
) -> PeerFacts {
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let reached = peer.addresses.iter().map(|address| async {
        let address = address.to_string();
        let reach = reach::probe(&address).await;
        AddressFacts { address, reach }
    });
    let link = gateway.router.link(&peer.name, &[]);
    let (addresses, echo) = tokio::join!(join_all(reached), echo(link));
    let stored = snapshot.peer(peer.name.as_str());
    let links = status.map(|status| status.links.as_slice()).unwrap_or_default();
    let metrics = &gateway.telemetry.metrics;
    let rejected = metrics.recently_rejected(peer.name.as_str());
    let conflicts = snapshot.imports().flat_map(|import| &import.conflicts);
    let conflicts = conflicts.filter(|conflict| conflict.winner == peer.name || conflict.losers.contains(&peer.name));
    PeerFacts {
        name: peer.name.to_string(),
        up: status.is_some_and(|status| status.up),
        addresses,
        handshake: handshake(gateway, status),
        mtu: links.iter().map(|link| link.mtu).filter(|mtu| *mtu > 0).max(),
        echo,
        transport: status.and_then(degraded),
        via: links.first().and_then(|link| link.via.as_ref()).map(ToString::to_string),
        relay_error: status.filter(|status| !status.up).and_then(|status| status.relay_error.clone()),
        clock_skew_ms: status.and_then(|status| status.clock_skew_ms),
        certificate: links
            .iter()
            .map(|link| (millis(link.cert_not_before), millis(link.cert_not_after)))
            .max_by_key(|(_, end)| *end),
        recent_link_losses: count(status.map_or(0, recent_losses)),
        packets: (links.iter().map(|link| link.packets_sent).sum(), links.iter().map(|link| link.packets_lost).sum()),
        pins: count(peer.pins.len()),
        next_ca: None,
        shared_trust_domain: peer.shared_trust_domain,
        import_rules: count(peer.import.entries().len()),
        export_rules: count(peer.export.entries().len()),
        imported_services: count(stored.map_or(0, |stored| stored.services)),
        exported_services: count(snapshot.exports_to(&peer.name).count()),
        rejected: rejected.into_iter().map(|(reason, count)| (reason.to_owned(), count)).collect(),
        synced: stored.is_some_and(|stored| stored.synced),
        stale_ms: stored.and_then(|stored| super::peers::stale(gateway, peer.name.as_str(), stored.state)),
        version_mismatch: status.filter(|status| !status.up).and_then(version_mismatch),
        denied: denied(gateway, &peer.name),
        denied_by_it: metrics.recently_denied_by(peer.name.as_str()),
        conflicts: conflicts.map(|conflict| conflict.message.clone()).collect(),
        istio_plain: istio::plain(&gateway.settings, snapshot, &peer.name),
    }
}

/// What carries the links in place of QUIC, and why, as far as it was tried from here.
fn degraded(status: &PeerStatus) -> Option<String> {
    let link = status.links.iter().find(|link| link.degraded)?;
    let why = status.addresses.iter().find_map(|address| address.last_error.as_ref());
    let name = link.transport.name();
    Some(why.map_or_else(|| name.to_owned(), |why| format!("{name} ({why})")))
}

/// How often in the last ten minutes the peer could not be reached any more.
fn recent_losses(status: &PeerStatus) -> usize {
    status.losses.iter().filter(|at| at.elapsed().is_ok_and(|age| age < RECENT)).count()
}

/// Connections of a peer that no access rule allowed lately, and the latest that was logged.
fn denied(gateway: &Gateway, peer: &ClusterName) -> Option<(u64, String)> {
    let telemetry = &gateway.telemetry;
    let count = telemetry.metrics.recently_denied(peer.as_str());
    let example = || telemetry.refusals.example(Refusal::Denied, &Arc::from(peer.as_str()));
    (count > 0).then(|| (count, example().unwrap_or_default()))
}

/// Whether the next step of a rotation would cut the links of a peer, by what each of its replicas says it accepts.
fn next_ca(next: &NextCa, status: Option<&PeerStatus>) -> Option<NextCaFault> {
    let pin = next.pin()?.to_string();
    let links = status.map(|status| status.links.as_slice()).unwrap_or_default();
    let accepts: Option<Vec<_>> = links.iter().map(|link| link.accepts.as_ref()).collect();
    match accepts.filter(|said| !said.is_empty()) {
        None => Some(NextCaFault::Unknown(pin)),
        Some(said) => (!said.iter().all(|pins| next.is_accepted_by(pins))).then_some(NextCaFault::Missing(pin)),
    }
}

/// Why there is no link, as its addresses and its own attempts tell it: what we refuse, or that the peer refuses us.
fn handshake(gateway: &Gateway, status: Option<&PeerStatus>) -> Option<HandshakeFault> {
    let status = status.filter(|status| !status.up)?;
    if let Some(verdict) = status.addresses.iter().find_map(|address| address.verdict.as_ref()) {
        return Some(fault(verdict));
    }
    // It dialled us. What was refused before the last link came up is mended.
    let refusal = gateway.trust.last_refusal_of(&status.name).filter(|refusal| {
        refusal.at.elapsed().is_ok_and(|age| age < RECENT) && refusal.at + Duration::from_secs(1) >= status.since
    });
    if let Some(refusal) = refusal {
        return Some(fault(&refusal.error));
    }
    let last = status.last_error.as_deref().unwrap_or_default();
    if last.contains(CloseCode::VersionUnsupported.name()) {
        return None;
    }
    if let Some(name) = other_name(last) {
        return Some(HandshakeFault::WrongCluster(name.to_owned()));
    }
    let failed = |cause| status.addresses.iter().find(|address| address.cause == Some(cause));
    let text = |address: &AddressStatus| address.last_error.clone().unwrap_or_default();
    if let Some(address) = failed(FailureCause::RefusedUs) {
        // The finding says so itself.
        let said = text(address).replacen("the peer refused us: ", "", 1);
        return Some(HandshakeFault::RefusedUs(format!("{said}; {}", presented(gateway))));
    }
    let said = text(failed(FailureCause::Rejected)?);
    let foreign = said.contains(&*String::from_utf8_lossy(eastway_identity::tls::ALPN));
    Some(if foreign { HandshakeFault::Protocol(said) } else { HandshakeFault::Other(said) })
}

/// By what name a peer calls itself that is not its own, from the words of the tunnel.
fn other_name(error: &str) -> Option<&str> {
    let (_, name) = error.split_once("the peer calls itself ")?;
    Some(name.split_once(',').map_or(name, |(name, _)| name))
}

fn version_mismatch(status: &PeerStatus) -> Option<String> {
    let error = status.last_error.as_deref()?;
    error.contains(CloseCode::VersionUnsupported.name()).then(|| error.to_owned())
}

/// What this gateway shows of itself in a handshake, for the other side to compare with its Peer file.
fn presented(gateway: &Gateway) -> String {
    let Some(identity) = gateway.identity.get().map(|store| store.current()) else { return String::new() };
    let pin = identity.chain().get(1).and_then(|issuer| SpkiPin::of_certificate(issuer).ok());
    let pin = pin.map_or_else(|| "no issuer".to_owned(), |pin| format!("the key {pin}"));
    format!("we present {} by {pin}", identity.id())
}

fn fault(error: &VerifyError) -> HandshakeFault {
    let unix = |at: &eastway_identity::Timestamp| millis(at.to_system());
    #[expect(clippy::wildcard_enum_match_arm, reason = "what has no check of its own is told as it is")]
    match error {
        VerifyError::NotPinned { presented, .. } | VerifyError::WrongPeer { presented, .. } => {
            HandshakeFault::Unpinned(presented.to_string())
        }
        VerifyError::NotTheGateway { presented, .. } => HandshakeFault::WrongIdentity(presented.to_string()),
        VerifyError::Revoked { .. } => HandshakeFault::Revoked,
        VerifyError::Expired { not_after, .. } => HandshakeFault::Expired(unix(not_after)),
        VerifyError::NotYetValid { not_before, .. } => HandshakeFault::NotYetValid(unix(not_before)),
        other => HandshakeFault::Other(format!("the other side {other}")),
    }
}

/// Sends 64 KiB through a link and back.
async fn echo(link: Option<Link>) -> Option<Result<Duration, String>> {
    let link = link?;
    let began = Instant::now();
    let result = timeout(ECHO_TIMEOUT, round_trip(&link)).await;
    Some(match result {
        Err(_elapsed) => Err(format!("no echo within {ECHO_TIMEOUT:?}")),
        Ok(Err(error)) => Err(error),
        Ok(Ok(bytes)) if bytes == ECHO => Ok(began.elapsed()),
        Ok(Ok(bytes)) => Err(format!("{bytes} of {ECHO} bytes came back")),
    })
}

async fn round_trip(link: &Link) -> Result<usize, String> {
    let stream = link.open(&StreamHeader::Probe).await.map_err(|error| error.to_string())?;
    let (mut send, mut recv) = stream.split();
    let upload = async {
        send.write(Bytes::from(vec![0; ECHO])).await?;
        send.finish();
        Ok(())
    };
    let download = async {
        recv.accepted().await?;
        let mut bytes = 0;
        while let Some(chunk) = recv.read().await? {
            bytes += chunk.len();
        }
        Ok(bytes)
    };
    let result: Result<((), usize), eastway_tunnel::StreamError> = tokio::try_join!(upload, download);
    result.map(|((), bytes)| bytes).map_err(|error| error.to_string())
}

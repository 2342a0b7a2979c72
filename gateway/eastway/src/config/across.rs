//! Checks over several files.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use eastway_model::ClusterName;
use eastway_registry::diagnostic::{Code, Diagnostics};
use eastway_registry::yaml::Place;

use super::peer::PlacedPeer;
use super::policy::{self, Collected};
use super::settings::Settings;
use super::value::HostPort;

/// `settings` is `None` if the configuration file itself has mistakes: what concerns the Peers alone
/// is checked all the same.
pub(super) fn check(
    settings: Option<&Settings>,
    peers: &[Arc<PlacedPeer>],
    policies: &Collected,
    sink: &mut Diagnostics,
) {
    names(settings, peers, sink);
    addresses(settings, peers, sink);
    relays(settings, peers, sink);
    pins(peers, sink);
    trust_domains(settings, peers, sink);
    policies.routes.check(&policies.istio, sink);
    policies.istio.check(sink);
    if let Some(settings) = settings {
        let known: BTreeSet<&ClusterName> = peers.iter().map(|peer| &peer.settings.name).collect();
        policy::unknown_clusters(policies, &settings.cluster, &known, sink);
    }
}

fn names(settings: Option<&Settings>, peers: &[Arc<PlacedPeer>], sink: &mut Diagnostics) {
    let mut seen: BTreeMap<&ClusterName, &Place> = BTreeMap::new();
    for peer in peers {
        let name = &peer.settings.name;
        if settings.is_some_and(|settings| settings.cluster == *name) {
            let report = peer.name.error(Code::Conflict, format!("\"{name}\" is this cluster's own name"));
            sink.push(report.with_help("a Peer is another cluster; `eastway peer export` there prints the right file"));
        } else if let Some(earlier) = seen.get(name) {
            sink.push(peer.name.error(Code::Duplicate, format!("\"{name}\" is already used by {earlier}")));
        } else {
            seen.insert(name, &peer.name);
        }
    }
}

fn addresses(settings: Option<&Settings>, peers: &[Arc<PlacedPeer>], sink: &mut Diagnostics) {
    let mut seen: BTreeMap<&HostPort, (&ClusterName, &Place)> = BTreeMap::new();
    for peer in peers {
        for (address, place) in peer.settings.addresses.iter().zip(&peer.addresses) {
            if settings.is_some_and(|settings| is_own(settings, address)) {
                sink.push(place.error(Code::Conflict, format!("{address} is this gateway's own address")));
            }
            match seen.get(address) {
                Some((other, earlier)) if **other != peer.settings.name => {
                    sink.push(place.error(Code::Duplicate, format!("{address} is already used by {earlier}")));
                }
                // Twice in one file is reported there.
                Some(_) => {}
                None => {
                    seen.insert(address, (&peer.settings.name, place));
                }
            }
        }
    }
}

/// A relay is a peer, and reached without another relay.
fn relays(settings: Option<&Settings>, peers: &[Arc<PlacedPeer>], sink: &mut Diagnostics) {
    for peer in peers {
        let (Some(via), Some(place)) = (&peer.settings.via, &peer.via) else { continue };
        let relay = peers.iter().find(|other| other.settings.name == *via);
        let message = match relay {
            _ if settings.is_some_and(|settings| settings.cluster == *via) => {
                format!("{via} is this cluster; name the one that relays")
            }
            None => format!("no Peer is called {via}: there are no links to reach others by"),
            Some(relay) if relay.settings.via.is_some() && relay.settings.addresses.is_empty() => {
                format!("{via} is itself reached by way of another cluster, and there is one hop only")
            }
            Some(_) => continue,
        };
        sink.push(place.warning(Code::Conflict, message));
    }
}

fn is_own(settings: &Settings, address: &HostPort) -> bool {
    let link = settings.listen.link;
    settings.listen.advertise.contains(address)
        || address.socket_addr().is_some_and(|address| {
            let everywhere = link.ip().is_unspecified() && address.ip().is_loopback();
            address.port() == link.port() && (address.ip() == link.ip() || everywhere)
        })
}

fn pins(peers: &[Arc<PlacedPeer>], sink: &mut Diagnostics) {
    let mut seen = BTreeMap::new();
    for (index, peer) in peers.iter().enumerate() {
        for (pin, place) in peer.settings.pins.iter().zip(&peer.pins) {
            let (first, earlier) = seen.entry(pin).or_insert((index, place));
            if *first != index {
                let report = place.error(Code::Duplicate, format!("this pin is already used by {earlier}"));
                let help = "one key would speak for two clusters; each cluster needs an issuing CA of its own";
                sink.push(report.with_help(help));
            }
        }
    }
}

/// Two clusters in one trust domain isolate nothing, and both sides have to know it.
fn trust_domains(settings: Option<&Settings>, peers: &[Arc<PlacedPeer>], sink: &mut Diagnostics) {
    let own = settings.map(|settings| &settings.trust.domain);
    for (index, peer) in peers.iter().enumerate() {
        let (domain, shared) = (&peer.settings.trust_domain, peer.settings.shared_trust_domain);
        let others = peers.iter().enumerate().filter(|(other, _)| *other != index).map(|(_, other)| other);
        let mut same = others.filter(|other| other.settings.trust_domain == *domain);
        let with = if own == Some(domain) {
            Some("this cluster".to_owned())
        } else {
            same.next().map(|other| format!("the peer {}", other.settings.name))
        };
        match with {
            Some(with) if !shared => {
                let message = format!(
                    "{domain} is also the trust domain of {with}: workloads of one could pose as those of the other"
                );
                let help = "give each cluster a trust domain of its own, or accept it: sharedTrustDomain: true, here and in the other file";
                sink.push(peer.trust_domain.error(Code::Conflict, message).with_help(help));
            }
            // Whether it is shared with us is not known without settings.
            None if shared && own.is_some() => {
                if let Some(place) = &peer.shared {
                    let message = format!("has no effect: nobody else here is in the trust domain {domain}");
                    sink.push(place.warning(Code::Value, message));
                }
            }
            Some(_) | None => {}
        }
    }
}

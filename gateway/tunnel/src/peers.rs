//! Which peers there are, which of their replicas are linked, and what is to be dialled next.
//!
//! A pure data structure: the time and the randomness are arguments, and nothing is dialled here. The
//! manager asks it what to do and tells it what happened.

mod address;
mod chooser;
mod companion;
mod counts;
mod path;

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

pub(crate) use self::address::Address;
use self::address::{Moment, RateLimit};
pub use self::companion::BulkStatus;
pub(crate) use self::companion::Carried;
use self::companion::Companion;
pub(crate) use self::counts::{PeerCounts, Traffic};
pub(crate) use self::path::PathMeter;
use crate::code::CloseCode;
use crate::config::{HostPort, PeerTarget, ReplicaId, TcpWay, Timing, TransportPolicy};
use crate::events::{FailureCause, LinkFailure};
use crate::transport::{PathStats, Side, TransportKind};

/// Quick dials in search of a replica that is not linked yet, for each replica that the peer has.
const SEARCH_PER_REPLICA: u32 = 4;
/// Between two dials of a search that has found nothing by then (ADR 0015).
const SEARCH_ON: Duration = Duration::from_secs(15);

/// Losses that are remembered for each peer.
const MAX_LOSSES: usize = 16;

/// One dial to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Dial {
    pub(crate) peer: Arc<str>,
    pub(crate) address: HostPort,
    pub(crate) transport: TransportKind,
    pub(crate) way: TcpWay,
    /// Counts the dials of this address: which of a name's addresses to take.
    pub(crate) attempt: u32,
    /// It is to be beside a link by QUIC to the same replica.
    pub(crate) beside: Option<ReplicaId>,
}

/// A link as far as it matters here.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LinkFacts {
    pub(crate) id: u64,
    pub(crate) replica: ReplicaId,
    pub(crate) side: Side,
    pub(crate) transport: TransportKind,
    /// The cluster that carries it; none if nobody does.
    pub(crate) via: Option<Arc<str>>,
    /// The address it was dialled at, if it was dialled here.
    pub(crate) address: Option<HostPort>,
    pub(crate) since: Duration,
    /// Acknowledged within the last heartbeats.
    pub(crate) fresh: bool,
    /// Acknowledged at all, and not too long ago.
    pub(crate) up: bool,
    /// Either side drains it.
    pub(crate) going_away: bool,
    /// How its path does.
    pub(crate) path: PathMeter,
    /// It was dialled to be beside a link by QUIC to this replica.
    pub(crate) beside: Option<ReplicaId>,
    /// What it carried, and what became of it, at the last look.
    pub(crate) carried: Carried,
}

/// All peers.
pub(crate) struct Peers {
    cluster: Arc<str>,
    replica: ReplicaId,
    timing: Timing,
    links_per_peer: usize,
    /// What links are made by, the preferred one first.
    transports: Vec<TransportKind>,
    peers: BTreeMap<Arc<str>, Peer>,
    random: fastrand::Rng,
}

/// One peer.
pub(crate) struct Peer {
    /// Configured, not merely trusted.
    listed: bool,
    pub(crate) policy: TransportPolicy,
    tcp: TcpWay,
    /// By way of whom links may be made.
    pub(crate) via: Option<Arc<str>>,
    /// Each address once for each transport that may carry a link, the preferred one first.
    pub(crate) addresses: Vec<Address>,
    pub(crate) links: BTreeMap<u64, LinkFacts>,
    /// What the peer says of itself, last.
    pub(crate) replicas: BTreeSet<ReplicaId>,
    /// Dials made in search of replicas since the last one was found.
    searched: u32,
    rates: BTreeMap<TransportKind, RateLimit>,
    pub(crate) up: bool,
    pub(crate) since: SystemTime,
    pub(crate) dials: u64,
    pub(crate) last_error: Option<String>,
    /// Why what another cluster brought from it was not taken.
    pub(crate) relay_refused: Option<String>,
    /// When the last link was lost, the latest last: one outage is one loss, however many links there were.
    pub(crate) losses: VecDeque<SystemTime>,
    /// What its links that are gone had carried.
    pub(crate) past: Traffic,
    /// Links by TCP beside those by QUIC, by the replica that both lead to.
    companions: BTreeMap<ReplicaId, Companion>,
}

impl Peers {
    pub(crate) fn new(
        cluster: Arc<str>,
        replica: ReplicaId,
        timing: Timing,
        links_per_peer: usize,
        transports: Vec<TransportKind>,
        random: fastrand::Rng,
    ) -> Self {
        Self { cluster, replica, timing, links_per_peer, transports, peers: BTreeMap::new(), random }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Peer)> {
        self.peers.iter()
    }

    /// Replaces the configured peers. What stayed the same is not disturbed; returns the links of peers
    /// that are gone.
    pub(crate) fn set_targets(&mut self, targets: Vec<PeerTarget>, now: Duration, wall: SystemTime) -> Vec<u64> {
        let mut old = std::mem::take(&mut self.peers);
        let mut cut = Vec::new();
        for PeerTarget { name, addresses, via, transport, tcp } in targets {
            let mut peer = old.remove(&name).unwrap_or_else(|| Peer::new(wall));
            if peer.via != via {
                let relayed = peer.links.values().filter(|link| link.transport == TransportKind::Relay);
                cut.extend(relayed.map(|link| link.id));
            }
            let direct = self.transports.iter().copied().filter(|kind| *kind != TransportKind::Relay);
            let direct: Vec<_> = direct.filter(|kind| transport.allows(*kind)).collect();
            let ways = addresses.iter().flat_map(|host| direct.iter().map(|kind| (host.clone(), *kind)));
            let relay = via.iter().map(|via| (HostPort { host: Arc::clone(via), port: 0 }, TransportKind::Relay));
            (peer.listed, peer.policy, peer.tcp) = (true, transport, tcp);
            let mut known = std::mem::take(&mut peer.addresses);
            for (host, kind) in ways.chain(relay) {
                let position = known.iter().position(|known| known.host == host && known.transport == kind);
                let new = || Address::new(host.clone(), kind, now);
                peer.addresses.push(position.map_or_else(new, |at| known.swap_remove(at)));
            }
            peer.via = via;
            self.peers.insert(name, peer);
        }
        // A peer that is trusted but not listed yet may have dialled us: the trust store decides over it.
        let (gone, unlisted): (BTreeMap<_, _>, BTreeMap<_, _>) = old.into_iter().partition(|(_, peer)| peer.listed);
        self.peers.extend(unlisted);
        cut.extend(gone.into_values().flat_map(|peer| peer.links.into_keys()));
        cut
    }

    /// Whether links with `peer` may go by way of `via`.
    pub(crate) fn is_via(&self, peer: &str, via: &str) -> bool {
        self.peers.get(peer).is_some_and(|peer| peer.listed && peer.via.as_deref() == Some(via))
    }

    /// Takes the dials that are due now.
    pub(crate) fn due(&mut self, now: Duration) -> Vec<Dial> {
        let mut dials = Vec::new();
        for (name, peer) in &mut self.peers {
            while let Some(index) = peer.next_due(now) {
                let searching = peer.is_search(index) && peer.wants_search();
                let Some(address) = peer.addresses.get_mut(index) else { break };
                peer.rates.entry(address.transport).or_default().take(now);
                peer.dials += 1;
                peer.searched += u32::from(searching);
                let transport = address.transport;
                dials.push(Dial {
                    peer: Arc::clone(name),
                    address: address.host.clone(),
                    transport,
                    way: if transport == TransportKind::Tcp { peer.tcp.clone() } else { TcpWay::default() },
                    attempt: address.begin(now),
                    beside: None,
                });
            }
        }
        dials
    }

    /// Forgets how often dials failed: what they failed of may have changed.
    pub(crate) fn retry(&mut self, now: Duration) {
        let mut at = Moment { now, timing: &self.timing, random: &mut self.random };
        self.peers.values_mut().flat_map(|peer| &mut peer.addresses).for_each(|address| address.retry(&mut at));
    }

    /// Whether `peer` counts `replica` among its live ones.
    pub(crate) fn lists(&self, peer: &str, replica: &ReplicaId) -> bool {
        self.peers.get(peer).is_some_and(|peer| peer.replicas.contains(replica))
    }

    /// When [`Peers::due`] may have something to say.
    pub(crate) fn next_due(&self) -> Option<Duration> {
        self.peers.values().filter_map(Peer::earliest).min()
    }

    /// A dial gave no link.
    pub(crate) fn dial_failed(&mut self, dial: &Dial, failure: LinkFailure, now: Duration) {
        let mut at = Moment { now, timing: &self.timing, random: &mut self.random };
        let Some(peer) = self.peers.get_mut(&dial.peer) else { return };
        if let Some(replica) = dial.beside {
            peer.companion_failed(replica, now);
            return;
        }
        peer.last_error = Some(failure.text.clone());
        let linked = peer.links.values().any(|link| link.address.as_ref() == Some(&dial.address) && !link.going_away);
        let rank = peer.policy.rank(dial.transport);
        let fallback =
            peer.addresses.iter().any(|way| way.host == dial.address && peer.policy.rank(way.transport) < rank);
        if let Some(address) = peer.address(&dial.address, dial.transport) {
            address.failed(failure, linked, &mut at);
            if fallback {
                // Where nobody listens TCP says so at once, and QUIC finds out with its next packet.
                address.not_so_soon(&mut at);
            }
        }
    }

    /// A connection that the peer made gave no link.
    pub(crate) fn refused(&mut self, name: &str, error: String) {
        if let Some(peer) = self.peers.get_mut(name) {
            peer.last_error = Some(error);
        }
    }

    /// What another cluster brought from a peer was not taken.
    pub(crate) fn relay_refused(&mut self, name: &str, error: &str) {
        if let Some(peer) = self.peers.get_mut(name) {
            (peer.last_error, peer.relay_refused) = (Some(error.to_owned()), Some(error.to_owned()));
        }
    }

    /// A link is there.
    ///
    /// # Errors
    /// Why it is to be closed.
    pub(crate) fn link_started(
        &mut self,
        name: &Arc<str>,
        facts: LinkFacts,
        replicas: Vec<ReplicaId>,
        now: Duration,
        wall: SystemTime,
    ) -> Result<(), (CloseCode, &'static str)> {
        if facts.replica == self.replica {
            return Err((CloseCode::Protocol, "the peer has our own replica id"));
        }
        // Its handshake may have begun before the Peer file changed.
        if facts.via.as_ref().is_some_and(|via| !self.is_via(name, via)) {
            return Err((CloseCode::Revoked, "the Peer file does not name the cluster that carries the link any more"));
        }
        let mut at = Moment { now, timing: &self.timing, random: &mut self.random };
        let peer = self.peers.entry(Arc::clone(name)).or_insert_with(|| Peer::new(wall));
        if !peer.is_linked(&facts.replica) {
            peer.searched = 0;
        }
        if let Some(replica) = facts.beside {
            peer.companion_started(&facts, replica)?;
            peer.links.insert(facts.id, facts);
            return Ok(());
        }
        let pause = if peer.searched < peer.quick_searches() { at.timing.redial } else { SEARCH_ON };
        if let Some(host) = &facts.address {
            peer.remember(host, facts.transport);
            if let Some(address) = peer.address(host, facts.transport) {
                address.reached(facts.replica, pause, &mut at);
            }
        }
        if peer.links.len() >= self.links_per_peer {
            return Err((CloseCode::Overloaded, "too many links of this peer"));
        }
        peer.links.insert(facts.id, facts);
        peer.relay_refused = None;
        peer.set_replicas(replicas);
        Ok(())
    }

    /// A link's state, or the replicas that the other side tells of, changed.
    pub(crate) fn link_changed(
        &mut self,
        id: u64,
        update: impl FnOnce(&mut LinkFacts),
        replicas: Option<Vec<ReplicaId>>,
        wall: SystemTime,
    ) {
        let Some(peer) = self.peers.values_mut().find(|peer| peer.links.contains_key(&id)) else { return };
        if let Some(facts) = peer.links.get_mut(&id) {
            update(facts);
        }
        if let Some(replicas) = replicas {
            peer.set_replicas(replicas);
        }
        peer.refresh(wall);
    }

    /// How the path of a link does now.
    pub(crate) fn measured(&mut self, id: u64, stats: &PathStats, bytes: u64) {
        let Some(peer) = self.peers.values_mut().find(|peer| peer.links.contains_key(&id)) else { return };
        let Some(facts) = peer.links.get_mut(&id) else { return };
        facts.path.sample(stats);
        facts.carried = Carried { bytes, path: *stats };
        let Some(host) = facts.address.clone() else { return };
        let (path, replica, transport) = (facts.path, facts.replica, facts.transport);
        for address in peer.addresses.iter_mut().filter(|address| address.transport == transport) {
            if address.host == host {
                address.rtt = Some(stats.rtt);
            } else if address.replica == Some(replica) && address.rtt.is_some_and(|rtt| path.may_be_beaten_by(rtt)) {
                address.look_soon();
            }
        }
    }

    /// A link is about to be forgotten: what it carried is not.
    pub(crate) fn carried(&mut self, name: &str, traffic: Traffic) {
        if let Some(peer) = self.peers.get_mut(name) {
            peer.past += traffic;
        }
    }

    /// A link is gone.
    pub(crate) fn link_ended(&mut self, id: u64, failure: LinkFailure, now: Duration, wall: SystemTime) {
        let mut at = Moment { now, timing: &self.timing, random: &mut self.random };
        let Some(peer) = self.peers.values_mut().find(|peer| peer.links.contains_key(&id)) else { return };
        let Some(facts) = peer.links.remove(&id) else { return };
        if let Some(replica) = facts.beside {
            peer.companion_failed(replica, now);
            if peer.links.values().any(|link| link.up) {
                return;
            }
        }
        if failure.cause != FailureCause::Done {
            peer.searched = 0;
            peer.last_error = Some(failure.text.clone());
        }
        let lasted = now.saturating_sub(facts.since) >= at.timing.acknowledge;
        if let Some(host) = facts.address {
            if let Some(address) = peer.address(&host, facts.transport) {
                address.lost(failure, lasted, &mut at);
            }
            // What was seldom tried beside the link may be all that is left.
            if !peer.links.values().any(|link| link.address.as_ref() == Some(&host)) {
                peer.addresses.iter_mut().filter(|way| way.host == host).for_each(|way| way.hurry(&mut at));
            }
        }
        peer.refresh(wall);
        self.peers.retain(|_, peer| peer.listed || !peer.links.is_empty());
    }

    /// How `transport` is preferred for `peer`: the least first.
    pub(crate) fn rank(&self, peer: &str, transport: TransportKind) -> u8 {
        self.peers.get(peer).map_or_else(|| TransportPolicy::Auto.rank(transport), |peer| peer.policy.rank(transport))
    }

    /// Links dialled here that another link to the same replica makes superfluous. The better transport stays. Of two
    /// by the same, the one dialled by the smaller (cluster, replica) stays, of two dialled by one side the older; both
    /// sides come to the same end, and each retires only what it dialled itself.
    /// Of two that were dialled here at different addresses the better path stays.
    pub(crate) fn superfluous(&self, now: Duration) -> Vec<u64> {
        let mut retire = Vec::new();
        for (name, peer) in &self.peers {
            let ours_first = (&self.cluster, self.replica);
            let links = || peer.links.values().filter(|link| link.up && !link.going_away);
            for link in links().filter(|link| link.side == Side::Dialler) {
                let rank = |link: &LinkFacts| peer.policy.rank(link.transport);
                let beaten = links().filter(|other| other.replica == link.replica && other.fresh).any(|other| {
                    match rank(other).cmp(&rank(link)) {
                        Ordering::Less => !peer.keeps_beside(link, other),
                        Ordering::Greater => false,
                        Ordering::Equal => match other.side {
                            Side::Dialler if other.address != link.address => path::beats(other, link, now),
                            Side::Dialler => other.id < link.id,
                            Side::Acceptor => (name, other.replica) < ours_first,
                        },
                    }
                });
                if beaten {
                    retire.push(link.id);
                }
            }
        }
        retire
    }
}

impl Peer {
    fn new(wall: SystemTime) -> Self {
        Self {
            listed: false,
            policy: TransportPolicy::Auto,
            tcp: TcpWay::default(),
            via: None,
            addresses: Vec::new(),
            links: BTreeMap::new(),
            replicas: BTreeSet::new(),
            searched: 0,
            rates: BTreeMap::new(),
            up: false,
            since: wall,
            dials: 0,
            last_error: None,
            relay_refused: None,
            losses: VecDeque::new(),
            past: Traffic::default(),
            companions: BTreeMap::new(),
        }
    }

    fn address(&mut self, host: &HostPort, transport: TransportKind) -> Option<&mut Address> {
        self.addresses.iter_mut().find(|address| address.host == *host && address.transport == transport)
    }

    fn is_linked(&self, replica: &ReplicaId) -> bool {
        self.is_linked_by(replica, u8::MAX)
    }

    /// Whether a link leads to `replica` that is at least as good as one of `rank`.
    fn is_linked_by(&self, replica: &ReplicaId, rank: u8) -> bool {
        let links = self.links.values().filter(|link| link.replica == *replica && !link.going_away);
        links.into_iter().any(|link| self.policy.rank(link.transport) <= rank)
    }

    /// `host` was reached by `transport`.
    fn remember(&mut self, host: &HostPort, transport: TransportKind) {
        let rank = self.policy.rank(transport);
        let better = |address: &&Address| address.host == *host && self.policy.rank(address.transport) < rank;
        let failed = self.addresses.iter().filter(better).any(|address| address.missed || address.dialling);
        for address in self.addresses.iter_mut().filter(|address| address.host == *host) {
            match self.policy.rank(address.transport).cmp(&rank) {
                Ordering::Less => {}
                Ordering::Equal => address.remembered = failed,
                Ordering::Greater => address.remembered = false,
            }
        }
    }

    /// The way to the same address that this one is the fallback of.
    fn preferred(&self, index: usize) -> Option<&Address> {
        let fallback = self.addresses.get(index)?;
        self.addresses.get(..index)?.iter().rev().find(|address| address.host == fallback.host)
    }

    /// From when the way may be dialled as far as what it is the fallback of is concerned; `None`: not now.
    fn from(&self, index: usize) -> Option<Duration> {
        if self.addresses.get(index)?.transport == TransportKind::Relay {
            return self.relay_from();
        }
        let Some(preferred) = self.preferred(index) else { return Some(Duration::ZERO) };
        // Somebody else's link may lead to all there is; one by way of another cluster is no reason to stop.
        let mut direct = self.links.values().filter(|link| link.transport != TransportKind::Relay);
        let linked = direct.any(|link| !link.going_away) && self.missing().is_empty();
        let remembered = self.addresses.get(index).is_some_and(|address| address.remembered);
        preferred.fallback_from(remembered).filter(|_| !linked)
    }

    /// From when links by way of another cluster are wanted: when every other way has failed, or does not answer soon.
    fn relay_from(&self) -> Option<Duration> {
        let is_relay = |kind| kind == TransportKind::Relay;
        if self.links.values().any(|link| !is_relay(link.transport) && link.up && !link.going_away) {
            return None;
        }
        let direct = self.addresses.iter().filter(|way| !is_relay(way.transport));
        direct.map(|way| way.fallback_from(false)).try_fold(Duration::ZERO, |from, way| Some(from.max(way?)))
    }

    /// Replicas that the peer says it has and that no link leads to.
    pub(crate) fn missing(&self) -> Vec<ReplicaId> {
        self.replicas.iter().filter(|replica| !self.is_linked(replica)).copied().collect()
    }

    fn set_replicas(&mut self, replicas: Vec<ReplicaId>) {
        let replicas: BTreeSet<_> = replicas.into_iter().collect();
        if replicas != self.replicas {
            self.replicas = replicas;
            self.searched = 0;
            // A pause between two dials of a search that is over now.
            let reached = self.addresses.iter_mut().filter(|address| address.failures == 0);
            reached.for_each(|address| address.not_before = Duration::ZERO);
        }
    }

    /// The address leads to a replica that is linked already: dialling it can only find another one.
    fn is_search(&self, index: usize) -> bool {
        let Some(address) = self.addresses.get(index) else { return false };
        let rank = self.policy.rank(address.transport);
        // Whatever way led there last, it led to the same place.
        let ways = self.addresses.iter().filter(|way| way.host == address.host);
        let replica = address.replica.or_else(|| ways.into_iter().find_map(|way| way.replica));
        replica.is_some_and(|replica| self.is_linked_by(&replica, rank))
    }

    /// Whether the way leads to a replica that a link leads to which was dialled at another address: how the two compare
    /// can be seen by a link on each.
    fn is_alternative(&self, index: usize) -> bool {
        let Some(address) = self.addresses.get(index) else { return false };
        let links = || self.links.values().filter(|link| !link.going_away && link.transport == address.transport);
        let here = links().any(|link| link.address.as_ref() == Some(&address.host));
        !here && links().any(|link| Some(link.replica) == address.replica && link.side == Side::Dialler)
    }

    /// Whether to dial an address that leads to a linked replica, in the hope of another one behind it. Not
    /// while an address that may lead there of itself was not tried.
    fn wants_search(&self) -> bool {
        let tried = |index| {
            self.is_search(index)
                || self.from(index).is_none()
                || self.addresses.get(index).is_some_and(|address| address.failures > 0)
        };
        !self.missing().is_empty() && (0..self.addresses.len()).all(tried)
    }

    /// How many dials of a search are made one soon after the other.
    fn quick_searches(&self) -> u32 {
        // Before it said how many, there is one.
        let replicas = u32::try_from(self.replicas.len()).unwrap_or(u32::MAX).max(1);
        SEARCH_PER_REPLICA.saturating_mul(replicas)
    }

    fn next_due(&self, now: Duration) -> Option<usize> {
        (0..self.addresses.len()).find(|index| self.due_at(*index).is_some_and(|due| due <= now))
    }

    fn earliest(&self) -> Option<Duration> {
        (0..self.addresses.len()).filter_map(|index| self.due_at(index)).min()
    }

    /// When the way is to be dialled, if at all.
    fn due_at(&self, index: usize) -> Option<Duration> {
        let address = self.addresses.get(index).filter(|address| !address.dialling)?;
        let from = self.from(index)?;
        let rate = self.rates.get(&address.transport).map_or(Duration::ZERO, RateLimit::next);
        let due = address.not_before.max(from).max(rate);
        if !self.is_search(index) || self.wants_search() {
            return Some(due);
        }
        self.is_alternative(index).then(|| due.max(address.look_at))
    }

    fn refresh(&mut self, wall: SystemTime) {
        let up = self.links.values().any(|link| link.up);
        if up == self.up {
            return;
        }
        (self.up, self.since) = (up, wall);
        if !up {
            if self.losses.len() >= MAX_LOSSES {
                self.losses.pop_front();
            }
            self.losses.push_back(wall);
        }
    }
}

#[cfg(test)]
mod tests;

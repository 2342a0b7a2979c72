//! Which peers there are, which of their replicas are linked, and what is to be dialled next.
//!
//! A pure data structure: the time and the randomness are arguments, and nothing is dialled here. The
//! manager asks it what to do and tells it what happened.

mod address;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::AddAssign;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use dashmap::DashMap;

use self::address::{Address, Moment, RateLimit};
use crate::code::CloseCode;
use crate::config::{HostPort, PeerTarget, ReplicaId, Timing};
use crate::events::{FailureCause, LinkFailure};
use crate::link::Link;
use crate::transport::Side;

/// Quick dials in search of a replica that is not linked yet, for each replica that the peer has.
const SEARCH_PER_REPLICA: u32 = 4;
/// Between two dials of a search that has found nothing by then (ADR 0015).
const SEARCH_ON: Duration = Duration::from_secs(15);

/// Losses that are remembered for each peer.
const MAX_LOSSES: usize = 16;

/// One counter for each peer: its streams, its connections under way.
#[derive(Clone, Default)]
pub(crate) struct PeerCounts(Arc<DashMap<Arc<str>, Arc<AtomicU32>>>);

impl PeerCounts {
    pub(crate) fn of(&self, peer: &Arc<str>) -> Arc<AtomicU32> {
        Arc::clone(&self.0.entry(Arc::clone(peer)).or_default())
    }

    /// Forgets peers that are gone; who still counts keeps its counter.
    pub(crate) fn retain(&self, keep: impl Fn(&str) -> bool) {
        self.0.retain(|peer, _| keep(peer));
    }
}

/// One dial to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Dial {
    pub(crate) peer: Arc<str>,
    pub(crate) address: HostPort,
    /// Counts the dials of this address: which of a name's addresses to take.
    pub(crate) attempt: u32,
}

/// A link as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LinkFacts {
    pub(crate) id: u64,
    pub(crate) replica: ReplicaId,
    pub(crate) side: Side,
    /// The address it was dialled at, if it was dialled here.
    pub(crate) address: Option<HostPort>,
    pub(crate) since: Duration,
    /// Acknowledged within the last heartbeats.
    pub(crate) fresh: bool,
    /// Acknowledged at all, and not too long ago.
    pub(crate) up: bool,
    /// Either side drains it.
    pub(crate) going_away: bool,
}

/// All peers.
pub(crate) struct Peers {
    cluster: Arc<str>,
    replica: ReplicaId,
    timing: Timing,
    links_per_peer: usize,
    peers: BTreeMap<Arc<str>, Peer>,
    random: fastrand::Rng,
}

/// One peer.
pub(crate) struct Peer {
    /// Configured, not merely trusted.
    listed: bool,
    pub(crate) addresses: Vec<Address>,
    pub(crate) links: BTreeMap<u64, LinkFacts>,
    /// What the peer says of itself, last.
    pub(crate) replicas: BTreeSet<ReplicaId>,
    /// Dials made in search of replicas since the last one was found.
    searched: u32,
    rate: RateLimit,
    pub(crate) up: bool,
    pub(crate) since: SystemTime,
    pub(crate) dials: u64,
    pub(crate) last_error: Option<String>,
    /// When the last link was lost, the latest last: one outage is one loss, however many links there were.
    pub(crate) losses: VecDeque<SystemTime>,
    /// What its links that are gone had carried.
    pub(crate) past: Traffic,
}

/// What links carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    pub(crate) bytes_sent: u64,
    pub(crate) bytes_received: u64,
    pub(crate) packets_lost: u64,
    pub(crate) hops: u64,
}

impl Traffic {
    pub(crate) fn of(link: &Link) -> Self {
        let path = link.0.connection.path();
        Self {
            bytes_sent: link.0.bytes_sent.load(Ordering::Relaxed),
            bytes_received: link.0.bytes_received.load(Ordering::Relaxed),
            packets_lost: path.lost_packets,
            hops: path.hops,
        }
    }
}

impl AddAssign for Traffic {
    fn add_assign(&mut self, more: Self) {
        self.bytes_sent += more.bytes_sent;
        self.bytes_received += more.bytes_received;
        self.packets_lost += more.packets_lost;
        self.hops += more.hops;
    }
}

impl Peers {
    pub(crate) fn new(
        cluster: Arc<str>,
        replica: ReplicaId,
        timing: Timing,
        links_per_peer: usize,
        random: fastrand::Rng,
    ) -> Self {
        Self { cluster, replica, timing, links_per_peer, peers: BTreeMap::new(), random }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Peer)> {
        self.peers.iter()
    }

    /// Replaces the configured peers. What stayed the same is not disturbed; returns the links of peers
    /// that are gone.
    pub(crate) fn set_targets(&mut self, targets: Vec<PeerTarget>, now: Duration, wall: SystemTime) -> Vec<u64> {
        let mut old = std::mem::take(&mut self.peers);
        for PeerTarget { name, addresses } in targets {
            let mut peer = old.remove(&name).unwrap_or_else(|| Peer::new(wall));
            peer.listed = true;
            let mut known = std::mem::take(&mut peer.addresses);
            for address in addresses {
                let position = known.iter().position(|known| known.host == address);
                peer.addresses.push(position.map_or_else(|| Address::new(address, now), |at| known.swap_remove(at)));
            }
            self.peers.insert(name, peer);
        }
        // A peer that is trusted but not listed yet may have dialled us: the trust store decides over it.
        let (gone, unlisted): (BTreeMap<_, _>, BTreeMap<_, _>) = old.into_iter().partition(|(_, peer)| peer.listed);
        self.peers.extend(unlisted);
        gone.into_values().flat_map(|peer| peer.links.into_keys()).collect()
    }

    /// Takes the dials that are due now.
    pub(crate) fn due(&mut self, now: Duration) -> Vec<Dial> {
        let mut dials = Vec::new();
        for (name, peer) in &mut self.peers {
            while let Some(index) = peer.next_due(now) {
                let searching = peer.is_search(index);
                let Some(address) = peer.addresses.get_mut(index) else { break };
                peer.rate.take(now);
                peer.dials += 1;
                peer.searched += u32::from(searching);
                dials.push(Dial { peer: Arc::clone(name), address: address.host.clone(), attempt: address.begin() });
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
        peer.last_error = Some(failure.text.clone());
        if let Some(address) = peer.address(&dial.address) {
            address.failed(failure, &mut at);
        }
    }

    /// A connection that the peer made gave no link.
    pub(crate) fn refused(&mut self, name: &str, error: String) {
        if let Some(peer) = self.peers.get_mut(name) {
            peer.last_error = Some(error);
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
        let mut at = Moment { now, timing: &self.timing, random: &mut self.random };
        let peer = self.peers.entry(Arc::clone(name)).or_insert_with(|| Peer::new(wall));
        if !peer.is_linked(&facts.replica) {
            peer.searched = 0;
        }
        let pause = if peer.searched < peer.quick_searches() { at.timing.redial } else { SEARCH_ON };
        if let Some(address) = facts.address.clone().and_then(|address| peer.address(&address)) {
            address.reached(facts.replica, pause, &mut at);
        }
        if peer.links.len() >= self.links_per_peer {
            return Err((CloseCode::Overloaded, "too many links of this peer"));
        }
        peer.links.insert(facts.id, facts);
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
        if failure.cause != FailureCause::Done {
            peer.searched = 0;
            peer.last_error = Some(failure.text.clone());
        }
        let lasted = now.saturating_sub(facts.since) >= at.timing.acknowledge;
        if let Some(address) = facts.address.and_then(|address| peer.address(&address)) {
            address.lost(failure, lasted, &mut at);
        }
        peer.refresh(wall);
        self.peers.retain(|_, peer| peer.listed || !peer.links.is_empty());
    }

    /// Links dialled here that another link to the same replica makes superfluous. Of two, the one dialled by
    /// the smaller (cluster, replica) stays, of two dialled by one side the older; both sides come to the same
    /// end, and each retires only what it dialled itself.
    pub(crate) fn superfluous(&self) -> Vec<u64> {
        let mut retire = Vec::new();
        for (name, peer) in &self.peers {
            let ours_first = (&self.cluster, self.replica);
            let links = || peer.links.values().filter(|link| link.up && !link.going_away);
            for link in links().filter(|link| link.side == Side::Dialler) {
                let beaten = links().filter(|other| other.replica == link.replica && other.fresh).any(|other| {
                    match other.side {
                        Side::Dialler => other.id < link.id,
                        Side::Acceptor => (name, other.replica) < ours_first,
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
            addresses: Vec::new(),
            links: BTreeMap::new(),
            replicas: BTreeSet::new(),
            searched: 0,
            rate: RateLimit::default(),
            up: false,
            since: wall,
            dials: 0,
            last_error: None,
            losses: VecDeque::new(),
            past: Traffic::default(),
        }
    }

    fn address(&mut self, host: &HostPort) -> Option<&mut Address> {
        self.addresses.iter_mut().find(|address| address.host == *host)
    }

    fn is_linked(&self, replica: &ReplicaId) -> bool {
        self.links.values().any(|link| link.replica == *replica && !link.going_away)
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
        let replica = self.addresses.get(index).and_then(|address| address.replica);
        replica.is_some_and(|replica| self.is_linked(&replica))
    }

    fn wants(&self, index: usize) -> bool {
        let dialling = self.addresses.get(index).is_none_or(|address| address.dialling);
        !dialling && (!self.is_search(index) || self.wants_search())
    }

    /// Whether to dial an address that leads to a linked replica, in the hope of another one behind it. Not
    /// while an address that may lead there of itself was not tried.
    fn wants_search(&self) -> bool {
        let tried =
            |index| self.is_search(index) || self.addresses.get(index).is_some_and(|address| address.failures > 0);
        !self.missing().is_empty() && (0..self.addresses.len()).all(tried)
    }

    /// How many dials of a search are made one soon after the other.
    fn quick_searches(&self) -> u32 {
        // Before it said how many, there is one.
        let replicas = u32::try_from(self.replicas.len()).unwrap_or(u32::MAX).max(1);
        SEARCH_PER_REPLICA.saturating_mul(replicas)
    }

    fn next_due(&self, now: Duration) -> Option<usize> {
        let due = |index: &usize| self.addresses.get(*index).is_some_and(|address| address.not_before <= now);
        (0..self.addresses.len()).filter(|_| self.rate.next() <= now).filter(due).find(|index| self.wants(*index))
    }

    fn earliest(&self) -> Option<Duration> {
        let wanted = self.addresses.iter().enumerate().filter(|(index, _)| self.wants(*index));
        let first = wanted.map(|(_, address)| address.not_before).min()?;
        Some(first.max(self.rate.next()))
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

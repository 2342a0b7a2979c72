//! Links by TCP that are kept beside a link by QUIC to the same replica, for streams that move much (ADR 0025).
//!
//! Such a link is nothing that a peer depends on: that it does not come about is no fault of anybody's, and is tried
//! again less and less often. When the one by QUIC ends it is there, and is a link like any other.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::chooser::{Choice, Chooser, Seen};
use super::{Dial, LinkFacts, Peer, Peers};
use crate::code::CloseCode;
use crate::config::{ReplicaId, TcpWay, TransportPolicy};
use crate::link::LinkRole;
use crate::transport::{PathStats, Side, TransportKind};

/// Pause after a companion that was not reached, or ended; doubles up to the second of these.
const PAUSE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(600));

/// What a link carried, and what became of it, since its beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Carried {
    pub(crate) bytes: u64,
    pub(crate) path: PathStats,
}

impl Carried {
    fn since(&self, before: &Self) -> Seen {
        let (now, then) = (&self.path, &before.path);
        Seen {
            bytes: self.bytes.saturating_sub(before.bytes),
            rtt: now.rtt,
            sent: now.sent_packets.saturating_sub(then.sent_packets),
            lost: now.lost_packets.saturating_sub(then.lost_packets),
            received: now.received_packets.saturating_sub(then.received_packets),
            disordered: now.disordered_packets.saturating_sub(then.disordered_packets),
        }
    }
}

/// What is known of one replica by both transports.
#[derive(Debug, Default)]
pub(super) struct Companion {
    chooser: Chooser,
    choice: Choice,
    dialling: bool,
    not_before: Duration,
    pause: Duration,
    attempts: u32,
    /// What its links had carried at the last look, by the link.
    before: [Option<(u64, Carried)>; 2],
}

impl Companion {
    /// What happened on `link` since the last look; none at the first.
    fn seen(&mut self, slot: usize, link: &LinkFacts) -> Seen {
        let before = self.before.get_mut(slot).and_then(|before| before.replace((link.id, link.carried)));
        let before = before.filter(|(id, _)| *id == link.id).map_or(link.carried, |(_, carried)| carried);
        link.carried.since(&before)
    }
}

/// How streams that move much get to a replica, for status.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BulkStatus {
    /// By TCP, not by QUIC.
    pub tcp: bool,
    /// Why, in words.
    pub why: &'static str,
    /// Bytes a second that QUIC carried when it was measured.
    pub quic_rate: Option<u64>,
    /// And TCP.
    pub tcp_rate: Option<u64>,
}

impl Peer {
    /// Of the replicas that a link by QUIC leads to, from where much moved.
    pub(crate) fn bulk(&self, replica: &ReplicaId) -> Option<BulkStatus> {
        let Companion { chooser, choice, .. } = self.companions.get(replica)?;
        let [quic_rate, tcp_rate] = chooser.rates();
        let is_used = choice.wanted || choice.tcp || quic_rate.is_some();
        is_used.then(|| BulkStatus { tcp: choice.tcp, why: choice.why.text(), quic_rate, tcp_rate })
    }

    /// The link by `transport` to a replica that takes streams, the older one of two.
    fn link_by(&self, transport: TransportKind, replica: &ReplicaId) -> Option<&LinkFacts> {
        let mut links = self.links.values();
        links.find(|link| link.transport == transport && link.replica == *replica && link.up && !link.going_away)
    }

    /// Whether `link` is kept although `other` is a better one.
    pub(super) fn keeps_beside(&self, link: &LinkFacts, other: &LinkFacts) -> bool {
        let both = (link.transport, other.transport) == (TransportKind::Tcp, TransportKind::Quic);
        let wanted = self.companions.get(&link.replica).is_some_and(|companion| companion.choice.wanted);
        both && wanted && self.policy == TransportPolicy::Auto
    }

    /// Which streams a link takes.
    fn role(&self, link: &LinkFacts) -> LinkRole {
        let quic = self.link_by(TransportKind::Quic, &link.replica).filter(|quic| quic.fresh);
        let is_beside = link.transport == TransportKind::Tcp && self.policy != TransportPolicy::Tcp && quic.is_some();
        let tcp = self.companions.get(&link.replica).is_some_and(|companion| companion.choice.tcp);
        // Where only the other side wants it, it is the other side's to use.
        match (is_beside, tcp && link.fresh) {
            (false, _) => LinkRole::Whole,
            (true, true) => LinkRole::Bulk,
            (true, false) => LinkRole::Standby,
        }
    }

    /// # Errors
    /// Why it is to be closed.
    pub(super) fn companion_started(
        &mut self,
        facts: &LinkFacts,
        beside: ReplicaId,
    ) -> Result<(), (CloseCode, &'static str)> {
        let Some(companion) = self.companions.get_mut(&beside) else {
            return Err((CloseCode::Done, "no longer needed"));
        };
        if facts.replica != beside {
            return Err((CloseCode::Done, "another replica was meant"));
        }
        (companion.dialling, companion.pause) = (false, Duration::ZERO);
        Ok(())
    }

    pub(super) fn companion_failed(&mut self, replica: ReplicaId, now: Duration) {
        if let Some(companion) = self.companions.get_mut(&replica) {
            companion.pause = (companion.pause * 2).clamp(PAUSE.0, PAUSE.1);
            (companion.dialling, companion.not_before) = (false, now + companion.pause);
        }
    }

    /// Decides anew for each replica that is reached by QUIC.
    fn choose(&mut self, now: Duration) {
        if self.policy != TransportPolicy::Auto {
            self.companions.clear();
            return;
        }
        let quic = self.links.values().filter(|link| link.transport == TransportKind::Quic);
        let replicas: BTreeSet<_> = quic.map(|link| link.replica).collect();
        self.companions.retain(|replica, companion| replicas.contains(replica) || companion.dialling);
        for replica in replicas {
            let Some(quic) = self.link_by(TransportKind::Quic, &replica).cloned() else { continue };
            let tcp = self.link_by(TransportKind::Tcp, &replica).filter(|tcp| tcp.fresh).cloned();
            let companion = self.companions.entry(replica).or_default();
            let by_quic = companion.seen(0, &quic);
            let by_tcp = tcp.map(|tcp| companion.seen(1, &tcp));
            let before = companion.choice;
            companion.choice = companion.chooser.look(now, &by_quic, by_tcp.as_ref());
            if companion.choice.tcp != before.tcp {
                let [quic_rate, tcp_rate] = companion.chooser.rates();
                let (tcp, why) = (companion.choice.tcp, companion.choice.why.text());
                tracing::debug!(%replica, tcp, why, quic_rate, tcp_rate, "What carries streams that move much changed");
            }
        }
    }

    /// The link by QUIC that one by TCP is to be dialled beside, at the same address.
    fn companion_due(&self, companion: &Companion, replica: &ReplicaId, now: Duration) -> Option<&LinkFacts> {
        let is_due = companion.choice.wanted && !companion.dialling && now >= companion.not_before;
        let here = is_due && self.listed && self.policy == TransportPolicy::Auto && self.tcp.is_plain();
        let there = || self.links.values().any(|link| link.transport == TransportKind::Tcp && link.replica == *replica);
        let quic = self.link_by(TransportKind::Quic, replica).filter(|_| here && !there())?;
        (quic.side == Side::Dialler && quic.address.is_some()).then_some(quic)
    }
}

impl Peers {
    /// Decides anew what carries streams that move much, by what was [measured](Self::measured).
    pub(crate) fn choose(&mut self, now: Duration) {
        self.peers.values_mut().for_each(|peer| peer.choose(now));
    }

    /// Which streams a link takes.
    pub(crate) fn role(&self, name: &str, id: u64) -> LinkRole {
        let peer = self.peers.get(name);
        let role = peer.and_then(|peer| peer.links.get(&id).map(|link| peer.role(link)));
        role.unwrap_or(LinkRole::Whole)
    }

    /// Takes the dials of companions that are due now.
    pub(crate) fn companions_due(&mut self, now: Duration) -> Vec<Dial> {
        let mut dials = Vec::new();
        for (name, peer) in &mut self.peers {
            let due = |(replica, companion): (&ReplicaId, &Companion)| {
                let quic = peer.companion_due(companion, replica, now)?;
                Some((*replica, quic.address.clone()?))
            };
            let due: Vec<_> = peer.companions.iter().filter_map(due).collect();
            for (replica, address) in due {
                let Some(companion) = peer.companions.get_mut(&replica) else { continue };
                companion.dialling = true;
                let attempt = companion.attempts;
                companion.attempts = attempt.wrapping_add(1);
                let (peer, transport) = (Arc::clone(name), TransportKind::Tcp);
                dials.push(Dial { peer, address, transport, way: TcpWay::default(), attempt, beside: Some(replica) });
            }
        }
        dials
    }
}

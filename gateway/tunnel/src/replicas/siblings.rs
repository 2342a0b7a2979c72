//! Which replicas of this cluster there are, found out by beats. No I/O; `now` is an argument.
//!
//! A sibling lives while its beats echo a stamp of ours that is younger than [`DEAD`]: it hears us and we
//! hear it, which is what handing packets over takes. So a recorded beat brings nobody to life.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use super::SiblingStatus;
use super::envelope::{Beat, BeatState};
use crate::config::ReplicaId;

/// Between two beats.
pub(crate) const BEAT_EVERY: Duration = Duration::from_secs(1);
/// Silence after which a sibling counts as dead.
pub(crate) const DEAD: Duration = Duration::from_secs(4);
/// Siblings that are kept, whatever their state. More than any cluster runs.
const MAX_SIBLINGS: usize = 64;
/// Dead incarnations that are remembered; their peers notice within seconds.
const MAX_GONE: usize = 64;

/// All that is known of siblings.
pub(crate) struct Siblings {
    own: ReplicaId,
    state: BeatState,
    configured: Vec<SocketAddr>,
    /// Those of the configured addresses that are our own: what we sent there came back.
    own_addresses: BTreeSet<SocketAddr>,
    known: BTreeMap<ReplicaId, Sibling>,
    /// Incarnations that ended, the latest last.
    gone: VecDeque<Gone>,
    stamp: u64,
}

struct Sibling {
    address: SocketAddr,
    draining: bool,
    /// Of its latest beat.
    stamp: u64,
    heard: Duration,
    /// When it last showed that it hears us.
    proved: Option<Duration>,
}

struct Gone {
    replica: ReplicaId,
    /// It said so itself, or another has its address: it does not come back.
    for_good: bool,
}

/// What a beat led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// Our own, one that was heard before, or one too many.
    Ignored,
    /// It counts.
    Counted {
        /// Its sender should hear us at once: one of both has only just learned of the other.
        answer: bool,
        /// Who is there has changed.
        changed: bool,
    },
}

impl Siblings {
    pub(crate) fn new(own: ReplicaId) -> Self {
        let (configured, own_addresses, known, gone) = Default::default();
        Self { own, state: BeatState::Live, configured, own_addresses, known, gone, stamp: 0 }
    }

    /// Replaces the addresses that are beaten whether anybody answers or not.
    pub(crate) fn configure(&mut self, addresses: &[SocketAddr]) {
        self.configured = addresses.iter().take(MAX_SIBLINGS).copied().collect();
        self.own_addresses.retain(|address| self.configured.contains(address));
    }

    /// From now on siblings are told so.
    pub(crate) fn set_state(&mut self, state: BeatState) {
        self.state = state;
    }

    /// What siblings are told.
    pub(crate) fn state(&self) -> BeatState {
        self.state
    }

    /// Takes a beat whose signature is right.
    pub(crate) fn heard(&mut self, beat: &Beat, from: SocketAddr, now: Duration) -> Heard {
        if beat.sender == self.own && self.configured.contains(&from) {
            self.own_addresses.insert(from);
        }
        let for_good = self.gone.iter().any(|gone| gone.for_good && gone.replica == beat.sender);
        if beat.sender == self.own || for_good {
            return Heard::Ignored;
        }
        let former = self.known.get(&beat.sender);
        if former.is_some_and(|sibling| beat.stamp <= sibling.stamp) || former.is_none() && self.is_full() {
            return Heard::Ignored;
        }
        let (is_new, draining) = (former.is_none(), beat.state == BeatState::Draining);
        let before = former.map(|sibling| (sibling.address, sibling.draining, sibling.proved.is_some()));
        if beat.state == BeatState::Gone {
            self.known.remove(&beat.sender);
            self.bury(beat.sender, true);
            return Heard::Counted { answer: false, changed: before.is_some_and(|(_, _, proved)| proved) };
        }
        let hears_us = beat.echo.is_some_and(|(replica, stamp)| {
            replica == self.own && now.saturating_sub(Duration::from_millis(stamp)) < DEAD && stamp <= self.stamp
        });
        let proved = if hears_us { Some(now) } else { former.and_then(|sibling| sibling.proved) };
        // What proves nothing must not lead packets elsewhere.
        let address = before.map_or(from, |(address, _, _)| if hears_us { from } else { address });
        let sibling = Sibling { address, draining, stamp: beat.stamp, heard: now, proved };
        self.known.insert(beat.sender, sibling);
        if hears_us {
            self.gone.retain(|gone| gone.replica != beat.sender);
            self.replace_at(from, beat.sender);
        }
        let after = Some((address, draining, proved.is_some()));
        Heard::Counted { answer: is_new || !hears_us, changed: proved.is_some() && before != after }
    }

    fn is_full(&self) -> bool {
        self.known.len() >= MAX_SIBLINGS
    }

    /// Whoever was at `address` before `replica` is gone: a container that was started again keeps its address.
    fn replace_at(&mut self, address: SocketAddr, replica: ReplicaId) {
        let at = |(id, sibling): (&ReplicaId, &Sibling)| (sibling.address == address && *id != replica).then_some(*id);
        let replaced: Vec<_> = self.known.iter().filter_map(at).collect();
        for id in replaced {
            self.known.remove(&id);
            self.bury(id, true);
        }
    }

    fn bury(&mut self, replica: ReplicaId, for_good: bool) {
        self.gone.retain(|gone| gone.replica != replica);
        self.gone.push_back(Gone { replica, for_good });
        while self.gone.len() > MAX_GONE {
            self.gone.pop_front();
        }
    }

    /// Counts those out that have been silent for too long. Whether anything changed.
    pub(crate) fn expire(&mut self, now: Duration) -> bool {
        let silent = |since: Duration| now.saturating_sub(since) >= DEAD;
        let dead: Vec<_> = self
            .known
            .iter()
            .filter(|(_, sibling)| silent(sibling.proved.unwrap_or(sibling.heard)))
            .map(|(id, sibling)| (*id, sibling.proved.is_some()))
            .collect();
        let mut changed = false;
        for (id, proved) in dead {
            self.known.remove(&id);
            if proved {
                self.bury(id, false);
                changed = true;
            }
        }
        changed
    }

    /// The beats that are due, with where they go.
    pub(crate) fn beats(&mut self, now: Duration) -> Vec<(SocketAddr, Beat)> {
        let mut addresses = self.configured.clone();
        addresses.extend(self.known.values().map(|sibling| sibling.address));
        addresses.sort_unstable();
        addresses.dedup();
        addresses.into_iter().map(|address| (address, self.beat_to(address, now))).collect()
    }

    /// A beat for whoever is at `address`.
    pub(crate) fn beat_to(&mut self, address: SocketAddr, now: Duration) -> Beat {
        let millis = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        self.stamp = millis.max(self.stamp.saturating_add(1));
        // Of two incarnations at one address, the one that was heard last.
        let heard = self.known.iter().filter(|(_, sibling)| sibling.address == address);
        let echo = heard.max_by_key(|(_, sibling)| sibling.heard).map(|(id, sibling)| (*id, sibling.stamp));
        Beat { state: self.state, sender: self.own, stamp: self.stamp, echo }
    }

    /// Those that get their packets.
    pub(crate) fn alive(&self) -> impl Iterator<Item = SiblingStatus> {
        let proved = self.known.iter().filter(|(_, sibling)| sibling.proved.is_some());
        proved.map(|(id, sibling)| SiblingStatus { replica: *id, address: sibling.address, draining: sibling.draining })
    }

    /// The configured addresses of others at which nobody answers. A replica that answers from another address than it
    /// is configured with counts for one of them.
    pub(crate) fn silent(&self) -> Vec<SocketAddr> {
        let (mut others, mut strays) = (self.configured.clone(), 0);
        others.retain(|address| !self.own_addresses.contains(address));
        for sibling in self.alive() {
            match others.iter().position(|address| *address == sibling.address) {
                Some(index) => drop(others.remove(index)),
                None => strays += 1,
            }
        }
        others.truncate(others.len().saturating_sub(strays));
        others
    }

    /// Those whose links are lost.
    pub(crate) fn gone(&self) -> impl Iterator<Item = ReplicaId> {
        self.gone.iter().map(|gone| gone.replica)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(100);

    /// Replicas that hear each other at once, or not at all.
    struct Cluster {
        now: Duration,
        replicas: Vec<(SocketAddr, Siblings)>,
        cut: Vec<usize>,
        /// Every beat that was sent.
        record: Vec<(SocketAddr, Beat)>,
    }

    fn address(number: usize) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, u8::try_from(number).unwrap()], 15_442))
    }

    fn id(number: u8) -> ReplicaId {
        ReplicaId([number; 16])
    }

    impl Cluster {
        fn new(count: u8) -> Self {
            let all: Vec<_> = (0..usize::from(count)).map(address).collect();
            let replica = |number: u8| {
                let mut siblings = Siblings::new(id(number));
                siblings.configure(&all);
                (address(number.into()), siblings)
            };
            Self { now: STEP, replicas: (0..count).map(replica).collect(), cut: Vec::new(), record: Vec::new() }
        }

        fn run(&mut self, time: Duration) {
            let end = self.now + time;
            while self.now < end {
                if self.now.as_millis().is_multiple_of(BEAT_EVERY.as_millis()) {
                    for number in 0..self.replicas.len() {
                        let (from, siblings) = &mut self.replicas[number];
                        siblings.expire(self.now);
                        let (from, beats) = (*from, siblings.beats(self.now));
                        for (to, beat) in beats {
                            self.send(from, to, beat);
                        }
                    }
                }
                self.now += STEP;
            }
        }

        fn send(&mut self, from: SocketAddr, to: SocketAddr, beat: Beat) {
            self.record.push((from, beat));
            let cut = self.cut.iter().any(|cut| [from, to].contains(&self.replicas[*cut].0));
            let (now, receiver) = (self.now, self.replicas.iter_mut().find(|(address, _)| *address == to));
            let Some((_, receiver)) = receiver.filter(|_| !cut) else { return };
            if let Heard::Counted { answer: true, .. } = receiver.heard(&beat, from, now) {
                let answer = receiver.beat_to(from, now);
                self.send(to, from, answer);
            }
        }

        fn alive(&self, number: usize) -> Vec<ReplicaId> {
            self.replicas[number].1.alive().map(|sibling| sibling.replica).collect()
        }

        fn gone(&self, number: usize) -> Vec<ReplicaId> {
            self.replicas[number].1.gone().collect()
        }
    }

    #[test]
    fn all_find_each_other_and_lose_who_is_silent() {
        let mut cluster = Cluster::new(3);
        cluster.run(Duration::from_millis(1_100));
        assert_eq!([cluster.alive(0), cluster.alive(2)], [[id(1), id(2)], [id(0), id(1)]]);
        cluster.cut = vec![2];
        cluster.run(DEAD);
        assert_eq!((cluster.alive(0), cluster.gone(0)), (vec![id(1)], vec![id(2)]));
        assert!(cluster.alive(2).is_empty());
        cluster.cut.clear();
        cluster.run(BEAT_EVERY * 2);
        assert_eq!((cluster.alive(0), cluster.gone(0)), (vec![id(1), id(2)], vec![]), "it was not dead");
    }

    #[test]
    fn who_is_configured_and_does_not_answer_is_told() {
        let mut cluster = Cluster::new(3);
        cluster.cut = vec![2];
        cluster.run(Duration::from_millis(1_100));
        assert_eq!(cluster.replicas[0].1.silent(), [address(2)], "and not itself");
        cluster.cut.clear();
        cluster.run(BEAT_EVERY * 2);
        assert!(cluster.replicas[0].1.silent().is_empty());
        cluster.cut = vec![1];
        cluster.run(DEAD + BEAT_EVERY);
        assert_eq!(cluster.replicas[0].1.silent(), [address(1)]);
        // One that answers from elsewhere is there all the same.
        cluster.cut.clear();
        cluster.run(BEAT_EVERY * 2);
        cluster.replicas[2].1.configure(&[address(0), address(7)]);
        assert!(cluster.replicas[2].1.silent().is_empty());
    }

    #[test]
    fn one_that_leaves_or_is_replaced_is_gone_at_once() {
        let mut cluster = Cluster::new(3);
        cluster.run(Duration::from_millis(1_100));
        cluster.replicas[1].1.set_state(BeatState::Draining);
        cluster.run(BEAT_EVERY);
        let draining: Vec<_> = cluster.replicas[0].1.alive().map(|sibling| sibling.draining).collect();
        assert_eq!(draining, [true, false]);
        cluster.replicas[1].1.set_state(BeatState::Gone);
        cluster.run(BEAT_EVERY);
        assert_eq!((cluster.alive(0), cluster.gone(0)), (vec![id(2)], vec![id(1)]));
        let successor = &mut cluster.replicas[2].1;
        *successor = Siblings::new(id(9));
        successor.configure(&[address(0)]);
        cluster.run(BEAT_EVERY);
        assert_eq!((cluster.alive(0), cluster.gone(0)), (vec![id(9)], vec![id(1), id(2)]));
    }

    #[test]
    fn recorded_beats_bring_nobody_to_life() {
        let mut cluster = Cluster::new(2);
        cluster.run(Duration::from_secs(3));
        let record: Vec<_> = std::mem::take(&mut cluster.record);
        cluster.cut = vec![1];
        cluster.run(DEAD * 2);
        let (now, survivor) = (cluster.now, &mut cluster.replicas[0].1);
        let mut newcomer = Siblings::new(id(5));
        for (from, beat) in &record {
            survivor.heard(beat, *from, now);
            newcomer.heard(beat, *from, now);
        }
        assert_eq!((survivor.alive().count(), newcomer.alive().count()), (0, 0));
        assert!(newcomer.expire(now + DEAD) || newcomer.known.is_empty());
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut siblings = Siblings::new(id(0));
        for number in 1..=200 {
            let beat = Beat { state: BeatState::Live, sender: id(number), stamp: 1, echo: None };
            siblings.heard(&beat, address(number.into()), Duration::from_secs(1));
            let gone = Beat { state: BeatState::Gone, sender: id(number), stamp: 2, echo: None };
            if number > 100 {
                siblings.heard(&gone, address(number.into()), Duration::from_secs(1));
            }
        }
        assert!(siblings.known.len() <= MAX_SIBLINGS && siblings.gone.len() <= MAX_GONE);
    }
}

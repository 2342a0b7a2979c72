//! For whom this gateway relays, and how much.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::link::Link;

/// What limits of bytes are counted over.
const DAY: Duration = Duration::from_secs(24 * 3_600);
/// What was not used of the bytes of so much time may be used at once.
const BURST: Duration = Duration::from_millis(250);

/// Two clusters that are relayed for, both ways.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RelayRule {
    /// Which.
    pub between: [Arc<str>; 2],
    /// How much.
    pub limits: RelayLimits,
}

/// What one pair may use, both directions together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RelayLimits {
    /// Pipes at one time. A link takes some 20, and one more for each of its streams.
    pub streams: u32,
    /// Bytes in a second; `None`: as many as will go.
    pub bytes_per_second: Option<u64>,
    /// Bytes in a day; `None`: as many as will go.
    pub bytes_per_day: Option<u64>,
}

/// How relaying for one pair does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RelayStatus {
    /// The two clusters.
    pub between: [Arc<str>; 2],
    /// Pipes that are open.
    pub streams: u32,
    /// Pipes since the start.
    pub opened: u64,
    /// Pipes that were refused.
    pub refused: u64,
    /// Bytes from the first to the second, and back.
    pub bytes: [u64; 2],
    /// Bytes of this day.
    pub today: u64,
    /// How many may be open.
    pub max_streams: u32,
    /// Bytes in a second that it may use.
    pub bytes_per_second: Option<u64>,
    /// Bytes in a day that it may use.
    pub bytes_per_day: Option<u64>,
}

/// Why a pipe is not carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// No rule names both.
    Denied,
    /// Too many are open.
    Streams,
    /// The bytes of the day are used up.
    Spent,
    /// There is no direct link to the far end.
    NoLink,
    /// It did not answer.
    Silent,
    /// It takes none.
    ByFarEnd,
}

/// All pairs.
#[derive(Default)]
pub(super) struct Table(Mutex<Vec<Arc<Pair>>>);

/// One pair, as long as it may be relayed for.
struct Pair {
    between: [Arc<str>; 2],
    usage: Mutex<Usage>,
    streams: AtomicU32,
    opened: AtomicU64,
    refused: AtomicU64,
    bytes: [AtomicU64; 2],
    /// It may be no more.
    revoked: CancellationToken,
    /// Which replica of the far end pipes of a number lead to, and how many there are.
    paths: Mutex<HashMap<Path, (u64, u32)>>,
}

/// The direction, and the number that the dialler drew.
type Path = (usize, u64);

impl Table {
    /// Pairs that stay keep what they have used; pipes of those that go are cut.
    pub(super) fn set_rules(&self, rules: Vec<RelayRule>) {
        let mut pairs = lock(&self.0);
        let mut kept: Vec<Arc<Pair>> = Vec::new();
        for RelayRule { between, limits } in rules {
            let same = |pair: &&Arc<Pair>| pair.direction(&between[0], &between[1]).is_some();
            if kept.iter().any(|pair| same(&pair)) {
                continue;
            }
            let pair = pairs.iter().find(same).cloned().unwrap_or_else(|| Arc::new(Pair::new(between.clone(), limits)));
            lock(&pair.usage).limits = limits;
            kept.push(pair);
        }
        for gone in pairs.iter().filter(|pair| !kept.iter().any(|kept| Arc::ptr_eq(kept, pair))) {
            gone.revoked.cancel();
        }
        *pairs = kept;
    }

    pub(super) fn status(&self) -> Vec<RelayStatus> {
        lock(&self.0).iter().map(|pair| pair.status()).collect()
    }

    /// Lets one pipe from `from` to `to` in.
    pub(super) fn admit(&self, from: &str, to: &str, path: u64) -> Result<Ticket, Refused> {
        let pairs = lock(&self.0);
        let found = pairs.iter().find_map(|pair| Some((Arc::clone(pair), pair.direction(from, to)?)));
        let (pair, direction) = found.ok_or(Refused::Denied)?;
        drop(pairs);
        let mut usage = lock(&pair.usage);
        let admitted = match () {
            () if pair.streams.load(Ordering::Relaxed) >= usage.limits.streams => Err(Refused::Streams),
            () if usage.is_spent(Instant::now()) => Err(Refused::Spent),
            () => Ok(()),
        };
        if let Err(refused) = admitted {
            pair.refused.fetch_add(1, Ordering::Relaxed);
            return Err(refused);
        }
        pair.streams.fetch_add(1, Ordering::Relaxed);
        drop(usage);
        pair.opened.fetch_add(1, Ordering::Relaxed);
        Ok(Ticket { pair, direction, path, on_path: Mutex::new(false) })
    }
}

impl Pair {
    fn new(between: [Arc<str>; 2], limits: RelayLimits) -> Self {
        Self {
            between,
            usage: Mutex::new(Usage { limits, next: None, day: None, spent: 0 }),
            streams: AtomicU32::new(0),
            opened: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            bytes: Default::default(),
            revoked: CancellationToken::new(),
            paths: Mutex::default(),
        }
    }

    /// 0: from the first to the second. 1: the other way. `None`: another pair.
    fn direction(&self, from: &str, to: &str) -> Option<usize> {
        let [one, other] = &self.between;
        match (from, to) {
            (from, to) if (from, to) == (one, other) => Some(0),
            (from, to) if (from, to) == (other, one) => Some(1),
            _ => None,
        }
    }

    fn status(&self) -> RelayStatus {
        let usage = lock(&self.usage);
        let RelayLimits { streams, bytes_per_second, bytes_per_day } = usage.limits;
        RelayStatus {
            between: self.between.clone(),
            streams: self.streams.load(Ordering::Relaxed),
            opened: self.opened.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
            bytes: [0, 1].map(|direction| self.bytes.get(direction).map_or(0, |bytes| bytes.load(Ordering::Relaxed))),
            today: usage.spent,
            max_streams: streams,
            bytes_per_second,
            bytes_per_day,
        }
    }
}

/// One pipe that was let in.
pub(super) struct Ticket {
    pair: Arc<Pair>,
    direction: usize,
    path: u64,
    /// It counts among those of its path.
    on_path: Mutex<bool>,
}

impl Ticket {
    /// Of `links` the one that pipes of the same number take; `None`: there is none, or it is gone.
    pub(super) fn link(&self, links: Vec<Link>) -> Option<Link> {
        let mut paths = lock(&self.pair.paths);
        let key = (self.direction, self.path);
        let known = paths.get(&key).map(|(id, _)| *id);
        let link = match known {
            Some(id) => links.into_iter().find(|link| link.0.identity.id == id)?,
            // Whoever looks for another replica draws another number.
            None => {
                let index = usize::try_from(self.path).unwrap_or(0).checked_rem(links.len())?;
                links.into_iter().nth(index)?
            }
        };
        paths.entry(key).or_insert((link.0.identity.id, 0)).1 += 1;
        *lock(&self.on_path) = true;
        Some(link)
    }

    /// It came to nothing.
    pub(super) fn refused(&self) {
        self.pair.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Cancelled when the pair may be relayed for no more.
    pub(super) fn revoked(&self) -> &CancellationToken {
        &self.pair.revoked
    }

    /// Notes `bytes` in the pipe's own direction, or back; how long to wait before they go on. `None`: the day's are used
    /// up.
    pub(super) fn spend(&self, back: bool, bytes: usize) -> Option<Duration> {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let pause = lock(&self.pair.usage).spend(bytes, Instant::now())?;
        let direction = self.direction ^ usize::from(back);
        self.pair.bytes.get(direction).iter().for_each(|count| {
            count.fetch_add(bytes, Ordering::Relaxed);
        });
        Some(pause)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.pair.streams.fetch_sub(1, Ordering::Relaxed);
        if *lock(&self.on_path) {
            let mut paths = lock(&self.pair.paths);
            let key = (self.direction, self.path);
            if let Some((_, count)) = paths.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    paths.remove(&key);
                }
            }
        }
    }
}

/// What a pair has used of its limits.
struct Usage {
    limits: RelayLimits,
    /// When all that was let through so far has passed at the rate.
    next: Option<Instant>,
    /// When the day began, and the bytes of it.
    day: Option<Instant>,
    spent: u64,
}

impl Usage {
    fn is_spent(&mut self, now: Instant) -> bool {
        if self.day.is_none_or(|day| now.duration_since(day) >= DAY) {
            (self.day, self.spent) = (Some(now), 0);
        }
        self.limits.bytes_per_day.is_some_and(|most| self.spent >= most)
    }

    fn spend(&mut self, bytes: u64, now: Instant) -> Option<Duration> {
        if self.is_spent(now) {
            return None;
        }
        self.spent = self.spent.saturating_add(bytes);
        let Some(rate) = self.limits.bytes_per_second else { return Some(Duration::ZERO) };
        let micros = bytes.saturating_mul(1_000_000) / rate.max(1);
        let from = self.next.unwrap_or(now).max(now.checked_sub(BURST).unwrap_or(now));
        let next = from + Duration::from_micros(micros);
        self.next = Some(next);
        Some(next.saturating_duration_since(now))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while one of them is held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(one: &str, other: &str, limits: RelayLimits) -> RelayRule {
        RelayRule { between: [Arc::from(one), Arc::from(other)], limits }
    }

    fn limits(streams: u32) -> RelayLimits {
        RelayLimits { streams, bytes_per_second: None, bytes_per_day: None }
    }

    #[test]
    fn only_named_pairs_are_carried_and_each_within_its_limit() {
        let table = Table::default();
        table.set_rules(vec![rule("a", "b", limits(2)), rule("a", "d", limits(1)), rule("b", "a", limits(9))]);
        assert_eq!(table.status().len(), 2, "the same pair twice");
        for (from, to) in [("a", "c"), ("c", "a"), ("a", "a"), ("b", "d"), ("", "")] {
            assert_eq!(table.admit(from, to, 1).err(), Some(Refused::Denied), "{from} to {to}");
        }
        let both = [table.admit("a", "b", 1).unwrap(), table.admit("b", "a", 2).unwrap()];
        assert_eq!(table.admit("a", "b", 3).err(), Some(Refused::Streams), "both directions count");
        assert!(table.admit("d", "a", 4).is_ok(), "another pair has its own");
        drop(both);
        let ticket = table.admit("b", "a", 5).unwrap();
        assert_eq!(ticket.spend(false, 10), Some(Duration::ZERO));
        assert_eq!(ticket.spend(true, 3), Some(Duration::ZERO));
        let status = table.status().swap_remove(0);
        assert_eq!((status.streams, status.opened, status.refused, status.bytes), (1, 3, 1, [3, 10]));
        table.set_rules(vec![rule("b", "a", limits(1))]);
        assert!(!ticket.revoked().is_cancelled(), "it is still named");
        assert_eq!(table.status()[0].bytes, [3, 10], "what was used stays used");
        table.set_rules(Vec::new());
        assert!(ticket.revoked().is_cancelled());
    }

    #[test]
    fn bytes_are_spread_over_time_and_end_for_the_day() {
        let limits = RelayLimits { streams: 1, bytes_per_second: Some(1_000), bytes_per_day: Some(5_000) };
        let mut usage = Usage { limits, next: None, day: None, spent: 0 };
        let start = Instant::now() + DAY;
        let second = Duration::from_secs(1);
        assert_eq!(usage.spend(1_000, start), Some(second - BURST).filter(|_| false).or(Some(second)));
        assert_eq!(usage.spend(1_000, start + second), Some(second));
        assert_eq!(usage.spend(500, start + 4 * second), Some(second / 2 - BURST), "a pause gives some back");
        assert_eq!(usage.spend(2_500, start + 5 * second).map(|pause| pause > 2 * second), Some(true));
        assert_eq!(usage.spend(1, start + 60 * second), None);
        assert_eq!(usage.spend(1, start + DAY), Some(Duration::ZERO), "a new day");
    }
}

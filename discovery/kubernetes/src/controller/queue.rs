//! Which services are to be looked at, and when.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use eastway_model::ServiceKey;
use tokio::time::Instant;

/// First pause after a failure.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Longest pause between two tries. What nobody mends by itself is tried once a minute.
const LAST_PAUSE: Duration = Duration::from_secs(60);

/// Services that wait. Each waits once; one that failed waits for its pause to be over, whatever happens to it.
#[derive(Debug, Default)]
pub(super) struct Queue {
    ready: VecDeque<ServiceKey>,
    waiting: BTreeSet<ServiceKey>,
    running: BTreeSet<ServiceKey>,
    later: BTreeSet<(Instant, ServiceKey)>,
    failures: HashMap<ServiceKey, Failures>,
}

#[derive(Debug)]
struct Failures {
    count: u32,
    until: Instant,
}

impl Queue {
    /// The service may have changed.
    pub(super) fn mark(&mut self, key: ServiceKey) {
        if !self.failures.contains_key(&key) && !self.running.contains(&key) && self.waiting.insert(key.clone()) {
            self.ready.push_back(key);
        } else if self.running.contains(&key) {
            // Looked at once more when it is done.
            self.waiting.insert(key);
        }
    }

    /// The next service to look at; it is worked on until [`Queue::done`] or [`Queue::failed`].
    pub(super) fn next(&mut self) -> Option<ServiceKey> {
        let key = self.ready.pop_front()?;
        self.waiting.remove(&key);
        self.running.insert(key.clone());
        Some(key)
    }

    /// The work on a service went well; `again`: there is more to do.
    pub(super) fn done(&mut self, key: &ServiceKey, again: bool) {
        self.failures.remove(key);
        self.running.remove(key);
        if self.waiting.remove(key) || again {
            self.mark(key.clone());
        }
    }

    /// The work on a service failed: it is tried again after a pause that doubles each time, and is not shorter than
    /// `at_least`.
    pub(super) fn failed(&mut self, key: &ServiceKey, at_least: Option<Duration>, now: Instant) {
        self.running.remove(key);
        self.waiting.remove(key);
        let count = self.failures.get(key).map_or(0, |failures| failures.count);
        let pause = FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(count)).min(LAST_PAUSE);
        // Half of it by chance: what failed together must not come again together.
        let pause = pause.mul_f64(0.5 + 0.5 * fastrand::f64()).max(at_least.unwrap_or_default());
        let until = now + pause;
        self.failures.insert(key.clone(), Failures { count: count.saturating_add(1), until });
        self.later.insert((until, key.clone()));
    }

    /// The service is looked at again at that time, if not before.
    pub(super) fn later(&mut self, key: &ServiceKey, at: Instant) {
        self.later.insert((at, key.clone()));
    }

    /// When a pause is over next.
    #[must_use]
    pub(super) fn next_pause(&self) -> Option<Instant> {
        self.later.first().map(|(until, _)| *until)
    }

    /// Lets those wait no longer whose pause is over, and names them.
    pub(super) fn resume(&mut self, now: Instant) -> Vec<ServiceKey> {
        let mut resumed = Vec::new();
        while let Some((until, key)) = self.later.first().cloned() {
            if until > now {
                break;
            }
            self.later.remove(&(until, key.clone()));
            let is_due = self.failures.get(&key).is_none_or(|failures| failures.until <= now);
            if is_due && !self.running.contains(&key) && self.waiting.insert(key.clone()) {
                self.ready.push_back(key.clone());
                resumed.push(key);
            }
        }
        resumed
    }

    /// Forgets all: another replica does the work.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Services that wait or are worked on, and those that failed last time.
    #[must_use]
    pub(super) fn len(&self) -> (usize, usize) {
        (self.ready.len() + self.running.len(), self.failures.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> ServiceKey {
        ServiceKey::parse("shop", name).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_service_is_worked_on_once_at_a_time() {
        let mut queue = Queue::default();
        queue.mark(key("a"));
        queue.mark(key("a"));
        assert_eq!(queue.next(), Some(key("a")));
        queue.mark(key("a"));
        assert_eq!(queue.next(), None);
        queue.done(&key("a"), false);
        assert_eq!(queue.next(), Some(key("a")), "what happened meanwhile is looked at");
        queue.done(&key("a"), false);
        assert_eq!(queue.next(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_double_and_end() {
        let mut queue = Queue::default();
        let mut now = Instant::now();
        let mut last = Duration::ZERO;
        for round in 0..12 {
            queue.mark(key("a"));
            assert_eq!(queue.next(), Some(key("a")), "round {round}");
            queue.failed(&key("a"), None, now);
            queue.mark(key("a"));
            assert_eq!(queue.next(), None, "events do not shorten a pause");
            let pause = queue.next_pause().unwrap() - now;
            assert!(pause <= LAST_PAUSE);
            last = pause;
            now += pause;
            assert_eq!(queue.resume(now), [key("a")]);
        }
        assert!(last >= LAST_PAUSE / 2);
        assert_eq!(queue.next(), Some(key("a")));
        queue.done(&key("a"), false);
        queue.failed(&key("b"), Some(Duration::from_secs(5)), now);
        assert!(queue.next_pause().unwrap() >= now + Duration::from_secs(5));
    }
}

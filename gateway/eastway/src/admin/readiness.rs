//! Readiness: the process is ready when everything that said it has to happen first has happened.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use tokio::sync::watch;

/// What still keeps the process from being ready. Clones share one list.
///
/// Only what this process can do alone may be registered: a listener to bind, the registries to send their
/// first contents, a certificate to arrive. Never a peer (invariant I12): two clusters would wait for each other. What
/// gives peers a head start must end by itself.
#[derive(Clone, Debug)]
pub struct Readiness {
    state: Arc<watch::Sender<State>>,
}

#[derive(Clone, Debug, Default)]
struct State {
    /// Name and how many guards of that name are alive.
    pending: BTreeMap<Arc<str>, usize>,
    draining: bool,
}

impl State {
    fn is_ready(&self) -> bool {
        self.pending.is_empty() && !self.draining
    }
}

/// Something that is not done yet; dropping it means that it is.
#[must_use = "dropping the guard marks it as done"]
pub struct Guard {
    name: Arc<str>,
    state: Arc<watch::Sender<State>>,
    /// Failed: the name stays on the list for ever.
    failed: bool,
}

impl Default for Readiness {
    fn default() -> Self {
        Self::new()
    }
}

impl Readiness {
    /// Nothing pending: register everything before the health port is served.
    #[must_use]
    pub fn new() -> Self {
        Self { state: Arc::new(watch::Sender::new(State::default())) }
    }

    /// Adds `name` to the list until the guard is dropped. Several guards may share a name.
    pub fn register(&self, name: impl Into<Arc<str>>) -> Guard {
        let name = name.into();
        self.state.send_modify(|state| *state.pending.entry(Arc::clone(&name)).or_default() += 1);
        Guard { name, state: Arc::clone(&self.state), failed: false }
    }

    /// From now on not ready, for good: the process drains.
    pub fn set_draining(&self) {
        self.state.send_modify(|state| state.draining = true);
    }

    /// Whether everything is done and the process does not drain.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.state.borrow().is_ready()
    }

    /// Whether [`Self::set_draining`] was called.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.state.borrow().draining
    }

    /// What is not done yet, sorted.
    #[must_use]
    pub fn pending(&self) -> Vec<Arc<str>> {
        self.state.borrow().pending.keys().cloned().collect()
    }

    /// Waits until the process is ready. Never returns once it drains.
    pub async fn ready(&self) {
        let mut changes = self.state.subscribe();
        // The sender lives in `self`, so that waiting cannot end without readiness.
        drop(changes.wait_for(State::is_ready).await);
    }
}

impl Guard {
    /// Gives up: the name stays on the list, so that the health port says what went wrong.
    pub fn fail(mut self) {
        self.failed = true;
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Guard").field(&self.name).finish()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.failed {
            return;
        }
        let mut left = 0;
        self.state.send_modify(|state| {
            if let Some(count) = state.pending.get_mut(&self.name) {
                *count -= 1;
                if *count == 0 {
                    state.pending.remove(&self.name);
                }
            }
            left = state.pending.len();
        });
        tracing::debug!(name = %self.name, left, "ready");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn i12_ready_when_the_last_guard_is_dropped() {
        let readiness = Readiness::new();
        let certificate = readiness.register("certificate");
        let first = readiness.register("listener");
        let second = readiness.register("listener");
        assert_eq!(readiness.pending(), [Arc::from("certificate"), Arc::from("listener")]);
        let waiter = tokio::spawn({
            let readiness = readiness.clone();
            async move { readiness.ready().await }
        });
        drop((certificate, first));
        assert_eq!(readiness.pending(), [Arc::from("listener")]);
        assert!(!readiness.is_ready());
        drop(second);
        waiter.await.unwrap();
        assert!(readiness.is_ready());
        readiness.set_draining();
        assert!(!readiness.is_ready());
    }

    #[test]
    fn a_failed_guard_stays_on_the_list() {
        let readiness = Readiness::new();
        readiness.register("dns listener").fail();
        assert_eq!(readiness.pending(), [Arc::from("dns listener")]);
        assert!(!readiness.is_ready());
    }
}

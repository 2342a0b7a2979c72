//! Where connections are served: the threads that carry links, each with about as many as the others.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::runtime::Handle;

use crate::router::Router;

/// All places.
#[derive(Debug, Default)]
pub(super) struct Homes(OnceLock<Vec<Arc<Home>>>);

#[derive(Debug)]
struct Home {
    runtime: Handle,
    /// Connections that are served there.
    guests: AtomicUsize,
}

/// A place that is taken until it is dropped.
#[derive(Debug)]
pub(super) struct Seat(Option<Arc<Home>>);

impl Homes {
    /// What there is as soon as `router` has a tunnel.
    fn known(&self, router: &Router) -> &[Arc<Home>] {
        if let Some(homes) = self.0.get() {
            return homes;
        }
        let homes = router.homes();
        if homes.is_empty() {
            return &[];
        }
        let home = |runtime| Arc::new(Home { runtime, guests: AtomicUsize::new(0) });
        self.0.get_or_init(|| homes.into_iter().map(home).collect())
    }

    /// Where a listener is best: the one of these in turn; `None` as long as none is better than another.
    pub(super) fn of_listener(&self, router: &Router, number: usize) -> Option<Handle> {
        let homes = self.known(router);
        homes.get(number.checked_rem(homes.len())?).map(|home| home.runtime.clone())
    }

    /// Where the next connection is best, and its place there: here, which wakes no other thread, unless another one has
    /// fewer; one connection here counts for none, as it may be about to end. To be called within a runtime.
    pub(super) fn take(&self, router: &Router) -> (Handle, Seat) {
        let (here, homes) = (Handle::current(), self.known(router));
        let by_guests = |home: &&Arc<Home>| {
            let (guests, is_here) = (home.guests.load(Ordering::Relaxed), home.runtime.id() == here.id());
            (if is_here && guests == 1 { 0 } else { guests }, !is_here)
        };
        match homes.iter().min_by_key(by_guests) {
            None => (here, Seat(None)),
            Some(home) => {
                home.guests.fetch_add(1, Ordering::Relaxed);
                (home.runtime.clone(), Seat(Some(Arc::clone(home))))
            }
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(home) = &self.0 {
            home.guests.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

//! An Envoy's way from its start to its first connection. One that cannot listen where its workload is reached calls itself
//! ready all the same, and never tries again: it has refused what it was told. So its listeners are looked at, and once a
//! place is free it is told once more.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use socket2::{Domain, Socket, Type};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use tracing::{debug, error, warn};

use super::admin::{Admin, AdminError};
use crate::config::SidecarSettings;

/// Between two looks while nothing is known to be wrong, and while a place is not free.
const LOOK: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(500));
/// Between two lines about an Envoy that is not ready.
const LINES: Duration = Duration::from_secs(10);
/// Between two lines about places that are not free.
const PLACES: Duration = Duration::from_secs(30);
/// Shortest and longest time after which Envoy is told once more by whom nothing is known to be in the way.
const AGAIN: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(30));

/// Looks at one Envoy.
#[derive(Debug)]
pub(super) struct Start {
    admin: Admin,
    /// `inbound[].listen`, in the file's order.
    places: Vec<SocketAddr>,
    /// Makes Envoy ask the gateway for everything that it has not got.
    again: Arc<Notify>,
    begun: Instant,
    /// When there is a line about an Envoy that is not ready.
    next_line: Instant,
    /// What was said last of places, and when.
    said: Option<(String, Instant)>,
    /// When it is told once more, and the pause after that.
    next_offer: Option<Instant>,
    pause: Duration,
}

/// Why it is not ready.
#[derive(Debug)]
enum Reason {
    /// It does not say that it is.
    Admin(AdminError),
    /// It does not listen there, and nothing is in the way.
    Silent(Vec<usize>),
    /// It cannot listen there.
    Taken(Vec<(usize, io::Error)>),
}

impl Start {
    pub(super) fn of(settings: &SidecarSettings, admin: Admin, again: Arc<Notify>) -> Self {
        let places = settings.inbound.iter().map(|inbound| inbound.listen).collect();
        let begun = Instant::now();
        Self { admin, places, again, begun, next_line: begun + LINES, said: None, next_offer: None, pause: AGAIN.0 }
    }

    /// Waits until Envoy has its configuration and listens where it is to, and helps it with that. Gives how long it took.
    pub(super) async fn ready(&mut self) -> Duration {
        loop {
            let missing = self.said.is_some() || self.next_offer.is_some();
            sleep(if missing { LOOK.1 } else { LOOK.0 }).await;
            match self.look().await {
                Ok(()) => return self.begun.elapsed(),
                Err(reason) => self.not_ready(&reason),
            }
        }
    }

    async fn look(&self) -> Result<(), Reason> {
        self.admin.ready().await.map_err(Reason::Admin)?;
        if self.places.is_empty() {
            return Ok(());
        }
        let listeners = self.admin.listeners().await.map_err(Reason::Admin)?;
        match missing(&self.places, &listeners, try_out) {
            None => Ok(()),
            Some(reason) => Err(reason),
        }
    }

    fn not_ready(&mut self, reason: &Reason) {
        let now = Instant::now();
        match reason {
            Reason::Admin(error) => self.wait(now, || why(error)),
            Reason::Taken(places) => {
                self.next_offer = Some(now);
                let lines = places.iter().map(|(index, error)| format!("{}: {error}", self.place(*index)));
                let text = lines.collect::<Vec<_>>().join(", ");
                let is_news = self.said.as_ref().is_none_or(|(said, at)| *said != text || now >= *at + PLACES);
                if is_news {
                    error!("Envoy cannot listen at {text}; not ready until it can");
                    self.said = Some((text, now));
                }
            }
            Reason::Silent(places) => {
                let due = *self.next_offer.get_or_insert(now + self.pause);
                if now >= due {
                    debug!("Envoy is told once more where to listen");
                    self.again.notify_waiters();
                    self.pause = (self.pause * 2).min(AGAIN.1);
                    self.next_offer = Some(now + self.pause);
                }
                let names: Vec<_> = places.iter().map(|index| self.place(*index)).collect();
                self.wait(now, || format!("it does not listen at {}", names.join(", ")));
            }
        }
    }

    fn wait(&mut self, now: Instant, reason: impl FnOnce() -> String) {
        if now >= self.next_line {
            let after = Duration::from_secs(self.begun.elapsed().as_secs());
            warn!(?after, reason = %reason(), "Envoy is not ready");
            self.next_line = now + LINES;
        }
    }

    fn place(&self, index: usize) -> String {
        let address = self.places.get(index).map(ToString::to_string).unwrap_or_default();
        format!("{address} (inbound[{index}].listen)")
    }
}

fn why(error: &AdminError) -> String {
    match error {
        AdminError::Status(StatusCode::SERVICE_UNAVAILABLE) => "it has not got its configuration yet".to_owned(),
        AdminError::Connect(_)
        | AdminError::Http(_)
        | AdminError::Timeout
        | AdminError::Status(_)
        | AdminError::Body => format!("its administration does not answer: {error}"),
    }
}

/// What `places` lack that no listener has.
fn missing(
    places: &[SocketAddr],
    listeners: &BTreeSet<SocketAddr>,
    try_out: impl Fn(SocketAddr) -> io::Result<()>,
) -> Option<Reason> {
    let missing = places.iter().enumerate().filter(|(_, place)| !listeners.contains(place));
    let (mut silent, mut taken) = (Vec::new(), Vec::new());
    for (index, place) in missing {
        match try_out(*place) {
            Ok(()) => silent.push(index),
            Err(error) => taken.push((index, error)),
        }
    }
    match (taken.is_empty(), silent.is_empty()) {
        (false, _) => Some(Reason::Taken(taken)),
        (true, false) => Some(Reason::Silent(silent)),
        (true, true) => None,
    }
}

/// Whether one could listen there. Nobody gets through to it meanwhile.
fn try_out(place: SocketAddr) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(place), Type::STREAM, None)?;
    // As Envoy's: connections of before that have not been forgotten are not in the way.
    socket.set_reuse_address(true)?;
    if place.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&place.into())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn place(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn what_is_in_the_way_is_found_until_it_is_gone() {
        let (other, gone) = (TcpListener::bind("127.0.0.1:0").unwrap(), place("192.0.2.1:9443"));
        let taken = other.local_addr().unwrap();
        let Some(Reason::Taken(places)) = missing(&[taken, gone], &BTreeSet::new(), try_out) else { panic!("both") };
        let kinds: Vec<_> = places.iter().map(|(index, error)| (*index, error.kind())).collect();
        assert_eq!(kinds, [(0, io::ErrorKind::AddrInUse), (1, io::ErrorKind::AddrNotAvailable)]);
        assert!(missing(&[taken], &[taken].into(), try_out).is_none(), "it is Envoy that listens there");
        drop(other);
        assert!(matches!(missing(&[taken], &BTreeSet::new(), try_out), Some(Reason::Silent(places)) if places == [0]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_that_becomes_free_is_offered_at_once_and_then_with_pauses() {
        let again = Arc::new(Notify::new());
        let begun = Instant::now();
        let mut start = Start {
            admin: Admin::Socket("/nonexistent".into()),
            places: vec![place("10.0.0.7:9443")],
            again: Arc::clone(&again),
            begun,
            next_line: begun + LINES,
            said: None,
            next_offer: None,
            pause: AGAIN.0,
        };
        let mut offered = Box::pin(Arc::clone(&again).notified_owned());
        let mut is_offered = |start: &mut Start, reason: &Reason| {
            start.not_ready(reason);
            let offered_now = futures_util::FutureExt::now_or_never(&mut offered).is_some();
            if offered_now {
                offered = Box::pin(Arc::clone(&again).notified_owned());
            }
            offered_now
        };
        let taken = Reason::Taken(vec![(0, io::ErrorKind::AddrInUse.into())]);
        assert!(!is_offered(&mut start, &taken));
        assert_eq!(start.said.as_ref().unwrap().0, "10.0.0.7:9443 (inbound[0].listen): address in use");
        let free = Reason::Silent(vec![0]);
        assert!(is_offered(&mut start, &free), "at once");
        assert!(!is_offered(&mut start, &free));
        tokio::time::advance(2 * AGAIN.0).await;
        assert!(is_offered(&mut start, &free), "Envoy may have come a moment too early");
        tokio::time::advance(2 * AGAIN.0).await;
        assert!(!is_offered(&mut start, &free), "the pauses grow");
    }
}

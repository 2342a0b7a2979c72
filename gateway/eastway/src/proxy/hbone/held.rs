//! What tunnels of sidecars hold in memory, over all connections.
//!
//! Each tunnel is bounded by its window and by what it may have waiting to be sent, and each connection by theirs; but
//! many tunnels whose bytes nobody takes could hold gigabytes. So what all of them hold is counted, and while it is more
//! than the limit no further tunnel is granted. Those that exist go on.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use h2::FlowControl;
use tokio::time::Instant;

/// How long a count is good for: looking at ten thousand tunnels takes a millisecond.
const FRESH: Duration = Duration::from_millis(50);
/// A sidecar that takes nothing for so long holds up what it was sent; for shorter times every one does.
const SLOW: Duration = Duration::from_millis(200);

/// All tunnels of this gateway.
#[derive(Debug)]
pub struct Held {
    limit: u64,
    began: Instant,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    last: u64,
    tunnels: BTreeMap<u64, Arc<Meter>>,
    /// When it was counted, and how much it was.
    counted: Option<(Instant, u64)>,
}

/// What is held now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holding {
    /// Tunnels that are open.
    pub tunnels: usize,
    /// Bytes that they hold.
    pub bytes: u64,
    /// Beyond so many bytes no further tunnel is granted.
    pub limit: u64,
}

impl Held {
    /// With a limit in bytes.
    #[must_use]
    pub fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self { limit, began: Instant::now(), state: Mutex::default() })
    }

    /// Whether there is room for one more tunnel; as of a moment ago.
    pub(super) fn has_room(&self) -> bool {
        let mut state = self.lock();
        let bytes = match state.counted {
            Some((at, bytes)) if at.elapsed() < FRESH => bytes,
            _ => state.count(self.began.elapsed()),
        };
        bytes < self.limit
    }

    /// What is held now.
    #[must_use]
    pub fn now(&self) -> Holding {
        let mut state = self.lock();
        Holding { bytes: state.count(self.began.elapsed()), tunnels: state.tunnels.len(), limit: self.limit }
    }

    /// Counts a tunnel, whose bytes come by `flow`, for as long as the entry lives.
    pub(super) fn enter(self: &Arc<Self>, flow: FlowControl) -> Entry {
        let (passed_on, waiting, since) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicU64::new(0));
        let meter = Arc::new(Meter { flow, passed_on, waiting, since, began: self.began });
        let mut state = self.lock();
        state.last += 1;
        let number = state.last;
        state.tunnels.insert(number, Arc::clone(&meter));
        drop(state);
        Entry { held: Arc::clone(self), number, meter }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn count(&mut self, now: Duration) -> u64 {
        let bytes = self.tunnels.values().map(|meter| meter.held(now) as u64).sum();
        self.counted = Some((Instant::now(), bytes));
        bytes
    }
}

/// A tunnel's place among all.
pub(super) struct Entry {
    held: Arc<Held>,
    number: u64,
    meter: Arc<Meter>,
}

impl Entry {
    pub(super) fn meter(&self) -> Arc<Meter> {
        Arc::clone(&self.meter)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let gone = self.held.lock().tunnels.remove(&self.number);
        // Not under the lock: the last reference to a stream of HTTP/2 takes that of its connection.
        drop(gone);
    }
}

/// What one tunnel holds.
#[derive(Debug)]
pub(super) struct Meter {
    flow: FlowControl,
    /// Of the bytes whose window was not given back, those that are here no more.
    passed_on: AtomicUsize,
    /// Bytes that may wait for the sidecar to take them; 0: it takes them.
    waiting: AtomicUsize,
    /// Since when, milliseconds after `began`.
    since: AtomicU64,
    began: Instant,
}

impl Meter {
    pub(super) fn set_passed_on(&self, bytes: usize) {
        self.passed_on.store(bytes, Ordering::Relaxed);
    }

    pub(super) fn set_waiting(&self, bytes: usize) {
        if self.waiting.swap(bytes, Ordering::Relaxed) == 0 && bytes > 0 {
            let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.since.store(now, Ordering::Relaxed);
        }
    }

    fn held(&self, now: Duration) -> usize {
        let came = self.flow.used_capacity().saturating_sub(self.passed_on.load(Ordering::Relaxed));
        let is_slow = Duration::from_millis(self.since.load(Ordering::Relaxed)) + SLOW <= now;
        let waiting = if is_slow { self.waiting.load(Ordering::Relaxed) } else { 0 };
        came + waiting
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use h2::{RecvStream, SendStream, client, server};
    use hyper::{Request, Response};

    use super::*;

    /// A stream of a sidecar to here, and its end there.
    async fn stream() -> (RecvStream, SendStream<Bytes>) {
        let (near, far) = tokio::io::duplex(1 << 20);
        let (sender, receiver) = tokio::sync::oneshot::channel();
        tokio::spawn(async move {
            let mut builder = server::Builder::new();
            builder.initial_window_size(256 << 10).initial_connection_window_size(1 << 20);
            let mut connection = builder.handshake(near).await.unwrap();
            let (request, mut respond) = connection.accept().await.unwrap().unwrap();
            let _answer: SendStream<Bytes> = respond.send_response(Response::new(()), false).unwrap();
            sender.send(request.into_body()).unwrap();
            while let Some(Ok(_)) = connection.accept().await {}
        });
        let (mut requests, connection) = client::handshake(far).await.unwrap();
        tokio::spawn(connection);
        let request = Request::builder().uri("https://a.example/").body(()).unwrap();
        let (_response, stream) = requests.send_request(request, false).unwrap();
        (receiver.await.unwrap(), stream)
    }

    #[tokio::test]
    async fn what_nobody_takes_is_counted_and_stops_further_tunnels() {
        let held = Held::new(100_000);
        let (mut incoming, mut outgoing) = stream().await;
        let entry = held.enter(incoming.flow_control().clone());
        assert_eq!(held.now(), Holding { tunnels: 1, bytes: 0, limit: 100_000 });
        outgoing.send_data(Bytes::from(vec![0; 60_000]), false).unwrap();
        let until = async |bytes: u64| {
            let wait = async {
                while held.now().bytes != bytes {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(10), wait).await.expect("it is counted");
        };
        until(60_000).await;
        assert!(held.has_room());
        outgoing.send_data(Bytes::from(vec![0; 60_000]), false).unwrap();
        until(120_000).await;
        assert!(!held.has_room());
        // Taken, and on its way: its window is given back later.
        let mut taken = 0;
        while taken < 120_000 {
            taken += incoming.data().await.unwrap().unwrap().len();
            entry.meter().set_passed_on(taken);
        }
        assert_eq!(held.now().bytes, 0);
        entry.meter().set_waiting(200_000);
        assert_eq!(held.now().bytes, 0, "for a moment");
        until(200_000).await;
        entry.meter().set_waiting(250_000);
        assert_eq!(held.now().bytes, 250_000, "and longer still");
        assert!(!held.has_room(), "a sidecar that does not read counts as well");
        drop(entry);
        assert_eq!(held.now(), Holding { tunnels: 0, bytes: 0, limit: 100_000 });
        assert!(held.has_room());
    }
}

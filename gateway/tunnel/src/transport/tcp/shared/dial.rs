//! The dialling side: at most so many connections, made when they are needed, and pipes on them in turn.

use std::num::NonZeroU8;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use eastway_identity::tls;
use h2::client::{Builder, SendRequest};
use http::{Method, Request, Uri};
use tokio::time::{Instant, sleep_until};

use super::io::Below;
use super::pipe::SharedPipe;
use super::windows::{self, Windows};
use super::*;
use crate::control::printable;
use crate::events::Event;
use crate::transport::BoxFuture;
use crate::transport::tcp::pipe::{ConnectError, Connector, Pipe, Via};
use crate::transport::tcp::{Failure, Shared, dial};

/// A connection that did not come about, while others are there, is not tried again for so long.
const REST: Duration = Duration::from_secs(10);

/// Makes pipes on few connections.
pub(in crate::transport::tcp) struct Sharing {
    shared: Arc<Shared>,
    peer: Arc<str>,
    below: Arc<dyn Connector>,
    slots: Vec<Slot>,
    next: AtomicUsize,
    /// The other side is of a version that shares none.
    cannot: AtomicBool,
}

/// A place for a connection.
#[derive(Default)]
struct Slot {
    made: Mutex<Option<Made>>,
    /// Held by who makes it; not to be made again before this time.
    rest: tokio::sync::Mutex<Option<Instant>>,
}

#[derive(Clone)]
struct Made {
    carrier: Arc<Carrier>,
    requests: SendRequest<Bytes>,
}

impl Slot {
    fn get(&self) -> Option<Made> {
        lock(&self.made).clone().filter(|made| !made.carrier.is_retired())
    }
}

impl Sharing {
    /// Over at most `most` connections that `below` makes.
    pub(in crate::transport::tcp) fn new(
        shared: Arc<Shared>,
        peer: Arc<str>,
        below: Arc<dyn Connector>,
        most: NonZeroU8,
    ) -> Self {
        let slots = std::iter::repeat_with(Slot::default).take(usize::from(most.get())).collect();
        Self { shared, peer, below, slots, next: AtomicUsize::new(0), cannot: AtomicBool::new(false) }
    }

    async fn pipe(&self) -> Result<Box<dyn Pipe>, ConnectError> {
        if self.cannot.load(Ordering::Relaxed) {
            return self.below.connect().await;
        }
        let first = self.next.fetch_add(1, Ordering::Relaxed) % self.slots.len().max(1);
        let (after, before) = (self.slots.iter().skip(first), self.slots.iter().take(first));
        let mut failed = None;
        for slot in after.chain(before) {
            match self.made(slot).await {
                Ok(made) => return self.ask(made).await,
                Err(ConnectError::Shared(Failure::Alpn)) => {
                    if !self.cannot.swap(true, Ordering::Relaxed) {
                        let (peer, remote) = (&self.peer, self.below.remote());
                        self.shared.observer.happened(&Event::Unshared { peer, remote });
                    }
                    return self.below.connect().await;
                }
                // There may be no room for one more, of which the others know nothing.
                Err(error) if self.has_any() => {
                    tracing::debug!(peer = %self.peer, %error, "Fewer connections carry a link than may");
                    failed = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        Err(failed.unwrap_or_else(|| ConnectError::Tcp(std::io::ErrorKind::NotConnected.into())))
    }

    fn has_any(&self) -> bool {
        self.slots.iter().any(|slot| slot.get().is_some())
    }

    /// The connection of `slot`, made if there is none.
    async fn made(&self, slot: &Slot) -> Result<Made, ConnectError> {
        if let Some(made) = slot.get() {
            return Ok(made);
        }
        let mut rest = slot.rest.lock().await;
        // Somebody else made it meanwhile.
        if let Some(made) = slot.get() {
            return Ok(made);
        }
        if rest.is_some_and(|until| until > Instant::now()) && self.has_any() {
            return Err(ConnectError::Tcp(std::io::Error::other("it did not come about a moment ago")));
        }
        let made = self.make().await.inspect_err(|_| *rest = Some(Instant::now() + REST))?;
        *lock(&slot.made) = Some(made.clone());
        Ok(made)
    }

    async fn make(&self) -> Result<Made, ConnectError> {
        let shared = &self.shared;
        let other = |text: String| ConnectError::Shared(Failure::Other(printable(&text)));
        let pipe = self.below.connect().await?;
        pipe.take_little();
        let (identity, trust) = (Arc::clone(&shared.identity), Arc::clone(&shared.trust));
        let config = tls::shared_client_config(identity, trust, Arc::clone(&shared.clock), Arc::clone(&self.peer));
        let config = config.map_err(|error| other(error.to_string()))?;
        let session = dial::secure(shared, pipe, config).await.map_err(ConnectError::Shared)?;
        shared.identify(&session, tls::SHARED_ALPN, Some(&self.peer)).map_err(ConnectError::Shared)?;
        let below = Below::new(session);
        let carrier = Arc::new(Carrier::new(below.ends()));
        let mut builder = bounded!(Builder::new(), &shared.config.limits);
        builder.enable_push(false).initial_max_send_streams(MAX_PIPES as usize);
        let made = builder.handshake::<_, Bytes>(below).await;
        let (requests, connection) = made.map_err(|error| other(error.to_string()))?;
        shared.tasks.spawn(run(Arc::clone(shared), Arc::clone(&carrier), connection));
        Ok(Made { carrier, requests })
    }

    /// A pipe on a connection.
    async fn ask(&self, made: Made) -> Result<Box<dyn Pipe>, ConnectError> {
        let Made { carrier, requests } = made;
        let lost = |error: h2::Error| ConnectError::Tcp(std::io::Error::new(std::io::ErrorKind::BrokenPipe, error));
        let failed = |error| {
            carrier.retire();
            lost(error)
        };
        let mut requests = requests.ready().await.map_err(failed)?;
        let mut request = Request::new(());
        (*request.method_mut(), *request.uri_mut()) = (Method::CONNECT, Uri::from_static(AUTHORITY));
        let (answer, send) = requests.send_request(request, false).map_err(lost)?;
        Ok(Box::new(SharedPipe::asked(carrier, answer, send)))
    }
}

impl Connector for Sharing {
    fn remote(&self) -> SocketAddr {
        self.below.remote()
    }

    fn via(&self) -> Option<Via> {
        self.below.via()
    }

    fn connect(&self) -> BoxFuture<'_, Result<Box<dyn Pipe>, ConnectError>> {
        Box::pin(self.pipe())
    }
}

/// Until it ends: nobody makes pipes of it any more, and none is left.
async fn run(shared: Arc<Shared>, carrier: Arc<Carrier>, mut connection: h2::client::Connection<Below, Bytes>) {
    let mut windows = Windows::new(shared.config.limits);
    let mut until = None;
    loop {
        tokio::select! {
            ended = &mut connection => {
                tracing::debug!(?ended, "A connection that is shared ended");
                break;
            }
            () = windows.due() => windows.fit(&carrier, &mut connection),
            // Links say goodbye on it.
            () = shared.stop.cancelled(), if until.is_none() => {
                until = Some(Instant::now() + shared.config.timing.close * 2);
            }
            () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => break,
        }
    }
    carrier.retire();
}

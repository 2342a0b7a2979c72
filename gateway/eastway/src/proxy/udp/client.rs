//! A client's flow: finds its other end as a connection does, and carries packets until it is over.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use eastway_model::routing::{Candidate, RouteError};
use eastway_model::{ClusterName, EndpointId};
use eastway_tunnel::flow::{Flow, FlowSender, FlowSink, Scratch};
use eastway_tunnel::header::ServiceHeader;
use eastway_tunnel::{Link, ResetCode, StreamError};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::task::TaskTracker;

use super::activity::Activity;
use super::listener::{Key, Listener, lock};
use super::socket::PacketSocket;
use crate::proxy::connection::{Connection, Outcome};
use crate::proxy::copy::{CopyError, Transferred};
use crate::proxy::dial::InFlightGuard;
use crate::proxy::outbound::{CONNECT_TIMEOUT, ConnectError, MAX_ATTEMPTS, Target};
use crate::proxy::reach::{self, ReachError};
use crate::router::{self, Routed, Router};
use crate::telemetry::Path;

/// Packets that are kept until the flow has its other end, and their bytes: to be said again elsewhere if it is refused.
const KEPT: usize = 16;
const KEPT_BYTES: usize = 64 << 10;
/// How long packets of a client whose flow found no other end are dropped before it may try again.
const REFUSED_FOR: Duration = Duration::from_millis(500);
/// How often metrics learn what passed, and a flow learns that the process drains.
const COUNTED: Duration = Duration::from_secs(5);

thread_local! {
    /// For sending on links, once for all flows of a thread.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// What one client sends to one address.
pub(super) struct ClientFlow {
    pub(super) key: Key,
    to_client: Arc<ToClient>,
    /// Where packets go, once that is known.
    way: OnceLock<Way>,
    kept: Mutex<Kept>,
    arrived: Notify,
    /// Nothing new comes: another flow took its place, or its listener ends.
    left: AtomicBool,
    leave: Notify,
    over: AtomicBool,
    /// Where its listener had better be.
    listens_at: Arc<OnceLock<Handle>>,
    /// Closed when the process drains.
    tasks: TaskTracker,
}

enum Way {
    /// To an endpoint of this cluster.
    Local(Arc<PacketSocket>),
    /// To a peer, by a link.
    Remote(FlowSender, Link, ClusterName),
}

#[derive(Default)]
struct Kept {
    packets: Vec<Bytes>,
    bytes: usize,
}

/// Hands packets to the client.
struct ToClient {
    key: Key,
    socket: Arc<PacketSocket>,
    activity: Activity,
}

impl FlowSink for ToClient {
    fn deliver(&self, packets: &[Bytes]) {
        self.answer(packets);
    }
}

impl ToClient {
    fn answer(&self, packets: &[impl AsRef<[u8]>]) {
        self.activity.answered(packets.len(), packets.iter().map(|packet| packet.as_ref().len()).sum());
        // That a client has gone is not an error of its flow: whatever still comes for it ends soon.
        let _lost = self.socket.send(Some(self.key.client), self.key.at, packets);
    }
}

/// The other end of a flow.
enum Far {
    Local(Arc<PacketSocket>, InFlightGuard, EndpointId),
    Remote(Flow),
}

impl ClientFlow {
    pub(super) fn new(key: Key, listener: &Listener, tasks: &TaskTracker) -> Arc<Self> {
        let socket = Arc::clone(&listener.socket);
        Arc::new(Self {
            key,
            to_client: Arc::new(ToClient { key, socket, activity: Activity::new(Instant::now()) }),
            way: OnceLock::new(),
            kept: Mutex::default(),
            arrived: Notify::new(),
            left: AtomicBool::new(false),
            leave: Notify::new(),
            over: AtomicBool::new(false),
            listens_at: Arc::clone(&listener.home),
            tasks: tasks.clone(),
        })
    }

    /// Whether it takes no more packets.
    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    pub(super) fn set_over(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// Nothing new is to be expected of the client; answers still arrive.
    pub(super) fn leave(&self) {
        self.left.store(true, Ordering::Relaxed);
        self.leave.notify_one();
    }

    /// Whether its link ends soon and there is another one.
    pub(super) fn has_better_way(&self, router: &Router) -> bool {
        match self.way.get() {
            // Another one to the same replica, by a better transport or address, is as good.
            Some(Way::Remote(_, link, cluster)) if !link.is_usable() => {
                router.link(cluster, &[]).is_some_and(|other| other.is_usable())
            }
            Some(_) | None => false,
        }
    }

    /// Takes packets of the client.
    pub(super) fn push<'a>(&self, packets: impl Iterator<Item = &'a [u8]>) {
        if let Some(way) = self.way.get() {
            return self.send(way, packets);
        }
        let mut kept = lock(&self.kept);
        match self.way.get() {
            Some(way) => self.send(way, packets),
            None => {
                for packet in packets {
                    if kept.packets.len() < KEPT && kept.bytes + packet.len() <= KEPT_BYTES {
                        self.to_client.activity.asked(1, packet.len());
                        kept.bytes += packet.len();
                        kept.packets.push(Bytes::copy_from_slice(packet));
                    }
                }
                drop(kept);
                self.arrived.notify_one();
            }
        }
    }

    fn send<'a>(&self, way: &Way, packets: impl Iterator<Item = &'a [u8]>) {
        let (mut count, mut bytes) = (0, 0);
        hand_on(way, packets.inspect(|packet| (count, bytes) = (count + 1, bytes + packet.len())));
        self.to_client.activity.asked(count, bytes);
    }

    /// Sends what was kept beyond the first `sent` packets, and from now on all.
    fn go(&self, way: Way, sent: usize) {
        let mut kept = lock(&self.kept);
        let Kept { packets, .. } = std::mem::take(&mut *kept);
        hand_on(&way, packets.iter().skip(sent).map(|packet| &packet[..]));
        // Set once, by the flow's own task.
        self.way.set(way).ok();
    }

    fn kept_from(&self, sent: usize) -> Vec<Bytes> {
        lock(&self.kept).packets.iter().skip(sent).cloned().collect()
    }

    /// Serves the flow until it is over.
    pub(super) async fn run(self: Arc<Self>, router: Arc<Router>, target: Arc<Target>, address: SocketAddr) {
        let client = SocketAddr::new(self.key.client.ip().to_canonical(), self.key.client.port());
        let mut connection = Connection::outbound(router.cluster(), &target.service, target.port.get(), client);
        connection.set_udp();
        connection.set_local(Some(address));
        let connecting = async {
            let routed = router.route_udp(&target, client.ip()).await?;
            connection.set_source(&routed.source);
            self.connect(&router, &target, &routed, &mut connection).await
        };
        // On the heap: it is far larger than what comes after it, and gone by then.
        let connected = Box::pin(timeout(CONNECT_TIMEOUT, connecting)).await;
        match connected.unwrap_or(Err(ConnectError::Timeout)) {
            Ok(far) => {
                connection.opened(&router.telemetry);
                let ended = self.carry(&router, far, &mut connection).await;
                self.set_over();
                connection.closed(&router.telemetry, &Outcome::Ended(ended), &self.moved());
            }
            Err(error) => {
                connection.closed(&router.telemetry, &Outcome::NotConnected(error), &Transferred::default());
                sleep(REFUSED_FOR).await;
            }
        }
    }

    fn moved(&self) -> Transferred {
        let (asked, answered) = self.to_client.activity.bytes();
        let moved = Transferred::default();
        moved.from_local.passed(asked);
        moved.to_local.passed(answered);
        moved
    }

    async fn connect(
        &self,
        router: &Router,
        target: &Target,
        routed: &Routed,
        connection: &mut Connection,
    ) -> Result<Far, ConnectError> {
        let mut last = ConnectError::Route(RouteError::NoEndpoints);
        for candidate in routed.route.candidates.iter().take(MAX_ATTEMPTS) {
            connection.set_candidate(candidate);
            let attempt = match &candidate.cluster {
                None => self.local(router, target, routed, candidate, connection),
                Some(cluster) => self.remote(router, target, routed, (cluster, candidate), connection).await,
            };
            match attempt {
                Err(error) if error.is_retryable(true) => {
                    router.note_retry(candidate);
                    last = error;
                }
                result => return result,
            }
        }
        Err(last)
    }

    fn local(
        &self,
        router: &Router,
        target: &Target,
        routed: &Routed,
        candidate: &Candidate,
        connection: &mut Connection,
    ) -> Result<Far, ConnectError> {
        let picked = router.pick_local(candidate, target, routed, &[]).map_err(ReachError::from)?;
        connection.set_upstream(Path::Local, picked.address);
        connection.set_version(picked.version.clone());
        let socket = Arc::new(reach::connect_udp(router, &picked).map_err(ReachError::from)?);
        let in_flight = router.in_flight.enter(&picked.endpoint);
        self.go(Way::Local(Arc::clone(&socket)), 0);
        Ok(Far::Local(socket, in_flight, picked.endpoint))
    }

    /// By one link after the other, as long as it is the link that fails.
    async fn remote(
        &self,
        router: &Router,
        target: &Target,
        routed: &Routed,
        (cluster, candidate): (&ClusterName, &Candidate),
        connection: &mut Connection,
    ) -> Result<Far, ConnectError> {
        let header = router::service_header(routed, target, candidate, None).ok_or(ConnectError::Header)?;
        let mut tried = Vec::new();
        let mut last = ConnectError::NoLink(cluster.clone());
        while let Some(link) = router.link(cluster, &tried).filter(|_| tried.len() < MAX_ATTEMPTS) {
            connection.set_upstream(link.transport().into(), link.remote_addr());
            match self.by_link(router, &link, cluster, header.clone()).await {
                Err(error) if error.is_of_link(true) => {
                    tried.push(link);
                    router.note_retry(candidate);
                    last = error;
                }
                result => return result.map(Far::Remote),
            }
        }
        Err(last)
    }

    async fn by_link(
        &self,
        router: &Router,
        link: &Link,
        cluster: &ClusterName,
        header: ServiceHeader,
    ) -> Result<Flow, ConnectError> {
        let metrics = &router.telemetry.metrics;
        let first = self.kept_from(0);
        let mut sent = first.len();
        let opened = link.open_flow(header, &first, Arc::clone(&self.to_client) as Arc<dyn FlowSink>).await;
        let mut flow = opened.map_err(|error| {
            metrics.stream_opened(link.peer(), "not_opened");
            ConnectError::Open(cluster.clone(), error)
        })?;
        let sender = flow.sender();
        let accepted = loop {
            tokio::select! {
                biased;
                accepted = flow.accepted() => break accepted,
                () = self.arrived.notified() => {
                    let more = self.kept_from(sent);
                    sent += more.len();
                    let packets = more.iter().map(|packet| &packet[..]);
                    SCRATCH.with_borrow_mut(|scratch| sender.send(packets, scratch));
                }
            }
        };
        let outcome = match accepted {
            Ok(()) => "dialled",
            Err(StreamError::Reset(code)) => code.name(),
            Err(StreamError::LinkLost | StreamError::Closed) => "link_lost",
        };
        metrics.stream_opened(link.peer(), outcome);
        if let Err(error) = accepted {
            flow.end(ResetCode::Cancelled);
            return Err(ConnectError::Refused(cluster.clone(), error));
        }
        if let Some(home) = link.home() {
            // Set once: it serves flows over other links as well.
            self.listens_at.set(home).ok();
        }
        self.go(Way::Remote(sender, link.clone(), cluster.clone()), sent);
        Ok(flow)
    }

    /// Carries packets until nothing passes any more, or the other end says so.
    async fn carry(&self, router: &Router, far: Far, connection: &mut Connection) -> Result<(), CopyError> {
        match far {
            Far::Remote(mut flow) => {
                let ended = tokio::select! {
                    ended = flow.run() => ended,
                    () = self.quiet(router, connection) => {
                        flow.end(ResetCode::IdleTimeout);
                        return Ok(());
                    }
                };
                match ended {
                    // It was quiet for as long there.
                    Ok(()) | Err(StreamError::Reset(ResetCode::IdleTimeout)) => Ok(()),
                    Err(error) => Err(error.into()),
                }
            }
            Far::Local(socket, _in_flight, endpoint) => {
                let answers = async {
                    let socket = match socket.receiver() {
                        Ok(socket) => socket,
                        Err(error) => return error,
                    };
                    loop {
                        let received = socket.receive(|messages| {
                            for message in messages {
                                self.to_client.answer(&message.packets().collect::<Vec<_>>());
                            }
                        });
                        if let Err(error) = received.await {
                            router.failing.note(&endpoint);
                            return error;
                        }
                    }
                };
                tokio::select! {
                    error = answers => Err(error.into()),
                    () = self.quiet(router, connection) => Ok(()),
                }
            }
        }
    }

    /// Waits until nothing has passed for long enough.
    async fn quiet(&self, router: &Router, connection: &mut Connection) {
        loop {
            let left = self.left.load(Ordering::Relaxed) || self.tasks.is_closed();
            let over = self.to_client.activity.over_at(router.udp_idle, left);
            let now = Instant::now();
            if over <= now {
                return;
            }
            tokio::select! {
                () = sleep_until(over.min(now + COUNTED)) => connection.count(&self.moved()),
                () = self.leave.notified() => {}
            }
        }
    }
}

/// Sends packets on their way.
fn hand_on<'a>(way: &Way, packets: impl Iterator<Item = &'a [u8]>) {
    match way {
        Way::Local(socket) => {
            // What the endpoint says to it, its own task hears.
            let _lost = socket.send(None, None, &packets.collect::<Vec<_>>());
        }
        Way::Remote(sender, ..) => SCRATCH.with_borrow_mut(|scratch| sender.send(packets, scratch)),
    }
}

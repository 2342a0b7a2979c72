//! The task of one link: it feeds the control session, watches the certificate and the windows, and lets
//! the streams of the other side in.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use eastway_identity::reauth::{self, Exporter, Role};
use eastway_identity::{AnchorDer, CertificateDer, Clock, IdentityStore, SpkiPin, TrustStore, VerifiedPeer};
use eastway_proto::control::v1::Reauthenticate;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::balance::{Balance, Budget, TICK};
use super::control::{ControlStream, QueueFull};
use super::{Link, LinkIdentity, LinkShared, LinkState, LinkSurroundings};
use crate::code::CloseCode;
use crate::config::{ReplicaId, TunnelConfig};
use crate::control::{ControlAction, ControlConfig, ControlSession, Now, PeerHello};
use crate::events::Observer;
use crate::loads::Loads;
use crate::metrics::{Counters, PacketLoss};
use crate::peers::PeerCounts;
use crate::stream::StreamHandler;
use crate::transport::{CloseReason, Established, Side};
use crate::world::Resolver;

mod admit;
mod tell;

pub use tell::HeardAnchors;

/// Orders that may wait for a link.
const ORDERS: usize = 16;

/// What all links of a tunnel share.
pub(crate) struct Environment {
    pub(crate) config: Arc<TunnelConfig>,
    pub(crate) identity: Arc<IdentityStore>,
    pub(crate) trust: Arc<TrustStore>,
    pub(crate) clock: Clock,
    pub(crate) resolver: Resolver,
    pub(crate) observer: Arc<dyn Observer>,
    pub(crate) handler: Arc<dyn StreamHandler>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) loads: Arc<Loads>,
    pub(crate) budget: Arc<Budget>,
    pub(crate) stream_counts: PeerCounts,
    /// Connections of each peer that have not said Hello yet.
    pub(crate) start_counts: PeerCounts,
    /// Live replicas of this cluster.
    pub(crate) live: watch::Receiver<Arc<[ReplicaId]>>,
    /// What peers are told that this trust domain is known by.
    pub(crate) anchors: watch::Receiver<Arc<[AnchorDer]>>,
    /// What each peer said that its trust domain is known by.
    pub(crate) heard: watch::Sender<Arc<HeardAnchors>>,
    pub(crate) tasks: TaskTracker,
    pub(crate) next_link: AtomicU64,
    /// Fixed point of monotonic time.
    pub(crate) epoch: Instant,
}

impl Environment {
    pub(crate) fn now(&self) -> Now {
        let wall = (self.clock)().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Now { mono: self.epoch.elapsed(), wall_ms: u64::try_from(wall.as_millis()).unwrap_or(u64::MAX) }
    }
}

/// Tells a link to drain: the other side is told to open nothing new here, what comes after `grace` is
/// refused, and the link is closed after `within` (`None`: for as long as it has streams) or, with
/// `close_when_idle`, when no stream is open after `grace`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GoAwayOrder {
    pub(crate) reason: &'static str,
    pub(crate) grace: Duration,
    pub(crate) within: Option<Duration>,
    pub(crate) close_when_idle: bool,
}

/// What a link tells the manager.
#[derive(Debug)]
pub(crate) enum LinkEvent {
    /// Its state, or the other side's replicas, changed.
    Changed { id: u64, replicas: Option<Vec<ReplicaId>> },
    /// It is gone.
    Ended { id: u64, reason: CloseReason },
}

/// A link after Hello, not running yet.
pub(crate) struct Started {
    pub(crate) link: Link,
    pub(crate) hello: PeerHello,
    pub(crate) orders: mpsc::Sender<GoAwayOrder>,
    pub(crate) driver: Driver,
}

/// Runs one link.
pub(crate) struct Driver {
    environment: Arc<Environment>,
    shared: Arc<LinkShared>,
    session: ControlSession,
    control: ControlStream,
    orders: mpsc::Receiver<GoAwayOrder>,
    certificates: Certificates,
    balance: Balance,
    /// The keys of the other side's CA that it was told are accepted.
    told_accepts: Vec<SpkiPin>,
    /// The anchors that the other side was told.
    told_anchors: Arc<[AnchorDer]>,
    /// When the streams of the other side are refused, and when the link is closed, once it drains.
    drain: Option<Drain>,
}

struct Drain {
    refuse_at: Instant,
    close_at: Option<Instant>,
    close_when_idle: bool,
}

/// Who the other side has proved to be, and until when; and how this side proves it anew.
struct Certificates {
    /// The last chain that was accepted.
    chain: Vec<CertificateDer<'static>>,
    not_after: SystemTime,
    remote_leaf_sha256: [u8; 32],
    local_leaf_sha256: [u8; 32],
    /// The leaf that the other side knows of.
    sent_leaf_sha256: [u8; 32],
    exporter: Exporter,
    side: Side,
}

/// Exchanges Hello on a new connection within the handshake's deadline.
pub(crate) async fn start(environment: Arc<Environment>, established: Established) -> Result<Started, CloseReason> {
    let connection = Arc::clone(&established.connection);
    let deadline = environment.config.timing.handshake;
    let result = tokio::select! {
        result = tokio::time::timeout(deadline, exchange(environment, established)) => result,
        reason = connection.closed() => return Err(reason),
    };
    let (code, message) = match result {
        Ok(Ok(started)) => return Ok(started),
        Ok(Err(failed)) => failed,
        Err(_) => (CloseCode::Timeout, "no Hello within the deadline".to_owned()),
    };
    connection.close(code, &message);
    Err(CloseReason::Local { code, message })
}

async fn exchange(environment: Arc<Environment>, established: Established) -> Result<Started, (CloseCode, String)> {
    let Established { connection, peer, chain, local_leaf_sha256 } = established;
    let side = connection.side();
    let halves = match side {
        Side::Dialler => connection.open().await,
        Side::Acceptor => connection.accept().await,
    };
    // The connection's end says why; that there are no streams any more does not.
    let Ok(halves) = halves else { return std::future::pending().await };
    let mut control = ControlStream::new(halves);
    let exporter =
        connection.export(reauth::EXPORTER_LABEL).map_err(|error| (CloseCode::Internal, error.to_string()))?;
    let (config, timing) = (&environment.config, &environment.config.timing);
    let config = ControlConfig {
        cluster: Arc::clone(&config.cluster),
        replica: config.replica,
        live: Arc::clone(&environment.live.borrow()),
        peer: Arc::clone(&peer.peer),
        software_version: Arc::clone(&config.software_version),
        heartbeat: timing.heartbeat,
        acknowledge: timing.acknowledge,
        handshake: timing.handshake,
    };
    let (mut session, mut actions) = ControlSession::new(config, environment.now());
    let hello = loop {
        let mut hello = None;
        for action in actions {
            match action {
                ControlAction::Send(message) => control.push(&message).map_err(|QueueFull| unread())?,
                ControlAction::Established(peer) => hello = Some(peer),
                ControlAction::Close(code, message) => {
                    control.flush_now().await;
                    return Err((code, message));
                }
                ControlAction::Acknowledged { .. }
                | ControlAction::Stale
                | ControlAction::Replicas(_)
                | ControlAction::Accepts(_)
                | ControlAction::Anchors(_)
                | ControlAction::Verify(_)
                | ControlAction::GoAway { .. } => {}
            }
        }
        if let Some(hello) = hello {
            break hello;
        }
        let message = control.next().await.map_err(|error| (CloseCode::Protocol, error.to_string()))?;
        actions = session.handle(message, environment.now());
    };
    let identity = LinkIdentity {
        id: environment.next_link.fetch_add(1, Ordering::Relaxed),
        peer: Arc::clone(&peer.peer),
        replica: hello.replica,
        side,
        since: (environment.clock)(),
    };
    let surroundings = LinkSurroundings {
        limits: environment.config.limits,
        timing: *timing,
        counters: Arc::clone(&environment.counters),
        loads: Arc::clone(&environment.loads),
        observer: Arc::clone(&environment.observer),
        peer_streams: environment.stream_counts.of(&peer.peer),
    };
    let shared = LinkShared::new(identity, connection, (peer.not_before, peer.not_after), surroundings);
    shared.update_live(|live| live.clock_skew_ms = Some(hello.clock_skew_ms));
    shared.set_chain(&chain);
    let certificates = Certificates {
        chain,
        not_after: peer.not_after,
        remote_leaf_sha256: peer.leaf_sha256,
        local_leaf_sha256,
        sent_leaf_sha256: local_leaf_sha256,
        exporter: Exporter(exporter),
        side,
    };
    let (orders, receiver) = mpsc::channel(ORDERS);
    let balance = Balance::new(Arc::clone(&environment.budget), Arc::clone(&shared));
    let link = Link(Arc::clone(&shared));
    let driver = Driver {
        environment,
        shared,
        session,
        control,
        orders: receiver,
        certificates,
        balance,
        told_accepts: Vec::new(),
        told_anchors: Arc::from([]),
        drain: None,
    };
    Ok(Started { link, hello, orders, driver })
}

fn unread() -> (CloseCode, String) {
    (CloseCode::Protocol, "the control stream is not read".to_owned())
}

/// What ends a link from this side.
type Stop = Result<(), (CloseCode, String)>;

impl Driver {
    /// Until the link ends.
    pub(crate) async fn run(mut self, events: mpsc::Sender<LinkEvent>) {
        let connection = Arc::clone(&self.shared.connection);
        let environment = Arc::clone(&self.environment);
        let _guard = EndGuard { shared: Arc::clone(&self.shared), events: events.clone() };
        let take = admit::take_streams(&self.shared, Arc::clone(&environment));
        let home = connection.home().unwrap_or_else(Handle::current);
        environment.tasks.spawn_on(Arc::clone(&connection).serve(take), &home);
        // There, too: sinks only hand on.
        environment.tasks.spawn_on(admit::take_datagrams(Arc::clone(&self.shared)), &home);
        let reason = tokio::select! {
            reason = connection.closed() => reason,
            (code, message) = self.serve(&events) => {
                self.control.flush_now().await;
                connection.close(code, &message);
                CloseReason::Local { code, message }
            }
        };
        self.shared.set_state(LinkState::Closed);
        self.shared.counters().link_closed(&reason);
        let dropped = usize::try_from(connection.path().dropped_datagrams).unwrap_or(usize::MAX);
        self.shared.counters().packets_lost(PacketLoss::Path, dropped);
        let id = self.shared.identity.id;
        // Only when the manager is gone does nobody listen.
        events.send(LinkEvent::Ended { id, reason }).await.ok();
    }

    async fn serve(&mut self, events: &mpsc::Sender<LinkEvent>) -> (CloseCode, String) {
        let mut identity = self.environment.identity.subscribe();
        let mut trust = self.environment.trust.subscribe();
        let mut live = self.environment.live.clone();
        let mut anchors = self.environment.anchors.clone();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // Both may have changed since the handshake.
        let mut result = self.judge().and_then(|()| self.renew()).and_then(|()| self.tell_accepts());
        result = result.and_then(|()| self.tell_anchors());
        loop {
            if let Err(stop) = result {
                return stop;
            }
            let timeout = self.session.next_timeout().map(|at| self.environment.epoch + at);
            result = tokio::select! {
                message = self.control.next() => match message {
                    Ok(message) => {
                        let actions = self.session.handle(message, self.environment.now());
                        self.act(actions, events).await
                    }
                    Err(error) => Err((CloseCode::Protocol, error.to_string())),
                },
                () = sleep_until(timeout) => {
                    let actions = self.session.handle_timeout(self.environment.now());
                    self.act(actions, events).await
                }
                _ = tick.tick() => {
                    self.balance.tick();
                    self.shared.sweep();
                    self.expire()
                }
                Some(order) = self.orders.recv() => self.obey(order, events).await,
                Ok(()) = identity.changed() => self.renew(),
                Ok(()) = trust.changed() => self.judge().and_then(|()| self.tell_accepts()),
                Ok(()) = anchors.changed() => self.tell_anchors(),
                Ok(()) = live.changed() => {
                    let replicas = Arc::clone(&live.borrow_and_update());
                    self.session.set_live(replicas, self.environment.now());
                    Ok(())
                }
            };
        }
    }

    async fn act(&mut self, actions: Vec<ControlAction>, events: &mpsc::Sender<LinkEvent>) -> Stop {
        let mut changed = false;
        let mut replicas = None;
        let mut pending = std::collections::VecDeque::from(actions);
        let mut result = Ok(());
        while let Some(action) = pending.pop_front() {
            match action {
                ControlAction::Send(message) => self.control.push(&message).map_err(|QueueFull| unread())?,
                ControlAction::Acknowledged { clock_skew_ms } => {
                    self.shared.update_live(|live| {
                        live.clock_skew_ms = Some(clock_skew_ms);
                        live.last_acknowledged = Some(Instant::now());
                    });
                    changed |= self.shared.set_state(LinkState::Fresh);
                }
                ControlAction::Stale => {
                    changed |= self.shared.state() == LinkState::Fresh && self.shared.set_state(LinkState::Stale);
                }
                ControlAction::Replicas(live) => replicas = Some(live),
                ControlAction::Accepts(pins) => self.shared.set_accepts(pins),
                ControlAction::Anchors(anchors) => self.environment.hear(self.shared.peer(), anchors),
                ControlAction::Verify(message) => {
                    let verdict = self.verify(&message);
                    pending.extend(self.session.reauthenticated(verdict));
                }
                ControlAction::GoAway { reason, .. } => {
                    tracing::debug!(peer = %self.shared.peer(), reason, "Peer drains a link");
                    changed |= self.shared.set_going_away();
                }
                ControlAction::Close(code, message) => result = Err((code, message)),
                // The session gives it once, before the link starts.
                ControlAction::Established(_) => {}
            }
        }
        if changed || replicas.is_some() {
            events.send(LinkEvent::Changed { id: self.shared.identity.id, replicas }).await.ok();
        }
        result
    }

    async fn obey(&mut self, order: GoAwayOrder, events: &mpsc::Sender<LinkEvent>) -> Stop {
        let GoAwayOrder { reason, grace, within, close_when_idle } = order;
        let now = Instant::now();
        self.drain =
            Some(Drain { refuse_at: now + grace, close_at: within.map(|within| now + within), close_when_idle });
        let actions = self.session.go_away(reason, within.unwrap_or(Duration::MAX));
        self.act(actions, events).await
    }

    /// What is due by the clocks: the end of a drain, the end of the certificate. Called every [`TICK`].
    fn expire(&mut self) -> Stop {
        if let Some(drain) = &self.drain {
            let now = Instant::now();
            if now >= drain.refuse_at {
                self.shared.refuse_streams();
                if drain.close_when_idle && self.shared.is_idle() {
                    return Err((CloseCode::Done, "no longer needed".to_owned()));
                }
            }
            if drain.close_at.is_some_and(|close_at| now >= close_at) {
                return Err((CloseCode::Done, "the time for draining is over".to_owned()));
            }
        }
        if (self.environment.clock)() >= self.certificates.not_after {
            return Err((
                CloseCode::CertificateExpired,
                "the certificate of the peer ended and was not renewed".to_owned(),
            ));
        }
        Ok(())
    }

    /// Judges the other side's chain again: pins, revocation or the Peer itself may have changed.
    fn judge(&mut self) -> Stop {
        let now = (self.environment.clock)();
        match self.environment.trust.verify_live(&self.certificates.chain, now, self.shared.peer()) {
            Ok(verified) => {
                self.accept(&verified);
                Ok(())
            }
            Err(error) => Err((CloseCode::of_verdict(&error), format!("the peer {error}"))),
        }
    }

    fn accept(&mut self, verified: &VerifiedPeer) {
        self.certificates.not_after = verified.not_after;
        self.shared.update_live(|live| live.certificate = (verified.not_before, verified.not_after));
    }

    fn send(&mut self, actions: Vec<ControlAction>) -> Stop {
        for action in actions {
            if let ControlAction::Send(message) = action {
                self.control.push(&message).map_err(|QueueFull| unread())?;
            }
        }
        Ok(())
    }

    /// Sends this side's certificate if it is another than the one that the other side knows.
    fn renew(&mut self) -> Stop {
        let identity = self.environment.identity.current();
        let certificates = &mut self.certificates;
        if identity.leaf_sha256() == certificates.sent_leaf_sha256 {
            return Ok(());
        }
        let role = role(certificates.side);
        let reauth = reauth::sign(&identity, &certificates.exporter, role, certificates.local_leaf_sha256);
        let reauth = reauth.map_err(|error| (CloseCode::Internal, error.to_string()))?;
        certificates.sent_leaf_sha256 = identity.leaf_sha256();
        let message = Reauthenticate {
            chain: reauth.chain.iter().map(|der| der.to_vec().into()).collect(),
            scheme: u32::from(reauth.scheme),
            signature: reauth.signature.into(),
        };
        let actions = self.session.renew(message);
        self.send(actions)
    }

    fn verify(&mut self, message: &Reauthenticate) -> Result<(), (CloseCode, String)> {
        let certificates = &self.certificates;
        let scheme = u16::try_from(message.scheme);
        let scheme =
            scheme.map_err(|_| (CloseCode::Protocol, "a signature scheme that TLS has no number for".to_owned()))?;
        let chain = message.chain.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
        let reauth = reauth::Reauth { chain, scheme, signature: message.signature.to_vec() };
        let other = match certificates.side {
            Side::Dialler => Role::Acceptor,
            Side::Acceptor => Role::Dialler,
        };
        let now = (self.environment.clock)();
        let (exporter, leaf) = (&certificates.exporter, certificates.remote_leaf_sha256);
        let verified = reauth::verify(&self.environment.trust, &reauth, exporter, other, leaf, self.shared.peer(), now);
        let verified = verified.map_err(|error| (CloseCode::of_verdict(&error), format!("the peer {error}")))?;
        self.shared.set_chain(&reauth.chain);
        self.certificates.chain = reauth.chain;
        self.accept(&verified);
        tracing::debug!(peer = %self.shared.peer(), "Peer renewed its certificate");
        Ok(())
    }
}

/// A link whose task ends otherwise than in order, by a panic, must not look alive.
struct EndGuard {
    shared: Arc<LinkShared>,
    events: mpsc::Sender<LinkEvent>,
}

impl Drop for EndGuard {
    fn drop(&mut self) {
        if self.shared.set_state(LinkState::Closed) {
            let (code, message) = (CloseCode::Internal, "the task of the link ended".to_owned());
            self.shared.connection.close(code, &message);
            let reason = CloseReason::Local { code, message };
            self.events.try_send(LinkEvent::Ended { id: self.shared.identity.id, reason }).ok();
        }
    }
}

fn role(side: Side) -> Role {
    match side {
        Side::Dialler => Role::Dialler,
        Side::Acceptor => Role::Acceptor,
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

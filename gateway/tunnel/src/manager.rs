//! The task that decides over links: it dials, takes over what comes in, drops what is superfluous, and
//! publishes what is there. All of its state is in [`Peers`]; all waiting is here.

mod resolve;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::code::CloseCode;
use crate::config::PeerTarget;
use crate::events::{Event, FailureCause, LinkFailure};
use crate::link::driver::{self, Environment, GoAwayOrder, LinkEvent, Started};
use crate::link::{Link, LinkState, LinkTable};
use crate::peers::{Carried, Dial, LinkFacts, PathMeter, Peers, Traffic};
use crate::status::{PeerState, PeerStates};
use crate::transport::{Side, Transport, TransportKind};

/// Events and reports that may wait for the manager.
const QUEUE: usize = 1_024;
/// Connections of one peer that may wait for Hello.
const MAX_STARTING: u32 = 16;
/// Between two looks at the paths of links.
const LOOK: Duration = Duration::from_secs(1);
/// A superfluous link refuses streams after this long: the other side's last ones are on their way.
const DUPLICATE_GRACE: Duration = Duration::from_secs(1);

/// What the tunnel and its manager share.
pub(crate) struct Board {
    pub(crate) peers: Mutex<Peers>,
    /// Every link, whatever its state.
    pub(crate) links: Mutex<HashMap<u64, Entry>>,
    pub(crate) table: ArcSwap<LinkTable>,
    pub(crate) states: watch::Sender<Arc<PeerStates>>,
}

/// A link as the manager holds it.
pub(crate) struct Entry {
    pub(crate) link: Link,
    orders: mpsc::Sender<GoAwayOrder>,
}

impl Board {
    pub(crate) fn peers(&self) -> MutexGuard<'_, Peers> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn links(&self) -> MutexGuard<'_, HashMap<u64, Entry>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All links, in the order of their age.
    pub(crate) fn all_links(&self) -> Vec<Link> {
        let mut links: Vec<_> = self.links().values().map(|entry| entry.link.clone()).collect();
        links.sort_by_key(|link| link.0.identity.id);
        links
    }

    /// Gives an order; a link that takes no orders any more is at its end anyway.
    fn order(&self, id: u64, order: GoAwayOrder) {
        if let Some(entry) = self.links().get(&id) {
            entry.orders.try_send(order).ok();
        }
    }

    /// Gives an order to every link.
    pub(crate) fn order_all(&self, order: GoAwayOrder) {
        for entry in self.links().values() {
            entry.orders.try_send(order).ok();
        }
    }

    /// Tells links which streams they take; returns whether anything changed.
    fn set_roles(&self) -> bool {
        let set = |link: Link| link.0.set_role(self.peers().role(link.peer(), link.0.identity.id));
        self.all_links().into_iter().map(set).fold(false, |any, changed| any | changed)
    }

    fn publish(&self) {
        self.set_roles();
        for link in self.all_links() {
            let listed = self.peers().lists(link.peer(), &link.replica());
            link.0.set_outdated(!listed);
            link.0.set_rank(self.peers().rank(link.peer(), link.0.connection.kind()));
        }
        self.table.store(Arc::new(LinkTable::new(self.all_links())));
        let states: PeerStates = self
            .peers()
            .iter()
            .map(|(name, peer)| {
                let links = peer.links.values().filter(|link| link.up).count();
                (Arc::clone(name), PeerState { up: peer.up, since: peer.since, links })
            })
            .collect();
        self.states.send_if_modified(|current| {
            let changed = **current != states;
            if changed {
                *current = Arc::new(states);
            }
            changed
        });
    }
}

/// How an attempt at a link ended. `dial`: it was made from here.
enum Report {
    Started {
        started: Box<Started>,
        dial: Option<Dial>,
    },
    Failed {
        dial: Dial,
        failure: LinkFailure,
    },
    /// The peer had connected.
    Refused {
        peer: Arc<str>,
        error: String,
    },
}

pub(crate) struct Manager {
    pub(crate) environment: Arc<Environment>,
    /// The preferred one first.
    pub(crate) transports: Arc<[Arc<dyn Transport>]>,
    pub(crate) board: Arc<Board>,
    pub(crate) targets: watch::Receiver<Vec<PeerTarget>>,
    /// No new links.
    pub(crate) draining: CancellationToken,
    /// The end.
    pub(crate) stop: CancellationToken,
}

impl Manager {
    pub(crate) async fn run(mut self) {
        let (reports, mut reported) = mpsc::channel(QUEUE);
        let (events, mut happened) = mpsc::channel(QUEUE);
        for transport in self.transports.iter() {
            let accept = accept_all(Arc::clone(&self.environment), Arc::clone(transport), reports.clone());
            let stop = self.stop.clone();
            self.environment.tasks.spawn(async move { stop.run_until_cancelled(accept).await });
        }
        self.targets.mark_changed();
        let (mut trust, mut identity) = (self.environment.trust.subscribe(), self.environment.identity.subscribe());
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.dial_due(&reports);
            let next = self.next_dial();
            tokio::select! {
                () = self.stop.cancelled() => return,
                Some(report) = reported.recv() => self.report(report, &events),
                Some(event) = happened.recv() => self.event(event),
                Ok(()) = self.targets.changed() => self.retarget(),
                // What was refused may be accepted now.
                Ok(()) = trust.changed() => self.board.peers().retry(self.now()),
                Ok(()) = identity.changed() => self.board.peers().retry(self.now()),
                _ = looks.tick() => self.measure(),
                () = next => {}
            }
        }
    }

    fn now(&self) -> Duration {
        self.environment.epoch.elapsed()
    }

    fn retarget(&mut self) {
        let targets = self.targets.borrow_and_update().clone();
        let (now, wall) = (self.now(), (self.environment.clock)());
        let gone = self.board.peers().set_targets(targets, now, wall);
        for id in gone {
            if let Some(entry) = self.board.links().get(&id) {
                entry.link.0.connection.close(CloseCode::Revoked, "the peer is no longer configured");
            }
        }
        let peers: Vec<_> = self.board.peers().iter().map(|(name, _)| Arc::clone(name)).collect();
        for counts in [&self.environment.stream_counts, &self.environment.start_counts] {
            counts.retain(|name| peers.iter().any(|peer| **peer == *name));
        }
        self.board.publish();
    }

    fn dial_due(&self, reports: &mpsc::Sender<Report>) {
        if self.draining.is_cancelled() {
            return;
        }
        let mut dials = self.board.peers().due(self.now());
        dials.extend(self.board.peers().companions_due(self.now()));
        for dial in dials {
            if dial.beside.is_none() {
                self.environment.counters.dial();
            }
            let transport = self.transports.iter().find(|transport| transport.kind() == dial.transport);
            let Some(transport) = transport.cloned() else { continue };
            let attempt = attempt(Arc::clone(&self.environment), transport, dial, reports.clone());
            let stop = self.stop.clone();
            self.environment.tasks.spawn(async move { stop.run_until_cancelled(attempt).await });
        }
    }

    fn next_dial(&self) -> impl Future<Output = ()> + use<> {
        let due = if self.draining.is_cancelled() { None } else { self.board.peers().next_due() };
        let due = due.map(|due| self.environment.epoch + due);
        async move {
            match due {
                Some(due) => tokio::time::sleep_until(due).await,
                None => std::future::pending().await,
            }
        }
    }

    fn report(&self, report: Report, events: &mpsc::Sender<LinkEvent>) {
        match report {
            Report::Failed { dial, failure } => self.dial_failed(&dial, failure),
            Report::Refused { peer, error } => self.board.peers().refused(&peer, error),
            Report::Started { started, dial } => self.started(*started, dial, events),
        }
    }

    fn dial_failed(&self, dial: &Dial, failure: LinkFailure) {
        if dial.beside.is_some() {
            // Nobody depends on it.
            tracing::debug!(peer = %dial.peer, address = %dial.address, text = failure.text, "No link by TCP beside the one by QUIC");
            self.board.peers().dial_failed(dial, failure, self.now());
            return;
        }
        self.environment.counters.dial_failed();
        let Dial { peer, address, .. } = dial;
        self.environment.observer.happened(&Event::Dialled { peer, address, failure: Some(&failure) });
        self.board.peers().dial_failed(dial, failure, self.now());
    }

    fn started(&self, started: Started, dial: Option<Dial>, events: &mpsc::Sender<LinkEvent>) {
        let Started { link, hello, orders, driver } = started;
        let (now, wall) = (self.now(), (self.environment.clock)());
        let facts = LinkFacts {
            id: link.0.identity.id,
            replica: link.replica(),
            side: link.0.identity.side,
            transport: link.0.connection.kind(),
            via: link.0.connection.via(),
            address: dial.as_ref().map(|dial| dial.address.clone()),
            since: now,
            fresh: false,
            up: false,
            going_away: false,
            path: PathMeter::default(),
            beside: dial.as_ref().and_then(|dial| dial.beside),
            carried: Carried::default(),
        };
        let taken = if self.draining.is_cancelled() {
            Err((CloseCode::Draining, "the gateway is on its way out"))
        } else {
            self.board.peers().link_started(link.peer(), facts, hello.live, now, wall)
        };
        if let Err((code, message)) = taken {
            link.0.connection.close(code, message);
            match dial {
                Some(dial) => {
                    self.dial_failed(&dial, LinkFailure::new(FailureCause::Lost, message));
                }
                None => refused(&self.environment, link.peer(), link.remote_addr(), code.name(), message),
            }
            return;
        }
        let (peer, replica, remote) = (link.peer(), link.replica(), link.remote_addr());
        if let Some(Dial { peer, address, beside: None, .. }) = &dial {
            self.environment.observer.happened(&Event::Dialled { peer, address, failure: None });
        }
        let transport = link.0.connection.kind().name();
        tracing::info!(%peer, %replica, %remote, transport, dialled = dial.is_some(), version = hello.software_version, "Link established");
        self.environment.counters.link();
        self.board.links().insert(link.0.identity.id, Entry { link: link.clone(), orders });
        let span = tracing::info_span!("link", %peer, %replica);
        self.environment.tasks.spawn(driver.run(events.clone()).instrument(span));
    }

    fn event(&self, event: LinkEvent) {
        let (now, wall) = (self.now(), (self.environment.clock)());
        match event {
            LinkEvent::Changed { id, replicas } => {
                let state = self.board.links().get(&id).map(|entry| (entry.link.0.state(), entry.link.0.going_away()));
                let Some((state, going_away)) = state else { return };
                let update = |facts: &mut LinkFacts| {
                    facts.fresh = state == LinkState::Fresh;
                    facts.up = matches!(state, LinkState::Fresh | LinkState::Stale);
                    facts.going_away = going_away;
                };
                self.board.peers().link_changed(id, update, replicas, wall);
            }
            LinkEvent::Ended { id, reason } => {
                let entry = self.board.links().remove(&id);
                if let Some(Entry { link, .. }) = entry {
                    link.0.abandon();
                    self.board.peers().carried(link.peer(), Traffic::of(&link));
                    let (peer, replica, remote) = (link.peer(), link.replica(), link.remote_addr());
                    self.environment.observer.happened(&Event::Closed { peer, replica, remote, reason: &reason });
                }
                self.board.peers().link_ended(id, LinkFailure::from(&reason), now, wall);
            }
        }
        self.retire_duplicates();
        self.board.publish();
    }

    /// Looks how the paths of links do, and gives up those for which there is a better one.
    fn measure(&self) {
        for link in self.board.all_links() {
            let shared = &link.0;
            let bytes = shared.bytes_sent.load(Ordering::Relaxed) + shared.bytes_received.load(Ordering::Relaxed);
            self.board.peers().measured(shared.identity.id, &shared.connection.path(), bytes);
        }
        self.board.peers().choose(self.now());
        let roles = self.board.set_roles();
        if self.retire_duplicates() || roles {
            self.board.publish();
        }
    }

    /// Links dialled here that go by way of one that drains: others are dialled, by way of another replica of that cluster.
    fn stranded(&self) -> Vec<u64> {
        let links = self.board.all_links();
        let stranded = links.iter().filter(|link| {
            link.0.identity.side == Side::Dialler && !link.0.going_away() && link.0.connection.carrier_leaves()
        });
        stranded.map(|link| link.0.identity.id).collect()
    }

    /// Returns whether there were any.
    fn retire_duplicates(&self) -> bool {
        let superfluous = self.board.peers().superfluous(self.now());
        let retire = superfluous.into_iter().map(|id| (id, "another link to the same replica is there"));
        let stranded = self.stranded().into_iter().map(|id| (id, "the link that carries it drains"));
        let retire: Vec<_> = retire.chain(stranded).collect();
        let any = !retire.is_empty();
        for (id, reason) in retire {
            let Some(link) = self.board.links().get(&id).map(|entry| entry.link.clone()) else { continue };
            if link.0.set_going_away() {
                let order = GoAwayOrder {
                    reason,
                    grace: DUPLICATE_GRACE,
                    // Its streams are as good as any: they end when they are done. How many such links there can be
                    // is bounded by the links of a peer.
                    within: None,
                    close_when_idle: true,
                };
                self.board.order(id, order);
                self.board.peers().link_changed(id, |facts| facts.going_away = true, None, (self.environment.clock)());
            }
        }
        any
    }
}

/// Takes over the connections of others.
async fn accept_all(environment: Arc<Environment>, transport: Arc<dyn Transport>, reports: mpsc::Sender<Report>) {
    while let Some(established) = transport.accept().await {
        let (environment, reports) = (Arc::clone(&environment), reports.clone());
        let tasks = environment.tasks.clone();
        let (peer, remote) = (Arc::clone(&established.peer.peer), established.connection.remote_addr());
        let starting = environment.start_counts.of(&peer);
        if starting.fetch_add(1, Ordering::Relaxed) >= MAX_STARTING {
            starting.fetch_sub(1, Ordering::Relaxed);
            let (code, message) = (CloseCode::Overloaded, "too many connections of this peer wait for Hello");
            established.connection.close(code, message);
            refused(&environment, &peer, remote, code.name(), message);
            continue;
        }
        tasks.spawn(async move {
            let started = driver::start(Arc::clone(&environment), established).await;
            starting.fetch_sub(1, Ordering::Relaxed);
            match started {
                Ok(started) => {
                    reports.send(Report::Started { started: Box::new(started), dial: None }).await.ok();
                }
                Err(reason) => {
                    refused(&environment, &peer, remote, reason.label(), &reason.to_string());
                    reports.send(Report::Refused { error: format!("{remote}: {reason}"), peer }).await.ok();
                }
            }
        });
    }
}

/// Tells of a peer that dialled us and got no link.
fn refused(environment: &Environment, peer: &Arc<str>, remote: SocketAddr, reason: &'static str, text: &str) {
    environment.observer.happened(&Event::Refused { peer: Some(peer), remote, reason, text });
}

/// One dial, from the name to Hello.
async fn attempt(
    environment: Arc<Environment>,
    transport: Arc<dyn Transport>,
    dial: Dial,
    reports: mpsc::Sender<Report>,
) {
    let result = async {
        let peer = Arc::clone(&dial.peer);
        let established = if dial.transport == TransportKind::Relay {
            transport.dial_via(peer, Arc::clone(&dial.address.host)).await?
        } else {
            // Names on the other side of a proxy are its business: there may be no DNS for them here.
            let near = dial.way.proxy.as_ref().map_or(&dial.address, |proxy| &proxy.address);
            let remotes = resolve::resolve(&environment.resolver, near, dial.attempt)
                .await
                .map_err(|text| LinkFailure::new(FailureCause::Unresolved, text))?;
            let established = resolve::race(remotes, |remote| {
                transport.dial_by(Arc::clone(&peer), remote, dial.address.clone(), dial.way.clone())
            });
            established.await?
        };
        let remote = established.connection.remote_addr();
        driver::start(environment, established).await.map_err(|reason| {
            let failure = LinkFailure::from(&reason);
            LinkFailure { text: format!("{remote}: {}", failure.text), ..failure }
        })
    };
    let report = match result.await {
        Ok(started) => Report::Started { started: Box::new(started), dial: Some(dial) },
        Err(failure) => Report::Failed { dial, failure },
    };
    reports.send(report).await.ok();
}

/// Waits until no link has streams, or the deadline.
pub(crate) async fn until_idle(board: &Board, deadline: Instant) -> bool {
    // Links that others carry are streams of those: they come first, and end when nothing is left on them.
    let (relayed, direct): (Vec<_>, Vec<_>) =
        board.all_links().into_iter().partition(|link| link.0.connection.kind() == TransportKind::Relay);
    let mut clean = true;
    for link in relayed {
        clean &= tokio::time::timeout_at(deadline, link.0.idle()).await.is_ok();
        link.0.connection.close(CloseCode::Done, "shutting down");
    }
    for link in direct {
        clean = clean && tokio::time::timeout_at(deadline, link.0.idle()).await.is_ok();
    }
    clean
}

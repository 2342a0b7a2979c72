//! Further QUIC connections of a link, its lanes: one connection keeps one core busy, so a link has as many as this side
//! has threads for it.
//!
//! The side that dialled the link dials its lanes, too. A lane says so by its protocol (ALPN), and its first stream shows
//! keying material of the link's first connection, which nobody else has; the other side judges its certificate like any,
//! and the peer must be the same. Streams are dealt to the lane that has the fewest. A lane that ends takes its streams
//! with it and is dialled again; the end of the first connection is the end of all.
//!
//! Who does not know lanes chooses the link's own protocol, as ever, and gets none.

use std::collections::HashMap;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use bytes::Bytes;
use eastway_identity::tls;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::timeout;

use super::Shared;
use super::connection::{Held, QuicConnection};
use super::drive::Conn;
use super::handshake::{self, Failure};
use super::stream::halves;
use crate::code::CloseCode;
use crate::transport::{Connection as _, Halves, Take};

/// Protocol of a link whose sides know lanes (ALPN).
pub(super) const LINK: &[u8] = b"eastway/1+lanes";
/// Protocol of a lane (ALPN).
pub(super) const LANE: &[u8] = b"eastway/1+lane";
/// What a lane shows (RFC 5705).
const LABEL: &[u8] = b"EXPORTER-eastway-lane";
/// What the other side answers to it.
const JOINED: u8 = 1;
/// Most of a link.
const MOST: usize = 8;
/// Pause before a lane that ended, or did not come about, is dialled again; doubles up to the second of these.
const REDIAL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Halves of streams that the lane of the thread that asks may have more than the one with the fewest. The first has some more
/// for good, which carry little: control and federation.
const NEAR: usize = 16;

/// Bytes of what a lane shows.
const KEY: usize = 32;

/// Links that lanes may join.
#[derive(Default)]
pub(super) struct Joinable {
    links: Mutex<HashMap<[u8; KEY], Weak<QuicConnection>>>,
}

impl Joinable {
    pub(super) fn add(&self, link: &Arc<QuicConnection>) {
        let Ok(key) = link.export(LABEL) else { return };
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.retain(|_, link| link.strong_count() > 0);
        links.insert(key, Arc::downgrade(link));
    }

    fn find(&self, key: &[u8]) -> Option<Arc<QuicConnection>> {
        let links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.get(key).and_then(Weak::upgrade)
    }
}

/// The lanes of a link beside its first connection.
pub(super) struct Lanes {
    others: ArcSwap<Vec<Arc<Conn>>>,
    /// Takes the streams that the other side opens on them, once the link is served.
    take: watch::Sender<Option<Take>>,
}

impl Lanes {
    pub(super) fn new() -> Self {
        Self { others: ArcSwap::default(), take: watch::Sender::default() }
    }

    /// All but the first.
    pub(super) fn others(&self) -> Guard<Arc<Vec<Arc<Conn>>>> {
        self.others.load()
    }

    /// The lane for the next stream: the one with the fewest, and among equals the one of the thread that asks.
    pub(super) fn pick(&self, first: &Arc<Conn>) -> Arc<Conn> {
        let others = self.others.load();
        if others.is_empty() {
            return Arc::clone(first);
        }
        let here = Handle::try_current().map(|handle| handle.id()).ok();
        let least = others.iter().chain([first]).map(|lane| lane.load()).min().unwrap_or_default();
        // What is here costs no other thread's time, which is worth some difference; and what ended is counted until the other
        // side has it.
        let is_here = |lane: &&Arc<Conn>| Some(lane.home.id()) == here && lane.load() <= least + least / 4 + NEAR;
        let near = others.iter().chain([first]).find(is_here);
        let lane = near.or_else(|| std::iter::once(first).chain(others.iter()).min_by_key(|lane| lane.load()));
        Arc::clone(lane.unwrap_or(first))
    }

    /// Gives `take` every stream that the other side opens on any of them.
    pub(super) fn serve(&self, take: &Take) {
        self.take.send_replace(Some(Arc::clone(take)));
    }

    /// `false`: there are enough.
    pub(super) fn add(&self, lane: &Arc<Conn>) -> bool {
        let mut added = false;
        self.others.rcu(|others| {
            added = others.len() + 1 < MOST;
            if added { others.iter().chain([lane]).cloned().collect() } else { Vec::clone(others) }
        });
        added
    }

    pub(super) fn remove(&self, lane: &Arc<Conn>) {
        self.others.rcu(|others| others.iter().filter(|other| !Arc::ptr_eq(other, lane)).cloned().collect::<Vec<_>>());
    }
}

/// Takes a connection as a lane of a link, if it shows that it is one of it, and serves it until its end.
pub(super) async fn join(shared: &Shared, lane: Held, peer: &str) -> Result<impl Future<Output = ()> + use<>, Failure> {
    let refuse = |why: &'static str| {
        lane.0.close(CloseCode::Protocol, why);
        Failure::Lane(why)
    };
    let shown = timeout(shared.config.timing.handshake, shown(&lane.0)).await;
    let (key, (mut send, _recv)) = shown.ok().flatten().ok_or_else(|| refuse("it shows nothing"))?;
    let link = shared.joinable.find(&key).ok_or_else(|| refuse("its link is not here"))?;
    if **link.peer() != *peer {
        return Err(refuse("its link is somebody else's"));
    }
    if !link.add_lane(&lane.0) {
        return Err(refuse("its link has enough"));
    }
    let mut answer = [Bytes::from_static(&[JOINED])];
    // A place in the handshakes is held meanwhile, and one of the link's: the other side need not admit even this byte.
    let written = timeout(shared.config.timing.handshake, poll_fn(|cx| send.poll_write(cx, &mut answer))).await;
    if !matches!(written, Ok(Ok(_))) {
        link.remove_lane(&lane.0);
        return Err(refuse("it takes no answer"));
    }
    send.finish();
    Ok(serve(Arc::downgrade(&link), Arc::clone(link.first()), lane))
}

/// What the first stream of a lane begins with, and the stream.
async fn shown(lane: &Arc<Conn>) -> Option<(Vec<u8>, Halves)> {
    let id = lane.accept().await.ok()?;
    let (send, mut recv) = halves(lane, id);
    let mut key = Vec::with_capacity(KEY);
    while key.len() < KEY {
        let part = poll_fn(|cx| recv.poll_read(cx, KEY - key.len())).await.ok()??;
        key.extend_from_slice(&part);
    }
    Some((key, (send, recv)))
}

/// Gives whoever serves the link what comes on a lane, until the lane or the link ends.
async fn serve(link: Weak<QuicConnection>, first: Arc<Conn>, lane: Held) {
    let take = link.upgrade().map(|link| link.lanes().take.subscribe());
    let served = async {
        // Whoever takes them comes when the link is established.
        let take = take?.wait_for(Option::is_some).await.ok()?.clone()?;
        while let Ok(id) = lane.0.accept().await {
            take(halves(&lane.0, id));
        }
        Some(())
    };
    tokio::select! {
        _ = first.closed() => lane.0.close(CloseCode::Done, "the link has ended"),
        _ = served => {}
    }
    if let Some(link) = link.upgrade() {
        link.remove_lane(&lane.0);
    }
}

/// Keeps a lane of a link that was dialled, at `home`, until the link ends.
pub(super) async fn keep(shared: Arc<Shared>, link: Weak<QuicConnection>, home: Handle, remote: SocketAddr) {
    let Some((first, peer)) = link.upgrade().map(|link| (Arc::clone(link.first()), Arc::clone(link.peer()))) else {
        return;
    };
    let mut pause = REDIAL.0;
    loop {
        let dialled = async {
            let lane = dial(&shared, &link, &home, &peer, remote).await?;
            pause = REDIAL.0;
            serve(Weak::clone(&link), Arc::clone(&first), lane).await;
            Some(())
        };
        let ended = tokio::select! {
            _ = first.closed() => return,
            ended = dialled => ended,
        };
        tracing::debug!(%remote, joined = ended.is_some(), ?pause, "A lane of a link ended");
        // Many links may have lost theirs at once.
        let jittered = pause.mul_f64(0.75 + fastrand::f64() / 2.0);
        tokio::select! {
            _ = first.closed() => return,
            () = tokio::time::sleep(jittered) => {}
        }
        pause = (pause * 2).min(REDIAL.1);
    }
}

/// Dials a lane and has it join.
async fn dial(
    shared: &Arc<Shared>,
    link: &Weak<QuicConnection>,
    home: &Handle,
    peer: &Arc<str>,
    remote: SocketAddr,
) -> Option<Held> {
    let key = link.upgrade()?.export(LABEL).ok()?;
    let dialled = handshake::dial_as(shared, home, peer, remote, &[LANE, tls::ALPN]).await.ok()?;
    if dialled.speaks() != LANE {
        return None;
    }
    let owner = link.upgrade()?;
    let lane = dialled.into_lane(shared, &owner);
    drop(owner);
    let joined = async {
        let (mut send, mut recv) = halves(&lane.0, lane.0.open().await.ok()?);
        let mut chunks = [Bytes::copy_from_slice(&key)];
        poll_fn(|cx| send.poll_write(cx, &mut chunks)).await.ok()?;
        send.finish();
        let answer = poll_fn(|cx| recv.poll_read(cx, 1)).await.ok()??;
        (*answer == [JOINED]).then_some(())
    };
    timeout(shared.config.timing.handshake, joined).await.ok().flatten()?;
    link.upgrade()?.add_lane(&lane.0).then_some(lane)
}

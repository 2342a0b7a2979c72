//! Who may hold how many unread bytes.
//!
//! A stream that nobody reads keeps its bytes in the window of its link, and a window that stalled streams
//! have filled stops all others (threats P9, F34). So each link has a part for streams that move, and gets
//! on top of it what its stalled streams can hold, as long as the link's and the gateway's limits allow.
//! Beyond those the streams that stalled longest are cut. What a link holds never exceeds its window, and
//! all windows together never exceed the gateway's limit: the transport enforces the first, [`Budget`]
//! the second.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::LinkShared;
use crate::stream::{Stall, StreamShared};

/// Time between two looks at a link's streams.
pub(crate) const TICK: Duration = Duration::from_millis(50);
/// Ticks after which a stream whose reader does not come back is charged.
const STALLED: u32 = 2;
/// Ticks after which it may be cut, if there is no room.
const SHED: u32 = 10;
/// Likewise, soon after a cut.
const SHED_SOON: u32 = 2;
/// For how many ticks it is soon.
const SOON: u32 = 100;
/// Ticks between two looks at the round trip time.
const FIT: u32 = 20;
/// Least part of a link for streams that move, however many links there are.
const LEAST_WINDOW: u64 = 1 << 20;
/// Bandwidth that the send window is sized for, bytes per millisecond of round trip: 2 Gbit/s.
const SEND_BYTES_PER_MS: u64 = 256 << 10;

/// Unread bytes that all links may hold together: one half for streams that move, the other for stalled ones.
pub(crate) struct Budget {
    total: u64,
    links: AtomicU64,
    stalled: AtomicU64,
}

impl Budget {
    pub(crate) fn new(total: u64) -> Arc<Self> {
        Arc::new(Self { total, links: AtomicU64::new(0), stalled: AtomicU64::new(0) })
    }

    /// The part of one link for streams that move.
    fn moving(&self, most: u64) -> u64 {
        let links = self.links.load(Ordering::Relaxed).max(1);
        (self.total / 2 / links).clamp(LEAST_WINDOW.min(most), most)
    }

    /// What a reservation of `old` may become at most, as long as nobody else reserves anything.
    fn left(&self, old: u64) -> u64 {
        (self.total / 2).saturating_sub(self.stalled.load(Ordering::Relaxed).saturating_sub(old))
    }

    /// Changes a reservation for stalled streams from `old` towards `wanted` and returns what it is now.
    fn reserve(&self, old: u64, wanted: u64) -> u64 {
        let mut granted = wanted;
        let result = self.stalled.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |stalled| {
            let others = stalled.saturating_sub(old);
            granted = wanted.min((self.total / 2).saturating_sub(others));
            Some(others + granted)
        });
        result.map_or(old, |_| granted)
    }
}

/// The time of a link in steps of [`TICK`], and how many of its streams hold data up.
#[derive(Default)]
pub(crate) struct Pace {
    tick: AtomicU32,
    held: AtomicU32,
}

impl Pace {
    pub(crate) fn tick(&self) -> u32 {
        self.tick.load(Ordering::Relaxed)
    }

    /// Moves on by one, and returns what it is now.
    pub(crate) fn advance(&self) -> u32 {
        self.tick.fetch_add(1, Ordering::Relaxed).wrapping_add(1)
    }

    /// A reader keeps data waiting, or does so no longer.
    pub(crate) fn hold(&self, held: bool) {
        if held {
            self.held.fetch_add(1, Ordering::Relaxed);
        } else {
            self.held.fetch_sub(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn any_held(&self) -> bool {
        self.held.load(Ordering::Relaxed) > 0
    }
}

/// The windows of one link.
pub(crate) struct Balance {
    budget: Arc<Budget>,
    link: Arc<LinkShared>,
    /// Reserved for stalled streams.
    reserved: u64,
    window: u64,
    send_window: u64,
    /// Tick of the last cut.
    last_cut: Option<u32>,
}

impl Balance {
    pub(crate) fn new(budget: Arc<Budget>, link: Arc<LinkShared>) -> Self {
        budget.links.fetch_add(1, Ordering::Relaxed);
        let limits = &link.limits;
        let (window, send_window) = (u64::from(limits.link_window), u64::from(limits.send_window));
        Self { budget, reserved: 0, window, send_window, last_cut: None, link }
    }

    /// One look at all streams, every [`TICK`].
    pub(crate) fn tick(&mut self) {
        let now = self.link.pace().advance();
        let charged = self.relieve(now);
        let window = self.budget.moving(u64::from(self.link.limits.link_window)) + charged;
        if window != self.window {
            self.window = window;
            self.link.connection.set_receive_window(window);
            self.link.update_live(|live| live.receive_window = window);
        }
        if now.is_multiple_of(FIT) {
            self.fit_send_window();
        }
    }

    /// Charges stalled streams, cuts those for which there is no room, and returns how much of the charge is for what
    /// lies in the link's window. A stream is charged for what it holds, and if that is not known for a window: many
    /// with a few bytes each, as when a thousand connections begin at once, are no reason to cut any.
    fn relieve(&mut self, now: u32) -> u64 {
        let each = u64::from(self.link.limits.stream_window);
        let most = u64::from(self.link.limits.link_window_max.saturating_sub(self.link.limits.link_window));
        let mut stalled = stalled(&self.link, now, most.min(self.budget.left(self.reserved)));
        let charge = |stall: &Stall| stall.held.unwrap_or(each);
        let wanted: u64 = stalled.iter().map(|(stall, _)| charge(stall)).sum();
        let windows = stalled.iter().filter(|(stall, _)| stall.held.is_none()).count() as u64 * each;
        self.reserved = self.budget.reserve(self.reserved, wanted.min(most));
        if wanted > self.reserved {
            stalled.sort_by_key(|(stall, _)| std::cmp::Reverse((charge(stall), stall.ticks)));
            let soon = self.last_cut.is_some_and(|cut| now.wrapping_sub(cut) < SOON);
            let least = if soon { SHED_SOON } else { SHED };
            let (mut excess, mut count) = (wanted - self.reserved, 0_u32);
            for (stall, stream) in stalled.iter().filter(|(stall, _)| stall.ticks >= least) {
                if excess == 0 {
                    break;
                }
                excess = excess.saturating_sub(charge(stall));
                stream.shed();
                count += 1;
            }
            if count > 0 {
                self.last_cut = Some(now);
                tracing::warn!(peer = %self.link.peer(), streams = count, "Streams that nobody reads were cut to keep others moving");
            }
        }
        self.reserved.min(windows)
    }

    /// Long paths need more bytes in flight; short ones only lose them in the peer's socket buffer.
    fn fit_send_window(&mut self) {
        let limits = &self.link.limits;
        let rtt = u64::try_from(self.link.connection.rtt().as_millis()).unwrap_or(u64::MAX);
        let (least, most) = (u64::from(limits.send_window), u64::from(limits.send_window_max));
        let fit = rtt.saturating_mul(SEND_BYTES_PER_MS).clamp(least, most.max(least));
        // A jittering path is no reason to move the window each time.
        if fit > self.send_window + self.send_window / 4 || fit < self.send_window / 2 {
            self.send_window = fit;
            self.link.connection.set_send_window(fit);
        }
    }
}

impl Drop for Balance {
    fn drop(&mut self) {
        self.budget.reserve(self.reserved, 0);
        self.budget.links.fetch_sub(1, Ordering::Relaxed);
    }
}

/// `room`: bytes that may be taken off the transport, all streams together.
fn stalled(link: &LinkShared, now: u32, mut room: u64) -> Vec<(Stall, Arc<StreamShared>)> {
    if !link.pace().any_held() {
        return Vec::new();
    }
    // Not under the lock: dropping the last reference to a stream takes it.
    let streams: Vec<_> = link.streams().values().cloned().collect();
    let streams = streams.into_iter().filter_map(|stream| stream.upgrade());
    let look = |stream: Arc<StreamShared>| {
        let stall = stream.stalled_for(now, STALLED, room)?;
        room = room.saturating_sub(stall.held.unwrap_or_else(|| u64::from(link.limits.stream_window)));
        Some((stall, stream))
    };
    streams.filter_map(look).collect()
}

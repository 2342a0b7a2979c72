//! A link that this side dialled leaves a port from which nothing comes back any more.
//!
//! NATs and balancers know a link by a pair of addresses. When one of them has lost that pair, or leads it to a machine
//! that is gone, nothing passes, often for minutes, while a pair that it has not seen yet passes at once. The other side
//! cannot help: it knows no other way to here. QUIC lets the end that dialled move (RFC 9000 §9), and each dial has an
//! endpoint and a socket of its own, so moving costs a socket and no stream: the first packet from the new port makes
//! the other side send there.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quinn_proto::ConnectionStats;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::drive::Conn;
use super::inlets;
use super::socket;
use super::udp::Udp;

/// Between two looks at what was acknowledged.
const LOOK: Duration = Duration::from_millis(125);
/// Without an acknowledgement for this long a link changes its port: several repetitions of a lost packet on usual paths,
/// and soon enough that a request survives which has two seconds, also when this side has nothing to say before its next
/// heartbeat, a second later.
const PATIENCE: Duration = Duration::from_millis(625);
/// The same in round trips, for long paths.
const ROUND_TRIPS: u32 = 3;

/// Moves `conn`, the only one of its port, to another one as often as it falls silent, until it ends. It is given up by
/// the idle timeout as ever: moving does not put that off, only packets that come do. Counts in `hops`. To be spawned at
/// the home of the link.
pub(super) async fn watch(conn: Arc<Conn>, mut readers: Readers, buffer: usize, hops: Arc<AtomicU64>) {
    let remote = conn.remote_address();
    let mut silence = Silence::default();
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = conn.closed() => break,
            _ = looks.tick() => {}
        }
        let stats = conn.stats();
        let patience = PATIENCE.max(stats.path.rtt * ROUND_TRIPS);
        if !silence.is_over(patience, Exchanged::of(&stats), Instant::now()) {
            continue;
        }
        match socket::for_dial(remote, buffer).and_then(|socket| Udp::new(socket, &conn.home)) {
            Ok(socket) => {
                readers.read(&conn, Arc::new(socket));
                conn.change(quinn_proto::Connection::local_address_changed);
                hops.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(%remote, ?patience, "Nothing came back; the link goes on from another port");
            }
            Err(error) => tracing::debug!(%remote, %error, "The link cannot change its port"),
        }
    }
    // What the other side says to its end still has to be heard.
    conn.port.dead.cancelled().await;
}

/// Reads the socket of a port that a link was dialled from, and the one before it: packets may still come there.
pub(super) struct Readers {
    former: CancellationToken,
    current: CancellationToken,
}

impl Readers {
    /// With the port's first socket.
    pub(super) fn new(conn: &Conn) -> Self {
        let mut readers = Self { former: CancellationToken::new(), current: CancellationToken::new() };
        readers.read(conn, conn.port.socket());
        readers
    }

    fn read(&mut self, conn: &Conn, socket: Arc<Udp>) {
        let former = std::mem::replace(&mut self.current, conn.port.dead.child_token());
        std::mem::replace(&mut self.former, former).cancel();
        conn.port.set_socket(Arc::clone(&socket));
        let (port, until) = (Arc::clone(&conn.port), self.current.clone());
        conn.spawn(async move {
            until.run_until_cancelled(inlets::read(&port, &socket)).await;
        });
    }
}

/// What both ends have said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Exchanged {
    /// Frames sent that are to be acknowledged. Every repetition and probe has one of them.
    asked: u64,
    /// Acknowledgements received.
    acknowledged: u64,
}

impl Exchanged {
    fn of(stats: &ConnectionStats) -> Self {
        let sent = &stats.frame_tx;
        let asked = [
            sent.ping,
            sent.immediate_ack,
            sent.stream,
            sent.reset_stream,
            sent.stop_sending,
            sent.max_data,
            sent.max_stream_data,
            sent.path_response,
            sent.new_connection_id,
            sent.retire_connection_id,
        ];
        Self { asked: asked.iter().sum(), acknowledged: stats.frame_rx.acks }
    }
}

/// Tells silence from quiet: something waits for an acknowledgement.
#[derive(Debug, Default)]
struct Silence {
    /// At the last acknowledgement.
    last: Exchanged,
    /// When something was found to have been sent after that.
    since: Option<Instant>,
}

impl Silence {
    /// Whether `patience` has run out at `now`, to the nearest look; from then on it runs anew.
    fn is_over(&mut self, patience: Duration, seen: Exchanged, now: Instant) -> bool {
        if seen.acknowledged != self.last.acknowledged {
            *self = Self { last: seen, since: None };
            return false;
        }
        if seen.asked == self.last.asked {
            return false;
        }
        let since = *self.since.get_or_insert(now);
        let over = now.duration_since(since) + LOOK / 2 >= patience;
        if over {
            self.since = Some(now);
        }
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What [`Silence`] says at each of these: milliseconds, frames sent, acknowledgements received.
    fn said(looks: &[(u64, u64, u64)]) -> Vec<bool> {
        let (start, mut silence) = (Instant::now(), Silence::default());
        let look = |(at, asked, acknowledged): &(u64, u64, u64)| {
            let seen = Exchanged { asked: *asked, acknowledged: *acknowledged };
            silence.is_over(PATIENCE, seen, start + Duration::from_millis(*at))
        };
        looks.iter().map(look).collect()
    }

    #[test]
    fn an_idle_link_is_not_silent() {
        assert_eq!(said(&[(0, 5, 3), (250, 5, 3), (10_000, 5, 3)]), [false; 3], "nothing was sent");
        assert_eq!(said(&[(0, 5, 3), (250, 6, 4), (1_250, 7, 5), (2_250, 8, 6)]), [false; 4], "all was acknowledged");
    }

    #[test]
    fn what_stays_unacknowledged_runs_out_of_patience_again_and_again() {
        let looks = [(0, 5, 3), (125, 6, 3), (625, 8, 3), (749, 9, 3), (1_000, 9, 3), (1_250, 9, 3), (1_750, 9, 3)];
        assert_eq!(said(&looks), [false, false, false, true, false, false, true]);
        let healed = [(0, 5, 3), (125, 6, 3), (750, 7, 3), (875, 8, 4), (2_250, 9, 4), (2_750, 9, 4), (2_875, 9, 4)];
        assert_eq!(said(&healed), [false, false, true, false, false, false, true]);
    }
}

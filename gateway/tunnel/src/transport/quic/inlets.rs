//! A queue of its own for each link that was taken, beside the one where strangers knock.
//!
//! The listening socket has one queue. Whoever floods its port fills it, and what does not fit is lost, packets of links
//! among it. Linux gives a packet to the socket that is connected to its sender, if there is one: so each link that was
//! taken gets such a socket on the same port, which the link's own thread reads. What it loses is its own. Of what
//! strangers send, only so much is read as [`strangers`] says.

mod strangers;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use self::strangers::Strangers;
use super::drive::Conn;
use super::port::Port;
use super::socket;
use super::udp::Udp;
use crate::replicas::paths::is_path;

/// Between two looks at whether a link's other end has moved.
const LOOK: Duration = Duration::from_secs(1);
/// Batches that are taken before others of the thread have their turn.
const TURN: usize = 4;
/// Pause after a link's own socket failed: an error that stays must not keep a core busy.
const PAUSE: Duration = Duration::from_millis(100);

/// Keeps a socket for `conn`, wherever its other end moves, until it is closed. What cannot have one goes on by the
/// listening socket. To be spawned at the home of the link.
pub(super) async fn keep(conn: Arc<Conn>, buffer: usize) {
    let mut looks = tokio::time::interval(LOOK);
    let closed = CancellationToken::new();
    let _closed = closed.clone().drop_guard();
    let mut inlet: Option<(SocketAddr, CancellationToken)> = None;
    loop {
        tokio::select! {
            _ = conn.closed() => return,
            _ = looks.tick() => {}
        }
        let remote = conn.remote_address();
        if inlet.as_ref().is_some_and(|(known, _)| *known == remote) {
            continue;
        }
        if let Some((_, moved)) = inlet.take() {
            moved.cancel();
        }
        // By way of another replica: there is no such sender.
        if is_path(&remote) {
            continue;
        }
        match open(&conn, remote, buffer) {
            Ok(socket) => {
                let moved = closed.child_token();
                inlet = Some((remote, moved.clone()));
                let port = Arc::clone(&conn.port);
                conn.spawn(async move {
                    moved.run_until_cancelled(read(&port, &socket)).await;
                });
            }
            Err(error) => tracing::debug!(%remote, %error, "The link has no socket of its own"),
        }
    }
}

fn open(conn: &Conn, remote: SocketAddr, buffer: usize) -> io::Result<Udp> {
    let listening = conn.port.socket();
    let address = listening.local_addr();
    let local = listening.inward(SocketAddr::new(conn.local_ip().unwrap_or(address.ip()), address.port()));
    Udp::new(socket::connected(local, listening.inward(remote), buffer)?, &conn.home)
}

/// Reads a socket that is not the listening one. What goes wrong with it concerns only its link, which the idle timeout
/// ends if need be.
pub(super) async fn read(port: &Arc<Port>, socket: &Udp) {
    loop {
        match socket.receive(TURN, |batch| port.received(batch)).await {
            Ok(false) => {}
            Ok(true) => tokio::task::yield_now().await,
            Err(error) => {
                tracing::debug!(%error, "The socket of a link failed");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Reads the listening socket, while there is room for strangers, until it fails.
pub(super) async fn read_strangers(port: &Arc<Port>, socket: &Udp) -> io::Error {
    let mut strangers = Strangers::new();
    loop {
        strangers.ready().await;
        let read = socket.receive(1, |batch| {
            strangers.read(batch.trains());
            port.received(batch);
        });
        match read.await {
            Ok(false) => {}
            Ok(true) => tokio::task::yield_now().await,
            Err(error) => return error,
        }
    }
}
